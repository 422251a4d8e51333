//! Writing a new file system: the old superblock away, tables zeroed, descriptors and bitmaps, the first inodes, copies,
//! and last the new superblock.

use std::sync::Arc;

use super::inodes;
use super::layout::Layout;
use super::plan::Plan;
use super::{JournalSuperblock, MkfsOptions};
use crate::device::{AlignedBuffer, BioFlags, BlockDevice, BlockImage};
use crate::environment::{Environment, FixedEnvironment};
use crate::error::{Errno, Error, Result};
use crate::format::bitmap;
use crate::format::features::Incompat;
use crate::format::group_descriptor::GroupFlags;
use crate::format::superblock::{STATE_VALID, Superblock};
use crate::meta::buffer::write_images;
use crate::meta::inode_allocator::initialise_block_bitmap;
use crate::meta::journal_inode::zero;
use crate::meta::superblock_info::context;
use crate::meta::superblock_info::group::BitmapOf;
use crate::meta::{BlockKind, BufferCache, DirectTransaction, SuperblockInfo};
use crate::types::{GroupNumber, InodeNumber};

/// Memory for blocks on their way to the device.
const CACHE: usize = 16 << 20;
/// Write out when so many blocks are dirty.
const MOST_DIRTY: usize = 4096;
/// What may hold another system's signature, at both ends of the device, in bytes. Source: mke2fs zeroes 64 KiB at
/// the end for the sake of RAID superblocks, and the boot block and superblock at the start.
const SIGNATURES: u64 = 65536;

/// The making of one file system.
pub(super) struct Maker<'a> {
    pub info: SuperblockInfo,
    pub transaction: DirectTransaction,
    pub options: &'a MkfsOptions,
    pub plan: &'a Plan,
}

pub(super) async fn write(
    device: Arc<dyn BlockDevice>,
    options: &MkfsOptions,
    plan: &Plan,
    layout: &Layout,
    environment: &dyn Environment,
    journal_superblock: JournalSuperblock<'_>,
) -> Result<()> {
    let superblock = &plan.superblock;
    erase_signatures(&*device, superblock).await?;
    let zeroed = zero_inode_tables(&*device, superblock, layout).await?;
    // The descriptor table stays in memory to the end: a cache that cannot evict it must have room for it.
    let table = usize::try_from(superblock.descriptor_blocks() << superblock.block_size.bits())
        .map_err(|_| Error::posix(Errno::ENOMEM, "group descriptors"))?;
    let capacity = CACHE + table;
    let cache = BufferCache::new(device, superblock.block_size, capacity);
    let transaction = DirectTransaction::new(Arc::clone(&cache));
    let mut seed = [0; 8];
    environment.random(&mut seed);
    let frozen = Arc::new(FixedEnvironment::new(environment.now(), u64::from_le_bytes(seed)));
    let descriptors: Vec<_> = layout
        .descriptors
        .iter()
        .map(|descriptor| {
            let mut descriptor = *descriptor;
            descriptor.flags.set(GroupFlags::INODE_ZEROED, zeroed && superblock.features.group_checksums());
            Some(descriptor)
        })
        .collect();
    create_descriptor_table(&cache, &transaction, superblock, &descriptors)?;
    // Its place holds no superblock that could be read before the last step, which is the first to change the buffer.
    let superblock_buffer =
        cache.create(&transaction, superblock.superblock_block(), BlockKind::Superblock)?;
    let info = SuperblockInfo::assemble(
        cache,
        frozen,
        superblock.clone(),
        superblock_buffer,
        &descriptors,
        Vec::new(),
        capacity,
        false,
    )?;
    let maker = Maker { info, transaction, options, plan };
    maker.initialise_groups(layout).await?;
    let changes = inodes::create(&maker, journal_superblock).await?;
    maker.info.cache.write_dirty().await?;
    // From here on only the superblock is missing.
    let overhead = overhead(superblock, layout, plan);
    let mut finished = maker.info.superblock();
    changes.apply(&mut finished);
    finished.overhead_blocks = overhead;
    maker.write_copies(&finished).await?;
    maker.info.device().flush().await?;
    maker.info.write_superblock(&mut |superblock| *superblock = finished.clone()).await
}

/// Clusters of fixed metadata and journal, as mke2fs counts them; 0 (not known) where the field is too small.
fn overhead(superblock: &Superblock, layout: &Layout, plan: &Plan) -> u32 {
    let free: u64 = layout.descriptors.iter().map(|descriptor| u64::from(descriptor.free_blocks_count)).sum();
    let bits = superblock.cluster_bits();
    let journal = u64::from(plan.journal_blocks).div_ceil(1 << bits);
    u32::try_from((superblock.blocks_count >> bits).saturating_sub(free) + journal).unwrap_or(0)
}

async fn erase_signatures(device: &dyn BlockDevice, superblock: &Superblock) -> Result<()> {
    let size = superblock.blocks_count << superblock.block_size.bits();
    zero(device, 0, SIGNATURES.min(size)).await?;
    zero(device, size.saturating_sub(SIGNATURES).max(SIGNATURES), size).await?;
    // An old superblock must not come back once new structures are there.
    device.flush().await
}

/// Zeroes what must be zero of the inode tables; true where that is all of them.
async fn zero_inode_tables(
    device: &dyn BlockDevice,
    superblock: &Superblock,
    layout: &Layout,
) -> Result<bool> {
    let all = !superblock.features.group_checksums() || device.geometry().write_zeroes;
    let mut tables = layout.inode_tables(superblock);
    if !all {
        // Slots past these are covered by itable_unused, which grows by one inode at a time.
        let used = superblock.first_ino + 2;
        let groups = used.div_ceil(superblock.inodes_per_group) as usize;
        let blocks = used.min(superblock.inodes_per_group).div_ceil(superblock.inodes_per_block());
        tables = layout
            .descriptors
            .iter()
            .take(groups)
            .map(|descriptor| descriptor.inode_table.0..descriptor.inode_table.0 + u64::from(blocks))
            .collect();
    }
    let bits = superblock.block_size.bits();
    for table in tables {
        zero(device, table.start << bits, table.end << bits).await?;
    }
    Ok(all)
}

fn create_descriptor_table(
    cache: &BufferCache,
    transaction: &DirectTransaction,
    superblock: &Superblock,
    descriptors: &[Option<crate::format::group_descriptor::GroupDescriptor>],
) -> Result<()> {
    let context = context(superblock);
    let per_block = superblock.descriptors_per_block() as usize;
    for (index, chunk) in descriptors.chunks(per_block).enumerate() {
        // There are fewer blocks than groups, whose count fits.
        let kind = BlockKind::GroupDescriptors { first: GroupNumber((index * per_block) as u32) };
        let buffer = cache.create(transaction, superblock.descriptor_block(index as u32), kind)?;
        buffer.modify(transaction, |bytes| {
            for (within, descriptor) in chunk.iter().flatten().enumerate() {
                let offset = within * usize::from(superblock.desc_size);
                let group = GroupNumber((index * per_block + within) as u32);
                descriptor.write(&context, group, &mut bytes[offset..]);
            }
        })?;
    }
    Ok(())
}

impl Maker<'_> {
    /// Writes the bitmaps that must be there.
    async fn initialise_groups(&self, layout: &Layout) -> Result<()> {
        let info = &self.info;
        // The reserved inodes may take more than the first group, where a group has fewer.
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
        use std::sync::atomic::Ordering;
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
        use std::sync::atomic::Ordering;
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
    async fn write_copies(&self, superblock: &Superblock) -> Result<()> {
        let info = &self.info;
        let block_size = info.block_size();
        let meta_bg = info.features().incompat.contains(Incompat::META_BG);
        let table = if meta_bg { Vec::new() } else { self.descriptor_images(0, u32::MAX).await? };
        for number in (1..info.groups_count()).map(GroupNumber) {
            if !superblock.has_super(number) {
                continue;
            }
            let mut copy = superblock.clone();
            // The group's number modulo 2^16, as mke2fs has it; and a copy is never the state of a clean unmount.
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

    /// Meta block groups: each block of descriptors has copies in the second and the last group that it describes.
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
