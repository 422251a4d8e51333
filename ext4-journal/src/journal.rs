//! The journal: its state, its two tasks, its superblock.
//!
//! - The *commit task* commits the running transaction when it is large or old, or when somebody asks and does not do
//!   it himself: who waits for a commit that nobody carries out does so in his own task, which spares two changes of
//!   tasks.
//! - The *checkpoint task* writes committed blocks to their places when the log runs short, or to empty it.
//!
//! Each holds only a weak reference while it waits: dropping the last [`Journal`] without [`Journal::close`] ends them
//! and is a crash. One commits at a time (`committer`), and a caller who goes away while he does leaves nothing half done:
//! the rest goes to the runtime ([`RunToEnd`](ext4_core::environment::RunToEnd)).
//!
//! Invariant: after the first error nothing more is written but that error into the superblock, on top of the tail
//! that is on the medium. Were the tail of a checkpoint that failed written with it, recovery would skip blocks that
//! never reached their places.
//!
//! Locks: see the crate. No wait is lost: a waiter enables its [`Notified`](tokio::sync::futures::Notified) before it
//! looks at the state, and whoever changes the state notifies after.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use ext4_core::device::{BioFlags, BlockDevice};
use ext4_core::environment::{BoxFuture, Environment, Runtime};
use ext4_core::meta::BufferCache;
use ext4_core::{BlockSize, Errno, Error, Result, TransactionId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::checkpoint::Checkpoints;
use crate::fast_commit::FastCommits;
use crate::format::{Layout, Superblock};
use crate::log::{Extent, Log, Space};
use crate::queue::Queue;
use crate::recovery::Replayed;
use crate::recovery::finish::Unfinished;
use crate::reservation::Reservations;
use crate::statistics::{Counters, History, Statistics};
use crate::transaction::{Phase, Transaction};
use crate::{Damage, JournalLocation, JournalOptions, Recovery, RecoveryReport, recovery};

/// Whether the journal takes handles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// Opened, perhaps to be recovered.
    Idle,
    /// Handles may start.
    Running,
    /// No more handles; what there is, is finished.
    Closing,
    /// The tasks have ended or are about to.
    Closed,
}

/// The transaction that is being committed.
#[derive(Debug)]
pub(crate) struct Committing {
    pub(crate) transaction: Transaction,
    /// Log blocks it still has to be given.
    pub(crate) wanted: u32,
    /// Its part of the log.
    pub(crate) extent: Option<Extent>,
}

/// Everything behind the one lock.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) mode: Mode,
    pub(crate) aborted: Option<Error>,
    /// The running transaction's id, or that of the next one to run.
    pub(crate) next: TransactionId,
    pub(crate) running: Option<Transaction>,
    pub(crate) committing: Option<Committing>,
    pub(crate) space: Space,
    pub(crate) checkpoints: Checkpoints,
    /// Fast commits were found, and the file system has not said yet what they change.
    pub(crate) unfinished: Option<Unfinished>,
    pub(crate) fast: FastCommits,
    /// The commit task wakes by itself when the running transaction is too old: nobody has to tell it that one began.
    pub(crate) timer_runs: bool,
    /// The superblock as it is on the medium.
    pub(crate) superblock: Superblock,
    pub(crate) layout: Layout,
    /// Handles that wait for room.
    pub(crate) queue: Queue,
    pub(crate) reservations: Reservations,
    pub(crate) history: History,
}

impl State {
    /// The error of an aborted journal.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.aborted {
            Some(error) => Err(Error::Aborted(error.to_string())),
            None => Ok(()),
        }
    }
}

/// Set where the journal runs.
pub(crate) struct Home {
    pub(crate) cache: Arc<BufferCache>,
    /// The log lies on another device than the file system.
    pub(crate) external: bool,
}

/// What wakes the tasks and those who wait.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    /// The commit task: somebody wants a commit, or the timer is to be set.
    pub(crate) commit: Notify,
    /// The commit task: the last handle of a locked transaction has stopped.
    pub(crate) drained: Notify,
    /// The checkpoint task: make room or empty the log.
    pub(crate) checkpoint: Notify,
    /// Handles may start again, log space is free, or the journal was aborted.
    pub(crate) room: Notify,
    /// A transaction has committed, or the journal was aborted.
    pub(crate) committed: Notify,
    /// A checkpoint went on, or the journal was aborted.
    pub(crate) checkpointed: Notify,
    /// A task has ended.
    pub(crate) ended: Notify,
    pub(crate) tasks: AtomicUsize,
}

impl Wake {
    pub(crate) fn everybody(&self) {
        for notify in [&self.commit, &self.drained, &self.checkpoint] {
            notify.notify_one();
        }
        for notify in [&self.room, &self.committed, &self.checkpointed, &self.ended] {
            notify.notify_waiters();
        }
    }
}

/// Called once, with the error that stopped the journal, in the task that met it: it must not block.
pub type OnAbort = Box<dyn Fn(&Error) + Send + Sync>;

/// A log and its running, committing and checkpointed transactions.
pub struct Journal {
    pub(crate) log: Log,
    pub(crate) options: JournalOptions,
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) state: Mutex<State>,
    pub(crate) home: OnceLock<Home>,
    /// The same as `state.aborted.is_some()`, to look at without the lock.
    pub(crate) stopped: AtomicBool,
    /// Told of the error that stops the journal.
    on_abort: OnceLock<OnAbort>,
    pub(crate) wake: Arc<Wake>,
    pub(crate) counters: Counters,
    /// Held while the superblock is written: two writes of it in flight could land in either order.
    superblock_writer: tokio::sync::Mutex<()>,
    /// Held by whoever commits: the commit task, or a caller in its own task.
    pub(crate) committer: Arc<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("log", &self.log)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.wake.everybody();
    }
}

impl Journal {
    /// The image of the superblock of an empty log of `blocks` blocks, as mke2fs writes it: version 2, no features.
    /// Those that a running journal has are set when it first runs, as jbd2 does at the first mount.
    #[must_use]
    pub fn new_superblock(block_size: BlockSize, blocks: u32, uuid: [u8; 16]) -> Vec<u8> {
        Superblock::new(block_size, blocks, uuid).to_block()
    }

    /// Reads and verifies the journal superblock. Changes nothing.
    ///
    /// # Errors
    /// The device's; corrupt or unsupported by name.
    pub async fn open(
        location: JournalLocation,
        options: JournalOptions,
        environment: Arc<dyn Environment>,
        runtime: Arc<dyn Runtime>,
    ) -> Result<Arc<Self>> {
        let (log, superblock) = Log::open(location).await?;
        let state = State {
            mode: Mode::Idle,
            aborted: None,
            // As jbd2: a clean log begins one later, so that a stale commit of that id cannot be taken for ours.
            next: superblock.sequence().next(),
            running: None,
            committing: None,
            space: Space::empty(&log),
            checkpoints: Checkpoints::default(),
            timer_runs: false,
            unfinished: None,
            fast: FastCommits::default(),
            layout: superblock.layout(),
            superblock,
            queue: Queue::default(),
            reservations: Reservations::default(),
            history: History::default(),
        };
        Ok(Arc::new(Self {
            log,
            options,
            environment,
            runtime,
            state: Mutex::new(state),
            home: OnceLock::new(),
            stopped: AtomicBool::new(false),
            on_abort: OnceLock::new(),
            wake: Arc::default(),
            counters: Counters::default(),
            superblock_writer: tokio::sync::Mutex::default(),
            committer: Arc::default(),
        }))
    }

    /// True when the log holds transactions that must be replayed.
    #[must_use]
    pub fn needs_recovery(&self) -> bool {
        let state = self.state.lock();
        state.mode == Mode::Idle && state.superblock.start() != 0
    }

    /// The error with which the journal was stopped before: 0, or a negative errno as jbd2 records it.
    #[must_use]
    pub fn recorded_errno(&self) -> i32 {
        self.state.lock().superblock.errno()
    }

    /// Forgets the error with which the journal was stopped before, once the file system has taken note of it.
    ///
    /// # Errors
    /// The device's.
    pub async fn clear_errno(&self) -> Result<()> {
        self.write_superblock(self.barrier_flags(), |superblock| superblock.set_errno(0)).await
    }

    /// Recovers as the kernel does at mount: [`Journal::recover_with`] in the mode [`Recovery::NORMAL`].
    ///
    /// # Errors
    /// The devices'; corrupt where a committed transaction is damaged, by name.
    pub async fn recover(&self, filesystem: &Arc<dyn BlockDevice>) -> Result<RecoveryReport> {
        self.recover_with(filesystem, Recovery::NORMAL).await
    }

    /// Three passes: scan, revoke, replay; writes the blocks to `filesystem`, flushes it, and empties the log, unless
    /// fast commits follow: then [`Journal::finish_recovery`] does that, and the journal does not run before. A salvage
    /// that found damage leaves an error in the journal superblock ([`Journal::recorded_errno`]). Where it
    /// fails, or only checks, the log stays as it is.
    ///
    /// # Errors
    /// The devices'; corrupt where a committed transaction is damaged and that is refused, by name.
    pub async fn recover_with(
        &self,
        filesystem: &Arc<dyn BlockDevice>,
        mode: Recovery,
    ) -> Result<RecoveryReport> {
        let superblock = {
            let state = self.state.lock();
            assert!(state.mode == Mode::Idle, "a journal is recovered before it runs");
            state.superblock.clone()
        };
        if superblock.start() == 0 {
            return Ok(RecoveryReport::of_empty(superblock.sequence()));
        }
        let Replayed { report, next, head } = recovery::run(&self.log, &superblock, filesystem, mode).await?;
        if mode.check {
            return Ok(report);
        }
        let salvaged = mode.damage == Damage::Salvage && !report.findings.is_empty();
        if report.fast_commits.is_empty() {
            self.mark_recovered(next, salvaged).await?;
        } else {
            let unfinished = Unfinished { id: report.end.transaction, head, next, salvaged };
            self.state.lock().unfinished = Some(unfinished);
        }
        Ok(report)
    }

    /// Begins to run: sets the features the file system asks for, takes `cache` (whose device holds the blocks that
    /// are journaled) and starts the commit and checkpoint tasks. After recovery.
    ///
    /// # Errors
    /// The device's; `EINVAL` where the log was not recovered or the journal runs already.
    pub async fn start_running(
        self: &Arc<Self>,
        cache: &Arc<BufferCache>,
        metadata_csum: bool,
        bit64: bool,
    ) -> Result<()> {
        let invalid = |why: &str| Err(Error::posix(Errno::EINVAL, format!("start the journal: {why}")));
        if self.needs_recovery() {
            return invalid("it needs recovery");
        }
        if cache.block_size() != self.log.block_size {
            return invalid("its block size is not the file system's");
        }
        let external = !std::ptr::addr_eq(Arc::as_ptr(&self.log.device), Arc::as_ptr(cache.device()));
        if self.home.set(Home { cache: Arc::clone(cache), external }).is_err() {
            return invalid("it runs already");
        }
        let mut superblock = self.state.lock().superblock.clone();
        let set_features = |superblock: &mut Superblock| {
            let had_area = superblock.fast_commit_blocks() > 0;
            superblock.set_fast_commit(false);
            superblock.set_running_features(metadata_csum, bit64) || had_area
        };
        if set_features(&mut superblock) {
            self.write_superblock(self.barrier_flags(), |superblock| {
                set_features(superblock);
            })
            .await?;
        }
        {
            let mut state = self.state.lock();
            state.layout = state.superblock.layout();
            self.set_area(&mut state);
        }
        self.void_former_fast_commits().await?;
        self.state.lock().mode = Mode::Running;
        self.wake.tasks.store(2, Ordering::Release);
        let task = commit_task(Arc::downgrade(self), Arc::clone(&self.wake), Arc::clone(&self.runtime));
        self.runtime.spawn(Box::pin(task));
        self.runtime.spawn(Box::pin(checkpoint_task(Arc::downgrade(self), Arc::clone(&self.wake))));
        Ok(())
    }

    /// Most credits one handle can have: a quarter of the log, as in jbd2.
    #[must_use]
    pub fn max_credits(&self) -> u32 {
        (self.log.ring() + 1) / 4
    }

    /// Makes transaction `id` durable: commits it where it is running, waits where it is committing; nothing to do
    /// where it has committed. Returns true when that flushed the file system's device after the call.
    ///
    /// # Errors
    /// [`Error::Aborted`] where the journal has stopped.
    pub async fn commit(self: &Arc<Self>, id: TransactionId) -> Result<bool> {
        let mut flushes = None;
        loop {
            // Made under the lock: it misses no end from then on.
            let (done, is_running) = {
                let mut state = self.state.lock();
                state.check()?;
                if let Some(running) = state.running.as_mut().filter(|running| running.id == id) {
                    let done = Arc::clone(&running.done).notified_owned();
                    running.request_commit(|| self.runtime.monotonic());
                    if let Some(callbacks) = state.discard_empty() {
                        drop(state);
                        callbacks.into_iter().for_each(|callback| callback());
                        return Ok(flushes.unwrap_or(false));
                    }
                    flushes.get_or_insert(self.options.barrier);
                    (done, true)
                } else if let Some(committing) = &state.committing
                    && committing.transaction.id == id
                {
                    // Its flush is still to come: it covers what had been written when this call began.
                    let before_flush = committing.transaction.phase() < Phase::Committing;
                    flushes.get_or_insert(self.options.barrier && before_flush);
                    (Arc::clone(&committing.transaction.done).notified_owned(), false)
                } else {
                    return Ok(flushes.unwrap_or(false));
                }
            };
            if is_running && self.commit_here().await {
                continue;
            }
            done.await;
        }
    }

    /// Commits what is running and waits for it and for what is committing.
    ///
    /// # Errors
    /// As [`Journal::commit`].
    pub async fn force_commit(self: &Arc<Self>) -> Result<()> {
        let id = {
            let state = self.state.lock();
            state.check()?;
            match (&state.running, &state.committing) {
                (Some(running), Some(committing)) if running.is_idle() => committing.transaction.id,
                (Some(running), _) => running.id,
                (None, Some(committing)) => committing.transaction.id,
                (None, None) => return Ok(()),
            }
        };
        self.commit(id).await.map(drop)
    }

    /// Writes every committed block to its place and empties the log (freeze, unmount, before growing a bitmap …).
    /// Handles that run meanwhile may fill it again.
    ///
    /// # Errors
    /// As [`Journal::commit`].
    pub async fn flush(self: &Arc<Self>) -> Result<()> {
        self.force_commit().await?;
        self.empty_log().await
    }

    /// Commits, checkpoints, marks the log clean, stops the tasks. With `erase`, the log's blocks are zeroed and the
    /// sequence starts again at 1, so that images are reproducible and sparse.
    ///
    /// # Errors
    /// As [`Journal::commit`], and the device's. The tasks are stopped all the same.
    pub async fn close(self: &Arc<Self>, erase: bool) -> Result<()> {
        {
            let mut state = self.state.lock();
            match state.mode {
                Mode::Running => state.mode = Mode::Closing,
                // Nothing runs that would have to be finished.
                _ => return state.check(),
            }
        }
        self.wake.room.notify_waiters();
        let result = self.finish(erase).await;
        self.state.lock().mode = Mode::Closed;
        self.wake.everybody();
        loop {
            let mut ended = std::pin::pin!(self.wake.ended.notified());
            ended.as_mut().enable();
            if self.wake.tasks.load(Ordering::Acquire) == 0 {
                return result;
            }
            ended.await;
        }
    }

    async fn finish(self: &Arc<Self>, erase: bool) -> Result<()> {
        self.flush().await?;
        if erase {
            // The log is empty on the medium, so that a crash among the zeros finds nothing to recover.
            self.log.zero(self.log.first, self.log_end()).await?;
            self.write_superblock(BioFlags::PREFLUSH | BioFlags::FUA, Superblock::reset).await?;
        }
        Ok(())
    }

    fn log_end(&self) -> u32 {
        self.state.lock().superblock.max_len()
    }

    /// Stops the journal after an error: what is running never commits. The first error stays.
    pub fn abort(&self, error: &Error) {
        let (block, waiting) = {
            let mut state = self.state.lock();
            if state.aborted.is_some() || state.mode == Mode::Closed {
                return;
            }
            tracing::error!("journal aborted: {error}");
            state.aborted = Some(error.clone());
            self.stopped.store(true, Ordering::Release);
            let block = (state.mode != Mode::Idle).then(|| {
                let mut superblock = state.superblock.clone();
                superblock.set_errno(-(error.errno() as i32));
                superblock.to_block()
            });
            let committing = state.committing.as_ref().map(|committing| &committing.transaction);
            let transactions = state.running.iter().chain(committing);
            (block, transactions.map(|transaction| Arc::clone(&transaction.done)).collect::<Vec<_>>())
        };
        self.wake.everybody();
        waiting.iter().for_each(|done| done.notify_waiters());
        // Best effort: a device that fails will hardly take it.
        if let Some(block) = block
            && let Err(error) = self.log.submit_superblock(&block)
        {
            tracing::error!("the error could not be recorded in the journal: {error}");
        }
        if let Some(on_abort) = self.on_abort.get() {
            on_abort(error);
        }
    }

    /// Has `callback` told of the error that stops the journal; the first one set stays.
    pub fn set_on_abort(&self, callback: OnAbort) {
        let _ = self.on_abort.set(callback);
    }

    /// The error that stopped the journal.
    #[must_use]
    pub fn aborted(&self) -> Option<Error> {
        if !self.stopped.load(Ordering::Acquire) {
            return None;
        }
        self.state.lock().aborted.clone()
    }

    /// What the journal has done since it was opened.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.counters.statistics(&self.state.lock().history, self.max_credits())
    }

    /// Preflush and FUA, or nothing where barriers are off.
    pub(crate) fn barrier_flags(&self) -> BioFlags {
        if self.options.barrier { BioFlags::PREFLUSH | BioFlags::FUA } else { BioFlags::empty() }
    }

    /// Writes the superblock with `change` and, when it is on the device, makes that the journal's.
    pub(crate) async fn write_superblock(
        &self,
        flags: BioFlags,
        change: impl FnOnce(&mut Superblock),
    ) -> Result<()> {
        let _writer = self.superblock_writer.lock().await;
        let superblock = {
            let state = self.state.lock();
            state.check()?;
            let mut superblock = state.superblock.clone();
            change(&mut superblock);
            superblock
        };
        if flags.contains(BioFlags::PREFLUSH) {
            Counters::add(&self.counters.flushes, 1);
        }
        self.log.write_superblock(&superblock.to_block(), flags).await?;
        self.state.lock().superblock = superblock;
        Ok(())
    }

    /// The file system's side; only where the journal runs.
    pub(crate) fn home(&self) -> &Home {
        self.home.get().expect("only a running journal has transactions")
    }

    /// When the running transaction will be too old, on the runtime's clock.
    fn deadline(&self, state: &State) -> Option<Duration> {
        let interval = self.options.commit_interval?;
        if state.aborted.is_some() {
            return None;
        }
        // What was asked for already begins when the fast commit that keeps it waiting has ended.
        let running = state.running.as_ref().filter(|running| !running.commit_requested)?;
        Some(running.entered(Phase::Running).saturating_add(interval))
    }

    fn is_overdue(&self) -> bool {
        let deadline = self.deadline(&self.state.lock());
        deadline.is_some_and(|deadline| self.runtime.monotonic() >= deadline)
    }

    /// How long the commit task's timer is to run; `None`: it does without one until a transaction begins. A timer that
    /// runs is early enough for every later transaction.
    fn set_timer(&self) -> Option<Duration> {
        let mut state = self.state.lock();
        let deadline = self.deadline(&state);
        state.timer_runs = deadline.is_some();
        Some(deadline?.saturating_sub(self.runtime.monotonic()))
    }

    fn is_closed(&self) -> bool {
        self.state.lock().mode == Mode::Closed
    }
}

async fn commit_task(journal: Weak<Journal>, wake: Arc<Wake>, runtime: Arc<dyn Runtime>) {
    let _ended = Ended { wake: Arc::clone(&wake), journal: journal.clone() };
    // It runs on while transactions come and go: to set one for each would cost more than many a transaction.
    let mut timer: Option<BoxFuture<'static, ()>> = None;
    loop {
        {
            let Some(journal) = journal.upgrade() else { return };
            if journal.is_closed() {
                return;
            }
            if journal.is_overdue() {
                journal.request_commit();
            }
            if journal.is_commit_requested() {
                let turn = journal.committer.lock().await;
                let committed = journal.commit_if_requested().await;
                drop(turn);
                if committed {
                    continue;
                }
            }
            if timer.is_none() {
                timer = journal.set_timer().map(|left| runtime.sleep(left));
            }
        }
        match &mut timer {
            None => wake.commit.notified().await,
            Some(time) => {
                let over = tokio::select! {
                    biased;
                    () = wake.commit.notified() => false,
                    () = time => true,
                };
                if over {
                    timer = None;
                }
            }
        }
    }
}

async fn checkpoint_task(journal: Weak<Journal>, wake: Arc<Wake>) {
    let _ended = Ended { wake: Arc::clone(&wake), journal: journal.clone() };
    loop {
        {
            let Some(journal) = journal.upgrade() else { return };
            if journal.is_closed() {
                return;
            }
            if journal.checkpoint_if_needed().await {
                continue;
            }
        }
        wake.checkpoint.notified().await;
    }
}

/// Says that a task is gone, however it ends. One that panicked takes the journal with it: nobody would do its work,
/// and whoever waits for that would wait for ever.
struct Ended {
    wake: Arc<Wake>,
    journal: Weak<Journal>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(journal) = self.journal.upgrade()
        {
            journal.abort(&Error::posix(Errno::EIO, "a task of the journal panicked"));
        }
        self.wake.tasks.fetch_sub(1, Ordering::AcqRel);
        self.wake.ended.notify_waiters();
    }
}
