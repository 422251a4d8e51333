//! Reserved clusters of delayed blocks, for file systems with bigalloc.
//!
//! ```text
//!   cluster      |  0 |  1 |  2 |  3 |  4 |
//!   allocated     ####                 ##
//!   delayed         dd dddd dd       dd        in 0 (after its allocated blocks), 1, 2, 4
//!   shared          0                  4       have both: the space is there already
//!   reserved           1    2                  two clusters
//! ```
//!
//! Invariant: reserved = clusters with a delayed block, less the shared ones; shared = clusters that have a
//! delayed and an allocated block (the kernel's pending reservations). What the device has is not always
//! known here, so a task that allocates or frees says so:
//! [`ExtentStatusTree::set`](crate::cache::extent_status::ExtentStatusTree::set) and
//! [`ExtentStatusTree::cluster_freed`](crate::cache::extent_status::ExtentStatusTree::cluster_freed). If a
//! cluster were reserved that needs none, its space would be missing until the next mount; if one were not
//! reserved that needs it, data that a write had accepted could find no space.

use std::ops::Range;

use ext4_core::{LogicalBlock, Result};

use crate::cache::extent_status::status::{Reservation, Status};
use crate::cache::extent_status::tree::Tree;

/// What one cluster holds.
#[derive(Default)]
struct Content {
    delayed: bool,
    allocated: bool,
    /// True if it has a hole within the range that is asked about.
    hole: bool,
}

impl Tree {
    /// The clusters of `blocks`, which are whole clusters, that have delayed blocks and are not shared.
    fn reserved_in(&self, blocks: &Range<LogicalBlock>) -> u64 {
        let bits = self.clusters.bits;
        let before = self.covering(blocks.start).map_or(blocks.start, |(start, ..)| start);
        let (mut next, mut count) = (0, 0);
        for (start, (end, status)) in self.extents.range(before..blocks.end) {
            let (start, end) = ((*start).max(blocks.start), (*end).min(blocks.end));
            if *status == Status::Delayed && start < end {
                let clusters = (start.0 >> bits).max(next)..((end.0 - 1) >> bits) + 1;
                count += u64::from(clusters.end.saturating_sub(clusters.start));
                next = next.max(clusters.end);
            }
        }
        let clusters = blocks.start.0 >> bits..blocks.end.0.div_ceil(1 << bits);
        count - self.clusters.shared.range(clusters).count() as u64
    }

    /// As [`Tree::releasing`].
    pub(crate) fn releasing_clusters(
        &mut self,
        range: Range<LogicalBlock>,
        change: impl FnOnce(&mut Self) -> u64,
    ) -> u64 {
        let blocks = self.clusters.round(&range);
        if blocks.is_empty() {
            return 0;
        }
        let before = self.reserved_in(&blocks);
        change(self);
        // At most the clusters of the range lose their last delayed block.
        let bits = self.clusters.bits;
        let shared: Vec<u32> = self
            .clusters
            .shared
            .range(blocks.start.0 >> bits..blocks.end.0.div_ceil(1 << bits))
            .copied()
            .collect();
        for cluster in shared {
            if !self.has_delayed(cluster) {
                self.clusters.shared.remove(&cluster);
            }
        }
        let after = self.reserved_in(&blocks);
        let released = before.saturating_sub(after);
        self.clusters.reserved = self.clusters.reserved.saturating_sub(released);
        released
    }

    fn has_delayed(&self, cluster: u32) -> bool {
        let bits = self.clusters.bits;
        let mut at = LogicalBlock(cluster << bits);
        let end = at.offset(1 << bits);
        while at < end {
            match self.covering(at) {
                Some((_, _, Status::Delayed)) => return true,
                Some((_, stop, _)) => at = stop,
                None => match self.extents.range(at..end).next() {
                    Some((start, _)) => at = *start,
                    None => return false,
                },
            }
        }
        false
    }

    /// `range` is about to be allocated: those of its clusters that have delayed blocks are shared, as far as
    /// these blocks stay delayed.
    pub(crate) fn share_clusters(&mut self, range: &Range<LogicalBlock>) {
        if self.clusters.bits == 0 || range.is_empty() {
            return;
        }
        // Only the first and the last can have blocks outside the range.
        let bits = self.clusters.bits;
        for cluster in [range.start.0 >> bits, (range.end.0 - 1) >> bits] {
            if self.has_delayed(cluster) {
                self.clusters.shared.insert(cluster);
            }
        }
    }

    /// As [`ExtentStatusTree::reserve`](crate::cache::extent_status::ExtentStatusTree::reserve): all blocks
    /// of the first and last cluster must be known too.
    pub(crate) fn reserve_clusters(
        &mut self,
        range: Range<LogicalBlock>,
        reserve: impl FnOnce(u64) -> Result<()>,
    ) -> Result<Reservation> {
        let bits = self.clusters.bits;
        let blocks = self.clusters.round(&range);
        let (mut needed, mut holes) = (0, false);
        let mut shared = Vec::new();
        let mut at = blocks.start;
        while at < blocks.end {
            let Some((_, end, status)) = self.covering(at) else { return Ok(Reservation::NotCached(at)) };
            let whole = (end.min(blocks.end) - at) >> bits;
            if whole > 0 {
                // Clusters of one kind: each has a block in the range.
                if status == Status::Hole {
                    needed += u64::from(whole);
                    holes = true;
                }
                at += whole << bits;
                continue;
            }
            let stop = at.offset(1 << bits).min(blocks.end);
            let content = match self.content(at..stop, &range) {
                Ok(content) => content,
                Err(unknown) => return Ok(Reservation::NotCached(unknown)),
            };
            holes |= content.hole;
            match content {
                Content { hole: true, delayed: false, allocated: true } => shared.push(at.0 >> bits),
                Content { hole: true, delayed: false, allocated: false } => needed += 1,
                _ => {}
            }
            at = stop;
        }
        if !holes {
            return Ok(Reservation::Done);
        }
        reserve(needed)?;
        self.clusters.reserved += needed;
        self.clusters.shared.extend(shared);
        self.delay_holes(range);
        Ok(Reservation::Done)
    }

    /// What the blocks of one cluster hold.
    ///
    /// # Errors
    /// The first block that is not known.
    fn content(
        &self,
        cluster: Range<LogicalBlock>,
        range: &Range<LogicalBlock>,
    ) -> std::result::Result<Content, LogicalBlock> {
        let mut content = Content::default();
        let mut at = cluster.start;
        while at < cluster.end {
            let (_, end, status) = self.covering(at).ok_or(at)?;
            let stop = end.min(cluster.end);
            match status {
                Status::Delayed => content.delayed = true,
                Status::Written(_) | Status::Unwritten(_) => content.allocated = true,
                Status::Hole => content.hole |= at.max(range.start) < stop.min(range.end),
            }
            at = stop;
        }
        Ok(content)
    }
}
