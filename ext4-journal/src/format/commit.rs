//! The commit block, which makes a transaction complete.

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Header;

/// The commit block's number for crc32, and that checksum's size.
const COMMIT_CHECKSUM_CRC32: (u8, u8) = (1, 4);

/// The commit block.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Commit {
    pub(crate) header: Header,
    checksum_type: u8,
    checksum_size: u8,
    padding: [u8; 2],
    pub(super) checksum: [U32; 8],
    pub(crate) seconds: U64,
    pub(super) nanoseconds: U32,
}

const _: () = {
    assert!(size_of::<Commit>() == 60);
    assert!(core::mem::offset_of!(Commit, checksum) == 0x10);
    assert!(core::mem::offset_of!(Commit, seconds) == 0x30);
};

impl Commit {
    /// The commit block's fields.
    pub(crate) fn read(block: &[u8]) -> Option<Self> {
        Self::read_from_prefix(block).ok().map(|(commit, _)| commit)
    }

    /// The stored checksum: of the transaction (`COMPAT_CHECKSUM`) or of this block.
    pub(crate) fn stored_checksum(&self) -> u32 {
        let [stored, ..] = self.checksum;
        stored.get()
    }

    /// The part of the commit time below a second, in nanoseconds.
    pub(crate) fn nanoseconds(&self) -> u32 {
        self.nanoseconds.get()
    }

    /// Returns true if the stored crc32 over the transaction is `computed`, or none was stored.
    pub(crate) fn verify_compat_checksum(&self, computed: u32) -> bool {
        let stored = self.stored_checksum();
        let kind = (self.checksum_type, self.checksum_size);
        (kind == COMMIT_CHECKSUM_CRC32 && stored == computed) || (kind == (0, 0) && stored == 0)
    }
}
