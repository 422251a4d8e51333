//! Geometry that follows from a superblock's counts: where groups begin, which of them hold copies, where
//! descriptors lie.
//!
//! The functions hold for a superblock that passed [`Superblock::parse`] (or that mkfs put together to pass
//! it); on any other they give meaningless numbers, but do not panic.

use super::*;

impl Superblock {
    /// The groups, as wide as the arithmetic needs before the count is known to fit.
    pub(super) fn groups_count_wide(&self) -> u64 {
        self.blocks_count
            .saturating_sub(u64::from(self.first_data_block))
            .div_ceil(u64::from(self.blocks_per_group.max(1)))
    }

    /// How many block groups there are. At least 1.
    #[must_use]
    pub fn groups_count(&self) -> u32 {
        // It fits: groups times inodes per group, which is at least 1, is inodes_count, a u32.
        u32::try_from(self.groups_count_wide()).unwrap_or(u32::MAX)
    }

    /// Base-two logarithm of the blocks in a cluster; 0 without bigalloc.
    #[must_use]
    pub fn cluster_bits(&self) -> u32 {
        if self.features.ro_compat.contains(RoCompat::BIGALLOC) {
            self.log_cluster_size.saturating_sub(self.block_size.bits().saturating_sub(10)).min(31)
        } else {
            0
        }
    }

    /// The bits of a block bitmap that stand for blocks (clusters) of a whole group: at most a block's.
    /// Without bigalloc `s_clusters_per_group` means nothing, as in the kernel.
    #[must_use]
    pub fn block_bitmap_bits(&self) -> u32 {
        if self.features.ro_compat.contains(RoCompat::BIGALLOC) {
            self.clusters_per_group
        } else {
            self.blocks_per_group
        }
    }

    /// Inodes in one block of the inode table. At least 1.
    #[must_use]
    pub fn inodes_per_block(&self) -> u32 {
        self.block_size.bytes().checked_div(u32::from(self.inode_size)).unwrap_or(1).max(1)
    }

    /// Blocks of one group's inode table.
    #[must_use]
    pub fn inode_table_blocks(&self) -> u32 {
        self.inodes_per_group.div_ceil(self.inodes_per_block())
    }

    /// Group descriptors in one block. At least 1.
    #[must_use]
    pub fn descriptors_per_block(&self) -> u32 {
        self.block_size.bytes().checked_div(u32::from(self.desc_size)).unwrap_or(1).max(1)
    }

    /// Blocks of the whole descriptor table.
    #[must_use]
    pub fn descriptor_blocks(&self) -> u64 {
        self.groups_count_wide().div_ceil(u64::from(self.descriptors_per_block()))
    }

    /// Groups in one flex group; 1 without flex_bg.
    #[must_use]
    pub fn groups_per_flex(&self) -> u32 {
        if self.features.incompat.contains(Incompat::FLEX_BG) && self.log_groups_per_flex < 32 {
            1_u32.checked_shl(u32::from(self.log_groups_per_flex)).unwrap_or(1)
        } else {
            1
        }
    }

    /// The first block of a group.
    #[must_use]
    pub fn group_first_block(&self, group: GroupNumber) -> BlockNumber {
        let offset = u64::from(group.0).saturating_mul(u64::from(self.blocks_per_group));
        BlockNumber(u64::from(self.first_data_block).saturating_add(offset))
    }

    /// How many blocks a group has; the last one may have fewer than the others, one past the end has none.
    #[must_use]
    pub fn group_blocks(&self, group: GroupNumber) -> u32 {
        let left = self.blocks_count.saturating_sub(self.group_first_block(group).0);
        u32::try_from(left).unwrap_or(u32::MAX).min(self.blocks_per_group)
    }

    /// The group of a block, and the block's number within it; `None` outside the file system.
    #[must_use]
    pub fn group_of_block(&self, block: BlockNumber) -> Option<(GroupNumber, u32)> {
        if block.0 >= self.blocks_count {
            return None;
        }
        let offset = block.0.checked_sub(u64::from(self.first_data_block))?;
        let per_group = u64::from(self.blocks_per_group);
        let group = u32::try_from(offset.checked_div(per_group)?).ok()?;
        Some((GroupNumber(group), u32::try_from(offset.checked_rem(per_group)?).ok()?))
    }

    /// The group of an inode, and the inode's index within it; `None` if there is no such inode.
    #[must_use]
    pub fn group_of_inode(&self, inode: InodeNumber) -> Option<(GroupNumber, u32)> {
        if inode.0 > self.inodes_count {
            return None;
        }
        let index = inode.0.checked_sub(1)?;
        Some((
            GroupNumber(index.checked_div(self.inodes_per_group)?),
            index.checked_rem(self.inodes_per_group)?,
        ))
    }

    /// Returns true if a group begins with a copy of the superblock. Source: kernel documentation, "Block and
    /// Inode Allocation Policy" and "Super Block" (sparse_super, sparse_super2).
    #[must_use]
    pub fn has_super(&self, group: GroupNumber) -> bool {
        let group = group.0;
        if group == 0 {
            return true;
        }
        if self.features.compat.contains(Compat::SPARSE_SUPER2) {
            return self.backup_bgs.contains(&group);
        }
        group == 1
            || !self.features.ro_compat.contains(RoCompat::SPARSE_SUPER)
            || [3_u32, 5, 7].iter().any(|base| {
                let mut power = u64::from(*base);
                while power < u64::from(group) {
                    power = power.saturating_mul(u64::from(*base));
                }
                power == u64::from(group)
            })
    }

    /// Blocks of descriptors that stand right behind the superblock copy of a group (which must have one),
    /// without the reserved ones: all of them, or those before the first meta block group.
    fn descriptor_blocks_behind_super(&self) -> u64 {
        if self.features.incompat.contains(Incompat::META_BG) {
            u64::from(self.first_meta_bg)
        } else {
            self.descriptor_blocks()
        }
    }

    /// The meta block group of a group, if descriptors are laid out so there.
    fn meta_group(&self, group: GroupNumber) -> Option<u32> {
        let meta = group.0.checked_div(self.descriptors_per_block())?;
        (self.features.incompat.contains(Incompat::META_BG) && meta >= self.first_meta_bg).then_some(meta)
    }

    /// How many blocks lie before the superblock in its group: the boot block, if blocks of 1 KiB are counted
    /// from 0 (bigalloc). Source: what mke2fs makes.
    fn boot_blocks(&self, group: GroupNumber) -> u64 {
        if group.0 != 0 {
            return 0;
        }
        self.superblock_block().0.saturating_sub(u64::from(self.first_data_block))
    }

    /// How many blocks at the start of a group hold the superblock, descriptors and blocks reserved for
    /// descriptors. Source: kernel documentation, "Layout" and "Meta Block Groups".
    #[must_use]
    pub fn base_blocks(&self, group: GroupNumber) -> u64 {
        let superblock = u64::from(self.has_super(group));
        match self.meta_group(group) {
            Some(_) => {
                // A meta block group keeps its one descriptor block in its first, second and last group.
                let per_block = self.descriptors_per_block();
                let within = group.0.checked_rem(per_block).unwrap_or(0);
                let holds = within == 0 || within == 1 || within == per_block.saturating_sub(1);
                superblock.saturating_add(u64::from(holds)).saturating_add(self.boot_blocks(group))
            }
            None if superblock == 1 => self
                .descriptor_blocks_behind_super()
                .saturating_add(u64::from(self.reserved_gdt_blocks))
                .saturating_add(1)
                .saturating_add(self.boot_blocks(group)),
            None => 0,
        }
    }

    /// Where block `index` of the descriptor table lies: the primary one.
    #[must_use]
    pub fn descriptor_block(&self, index: u32) -> BlockNumber {
        let first_group = u64::from(index).saturating_mul(u64::from(self.descriptors_per_block()));
        let group = GroupNumber(u32::try_from(first_group).unwrap_or(u32::MAX));
        match self.meta_group(group) {
            Some(_) => self
                .group_first_block(group)
                .offset(self.boot_blocks(group).saturating_add(u64::from(self.has_super(group)))),
            None => self.superblock_block().offset(u64::from(index).saturating_add(1)),
        }
    }

    /// The block that holds the primary superblock: 1 with 1 KiB blocks, otherwise 0.
    #[must_use]
    pub fn superblock_block(&self) -> BlockNumber {
        BlockNumber(SUPERBLOCK_OFFSET >> self.block_size.bits())
    }
}
