//! Extended attributes: as they lie in an inode and in a block of their own.
//!
//! ```text
//!   in the inode   [magic][entry][entry][0]……………[value][value]   value offsets count from the first entry
//!   in a block     [header: 32 bytes][entry][entry][0]……[value][value]   offsets from the block's start
//! ```
//!
//! Entries grow from the front, values from the back. In a block entries are sorted (by prefix, then length
//! of the name, then name) and carry a hash each; of these the block has a hash, by which the kernel finds
//! blocks that inodes may share.
//!
//! Invariant: no value begins before the zero that ends the entries. Were one to, adding an entry would
//! overwrite it.
//!
//! Source: kernel documentation, "Extended Attributes".

pub mod acl;

use alloc::borrow::Cow;
use alloc::format;
use alloc::vec::Vec;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::crc32c;
use crate::types::BlockNumber;

/// h_magic, in an inode and in a block.
pub const MAGIC: u32 = 0xea02_0000;
/// Bytes before the first entry in a block.
pub const BLOCK_HEADER_LEN: usize = size_of::<RawHeader>();
/// Bytes before the first entry in an inode.
pub const INODE_HEADER_LEN: usize = 4;
/// The zero that ends the entries.
const END_LEN: usize = 4;
/// Bytes of an entry before its name.
const ENTRY_HEAD: usize = size_of::<RawXattrEntry>();
/// How many inodes may share a block (kernel: `EXT4_XATTR_REFCOUNT_MAX`).
pub const MAX_REFERENCES: u32 = 1024;

/// What is wrong with attributes, in words; the caller adds the place.
pub type Problem = Cow<'static, str>;

/// struct ext4_xattr_header.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawHeader {
    /// [`MAGIC`].
    pub h_magic: U32,
    /// How many inodes share the block.
    pub h_refcount: U32,
    /// 1.
    pub h_blocks: U32,
    /// Of all entries' hashes.
    pub h_hash: U32,
    /// crc32c of the file system's seed, the block's number and the block.
    pub h_checksum: U32,
    /// 0.
    pub h_reserved: [U32; 3],
}

/// struct ext4_xattr_entry without its name.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawXattrEntry {
    /// Bytes of the name, its prefix left out.
    pub e_name_len: u8,
    /// Which prefix.
    pub e_name_index: u8,
    /// Where the value lies.
    pub e_value_offs: U16,
    /// The inode that holds the value (feature ea_inode), or 0.
    pub e_value_inum: U32,
    /// Bytes of the value.
    pub e_value_size: U32,
    /// Of name and value; 0 in an inode.
    pub e_hash: U32,
}

/// A name's prefix. The values are those of e_name_index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum Prefix {
    /// `user.`
    User = 1,
    /// `system.posix_acl_access`, a whole name.
    AccessAcl = 2,
    /// `system.posix_acl_default`, a whole name.
    DefaultAcl = 3,
    /// `trusted.`
    Trusted = 4,
    /// `security.`
    Security = 6,
    /// `gnu.`, of the Hurd.
    Hurd = 10,
}

impl Prefix {
    const ALL: [Self; 6] =
        [Self::User, Self::AccessAcl, Self::DefaultAcl, Self::Trusted, Self::Security, Self::Hurd];

    /// The number on the device.
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            Self::User => 1,
            Self::AccessAcl => 2,
            Self::DefaultAcl => 3,
            Self::Trusted => 4,
            Self::Security => 6,
            Self::Hurd => 10,
        }
    }

    /// From the number on the device; `None` for prefixes no system call can name (5 Lustre, 7 inline data, 8
    /// richacl, 9 encryption) and unknown ones.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|prefix| prefix.byte() == byte)
    }

    /// The text.
    #[must_use]
    pub fn text(self) -> &'static [u8] {
        match self {
            Self::User => b"user.",
            Self::AccessAcl => b"system.posix_acl_access",
            Self::DefaultAcl => b"system.posix_acl_default",
            Self::Trusted => b"trusted.",
            Self::Security => b"security.",
            Self::Hurd => b"gnu.",
        }
    }

    /// Returns true for the two that are whole names.
    #[must_use]
    pub fn is_acl(self) -> bool {
        matches!(self, Self::AccessAcl | Self::DefaultAcl)
    }

    /// A full name as prefix and rest; `None` if the prefix is unknown.
    #[must_use]
    pub fn split(name: &[u8]) -> Option<(Self, &[u8])> {
        Self::ALL.into_iter().find_map(|prefix| {
            let rest = name.strip_prefix(prefix.text())?;
            (!prefix.is_acl() || rest.is_empty()).then_some((prefix, rest))
        })
    }
}

/// Where a value lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value<'a> {
    /// Beside its entry.
    Here(&'a [u8]),
    /// In an inode of its own (feature ea_inode).
    Inode(u32),
}

/// One attribute, borrowed from where it lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attribute<'a> {
    /// e_name_index: see [`Prefix`].
    pub prefix: u8,
    /// The name without its prefix.
    pub name: &'a [u8],
    /// The value.
    pub value: Value<'a>,
}

impl<'a> Attribute<'a> {
    /// Returns true if it has this name.
    #[must_use]
    pub fn is(&self, prefix: Prefix, name: &[u8]) -> bool {
        self.prefix == prefix.byte() && self.name == name
    }

    /// By what a block's entries are sorted.
    #[must_use]
    pub fn key(&self) -> (u8, usize, &'a [u8]) {
        (self.prefix, self.name.len(), self.name)
    }

    fn value_bytes(&self) -> &'a [u8] {
        match self.value {
            Value::Here(value) => value,
            Value::Inode(_) => &[],
        }
    }

    /// e_hash: of the name's bytes and the value's words.
    fn hash(&self) -> u32 {
        let name = self.name.iter().fold(0_u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
        self.value_bytes().chunks(4).fold(name, |hash, chunk| {
            let mut word = [0; 4];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            hash.rotate_left(16) ^ u32::from_le_bytes(word)
        })
    }
}

fn entry_len(name: &[u8]) -> usize {
    ENTRY_HEAD.saturating_add(name.len()).next_multiple_of(4)
}

fn value_len(value: &[u8]) -> usize {
    value.len().saturating_add(3) & !3
}

/// Walks over the attributes of `area`, whose first entry lies at `first` and whose value offsets count from
/// its start. Ends behind the first that is wrong.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    area: &'a [u8],
    next: usize,
    /// Where the entries end: no value may begin before.
    entries_end: usize,
    failed: bool,
}

impl<'a> Attributes<'a> {
    fn new(area: &'a [u8], first: usize) -> Self {
        let mut this = Self { area, next: first, entries_end: 0, failed: false };
        // One walk over the names alone, to learn where they end.
        while let Some(Ok((_, name))) = this.head() {
            this.next = this.next.saturating_add(entry_len(name));
        }
        this.entries_end = this.next.saturating_add(END_LEN);
        this.next = first;
        this
    }

    /// The entry at `next`; `None` at the zero that ends them.
    fn head(&self) -> Option<Result<(&'a RawXattrEntry, &'a [u8]), Problem>> {
        let at = self.next;
        let rest = self.area.get(at..).unwrap_or_default();
        match rest.first_chunk::<END_LEN>() {
            Some([0, 0, 0, 0]) => return None,
            None => return Some(Err("entries do not end".into())),
            Some(_) => {}
        }
        let Ok((head, behind)) = RawXattrEntry::ref_from_prefix(rest) else {
            return Some(Err(format!("entry at {at} crosses the end").into()));
        };
        let Some(name) = behind.get(..usize::from(head.e_name_len)) else {
            return Some(Err(format!("entry at {at}: name of {} crosses the end", head.e_name_len).into()));
        };
        if name.contains(&0) {
            return Some(Err(format!("entry at {at}: a zero byte in the name").into()));
        }
        Some(Ok((head, name)))
    }

    fn value(&self, head: &RawXattrEntry) -> Result<Value<'a>, Problem> {
        let (at, size) = (self.next, head.e_value_size.get());
        if head.e_value_inum != 0 {
            return Ok(Value::Inode(head.e_value_inum.get()));
        }
        if size == 0 {
            return Ok(Value::Here(&[]));
        }
        let start = usize::from(head.e_value_offs.get());
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        if start < self.entries_end {
            return Err(format!("entry at {at}: value at {start} lies among the entries").into());
        }
        let value = self.area.get(start..start.saturating_add(len));
        value
            .map(Value::Here)
            .ok_or_else(|| format!("entry at {at}: value of {size} bytes at {start} crosses the end").into())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let result = self.head()?.and_then(|(head, name)| {
            Ok(Attribute { prefix: head.e_name_index, name, value: self.value(head)? })
        });
        match &result {
            Ok(attribute) => self.next = self.next.saturating_add(entry_len(attribute.name)),
            Err(_) => self.failed = true,
        }
        Some(result)
    }
}

/// The attributes in an inode, of what follows its fixed fields; none if that has no magic.
#[must_use]
pub fn in_inode(xattr_area: &[u8]) -> Attributes<'_> {
    match xattr_area.split_first_chunk::<INODE_HEADER_LEN>() {
        Some((magic, area)) if u32::from_le_bytes(*magic) == MAGIC => Attributes::new(area, 0),
        _ => Attributes { area: &[0; END_LEN], next: 0, entries_end: 0, failed: false },
    }
}

/// The attributes in a block.
#[must_use]
pub fn in_block(block: &[u8]) -> Attributes<'_> {
    Attributes::new(block, BLOCK_HEADER_LEN)
}

/// Bytes these attributes take, entries, values and the zero between them.
fn len_of(attributes: &[Attribute<'_>]) -> usize {
    attributes
        .iter()
        .map(|attribute| entry_len(attribute.name).saturating_add(value_len(attribute.value_bytes())))
        .fold(END_LEN, usize::saturating_add)
}

/// Bytes these attributes take behind an inode's fixed fields.
#[must_use]
pub fn len_in_inode(attributes: &[Attribute<'_>]) -> usize {
    if attributes.is_empty() { 0 } else { len_of(attributes).saturating_add(INODE_HEADER_LEN) }
}

/// Returns true if the attributes fit behind an inode's fixed fields, in `len` bytes.
#[must_use]
pub fn fit_in_inode(attributes: &[Attribute<'_>], len: usize) -> bool {
    len_in_inode(attributes) <= len
}

/// Returns true if the attributes fit into a block of `len` bytes.
#[must_use]
pub fn fit_in_block(attributes: &[Attribute<'_>], len: usize) -> bool {
    len_of(attributes).saturating_add(BLOCK_HEADER_LEN) <= len
}

/// Lays attributes out in `area`, which is all zeros from `first` on and large enough: entries from `first`
/// on, values from the end.
fn lay_out(area: &mut [u8], first: usize, attributes: &[Attribute<'_>], hashed: bool) {
    let (mut next, mut end) = (first, area.len());
    for attribute in attributes {
        let value = attribute.value_bytes();
        let start = end.saturating_sub(value_len(value));
        let inum = match attribute.value {
            Value::Here(_) => 0,
            Value::Inode(inode) => inode,
        };
        let head = RawXattrEntry {
            e_name_len: u8::try_from(attribute.name.len()).unwrap_or(u8::MAX),
            e_name_index: attribute.prefix,
            e_value_offs: if value.is_empty() { 0 } else { u16::try_from(start).unwrap_or(u16::MAX) }.into(),
            e_value_inum: inum.into(),
            e_value_size: u32::try_from(value.len()).unwrap_or(u32::MAX).into(),
            e_hash: if hashed { attribute.hash() } else { 0 }.into(),
        };
        let pieces =
            [(next, head.as_bytes()), (next.saturating_add(ENTRY_HEAD), attribute.name), (start, value)];
        for (at, bytes) in pieces {
            if let Some(target) = area.get_mut(at..at.saturating_add(bytes.len())) {
                target.copy_from_slice(bytes);
            }
        }
        next = next.saturating_add(entry_len(attribute.name));
        end = start;
    }
}

/// What follows an inode's fixed fields, `len` bytes, holding these attributes; all zeros if there are none.
/// `None` if they do not fit.
#[must_use]
pub fn inode_area(attributes: &[Attribute<'_>], len: usize) -> Option<Vec<u8>> {
    if !fit_in_inode(attributes, len) {
        return None;
    }
    let mut area = alloc::vec![0; len];
    if !attributes.is_empty()
        && let Some((magic, rest)) = area.split_first_chunk_mut::<INODE_HEADER_LEN>()
    {
        *magic = MAGIC.to_le_bytes();
        lay_out(rest, 0, attributes, false);
    }
    Some(area)
}

/// Fills a block with these attributes, sorted here; its checksum is left to [`set_block_checksum`].
///
/// # Errors
/// They do not fit.
pub fn fill_block(block: &mut [u8], attributes: &[Attribute<'_>], references: u32) -> Result<(), Problem> {
    if !fit_in_block(attributes, block.len()) {
        return Err(format!("{} attributes do not fit into {} bytes", attributes.len(), block.len()).into());
    }
    let mut sorted = attributes.to_vec();
    sorted.sort_unstable_by_key(Attribute::key);
    block.fill(0);
    lay_out(block, BLOCK_HEADER_LEN, &sorted, true);
    let hash = sorted.iter().map(Attribute::hash).try_fold(0_u32, |hash, entry| {
        // An entry without a hash makes the whole block unfit for sharing: hash 0.
        (entry != 0).then_some(hash.rotate_left(16) ^ entry)
    });
    let header = RawHeader {
        h_magic: MAGIC.into(),
        h_refcount: references.into(),
        h_blocks: 1.into(),
        h_hash: hash.unwrap_or(0).into(),
        h_checksum: 0.into(),
        h_reserved: [0.into(); 3],
    };
    if let Some(target) = block.get_mut(..BLOCK_HEADER_LEN) {
        target.copy_from_slice(header.as_bytes());
    }
    Ok(())
}

fn header(block: &[u8]) -> Option<&RawHeader> {
    RawHeader::ref_from_prefix(block).ok().map(|(header, _)| header)
}

/// How many inodes share a block.
#[must_use]
pub fn references(block: &[u8]) -> u32 {
    header(block).map_or(0, |header| header.h_refcount.get())
}

/// Sets how many inodes share a block; the checksum is left to [`set_block_checksum`].
pub fn set_references(block: &mut [u8], references: u32) {
    if let Ok((header, _)) = RawHeader::mut_from_prefix(block) {
        header.h_refcount = references.into();
    }
}

fn block_checksum(block: &[u8], number: BlockNumber, seed: u32) -> u32 {
    const CHECKSUM: usize = 16;
    const BEHIND: usize = 20;
    let sum = crc32c(seed, &number.0.to_le_bytes());
    let sum = crc32c(sum, block.get(..CHECKSUM).unwrap_or_default());
    let sum = crc32c(sum, &[0; 4]);
    crc32c(sum, block.get(BEHIND..).unwrap_or_default())
}

/// Makes the checksum of a block right; no-op without a seed (no metadata_csum).
pub fn set_block_checksum(block: &mut [u8], number: BlockNumber, seed: Option<u32>) {
    let Some(seed) = seed else { return };
    let sum = block_checksum(block, number, seed);
    if let Ok((header, _)) = RawHeader::mut_from_prefix(block) {
        header.h_checksum = sum.into();
    }
}

/// The verifier of an attribute block: magic, checksum (with a seed), every attribute.
///
/// # Errors
/// The first thing that is wrong, in words.
pub fn verify_block(block: &[u8], number: BlockNumber, seed: Option<u32>) -> Result<(), Problem> {
    let Some(header) = header(block) else { return Err("no room for a header".into()) };
    if header.h_magic != MAGIC {
        return Err(format!("magic {:#x} is not {MAGIC:#x}", header.h_magic.get()).into());
    }
    if header.h_blocks != 1 {
        return Err(format!("h_blocks {} is not 1", header.h_blocks.get()).into());
    }
    if header.h_refcount == 0 {
        return Err("h_refcount is 0".into());
    }
    if let Some(seed) = seed {
        let (found, expected) = (header.h_checksum.get(), block_checksum(block, number, seed));
        if found != expected {
            return Err(format!("checksum {found:#010x} is not {expected:#010x}").into());
        }
    }
    in_block(block).try_for_each(|attribute| attribute.map(|_| ()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attributes() -> impl Strategy<Value = Vec<(u8, Vec<u8>, Vec<u8>)>> {
        let name = prop::collection::vec(1_u8..=255, 0..40);
        let value = prop::collection::vec(any::<u8>(), 0..200);
        prop::collection::vec((1_u8..=10, name, value), 0..12)
    }

    fn borrow(owned: &[(u8, Vec<u8>, Vec<u8>)]) -> Vec<Attribute<'_>> {
        owned
            .iter()
            .map(|(prefix, name, value)| Attribute { prefix: *prefix, name, value: Value::Here(value) })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn what_is_laid_out_is_read_back(owned in attributes(), len in (8_usize..1100).prop_map(|n| n * 4)) {
            let given = borrow(&owned);
            match inode_area(&given, len) {
                Some(area) => {
                    let read: Vec<_> = in_inode(&area).map(|attribute| attribute.unwrap()).collect();
                    prop_assert_eq!(&read, &given);
                }
                None => prop_assert!(!fit_in_inode(&given, len)),
            }
            let mut block = vec![0xaa; len.max(64)];
            if fill_block(&mut block, &given, 3).is_ok() {
                set_block_checksum(&mut block, BlockNumber(77), Some(1));
                verify_block(&block, BlockNumber(77), Some(1)).unwrap();
                prop_assert!(verify_block(&block, BlockNumber(78), Some(1)).is_err());
                prop_assert_eq!(references(&block), 3);
                let mut sorted = given.clone();
                sorted.sort_by_key(Attribute::key);
                let mut read: Vec<_> = in_block(&block).map(|attribute| attribute.unwrap()).collect();
                prop_assert!(read.is_sorted_by_key(Attribute::key));
                let whole = |a: &Attribute<'_>| (a.prefix, a.name.to_vec(), a.value_bytes().to_vec());
                read.sort_by_key(whole);
                sorted.sort_by_key(whole);
                prop_assert_eq!(read, sorted);
            }
        }

        #[test]
        fn any_bytes_are_walked_safely(
            owned in attributes(),
            damage in prop::collection::vec((0_usize..512, any::<u8>()), 0..20),
        ) {
            let given = borrow(&owned);
            let mut block = vec![0; 512];
            let _ = fill_block(&mut block, &given, 1);
            let mut area = inode_area(&given, 512).unwrap_or_else(|| MAGIC.to_le_bytes().repeat(128));
            for (at, value) in damage {
                block[at] = value;
                area[at] = value;
            }
            let _ = verify_block(&block, BlockNumber(1), None);
            prop_assert!(in_block(&block).count() < 128);
            prop_assert!(in_inode(&area).count() < 128);
        }
    }

    #[test]
    fn names_split_at_their_prefix() {
        assert_eq!(Prefix::split(b"user.a.b"), Some((Prefix::User, b"a.b".as_slice())));
        assert_eq!(Prefix::split(b"system.posix_acl_access"), Some((Prefix::AccessAcl, b"".as_slice())));
        assert_eq!(Prefix::split(b"system.posix_acl_accessory"), None);
        assert_eq!(Prefix::split(b"system.data"), None);
        assert_eq!(Prefix::split(b"none"), None);
    }
}
