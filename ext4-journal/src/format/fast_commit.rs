//! Tags of the fast-commit area, in bytes.
//!
//! ```text
//!   block  [tag len value][tag len value] … [PAD len 0…]  a tag never reaches into the next block
//!   block  [tag len value] … [TAIL len id crc 0…]         ends a fast commit; the next begins in a new block
//! ```
//!
//! `tag` and `len` have two bytes each, little-endian as the values (the rest of the journal is big-endian).
//! The first block of the area begins with HEAD; it names the transaction that the fast commits belong to, as
//! each TAIL does. TAIL's checksum is crc32c, from 0 on, over every byte of its fast commit's tags, PAD with
//! its zeros included, up to and with TAIL's id. (Kernels before 6.2 left the last byte of a block out of PAD
//! and TAIL; both forms are read.)
//!
//! Two rules for a writer, seen with Linux 6.18 and e2fsprogs 1.47:
//! - *The first fast commit of a transaction must not be torn.* A kernel that finds HEAD with the expected
//!   transaction and no valid TAIL after it refuses to mount (e2fsck drops what it found and reports a bad
//!   checksum). So the block with HEAD is written last, with the preflush and FUA, when the others have
//!   completed: as long as it is not there the area belongs to an older transaction. Later fast commits may
//!   be torn; then it is the last block that matters.
//! - *The area's last block must not end a valid chain.* A kernel that has read the area to its end goes on
//!   with the block behind the log, and refuses to mount; e2fsck calls the journal corrupt. So the last block
//!   is left unused.
//!
//! Inode numbers, names and images have no meaning in this file: the file system gives them one.
//!
//! Invariants:
//! - A tag is returned only if all of it lies inside its block and its length is one that the kernel accepts.
//!   Were a length trusted, the next tag would be read from the middle of a name.
//! - What [`FastCommitEncoder`] lays out, [`FastCommitTags`] reads back, in every block size.
//!
//! Source: fs/ext4/fast_commit.h, fs/ext4/fast_commit.c (Linux 6.18: reserve_space, write_tail,
//! value_len_isvalid).

use core::fmt;
use core::ops::Range;
use std::sync::Arc;

use ext4_core::checksum::crc32c;
use ext4_core::format::extent::{Entry, Extent};
use ext4_core::{BlockSize, Errno, Error, InodeNumber, LogicalBlock, Result, TransactionId};
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const ADD_RANGE: u16 = 1;
const DEL_RANGE: u16 = 2;
const CREAT: u16 = 3;
const LINK: u16 = 4;
const UNLINK: u16 = 5;
const INODE: u16 = 6;
const PAD: u16 = 7;
const TAIL: u16 = 8;
const HEAD: u16 = 9;

/// The bytes before a value.
const TAG_SIZE: usize = size_of::<RawTag>();
/// TAIL without the zeros that fill its block.
const TAIL_SIZE: usize = TAG_SIZE.saturating_add(size_of::<RawTail>());
/// The bytes of TAIL that its own checksum covers: all before it.
const TAIL_COVERED: usize = TAIL_SIZE.saturating_sub(4);
/// The longest name of a directory entry.
const MAX_NAME: usize = 255;
/// The shortest image of an inode (`EXT4_GOOD_OLD_INODE_SIZE`).
const MIN_IMAGE: usize = 128;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTag {
    tag: U16,
    len: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHead {
    features: U32,
    tid: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawAddRange {
    ino: U32,
    ex: Entry,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawDelRange {
    ino: U32,
    lblk: U32,
    len: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    parent_ino: U32,
    ino: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawInode {
    ino: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTail {
    tid: U32,
    crc: U32,
}

const _: () = {
    assert!(size_of::<RawTag>() == 4);
    assert!(size_of::<RawHead>() == 8);
    assert!(size_of::<RawAddRange>() == 16);
    assert!(size_of::<RawDelRange>() == 12);
    assert!(size_of::<RawEntry>() == 8);
    assert!(size_of::<RawTail>() == 8);
};

/// A directory entry that a fast-commit tag makes or removes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FastCommitEntry {
    /// The directory's inode.
    pub parent: InodeNumber,
    /// The inode that the entry names.
    pub inode: InodeNumber,
    /// The name, 1 to 255 bytes.
    pub name: Arc<[u8]>,
}

/// A tag of the fast-commit area.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FastCommitTag {
    /// HEAD: begins the area.
    Head {
        /// The features that a reader has to know; none exist.
        features: u32,
        /// The transaction that the fast commits belong to: the one after the last full commit.
        id: TransactionId,
    },
    /// ADD_RANGE: a range of a file is mapped as this extent says.
    AddRange {
        /// The file.
        inode: InodeNumber,
        /// The raw extent, as in a leaf of an extent tree.
        extent: Entry,
    },
    /// DEL_RANGE: a range of a file is a hole.
    DelRange {
        /// The file.
        inode: InodeNumber,
        /// The first logical block.
        logical: LogicalBlock,
        /// The number of blocks.
        len: u32,
    },
    /// CREAT: the inode, which an INODE tag before describes, was made under this name.
    Create(FastCommitEntry),
    /// LINK: the inode got this name.
    Link(FastCommitEntry),
    /// UNLINK: the inode lost this name.
    Unlink(FastCommitEntry),
    /// INODE: the inode as its table has it. The block mapping in it is not to be used: ranges have tags of
    /// their own.
    Inode {
        /// The inode's number.
        inode: InodeNumber,
        /// 128 bytes and the extra fields in use, or the whole inode if it holds its data.
        image: Arc<[u8]>,
    },
    /// PAD: fills a block.
    Pad {
        /// The number of bytes of padding.
        len: u16,
    },
    /// TAIL: ends a fast commit.
    Tail {
        /// The transaction, as in HEAD.
        id: TransactionId,
        /// The crc32c of the fast commit.
        checksum: u32,
    },
}

impl FastCommitTag {
    /// The tag with this number and value. `None`: the kernel does not accept the length, or the tag is
    /// unknown.
    fn read(tag: u16, value: &[u8]) -> Option<Self> {
        Some(match tag {
            HEAD => {
                let raw = RawHead::read_from_bytes(value).ok()?;
                Self::Head { features: raw.features.get(), id: TransactionId(raw.tid.get()) }
            }
            ADD_RANGE => {
                let raw = RawAddRange::read_from_bytes(value).ok()?;
                Self::AddRange { inode: InodeNumber(raw.ino.get()), extent: raw.ex }
            }
            DEL_RANGE => {
                let raw = RawDelRange::read_from_bytes(value).ok()?;
                Self::DelRange {
                    inode: InodeNumber(raw.ino.get()),
                    logical: LogicalBlock(raw.lblk.get()),
                    len: raw.len.get(),
                }
            }
            CREAT => Self::Create(FastCommitEntry::read(value)?),
            LINK => Self::Link(FastCommitEntry::read(value)?),
            UNLINK => Self::Unlink(FastCommitEntry::read(value)?),
            INODE => {
                let (raw, image) = RawInode::ref_from_prefix(value).ok()?;
                if image.len() < MIN_IMAGE {
                    return None;
                }
                Self::Inode { inode: InodeNumber(raw.ino.get()), image: image.into() }
            }
            PAD => Self::Pad { len: u16::try_from(value.len()).ok()? },
            TAIL => {
                let (raw, _) = RawTail::ref_from_prefix(value).ok()?;
                Self::Tail { id: TransactionId(raw.tid.get()), checksum: raw.crc.get() }
            }
            _ => return None,
        })
    }

    /// The tag's number and its value; the encoder fills those of PAD and TAIL.
    fn write(&self) -> (u16, Vec<u8>) {
        match self {
            Self::Head { features, id } => {
                (HEAD, RawHead { features: (*features).into(), tid: id.0.into() }.as_bytes().to_vec())
            }
            Self::AddRange { inode, extent } => {
                (ADD_RANGE, RawAddRange { ino: inode.0.into(), ex: *extent }.as_bytes().to_vec())
            }
            Self::DelRange { inode, logical, len } => {
                let raw = RawDelRange { ino: inode.0.into(), lblk: logical.0.into(), len: (*len).into() };
                (DEL_RANGE, raw.as_bytes().to_vec())
            }
            Self::Create(entry) => (CREAT, entry.write()),
            Self::Link(entry) => (LINK, entry.write()),
            Self::Unlink(entry) => (UNLINK, entry.write()),
            Self::Inode { inode, image } => {
                (INODE, [RawInode { ino: inode.0.into() }.as_bytes(), image].concat())
            }
            Self::Pad { len } => (PAD, vec![0; usize::from(*len)]),
            Self::Tail { id, checksum } => {
                (TAIL, RawTail { tid: id.0.into(), crc: (*checksum).into() }.as_bytes().to_vec())
            }
        }
    }

    /// The kernel's name of the tag.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Head { .. } => "HEAD",
            Self::AddRange { .. } => "ADD_RANGE",
            Self::DelRange { .. } => "DEL_RANGE",
            Self::Create(_) => "CREAT",
            Self::Link(_) => "LINK",
            Self::Unlink(_) => "UNLINK",
            Self::Inode { .. } => "INODE",
            Self::Pad { .. } => "PAD",
            Self::Tail { .. } => "TAIL",
        }
    }
}

/// One line: the kernel's name of the tag and its content.
impl fmt::Display for FastCommitTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Head { features, id } => write!(f, " transaction {id}, features {features:#x}"),
            Self::AddRange { inode, extent } => {
                let Extent { logical, len, physical, unwritten } = Extent::from_entry(extent);
                let state = if unwritten { "unwritten" } else { "written" };
                write!(f, " inode {inode}, block {logical}+{len} at {physical}, {state}")
            }
            Self::DelRange { inode, logical, len } => write!(f, " inode {inode}, block {logical}+{len}"),
            Self::Create(entry) | Self::Link(entry) | Self::Unlink(entry) => write!(f, " {entry}"),
            Self::Inode { inode, image } => write!(f, " inode {inode}, {} bytes", image.len()),
            Self::Pad { len } => write!(f, " {len} bytes"),
            Self::Tail { id, checksum } => write!(f, " transaction {id}, checksum {checksum:#010x}"),
        }
    }
}

impl FastCommitEntry {
    fn read(value: &[u8]) -> Option<Self> {
        let (raw, name) = RawEntry::ref_from_prefix(value).ok()?;
        if name.is_empty() || name.len() > MAX_NAME {
            return None;
        }
        Some(Self {
            parent: InodeNumber(raw.parent_ino.get()),
            inode: InodeNumber(raw.ino.get()),
            name: name.into(),
        })
    }

    fn write(&self) -> Vec<u8> {
        let raw = RawEntry { parent_ino: self.parent.0.into(), ino: self.inode.0.into() };
        [raw.as_bytes(), &self.name].concat()
    }
}

impl fmt::Display for FastCommitEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {}, \"{}\" in directory {}", self.inode, self.name.escape_ascii(), self.parent)
    }
}

/// The tags of one block, each with the bytes of the block that a checksum covers. Ends if fewer bytes are
/// left than a tag has, or after the first error: the byte offset and what is wrong.
#[derive(Clone, Debug)]
pub struct FastCommitTags<'a> {
    block: &'a [u8],
    at: usize,
}

impl<'a> FastCommitTags<'a> {
    /// The tags of `block`, a block of the fast-commit area.
    #[must_use]
    pub fn new(block: &'a [u8]) -> Self {
        Self { block, at: 0 }
    }
}

impl Iterator for FastCommitTags<'_> {
    type Item = Result<(Range<usize>, FastCommitTag), (usize, String)>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        let (raw, rest) = RawTag::ref_from_prefix(self.block.get(at..)?).ok()?;
        let (number, len) = (raw.tag.get(), usize::from(raw.len.get()));
        let error = |problem| Some(Err((at, problem)));
        self.at = usize::MAX;
        let Some(value) = rest.get(..len) else {
            return error(format!("tag {number} of {len} bytes where {} are left", rest.len()));
        };
        let Some(tag) = FastCommitTag::read(number, value) else {
            return error(format!("tag {number} of {len} bytes is none that is known"));
        };
        let end = at.saturating_add(TAG_SIZE).saturating_add(len);
        let covered = match tag {
            FastCommitTag::Tail { .. } => at.saturating_add(TAIL_COVERED),
            _ => end,
        };
        self.at = end;
        Some(Ok((at..covered, tag)))
    }
}

/// Lays the tags of one fast commit into blocks.
#[derive(Debug)]
pub struct FastCommitEncoder {
    block_size: BlockSize,
    id: TransactionId,
    full: Vec<Vec<u8>>,
    block: Vec<u8>,
    checksum: u32,
}

impl FastCommitEncoder {
    /// Begins a fast commit of transaction `id` that will lie `offset` blocks after the first of the area: at
    /// 0 it begins with HEAD, elsewhere not.
    #[must_use]
    pub fn new(block_size: BlockSize, id: TransactionId, offset: u32) -> Self {
        let mut encoder = Self {
            block_size,
            id,
            full: Vec::new(),
            block: Vec::with_capacity(block_size.len()),
            checksum: 0,
        };
        if offset == 0 {
            let (tag, value) = FastCommitTag::Head { features: 0, id }.write();
            encoder.add(tag, &value);
        }
        encoder
    }

    /// Appends a tag. The encoder adds HEAD, PAD and TAIL by itself. After an error the encoder is as before.
    ///
    /// # Errors
    /// `EINVAL`: no block holds the tag, a name or an image has a length that no reader accepts, or the tag
    /// is HEAD, PAD or TAIL.
    pub fn push(&mut self, tag: &FastCommitTag) -> Result<()> {
        let invalid = |why: &str| Err(Error::posix(Errno::EINVAL, format!("fast commit: {tag}: {why}")));
        if matches!(tag, FastCommitTag::Head { .. } | FastCommitTag::Pad { .. } | FastCommitTag::Tail { .. })
        {
            return invalid("it is the encoder's");
        }
        let (number, value) = tag.write();
        let most = self.block_size.len().saturating_sub(TAG_SIZE);
        if value.len().saturating_add(TAG_SIZE) > most || u16::try_from(value.len()).is_err() {
            return invalid("no block holds it");
        }
        if FastCommitTag::read(number, &value).is_none() {
            return invalid("its length is not valid");
        }
        self.add(number, &value);
        Ok(())
    }

    /// The number of blocks that the fast commit has if it ends now.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.full.len().saturating_add(if self.has_room(TAIL_SIZE) { 1 } else { 2 })
    }

    /// Closes the fast commit with TAIL: its blocks, in order. One of them makes it whole, and is written
    /// with FUA when everything else has completed, behind a flush: the first if it begins with HEAD (see the
    /// module), else the last.
    #[must_use]
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        self.make_room(TAIL_SIZE);
        let after = self.block.len().saturating_add(TAIL_SIZE);
        let unused = self.block_size.len().saturating_sub(after);
        self.append_tag(TAIL, size_of::<RawTail>().saturating_add(unused));
        self.block.extend_from_slice(&self.id.0.to_le_bytes());
        let checksum = crc32c(self.checksum, &self.block);
        self.block.extend_from_slice(&checksum.to_le_bytes());
        self.block.resize(self.block_size.len(), 0);
        self.full.push(self.block);
        self.full
    }

    fn add(&mut self, number: u16, value: &[u8]) {
        self.make_room(value.len().saturating_add(TAG_SIZE));
        self.append_tag(number, value.len());
        self.block.extend_from_slice(value);
    }

    fn append_tag(&mut self, number: u16, len: usize) {
        // A value is shorter than a block, and the longest block is no longer than a tag and the longest
        // value.
        let len = u16::try_from(len).unwrap_or(u16::MAX);
        self.block.extend_from_slice(RawTag { tag: number.into(), len: len.into() }.as_bytes());
    }

    /// Returns true if `len` bytes fit and a PAD of no bytes still fits after them.
    fn has_room(&self, len: usize) -> bool {
        self.block.len().saturating_add(len).saturating_add(TAG_SIZE) <= self.block_size.len()
    }

    fn make_room(&mut self, len: usize) {
        if self.has_room(len) {
            return;
        }
        let padding = self.block_size.len().saturating_sub(self.block.len()).saturating_sub(TAG_SIZE);
        self.append_tag(PAD, padding);
        self.block.resize(self.block_size.len(), 0);
        self.checksum = crc32c(self.checksum, &self.block);
        let next = Vec::with_capacity(self.block_size.len());
        self.full.push(core::mem::replace(&mut self.block, next));
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests {
    use super::*;

    /// Three fast commits of transaction 3 that Linux 6.18 wrote, blocks of 1 KiB: mkfs.ext4 -b 1024 -O
    /// fast_commit; a file created and fsynced; eight files created, a link, an unlink and a truncation,
    /// fsync; an append, fsync.
    const KERNEL: &[u8] = include_bytes!("../../tests/data/fast_commit_1k.bin");

    fn content(tag: &FastCommitTag) -> bool {
        !matches!(tag, FastCommitTag::Head { .. } | FastCommitTag::Pad { .. } | FastCommitTag::Tail { .. })
    }

    fn read(blocks: &[Vec<u8>]) -> Vec<FastCommitTag> {
        let tags = |block| FastCommitTags::new(block).map(|tag| tag.unwrap().1);
        blocks.iter().flat_map(|block| tags(block)).collect()
    }

    #[test]
    fn what_the_kernel_wrote_is_read_and_encoded_to_the_same_bytes() {
        let (mut blocks, mut offset) = (Vec::new(), 0);
        let mut encoder = FastCommitEncoder::new(BlockSize::KIB_1, TransactionId(3), 0);
        let mut names = Vec::new();
        for block in KERNEL.chunks(1024) {
            for tag in FastCommitTags::new(block) {
                let (_, tag) = tag.unwrap();
                match &tag {
                    FastCommitTag::Tail { .. } => {
                        offset += u32::try_from(encoder.blocks()).unwrap();
                        blocks.extend(encoder.finish());
                        encoder = FastCommitEncoder::new(BlockSize::KIB_1, TransactionId(3), offset);
                    }
                    FastCommitTag::Create(entry) => names.push(entry.name.to_vec()),
                    _ => {}
                }
                if content(&tag) {
                    encoder.push(&tag).unwrap();
                }
            }
        }
        assert_eq!(names.concat(), b"warmfile-0file-2file-3file-4file-5file-6file-7");
        assert_eq!(blocks.len(), 6);
        assert!(blocks.concat() == KERNEL);
    }

    fn any_tag(random: &mut fastrand::Rng) -> FastCommitTag {
        let inode = InodeNumber(random.u32(..));
        let name: Vec<u8> = (0..random.usize(1..=255)).map(|_| random.u8(..)).collect();
        let entry = FastCommitEntry { parent: InodeNumber(random.u32(..)), inode, name: name.into() };
        match random.u8(..6) {
            0 => FastCommitTag::AddRange { inode, extent: core::array::from_fn(|_| random.u8(..)) },
            1 => {
                let logical = LogicalBlock(random.u32(..));
                FastCommitTag::DelRange { inode, logical, len: random.u32(..) }
            }
            2 => FastCommitTag::Create(entry),
            3 => FastCommitTag::Link(entry),
            4 => FastCommitTag::Unlink(entry),
            _ => {
                let image = (0..random.usize(128..=256)).map(|_| random.u8(..)).collect();
                FastCommitTag::Inode { inode, image }
            }
        }
    }

    #[test]
    fn every_tag_survives_the_way_into_blocks_and_back() {
        let mut random = fastrand::Rng::with_seed(7);
        for round in 0..600 {
            let block_size = BlockSize::from_bits(10 + round % 7).unwrap();
            let id = TransactionId(random.u32(..));
            let offset = random.u32(..2);
            let tags: Vec<_> = (0..random.usize(..900)).map(|_| any_tag(&mut random)).collect();
            let mut encoder = FastCommitEncoder::new(block_size, id, offset);
            for tag in &tags {
                encoder.push(tag).unwrap();
            }
            let expected = encoder.blocks();
            let blocks = encoder.finish();
            assert_eq!(blocks.len(), expected, "round {round}");
            let mut checksum = 0;
            let mut found = Vec::new();
            for (index, block) in blocks.iter().enumerate() {
                assert_eq!(block.len(), block_size.len());
                let mut end = 0;
                for tag in FastCommitTags::new(block) {
                    let (covered, tag) = tag.unwrap();
                    assert_eq!(covered.start, end, "round {round}");
                    checksum = crc32c(checksum, &block[covered.clone()]);
                    end = covered.end;
                    if let FastCommitTag::Tail { id: tail, checksum: stored } = tag {
                        assert_eq!((tail, stored), (id, checksum), "round {round}");
                        assert_eq!(index + 1, blocks.len());
                        end = block.len();
                    }
                    found.push(tag);
                }
                assert_eq!(end, block.len(), "round {round}: the tags fill their block");
            }
            assert_eq!(matches!(found.first(), Some(FastCommitTag::Head { .. })), offset == 0);
            found.retain(content);
            assert!(found == tags, "round {round}");
        }
    }

    /// Every number of bytes left in the first block, around the lengths at which PAD and TAIL just fit or do
    /// not.
    #[test]
    fn padding_of_every_length_is_read_back() {
        for size in 128..=900 {
            let inode = InodeNumber(12);
            let image = vec![1; size].into();
            let mut encoder = FastCommitEncoder::new(BlockSize::KIB_1, TransactionId(1), 1);
            let first = FastCommitTag::Inode { inode, image };
            let second = FastCommitTag::DelRange { inode, logical: LogicalBlock(0), len: 1 };
            let tags: Vec<_> = std::iter::once(first).chain(vec![second; 20]).collect();
            tags.iter().for_each(|tag| encoder.push(tag).unwrap());
            let mut found = read(&encoder.finish());
            found.retain(content);
            assert_eq!(found, tags, "{size}");
        }
    }

    #[test]
    fn what_no_reader_accepts_is_not_encoded() {
        let mut encoder = FastCommitEncoder::new(BlockSize::KIB_1, TransactionId(1), 0);
        let inode = InodeNumber(12);
        let entry =
            |len: usize| FastCommitEntry { parent: InodeNumber(2), inode, name: vec![b'a'; len].into() };
        let image = |len: usize| FastCommitTag::Inode { inode, image: vec![0; len].into() };
        for bad in [
            FastCommitTag::Create(entry(0)),
            FastCommitTag::Link(entry(256)),
            image(127),
            image(1024 - 11),
            image(70_000),
            FastCommitTag::Head { features: 0, id: TransactionId(1) },
            FastCommitTag::Pad { len: 0 },
            FastCommitTag::Tail { id: TransactionId(1), checksum: 0 },
        ] {
            assert_eq!(encoder.push(&bad).unwrap_err().errno(), Errno::EINVAL, "{bad}");
        }
        encoder.push(&image(1024 - 12)).unwrap();
        assert_eq!(encoder.blocks(), 3);
        assert_eq!(encoder.finish().len(), 3);
    }

    #[test]
    fn a_block_of_anything_is_read_without_a_panic_and_ends() {
        let mut random = fastrand::Rng::with_seed(11);
        for _ in 0..20_000 {
            let mut block = KERNEL[..1024].to_vec();
            for _ in 0..random.usize(1..30) {
                let at = random.usize(..block.len());
                block[at] = random.u8(..10);
            }
            block.truncate(random.usize(..=1024));
            let tags: Vec<_> = FastCommitTags::new(&block).collect();
            assert!(tags.len() <= 257);
            let last = tags.len().saturating_sub(1);
            assert!(tags.iter().take(last).all(Result::is_ok), "nothing follows an error");
        }
    }

    #[test]
    fn a_tag_says_in_one_line_what_it_does() {
        let entry =
            FastCommitEntry { parent: InodeNumber(2), inode: InodeNumber(12), name: (*b"a\nb").into() };
        assert_eq!(FastCommitTag::Create(entry).to_string(), "CREAT inode 12, \"a\\nb\" in directory 2");
        let extent = Extent {
            logical: LogicalBlock(3),
            len: 2,
            physical: ext4_core::BlockNumber(700),
            unwritten: true,
        };
        let tag = FastCommitTag::AddRange { inode: InodeNumber(12), extent: extent.to_entry() };
        assert_eq!(tag.to_string(), "ADD_RANGE inode 12, block 3+2 at 700, unwritten");
    }
}
