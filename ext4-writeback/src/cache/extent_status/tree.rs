//! The extents of an extent status tree: an ordered map of runs that do not overlap.
//!
//! Invariants:
//! - No two runs that touch could be one.
//! - `delayed_blocks` and `delayed_extents` count what the map holds; `counted` is what this tree adds to the
//!   count of all trees.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ext4_core::LogicalBlock;

use crate::cache::extent_status::status::Status;

/// The part of a tree that knows clusters.
#[derive(Debug, Default)]
pub(crate) struct Clusters {
    /// Base-two logarithm of the blocks of a cluster; 0 without bigalloc, and no other field is used then.
    pub bits: u32,
    /// How many clusters are reserved.
    pub reserved: u64,
    /// Clusters with both delayed and allocated blocks.
    pub shared: BTreeSet<u32>,
}

impl Clusters {
    pub fn freed(&mut self, block: LogicalBlock) -> bool {
        let freed = self.bits != 0 && self.shared.remove(&(block.0 >> self.bits));
        self.reserved += u64::from(freed);
        freed
    }

    pub fn is_shared(&self, block: LogicalBlock) -> bool {
        self.bits != 0 && self.shared.contains(&(block.0 >> self.bits))
    }

    /// The blocks of the clusters that `range` touches.
    pub(crate) fn round(&self, range: &Range<LogicalBlock>) -> Range<LogicalBlock> {
        let size = 1 << self.bits;
        let end = range.end.0.checked_next_multiple_of(size).map_or(LogicalBlock::END, LogicalBlock);
        LogicalBlock(range.start.0 & !(size - 1))..end
    }
}

/// The extents of one file. See the module.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub extents: BTreeMap<LogicalBlock, (LogicalBlock, Status)>,
    pub delayed_blocks: u64,
    delayed_extents: usize,
    /// The count of all trees of the file system.
    pub reclaimable: Arc<Reclaimable>,
    /// How many extents of this tree are counted there.
    counted: usize,
    pub clusters: Clusters,
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.reclaimable.0.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

/// How many extents that could be read again one tree may hold.
pub(crate) const MAX_RECLAIMABLE: usize = 8192;

/// How many extents that could be read again all trees of a file system may hold together (about 16 MiB), and
/// how many each tree may hold whatever the others do.
pub(crate) const MAX_RECLAIMABLE_OF_ALL: usize = 1 << 18;

pub(crate) const MIN_RECLAIMABLE: usize = 64;

/// How many extents that could be read again all trees of one mounted file system hold.
#[derive(Debug, Default)]
pub(crate) struct Reclaimable(pub(crate) AtomicUsize);

impl Tree {
    /// An empty tree: nothing is known.
    pub fn new(cluster_bits: u32, reclaimable: &Arc<Reclaimable>) -> Self {
        let mut tree = Self {
            extents: BTreeMap::new(),
            delayed_blocks: 0,
            delayed_extents: 0,
            reclaimable: Arc::clone(reclaimable),
            counted: 0,
            clusters: Clusters::default(),
        };
        tree.clusters.bits = cluster_bits;
        tree
    }

    fn insert(&mut self, start: LogicalBlock, end: LogicalBlock, status: Status) {
        if start < end {
            if status == Status::Delayed {
                self.delayed_blocks += u64::from(end - start);
                self.delayed_extents += 1;
            }
            self.extents.insert(start, (end, status));
        }
    }

    fn take(&mut self, start: LogicalBlock) -> Option<(LogicalBlock, Status)> {
        let (end, status) = self.extents.remove(&start)?;
        if status == Status::Delayed {
            self.delayed_blocks -= u64::from(end - start);
            self.delayed_extents -= 1;
        }
        Some((end, status))
    }

    pub fn covering(&self, block: LogicalBlock) -> Option<(LogicalBlock, LogicalBlock, Status)> {
        let (start, (end, status)) = self.extents.range(..=block).next_back()?;
        (*end > block).then_some((*start, *end, *status))
    }

    /// Runs `change`, which changes `range` and returns how many blocks stopped being delayed. Returns how
    /// many blocks (clusters) need no longer be reserved.
    pub fn releasing(&mut self, range: Range<LogicalBlock>, change: impl FnOnce(&mut Self) -> u64) -> u64 {
        if self.clusters.bits == 0 { change(self) } else { self.releasing_clusters(range, change) }
    }

    /// Forgets what is known of `range`; returns how many delayed blocks that were.
    pub fn carve(&mut self, range: Range<LogicalBlock>) -> u64 {
        let mut delayed = 0;
        if range.is_empty() {
            return 0;
        }
        if let Some((start, end, status)) = self.covering(range.start)
            && start < range.start
        {
            self.take(start);
            self.insert(start, range.start, status);
            self.insert(range.start, end, status.advance(range.start - start));
        }
        while let Some(start) = self.extents.range(range.clone()).next().map(|(start, _)| *start) {
            let Some((end, status)) = self.take(start) else { break };
            let stop = end.min(range.end);
            if status == Status::Delayed {
                delayed += u64::from(stop - start);
            }
            self.insert(stop, end, status.advance(stop - start));
        }
        delayed
    }

    /// Adds an extent, of whose blocks nothing is known; joins it with its neighbours.
    pub fn put(&mut self, mut start: LogicalBlock, mut end: LogicalBlock, mut status: Status) {
        if start >= end {
            return;
        }
        if let Some((before, (before_end, before_status))) =
            self.extents.range(..start).next_back().map(|(k, v)| (*k, *v))
            && before_end == start
            && before_status.advance(start - before) == status
        {
            self.take(before);
            start = before;
            status = before_status;
        }
        if let Some((after_end, after_status)) = self.extents.get(&end).copied()
            && status.advance(end - start) == after_status
        {
            self.take(end);
            end = after_end;
        }
        self.insert(start, end, status);
    }

    /// Brings the count of all trees up to date; returns how many extents of this one could be read again.
    fn count(&mut self) -> usize {
        let reclaimable = self.extents.len() - self.delayed_extents;
        match reclaimable.cmp(&self.counted) {
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => {
                self.reclaimable.0.fetch_add(reclaimable - self.counted, Ordering::Relaxed);
            }
            std::cmp::Ordering::Less => {
                self.reclaimable.0.fetch_sub(self.counted - reclaimable, Ordering::Relaxed);
            }
        }
        self.counted = reclaimable;
        reclaimable
    }

    /// Returns true if `range` is the beginning of a hole behind a delayed extent: the next step of a stream
    /// of writes.
    pub fn goes_on_behind_delayed(&self, range: &Range<LogicalBlock>) -> bool {
        let mut before = self.extents.range(..=range.start).rev();
        matches!(
            (before.next(), before.next()),
            (Some((start, (end, Status::Hole))), Some((_, (before_end, Status::Delayed))))
                if *start == range.start && *end > range.end && before_end == start
        )
    }

    /// Makes `range`, for which [`Tree::goes_on_behind_delayed`] holds, part of the delayed extent before it.
    pub fn lengthen_delayed(&mut self, range: &Range<LogicalBlock>) {
        let Some(hole) = self.extents.remove(&range.start) else { return };
        self.extents.insert(range.end, hole);
        if let Some((_, (end, _))) = self.extents.range_mut(..range.start).next_back() {
            *end = range.end;
            self.delayed_blocks += u64::from(range.end - range.start);
        }
    }

    /// Makes the holes of `range`, all of it known, delayed.
    pub fn delay_holes(&mut self, range: Range<LogicalBlock>) {
        let mut at = range.start;
        while at < range.end {
            let Some((_, end, status)) = self.covering(at) else { break };
            let stop = end.min(range.end);
            if status == Status::Hole {
                self.carve(at..stop);
                self.put(at, stop, Status::Delayed);
            }
            at = stop;
        }
    }

    /// Keeps this tree within its bound, and all trees within theirs; the extents of `keep` stay.
    pub fn prune(&mut self, keep: LogicalBlock) {
        let reclaimable = self.count();
        let of_all = self.reclaimable.0.load(Ordering::Relaxed);
        if reclaimable <= MAX_RECLAIMABLE
            && (of_all <= MAX_RECLAIMABLE_OF_ALL || reclaimable <= MIN_RECLAIMABLE)
        {
            return;
        }
        let before = self.extents.len();
        // All extents go at once: each comes back by one read of a cached leaf. A clock hand would need one
        // more word in each extent.
        self.extents
            .retain(|start, (end, status)| *status == Status::Delayed || (*start..*end).contains(&keep));
        tracing::trace!(
            nr_shrunk = before - self.extents.len(),
            nr_skipped = self.extents.len(),
            "ext4_es_shrink"
        );
        self.count();
    }
}
