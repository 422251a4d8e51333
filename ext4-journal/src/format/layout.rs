//! Descriptors, their tags, revoke blocks and the checksums of the log's blocks, in the form that the
//! features give them.

use ext4_core::checksum::crc32c;
use ext4_core::{BlockNumber, BlockSize, TransactionId};
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{COMMIT, Commit, DESCRIPTOR, ESCAPED, HEADER_SIZE, Header, REVOKE};

/// The checksum at the end of descriptors and revoke blocks.
const TAIL_SIZE: usize = 4;
/// The UUID that follows a tag that is not marked [`SAME_UUID`].
const UUID_SIZE: usize = 16;

/// Bytes before the first record of a revoke block.
pub(crate) const REVOKE_HEADER_SIZE: usize = HEADER_SIZE.saturating_add(4);
/// No UUID follows the tag.
pub(crate) const SAME_UUID: u16 = 2;
/// The descriptor's last tag.
pub(crate) const LAST_TAG: u16 = 8;

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

const _: () = {
    assert!(size_of::<RawTag>() == 8);
    assert!(size_of::<RawTag3>() == 16);
};

/// The checksums that the log's blocks carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Checksums {
    /// None, or only that of `COMPAT_CHECKSUM` in the commit block.
    None,
    /// In every block; tags have 16 bits.
    V2,
    /// In every block; tags have 32 bits.
    V3,
}

/// The verdict on a checksum: if it is wrong, the stored one and the computed one.
pub(crate) type Verdict = core::result::Result<(), (u32, u32)>;

/// The form that the features give the log's blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) block_size: BlockSize,
    pub(crate) bit64: bool,
    pub(crate) checksums: Checksums,
    seed: u32,
    uuid: [u8; 16],
}

/// A tag of a descriptor: the place that an image belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tag {
    pub(crate) block: BlockNumber,
    pub(crate) flags: u16,
    pub(crate) checksum: u32,
}

impl Layout {
    /// The form of the blocks of the journal `uuid`.
    pub(crate) fn new(block_size: BlockSize, bit64: bool, checksums: Checksums, uuid: [u8; 16]) -> Self {
        Self { block_size, bit64, checksums, seed: crc32c(!0, &uuid), uuid }
    }

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
    pub(crate) fn body_size(&self) -> usize {
        self.block_size.len().saturating_sub(self.tail_size())
    }

    /// The number of tags that a descriptor holds if the first is followed by a UUID.
    #[allow(clippy::arithmetic_side_effects, reason = "a tag has 8 to 16 bytes")]
    pub(crate) fn tags_per_descriptor(&self) -> usize {
        (self.block_size.len() - self.tail_size() - HEADER_SIZE - UUID_SIZE) / self.tag_size()
    }

    fn revoke_size(&self) -> usize {
        if self.bit64 { 8 } else { 4 }
    }

    /// The number of records that a revoke block holds.
    #[allow(clippy::arithmetic_side_effects, reason = "a record has 4 or 8 bytes")]
    pub(crate) fn revokes_per_block(&self) -> usize {
        (self.block_size.len() - self.tail_size() - REVOKE_HEADER_SIZE) / self.revoke_size()
    }

    /// The tags of a descriptor, in order. They end with the block, whatever the tags say.
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
    /// The number of bytes that the block says are in use, if the list would be longer than its block.
    pub(crate) fn revokes<'a>(
        &self,
        block: &'a [u8],
    ) -> core::result::Result<impl Iterator<Item = BlockNumber> + use<'a>, u32> {
        let count = block.get(HEADER_SIZE..).and_then(|bytes| U32::read_from_prefix(bytes).ok());
        let count = count.map_or(0, |(count, _)| count.get());
        let used = usize::try_from(count).map_err(|_| count)?;
        if used > self.body_size() {
            return Err(count);
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

    /// The checksum that the tag of `image` in transaction `id` carries. `image` is the content in the log,
    /// escaped if it has to be.
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

    /// Returns true if tags, descriptors, revoke blocks and commit blocks have checksums of their own.
    pub(crate) fn has_tag_checksums(&self) -> bool {
        self.checksums != Checksums::None
    }

    /// The checksum at the end of a descriptor or revoke block, if there is one.
    pub(crate) fn stored_tail(&self, block: &[u8]) -> Option<u32> {
        if self.checksums == Checksums::None {
            return None;
        }
        let (_, tail) = block.split_at_checked(self.body_size())?;
        U32::read_from_prefix(tail).ok().map(|(stored, _)| stored.get())
    }

    /// Verifies the checksum at the end of a descriptor or revoke block, if there is one.
    ///
    /// # Errors
    /// The checksum stored and the one computed.
    pub(crate) fn verify_tail(&self, block: &[u8]) -> Verdict {
        if self.checksums == Checksums::None {
            return Ok(());
        }
        let (body, tail) = block.split_at_checked(self.body_size()).unwrap_or_default();
        let stored = U32::read_from_prefix(tail).map_or(0, |(stored, _)| stored.get());
        let computed = crc32c(crc32c(self.seed, body), &[0; TAIL_SIZE]);
        if stored == computed { Ok(()) } else { Err((stored, computed)) }
    }

    /// Verifies the checksum of a commit block, if there is one. As in jbd2, a block of which only the header
    /// reached the medium counts if the rest had been zeros.
    ///
    /// # Errors
    /// The checksum stored and the one computed.
    pub(crate) fn verify_commit(&self, block: &[u8]) -> Verdict {
        if self.checksums == Checksums::None {
            return Ok(());
        }
        let Ok((mut commit, rest)) = Commit::read_from_prefix(block) else {
            return Err((0, 0));
        };
        let [checksum, ..] = &mut commit.checksum;
        let stored = checksum.get();
        checksum.set(0);
        let header = crc32c(self.seed, commit.as_bytes());
        let computed = crc32c(header, rest);
        let torn = || stored == crc32c(header, &vec![0; rest.len()]);
        if stored == computed || torn() { Ok(()) } else { Err((stored, computed)) }
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
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]
mod tests {
    use super::*;

    fn layouts() -> impl Iterator<Item = Layout> {
        let all = [Checksums::None, Checksums::V2, Checksums::V3];
        all.into_iter().flat_map(|checksums| {
            [false, true].map(|bit64| Layout::new(BlockSize::KIB_1, bit64, checksums, [7; 16]))
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
            assert!(layout.verify_tail(&block).is_ok());
            let read: Vec<Tag> =
                layout.tags(&block).map(|tag| Tag { flags: tag.flags & ESCAPED, ..tag }).collect();
            assert_eq!(read, tags);
            block[20] ^= 1;
            assert_eq!(layout.verify_tail(&block).is_ok(), layout.checksums == Checksums::None);
        }
    }

    #[test]
    fn a_revoke_block_reads_back_and_a_long_one_is_refused() {
        for layout in layouts() {
            let blocks: Vec<_> =
                (0..layout.revokes_per_block() as u64).map(|i| BlockNumber(77 + i)).collect();
            let mut block = vec![0; 1024];
            layout.write_revokes(&mut block, TransactionId(3), &blocks);
            assert!(layout.verify_tail(&block).is_ok());
            assert_eq!(layout.revokes(&block).unwrap().collect::<Vec<_>>(), blocks);
            block[HEADER_SIZE..HEADER_SIZE + 4].copy_from_slice(&1025_u32.to_be_bytes());
            assert_eq!(layout.revokes(&block).err(), Some(1025));
            block[HEADER_SIZE..HEADER_SIZE + 4].copy_from_slice(&3_u32.to_be_bytes());
            assert_eq!(layout.revokes(&block).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_commit_block_is_verified() {
        for layout in layouts().filter(|layout| layout.checksums != Checksums::None) {
            let mut block = vec![0xee; 1024];
            layout.write_commit(&mut block, TransactionId(3), -1, 5);
            assert!(layout.verify_commit(&block).is_ok());
            block[900] = 1;
            assert!(layout.verify_commit(&block).is_ok(), "a torn block whose header is whole counts");
            block[0x33] ^= 1;
            assert!(layout.verify_commit(&block).is_err());
        }
    }
}
