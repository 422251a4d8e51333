//! Fast commits: whether the area at the end of the log holds any that follow the last full commit.
//!
//! The area is no part of the ring. What lies there from before the last full commit is void and is passed over.
//!
//! Source: fs/ext4/fast_commit.h (tags are little-endian, unlike the rest of the journal).

use ext4_core::TransactionId;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

const TAG_HEAD: u16 = 9;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    tag: U16,
    len: U16,
    features: U32,
    id: U32,
}

/// True where `block`, the first of the area, begins a fast commit of transaction `id`, the first one that has no
/// full commit.
pub(crate) fn begins(block: &[u8], id: TransactionId) -> bool {
    Head::ref_from_prefix(block).is_ok_and(|(head, _)| {
        head.tag.get() == TAG_HEAD && usize::from(head.len.get()) >= 8 && head.id.get() == id.0
    })
}
