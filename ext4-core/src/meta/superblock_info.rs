//! A file system that has been opened: its superblock, geometry, group descriptors and counters (the kernel's
//! `ext4_sb_info`).

use std::sync::Arc;

use super::{BufferCache, Transaction};
use crate::device::BlockDevice;
use crate::environment::Environment;
use crate::error::Result;
use crate::format::features::Features;
use crate::format::superblock::Superblock;
use crate::types::{BlockNumber, BlockSize, GroupNumber, InodeNumber};

/// See the module.
pub struct SuperblockInfo {
    /// Metadata blocks.
    pub cache: Arc<BufferCache>,
    /// Time and randomness.
    pub environment: Arc<dyn Environment>,
}

impl SuperblockInfo {
    /// Reads and verifies superblock and group descriptors. Refuses unknown incompat features by name; with
    /// `read_only` false also unknown ro_compat ones. Does not look at the journal.
    pub async fn load(
        _device: Arc<dyn BlockDevice>,
        _cache_capacity: usize,
        _environment: Arc<dyn Environment>,
        _read_only: bool,
    ) -> Result<Arc<Self>> {
        todo!()
    }

    /// The device underneath.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        self.cache.device()
    }

    /// The block size.
    pub fn block_size(&self) -> BlockSize {
        self.cache.block_size()
    }

    /// The feature masks. They do not change while the file system is open, but for `RECOVER` and `ORPHAN_PRESENT`,
    /// for which ask [`SuperblockInfo::superblock`].
    pub fn features(&self) -> Features {
        todo!()
    }

    /// The seed of all metadata checksums: crc32c of the UUID, or s_checksum_seed.
    pub fn checksum_seed(&self) -> u32 {
        todo!()
    }

    /// Bytes of one inode on the device.
    pub fn inode_size(&self) -> u16 {
        todo!()
    }

    /// All blocks of the file system.
    pub fn blocks_count(&self) -> u64 {
        todo!()
    }

    /// All inodes.
    pub fn inodes_count(&self) -> u32 {
        todo!()
    }

    /// The block group that holds `inode`'s table slot.
    pub fn group_of_inode(&self, _inode: InodeNumber) -> GroupNumber {
        todo!()
    }

    /// The group of a block.
    pub fn group_of_block(&self, _block: BlockNumber) -> GroupNumber {
        todo!()
    }

    /// The block and the byte in it where `inode` lies.
    ///
    /// # Errors
    /// Corrupt where the number is 0 or past the last inode.
    pub async fn inode_location(&self, _inode: InodeNumber) -> Result<(BlockNumber, usize)> {
        todo!()
    }

    /// True when `count` blocks from `first` lie in the file system and are no part of its fixed metadata
    /// (superblocks, descriptors, bitmaps, inode tables): what a file's mapping may point to
    /// (the kernel's `ext4_inode_block_valid`).
    pub fn is_data_range(&self, _first: BlockNumber, _count: u64) -> bool {
        todo!()
    }

    /// A copy of the superblock as it is now; the free counts are up to date.
    pub fn superblock(&self) -> Superblock {
        todo!()
    }

    /// Changes the superblock as part of `transaction`.
    pub async fn modify_superblock(
        &self,
        _transaction: &dyn Transaction,
        _change: &mut (dyn FnMut(&mut Superblock) + Send),
    ) -> Result<()> {
        todo!()
    }

    /// Promises `count` blocks to delayed allocation; `ENOSPC` where they are not there (reserved blocks kept back).
    pub fn reserve_blocks(&self, _count: u64) -> Result<()> {
        todo!()
    }

    /// Takes a promise back.
    pub fn release_reserved_blocks(&self, _count: u64) {
        todo!()
    }

    /// Blocks that are free now, and of them those promised.
    pub fn free_and_reserved_blocks(&self) -> (u64, u64) {
        todo!()
    }
}
