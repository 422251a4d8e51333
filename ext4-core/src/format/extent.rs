//! Nodes of extent trees: header, extents, index entries, checksum tail, and their verifier.
//!
//! ```text
//!   root (60 bytes in the inode)        node (one block)
//!   ┌────────┬───┬───┬───┬───┐          ┌────────┬───┬───┬─ … ─┬──────┬──────────┐
//!   │ header │ entry × 4     │          │ header │ entry × max │ tail │ (unused) │
//!   └────────┴───┴───┴───┴───┘          └────────┴───┴───┴─ … ─┴──────┴──────────┘
//!     12       12 each                                           4
//! ```
//!
//! Source: kernel documentation, "Extent Tree" (Documentation/filesystems/ext4/ifork.rst).
//!
//! Invariants:
//! - Entries are sorted and do not overlap; every range lies inside the device and outside fixed metadata.
//!   Were this wrong, a write to one file would land in another or in a bitmap.
//! - The first entry of a node starts at the logical block its parent's entry names, so a node can be reached
//!   in one way only and no walk over a damaged tree meets it twice.
//! - The functions that look into a node clip counts to the bytes that are there: not even an unverified node
//!   panics.

use alloc::format;
use alloc::string::String;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::checksum::crc32c;
use crate::types::{BlockNumber, LogicalBlock};

/// `eh_magic`.
pub const MAGIC: u16 = 0xf30a;
/// The deepest a tree can be: the root above five levels of blocks (kernel: `EXT4_MAX_EXTENT_DEPTH`).
pub const MAX_DEPTH: u16 = 5;
/// Entries in the root.
pub const ROOT_ENTRIES: u16 = 4;
/// The longest written extent, in blocks (kernel: `EXT_INIT_MAX_LEN`).
pub const MAX_WRITTEN_LEN: u32 = 1 << 15;
/// The longest unwritten extent, in blocks (kernel: `EXT_UNWRITTEN_MAX_LEN`).
pub const MAX_UNWRITTEN_LEN: u32 = MAX_WRITTEN_LEN - 1;

const HEADER_SIZE: usize = size_of::<RawExtentHeader>();
const ENTRY_SIZE: usize = size_of::<Entry>();

/// The head of every node.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are those of the kernel documentation")]
pub struct RawExtentHeader {
    pub eh_magic: U16,
    pub eh_entries: U16,
    pub eh_max: U16,
    pub eh_depth: U16,
    pub eh_generation: U32,
}

/// An entry of a leaf.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are those of the kernel documentation")]
pub struct RawExtent {
    pub ee_block: U32,
    pub ee_len: U16,
    pub ee_start_hi: U16,
    pub ee_start_lo: U32,
}

/// An entry of a node above the leaves.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are those of the kernel documentation")]
pub struct RawExtentIndex {
    pub ei_block: U32,
    pub ei_leaf_lo: U32,
    pub ei_leaf_hi: U16,
    pub ei_unused: U16,
}

/// What stands behind the last possible entry of a node in a block of its own.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are those of the kernel documentation")]
pub struct RawExtentTail {
    pub et_checksum: U32,
}

/// An entry of either kind as its bytes; both begin with the logical block.
pub type Entry = [u8; 12];

/// The logical block an entry starts at.
#[must_use]
pub fn entry_logical(entry: &Entry) -> LogicalBlock {
    let [a, b, c, d, ..] = *entry;
    LogicalBlock(u32::from_le_bytes([a, b, c, d]))
}

/// `len` blocks of a file that lie in one piece on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The first block in the file.
    pub logical: LogicalBlock,
    /// How many blocks; 1 to [`MAX_WRITTEN_LEN`] or [`MAX_UNWRITTEN_LEN`].
    pub len: u32,
    /// The first block on the device.
    pub physical: BlockNumber,
    /// True if the blocks are allocated, but not written: they read as zeros.
    pub unwritten: bool,
}

impl Extent {
    /// The logical block behind the last one.
    #[must_use]
    pub fn end(&self) -> LogicalBlock {
        self.logical.offset(self.len)
    }

    /// The longest an extent of this state can be.
    #[must_use]
    pub fn max_len(unwritten: bool) -> u32 {
        if unwritten { MAX_UNWRITTEN_LEN } else { MAX_WRITTEN_LEN }
    }

    /// The part of it inside `from..to`; `None` if that is empty.
    #[must_use]
    pub fn part(&self, from: LogicalBlock, to: LogicalBlock) -> Option<Self> {
        let (start, end) = (self.logical.max(from), self.end().min(to));
        let skipped = start.0.checked_sub(self.logical.0)?;
        let len = end.0.checked_sub(start.0).filter(|len| *len > 0)?;
        Some(Self { logical: start, len, physical: self.physical.offset(u64::from(skipped)), ..*self })
    }

    /// Both as one, if `next` follows in the file and on the device, is in the same state, and the sum is not
    /// too long.
    #[must_use]
    pub fn merged(&self, next: &Self) -> Option<Self> {
        let len = self.len.checked_add(next.len)?;
        let follows = self.end() == next.logical
            && self.physical.offset(u64::from(self.len)) == next.physical
            && self.unwritten == next.unwritten
            && len <= Self::max_len(self.unwritten);
        follows.then_some(Self { len, ..*self })
    }

    /// From an entry of a leaf. A length of zero is left for the verifier to find.
    #[must_use]
    pub fn from_entry(entry: &Entry) -> Self {
        let raw: RawExtent = zerocopy::transmute!(*entry);
        let len = u32::from(raw.ee_len.get());
        let unwritten = len > MAX_WRITTEN_LEN;
        Self {
            logical: LogicalBlock(raw.ee_block.get()),
            len: if unwritten { len.saturating_sub(MAX_WRITTEN_LEN) } else { len },
            physical: join(raw.ee_start_lo, raw.ee_start_hi),
            unwritten,
        }
    }

    /// As an entry of a leaf. The caller keeps the length within its limit.
    #[must_use]
    pub fn to_entry(&self) -> Entry {
        debug_assert!(self.len >= 1 && self.len <= Self::max_len(self.unwritten));
        let (ee_start_lo, ee_start_hi) = split(self.physical);
        let len = if self.unwritten { self.len.saturating_add(MAX_WRITTEN_LEN) } else { self.len };
        zerocopy::transmute!(RawExtent {
            ee_block: self.logical.0.into(),
            ee_len: u16::try_from(len).unwrap_or(u16::MAX).into(),
            ee_start_hi,
            ee_start_lo,
        })
    }
}

/// An entry above the leaves: where the node lies that maps `logical` and what follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexEntry {
    /// The first logical block of the node.
    pub logical: LogicalBlock,
    /// The node's block.
    pub child: BlockNumber,
}

impl IndexEntry {
    /// From an entry.
    #[must_use]
    pub fn from_entry(entry: &Entry) -> Self {
        let raw: RawExtentIndex = zerocopy::transmute!(*entry);
        Self { logical: LogicalBlock(raw.ei_block.get()), child: join(raw.ei_leaf_lo, raw.ei_leaf_hi) }
    }

    /// As an entry.
    #[must_use]
    pub fn to_entry(&self) -> Entry {
        let (ei_leaf_lo, ei_leaf_hi) = split(self.child);
        let ei_block = self.logical.0.into();
        zerocopy::transmute!(RawExtentIndex { ei_block, ei_leaf_lo, ei_leaf_hi, ei_unused: U16::ZERO })
    }
}

fn join(low: U32, high: U16) -> BlockNumber {
    BlockNumber(u64::from(low.get()) | (u64::from(high.get()) << 32))
}

fn split(block: BlockNumber) -> (U32, U16) {
    let [a, b, c, d, e, f, ..] = block.0.to_le_bytes();
    (U32::from_bytes([a, b, c, d]), U16::from_bytes([e, f]))
}

/// How many entries a node in a block of `block_size` bytes holds.
#[must_use]
pub fn block_entries(block_size: usize) -> u16 {
    let room = block_size.saturating_sub(HEADER_SIZE).checked_div(ENTRY_SIZE).unwrap_or(0);
    u16::try_from(room).unwrap_or(u16::MAX)
}

/// A look at a node's bytes. Counts are clipped to the bytes that are there.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    header: &'a RawExtentHeader,
    entries: &'a [Entry],
}

impl<'a> Node<'a> {
    /// The node in `bytes`: a whole block, or the 60 bytes of an inode. `None` if not even a header fits.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = RawExtentHeader::ref_from_prefix(bytes).ok()?;
        let fit = rest.len().checked_div(ENTRY_SIZE)?;
        let count = usize::from(header.eh_entries.get()).min(fit);
        let (entries, _) = <[Entry]>::ref_from_prefix_with_elems(rest, count).ok()?;
        Some(Self { header, entries })
    }

    /// Levels below this node; 0 in a leaf.
    #[must_use]
    pub fn depth(&self) -> u16 {
        self.header.eh_depth.get()
    }

    /// How many entries fit.
    #[must_use]
    pub fn max(&self) -> usize {
        usize::from(self.header.eh_max.get())
    }

    /// The entries.
    #[must_use]
    pub fn entries(&self) -> &'a [Entry] {
        self.entries
    }

    /// How many entries start at or before `logical`: the one that can cover it is the one before this
    /// position.
    #[must_use]
    pub fn position(&self, logical: LogicalBlock) -> usize {
        self.entries.partition_point(|entry| entry_logical(entry) <= logical)
    }

    /// Extent `at` of a leaf.
    #[must_use]
    pub fn extent(&self, at: usize) -> Option<Extent> {
        self.entries.get(at).map(Extent::from_entry)
    }

    /// Entry `at` above the leaves.
    #[must_use]
    pub fn index(&self, at: usize) -> Option<IndexEntry> {
        self.entries.get(at).map(IndexEntry::from_entry)
    }

    /// Checks everything that can be checked from the node alone. `capacity` is how many entries there is
    /// room for, `depth` the level it was reached at, `range` what its parent leaves to it (the first entry
    /// starts at its start), `valid` whether blocks of the device may belong to a file.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn verify(
        &self,
        capacity: u16,
        depth: u16,
        range: &NodeRange,
        mut valid: impl FnMut(BlockNumber, u64) -> bool,
    ) -> Result<(), String> {
        let magic = self.header.eh_magic.get();
        if magic != MAGIC {
            return Err(format!("magic {magic:#x} is not {MAGIC:#x}"));
        }
        let (entries, max) = (self.header.eh_entries.get(), self.header.eh_max.get());
        if max == 0 || max > capacity {
            return Err(format!("{max} entries at most, in room for {capacity}"));
        }
        if entries > max {
            return Err(format!("{entries} entries of at most {max}"));
        }
        self.verify_place(depth, range)?;
        let mut next = range.start;
        for (at, entry) in self.entries.iter().enumerate() {
            let logical = entry_logical(entry);
            if logical < next {
                return Err(format!("entry {at} starts at {logical}, before {next}"));
            }
            next = if depth == 0 {
                let Extent { len, physical, .. } = Extent::from_entry(entry);
                let end = logical
                    .0
                    .checked_add(len)
                    .filter(|_| len > 0)
                    .ok_or_else(|| format!("extent {at} at {logical} is {len} blocks long"))?;
                if !valid(physical, u64::from(len)) {
                    return Err(format!("extent {at} lies at blocks {physical}+{len}, no place for a file"));
                }
                LogicalBlock(end)
            } else {
                let child = IndexEntry::from_entry(entry).child;
                if !valid(child, 1) {
                    return Err(format!("entry {at} points to block {child}, no place for a node"));
                }
                logical.offset(1)
            };
        }
        if next > range.end {
            return Err(format!("reaches to {next}, past {}", range.end));
        }
        Ok(())
    }

    /// The part of [`Node::verify`] that depends on how the node was reached; it takes no time, so that it
    /// can be repeated on each visit of a node that was verified when it was read.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn verify_place(&self, depth: u16, range: &NodeRange) -> Result<(), String> {
        if self.depth() != depth {
            return Err(format!("depth {} is not {depth}", self.depth()));
        }
        match self.entries.first() {
            None if depth > 0 || !range.is_root => return Err(format!("no entries at depth {depth}")),
            Some(first) if !range.is_root && entry_logical(first) != range.start => {
                return Err(format!("starts at {}, not at {}", entry_logical(first), range.start));
            }
            _ => {}
        }
        if let Some(last) = self.entries.last() {
            let end = if depth == 0 { Extent::from_entry(last).end() } else { entry_logical(last).offset(1) };
            if end > range.end {
                return Err(format!("reaches to {end}, past {}", range.end));
            }
        }
        Ok(())
    }
}

/// What a parent leaves to a node: logical blocks `start..end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeRange {
    /// Where its first entry starts.
    pub start: LogicalBlock,
    /// Where the next node starts.
    pub end: LogicalBlock,
    /// True for the root: its first entry starts anywhere, and it may be empty.
    pub is_root: bool,
}

impl NodeRange {
    /// The root's.
    pub const ROOT: Self = Self { start: LogicalBlock(0), end: LogicalBlock(u32::MAX), is_root: true };
}

/// The checksum a node in a block carries, and the one it should: `seed` is that of its inode
/// ([`super::inode::inode_seed`]). `None` if the tail would lie past the block.
#[must_use]
pub fn checksums(bytes: &[u8], seed: u32) -> Option<(u32, u32)> {
    let at = tail_offset(bytes)?;
    let (covered, rest) = bytes.split_at_checked(at)?;
    let (tail, _) = RawExtentTail::ref_from_prefix(rest).ok()?;
    Some((tail.et_checksum.get(), crc32c(seed, covered)))
}

fn tail_offset(bytes: &[u8]) -> Option<usize> {
    let (header, _) = RawExtentHeader::ref_from_prefix(bytes).ok()?;
    usize::from(header.eh_max.get()).checked_mul(ENTRY_SIZE)?.checked_add(HEADER_SIZE)
}

/// Changes of a node's bytes, which the caller has verified. Each keeps the header right; the caller sets the
/// checksum ([`NodeMut::set_checksum`]) last.
pub struct NodeMut<'a> {
    bytes: &'a mut [u8],
}

impl<'a> NodeMut<'a> {
    /// The node in `bytes`.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes }
    }

    /// Makes an empty node for `max` entries, `depth` levels above the leaves.
    pub fn initialize(&mut self, depth: u16, max: u16) {
        let header = RawExtentHeader {
            eh_magic: MAGIC.into(),
            eh_entries: U16::ZERO,
            eh_max: max.into(),
            eh_depth: depth.into(),
            eh_generation: U32::ZERO,
        };
        if let Ok((to, rest)) = RawExtentHeader::mut_from_prefix(self.bytes) {
            *to = header;
            rest.fill(0);
        }
    }

    /// Replaces entries `at..at + removed` by `new`. The caller has made sure that they fit.
    pub fn replace(&mut self, at: usize, removed: usize, new: &[Entry]) {
        let Ok((header, rest)) = RawExtentHeader::mut_from_prefix(self.bytes) else { return };
        let old = usize::from(header.eh_entries.get());
        let (Some(from), Some(to)) = (at.checked_add(removed), at.checked_add(new.len())) else { return };
        let Some(count) = old.checked_sub(removed).and_then(|rest| rest.checked_add(new.len())) else {
            return;
        };
        let max = usize::from(header.eh_max.get());
        debug_assert!(from <= old && count <= max);
        let Ok((slots, _)) = <[Entry]>::mut_from_prefix_with_elems(rest, max) else { return };
        if from > old || count > max || old > max {
            return;
        }
        slots.copy_within(from..old, to);
        for (slot, entry) in slots.iter_mut().skip(at).zip(new) {
            *slot = *entry;
        }
        header.eh_entries = u16::try_from(count).unwrap_or(u16::MAX).into();
    }

    /// Makes entry `at` start at `logical`.
    pub fn set_logical(&mut self, at: usize, logical: LogicalBlock) {
        let Some(start) = at.checked_mul(ENTRY_SIZE).and_then(|at| at.checked_add(HEADER_SIZE)) else {
            return;
        };
        if let Some(slot) = self.bytes.get_mut(start..).and_then(|rest| rest.first_chunk_mut::<4>()) {
            *slot = logical.0.to_le_bytes();
        }
    }

    /// Sets the checksum of a node in a block.
    pub fn set_checksum(&mut self, seed: u32) {
        let Some((_, sum)) = checksums(self.bytes, seed) else { return };
        let Some(at) = tail_offset(self.bytes) else { return };
        if let Some(Ok((tail, _))) = self.bytes.get_mut(at..).map(RawExtentTail::mut_from_prefix) {
            tail.et_checksum = sum.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extent(logical: u32, len: u32, physical: u64, unwritten: bool) -> Extent {
        Extent { logical: LogicalBlock(logical), len, physical: BlockNumber(physical), unwritten }
    }

    fn node(extents: &[Extent]) -> [u8; 1024] {
        let mut bytes = [0; 1024];
        let mut node = NodeMut::new(&mut bytes);
        node.initialize(0, block_entries(1024));
        let entries: Vec<Entry> = extents.iter().map(Extent::to_entry).collect();
        node.replace(0, 0, &entries);
        node.set_checksum(7);
        bytes
    }

    fn verify(bytes: &[u8]) -> Result<(), String> {
        let range = NodeRange { end: LogicalBlock(1000), ..NodeRange::ROOT };
        Node::new(bytes)
            .expect("room for a header")
            .verify(84, 0, &range, |first, count| first.0 + count <= 5000)
    }

    #[test]
    fn entries_keep_their_values() {
        for extent in [
            extent(0, 1, 1, false),
            extent(7, MAX_WRITTEN_LEN, 0xffff_ffff_ffff, false),
            extent(7, MAX_UNWRITTEN_LEN, 1 << 32, true),
            extent(u32::MAX - 1, 1, 9, true),
        ] {
            assert_eq!(Extent::from_entry(&extent.to_entry()), extent);
        }
        let index = IndexEntry { logical: LogicalBlock(5), child: BlockNumber(0x1234_5678_9abc) };
        assert_eq!(IndexEntry::from_entry(&index.to_entry()), index);
        assert_eq!((block_entries(1024), block_entries(4096)), (84, 340));
    }

    #[test]
    fn neighbours_merge_up_to_the_limit() {
        let left = extent(10, 5, 100, true);
        assert_eq!(left.merged(&extent(15, 5, 105, true)), Some(extent(10, 10, 100, true)));
        assert_eq!(left.merged(&extent(15, 5, 105, false)), None);
        assert_eq!(left.merged(&extent(15, 5, 106, true)), None);
        assert_eq!(left.merged(&extent(16, 5, 105, true)), None);
        let full = extent(0, MAX_WRITTEN_LEN - 1, 0, false);
        assert!(full.merged(&extent(MAX_WRITTEN_LEN - 1, 1, 32767, false)).is_some());
        let full = extent(0, MAX_UNWRITTEN_LEN, 0, true);
        assert!(full.merged(&extent(MAX_UNWRITTEN_LEN, 1, 32767, true)).is_none());
        assert_eq!(left.part(LogicalBlock(12), LogicalBlock(99)), Some(extent(12, 3, 102, true)));
        assert_eq!(left.part(LogicalBlock(15), LogicalBlock(99)), None);
        assert_eq!(left.part(LogicalBlock(0), LogicalBlock(10)), None);
    }

    #[test]
    fn replacing_keeps_the_rest_in_order() {
        let parts = [extent(0, 5, 10, false), extent(10, 5, 30, false), extent(20, 5, 50, false)];
        let mut bytes = node(&parts);
        let entries = [extent(10, 1, 30, false).to_entry(), extent(11, 4, 31, true).to_entry()];
        let mut changed = NodeMut::new(&mut bytes);
        changed.replace(1, 1, &entries);
        changed.set_checksum(7);
        let node = Node::new(&bytes).expect("a node");
        let found: Vec<u32> = (0..4).filter_map(|at| node.extent(at)).map(|e| e.logical.0).collect();
        assert_eq!(found, [0, 10, 11, 20]);
        assert_eq!(node.position(LogicalBlock(11)), 3);
        assert_eq!(verify(&bytes), Ok(()));
        let (found, expected) = checksums(&bytes, 7).expect("a tail");
        assert_eq!(found, expected);
    }

    #[test]
    fn damage_is_named() {
        let good = [extent(0, 5, 10, false), extent(10, 5, 30, false)];
        let says = |bytes: &[u8], words: &str| {
            let problem = verify(bytes).expect_err("damage");
            assert!(problem.contains(words), "{problem}");
        };
        let mut bytes = node(&good);
        bytes[0] = 0;
        says(&bytes, "magic 0xf300 is not 0xf30a");
        let mut bytes = node(&good);
        bytes[4] = 85;
        says(&bytes, "85 entries at most, in room for 84");
        let mut bytes = node(&good);
        bytes[2] = 85;
        says(&bytes, "85 entries of at most 84");
        let mut bytes = node(&good);
        bytes[6] = 1;
        says(&bytes, "depth 1 is not 0");
        says(&node(&[good[1], good[0]]), "before");
        says(&node(&[extent(0, 11, 10, false), good[1]]), "entry 1 starts at 10, before 11");
        says(&node(&[extent(0, 5, 4996, false)]), "no place for a file");
        says(&node(&[extent(999, 5, 10, false)]), "past 1000");
        let mut bytes = node(&good);
        bytes[16] = 0;
        says(&bytes, "is 0 blocks long");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..1100),
            depth in 0..6_u16,
            at in 0..100_usize,
        ) {
            let mut bytes = bytes;
            if let Some(node) = Node::new(&bytes) {
                let _ = node.verify(84, depth, &NodeRange::ROOT, |_, _| true);
                let _ = (node.position(LogicalBlock(7)), node.extent(at), node.index(at));
            }
            let _ = checksums(&bytes, 1);
            let mut node = NodeMut::new(&mut bytes);
            node.set_logical(at, LogicalBlock(1));
            node.set_checksum(1);
        }
    }
}
