//! The life of a journal as a whole: open, recover, run, close.
//!
//! ```text
//!   open ─► Idle ─ recover, finish_recovery ─► Idle ─ start_running ─► Running ─ close ─► Closing ─► Closed
//!                                                     the two tasks begin      flush, tasks end
//! ```
//!
//! Invariants:
//! - No handle starts before the log was recovered: its first commit would write over what a crash left.
//! - The log is marked empty on the medium before its blocks are zeroed: a crash among the zeros then finds
//!   nothing to recover.

mod finish_recovery;
mod tasks;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use ext4_core::device::{BioFlags, BlockDevice};
use ext4_core::environment::{Environment, Runtime};
use ext4_core::meta::BufferCache;
use ext4_core::{Errno, Error, Result, wait};
use parking_lot::Mutex;

use crate::format::Superblock;
use crate::journal::Journal;
use crate::log::{JournalLocation, Log, Space};
use crate::recovery::{self, Damage, Recovery, RecoveryReport, Replayed};
use crate::state::{
    Checkpoints, Counters, FastCommitState, History, Home, JournalOptions, Mode, Queue, State, Unfinished,
};

impl Journal {
    /// Reads and verifies the journal superblock. Changes nothing.
    ///
    /// # Errors
    /// - I/O: the device's, from reading the superblock.
    /// - Corrupt: the superblock's magic, checksum, size or position of the log is wrong, or `location` lies
    ///   outside the device or is empty.
    /// - Unsupported: the journal has a feature that is not known.
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
            fast: FastCommitState::default(),
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

    /// Returns true if the log holds transactions that must be replayed.
    #[must_use]
    pub fn needs_recovery(&self) -> bool {
        let state = self.state.lock();
        state.mode == Mode::Idle && state.superblock.start() != 0
    }

    /// The error with which the journal was stopped before, as jbd2 records it: 0 for none, or a negative
    /// errno.
    #[must_use]
    pub fn recorded_errno(&self) -> i32 {
        self.state.lock().superblock.errno()
    }

    /// Clears the recorded error in the journal superblock, once the file system has taken note of it.
    ///
    /// # Errors
    /// - I/O: the device's, from writing the superblock.
    /// - [`Error::Aborted`]: the journal has stopped.
    pub async fn clear_errno(&self) -> Result<()> {
        self.write_superblock(self.barrier_flags(), |superblock| superblock.set_errno(0)).await
    }

    /// Recovers as the kernel does at mount: [`Journal::recover_with`] in the mode [`Recovery::NORMAL`].
    ///
    /// # Errors
    /// As [`Journal::recover_with`].
    pub async fn recover(&self, filesystem: &Arc<dyn BlockDevice>) -> Result<RecoveryReport> {
        self.recover_with(filesystem, Recovery::NORMAL).await
    }

    /// Recovers in three passes, scan, revoke and replay: writes the blocks to `filesystem`, flushes it and
    /// empties the log. If fast commits follow, the log is not emptied: [`Journal::finish_recovery`] does
    /// that, and the journal does not run before. A salvage that found damage leaves an error in the journal
    /// superblock ([`Journal::recorded_errno`]). A recovery that fails, or only checks, leaves the log as it
    /// is.
    ///
    /// # Errors
    /// - I/O: the log's device's or the file system's.
    /// - Corrupt: a committed transaction is damaged and `mode` refuses that; the error names the block.
    /// - Unsupported: a fast commit needs a feature that is not known.
    ///
    /// # Panics
    /// If the journal runs.
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

    /// Begins to run, after recovery: sets the features that the file system asks for (`metadata_csum`,
    /// `bit64`), takes `cache`, whose device holds the blocks that are journaled, and starts the commit and
    /// checkpoint tasks.
    ///
    /// # Errors
    /// - `EINVAL`: the log was not recovered, the journal runs already, or the cache has another block size
    ///   than the log.
    /// - I/O: the device's, from the superblock or the fast-commit area.
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
        let (journal, wake) = (Arc::downgrade(self), Arc::clone(&self.wake));
        let task = tasks::commit_task(journal.clone(), Arc::clone(&wake), Arc::clone(&self.runtime));
        self.runtime.spawn(Box::pin(task));
        self.runtime.spawn(Box::pin(tasks::checkpoint_task(journal, wake)));
        Ok(())
    }

    /// Commits, checkpoints, marks the log clean and stops the tasks. With `erase`, also zeros the log's
    /// blocks and resets the sequence to 1, so that images are reproducible and sparse.
    ///
    /// # Errors
    /// - [`Error::Aborted`]: the journal has stopped, before or meanwhile.
    /// - I/O: the device's, from zeroing the log.
    ///
    /// The tasks are stopped all the same.
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
        wait::until(&self.wake.ended, || (self.wake.tasks.load(Ordering::Acquire) == 0).then_some(())).await;
        result
    }

    async fn finish(self: &Arc<Self>, erase: bool) -> Result<()> {
        self.flush().await?;
        if erase {
            let end = self.state.lock().superblock.max_len();
            self.log.zero(self.log.first, end).await?;
            self.write_superblock(BioFlags::PREFLUSH | BioFlags::FUA, Superblock::reset).await?;
        }
        Ok(())
    }
}
