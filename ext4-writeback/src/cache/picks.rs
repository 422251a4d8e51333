//! TODO header.

use std::collections::BTreeMap;
use std::ops::Range;

use ext4_core::meta::SuperblockInfo;
use ext4_core::meta::block_allocator::picked::return_picked;
use ext4_core::{BlockNumber, LogicalBlock};
use parking_lot::Mutex;

/// Which blocks are picked for one file: first block → (block behind the last, where the first lies).
#[derive(Debug, Default)]
pub(crate) struct Preallocation {
    runs: Mutex<BTreeMap<LogicalBlock, (LogicalBlock, BlockNumber)>>,
}

impl Preallocation {
    /// The block picked for `block`, and the block of the file behind the last whose pick follows it.
    pub fn find(&self, block: LogicalBlock) -> Option<(BlockNumber, LogicalBlock)> {
        let runs = self.runs.lock();
        let (start, (end, physical)) = runs.range(..=block).next_back()?;
        (*end > block).then(|| (physical.offset(u64::from(block - *start)), *end))
    }

    /// Where blocks for `block` would best lie: as far behind what is picked before it as it is in the file.
    pub(crate) fn goal(&self, block: LogicalBlock) -> Option<BlockNumber> {
        let runs = self.runs.lock();
        let (start, (_, physical)) = runs.range(..block).next_back()?;
        Some(physical.offset(u64::from(block - *start)))
    }

    /// The first block from `block` on that has a pick.
    pub(crate) fn next(&self, block: LogicalBlock) -> Option<LogicalBlock> {
        self.runs.lock().range(block..).next().map(|(start, _)| *start)
    }

    pub(crate) fn insert(&self, blocks: Range<LogicalBlock>, physical: BlockNumber) {
        self.runs.lock().insert(blocks.start, (blocks.end, physical));
    }

    /// Forgets what is picked for `range`; gives the runs. The caller holds the inode's lock for writing.
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

    /// Gives the blocks picked for `range` back. The caller holds the inode's lock for writing, and sees to the delayed
    /// blocks and their promises.
    pub fn give_back(&self, info: &SuperblockInfo, range: Range<LogicalBlock>) {
        for (first, len) in self.take(range) {
            return_picked(info, first, len);
        }
    }
}
