//! statfs(2): blocks and inodes, free and in all.

use ext4_core::GroupNumber;
use ext4_core::format::features::Compat;
use ext4_core::format::superblock::Superblock;

use crate::filesystem::Filesystem;

/// What statfs(2) tells: blocks and inodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct StatFs {
    /// Bytes in a block.
    pub block_size: u32,
    /// Blocks in all, less fixed metadata and journal (as the kernel without `minixdf`).
    pub blocks: u64,
    /// Free blocks.
    pub free_blocks: u64,
    /// Free blocks that are not reserved for root.
    pub available_blocks: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Free inodes.
    pub free_inodes: u64,
}

impl Filesystem {
    /// statfs(2): blocks and inodes. Blocks that are reserved for delayed data count as used.
    #[must_use]
    pub fn statfs(&self) -> StatFs {
        let superblock = self.inner.volume.info.superblock();
        let (free, reserved) = self.inner.volume.info.free_and_reserved_blocks();
        let free_blocks = free.saturating_sub(reserved);
        StatFs {
            block_size: superblock.block_size.bytes(),
            blocks: superblock.blocks_count.saturating_sub(self.inner.overhead_blocks),
            free_blocks,
            available_blocks: free_blocks.saturating_sub(superblock.r_blocks_count),
            inodes: u64::from(superblock.inodes_count),
            free_inodes: u64::from(superblock.free_inodes_count),
        }
    }
}

/// Blocks that no file can have (s_overhead): superblocks, group descriptors, bitmaps, inode tables, and the
/// journal.
pub(crate) fn overhead(superblock: &Superblock) -> u64 {
    if superblock.overhead_blocks != 0 {
        return u64::from(superblock.overhead_blocks) << superblock.cluster_bits();
    }
    let groups = superblock.groups_count();
    let heads: u64 = (0..groups).map(|group| superblock.base_blocks(GroupNumber(group))).sum();
    let tables = u64::from(groups) * (2 + u64::from(superblock.inode_table_blocks()));
    let journal =
        if superblock.features.compat.contains(Compat::HAS_JOURNAL) && superblock.jnl_backup_type == 1 {
            let [.., high, low] = superblock.jnl_blocks;
            superblock.block_size.blocks_for(u64::from(high) << 32 | u64::from(low))
        } else {
            0
        };
    u64::from(superblock.first_data_block) + heads + tables + journal
}
