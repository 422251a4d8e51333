//! Numbers of 32 bits that an inode keeps in two halves, which lie apart: owner, group, checksum.

use zerocopy::little_endian::U16;

/// The number whose halves are `low` and `high`.
pub(super) fn join16(low: U16, high: U16) -> u32 {
    u32::from(low.get()) | (u32::from(high.get()) << 16)
}

/// The halves of `value`: low, high.
pub(super) fn split16(value: u32) -> (U16, U16) {
    let [a, b, c, d] = value.to_le_bytes();
    (U16::from_bytes([a, b]), U16::from_bytes([c, d]))
}
