//! Block maps: the twelve direct pointers of an inode, and the pointers in indirect blocks up to three levels
//! deep.
//!
//! ```text
//!   i_block[0..12]  →  data
//!   i_block[12]     →  pointers → data
//!   i_block[13]     →  pointers → pointers → data
//!   i_block[14]     →  pointers → pointers → pointers → data
//! ```
//!
//! Source: kernel documentation, "Direct/Indirect Block Addressing". Pointers are 32 bits; blocks of them
//! carry no checksum. A pointer of zero is a hole, at any level.

use crate::types::{BlockNumber, BlockSize, LogicalBlock};

/// Direct pointers in an inode.
pub const DIRECT: u32 = 12;
/// Pointers in an inode.
pub const POINTERS: u32 = 15;

/// Pointers in one block.
#[must_use]
pub fn pointers_per_block(block_size: BlockSize) -> u32 {
    block_size.bytes() >> 2
}

/// Pointer `at` of a block or of an inode's `i_block`; 0 (a hole) past its end.
#[must_use]
pub fn pointer(bytes: &[u8], at: u32) -> BlockNumber {
    let start = usize::try_from(at).ok().and_then(|at| at.checked_mul(4));
    let value = start.and_then(|start| bytes.get(start..)?.first_chunk::<4>());
    BlockNumber(value.map_or(0, |value| u64::from(u32::from_le_bytes(*value))))
}

/// Makes pointers `at..at + count` zero.
pub fn clear_pointers(bytes: &mut [u8], at: u32, count: u32) {
    let range = |at: u32| usize::try_from(at).unwrap_or(usize::MAX).saturating_mul(4).min(bytes.len());
    let (from, to) = (range(at), range(at.saturating_add(count)));
    bytes.get_mut(from..to).unwrap_or_default().fill(0);
}

/// Sets pointers `at..at + count` to `first` and the blocks behind it. Nothing is set past the end of
/// `bytes`, nor to a block whose number needs more than 32 bits.
pub fn set_pointers(bytes: &mut [u8], at: u32, first: BlockNumber, count: u32) {
    let start = usize::try_from(at).unwrap_or(usize::MAX).saturating_mul(4).min(bytes.len());
    let slots = bytes.get_mut(start..).unwrap_or_default().chunks_exact_mut(4);
    for (slot, n) in slots.zip(0..count) {
        if let Ok(block) = u32::try_from(first.offset(u64::from(n)).0) {
            slot.copy_from_slice(&block.to_le_bytes());
        }
    }
}

/// How many blocks of a file pointers reach.
#[must_use]
pub fn reach(block_size: BlockSize) -> u64 {
    let trees = (1..=3).map(|levels| subtree_span(block_size, levels));
    trees.fold(u64::from(DIRECT), u64::saturating_add)
}

/// How many blocks of pointers a file takes of which the first `blocks` blocks are all mapped.
#[must_use]
pub fn table_blocks(block_size: BlockSize, blocks: u64) -> u64 {
    let mut rest = blocks.saturating_sub(u64::from(DIRECT));
    let mut tables = 0_u64;
    for levels in 1..=3 {
        let here = rest.min(subtree_span(block_size, levels));
        for below in 1..=levels {
            tables = tables.saturating_add(here.div_ceil(subtree_span(block_size, below).max(1)));
        }
        rest = rest.saturating_sub(here);
    }
    tables
}

/// The way to a logical block: which pointer to take in the inode and in each block below.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockPath {
    /// Pointer numbers from the inode down; the first `levels + 1` count.
    pub pointers: [u32; 4],
    /// Blocks of pointers between the inode and the data: 0 to 3.
    pub levels: usize,
}

impl BlockPath {
    /// The way to `logical`; `None` if a block map does not reach that far.
    #[must_use]
    pub fn new(block_size: BlockSize, logical: LogicalBlock) -> Option<Self> {
        let Some(mut rest) = logical.0.checked_sub(DIRECT).map(u64::from) else {
            return Some(Self { pointers: [logical.0, 0, 0, 0], levels: 0 });
        };
        let bits = block_size.bits().saturating_sub(2);
        let low =
            |value: u64| u32::try_from(value & u64::from(pointers_per_block(block_size).saturating_sub(1)));
        for (levels, root) in [(1_usize, 12), (2, 13), (3, 14)] {
            let span = subtree_span(block_size, levels);
            if rest < span {
                let mut pointers = [root, 0, 0, 0];
                for (slot, above) in pointers.iter_mut().skip(1).take(levels).rev().zip(0_u32..) {
                    *slot = low(rest.checked_shr(bits.saturating_mul(above))?).ok()?;
                }
                return Some(Self { pointers, levels });
            }
            rest = rest.saturating_sub(span);
        }
        None
    }
}

/// How many logical blocks lie under a pointer with `levels` blocks of pointers below it.
#[must_use]
pub fn subtree_span(block_size: BlockSize, levels: usize) -> u64 {
    let bits = block_size.bits().saturating_sub(2);
    let levels = u32::try_from(levels).unwrap_or(u32::MAX);
    1_u64.checked_shl(bits.saturating_mul(levels)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(logical: u32) -> (usize, [u32; 4]) {
        let path = BlockPath::new(BlockSize::KIB_1, LogicalBlock(logical)).expect("in reach");
        (path.levels, path.pointers)
    }

    #[test]
    fn paths_cross_levels_where_they_should() {
        // 1 KiB blocks hold 256 pointers.
        assert_eq!(path(0), (0, [0, 0, 0, 0]));
        assert_eq!(path(11), (0, [11, 0, 0, 0]));
        assert_eq!(path(12), (1, [12, 0, 0, 0]));
        assert_eq!(path(12 + 255), (1, [12, 255, 0, 0]));
        assert_eq!(path(12 + 256), (2, [13, 0, 0, 0]));
        assert_eq!(path(12 + 256 + 65535), (2, [13, 255, 255, 0]));
        assert_eq!(path(12 + 256 + 65536), (3, [14, 0, 0, 0]));
        let last = 12 + 256 + 65536 + 256 * 256 * 256 - 1;
        assert_eq!(path(last), (3, [14, 255, 255, 255]));
        assert_eq!(BlockPath::new(BlockSize::KIB_1, LogicalBlock(last + 1)), None);
        assert!(BlockPath::new(BlockSize::KIB_64, LogicalBlock::MAX).is_some());
    }

    #[test]
    fn a_file_takes_as_many_tables_as_its_paths_need() {
        let tables = |blocks| table_blocks(BlockSize::KIB_1, blocks);
        assert_eq!(tables(12), 0);
        assert_eq!(tables(13), 1);
        assert_eq!(tables(12 + 256), 1);
        assert_eq!(tables(12 + 256 + 1), 3);
        assert_eq!(tables(12 + 256 + 257), 4);
        assert_eq!(tables(12 + 256 + 65536), 1 + 257);
        assert_eq!(tables(12 + 256 + 65536 + 1), 1 + 257 + 3);
        assert_eq!(reach(BlockSize::KIB_1), 12 + 256 + 65536 + 256 * 256 * 256);
    }

    #[test]
    fn a_run_of_pointers_is_set_as_far_as_it_fits() {
        let mut bytes = [0; 14];
        set_pointers(&mut bytes, 1, BlockNumber(7), 5);
        assert_eq!(bytes, [0, 0, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0, 0, 0]);
        set_pointers(&mut bytes, 0, BlockNumber(u64::from(u32::MAX)), 2);
        assert_eq!(pointer(&bytes, 0).0, u64::from(u32::MAX));
        assert_eq!(pointer(&bytes, 1), BlockNumber(7), "2^32 has no pointer");
    }

    #[test]
    fn pointers_past_the_end_are_holes() {
        let mut bytes = [1, 0, 0, 0, 2, 0, 0, 0, 9];
        assert_eq!(pointer(&bytes, 1), BlockNumber(2));
        assert_eq!(pointer(&bytes, 2), BlockNumber(0));
        clear_pointers(&mut bytes, 1, 7);
        assert_eq!(pointer(&bytes, 1), BlockNumber(0));
        assert_eq!(pointer(&bytes, 0), BlockNumber(1));
    }
}
