//! jbd2's on-disk structures: big-endian, unlike the rest of ext4 and the fast-commit area. No I/O here.
//!
//! ```text
//!   log block 0      superblock: the log's tail, the transaction expected there, features
//!   one transaction  [revoke block]* ([descriptor: tags] [block image]{one per tag})* [commit block]
//! ```
//!
//! A tag has one of four sizes, and may be followed by a 16-byte UUID:
//!
//! | features        | size | block number            | checksum of the image |
//! |-----------------|------|-------------------------|-----------------------|
//! | none            | 8    | 32 bits                 | none                  |
//! | 64BIT           | 12   | 32 + 32 bits            | none                  |
//! | CSUM_V2 (64BIT) | 10 (14) | as above, 2 bytes unused | low 16 bits of the crc |
//! | CSUM_V3         | 16   | 32 + 32 bits            | 32 bits               |
//!
//! Invariant: nothing here trusts a length, a count or an offset that was read. Were one trusted, a flipped
//! bit in a descriptor could send an image to a block of a file.
//!
//! Source: kernel documentation, "Journal (jbd2)" (Documentation/filesystems/ext4/journal.rst).
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

mod commit;
mod fast_commit;
mod layout;
mod superblock;

pub(crate) use commit::Commit;
pub use fast_commit::{FastCommitEncoder, FastCommitEntry, FastCommitTag, FastCommitTags};
pub(crate) use layout::{Checksums, Layout, Tag};
pub(crate) use superblock::Superblock;

use ext4_core::TransactionId;
use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The magic number that each metadata block of the log starts with.
pub(crate) const MAGIC: u32 = 0xc03b_3998;

pub(crate) const DESCRIPTOR: u32 = 1;
pub(crate) const COMMIT: u32 = 2;
pub(crate) const SUPERBLOCK_V1: u32 = 3;
pub(crate) const SUPERBLOCK_V2: u32 = 4;
pub(crate) const REVOKE: u32 = 5;

/// The commit blocks hold a crc32 over the whole transaction.
pub(crate) const COMPAT_CHECKSUM: u32 = 0x1;
/// There may be revoke blocks.
pub(crate) const INCOMPAT_REVOKE: u32 = 0x1;
/// Block numbers have 64 bits.
pub(crate) const INCOMPAT_64BIT: u32 = 0x2;
/// The commit block is written without waiting for the rest of its transaction.
pub(crate) const INCOMPAT_ASYNC_COMMIT: u32 = 0x4;
/// Checksums in every block, 16 bits of them in the tags.
pub(crate) const INCOMPAT_CSUM_V2: u32 = 0x8;
/// Checksums in every block, 32 bits of them in the tags.
pub(crate) const INCOMPAT_CSUM_V3: u32 = 0x10;
/// The end of the log is the fast-commit area.
pub(crate) const INCOMPAT_FAST_COMMIT: u32 = 0x20;

/// The least number of blocks of a log (jbd2: `JBD2_MIN_JOURNAL_BLOCKS`).
pub(crate) const MIN_BLOCKS: u32 = 1024;
/// Bytes before the first tag of a descriptor.
pub(crate) const HEADER_SIZE: usize = size_of::<Header>();
/// The image is escaped: its first four bytes are the magic number, and lie in the log as zeros.
pub(crate) const ESCAPED: u16 = 1;

/// The header of descriptors, revoke blocks and commit blocks.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) magic: U32,
    pub(crate) block_type: U32,
    pub(crate) sequence: U32,
}

impl Header {
    pub(crate) fn new(block_type: u32, id: TransactionId) -> Self {
        Self { magic: U32::new(MAGIC), block_type: U32::new(block_type), sequence: U32::new(id.0) }
    }

    /// The block type and the transaction in a block's header; `None`: it has no magic number.
    pub(crate) fn read(block: &[u8]) -> Option<(u32, TransactionId)> {
        let (header, _) = Self::ref_from_prefix(block).ok()?;
        (header.magic.get() == MAGIC).then(|| (header.block_type.get(), TransactionId(header.sequence.get())))
    }
}
