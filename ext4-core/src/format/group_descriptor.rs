//! Group descriptors: where a group's bitmaps and inode table lie, what is free in it, and which of it was
//! never initialised. They also hold the checksums of the two bitmaps.
//!
//! Invariant: a [`GroupDescriptor`] from [`GroupDescriptor::parse`] had a right checksum if the file system
//! has group checksums. Its *places* are unchecked until the metadata plane has compared them with the
//! geometry.
//!
//! Source: kernel documentation, "Block Group Descriptors" and "Checksums".

use alloc::format;

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::features::Features;
use crate::checksum::{crc16, crc32c};
use crate::error::{Error, Result};
use crate::types::{BlockNumber, GroupNumber};

/// Bytes of a descriptor without 64bit.
pub const SMALL_DESCRIPTOR: usize = 32;
/// Bytes of a descriptor that this library knows; a larger one keeps its other bytes.
pub const LARGE_DESCRIPTOR: usize = 64;
/// Where `bg_checksum` lies.
const CHECKSUM_OFFSET: usize = 0x1e;

/// A group descriptor on the device; without 64bit only the first 32 bytes are there.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are those of the kernel documentation")]
pub struct RawGroupDescriptor {
    pub bg_block_bitmap_lo: U32,
    pub bg_inode_bitmap_lo: U32,
    pub bg_inode_table_lo: U32,
    pub bg_free_blocks_count_lo: U16,
    pub bg_free_inodes_count_lo: U16,
    pub bg_used_dirs_count_lo: U16,
    pub bg_flags: U16,
    pub bg_exclude_bitmap_lo: U32,
    pub bg_block_bitmap_csum_lo: U16,
    pub bg_inode_bitmap_csum_lo: U16,
    pub bg_itable_unused_lo: U16,
    pub bg_checksum: U16,
    pub bg_block_bitmap_hi: U32,
    pub bg_inode_bitmap_hi: U32,
    pub bg_inode_table_hi: U32,
    pub bg_free_blocks_count_hi: U16,
    pub bg_free_inodes_count_hi: U16,
    pub bg_used_dirs_count_hi: U16,
    pub bg_itable_unused_hi: U16,
    pub bg_exclude_bitmap_hi: U32,
    pub bg_block_bitmap_csum_hi: U16,
    pub bg_inode_bitmap_csum_hi: U16,
    pub bg_reserved: U32,
}

bitflags! {
    /// `bg_flags`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct GroupFlags: u16 {
        /// The inode bitmap and table were never written: no inode is in use.
        const INODE_UNINIT = 1;
        /// The block bitmap was never written: only the group's own metadata is in use.
        const BLOCK_UNINIT = 2;
        /// The inode table holds zeros in the slots without inodes.
        const INODE_ZEROED = 4;
        const _ = !0;
    }
}

/// One group's descriptor, every field in its widest form.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GroupDescriptor {
    /// The block of the block bitmap.
    pub block_bitmap: BlockNumber,
    /// The block of the inode bitmap.
    pub inode_bitmap: BlockNumber,
    /// The first block of the inode table.
    pub inode_table: BlockNumber,
    /// Free blocks (clusters with bigalloc).
    pub free_blocks_count: u32,
    /// Free inodes.
    pub free_inodes_count: u32,
    /// Directories.
    pub used_dirs_count: u32,
    /// Flags.
    pub flags: GroupFlags,
    /// The checksum of the block bitmap.
    pub block_bitmap_csum: u32,
    /// The checksum of the inode bitmap.
    pub inode_bitmap_csum: u32,
    /// Inodes at the end of the table that were never used.
    pub itable_unused: u32,
}

/// What the checksums of a file system's groups depend on.
#[derive(Clone, Copy, Debug)]
pub struct ChecksumContext {
    /// The feature masks.
    pub features: Features,
    /// The seed of metadata_csum.
    pub seed: u32,
    /// The UUID, for the crc16 of uninit_bg.
    pub uuid: [u8; 16],
    /// Bytes of a descriptor.
    pub desc_size: u16,
}

fn wide(hi: u16, lo: u16) -> u32 {
    u32::from(hi) << 16 | u32::from(lo)
}

fn halves(value: u32) -> (u16, u16) {
    let low = u16::try_from(value & 0xffff).unwrap_or(u16::MAX);
    let high = u16::try_from(value >> 16).unwrap_or(u16::MAX);
    (high, low)
}

fn block(hi: u32, lo: u32) -> BlockNumber {
    BlockNumber(u64::from(hi) << 32 | u64::from(lo))
}

fn block_halves(block: BlockNumber) -> (u32, u32) {
    let low = u32::try_from(block.0 & 0xffff_ffff).unwrap_or(u32::MAX);
    let high = u32::try_from(block.0 >> 32).unwrap_or(u32::MAX);
    (high, low)
}

impl ChecksumContext {
    /// Returns true if a descriptor has the upper 32 bytes.
    fn large(&self) -> bool {
        usize::from(self.desc_size) >= LARGE_DESCRIPTOR
    }

    /// The checksum of a descriptor in its bytes, its own field left out. 0 without group checksums.
    #[must_use]
    pub fn descriptor(&self, group: GroupNumber, bytes: &[u8]) -> u16 {
        let (before, rest) = bytes.split_at_checked(CHECKSUM_OFFSET).unwrap_or((bytes, &[]));
        let after = rest.get(2..).unwrap_or_default();
        let number = group.0.to_le_bytes();
        if self.features.metadata_csum() {
            let mut sum = crc32c(crc32c(self.seed, &number), before);
            sum = crc32c(crc32c(sum, &[0, 0]), after);
            halves(sum).1
        } else if self.features.group_checksums() {
            let mut sum = crc16(crc16(crc16(!0, &self.uuid), &number), before);
            if self.features.bit64() {
                sum = crc16(sum, after);
            }
            sum
        } else {
            0
        }
    }

    /// The checksum of a bitmap as the descriptor holds it; 0 without metadata_csum. `covered`: the bytes of
    /// the bitmap that stand for clusters or inodes.
    #[must_use]
    pub fn bitmap(&self, covered: &[u8]) -> u32 {
        if !self.features.metadata_csum() {
            return 0;
        }
        let sum = crc32c(self.seed, covered);
        // A small descriptor has room for the lower half only.
        if self.large() { sum } else { sum & 0xffff }
    }
}

impl GroupDescriptor {
    /// Reads the descriptor of `group` from its `desc_size` bytes.
    ///
    /// # Errors
    /// Corrupt if its checksum is wrong, or the bytes are too few.
    pub fn parse(context: &ChecksumContext, group: GroupNumber, bytes: &[u8]) -> Result<Self> {
        let what = || format!("group {group}: descriptor");
        let bytes = bytes
            .get(..usize::from(context.desc_size))
            .ok_or_else(|| Error::corrupt(what(), format!("{} bytes are too few", bytes.len())))?;
        let mut raw = RawGroupDescriptor::new_zeroed();
        let known = if context.large() { LARGE_DESCRIPTOR } else { SMALL_DESCRIPTOR };
        if let (Some(to), Some(from)) = (raw.as_mut_bytes().get_mut(..known), bytes.get(..known)) {
            to.copy_from_slice(from);
        }
        if context.features.group_checksums() {
            let stored = raw.bg_checksum.get();
            let computed = context.descriptor(group, bytes);
            if stored != computed {
                return Err(Error::corrupt(what(), format!("checksum {stored:#06x} is not {computed:#06x}")));
            }
        }
        let mut flags = GroupFlags::from_bits_retain(raw.bg_flags.get());
        let mut itable_unused = wide(raw.bg_itable_unused_hi.get(), raw.bg_itable_unused_lo.get());
        if !context.features.group_checksums() {
            // Without checksums the flags mean nothing, and the table is in use to its end.
            flags.remove(GroupFlags::INODE_UNINIT | GroupFlags::BLOCK_UNINIT);
            itable_unused = 0;
        }
        Ok(Self {
            block_bitmap: block(raw.bg_block_bitmap_hi.get(), raw.bg_block_bitmap_lo.get()),
            inode_bitmap: block(raw.bg_inode_bitmap_hi.get(), raw.bg_inode_bitmap_lo.get()),
            inode_table: block(raw.bg_inode_table_hi.get(), raw.bg_inode_table_lo.get()),
            free_blocks_count: wide(raw.bg_free_blocks_count_hi.get(), raw.bg_free_blocks_count_lo.get()),
            free_inodes_count: wide(raw.bg_free_inodes_count_hi.get(), raw.bg_free_inodes_count_lo.get()),
            used_dirs_count: wide(raw.bg_used_dirs_count_hi.get(), raw.bg_used_dirs_count_lo.get()),
            flags,
            block_bitmap_csum: wide(raw.bg_block_bitmap_csum_hi.get(), raw.bg_block_bitmap_csum_lo.get()),
            inode_bitmap_csum: wide(raw.bg_inode_bitmap_csum_hi.get(), raw.bg_inode_bitmap_csum_lo.get()),
            itable_unused,
        })
    }

    /// Writes the descriptor of `group` into its `desc_size` bytes, with its checksum; bytes that are none of
    /// these fields stay.
    pub fn write(&self, context: &ChecksumContext, group: GroupNumber, bytes: &mut [u8]) {
        let Some(bytes) = bytes.get_mut(..usize::from(context.desc_size)) else { return };
        let known = if context.large() { LARGE_DESCRIPTOR } else { SMALL_DESCRIPTOR };
        let mut raw = RawGroupDescriptor::new_zeroed();
        if let (Some(to), Some(from)) = (raw.as_mut_bytes().get_mut(..known), bytes.get(..known)) {
            to.copy_from_slice(from);
        }
        let set_block = |hi: &mut U32, lo: &mut U32, value| {
            let (high, low) = block_halves(value);
            hi.set(high);
            lo.set(low);
        };
        let set = |hi: &mut U16, lo: &mut U16, value| {
            let (high, low) = halves(value);
            hi.set(high);
            lo.set(low);
        };
        set_block(&mut raw.bg_block_bitmap_hi, &mut raw.bg_block_bitmap_lo, self.block_bitmap);
        set_block(&mut raw.bg_inode_bitmap_hi, &mut raw.bg_inode_bitmap_lo, self.inode_bitmap);
        set_block(&mut raw.bg_inode_table_hi, &mut raw.bg_inode_table_lo, self.inode_table);
        set(&mut raw.bg_free_blocks_count_hi, &mut raw.bg_free_blocks_count_lo, self.free_blocks_count);
        set(&mut raw.bg_free_inodes_count_hi, &mut raw.bg_free_inodes_count_lo, self.free_inodes_count);
        set(&mut raw.bg_used_dirs_count_hi, &mut raw.bg_used_dirs_count_lo, self.used_dirs_count);
        set(&mut raw.bg_itable_unused_hi, &mut raw.bg_itable_unused_lo, self.itable_unused);
        set(&mut raw.bg_block_bitmap_csum_hi, &mut raw.bg_block_bitmap_csum_lo, self.block_bitmap_csum);
        set(&mut raw.bg_inode_bitmap_csum_hi, &mut raw.bg_inode_bitmap_csum_lo, self.inode_bitmap_csum);
        raw.bg_flags.set(self.flags.bits());
        if let (Some(to), Some(from)) = (bytes.get_mut(..known), raw.as_bytes().get(..known)) {
            to.copy_from_slice(from);
        }
        let sum = context.descriptor(group, bytes);
        if let Some(field) = bytes.get_mut(CHECKSUM_OFFSET..CHECKSUM_OFFSET.saturating_add(2)) {
            field.copy_from_slice(&sum.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::features::{Incompat, RoCompat};

    fn context(desc_size: u16, ro_compat: RoCompat) -> ChecksumContext {
        let mut features = Features { ro_compat, ..Features::default() };
        features.incompat.set(Incompat::BIT64, desc_size > 32);
        ChecksumContext { features, seed: 0x1234_5678, uuid: [7; 16], desc_size }
    }

    #[test]
    fn what_is_written_is_read_and_a_flipped_bit_is_seen() {
        for (size, features) in [
            (32, RoCompat::GDT_CSUM),
            (64, RoCompat::GDT_CSUM),
            (32, RoCompat::METADATA_CSUM),
            (64, RoCompat::METADATA_CSUM),
            (128, RoCompat::METADATA_CSUM),
        ] {
            let context = context(size, features);
            let group = GroupNumber(77);
            let descriptor = GroupDescriptor {
                block_bitmap: BlockNumber(1000),
                inode_bitmap: BlockNumber(if size > 32 { 1 << 33 } else { 1 << 31 }),
                inode_table: BlockNumber(1002),
                free_blocks_count: 0x7fff,
                free_inodes_count: 12,
                used_dirs_count: 3,
                flags: GroupFlags::INODE_ZEROED,
                block_bitmap_csum: context.bitmap(b"abc"),
                inode_bitmap_csum: context.bitmap(b"def"),
                itable_unused: 9,
            };
            let mut bytes = vec![0xaa; usize::from(size)];
            bytes[..usize::from(size).min(64)].fill(0);
            descriptor.write(&context, group, &mut bytes);
            assert_eq!(GroupDescriptor::parse(&context, group, &bytes).unwrap(), descriptor);
            assert!(bytes[usize::from(size).min(64)..].iter().all(|byte| *byte == 0xaa));
            assert!(GroupDescriptor::parse(&context, GroupNumber(78), &bytes).is_err());
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(GroupDescriptor::parse(&context, group, &bytes).unwrap_err().is_corrupt());
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }
}
