//! The journal: its state, its end after an error, its superblock.
//!
//! One commit runs at a time (`committer`). A caller that stops waiting while it commits leaves nothing half
//! done: the rest goes to the runtime ([`RunToEnd`](ext4_core::environment::RunToEnd)). The two tasks are in
//! [`crate::life::tasks`].
//!
//! Invariant: after the first error nothing more is written but that error into the superblock, on top of the
//! tail that is on the medium. Were the tail of a checkpoint that failed written with it, recovery would skip
//! blocks that never reached their places.
//!
//! Locks: see the crate. No wait is lost: a waiter enables its [`Notified`](tokio::sync::futures::Notified)
//! before it looks at the state, and a task that changes the state notifies after.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use ext4_core::device::BioFlags;
use ext4_core::environment::{Environment, Runtime};
use ext4_core::{Error, Result};
use parking_lot::Mutex;

use crate::format::superblock::Superblock;
use crate::log::Log;
use crate::state::options::JournalOptions;
use crate::state::statistics::{Counters, Statistics};
use crate::state::{Home, Mode, State, Wake};

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
    pub(crate) on_abort: OnceLock<OnAbort>,
    pub(crate) wake: Arc<Wake>,
    pub(crate) counters: Counters,
    /// Held while the superblock is written: two writes of it in flight could land in either order.
    pub(crate) superblock_writer: tokio::sync::Mutex<()>,
    /// Held for a commit: by the commit task, or by a caller in its own task.
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
        self.wake.all();
    }
}

impl Journal {
    /// Most credits one handle can have: a quarter of the log, as in jbd2.
    #[must_use]
    pub fn max_credits(&self) -> u32 {
        (self.log.ring() + 1) / 4
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
        self.wake.all();
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
}
