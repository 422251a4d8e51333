//! What the journal has done: counters, and how long transactions took in each part of their lives.
//!
//! The same figures as `/proc/fs/jbd2/*/info` gives, and some more. Source: kernel, jbd2's `seq_info` file.
//!
//! Cost: counters are relaxed atomics; times are taken once for each change of a transaction's phase, and
//! summed up under the journal's lock where that is held anyway. A handle that does not wait reads no clock.

use crate::state::fast_commits;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::state::fast_commits::FastCommitStatistics;
use crate::state::transaction::{Phase, Transaction};

/// What the journal has done since it was opened. Averages are over the transactions committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Transactions committed.
    pub transactions: u64,
    /// Those of them that were asked for, or that were full: the others were old.
    pub requested: u64,
    /// Most blocks a transaction is to change.
    pub max_transaction_blocks: u32,
    /// Handles started.
    pub handles: u64,
    /// Images written to the log.
    pub logged_blocks: u64,
    /// Log blocks written, descriptors, revoke and commit blocks included.
    pub log_blocks: u64,
    /// Blocks revoked.
    pub revokes: u64,
    /// Flushes asked of a device, also those that came with a write.
    pub flushes: u64,
    /// Blocks written to their places.
    pub checkpointed_blocks: u64,
    /// Fast commits, and why there were full ones instead.
    pub fast_commits: FastCommitStatistics,
    /// The times of all transactions together.
    pub times: Times,
    /// A running average of the time from a transaction's lock to its durability, in which the latest counts
    /// a quarter.
    pub average_commit_time: Duration,
}

/// How long transactions took, summed up over all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// The longest that one of a transaction's handles had waited for it.
    pub waiting: Duration,
    /// From the first request for a commit to its beginning.
    pub request_delay: Duration,
    /// Handles could join.
    pub running: Duration,
    /// Open handles had to finish.
    pub locked: Duration,
    /// Images went to the log.
    pub flushing: Duration,
    /// The commit block went behind a flush.
    pub logging: Duration,
}

impl Statistics {
    /// A total's average over the transactions committed.
    #[must_use]
    pub fn average(&self, total: Duration) -> Duration {
        let count = u32::try_from(self.transactions).unwrap_or(u32::MAX);
        total.checked_div(count).unwrap_or_default()
    }

    /// A count's average over the transactions committed, rounded down.
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
    pub(crate) fast_commits: fast_commits::Counters,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// All but what is kept with the journal's state.
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

/// What is summed up under the journal's lock.
#[derive(Debug, Default)]
pub(crate) struct History {
    requested: u64,
    times: Times,
    average_commit_time: Duration,
}

impl History {
    /// Takes in a transaction that has committed.
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
