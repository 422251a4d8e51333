//! The layout that mkfs gives: where bitmaps and inode tables lie.
//!
//! ```text
//!   flex group:  │ super gdt reserved │ block bitmaps │ inode bitmaps │ inode tables │ data … │ next …
//! ```
//!
//! With flex_bg the metadata of 16 groups lies together from the first group's start on, passing by the
//! superblock copies of the groups it reaches into; without, each group has its own behind its superblock
//! copy.
//!
//! With bigalloc they are packed all the same, several to a cluster: a cluster is in use if one of its blocks
//! is.

use std::ops::Range;

use crate::error::{Errno, Error, Result};
use crate::format::group_descriptor::{GroupDescriptor, GroupFlags};
use crate::format::superblock::Superblock;
use crate::types::{BlockNumber, GroupNumber};

/// See the module.
#[derive(Debug)]
pub(super) struct Layout {
    /// One for each group, as if no bitmap had been written yet.
    pub descriptors: Vec<GroupDescriptor>,
    /// The groups whose block bitmap must be written: it is not just that of an unused group.
    pub initialised: Vec<bool>,
}

/// Hands out blocks in order, within some groups, past the superblock copies.
struct Cursor<'a> {
    superblock: &'a Superblock,
    next: u64,
    end: u64,
}

impl Cursor<'_> {
    fn over(superblock: &Superblock, groups: Range<u32>) -> Cursor<'_> {
        let last = GroupNumber(groups.end - 1);
        Cursor {
            superblock,
            next: superblock.group_first_block(GroupNumber(groups.start)).0,
            end: superblock.group_first_block(last).0 + u64::from(superblock.group_blocks(last)),
        }
    }

    /// The next `len` blocks in a row.
    fn take(&mut self, len: u64) -> Option<BlockNumber> {
        let mut first = self.next;
        let mut at = first;
        // From group to group as far as the run reaches.
        while at < first + len {
            let (group, _) = self.superblock.group_of_block(BlockNumber(at))?;
            let start = self.superblock.group_first_block(group).0;
            let free_from = start + self.superblock.base_blocks(group);
            if first < free_from && first + len > start && free_from > start {
                first = free_from;
            }
            at = start + u64::from(self.superblock.blocks_per_group);
        }
        self.next = first + len;
        (self.next <= self.end).then_some(BlockNumber(first))
    }
}

impl Layout {
    pub fn new(superblock: &Superblock) -> Result<Self> {
        let groups = superblock.groups_count();
        let mut descriptors = vec![GroupDescriptor::default(); groups as usize];
        let per_flex = superblock.groups_per_flex();
        let mut first = 0;
        while first < groups {
            let range = first..first.saturating_add(per_flex).min(groups);
            let placed = &mut descriptors[range.start as usize..range.end as usize];
            if place_packed(superblock, range.clone(), placed).is_none() {
                // Packed it does not fit between the copies: each group by itself.
                for (number, descriptor) in range.clone().zip(placed) {
                    place_packed(superblock, number..number + 1, std::slice::from_mut(descriptor))
                        .ok_or_else(|| Error::posix(Errno::ENOSPC, "no room for the inode tables"))?;
                }
            }
            first = range.end;
        }
        Ok(Self::counted(superblock, descriptors))
    }

    /// Fills in what is free and which bitmaps have to be written.
    fn counted(superblock: &Superblock, mut descriptors: Vec<GroupDescriptor>) -> Self {
        let groups = superblock.groups_count();
        let checksums = superblock.features.group_checksums();
        let bits = superblock.cluster_bits();
        // The clusters of each group that are in use, as far as they are known.
        let base = |group| superblock.base_blocks(GroupNumber(group)).div_ceil(1 << bits);
        let mut used: Vec<Vec<Range<u64>>> =
            (0..groups).map(|group| std::iter::once(0..base(group)).collect()).collect();
        let mut initialised = vec![!checksums; descriptors.len()];
        let table = u64::from(superblock.inode_table_blocks());
        for (own, descriptor) in descriptors.iter().enumerate() {
            for (block, count) in
                [(descriptor.block_bitmap, 1), (descriptor.inode_bitmap, 1), (descriptor.inode_table, table)]
            {
                let mut at = block.0;
                while at < block.0 + count {
                    let Some((group, offset)) = superblock.group_of_block(BlockNumber(at)) else { break };
                    let here = (block.0 + count - at).min(u64::from(superblock.blocks_per_group - offset));
                    let offset = u64::from(offset);
                    used[group.0 as usize].push(offset >> bits..(offset + here).div_ceil(1 << bits));
                    if group.0 as usize != own {
                        initialised[group.0 as usize] = true;
                    }
                    at += here;
                }
            }
        }
        // Group 0 is used at once; the last one's bitmap has padding that nothing else writes.
        initialised[0] = true;
        if let Some(last) = initialised.last_mut() {
            *last = true;
        }
        let inodes = superblock.inodes_per_group;
        for (number, descriptor) in descriptors.iter_mut().enumerate() {
            let blocks = u64::from(superblock.group_blocks(GroupNumber(number as u32)));
            // At most a group's blocks.
            descriptor.free_blocks_count = (blocks >> bits).saturating_sub(covered(&mut used[number])) as u32;
            descriptor.free_inodes_count = inodes;
            descriptor.flags = GroupFlags::INODE_UNINIT | GroupFlags::BLOCK_UNINIT;
            descriptor.itable_unused = if checksums { inodes } else { 0 };
        }
        Self { descriptors, initialised }
    }

    /// Free clusters of all groups (blocks without bigalloc).
    pub fn free_clusters(&self) -> u64 {
        self.descriptors.iter().map(|descriptor| u64::from(descriptor.free_blocks_count)).sum()
    }

    /// The inode tables as ranges of blocks, neighbours joined.
    pub fn inode_tables(&self, superblock: &Superblock) -> Vec<Range<u64>> {
        let blocks = u64::from(superblock.inode_table_blocks());
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for descriptor in &self.descriptors {
            let first = descriptor.inode_table.0;
            match ranges.last_mut() {
                Some(last) if last.end == first => last.end += blocks,
                _ => ranges.push(first..first + blocks),
            }
        }
        ranges
    }
}

/// How many numbers lie in at least one of the ranges.
fn covered(ranges: &mut [Range<u64>]) -> u64 {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut end = 0;
    let mut count = 0;
    for range in ranges {
        count += range.end.saturating_sub(range.start.max(end));
        end = end.max(range.end);
    }
    count
}

/// Places the metadata of `groups` one behind the other; `None` if it does not fit.
fn place_packed(
    superblock: &Superblock,
    groups: Range<u32>,
    descriptors: &mut [GroupDescriptor],
) -> Option<()> {
    let mut cursor = Cursor::over(superblock, groups);
    for descriptor in descriptors.iter_mut() {
        descriptor.block_bitmap = cursor.take(1)?;
    }
    for descriptor in descriptors.iter_mut() {
        descriptor.inode_bitmap = cursor.take(1)?;
    }
    for descriptor in descriptors.iter_mut() {
        descriptor.inode_table = cursor.take(u64::from(superblock.inode_table_blocks()))?;
    }
    Some(())
}
