//! Blocks that tags name: kept from everybody else during a replay, settled at its end.
//!
//! ```text
//!   claimed ── free before ───────────────┐
//!          └── in use before ─ given up ──┴─► mapped at the end: stay used; not mapped: freed
//!                            └ kept ────────► where its file has had them all the time: nothing to do
//!                                             newly mapped: somebody else's, an error
//! ```
//!
//! A block can go from one file to another within the fast commits (both are mapped anew by `move_ext`), and the tags of
//! the new owner may come first. So nothing that is claimed is ever free while tags are applied, and who has it is looked
//! at when all are.
//!
//! Invariant: at the end no block has two owners, and none that was another file's was taken. Were it, two files would
//! show each other's data.

use std::ops::Range;

use ext4_core::format::extent::{Entry, Extent};
use ext4_core::format::inode::InodeFlags;
use ext4_core::meta::extent_tree::MappingState;
use ext4_core::meta::{SuperblockInfo, Transaction, block_allocator, block_map};
use ext4_core::{BlockNumber, Error, InodeNumber, LogicalBlock, Result};
use rangemap::{RangeMap, RangeSet};

use crate::recovery::Replay;

/// See the module. Ranges are of blocks on the device; of whole clusters with bigalloc, where two files with blocks in
/// one cluster are as wrong as two with the same block.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// Each claim, in the order of the tags.
    claims: Vec<(InodeNumber, Extent)>,
    /// All that is claimed.
    claimed: RangeSet<u64>,
    /// What of it was free before, or was given up by a file.
    available: RangeSet<u64>,
    /// What of it was mapped by a tag.
    inserted: RangeSet<u64>,
}

impl Claims {
    /// Claims the blocks of an ADD_RANGE.
    ///
    /// # Errors
    /// Corrupt where no file can have such an extent; those of the device and the transaction.
    pub async fn claim(
        &mut self,
        info: &SuperblockInfo,
        transaction: &dyn Transaction,
        inode: InodeNumber,
        entry: &Entry,
    ) -> Result<()> {
        let extent = Extent::from_entry(entry);
        if extent.len == 0 || extent.logical.0.checked_add(extent.len).is_none() {
            let problem = format!("blocks {}+{} of a file", extent.logical, extent.len);
            return Err(Error::corrupt(format!("inode {inode}"), problem));
        }
        let len = u64::from(extent.len);
        for free in block_allocator::mark_used(info, transaction, extent.physical, len).await? {
            self.available.insert(free);
        }
        self.claimed.insert(blocks(info, extent.physical, len));
        self.claims.push((inode, extent));
        Ok(())
    }

    /// What of `range` is claimed.
    pub fn of(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let part = |claimed: &Range<u64>| claimed.start.max(range.start)..claimed.end.min(range.end);
        self.claimed.overlapping(range).map(part).collect()
    }

    /// True where nothing is claimed.
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// A file gave these blocks up, all of them claimed.
    pub fn given_up(&mut self, range: Range<u64>) {
        self.available.insert(range);
    }

    /// A tag mapped these blocks.
    pub fn inserted(&mut self, range: Range<u64>) {
        self.inserted.insert(range);
    }
}

/// The blocks of a run; those of all clusters it touches.
pub(crate) fn blocks(info: &SuperblockInfo, first: BlockNumber, len: u64) -> Range<u64> {
    let mask = (1_u64 << info.cluster_bits()) - 1;
    first.0 & !mask..(first.offset(len).0.saturating_add(mask) & !mask)
}

impl Replay<'_> {
    /// Looks who has what was claimed, and frees what nobody has.
    ///
    /// # Errors
    /// Corrupt where a block has two owners, or was taken from another file; those of the device.
    pub(crate) async fn settle_claims(&mut self) -> Result<()> {
        // Where a block is mapped: the file, and how far the block lies from its place in the file.
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

    /// Which blocks of a claim its file maps as the claim says.
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
