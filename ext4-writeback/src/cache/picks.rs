//! Preallocation in memory (`alloc=publish`): blocks that are picked for delayed data of one file, and that
//! the file maps only when the data is on the device.
//!
//! Invariants:
//! - A picked block is taken in the allocator's memory, and free on the device: after a crash it is free. It
//!   becomes part of the file in one transaction, after its data; otherwise a crash would show what the block
//!   held before.
//! - Runs do not overlap, and are changed only under the lock of the inode (i_data_sem) for writing.
//!
//! Lock: one mutex, a leaf.

use std::collections::BTreeMap;
use std::ops::Range;

use ext4_core::meta::SuperblockInfo;
use ext4_core::meta::block_allocator::picked::return_picked;
use ext4_core::{BlockNumber, LogicalBlock};
use parking_lot::Mutex;

/// The picked blocks of one file: first block of the file → (block behind the last, block on the device of
/// the first).
#[derive(Debug, Default)]
pub(crate) struct Preallocation {
    runs: Mutex<BTreeMap<LogicalBlock, (LogicalBlock, BlockNumber)>>,
}

impl Preallocation {
    /// The block on the device that is picked for `block`, and the block of the file behind the last one of
    /// that run.
    pub fn find(&self, block: LogicalBlock) -> Option<(BlockNumber, LogicalBlock)> {
        let runs = self.runs.lock();
        let (start, (end, physical)) = runs.range(..=block).next_back()?;
        (*end > block).then(|| (physical.offset(u64::from(block - *start)), *end))
    }

    /// The best place for a new pick for `block` (the allocator's goal): as far behind the run before it on
    /// the device as in the file.
    pub(crate) fn goal(&self, block: LogicalBlock) -> Option<BlockNumber> {
        let runs = self.runs.lock();
        let (start, (_, physical)) = runs.range(..block).next_back()?;
        Some(physical.offset(u64::from(block - *start)))
    }

    /// The first block of the file from `block` on that has a pick.
    pub(crate) fn next(&self, block: LogicalBlock) -> Option<LogicalBlock> {
        self.runs.lock().range(block..).next().map(|(start, _)| *start)
    }

    /// Notes that blocks from `physical` on are picked for `blocks`, which have no picks yet.
    pub(crate) fn insert(&self, blocks: Range<LogicalBlock>, physical: BlockNumber) {
        self.runs.lock().insert(blocks.start, (blocks.end, physical));
    }

    /// Forgets what is picked for `range`; returns the runs: first block on the device, number of blocks. The
    /// caller holds the lock of the inode for writing.
    pub fn take(&self, range: Range<LogicalBlock>) -> Vec<(BlockNumber, u32)> {
        let mut taken = Vec::new();
        let mut runs = self.runs.lock();
        let before =
            runs.range(..range.start).next_back().map(|(start, (end, physical))| (*start, *end, *physical));
        if let Some((start, end, physical)) = before.filter(|(_, end, _)| *end > range.start) {
            runs.insert(start, (range.start, physical));
            runs.insert(range.start, (end, physical.offset(u64::from(range.start - start))));
        }
        while let Some((start, (end, physical))) = runs.range(range.clone()).next().map(|(k, v)| (*k, *v)) {
            runs.remove(&start);
            let stop = end.min(range.end);
            taken.push((physical, stop - start));
            if stop < end {
                runs.insert(stop, (end, physical.offset(u64::from(stop - start))));
            }
        }
        taken
    }

    /// Returns the blocks picked for `range` to the allocator. The caller holds the lock of the inode for
    /// writing, and deals with the delayed blocks and their reservations.
    pub fn give_back(&self, info: &SuperblockInfo, range: Range<LogicalBlock>) {
        for (first, len) in self.take(range) {
            return_picked(info, first, len);
        }
    }
}
