//! The state of a journal, behind its one lock; and what wakes the tasks that wait for a change of it.
//!
//! Invariant: the lock is never held across an await or a call of the device.

pub(crate) mod checkpoints;
pub(crate) mod fast_commits;
pub(crate) mod options;
pub(crate) mod queue;
pub(crate) mod statistics;
pub(crate) mod transaction;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use ext4_core::meta::BufferCache;
use ext4_core::{Error, Result, TransactionId};
use tokio::sync::Notify;

use crate::format::layout::Layout;
use crate::format::superblock::Superblock;
use crate::log::{Extent, Space};
use crate::state::checkpoints::Checkpoints;
use crate::state::fast_commits::FastCommits;
use crate::state::queue::Queue;
use crate::state::statistics::History;
use crate::state::transaction::Transaction;

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
    /// The commit task wakes by itself when the running transaction is too old: no caller has to tell it that
    /// one began.
    pub(crate) timer_runs: bool,
    /// The superblock as it is on the medium.
    pub(crate) superblock: Superblock,
    pub(crate) layout: Layout,
    /// Handles that wait for room.
    pub(crate) queue: Queue,
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

/// What wakes the two tasks and the callers that wait.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    /// The commit task: a commit is asked for, or the timer is to be set.
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
    pub(crate) fn all(&self) {
        for notify in [&self.commit, &self.drained, &self.checkpoint] {
            notify.notify_one();
        }
        for notify in [&self.room, &self.committed, &self.checkpointed, &self.ended] {
            notify.notify_waiters();
        }
    }
}

/// What a recovery left for [`Journal::finish_recovery`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unfinished {
    /// The transaction that the fast commits belong to.
    pub(crate) id: TransactionId,
    /// Where it goes.
    pub(crate) head: u32,
    /// The first id that no transaction in the log can have.
    pub(crate) next: TransactionId,
    /// Damage was left out, which the superblock has to say.
    pub(crate) salvaged: bool,
}
