//! The superblock of a device that holds nothing but a journal: ext4's, with the incompat feature
//! `journal_dev`.
//!
//! It says how large the journal is and by which UUID file systems know it (their `s_journal_uuid`); the
//! journal's own superblock lies in the block behind it.
//!
//! Invariant: a [`JournalDevice`] that was parsed has a right magic, a right checksum if it has one, and a
//! block size there is. Whether its blocks fit on the device is for the reader of the log.
//!
//! Source: the kernel's `ext4_get_journal_blkdev`; the fields of a new one are those of mke2fs
//! `-O journal_dev`.

use alloc::format;

use zerocopy::FromBytes;

use super::{
    CHECKSUM_OFFSET, CHECKSUM_TYPE_CRC32C, ERRORS_CONTINUE, MAGIC, RawSuperblock, STATE_VALID,
    SUPERBLOCK_SIZE, Superblock,
};
use crate::checksum::crc32c;
use crate::error::{Error, Result};
use crate::format::features::{Incompat, RoCompat};
use crate::types::BlockSize;

/// What the superblock of a journal device says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalDevice {
    /// By what file systems know the journal.
    pub uuid: [u8; 16],
    /// Bytes of a block.
    pub block_size: BlockSize,
    /// Blocks of the device that the journal has.
    pub blocks_count: u64,
}

impl JournalDevice {
    /// Reads the 1,024 bytes at byte 1,024 of the device.
    ///
    /// # Errors
    /// Corrupt if that is no superblock of a journal device or its checksum is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let corrupt = |problem| Error::corrupt("journal device: superblock", problem);
        let (raw, _) = RawSuperblock::ref_from_prefix(bytes)
            .map_err(|_| corrupt(format!("{} bytes are fewer than {SUPERBLOCK_SIZE}", bytes.len())))?;
        let magic = raw.s_magic.get();
        if magic != MAGIC {
            return Err(corrupt(format!("magic {magic:#x} is not {MAGIC:#x}")));
        }
        let incompat = Incompat::from_bits_retain(raw.s_feature_incompat.get());
        if !incompat.contains(Incompat::JOURNAL_DEV) {
            return Err(corrupt("there is a file system: feature journal_dev is not set".into()));
        }
        if RoCompat::from_bits_retain(raw.s_feature_ro_compat.get()).contains(RoCompat::METADATA_CSUM) {
            let stored = raw.s_checksum.get();
            let computed = crc32c(!0, bytes.get(..CHECKSUM_OFFSET).unwrap_or_default());
            if stored != computed {
                return Err(corrupt(format!("checksum {stored:#010x} is not {computed:#010x}")));
            }
        }
        let bits = raw.s_log_block_size.get();
        let block_size = bits
            .checked_add(10)
            .and_then(BlockSize::from_bits)
            .ok_or_else(|| corrupt(format!("log_block_size {bits} is above 6")))?;
        Ok(Self { uuid: raw.s_uuid, block_size, blocks_count: raw.s_blocks_count_lo.get().into() })
    }

    /// The superblock of a new journal device, made at `now` (seconds since 1970).
    #[must_use]
    pub fn to_bytes(&self, now: i64) -> [u8; SUPERBLOCK_SIZE] {
        let mut superblock = Superblock::blank(self.block_size);
        superblock.features.incompat.insert(Incompat::JOURNAL_DEV);
        superblock.features.ro_compat.insert(RoCompat::METADATA_CSUM);
        superblock.checksum_type = CHECKSUM_TYPE_CRC32C;
        superblock.uuid = self.uuid;
        superblock.blocks_count = self.blocks_count;
        superblock.first_data_block = u32::from(self.block_size == BlockSize::KIB_1);
        superblock.log_cluster_size = self.block_size.bits().saturating_sub(10);
        superblock.blocks_per_group = self.block_size.bytes().saturating_mul(8).min(65528);
        superblock.clusters_per_group = superblock.blocks_per_group;
        superblock.first_ino = 11;
        superblock.inode_size = 256;
        superblock.max_mnt_count = u16::MAX;
        superblock.state = STATE_VALID;
        superblock.errors = ERRORS_CONTINUE;
        superblock.mkfs_time = now;
        superblock.wtime = now;
        superblock.lastcheck = now;
        superblock.to_bytes()
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_read_and_any_damage_is_seen() {
        let device = JournalDevice { uuid: [7; 16], block_size: BlockSize::KIB_4, blocks_count: 2048 };
        let bytes = device.to_bytes(1_700_000_000);
        assert_eq!(JournalDevice::parse(&bytes).unwrap(), device);
        for bit in 0..SUPERBLOCK_SIZE * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            // Without the feature the checksum does not count.
            if bit != 0x64 * 8 + 10 {
                assert!(JournalDevice::parse(&bad).is_err(), "bit {bit}");
            }
        }
        let error = Superblock::parse(&bytes).map(drop).unwrap_err();
        assert!(format!("{error}").contains("journal_dev"));
    }
}
