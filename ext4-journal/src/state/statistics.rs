//! Statistics of the journal: counters, and the time that transactions took in each phase.
//!
//! The same figures as `/proc/fs/jbd2/*/info` gives, and some more. Source: kernel, jbd2's `seq_info` file.
//!
//! Cost: counters are relaxed atomics; times are taken once for each change of a transaction's phase, and
//! summed up under the journal's lock while it is held anyway. A handle that does not wait reads no clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::fast_commits::{FastCommitCounters, FastCommitStatistics};
use super::transaction::{Phase, Transaction};

/// The journal's counters and times since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Committed transactions.
    pub transactions: u64,
    /// Committed transactions whose commit a caller asked for, or that were full: the others were old.
    pub requested: u64,
    /// The number of blocks that a transaction changes at most, by the handles' credits.
    pub max_transaction_blocks: u32,
    /// Handles started.
    pub handles: u64,
    /// Images written to the log.
    pub logged_blocks: u64,
    /// Log blocks written, descriptors, revoke and commit blocks included.
    pub log_blocks: u64,
    /// Revoked blocks.
    pub revokes: u64,
    /// Flushes that a device was asked for, those that came with a write included.
    pub flushes: u64,
    /// Blocks written to their places.
    pub checkpointed_blocks: u64,
    /// Fast commits, and the reasons for full commits in their stead.
    pub fast_commits: FastCommitStatistics,
    /// The times of all committed transactions together.
    pub times: Times,
    /// The running average of the time from a transaction's lock to its durability; the latest counts a
    /// quarter.
    pub average_commit_time: Duration,
}

/// The time that transactions took in each phase, summed up over all committed ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// The longest wait of a handle of each transaction for room in it.
    pub waiting: Duration,
    /// From the first request for a commit to its beginning.
    pub request_delay: Duration,
    /// Running: handles could join.
    pub running: Duration,
    /// Locked: open handles had to finish.
    pub locked: Duration,
    /// Flushing: images went to the log.
    pub flushing: Duration,
    /// Committing: the commit block was written, behind a flush.
    pub logging: Duration,
}

impl Statistics {
    /// The average of `total` over the committed transactions; zero if there are none.
    #[must_use]
    pub fn average(&self, total: Duration) -> Duration {
        let count = u32::try_from(self.transactions).unwrap_or(u32::MAX);
        total.checked_div(count).unwrap_or_default()
    }

    /// The average of `count` over the committed transactions, rounded down; 0 if there are none.
    #[must_use]
    pub fn per_transaction(&self, count: u64) -> u64 {
        count.checked_div(self.transactions).unwrap_or_default()
    }
}

/// The counters behind [`Statistics`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) transactions: AtomicU64,
    pub(crate) handles: AtomicU64,
    pub(crate) logged_blocks: AtomicU64,
    pub(crate) log_blocks: AtomicU64,
    pub(crate) revokes: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) checkpointed_blocks: AtomicU64,
    pub(crate) fast_commits: FastCommitCounters,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// The statistics from these counters and from `history`, which stands with the journal's state.
    pub(crate) fn statistics(&self, history: &History, max_transaction_blocks: u32) -> Statistics {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Statistics {
            transactions: get(&self.transactions),
            requested: history.requested,
            max_transaction_blocks,
            handles: get(&self.handles),
            logged_blocks: get(&self.logged_blocks),
            log_blocks: get(&self.log_blocks),
            revokes: get(&self.revokes),
            flushes: get(&self.flushes),
            checkpointed_blocks: get(&self.checkpointed_blocks),
            fast_commits: self.fast_commits.snapshot(),
            times: history.times,
            average_commit_time: history.average_commit_time,
        }
    }
}

/// The times that are summed up under the journal's lock.
#[derive(Debug, Default)]
pub(crate) struct History {
    requested: u64,
    times: Times,
    average_commit_time: Duration,
}

impl History {
    /// Adds a transaction that has committed.
    pub(crate) fn add(&mut self, transaction: &Transaction) {
        let between = |from, to| transaction.entered(to).saturating_sub(transaction.entered(from));
        let times = &mut self.times;
        times.waiting += transaction.longest_wait;
        times.running += between(Phase::Running, Phase::Locked);
        times.locked += between(Phase::Locked, Phase::Flushing);
        times.flushing += between(Phase::Flushing, Phase::Committing);
        times.logging += between(Phase::Committing, Phase::Committed);
        if let Some(requested) = transaction.requested {
            self.requested += 1;
            times.request_delay += transaction.entered(Phase::Locked).saturating_sub(requested);
        }
        let commit = between(Phase::Locked, Phase::Committed);
        self.average_commit_time = match self.average_commit_time {
            Duration::ZERO => commit,
            average => (average * 3 + commit) / 4,
        };
    }
}
