//! The journal's on-disk structures: big-endian, unlike the rest of ext4. No I/O here.
//!
//! ```text
//!   log block 0      superblock: where the log starts, which transaction is expected there, features
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
//! Invariant: nothing here trusts a length, a count or an offset that was read. Were one trusted, a flipped bit in a
//! descriptor could send an image to a block of somebody's file.
//!
//! Source: kernel documentation, "Journal (jbd2)" (Documentation/filesystems/ext4/journal.rst).
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use ext4_core::checksum::crc32c;
use ext4_core::{BlockNumber, BlockSize, Error, Result, TransactionId};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What each metadata block of the log starts with.
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
/// The end of the log is an area for fast commits.
pub(crate) const INCOMPAT_FAST_COMMIT: u32 = 0x20;

const INCOMPAT_KNOWN: u32 = INCOMPAT_REVOKE
    | INCOMPAT_64BIT
    | INCOMPAT_ASYNC_COMMIT
    | INCOMPAT_CSUM_V2
    | INCOMPAT_CSUM_V3
    | INCOMPAT_FAST_COMMIT;

/// The fewest blocks a log has (jbd2: `JBD2_MIN_JOURNAL_BLOCKS`).
pub(crate) const MIN_BLOCKS: u32 = 1024;
/// The size of the fast-commit area where the superblock does not say (jbd2: `JBD2_DEFAULT_FAST_COMMIT_BLOCKS`).
const DEFAULT_FAST_COMMIT_BLOCKS: u32 = 256;

/// The superblock's number for crc32c.
const CHECKSUM_TYPE_CRC32C: u8 = 4;
/// The commit block's number for crc32, and that checksum's size.
const COMMIT_CHECKSUM_CRC32: (u8, u8) = (1, 4);

/// Bytes before the first tag of a descriptor.
pub(crate) const HEADER_SIZE: usize = size_of::<Header>();
/// Bytes before the first record of a revoke block.
pub(crate) const REVOKE_HEADER_SIZE: usize = HEADER_SIZE.saturating_add(4);
/// The checksum at the end of descriptors and revoke blocks.
const TAIL_SIZE: usize = 4;
/// What follows a tag that is not marked [`SAME_UUID`].
const UUID_SIZE: usize = 16;

/// The first four bytes of the image were the magic number and lie in the log as zeros.
pub(crate) const ESCAPED: u16 = 1;
/// No UUID follows the tag.
pub(crate) const SAME_UUID: u16 = 2;
/// The descriptor's last tag.
pub(crate) const LAST_TAG: u16 = 8;

/// How descriptors, revoke blocks and commit blocks begin.
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

    /// The header of a block, where it has the magic number: its type and its transaction.
    pub(crate) fn read(block: &[u8]) -> Option<(u32, TransactionId)> {
        let (header, _) = Self::ref_from_prefix(block).ok()?;
        (header.magic.get() == MAGIC).then(|| (header.block_type.get(), TransactionId(header.sequence.get())))
    }
}

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSuperblock {
    header: Header,
    block_size: U32,
    max_len: U32,
    first: U32,
    sequence: U32,
    start: U32,
    errno: U32,
    feature_compat: U32,
    feature_incompat: U32,
    feature_ro_compat: U32,
    uuid: [u8; 16],
    nr_users: U32,
    dyn_super: U32,
    max_transaction: U32,
    max_trans_data: U32,
    checksum_type: u8,
    padding2: [u8; 3],
    num_fc_blocks: U32,
    head: U32,
    padding: [U32; 40],
    checksum: U32,
    users: [[u8; 16]; 48],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTag {
    block: U32,
    checksum: U16,
    flags: U16,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTag3 {
    block: U32,
    flags: U32,
    block_high: U32,
    checksum: U32,
}

/// The commit block.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Commit {
    pub(crate) header: Header,
    checksum_type: u8,
    checksum_size: u8,
    padding: [u8; 2],
    checksum: [U32; 8],
    pub(crate) seconds: U64,
    nanoseconds: U32,
}

const _: () = {
    assert!(size_of::<RawSuperblock>() == 1024);
    assert!(core::mem::offset_of!(RawSuperblock, start) == 0x1c);
    assert!(core::mem::offset_of!(RawSuperblock, uuid) == 0x30);
    assert!(core::mem::offset_of!(RawSuperblock, checksum_type) == 0x50);
    assert!(core::mem::offset_of!(RawSuperblock, num_fc_blocks) == 0x54);
    assert!(core::mem::offset_of!(RawSuperblock, checksum) == 0xfc);
    assert!(size_of::<RawTag>() == 8);
    assert!(size_of::<RawTag3>() == 16);
    assert!(size_of::<Commit>() == 60);
    assert!(core::mem::offset_of!(Commit, checksum) == 0x10);
    assert!(core::mem::offset_of!(Commit, seconds) == 0x30);
};

/// The journal superblock, verified, with whatever else its block holds.
#[derive(Clone)]
pub(crate) struct Superblock {
    raw: RawSuperblock,
    rest: Vec<u8>,
}

impl core::fmt::Debug for Superblock {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Superblock(start {}, sequence {})", self.start(), self.sequence())
    }
}

impl Superblock {
    /// The superblock of an empty log of `blocks` blocks.
    pub(crate) fn new(block_size: BlockSize, blocks: u32, uuid: [u8; 16]) -> Self {
        let mut raw = RawSuperblock::new_zeroed();
        raw.header = Header::new(SUPERBLOCK_V2, TransactionId(0));
        raw.block_size.set(block_size.bytes());
        raw.max_len.set(blocks);
        raw.first.set(1);
        raw.sequence.set(1);
        raw.uuid = uuid;
        raw.nr_users.set(1);
        let rest = vec![0; block_size.len().saturating_sub(size_of::<RawSuperblock>())];
        Self { raw, rest }
    }

    /// Reads and verifies the superblock of a log that has room for `available` blocks.
    pub(crate) fn read(block: &[u8], block_size: BlockSize, available: u32) -> Result<Self> {
        let corrupt = |problem: String| Error::corrupt("journal superblock", problem);
        let (raw, rest) = RawSuperblock::read_from_prefix(block)
            .map_err(|_| corrupt(format!("{} bytes are too few", block.len())))?;
        let superblock = Self { raw, rest: rest.to_vec() };
        let raw = &superblock.raw;
        if raw.header.magic.get() != MAGIC {
            return Err(corrupt(format!("magic {:#x} is not {MAGIC:#x}", raw.header.magic.get())));
        }
        let version = raw.header.block_type.get();
        if version != SUPERBLOCK_V1 && version != SUPERBLOCK_V2 {
            return Err(corrupt(format!("block type {version} is neither 3 nor 4")));
        }
        superblock.check_features()?;
        if raw.block_size.get() != block_size.bytes() {
            return Err(corrupt(format!("block size {} is not {}", raw.block_size, block_size.bytes())));
        }
        let max_len = raw.max_len.get();
        if max_len < MIN_BLOCKS {
            return Err(corrupt(format!("a log of {max_len} blocks is shorter than {MIN_BLOCKS}")));
        }
        if max_len > available {
            return Err(corrupt(format!("a log of {max_len} blocks in a journal of {available}")));
        }
        let fast = superblock.fast_commit_blocks();
        if fast > max_len.saturating_sub(MIN_BLOCKS) {
            return Err(corrupt(format!("{fast} fast-commit blocks in a log of {max_len} blocks")));
        }
        let (first, start) = (raw.first.get(), raw.start.get());
        if first == 0 || superblock.last().saturating_add(1) < first.saturating_add(MIN_BLOCKS) {
            let last = superblock.last();
            return Err(corrupt(format!(
                "the log proper, blocks {first}..{last}, is shorter than {MIN_BLOCKS}"
            )));
        }
        if start != 0 && !(first..superblock.last()).contains(&start) {
            return Err(corrupt(format!("start {start} is outside {first}..{}", superblock.last())));
        }
        Ok(superblock)
    }

    fn check_features(&self) -> Result<()> {
        if !self.is_v2() {
            return Ok(());
        }
        let unknown = self.raw.feature_incompat.get() & !INCOMPAT_KNOWN;
        if unknown != 0 {
            return Err(Error::Unsupported(format!("journal incompat features {unknown:#x}")));
        }
        if self.raw.feature_ro_compat.get() != 0 {
            let unknown = self.raw.feature_ro_compat.get();
            return Err(Error::Unsupported(format!("journal ro_compat features {unknown:#x}")));
        }
        let corrupt = |problem: &str| Err(Error::corrupt("journal superblock", problem));
        let (v2, v3) = (self.has_incompat(INCOMPAT_CSUM_V2), self.has_incompat(INCOMPAT_CSUM_V3));
        if v2 && v3 {
            return corrupt("checksums v2 and v3 at the same time");
        }
        if (v2 || v3) && self.has_compat(COMPAT_CHECKSUM) {
            return corrupt("checksums v1 and v2 or v3 at the same time");
        }
        if v2 || v3 {
            if self.raw.checksum_type != CHECKSUM_TYPE_CRC32C {
                return Err(Error::Unsupported(format!("journal checksum type {}", self.raw.checksum_type)));
            }
            let (stored, computed) = (self.raw.checksum.get(), self.computed_checksum());
            if stored != computed {
                return corrupt(&format!("checksum {stored:#010x} is not {computed:#010x}"));
            }
        }
        Ok(())
    }

    fn computed_checksum(&self) -> u32 {
        let mut raw = self.raw.clone();
        raw.checksum.set(0);
        crc32c(!0, raw.as_bytes())
    }

    /// The block as it goes to the device, with a right checksum.
    pub(crate) fn to_block(&self) -> Vec<u8> {
        let mut raw = self.raw.clone();
        raw.checksum.set(0);
        if self.has_incompat(INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) {
            raw.checksum.set(crc32c(!0, raw.as_bytes()));
        }
        [raw.as_bytes(), &self.rest].concat()
    }

    fn is_v2(&self) -> bool {
        self.raw.header.block_type.get() == SUPERBLOCK_V2
    }

    /// True where any of `features` is on.
    pub(crate) fn has_incompat(&self, features: u32) -> bool {
        self.is_v2() && self.raw.feature_incompat.get() & features != 0
    }

    /// True where any of `features` is on.
    pub(crate) fn has_compat(&self, features: u32) -> bool {
        self.is_v2() && self.raw.feature_compat.get() & features != 0
    }

    /// Sets the features a running journal has, as ext4 asks for them at mount: checksums v3 or none, 64-bit block
    /// numbers, revokes. A version 1 superblock becomes version 2. The log must be empty. True where that changed
    /// anything.
    pub(crate) fn set_running_features(&mut self, metadata_csum: bool, bit64: bool) -> bool {
        let before = self.to_block();
        if !self.is_v2() {
            let v1 = self.raw.clone();
            self.raw = RawSuperblock::new_zeroed();
            self.raw.header = Header::new(SUPERBLOCK_V2, TransactionId(v1.header.sequence.get()));
            self.raw.block_size = v1.block_size;
            self.raw.max_len = v1.max_len;
            self.raw.first = v1.first;
            self.raw.sequence = v1.sequence;
            self.raw.start = v1.start;
            self.raw.errno = v1.errno;
            self.raw.nr_users.set(1);
        }
        let mut incompat = self.raw.feature_incompat.get();
        incompat &= !(INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3 | INCOMPAT_ASYNC_COMMIT);
        incompat |= INCOMPAT_REVOKE;
        if metadata_csum {
            incompat |= INCOMPAT_CSUM_V3;
            self.raw.checksum_type = CHECKSUM_TYPE_CRC32C;
        }
        if bit64 {
            incompat |= INCOMPAT_64BIT;
        }
        self.raw.feature_incompat.set(incompat);
        self.raw.feature_compat.set(self.raw.feature_compat.get() & !COMPAT_CHECKSUM);
        self.to_block() != before
    }

    /// How descriptors, revoke blocks and commit blocks of this log are written.
    pub(crate) fn layout(&self) -> Layout {
        let checksums = if self.has_incompat(INCOMPAT_CSUM_V3) {
            Checksums::V3
        } else if self.has_incompat(INCOMPAT_CSUM_V2) {
            Checksums::V2
        } else {
            Checksums::None
        };
        Layout {
            block_size: BlockSize::new(self.raw.block_size.get()).unwrap_or(BlockSize::KIB_4),
            bit64: self.has_incompat(INCOMPAT_64BIT),
            checksums,
            seed: crc32c(!0, &self.raw.uuid),
            uuid: self.raw.uuid,
        }
    }

    /// The first block of the ring.
    pub(crate) fn first(&self) -> u32 {
        self.raw.first.get()
    }

    /// The block after the last of the ring: the fast-commit area and everything after it are no part of it.
    pub(crate) fn last(&self) -> u32 {
        self.raw.max_len.get().saturating_sub(self.fast_commit_blocks())
    }

    /// The number of blocks of the log, its superblock and fast-commit area included.
    pub(crate) fn max_len(&self) -> u32 {
        self.raw.max_len.get()
    }

    /// The size of the fast-commit area in blocks.
    pub(crate) fn fast_commit_blocks(&self) -> u32 {
        if !self.has_incompat(INCOMPAT_FAST_COMMIT) {
            return 0;
        }
        match self.raw.num_fc_blocks.get() {
            0 => DEFAULT_FAST_COMMIT_BLOCKS,
            blocks => blocks,
        }
    }

    /// The first transaction expected in the log.
    pub(crate) fn sequence(&self) -> TransactionId {
        TransactionId(self.raw.sequence.get())
    }

    /// Where the log starts; 0 where it is empty.
    pub(crate) fn start(&self) -> u32 {
        self.raw.start.get()
    }

    /// Moves the tail: the log starts at block `start` with transaction `sequence`, or is empty where `start` is 0.
    pub(crate) fn set_tail(&mut self, start: u32, sequence: TransactionId) {
        self.raw.start.set(start);
        self.raw.sequence.set(sequence.0);
    }

    /// The error with which the journal was stopped, 0 for none. As jbd2 keeps it: a negative errno.
    pub(crate) fn errno(&self) -> i32 {
        self.raw.errno.get().cast_signed()
    }

    /// How many file systems use the journal.
    pub(crate) fn users(&self) -> u32 {
        self.raw.nr_users.get()
    }

    /// The superblock's checksum as it stood there.
    pub(crate) fn stored_checksum(&self) -> u32 {
        self.raw.checksum.get()
    }

    /// Records the error with which the journal was stopped.
    pub(crate) fn set_errno(&mut self, errno: i32) {
        self.raw.errno.set(errno.cast_unsigned());
    }

    /// Empty, and otherwise as if never used.
    pub(crate) fn reset(&mut self) {
        self.set_tail(0, TransactionId(1));
        self.set_errno(0);
        self.raw.head.set(0);
    }
}

/// Which checksums the log's blocks carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Checksums {
    /// None, or only that of `COMPAT_CHECKSUM` in the commit block.
    None,
    /// In every block; tags have 16 bits.
    V2,
    /// In every block; tags have 32 bits.
    V3,
}

/// How the features shape the log's blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) block_size: BlockSize,
    pub(crate) bit64: bool,
    pub(crate) checksums: Checksums,
    seed: u32,
    uuid: [u8; 16],
}

/// One tag of a descriptor: where an image belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tag {
    pub(crate) block: BlockNumber,
    pub(crate) flags: u16,
    pub(crate) checksum: u32,
}

impl Layout {
    fn tag_size(&self) -> usize {
        match (self.checksums, self.bit64) {
            (Checksums::V3, _) => 16,
            (Checksums::V2, true) => 14,
            (Checksums::V2, false) => 10,
            (Checksums::None, true) => 12,
            (Checksums::None, false) => 8,
        }
    }

    fn tail_size(&self) -> usize {
        if self.checksums == Checksums::None { 0 } else { TAIL_SIZE }
    }

    /// The bytes of a descriptor or revoke block before its checksum.
    fn body_size(&self) -> usize {
        self.block_size.len().saturating_sub(self.tail_size())
    }

    /// How many tags a descriptor holds when the first is followed by a UUID.
    #[allow(clippy::arithmetic_side_effects, reason = "a tag has 8 to 16 bytes")]
    pub(crate) fn tags_per_descriptor(&self) -> usize {
        (self.block_size.len() - self.tail_size() - HEADER_SIZE - UUID_SIZE) / self.tag_size()
    }

    fn revoke_size(&self) -> usize {
        if self.bit64 { 8 } else { 4 }
    }

    /// How many records a revoke block holds.
    #[allow(clippy::arithmetic_side_effects, reason = "a record has 4 or 8 bytes")]
    pub(crate) fn revokes_per_block(&self) -> usize {
        (self.block_size.len() - self.tail_size() - REVOKE_HEADER_SIZE) / self.revoke_size()
    }

    /// The tags of a descriptor, in order. It ends where the block ends, whatever the tags say.
    pub(crate) fn tags<'a>(&self, descriptor: &'a [u8]) -> Tags<'a> {
        let body = descriptor.get(HEADER_SIZE..self.body_size()).unwrap_or_default();
        Tags { layout: *self, left: body }
    }

    /// Fills a block with a descriptor of `tags`, at most [`Self::tags_per_descriptor`].
    pub(crate) fn write_descriptor(&self, block: &mut [u8], id: TransactionId, tags: &[Tag]) {
        let mut bytes = Vec::with_capacity(self.block_size.len());
        bytes.extend_from_slice(Header::new(DESCRIPTOR, id).as_bytes());
        for (index, tag) in tags.iter().enumerate() {
            let mut flags = tag.flags & ESCAPED;
            if index != 0 {
                flags |= SAME_UUID;
            }
            if index == tags.len().saturating_sub(1) {
                flags |= LAST_TAG;
            }
            let (low, high) = halves(tag.block.0);
            if self.checksums == Checksums::V3 {
                let raw = RawTag3 {
                    block: U32::new(low),
                    flags: U32::new(u32::from(flags)),
                    block_high: U32::new(high),
                    checksum: U32::new(tag.checksum),
                };
                bytes.extend_from_slice(raw.as_bytes());
            } else {
                let [_, _, a, b] = tag.checksum.to_be_bytes();
                let raw = RawTag {
                    block: U32::new(low),
                    checksum: U16::from_bytes([a, b]),
                    flags: U16::new(flags),
                };
                bytes.extend_from_slice(raw.as_bytes());
                if self.bit64 {
                    bytes.extend_from_slice(&high.to_be_bytes());
                }
                if self.checksums == Checksums::V2 {
                    bytes.extend_from_slice(&[0; 2]);
                }
            }
            if index == 0 {
                bytes.extend_from_slice(&self.uuid);
            }
        }
        self.finish(block, &bytes);
    }

    /// Fills a block with a list of revoked blocks, at most [`Self::revokes_per_block`].
    pub(crate) fn write_revokes(&self, block: &mut [u8], id: TransactionId, revoked: &[BlockNumber]) {
        let mut bytes = Vec::with_capacity(self.block_size.len());
        bytes.extend_from_slice(Header::new(REVOKE, id).as_bytes());
        let used = REVOKE_HEADER_SIZE.saturating_add(revoked.len().saturating_mul(self.revoke_size()));
        bytes.extend_from_slice(&u32::try_from(used).unwrap_or(u32::MAX).to_be_bytes());
        for block in revoked {
            if self.bit64 {
                bytes.extend_from_slice(&block.0.to_be_bytes());
            } else {
                bytes.extend_from_slice(&halves(block.0).0.to_be_bytes());
            }
        }
        self.finish(block, &bytes);
    }

    /// The blocks that a revoke block lists.
    ///
    /// # Errors
    /// Corrupt where the list is said to be longer than its block.
    pub(crate) fn revokes<'a>(&self, block: &'a [u8]) -> Result<impl Iterator<Item = BlockNumber> + use<'a>> {
        let bad = |count: u32| Error::corrupt("journal revoke block", format!("{count} bytes in use"));
        let (count, _) = block
            .get(HEADER_SIZE..)
            .and_then(|bytes| U32::read_from_prefix(bytes).ok())
            .ok_or_else(|| bad(0))?;
        let count = count.get();
        let used = usize::try_from(count).map_err(|_| bad(count))?;
        if used > self.body_size() {
            return Err(bad(count));
        }
        let records = block.get(REVOKE_HEADER_SIZE..used).unwrap_or_default();
        let size = self.revoke_size();
        Ok(records.chunks_exact(size).map(move |record| {
            BlockNumber(record.iter().fold(0, |value: u64, byte| (value << 8) | u64::from(*byte)))
        }))
    }

    /// Fills a block with the commit block of transaction `id`.
    pub(crate) fn write_commit(&self, block: &mut [u8], id: TransactionId, seconds: i64, nanoseconds: u32) {
        let mut commit = Commit::new_zeroed();
        commit.header = Header::new(COMMIT, id);
        commit.seconds.set(seconds.cast_unsigned());
        commit.nanoseconds.set(nanoseconds);
        block.fill(0);
        if let Some(bytes) = block.get_mut(..size_of::<Commit>()) {
            bytes.copy_from_slice(commit.as_bytes());
        }
        if self.checksums != Checksums::None {
            let [checksum, ..] = &mut commit.checksum;
            checksum.set(crc32c(self.seed, block));
        }
        if let Some(bytes) = block.get_mut(..size_of::<Commit>()) {
            bytes.copy_from_slice(commit.as_bytes());
        }
    }

    /// The checksum that the tag of `image` in transaction `id` carries. `image` is as it lies in the log.
    pub(crate) fn tag_checksum(&self, id: TransactionId, image: &[u8]) -> u32 {
        match self.checksums {
            Checksums::None => 0,
            Checksums::V2 => self.image_checksum(id, image) & 0xffff,
            Checksums::V3 => self.image_checksum(id, image),
        }
    }

    fn image_checksum(&self, id: TransactionId, image: &[u8]) -> u32 {
        crc32c(crc32c(self.seed, &id.0.to_be_bytes()), image)
    }

    /// True where the checksum at the end of a descriptor or revoke block is right, or there is none.
    pub(crate) fn verify_tail(&self, block: &[u8]) -> bool {
        if self.checksums == Checksums::None {
            return true;
        }
        let Some((body, tail)) = block.split_at_checked(self.body_size()) else {
            return false;
        };
        tail == crc32c(crc32c(self.seed, body), &[0; TAIL_SIZE]).to_be_bytes()
    }

    /// True where the checksum of a commit block is right, or there is none. As jbd2, a block of which only the
    /// header reached the medium counts when the rest had been zeros.
    pub(crate) fn verify_commit(&self, block: &[u8]) -> bool {
        if self.checksums == Checksums::None {
            return true;
        }
        let Ok((mut commit, rest)) = Commit::read_from_prefix(block) else {
            return false;
        };
        let [checksum, ..] = &mut commit.checksum;
        let stored = checksum.get();
        checksum.set(0);
        let header = crc32c(self.seed, commit.as_bytes());
        stored == crc32c(header, rest) || stored == crc32c(header, &vec![0; rest.len()])
    }

    fn finish(&self, block: &mut [u8], bytes: &[u8]) {
        block.fill(0);
        if let Some(start) = block.get_mut(..bytes.len()) {
            start.copy_from_slice(bytes);
        }
        if self.checksums != Checksums::None {
            let checksum = crc32c(self.seed, block).to_be_bytes();
            if let Some(tail) = block.get_mut(self.body_size()..) {
                tail.copy_from_slice(&checksum);
            }
        }
    }
}

impl Commit {
    /// The commit block's fields.
    pub(crate) fn read(block: &[u8]) -> Option<Self> {
        Self::read_from_prefix(block).ok().map(|(commit, _)| commit)
    }

    /// True where the crc32 over the transaction is `computed`, or was never stored.
    pub(crate) fn verify_compat_checksum(&self, computed: u32) -> bool {
        let [stored, ..] = self.checksum;
        let kind = (self.checksum_type, self.checksum_size);
        (kind == COMMIT_CHECKSUM_CRC32 && stored.get() == computed) || (kind == (0, 0) && stored.get() == 0)
    }
}

/// The tags of one descriptor.
pub(crate) struct Tags<'a> {
    layout: Layout,
    left: &'a [u8],
}

impl Iterator for Tags<'_> {
    type Item = Tag;

    fn next(&mut self) -> Option<Tag> {
        let (bytes, mut after) = self.left.split_at_checked(self.layout.tag_size())?;
        let tag = if self.layout.checksums == Checksums::V3 {
            let (raw, _) = RawTag3::read_from_prefix(bytes).ok()?;
            let [_, _, a, b] = raw.flags.to_bytes();
            let high = if self.layout.bit64 { raw.block_high.get() } else { 0 };
            Tag {
                block: joined(raw.block.get(), high),
                flags: u16::from_be_bytes([a, b]),
                checksum: raw.checksum.get(),
            }
        } else {
            let (raw, rest) = RawTag::read_from_prefix(bytes).ok()?;
            let high = if self.layout.bit64 { U32::read_from_prefix(rest).ok()?.0.get() } else { 0 };
            let checksum = if self.layout.checksums == Checksums::V2 { raw.checksum.get() } else { 0 };
            Tag {
                block: joined(raw.block.get(), high),
                flags: raw.flags.get(),
                checksum: u32::from(checksum),
            }
        };
        if tag.flags & SAME_UUID == 0 {
            after = after.get(UUID_SIZE..).unwrap_or_default();
        }
        self.left = if tag.flags & LAST_TAG == 0 { after } else { &[] };
        Some(tag)
    }
}

fn joined(low: u32, high: u32) -> BlockNumber {
    BlockNumber((u64::from(high) << 32) | u64::from(low))
}

fn halves(block: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = block.to_be_bytes();
    (u32::from_be_bytes([e, f, g, h]), u32::from_be_bytes([a, b, c, d]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layouts() -> impl Iterator<Item = Layout> {
        let all = [Checksums::None, Checksums::V2, Checksums::V3];
        all.into_iter().flat_map(|checksums| {
            [false, true].map(|bit64| Layout {
                block_size: BlockSize::KIB_1,
                bit64,
                checksums,
                seed: crc32c(!0, &[7; 16]),
                uuid: [7; 16],
            })
        })
    }

    #[test]
    fn a_descriptor_reads_back_in_every_form() {
        for layout in layouts() {
            let count = layout.tags_per_descriptor();
            let high = if layout.bit64 { 5 << 32 } else { 0 };
            let mask = if layout.checksums == Checksums::V2 { 0xffff } else { u32::MAX };
            let tags: Vec<Tag> = (0..count as u64)
                .map(|i| Tag {
                    block: BlockNumber(high + 1000 + i),
                    flags: u16::from(i % 3 == 0) * ESCAPED,
                    checksum: if layout.checksums == Checksums::None { 0 } else { 0xdead_0000 ^ i as u32 }
                        & mask,
                })
                .collect();
            let mut block = vec![0xff; 1024];
            layout.write_descriptor(&mut block, TransactionId(9), &tags);
            assert_eq!(Header::read(&block), Some((DESCRIPTOR, TransactionId(9))));
            assert!(layout.verify_tail(&block));
            let read: Vec<Tag> =
                layout.tags(&block).map(|tag| Tag { flags: tag.flags & ESCAPED, ..tag }).collect();
            assert_eq!(read, tags);
            block[20] ^= 1;
            assert_eq!(layout.verify_tail(&block), layout.checksums == Checksums::None);
        }
    }

    #[test]
    fn a_revoke_block_reads_back_and_a_long_one_is_refused() {
        for layout in layouts() {
            let blocks: Vec<_> =
                (0..layout.revokes_per_block() as u64).map(|i| BlockNumber(77 + i)).collect();
            let mut block = vec![0; 1024];
            layout.write_revokes(&mut block, TransactionId(3), &blocks);
            assert!(layout.verify_tail(&block));
            assert_eq!(layout.revokes(&block).unwrap().collect::<Vec<_>>(), blocks);
            block[HEADER_SIZE..HEADER_SIZE + 4].copy_from_slice(&1025_u32.to_be_bytes());
            assert!(layout.revokes(&block).is_err());
            block[HEADER_SIZE..HEADER_SIZE + 4].copy_from_slice(&3_u32.to_be_bytes());
            assert_eq!(layout.revokes(&block).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_commit_block_is_verified() {
        for layout in layouts().filter(|layout| layout.checksums != Checksums::None) {
            let mut block = vec![0xee; 1024];
            layout.write_commit(&mut block, TransactionId(3), -1, 5);
            assert!(layout.verify_commit(&block));
            block[900] = 1;
            assert!(layout.verify_commit(&block), "a torn block whose header is whole counts");
            block[0x33] ^= 1;
            assert!(!layout.verify_commit(&block));
        }
    }

    #[test]
    fn each_broken_field_of_the_superblock_is_refused() {
        let mut good = Superblock::new(BlockSize::KIB_1, 2048, [1; 16]);
        good.set_running_features(true, true);
        let block = good.to_block();
        assert!(Superblock::read(&block, BlockSize::KIB_1, 2048).is_ok());
        assert!(Superblock::read(&block, BlockSize::KIB_1, 2047).is_err());
        assert!(Superblock::read(&block, BlockSize::KIB_4, 2048).is_err());
        for bit in 0..1024 * 8 {
            let mut bad = block.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // A cleared checksum feature also switches its verification off.
            if bit / 8 == 0x2b && bit % 8 == 4 || bit / 8 == 7 {
                continue;
            }
            assert!(Superblock::read(&bad, BlockSize::KIB_1, 2048).is_err(), "bit {bit}");
        }
        let mut unknown = Superblock::new(BlockSize::KIB_1, 2048, [1; 16]);
        unknown.raw.feature_incompat.set(0x40);
        let error =
            Superblock::read(&unknown.to_block(), BlockSize::KIB_1, 2048).err().map(|e| e.to_string());
        assert_eq!(error.as_deref(), Some("unsupported: journal incompat features 0x40"));
    }
}
