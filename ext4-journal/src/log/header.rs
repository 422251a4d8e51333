//! The journal superblock's fields, for a look at them: nothing is opened, and nothing is refused but a block
//! that is no journal superblock.
//!
//! Source: kernel documentation, "Journal (jbd2)", super block.

use ext4_core::{BlockSize, Result};

use crate::format;

/// The fields of a journal superblock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JournalHeader {
    /// The size of a log block.
    pub block_size: BlockSize,
    /// The number of blocks, the superblock and the fast-commit area included.
    pub blocks: u32,
    /// The number of blocks of the fast-commit area at the journal's end.
    pub fast_commit_blocks: u32,
    /// The first log block of the ring.
    pub first: u32,
    /// The id of the transaction that is expected first in the log.
    pub sequence: u32,
    /// The log block of the tail; 0: the log is empty.
    pub start: u32,
    /// The error that stopped the journal: 0 for none, or a negative errno.
    pub errno: i32,
    /// The number of file systems that use it.
    pub users: u32,
    /// The UUIDs of the file systems that use it, if it lies on a device of its own.
    pub user_list: Vec<[u8; 16]>,
    /// The journal's own UUID.
    pub uuid: [u8; 16],
    /// The features that are on, by the names of dumpe2fs.
    pub features: Vec<&'static str>,
    /// The checksum of the superblock itself, if it has one.
    pub checksum: Option<u32>,
}

impl JournalHeader {
    /// Reads `block`, the superblock's block of a journal that has room for `available` blocks.
    ///
    /// # Errors
    /// Corrupt or unsupported: as [`crate::Journal::open`].
    pub fn parse(block: &[u8], block_size: BlockSize, available: u32) -> Result<Self> {
        format::Superblock::read(block, block_size, available).map(|superblock| Self::of(&superblock))
    }

    pub(crate) fn of(superblock: &format::Superblock) -> Self {
        let named = [
            (superblock.has_compat(format::COMPAT_CHECKSUM), "journal_checksum"),
            (superblock.has_incompat(format::INCOMPAT_REVOKE), "journal_incompat_revoke"),
            (superblock.has_incompat(format::INCOMPAT_64BIT), "journal_64bit"),
            (superblock.has_incompat(format::INCOMPAT_ASYNC_COMMIT), "journal_async_commit"),
            (superblock.has_incompat(format::INCOMPAT_CSUM_V2), "journal_checksum_v2"),
            (superblock.has_incompat(format::INCOMPAT_CSUM_V3), "journal_checksum_v3"),
            (superblock.has_incompat(format::INCOMPAT_FAST_COMMIT), "fast_commit"),
        ];
        let checksummed = superblock.has_incompat(format::INCOMPAT_CSUM_V2 | format::INCOMPAT_CSUM_V3);
        Self {
            block_size: superblock.layout().block_size,
            blocks: superblock.max_len(),
            fast_commit_blocks: superblock.fast_commit_blocks(),
            first: superblock.first(),
            sequence: superblock.sequence().0,
            start: superblock.start(),
            errno: superblock.errno(),
            users: superblock.users(),
            user_list: superblock.user_list(),
            uuid: superblock.uuid(),
            features: named.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect(),
            checksum: checksummed.then(|| superblock.stored_checksum()),
        }
    }
}
