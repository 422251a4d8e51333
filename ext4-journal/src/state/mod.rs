//! The journal's state behind its one lock, and the notifications that go with its changes.
//!
//! What is in here neither waits nor calls a device: the phases of a transaction's life ([`crate::running`])
//! change the state and do both.
//!
//! Locks: [`State`] stands behind one synchronous lock, which is never held across an await or a device call.

mod checkpoints;
mod fast_commits;
mod options;
mod queue;
mod statistics;
mod transaction;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use ext4_core::meta::BufferCache;
use ext4_core::meta::transaction::OnCommit;
use ext4_core::{Error, Result, TransactionId};
use tokio::sync::Notify;

pub(crate) use checkpoints::{Checkpoints, Frozen};
pub use fast_commits::{FastCommitSource, FastCommitStatistics, Ineligible};
pub(crate) use fast_commits::{FastCommitState, Refusal};
pub use options::JournalOptions;
pub(crate) use queue::Queue;
pub(crate) use statistics::{Counters, History};
pub use statistics::{Statistics, Times};
pub(crate) use transaction::{Phase, Transaction, log_blocks};

use crate::format::{Layout, Superblock};
use crate::log::{Extent, Space};

/// The journal's own life: it takes handles only while it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// Opened, and perhaps to be recovered.
    Idle,
    /// Handles may start.
    Running,
    /// No handle starts any more; what has begun is finished.
    Closing,
    /// The tasks have ended or are about to.
    Closed,
}

/// The transaction that is being committed.
#[derive(Debug)]
pub(crate) struct Committing {
    pub(crate) transaction: Transaction,
    /// Log blocks that it still has to be given.
    pub(crate) wanted: u32,
    /// Its part of the log.
    pub(crate) extent: Option<Extent>,
}

/// What a recovery with fast commits left for `Journal::finish_recovery`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unfinished {
    /// The transaction that the fast commits belong to.
    pub(crate) id: TransactionId,
    /// The log block that this transaction goes to.
    pub(crate) head: u32,
    /// The first id that no transaction in the log can have.
    pub(crate) next: TransactionId,
    /// True if damage was left out, which the superblock has to say.
    pub(crate) salvaged: bool,
}

/// Everything behind the one lock.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) mode: Mode,
    /// The error that stopped the journal.
    pub(crate) aborted: Option<Error>,
    /// The running transaction's id, or that of the next one to run.
    pub(crate) next: TransactionId,
    pub(crate) running: Option<Transaction>,
    pub(crate) committing: Option<Committing>,
    pub(crate) space: Space,
    pub(crate) checkpoints: Checkpoints,
    /// There while recovery has found fast commits and the file system has not said what they change.
    pub(crate) unfinished: Option<Unfinished>,
    pub(crate) fast: FastCommitState,
    /// True while the commit task has a timer: it wakes by itself when the running transaction is too old.
    pub(crate) timer_runs: bool,
    /// The superblock as it is on the medium.
    pub(crate) superblock: Superblock,
    pub(crate) layout: Layout,
    /// Handles that wait for room.
    pub(crate) queue: Queue,
    pub(crate) history: History,
}

impl State {
    /// Checks that the journal has not stopped.
    ///
    /// # Errors
    /// [`Error::Aborted`] if it has.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.aborted {
            Some(error) => Err(Error::Aborted(error.to_string())),
            None => Ok(()),
        }
    }

    /// Ends a running transaction that has no handles and no changes; the next one uses its id. Returns its
    /// callbacks, which the caller runs without the lock.
    pub(crate) fn discard_empty(&mut self) -> Option<Vec<OnCommit>> {
        let idle = |running: &Transaction| running.is_idle() && running.phase() == Phase::Running;
        if self.running.as_ref().is_some_and(idle) {
            return self.running.take().map(|mut running| std::mem::take(&mut running.callbacks));
        }
        None
    }

    /// The log's tail, a log block and a transaction, once its `skip` oldest committed transactions are gone.
    pub(crate) fn tail_after(&self, skip: usize) -> (u32, TransactionId) {
        let committing = self.committing.as_ref();
        match self.checkpoints.extent_after(skip) {
            Some(extent) => (extent.start, extent.id),
            None => match committing.filter(|c| !self.checkpoints.holds(c.transaction.id)) {
                Some(committing) => (
                    committing.extent.map_or(self.space.head, |extent| extent.start),
                    committing.transaction.id,
                ),
                None => (self.space.head, self.next),
            },
        }
    }
}

/// The file system's side of a journal that runs.
pub(crate) struct Home {
    pub(crate) cache: Arc<BufferCache>,
    /// True if the log lies on another device than the file system.
    pub(crate) external: bool,
}

/// The notifications that wake the journal's tasks, its callers and its handles.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    /// To the commit task: a commit is asked for, or the timer has to be set.
    pub(crate) commit: Notify,
    /// To the committer: the last handle of a transaction that drains has stopped.
    pub(crate) drained: Notify,
    /// To the checkpoint task: log blocks are wanted, or an empty log.
    pub(crate) checkpoint: Notify,
    /// To waiting handles: they may start again, log space is free, or the journal was aborted.
    pub(crate) room: Notify,
    /// To callers of a fast commit: a commit of either kind has ended, or the journal was aborted.
    pub(crate) committed: Notify,
    /// To callers that wait for the checkpoint task: it went on, or the journal was aborted.
    pub(crate) checkpointed: Notify,
    /// To the caller of close: a task has ended.
    pub(crate) ended: Notify,
    /// Tasks that run.
    pub(crate) tasks: AtomicUsize,
}

impl Wake {
    /// Wakes every task, caller and handle, after an abort or at the end.
    pub(crate) fn all(&self) {
        for notify in [&self.commit, &self.drained, &self.checkpoint] {
            notify.notify_one();
        }
        for notify in [&self.room, &self.committed, &self.checkpointed, &self.ended] {
            notify.notify_waiters();
        }
    }
}
