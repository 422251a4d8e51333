//! The journal superblock: the log's tail, the transaction expected there, features.
//!
//! Invariant: a [`Superblock`] that was read has been verified: magic, checksum, features by name, and every
//! number that bounds the log.

use ext4_core::checksum::crc32c;
use ext4_core::{BlockSize, Error, Result, TransactionId};
use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{
    COMPAT_CHECKSUM, Checksums, Header, INCOMPAT_64BIT, INCOMPAT_ASYNC_COMMIT, INCOMPAT_CSUM_V2,
    INCOMPAT_CSUM_V3, INCOMPAT_FAST_COMMIT, INCOMPAT_REVOKE, Layout, MAGIC, MIN_BLOCKS, SUPERBLOCK_V1,
    SUPERBLOCK_V2,
};

const INCOMPAT_KNOWN: u32 = INCOMPAT_REVOKE
    | INCOMPAT_64BIT
    | INCOMPAT_ASYNC_COMMIT
    | INCOMPAT_CSUM_V2
    | INCOMPAT_CSUM_V3
    | INCOMPAT_FAST_COMMIT;

/// The size of the fast-commit area if the superblock does not say (jbd2: `JBD2_DEFAULT_FAST_COMMIT_BLOCKS`).
const DEFAULT_FAST_COMMIT_BLOCKS: u32 = 256;

/// The superblock's number for crc32c.
const CHECKSUM_TYPE_CRC32C: u8 = 4;

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

const _: () = {
    assert!(size_of::<RawSuperblock>() == 1024);
    assert!(core::mem::offset_of!(RawSuperblock, start) == 0x1c);
    assert!(core::mem::offset_of!(RawSuperblock, uuid) == 0x30);
    assert!(core::mem::offset_of!(RawSuperblock, checksum_type) == 0x50);
    assert!(core::mem::offset_of!(RawSuperblock, num_fc_blocks) == 0x54);
    assert!(core::mem::offset_of!(RawSuperblock, checksum) == 0xfc);
};

/// The journal superblock, verified, with the rest of its block.
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
    ///
    /// # Errors
    /// - Corrupt: magic, type, checksum, block size, length, ring or tail is wrong.
    /// - Unsupported: it has a feature or a checksum type that is not known.
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

    /// Returns true if any of `features` is on.
    pub(crate) fn has_incompat(&self, features: u32) -> bool {
        self.is_v2() && self.raw.feature_incompat.get() & features != 0
    }

    /// Returns true if any of `features` is on.
    pub(crate) fn has_compat(&self, features: u32) -> bool {
        self.is_v2() && self.raw.feature_compat.get() & features != 0
    }

    /// Sets the features a running journal has, as ext4 asks for them at mount: checksums v3 or none, 64-bit
    /// block numbers, revokes. A version 1 superblock becomes version 2. The log must be empty. Returns true
    /// if that changed anything.
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

    /// The form of this log's descriptors, revoke blocks and commit blocks.
    pub(crate) fn layout(&self) -> Layout {
        let checksums = if self.has_incompat(INCOMPAT_CSUM_V3) {
            Checksums::V3
        } else if self.has_incompat(INCOMPAT_CSUM_V2) {
            Checksums::V2
        } else {
            Checksums::None
        };
        let block_size = BlockSize::new(self.raw.block_size.get()).unwrap_or(BlockSize::KIB_4);
        Layout::new(block_size, self.has_incompat(INCOMPAT_64BIT), checksums, self.raw.uuid)
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
        if self.has_incompat(INCOMPAT_FAST_COMMIT) { self.fast_commit_area() } else { 0 }
    }

    /// Sets or clears the feature that the log has a fast-commit area. As in jbd2 it is off while the log is
    /// empty, so that a clean file system does not ask its reader for it.
    pub(crate) fn set_fast_commit(&mut self, on: bool) {
        let features = self.raw.feature_incompat.get();
        self.raw.feature_incompat.set(if on {
            features | INCOMPAT_FAST_COMMIT
        } else {
            features & !INCOMPAT_FAST_COMMIT
        });
    }

    /// The size in blocks that the fast-commit area has, or would have with the feature.
    pub(crate) fn fast_commit_area(&self) -> u32 {
        match self.raw.num_fc_blocks.get() {
            0 => DEFAULT_FAST_COMMIT_BLOCKS,
            blocks => blocks,
        }
    }

    /// The first transaction expected in the log.
    pub(crate) fn sequence(&self) -> TransactionId {
        TransactionId(self.raw.sequence.get())
    }

    /// The log block of the tail; 0 if the log is empty.
    pub(crate) fn start(&self) -> u32 {
        self.raw.start.get()
    }

    /// Moves the tail: the log starts at block `start` with transaction `sequence`, or is empty if `start` is
    /// 0.
    pub(crate) fn set_tail(&mut self, start: u32, sequence: TransactionId) {
        self.raw.start.set(start);
        self.raw.sequence.set(sequence.0);
    }

    /// The error that stopped the journal, as jbd2 records it: 0 for none, or a negative errno.
    pub(crate) fn errno(&self) -> i32 {
        self.raw.errno.get().cast_signed()
    }

    /// The number of file systems that use the journal.
    pub(crate) fn users(&self) -> u32 {
        self.raw.nr_users.get()
    }

    /// The UUIDs of the file systems that use the journal, as many as the list can hold.
    pub(crate) fn user_list(&self) -> Vec<[u8; 16]> {
        let count = usize::try_from(self.users()).unwrap_or(usize::MAX);
        self.raw.users.iter().take(count).copied().collect()
    }

    /// Sets the file systems that use the journal, as many as the list has room for.
    pub(crate) fn set_users(&mut self, users: &[[u8; 16]]) {
        self.raw.users = [[0; 16]; 48];
        for (slot, user) in self.raw.users.iter_mut().zip(users) {
            *slot = *user;
        }
        let count = users.len().min(self.raw.users.len());
        self.raw.nr_users.set(u32::try_from(count).unwrap_or(0));
    }

    /// Sets the first block of the ring.
    pub(crate) fn set_first(&mut self, first: u32) {
        self.raw.first.set(first);
    }

    /// Sets the size in blocks that the fast-commit area has once the journal has the feature.
    pub(crate) fn set_fast_commit_blocks(&mut self, blocks: u32) {
        self.raw.num_fc_blocks.set(blocks);
    }

    /// The journal's UUID.
    pub(crate) fn uuid(&self) -> [u8; 16] {
        self.raw.uuid
    }

    /// The stored checksum of the superblock.
    pub(crate) fn stored_checksum(&self) -> u32 {
        self.raw.checksum.get()
    }

    /// Records the error that stopped the journal: 0 or a negative errno.
    pub(crate) fn set_errno(&mut self, errno: i32) {
        self.raw.errno.set(errno.cast_unsigned());
    }

    /// Makes the log empty, and as if it had never been used.
    pub(crate) fn reset(&mut self) {
        self.set_tail(0, TransactionId(1));
        self.set_errno(0);
        self.raw.head.set(0);
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests {
    use super::*;

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
