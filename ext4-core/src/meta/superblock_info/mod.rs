//! A file system that has been opened: its superblock, geometry, group descriptors and counters (the kernel's
//! `ext4_sb_info`).
//!
//! Invariants:
//! - What is in [`SuperblockInfo`] without a lock does not change while the file system is open: geometry,
//!   features (but for `RECOVER` and `ORPHAN_PRESENT`), places of bitmaps and tables.
//! - The superblock in memory and the one in its buffer agree whenever its lock is free, but for the free
//!   counts: those live in the counters here and reach the superblock whenever it is written. After a crash
//!   they are taken from the group descriptors, as the kernel does.
//!
//! Locks: the superblock's, then the buffer's; a group's state (see `group.rs`); the books of free blocks,
//! innermost.

pub(crate) mod group;
mod load;
pub(crate) mod space;
mod zones;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::orphan::OrphanLinks;
use super::{Buffer, BufferCache, DirectTransaction, FreedBlocks, Owner, Transaction};
use crate::device::BlockDevice;
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::format::features::Features;
use crate::format::group_descriptor::{ChecksumContext, GroupDescriptor};
use crate::format::inode::Inode;
use crate::format::superblock::{SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, Superblock};
use crate::types::{BlockNumber, BlockSize, GroupNumber, InodeNumber};
use group::Group;
pub(crate) use load::context;
use space::Space;
use zones::SystemZones;

/// What a flex group's groups have together, and where its streams of allocations go on.
#[derive(Debug, Default)]
pub(crate) struct FlexGroup {
    /// Free inodes.
    pub free_inodes: AtomicU32,
    /// Directories.
    pub used_dirs: AtomicU32,
    /// Where the next run of data without a goal of its own goes; 0: nowhere yet.
    pub next_data: AtomicU64,
    /// The same for metadata.
    pub next_metadata: AtomicU64,
}

/// See the module.
pub struct SuperblockInfo {
    /// Metadata blocks.
    pub cache: Arc<BufferCache>,
    /// Time and randomness.
    pub environment: Arc<dyn Environment>,
    /// The superblock as it was when the file system was opened: its geometry holds as long as this value
    /// lives.
    pub(crate) fixed: Superblock,
    seed: u32,
    pub(crate) context: ChecksumContext,
    current: Mutex<Superblock>,
    superblock_buffer: Buffer,
    zones: SystemZones,
    pub(crate) groups: Arc<[Group]>,
    pub(crate) flex_groups: Arc<[FlexGroup]>,
    descriptors: Box<[OnceCell<Buffer>]>,
    pub(crate) space: Arc<Space>,
    pub(crate) free_inodes: AtomicU32,
    pub(crate) directories: AtomicU32,
    /// No group has a longer run of allocatable blocks; raised when blocks come back.
    pub(crate) longest_run: Arc<AtomicU64>,
    /// Where the search for a group for the next top-level directory begins.
    pub(crate) next_top_level: AtomicU32,
    /// What links the inodes on the list of orphans.
    pub(crate) orphan_links: OrphanLinks,
    /// Groups whose bitmaps are in memory, oldest first.
    loaded: Mutex<VecDeque<GroupNumber>>,
    most_loaded: usize,
    bad_groups: Mutex<Vec<(GroupNumber, Error)>>,
    /// Where freed blocks go before they can be allocated again.
    pub(crate) freed_blocks: OnceLock<Arc<dyn FreedBlocks>>,
}

impl fmt::Debug for SuperblockInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SuperblockInfo({} blocks in {} groups)", self.blocks_count(), self.groups.len())
    }
}

impl SuperblockInfo {
    /// The device underneath.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        self.cache.device()
    }

    /// The block size.
    pub fn block_size(&self) -> BlockSize {
        self.cache.block_size()
    }

    /// The feature masks. They do not change while the file system is open, but for `RECOVER` and
    /// `ORPHAN_PRESENT`, for which ask [`SuperblockInfo::superblock`].
    pub fn features(&self) -> Features {
        self.fixed.features
    }

    /// The seed of all metadata checksums: crc32c of the UUID, or s_checksum_seed.
    pub fn checksum_seed(&self) -> u32 {
        self.seed
    }

    /// As [`SuperblockInfo::checksum_seed`]; `None` without metadata_csum.
    pub fn metadata_seed(&self) -> Option<u32> {
        self.features().metadata_csum().then_some(self.seed)
    }

    /// `inode` as the owner of metadata blocks.
    pub fn owner(&self, inode: &Inode) -> Owner {
        Owner::new(inode, self.metadata_seed())
    }

    /// Bytes of one inode on the device.
    pub fn inode_size(&self) -> u16 {
        self.fixed.inode_size
    }

    /// All blocks of the file system.
    pub fn blocks_count(&self) -> u64 {
        self.fixed.blocks_count
    }

    /// All inodes.
    pub fn inodes_count(&self) -> u32 {
        self.fixed.inodes_count
    }

    /// Free inodes.
    pub fn free_inodes_count(&self) -> u32 {
        self.free_inodes.load(Ordering::Relaxed)
    }

    /// How many block groups there are.
    pub fn groups_count(&self) -> u32 {
        self.fixed.groups_count()
    }

    /// The first block of a group.
    pub fn group_first_block(&self, group: GroupNumber) -> BlockNumber {
        self.fixed.group_first_block(group)
    }

    /// A copy of a group's descriptor as it is now.
    ///
    /// # Errors
    /// Corrupt if there is no such group.
    pub fn group_descriptor(&self, group: GroupNumber) -> Result<GroupDescriptor> {
        Ok(self.group(group)?.descriptor())
    }

    /// The block group that holds `inode`'s table slot; the last one for a number past the last inode.
    pub fn group_of_inode(&self, inode: InodeNumber) -> GroupNumber {
        let last = GroupNumber(self.groups_count().saturating_sub(1));
        if inode.0 == 0 {
            return GroupNumber(0);
        }
        self.fixed.group_of_inode(inode).map_or(last, |(group, _)| group)
    }

    /// The group of a block; the last one for a block past the end.
    pub fn group_of_block(&self, block: BlockNumber) -> GroupNumber {
        let last = GroupNumber(self.groups_count().saturating_sub(1));
        if block.0 < u64::from(self.fixed.first_data_block) {
            return GroupNumber(0);
        }
        self.fixed.group_of_block(block).map_or(last, |(group, _)| group)
    }

    /// The block and the byte in it where `inode` lies.
    ///
    /// # Errors
    /// Corrupt if the number is 0 or past the last inode, or its group's descriptor is bad.
    pub async fn inode_location(&self, inode: InodeNumber) -> Result<(BlockNumber, usize)> {
        let (number, index) = self.fixed.group_of_inode(inode).ok_or_else(|| {
            Error::corrupt(format!("inode {inode}"), format!("is not within 1 to {}", self.inodes_count()))
        })?;
        let group = self.group(number)?;
        if group.bad_descriptor {
            return Err(Error::corrupt(format!("group {number}: descriptor"), "is bad"));
        }
        let per_block = self.fixed.inodes_per_block();
        let block = group.inode_table.offset(u64::from(index / per_block));
        Ok((block, (index % per_block) as usize * usize::from(self.fixed.inode_size)))
    }

    /// Returns true if `count` blocks from `first` lie in the file system and are no part of its fixed
    /// metadata (superblocks, descriptors, bitmaps, inode tables): what a file's mapping may point to (the
    /// kernel's `ext4_inode_block_valid`). False for no blocks.
    pub fn is_data_range(&self, first: BlockNumber, count: u64) -> bool {
        let Some(end) = first.0.checked_add(count) else { return false };
        first.0 > u64::from(self.fixed.first_data_block)
            && count > 0
            && end <= self.fixed.blocks_count
            && self.zones.overlapping(first.0..end).next().is_none()
    }

    /// Returns true if a group begins with a copy of the superblock.
    pub fn has_super(&self, group: GroupNumber) -> bool {
        self.fixed.has_super(group)
    }

    /// The superblock as it was when the file system was opened: for what does not change (sizes, hash seed,
    /// UUID …), without a copy or a lock.
    pub fn opened_superblock(&self) -> &Superblock {
        &self.fixed
    }

    /// A copy of the superblock as it is now; the free counts are up to date.
    pub fn superblock(&self) -> Superblock {
        let mut superblock = self.current.lock().clone();
        self.count_free(&mut superblock);
        superblock
    }

    fn count_free(&self, superblock: &mut Superblock) {
        superblock.free_blocks_count = self.space.counts().0 << self.cluster_bits();
        superblock.free_inodes_count = self.free_inodes_count();
    }

    /// Changes the superblock as part of `transaction`. The free counts that `change` sees, and that are
    /// written, are those of now; `wtime` becomes the time of now. Root's share follows `r_blocks_count`.
    ///
    /// # Errors
    /// Those of the transaction.
    pub async fn modify_superblock(
        &self,
        transaction: &dyn Transaction,
        change: &mut (dyn FnMut(&mut Superblock) + Send),
    ) -> Result<()> {
        let mut current = self.current.lock();
        let mut changed = current.clone();
        self.count_free(&mut changed);
        changed.wtime = self.environment.now().seconds;
        change(&mut changed);
        let offset = self.superblock_offset();
        self.superblock_buffer.modify(transaction, |bytes| {
            bytes[offset..offset + SUPERBLOCK_SIZE].copy_from_slice(&changed.to_bytes());
        })?;
        *current = changed;
        Ok(())
    }

    /// Changes the superblock past any journal and writes it at once, durably: what has to be on the device
    /// before the first transaction (`RECOVER`), after the last one, or when the journal has stopped
    /// (errors). Also what other operations changed in the superblock goes out, and without a journal every
    /// dirty block.
    ///
    /// # Errors
    /// Those of the device.
    pub async fn write_superblock(&self, change: &mut (dyn FnMut(&mut Superblock) + Send)) -> Result<()> {
        let direct = DirectTransaction::new(Arc::clone(&self.cache));
        self.modify_superblock(&direct, change).await?;
        self.cache.write_dirty().await?;
        self.device().flush().await
    }

    /// Writes the free counts into the superblock as part of `transaction`: for sync and unmount.
    ///
    /// # Errors
    /// Those of the transaction.
    pub async fn store_free_counts(&self, transaction: &dyn Transaction) -> Result<()> {
        self.modify_superblock(transaction, &mut |_| {}).await
    }

    /// Where in its block the superblock begins.
    fn superblock_offset(&self) -> usize {
        superblock_offset(self.block_size())
    }

    /// Base-two logarithm of the blocks of a cluster, the unit of allocation; 0 without bigalloc.
    pub fn cluster_bits(&self) -> u32 {
        self.fixed.cluster_bits()
    }

    /// The 512-byte sectors that a cluster adds to `i_blocks`; those of a block without bigalloc.
    pub fn cluster_sectors(&self) -> u64 {
        self.block_size().sectors() << self.cluster_bits()
    }

    /// Reserves `count` blocks (clusters with bigalloc) for delayed allocation. Root's blocks, and blocks
    /// whose freeing has not committed, are kept back.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub fn reserve_blocks(&self, count: u64) -> Result<()> {
        self.space.reserve(count)
    }

    /// Reserves `count` clusters that were just freed for the delayed blocks which share them, committed or
    /// not: the writeback that allocates them may have to wait for a commit.
    pub fn reserve_freed_clusters(&self, count: u64) {
        self.space.reserve_freed(count);
    }

    /// Ends a reservation: `count` in the unit of [`SuperblockInfo::reserve_blocks`].
    pub fn release_reserved_blocks(&self, count: u64) {
        if count > 0 {
            self.space.release(count);
        }
    }

    /// Blocks that are free now, and of them those reserved: whole clusters with bigalloc.
    pub fn free_and_reserved_blocks(&self) -> (u64, u64) {
        let (free, reserved, _) = self.space.counts();
        (free << self.cluster_bits(), reserved << self.cluster_bits())
    }

    /// Blocks that were freed in transactions which have not committed: they can be allocated after a commit.
    /// On `ENOSPC` with some of these, commit and try again.
    pub fn blocks_awaiting_commit(&self) -> u64 {
        self.space.counts().2 << self.cluster_bits()
    }

    /// Allows (or forbids again) the use of the blocks kept for root, which root may use in the kernel. At
    /// first they may not be used.
    pub fn allow_root_blocks(&self, allow: bool) {
        let kept = if allow { 0 } else { self.current.lock().r_blocks_count };
        self.space.keep_for_root(kept >> self.cluster_bits());
    }

    /// Groups whose bitmaps or descriptors were found to be wrong, and why; nothing is allocated from them.
    pub fn bad_groups(&self) -> Vec<(GroupNumber, Error)> {
        self.bad_groups.lock().clone()
    }

    /// The flex group of a group.
    pub(crate) fn flex_group(&self, group: GroupNumber) -> &FlexGroup {
        let index = group.0 / self.fixed.groups_per_flex();
        &self.flex_groups[(index as usize).min(self.flex_groups.len() - 1)]
    }

    fn count_inodes(&self, group: GroupNumber, change: impl FnOnce(&FlexGroup)) {
        change(self.flex_group(group));
    }
}

/// Where in its block the superblock begins.
fn superblock_offset(block_size: BlockSize) -> usize {
    // Below 1,024: it fits.
    (SUPERBLOCK_OFFSET % u64::from(block_size.bytes())) as usize
}
