//! The orphan file: inode numbers in blocks that never move, so that a thousand tasks can add one without
//! meeting at the superblock.
//!
//! ```text
//!   a block   [inode][0][inode][0][0]………[magic][checksum]      0: a free slot
//! ```
//!
//! Source: kernel documentation, "Orphan file" (orphan.rst).

use alloc::format;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::directory::Problem;
use crate::checksum::crc32c;
use crate::types::{BlockNumber, BlockSize};

/// ob_magic.
pub const MAGIC: u32 = 0x0b10_ca04;
/// Bytes of a slot.
const SLOT_LEN: usize = 4;

/// struct ext4_orphan_block_tail.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawOrphanTail {
    /// [`MAGIC`].
    pub ob_magic: U32,
    /// crc32c of the orphan file's inode seed, the block's number and its slots.
    pub ob_checksum: U32,
}

/// Slots in a block.
#[must_use]
pub fn slots_per_block(block_size: BlockSize) -> usize {
    block_size.len().saturating_sub(size_of::<RawOrphanTail>()).checked_div(SLOT_LEN).unwrap_or(0)
}

fn split(block: &[u8]) -> Option<(&[U32], &RawOrphanTail)> {
    let (slots, tail) = RawOrphanTail::ref_from_suffix(block).ok()?;
    <[U32]>::ref_from_bytes(slots).ok().map(|slots| (slots, tail))
}

fn checksum(slots: &[U32], number: BlockNumber, seed: u32) -> u32 {
    crc32c(crc32c(seed, &number.0.to_le_bytes()), slots.as_bytes())
}

/// The slots of a block; 0 for a free one.
pub fn slots(block: &[u8]) -> impl Iterator<Item = u32> + '_ {
    split(block).map(|(slots, _)| slots).unwrap_or_default().iter().map(|slot| slot.get())
}

/// The verifier of a block: magic, and the checksum with a seed.
///
/// # Errors
/// The first thing that is wrong, in words.
pub fn verify(block: &[u8], number: BlockNumber, seed: Option<u32>) -> Result<(), Problem> {
    let Some((slots, tail)) = split(block) else { return Err("no room for a tail".into()) };
    if tail.ob_magic != MAGIC {
        return Err(format!("magic {:#x} is not {MAGIC:#x}", tail.ob_magic.get()).into());
    }
    if let Some(seed) = seed {
        let (found, expected) = (tail.ob_checksum.get(), checksum(slots, number, seed));
        if found != expected {
            return Err(format!("checksum {found:#010x} is not {expected:#010x}").into());
        }
    }
    Ok(())
}

/// Sets a slot; no-op if there is no such slot. The checksum is left to [`set_checksum`].
pub fn set_slot(block: &mut [u8], slot: usize, inode: u32) {
    let at = slot.saturating_mul(SLOT_LEN);
    if let Some(target) = block.get_mut(at..at.saturating_add(SLOT_LEN)) {
        target.copy_from_slice(&inode.to_le_bytes());
    }
}

/// Makes the checksum of a block right; no-op without a seed (no metadata_csum).
pub fn set_checksum(block: &mut [u8], number: BlockNumber, seed: Option<u32>) {
    let Some(seed) = seed else { return };
    let Some(sum) = split(block).map(|(slots, _)| checksum(slots, number, seed)) else { return };
    if let Ok((_, tail)) = RawOrphanTail::mut_from_suffix(block) {
        tail.ob_checksum = sum.into();
    }
}

/// Makes a block without orphans. The checksum is left to [`set_checksum`].
pub fn fill_empty(block: &mut [u8]) {
    block.fill(0);
    if let Ok((_, tail)) = RawOrphanTail::mut_from_suffix(block) {
        tail.ob_magic = MAGIC.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (number, seed) = (BlockNumber(1 << 40), Some(5));
        let mut block = vec![0xff; 1024];
        fill_empty(&mut block);
        assert_eq!(slots(&block).count(), slots_per_block(BlockSize::KIB_1));
        set_slot(&mut block, 253, 77);
        set_slot(&mut block, 1 << 40, 78);
        set_checksum(&mut block, number, seed);
        verify(&block, number, seed).unwrap();
        assert!(verify(&block, BlockNumber(1), seed).is_err());
        assert_eq!(slots(&block).filter(|slot| *slot != 0).collect::<Vec<_>>(), [77]);
        for bit in 0..block.len() * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(&block, number, seed).is_err(), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(verify(&block[..4], number, seed).is_err());
    }
}
