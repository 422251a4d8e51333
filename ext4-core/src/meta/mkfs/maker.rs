//! A new file system on its way to the device: groups and their counts, and the copies of superblock and
//! descriptors.

use std::sync::atomic::Ordering;

use super::MkfsOptions;
use super::layout::Layout;
use super::plan::Plan;
use crate::device::{AlignedBuffer, BioFlags, BlockImage};
use crate::error::{Errno, Error, Result};
use crate::format::bitmap;
use crate::format::features::Incompat;
use crate::format::group_descriptor::GroupFlags;
use crate::format::superblock::{STATE_VALID, Superblock};
use crate::meta::buffer::write_images;
use crate::meta::inode_allocator::initialise_block_bitmap;
use crate::meta::superblock_info::group::BitmapOf;
use crate::meta::{DirectTransaction, SuperblockInfo};
use crate::types::{GroupNumber, InodeNumber};

/// Dirty blocks are written out if there are more than this.
const MOST_DIRTY: usize = 4096;

/// The making of one file system.
pub(super) struct Maker<'a> {
    pub info: SuperblockInfo,
    pub transaction: DirectTransaction,
    pub options: &'a MkfsOptions,
    pub plan: &'a Plan,
}

impl Maker<'_> {
    /// Writes the bitmaps that must be there.
    pub async fn initialise_groups(&self, layout: &Layout) -> Result<()> {
        let info = &self.info;
        // The reserved inodes may take more than the first group, if a group has fewer.
        let mut reserved = info.fixed.first_ino - 1;
        for (number, initialised) in layout.initialised.iter().enumerate() {
            // The count of groups fits.
            let number = GroupNumber(number as u32);
            if *initialised {
                let place = info.descriptor_buffer(number).await?;
                initialise_block_bitmap(info, &self.transaction, number, &place).await?;
            }
            let claimed = reserved.min(info.fixed.inodes_per_group);
            reserved -= claimed;
            if claimed > 0 || !info.features().group_checksums() {
                self.claim_inodes(number, claimed).await?;
            }
            if info.cache.dirty_blocks() > MOST_DIRTY {
                info.cache.write_dirty().await?;
            }
        }
        Ok(())
    }

    /// Marks the first `count` inodes of a group as in use, and writes the bitmap.
    async fn claim_inodes(&self, number: GroupNumber, count: u32) -> Result<()> {
        let info = &self.info;
        let group = info.group(number)?;
        let place = info.descriptor_buffer(number).await?;
        let bad = || Error::posix(Errno::EINVAL, format!("group {number}: no inode bitmap"));
        let mut state = info.lock_bitmap(number, BitmapOf::Inodes).await?.ok_or_else(bad)?;
        state.modify_bitmap(info, &self.transaction, number, BitmapOf::Inodes, |bytes| {
            bitmap::set_range(bytes, 0..count);
        })?;
        let descriptor = &mut state.descriptor;
        descriptor.flags.remove(GroupFlags::INODE_UNINIT);
        descriptor.free_inodes_count -= count;
        if info.features().group_checksums() {
            descriptor.itable_unused = info.fixed.inodes_per_group - count;
        }
        group.free_inodes.fetch_sub(count, Ordering::Relaxed);
        info.flex_group(number).free_inodes.fetch_sub(count, Ordering::Relaxed);
        info.free_inodes.fetch_sub(count, Ordering::Relaxed);
        info.write_descriptor(&self.transaction, number, descriptor, &place)
    }

    /// Counts the root directory, whose inode is not allocated but claimed.
    pub async fn count_root_directory(&self) -> Result<()> {
        let info = &self.info;
        let number = info.group_of_inode(InodeNumber::ROOT);
        let group = info.group(number)?;
        let place = info.descriptor_buffer(number).await?;
        let mut state = group.lock();
        state.descriptor.used_dirs_count += 1;
        for counter in [&group.used_dirs, &info.flex_group(number).used_dirs, &info.directories] {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        info.write_descriptor(&self.transaction, number, &state.descriptor, &place)
    }

    /// Writes the copies of superblock and descriptors.
    pub async fn write_copies(&self, superblock: &Superblock) -> Result<()> {
        let info = &self.info;
        let block_size = info.block_size();
        let meta_bg = info.features().incompat.contains(Incompat::META_BG);
        let table = if meta_bg { Vec::new() } else { self.descriptor_images(0, u32::MAX).await? };
        for number in (1..info.groups_count()).map(GroupNumber) {
            if !superblock.has_super(number) {
                continue;
            }
            let mut copy = superblock.clone();
            // The group's number modulo 2^16, as mke2fs has it; and a copy is never the state of a clean
            // unmount.
            copy.block_group_nr = (number.0 & 0xffff) as u16;
            copy.state &= !STATE_VALID;
            let mut block = AlignedBuffer::zeroed(block_size.len())?;
            block[..crate::format::superblock::SUPERBLOCK_SIZE].copy_from_slice(&copy.to_bytes());
            let first = info.group_first_block(number);
            let mut images = vec![(first, BlockImage::from(block))];
            images.extend((1..).zip(&table).map(|(at, image)| (first.offset(at), image.clone())));
            write_images(&**info.device(), block_size, images, BioFlags::META).await?;
        }
        if meta_bg { self.write_meta_copies().await } else { Ok(()) }
    }

    /// The descriptor table as it is, from block `first` on, at most `count` blocks.
    async fn descriptor_images(&self, first: u32, count: u32) -> Result<Vec<BlockImage>> {
        let per_block = self.info.fixed.descriptors_per_block();
        let mut images = Vec::new();
        for index in (first..).take(count as usize) {
            let Some(group) = index.checked_mul(per_block).filter(|group| *group < self.info.groups_count())
            else {
                break;
            };
            images.push(self.info.descriptor_buffer(GroupNumber(group)).await?.0.image());
        }
        Ok(images)
    }

    /// Meta block groups: each block of descriptors has copies in the second and the last group that it
    /// describes.
    async fn write_meta_copies(&self) -> Result<()> {
        let info = &self.info;
        let per_block = info.fixed.descriptors_per_block();
        let blocks = info.groups_count().div_ceil(per_block);
        for index in 0..blocks {
            let images = self.descriptor_images(index, 1).await?;
            let first = index * per_block;
            let copies: Vec<_> = [first + 1, first + per_block - 1]
                .into_iter()
                .filter(|group| *group < info.groups_count())
                .map(GroupNumber)
                .flat_map(|group| {
                    let place = info.group_first_block(group).offset(u64::from(info.has_super(group)));
                    images.iter().map(move |image| (place, image.clone()))
                })
                .collect();
            write_images(&**info.device(), info.block_size(), copies, BioFlags::META).await?;
        }
        Ok(())
    }
}
