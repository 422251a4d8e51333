//! The checksum of an inode's slot.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, IntoBytes};

use super::halves::{join16, split16};
use super::layout::{FieldEnd, copy, holds};
use super::{BASE_SIZE, InodeLayout, RawInode, RawInodeExtra};
use crate::checksum::crc32c;
use crate::types::InodeNumber;

/// Where the low half of the checksum lies.
const CHECKSUM_LO: usize = 0x7c;
/// Where the high half of the checksum lies.
const CHECKSUM_HI: usize = 0x82;

/// crc32c over the file system's seed, an inode's number and its generation (kernel: `i_csum_seed`).
#[must_use]
pub fn inode_seed(file_system_seed: u32, number: InodeNumber, generation: u32) -> u32 {
    crc32c(crc32c(file_system_seed, &number.0.to_le_bytes()), &generation.to_le_bytes())
}

pub(super) fn stored_checksum(raw: &RawInode, rest: &[u8], extra_isize: u16) -> u32 {
    let high = match RawInodeExtra::ref_from_prefix(rest) {
        Ok((extra, _)) if holds(extra_isize, FieldEnd::ChecksumHi) => extra.i_checksum_hi,
        _ => U16::ZERO,
    };
    join16(raw.l_i_checksum_lo, high)
}

pub(super) fn store_checksum(slot: &mut [u8], sum: u32, extra_isize: u16) {
    let (low, high) = split16(sum);
    copy(slot.get_mut(CHECKSUM_LO..).unwrap_or_default(), low.as_bytes());
    if holds(extra_isize, FieldEnd::ChecksumHi) {
        copy(slot.get_mut(CHECKSUM_HI..).unwrap_or_default(), high.as_bytes());
    }
}

/// crc32c over the whole slot with its checksum fields taken as zeros; 16 bits of it if the inode has no
/// place for more.
pub(super) fn checksum(
    slot: &[u8],
    number: InodeNumber,
    generation: u32,
    extra_isize: u16,
    layout: &InodeLayout,
) -> u32 {
    let part = |from: usize, to: usize| slot.get(from..to).unwrap_or_default();
    let base = usize::from(BASE_SIZE);
    let high = holds(extra_isize, FieldEnd::ChecksumHi);
    let mut sum = inode_seed(layout.checksum_seed, number, generation);
    sum = crc32c(sum, part(0, CHECKSUM_LO));
    sum = crc32c(sum, &[0; 2]);
    sum = crc32c(sum, part(CHECKSUM_LO.saturating_add(2), base));
    if slot.len() > base {
        sum = crc32c(sum, part(base, CHECKSUM_HI));
        let mut at = CHECKSUM_HI;
        if high {
            sum = crc32c(sum, &[0; 2]);
            at = at.saturating_add(2);
        }
        sum = crc32c(sum, part(at, slot.len()));
    }
    if high { sum } else { sum & 0xffff }
}
