//! A journal's life from open to close: opened, recovered, running, closed.
//!
//! ```text
//!   open ─► recover (if the log holds something) ─► finish_recovery (fast commits) ─► start_running ─► close
//! ```
//!
//! Invariant: a journal does not run before its log was recovered, and the log is empty on the medium before
//! it is marked clean.

pub(crate) mod finish_recovery;
pub(crate) mod tasks;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use ext4_core::device::{BioFlags, BlockDevice};
use ext4_core::environment::{Environment, Runtime};
use ext4_core::meta::BufferCache;
use ext4_core::wait;
use ext4_core::{Errno, Error, Result};
use parking_lot::Mutex;

use crate::format::superblock::Superblock;
use crate::journal::Journal;
use crate::life::tasks::{checkpoint_task, commit_task};
use crate::log::location::JournalLocation;
use crate::log::{Log, Space};
use crate::recovery;
use crate::recovery::Replayed;
use crate::recovery::report::{Damage, Recovery, RecoveryReport};
use crate::state::checkpoints::Checkpoints;
use crate::state::fast_commits::FastCommits;
use crate::state::options::JournalOptions;
use crate::state::queue::Queue;
use crate::state::statistics::{Counters, History};
use crate::state::{Home, Mode, State, Unfinished};

impl Journal {
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
            // As jbd2: a clean log begins one later, so that a stale commit of that id cannot be taken for
            // ours.
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

    /// Forgets the error with which the journal was stopped before, once the file system has taken note of
    /// it.
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

    /// Three passes: scan, revoke, replay; writes the blocks to `filesystem`, flushes it, and empties the
    /// log, unless fast commits follow: then [`Journal::finish_recovery`] does that, and the journal does not
    /// run before. A salvage that found damage leaves an error in the journal superblock
    /// ([`Journal::recorded_errno`]). Where it fails, or only checks, the log stays as it is.
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

    /// Begins to run: sets the features the file system asks for, takes `cache` (whose device holds the
    /// blocks that are journaled) and starts the commit and checkpoint tasks. After recovery.
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

    /// Commits, checkpoints, marks the log clean, stops the tasks. With `erase`, the log's blocks are zeroed
    /// and the sequence starts again at 1, so that images are reproducible and sparse.
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
        self.wake.all();
        let ended = || (self.wake.tasks.load(Ordering::Acquire) == 0).then_some(());
        wait::until(&self.wake.ended, ended).await;
        result
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
}
