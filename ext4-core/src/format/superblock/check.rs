//! The verifier of a superblock: what its geometry must satisfy before anything else is read.
//!
//! The rules are those of the kernel's `ext4_fill_super` and its helpers, plus e2fsck's on
//! `s_first_data_block`.

use alloc::format;

use zerocopy::FromBytes;

use super::{CHECKSUM_OFFSET, CHECKSUM_TYPE_CRC32C, MAGIC, RawSuperblock, SUPERBLOCK_SIZE, Superblock};
use crate::checksum::crc32c;
use crate::error::{Error, Result};
use crate::format::features::{Incompat, RoCompat};
use crate::types::BlockSize;

fn corrupt(problem: impl Into<alloc::string::String>) -> Error {
    Error::corrupt("superblock", problem)
}

impl Superblock {
    /// Reads a superblock from its 1,024 bytes.
    ///
    /// # Errors
    /// - Corrupt if it is no ext superblock, its checksum is wrong, or its geometry contradicts itself.
    /// - Unsupported, with the feature's name, if not even the geometry can be understood without the
    ///   feature.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let (raw, _) = RawSuperblock::ref_from_prefix(bytes)
            .map_err(|_| corrupt(format!("{} bytes are fewer than {SUPERBLOCK_SIZE}", bytes.len())))?;
        let magic = raw.s_magic.get();
        if magic != MAGIC {
            return Err(corrupt(format!("magic {magic:#x} is not {MAGIC:#x}")));
        }
        let revision = raw.s_rev_level.get();
        if revision > 1 {
            return Err(Error::Unsupported(format!("superblock revision {revision}")));
        }
        let features_have_checksums =
            RoCompat::from_bits_retain(raw.s_feature_ro_compat.get()).contains(RoCompat::METADATA_CSUM);
        if features_have_checksums {
            let stored = raw.s_checksum.get();
            let computed = crc32c(!0, bytes.get(..CHECKSUM_OFFSET).unwrap_or_default());
            if stored != computed {
                return Err(corrupt(format!("checksum {stored:#010x} is not {computed:#010x}")));
            }
            if raw.s_checksum_type != CHECKSUM_TYPE_CRC32C {
                return Err(Error::Unsupported(format!("checksum type {}", raw.s_checksum_type)));
            }
        }
        let block_size =
            raw.s_log_block_size.get().checked_add(10).and_then(BlockSize::from_bits).ok_or_else(|| {
                corrupt(format!("log_block_size {} is above 6", raw.s_log_block_size.get()))
            })?;
        let superblock = Self::from_raw(*raw, block_size);
        if superblock.features.incompat.contains(Incompat::JOURNAL_DEV) {
            return Err(Error::Unsupported(
                "journal_dev: this is an external journal, no file system".into(),
            ));
        }
        superblock.check_inodes()?;
        superblock.check_groups()?;
        superblock.check_descriptors()?;
        Ok(superblock)
    }

    /// Checks that the file system fits on a device of `size` bytes.
    ///
    /// # Errors
    /// Corrupt if it does not.
    pub fn check_device_size(&self, size: u64) -> Result<()> {
        let available = size >> self.block_size.bits();
        if self.blocks_count > available {
            return Err(corrupt(format!(
                "{} blocks of {} bytes do not fit on a device of {size} bytes",
                self.blocks_count,
                self.block_size.bytes()
            )));
        }
        Ok(())
    }

    fn check_inodes(&self) -> Result<()> {
        let size = self.inode_size;
        if size < 128 || !size.is_power_of_two() || u32::from(size) > self.block_size.bytes() {
            return Err(corrupt(format!("inode size {size} is no power of two from 128 to the block size")));
        }
        if self.first_ino < 11 || self.first_ino > self.inodes_count {
            return Err(corrupt(format!(
                "first inode {} is not within 11 to {}",
                self.first_ino, self.inodes_count
            )));
        }
        let bits = self.block_size.bytes().saturating_mul(8);
        let per_block = self.inodes_per_block();
        if self.inodes_per_group < per_block || self.inodes_per_group > bits {
            return Err(corrupt(format!(
                "{} inodes per group are not within {per_block} to {bits}",
                self.inodes_per_group
            )));
        }
        Ok(())
    }

    fn check_groups(&self) -> Result<()> {
        let bits = self.block_size.bytes().saturating_mul(8);
        let bigalloc = self.features.ro_compat.contains(RoCompat::BIGALLOC);
        let log_block_size = self.block_size.bits().saturating_sub(10);
        if bigalloc {
            // The kernel's EXT4_MAX_CLUSTER_LOG_SIZE is 30, in bytes; here the unit is KiB.
            if self.log_cluster_size < log_block_size || self.log_cluster_size > 20 {
                return Err(corrupt(format!("log_cluster_size {} is out of range", self.log_cluster_size)));
            }
            let expected = u64::from(self.clusters_per_group) << self.cluster_bits();
            if self.clusters_per_group > bits || u64::from(self.blocks_per_group) != expected {
                return Err(corrupt(format!(
                    "{} blocks and {} clusters per group do not agree",
                    self.blocks_per_group, self.clusters_per_group
                )));
            }
        } else {
            if self.log_cluster_size != log_block_size {
                return Err(corrupt(format!(
                    "log_cluster_size {} is not the block size's {log_block_size}",
                    self.log_cluster_size
                )));
            }
            if self.blocks_per_group > bits {
                return Err(corrupt(format!(
                    "{} blocks per group are more than a bitmap's {bits}",
                    self.blocks_per_group
                )));
            }
        }
        if self.blocks_per_group == 0 {
            return Err(corrupt("no blocks per group"));
        }
        let first = u32::from(self.block_size == BlockSize::KIB_1 && self.cluster_bits() == 0);
        if self.first_data_block != first {
            return Err(corrupt(format!("first data block {} is not {first}", self.first_data_block)));
        }
        if self.blocks_count <= u64::from(self.first_data_block) {
            return Err(corrupt(format!("{} blocks are none", self.blocks_count)));
        }
        if self.blocks_count > 1 << 48 {
            return Err(corrupt(format!("{} blocks are more than 2^48", self.blocks_count)));
        }
        let groups = self.groups_count_wide();
        let inodes = groups.saturating_mul(u64::from(self.inodes_per_group));
        if inodes != u64::from(self.inodes_count) {
            return Err(corrupt(format!(
                "{} inodes are not {groups} groups of {}",
                self.inodes_count, self.inodes_per_group
            )));
        }
        Ok(())
    }

    fn check_descriptors(&self) -> Result<()> {
        if self.features.bit64() {
            let size = self.desc_size;
            // 1,024: the kernel's EXT4_MAX_DESC_SIZE, the smallest block.
            if !(64..=1024).contains(&size) || !size.is_power_of_two() {
                return Err(corrupt(format!("descriptor size {size} is no power of two from 64 to 1024")));
            }
        }
        let most = self.block_size.bytes() >> 2;
        if u32::from(self.reserved_gdt_blocks) > most {
            return Err(corrupt(format!(
                "{} reserved descriptor blocks are more than {most}",
                self.reserved_gdt_blocks
            )));
        }
        if self.features.incompat.contains(Incompat::META_BG)
            && u64::from(self.first_meta_bg) >= self.descriptor_blocks()
        {
            return Err(corrupt(format!(
                "first meta block group {} is past the last of {}",
                self.first_meta_bg,
                self.descriptor_blocks()
            )));
        }
        Ok(())
    }
}
