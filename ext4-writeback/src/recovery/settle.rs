//! Settling the claims of a replay of fast commits: which of the claimed blocks are in use in the end.
//!
//! Invariant: a block that was claimed is in use afterwards if, and only if, exactly one file maps it as its
//! claim says.

use std::ops::Range;

use ext4_core::format::extent::Extent;
use ext4_core::format::inode::InodeFlags;
use ext4_core::meta::extent_tree::MappingState;
use ext4_core::meta::{block_allocator, block_map};
use ext4_core::{BlockNumber, Error, InodeNumber, LogicalBlock, Result};
use rangemap::{RangeMap, RangeSet};

use crate::recovery::Replay;
use crate::recovery::claims::blocks;

impl Replay<'_> {
    /// Looks up the owners of all claimed blocks, and frees the blocks that have none.
    ///
    /// # Errors
    /// - Corrupt if a block has two owners, or was taken from another file.
    /// - Those of the device.
    pub(crate) async fn settle_claims(&mut self) -> Result<()> {
        // Mapped blocks → the file, and the distance from the block of the file to that of the device.
        let mut owners: RangeMap<u64, (InodeNumber, u64)> = RangeMap::new();
        for (number, extent) in std::mem::take(&mut self.claims.claims) {
            for mapped in self.mapped_of(number, &extent).await? {
                let owner = (number, extent.physical.0.wrapping_sub(u64::from(extent.logical.0)));
                if let Some((range, other)) = owners.overlapping(&mapped).find(|(_, other)| **other != owner)
                {
                    return Err(Error::corrupt(
                        format!("fast commit: block {}", range.start.max(mapped.start)),
                        format!("is mapped by inodes {} and {number}", other.0),
                    ));
                }
                owners.insert(mapped, owner);
            }
        }
        let mapped: RangeSet<u64> = owners.iter().map(|(range, _)| range.clone()).collect();
        for (range, (number, _)) in owners.iter() {
            for inserted in self.claims.inserted.overlapping(range) {
                let inserted = inserted.start.max(range.start)..inserted.end.min(range.end);
                if let Some(taken) = self.claims.available.gaps(&inserted).next() {
                    return Err(Error::corrupt(
                        format!("fast commit: block {}", taken.start),
                        format!("is mapped by inode {number}, but was in use already"),
                    ));
                }
            }
        }
        for range in std::mem::take(&mut self.claims.available) {
            for unused in mapped.gaps(&range) {
                let (first, count) = (BlockNumber(unused.start), unused.end - unused.start);
                block_allocator::free_blocks(self.info, &self.transaction, first, count, false).await?;
            }
        }
        Ok(())
    }

    /// The blocks of a claim that its file maps as the claim says.
    async fn mapped_of(&self, number: InodeNumber, extent: &Extent) -> Result<Vec<Range<u64>>> {
        let mut found = Vec::new();
        let Some(inode) = self.find(number).await? else { return Ok(found) };
        if !inode.flags.contains(InodeFlags::EXTENTS) {
            return Ok(found);
        }
        let mut done = 0;
        while done < extent.len {
            let at = LogicalBlock(extent.logical.0 + done);
            let mapping = block_map::lookup(self.info, &inode, at).await?;
            let len = mapping.len.clamp(1, extent.len - done);
            let claimed = extent.physical.offset(u64::from(done));
            if let MappingState::Written(block) | MappingState::Unwritten(block) = mapping.state
                && block == claimed
            {
                found.push(blocks(self.info, block, u64::from(len)));
            }
            done += len;
        }
        Ok(found)
    }
}
