//! Fast commits: the interface to the file system, the figures, and which part of the area behind the ring is
//! used.

use std::sync::atomic::{AtomicU64, Ordering};

use ext4_core::TransactionId;

use crate::format::fast_commit::FastCommitTag;
use crate::state::transaction::Transaction;

/// Why the running transaction cannot be made durable by tags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ineligible;

/// The file system side: it knows what the running transaction has done.
pub trait FastCommitSource: Send + Sync {
    /// False where transaction `id` certainly has to be committed in full: its handles need not be stopped to
    /// find out.
    fn is_eligible(&self, id: TransactionId) -> bool;

    /// Everything that transaction `id` has done since this was called last, or since it began: tags in the
    /// order in which they are to be replayed, without head, padding and tail. No handle is open. Must not
    /// wait.
    ///
    /// # Errors
    /// Where there are no tags for it: the transaction is committed in full.
    fn take(&self, id: TransactionId) -> std::result::Result<Vec<FastCommitTag>, Ineligible>;
}

/// What fast commits did, and why there were full ones instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastCommitStatistics {
    /// Fast commits written.
    pub commits: u64,
    /// Blocks written for them.
    pub blocks: u64,
    /// Calls served by a fast commit, their own or another's.
    pub served: u64,
    /// Calls that led to a full commit because the transaction did something that no tag says.
    pub ineligible: u64,
    /// … because the log was empty on the medium.
    pub log_empty: u64,
    /// … because the area was full.
    pub area_full: u64,
    /// … because an earlier fast commit of the transaction was not written.
    pub failed: u64,
    /// … because the transaction was about to be committed in full, or was already.
    pub overtaken: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) commits: AtomicU64,
    pub(crate) blocks: AtomicU64,
    pub(crate) served: AtomicU64,
    ineligible: AtomicU64,
    log_empty: AtomicU64,
    area_full: AtomicU64,
    failed: AtomicU64,
    overtaken: AtomicU64,
}

impl Counters {
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

/// Why a call ends in a full commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    Ineligible,
    LogEmpty,
    AreaFull,
    Failed,
    Overtaken,
}

/// The state of fast commits.
#[derive(Debug, Default)]
pub(crate) struct FastCommits {
    /// The mount asks for fast commits.
    pub(crate) wanted: bool,
    /// The area as far as it is used: log blocks `area.0..area.1`. Nothing where there is none.
    pub(crate) area: Option<(u32, u32)>,
    /// The transaction that the blocks in use belong to; they are void when it has been committed in full.
    pub(crate) transaction: Option<TransactionId>,
    /// How many blocks of the area are in use.
    pub(crate) used: u32,
    /// The transaction that is to be committed in full whatever comes, and why.
    pub(crate) refused: Option<(TransactionId, Refusal)>,
    /// One is under way.
    pub(crate) busy: bool,
    /// How many snapshots have been taken.
    pub(crate) begun: u64,
    /// The number of the last one that is durable.
    pub(crate) finished: u64,
    /// The number of the last one that flushed the device.
    pub(crate) flushed: u64,
}

impl FastCommits {
    /// One is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy
    }

    /// There is an area for them.
    pub(crate) fn are_allowed(&self) -> bool {
        self.area.is_some()
    }

    /// Transaction `id` has been committed in full. True where it has fast commits to be made void; none
    /// begins until [`Journal::void_fast_commits`] has done that.
    pub(crate) fn begin_to_void(&mut self, id: TransactionId) -> bool {
        let stale = self.transaction == Some(id) && self.used > 0;
        if stale {
            self.used = 0;
            self.busy = true;
        }
        stale
    }

    /// True while the log must not be marked empty: what was reported durable is in the area, or about to be.
    pub(crate) fn hold_log(&self, running: Option<&Transaction>) -> bool {
        self.busy || running.is_some_and(|running| self.transaction == Some(running.id) && self.used > 0)
    }
}
