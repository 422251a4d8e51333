//! ADD_RANGE and DEL_RANGE (EXT4_FC_TAG_*): the mapping of a file.
//!
//! Invariant: blocks that a file gives up are free at once, but for those that a tag claims: claimed blocks
//! stay in use until the claims are settled.

use ext4_core::format::extent::{Entry, Extent};
use ext4_core::format::inode::{FileType, Inode, InodeFlags};
use ext4_core::meta::extent_tree::MappingState;
use ext4_core::meta::{block_allocator, block_map, extent_tree};
use ext4_core::{BlockNumber, Error, InodeNumber, LogicalBlock, Result};

use crate::recovery::claims::blocks;
use crate::recovery::{Outcome, Replay};

impl Replay<'_> {
    /// ADD_RANGE: the file maps `entry`, and nothing else at its blocks.
    pub(crate) async fn add_range(&mut self, number: InodeNumber, entry: &Entry) -> Result<Outcome> {
        let Some(mut inode) = self.file_with_ranges(number).await? else { return Ok(Outcome::PassedOver) };
        if !inode.flags.contains(InodeFlags::EXTENTS) {
            return Err(Error::Unsupported(format!("inode {number} is not mapped by extents")));
        }
        // Checked when the range was claimed: not empty, and it ends within a file.
        let extent = Extent::from_entry(entry);
        let mut done = 0;
        while done < extent.len {
            let logical = LogicalBlock(extent.logical.0 + done);
            let physical = extent.physical.offset(u64::from(done));
            let mapping = extent_tree::lookup(self.info, &inode, logical).await?;
            let len = mapping.len.clamp(1, extent.len - done);
            match mapping.state {
                MappingState::Hole => {
                    self.insert(&mut inode, logical, physical, len, extent.unwritten).await?;
                }
                MappingState::Written(block) if block == physical => {
                    if extent.unwritten {
                        let (info, transaction) = (self.info, &self.transaction);
                        extent_tree::convert_to_unwritten(info, transaction, &mut inode, logical, len)
                            .await?;
                    }
                }
                MappingState::Unwritten(block) if block == physical => {
                    if !extent.unwritten {
                        let (info, transaction) = (self.info, &self.transaction);
                        extent_tree::convert_to_written(info, transaction, &mut inode, logical, len).await?;
                    }
                }
                // The range was freed and mapped again since the last full commit.
                MappingState::Written(_) | MappingState::Unwritten(_) => {
                    self.unmap(&mut inode, logical, LogicalBlock(logical.0 + len - 1)).await?;
                    self.insert(&mut inode, logical, physical, len, extent.unwritten).await?;
                }
            }
            done += len;
        }
        self.write(&inode).await?;
        Ok(Outcome::Applied)
    }

    /// DEL_RANGE: a range of the file is a hole.
    pub(crate) async fn del_range(
        &mut self,
        number: InodeNumber,
        logical: LogicalBlock,
        len: u32,
    ) -> Result<Outcome> {
        let Some(mut inode) = self.file_with_ranges(number).await? else { return Ok(Outcome::PassedOver) };
        let Some(more) = len.checked_sub(1) else { return Ok(Outcome::PassedOver) };
        if inode.flags.contains(InodeFlags::INLINE_DATA) {
            return Ok(Outcome::PassedOver);
        }
        let last = logical.offset(more).min(LogicalBlock::MAX);
        self.unmap(&mut inode, logical, last).await?;
        self.write(&inode).await?;
        Ok(Outcome::Applied)
    }

    /// The file, if tags can change its ranges: not a directory, whose blocks are metadata.
    async fn file_with_ranges(&self, number: InodeNumber) -> Result<Option<Inode>> {
        let Some(inode) = self.find(number).await? else { return Ok(None) };
        let wrong = match inode.file_type() {
            _ if self.is_reserved(number) => "is reserved",
            Some(FileType::Regular | FileType::Symlink) => return Ok(Some(inode)),
            _ => "has no ranges: it is no file",
        };
        Err(Error::corrupt(format!("inode {number}"), wrong))
    }

    async fn insert(
        &mut self,
        inode: &mut Inode,
        logical: LogicalBlock,
        physical: BlockNumber,
        len: u32,
        unwritten: bool,
    ) -> Result<()> {
        extent_tree::insert(self.info, &self.transaction, inode, logical, physical, len, unwritten).await?;
        self.claims.inserted(blocks(self.info, physical, u64::from(len)));
        Ok(())
    }

    /// Unmaps all blocks.
    pub(crate) async fn unmap_all(&mut self, inode: &mut Inode) -> Result<()> {
        self.unmap(inode, LogicalBlock(0), LogicalBlock::MAX).await
    }

    /// Unmaps `first..=last`.
    async fn unmap(&mut self, inode: &mut Inode, first: LogicalBlock, last: LogicalBlock) -> Result<()> {
        let claimed = self.claimed_of(inode, first, last).await?;
        // Without a journal there are always credits: one call is enough.
        block_map::remove(self.info, &self.transaction, inode, first, last).await?;
        for range in claimed {
            let (first, count) = (BlockNumber(range.start), range.end - range.start);
            // With bigalloc a cluster may be in use by blocks that are still mapped.
            for free in block_allocator::mark_used(self.info, &self.transaction, first, count).await? {
                self.claims.given_up(free);
            }
        }
        Ok(())
    }

    /// The claimed ones of the blocks that are mapped at `first..=last`.
    async fn claimed_of(
        &self,
        inode: &Inode,
        first: LogicalBlock,
        last: LogicalBlock,
    ) -> Result<Vec<std::ops::Range<u64>>> {
        let mut found = Vec::new();
        if self.claims.is_empty() {
            return Ok(found);
        }
        let mut next = Some(first);
        while let Some(at) = next.filter(|at| *at <= last) {
            let mapping = block_map::lookup(self.info, inode, at).await?;
            let len = mapping.len.clamp(1, (last.0 - at.0).saturating_add(1));
            if let MappingState::Written(block) | MappingState::Unwritten(block) = mapping.state {
                found.extend(self.claims.of(&blocks(self.info, block, u64::from(len))));
            }
            next = at.0.checked_add(len).map(LogicalBlock);
        }
        Ok(found)
    }
}
