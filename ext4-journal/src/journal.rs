//! The journal: a log, its state, the superblock and the end by an abort.
//!
//! What happens to a transaction stands in [`crate::running`], and what happens to the journal as a whole
//! (open, recover, run, close) in [`crate::life`].
//!
//! Invariant: after the first error nothing more is written but that error into the superblock, on top of the
//! tail that is on the medium. Were the tail of a failed checkpoint written with it, recovery would skip
//! blocks that never reached their places.
//!
//! Locks: `state`, the synchronous one, is never held across an await or a device call, and is taken outside
//! a buffer's image lock. `committer` is held for a commit; `superblock_writer` inside it, while the journal
//! superblock is written. No wakeup is lost: a waiter waits through [`ext4_core::wait`], and whatever changes
//! the state notifies after.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use ext4_core::device::BioFlags;
use ext4_core::environment::{Environment, Runtime};
use ext4_core::{Error, Result};
use parking_lot::Mutex;

use crate::format::Superblock;
use crate::log::Log;
use crate::state::{Counters, Home, JournalOptions, Mode, State, Statistics, Wake};

/// A callback for the error that stops the journal. It is called once, in the task that met the error, and
/// must not block.
pub type OnAbort = Box<dyn Fn(&Error) + Send + Sync>;

/// A jbd2 journal: a log and its running, committing and checkpointed transactions.
///
/// Dropping the last reference without [`Journal::close`] ends the journal's tasks, and is a crash.
pub struct Journal {
    pub(crate) log: Log,
    pub(crate) options: JournalOptions,
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) state: Mutex<State>,
    /// There once the journal runs.
    pub(crate) home: OnceLock<Home>,
    /// The same as `state.aborted.is_some()`, for a look without the lock.
    pub(crate) stopped: AtomicBool,
    pub(crate) on_abort: OnceLock<OnAbort>,
    pub(crate) wake: Arc<Wake>,
    pub(crate) counters: Counters,
    /// Held while the superblock is written: two writes of it in flight could land in either order.
    pub(crate) superblock_writer: tokio::sync::Mutex<()>,
    /// Held by the committer: the commit task, or a caller that commits in its own task.
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
    /// The credits, in blocks, that one handle can have at most: a quarter of the log, as in jbd2.
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

    /// Sets the callback for the error that stops the journal. The first one that is set stays.
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

    /// The journal's counters and times since it was opened.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.counters.statistics(&self.state.lock().history, self.max_credits())
    }

    /// Preflush and FUA, or no flag if barriers are off.
    pub(crate) fn barrier_flags(&self) -> BioFlags {
        if self.options.barrier { BioFlags::PREFLUSH | BioFlags::FUA } else { BioFlags::empty() }
    }

    /// Writes the superblock with `change`, and makes it the journal's when it is on the device.
    ///
    /// # Errors
    /// [`Error::Aborted`] if the journal has stopped; the device's.
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

    /// The file system's side. Only a journal that runs has one.
    pub(crate) fn home(&self) -> &Home {
        self.home.get().expect("only a running journal has transactions")
    }
}
