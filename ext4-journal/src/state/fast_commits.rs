//! The state of fast commits: which transaction has used how much of the area, and whether one is under way.
//!
//! How a fast commit is written, and the invariants that this state keeps, stand in `running/fast_commit.rs`.

use std::sync::atomic::{AtomicU64, Ordering};

use ext4_core::TransactionId;

use super::transaction::Transaction;
use crate::format::FastCommitTag;

/// The answer that tags cannot make the running transaction durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ineligible;

/// The file system's knowledge of what the running transaction has done, as fast-commit tags.
pub trait FastCommitSource: Send + Sync {
    /// Returns false if transaction `id` certainly has to be committed in full: the journal then does not
    /// stop its handles to find out.
    fn is_eligible(&self, id: TransactionId) -> bool;

    /// Everything that transaction `id` has done since the last call, or since it began: tags in the order in
    /// which a recovery replays them, without HEAD, PAD and TAIL. The journal calls it with no handle open;
    /// it must not wait.
    ///
    /// # Errors
    /// [`Ineligible`] if some of it has no tag: the journal commits the transaction in full.
    fn take(&self, id: TransactionId) -> std::result::Result<Vec<FastCommitTag>, Ineligible>;
}

/// Fast commits since the journal was opened, and the reasons for full commits in their stead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastCommitStatistics {
    /// Fast commits written.
    pub commits: u64,
    /// Blocks of the area written.
    pub blocks: u64,
    /// Calls that a fast commit served; several calls can share one.
    pub served: u64,
    /// Calls that ended in a full commit because some of the transaction has no tag, or the log has no area.
    pub ineligible: u64,
    /// Calls that ended in a full commit because the log was empty: recovery does not look at its area then.
    pub log_empty: u64,
    /// Calls that ended in a full commit because the area was full.
    pub area_full: u64,
    /// Calls that ended in a full commit because an earlier fast commit of the transaction was not written.
    pub failed: u64,
    /// Calls that ended in a full commit because one was about to begin, or had begun.
    pub overtaken: u64,
}

/// The counters behind [`FastCommitStatistics`].
#[derive(Debug, Default)]
pub(crate) struct FastCommitCounters {
    pub(crate) commits: AtomicU64,
    pub(crate) blocks: AtomicU64,
    pub(crate) served: AtomicU64,
    ineligible: AtomicU64,
    log_empty: AtomicU64,
    area_full: AtomicU64,
    failed: AtomicU64,
    overtaken: AtomicU64,
}

impl FastCommitCounters {
    /// The counters as they stand.
    pub(crate) fn snapshot(&self) -> FastCommitStatistics {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FastCommitStatistics {
            commits: get(&self.commits),
            blocks: get(&self.blocks),
            served: get(&self.served),
            ineligible: get(&self.ineligible),
            log_empty: get(&self.log_empty),
            area_full: get(&self.area_full),
            failed: get(&self.failed),
            overtaken: get(&self.overtaken),
        }
    }

    /// Counts a call that ends in a full commit.
    pub(crate) fn count(&self, refusal: Refusal) {
        let counter = match refusal {
            Refusal::Ineligible => &self.ineligible,
            Refusal::LogEmpty => &self.log_empty,
            Refusal::AreaFull => &self.area_full,
            Refusal::Failed => &self.failed,
            Refusal::Overtaken => &self.overtaken,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The reason for a full commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    Ineligible,
    LogEmpty,
    AreaFull,
    Failed,
    Overtaken,
}

/// The area, its use, and the fast commit that is under way.
#[derive(Debug, Default)]
pub(crate) struct FastCommitState {
    /// True if the mount asks for fast commits.
    pub(crate) wanted: bool,
    /// The area as far as it is used: log blocks `area.0..area.1`. `None`: the log has no area.
    pub(crate) area: Option<(u32, u32)>,
    /// The transaction that the used blocks belong to; they are void when it has been committed in full.
    pub(crate) transaction: Option<TransactionId>,
    /// Used blocks of the area.
    pub(crate) used: u32,
    /// The transaction that has to be committed in full, and the reason.
    pub(crate) refused: Option<(TransactionId, Refusal)>,
    /// True while a fast commit is under way, or old ones are being made void.
    pub(crate) busy: bool,
    /// Snapshots taken so far.
    pub(crate) begun: u64,
    /// The number of the last snapshot that is durable.
    pub(crate) finished: u64,
    /// The number of the last snapshot whose write flushed the device.
    pub(crate) flushed: u64,
}

impl FastCommitState {
    /// True while a fast commit is under way, or old ones are being made void.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy
    }

    /// True if the log has an area for fast commits.
    pub(crate) fn are_allowed(&self) -> bool {
        self.area.is_some()
    }

    /// Notes that transaction `id` has been committed in full. Returns true if it has fast commits that have
    /// to be made void on the medium: no other begins until that has been done.
    pub(crate) fn begin_to_void(&mut self, id: TransactionId) -> bool {
        let stale = self.transaction == Some(id) && self.used > 0;
        if stale {
            self.used = 0;
            self.busy = true;
        }
        stale
    }

    /// True while the log must not be marked empty: what a caller was told to be durable is in the area, or
    /// about to be.
    pub(crate) fn hold_log(&self, running: Option<&Transaction>) -> bool {
        self.busy || running.is_some_and(|running| self.transaction == Some(running.id) && self.used > 0)
    }
}
