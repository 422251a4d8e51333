//! The index of a hashed directory: a root in block 0, below it up to two levels of nodes, below them the
//! leaves.
//!
//! A node's keys are hashes in rising order; the first has no hash of its own, its four bytes are the limit
//! and the count of keys. Key `i` leads to the names with hashes from its own up to the next key's. Bit 0 of
//! a key says that names with the hash of the key (less that bit) lie in the child before it, too.
//!
//! Changing functions leave the checksum wrong; [`Layout::set_index_checksum`] is the last call of a change.
//!
//! Source: kernel documentation, "Directory Entries": Hash Tree Directories.

use alloc::format;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Layout, Problem, RawEntry};
use crate::checksum::crc32c;
use crate::format::hash::HashVersion;
use crate::format::inode::FileType;

/// Bytes of `.` and of the used part of `..` in a root.
const DOT_LEN: usize = 12;
/// Where the root info lies.
const ROOT_INFO: usize = 24;
/// Where the keys of a root begin.
const ROOT_KEYS: usize = 32;
/// Where the keys of a node begin.
const NODE_KEYS: usize = 8;
/// Bytes of a key.
const KEY_LEN: usize = 8;
/// Bytes of the tail with the checksum.
const TAIL_LEN: usize = 8;
/// The bits of a key's block number; the rest were once meant to say how full the child is.
const BLOCK_MASK: u32 = 0x0fff_ffff;

/// struct dx_root_info.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawRootInfo {
    /// 0.
    pub reserved_zero: U32,
    /// See [`HashVersion`].
    pub hash_version: u8,
    /// Bytes of this structure: 8.
    pub info_length: u8,
    /// Levels of nodes between root and leaves.
    pub indirect_levels: u8,
    /// 0.
    pub unused_flags: u8,
}

/// struct dx_countlimit: in place of the first key's hash.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawCountLimit {
    /// Room for so many keys, this one included.
    pub limit: U16,
    /// Keys in use, this one included.
    pub count: U16,
}

/// struct dx_entry.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawKey {
    /// The least hash of the child.
    pub hash: U32,
    /// The child, a logical block of the directory.
    pub block: U32,
}

/// struct dx_tail.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawIndexTail {
    /// 0.
    pub dt_reserved: U32,
    /// crc32c of the inode seed, the block up to the last key in use, and this tail with zeros here.
    pub dt_checksum: U32,
}

/// Root or node: they differ in where their keys begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum IndexKind {
    /// Block 0 of a hashed directory.
    Root,
    /// A block below the root.
    Node,
}

/// One key of the index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// The least hash of the child; of the first key of a block, 0.
    pub hash: u32,
    /// The child, a logical block of the directory.
    pub block: u32,
}

/// What the root says of the index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootInfo {
    /// How names are hashed; whether bytes are signed is said by the superblock.
    pub hash_version: HashVersion,
    /// Levels of nodes between root and leaves.
    pub levels: u8,
}

impl Layout {
    /// Levels of nodes an index may have below its root.
    #[must_use]
    pub fn max_levels(&self) -> u8 {
        if self.largedir { 2 } else { 1 }
    }

    /// Where the keys begin and end (the tail begins), in bytes.
    fn keys_area(&self, kind: IndexKind) -> (usize, usize) {
        let start = match kind {
            IndexKind::Root => ROOT_KEYS,
            IndexKind::Node => NODE_KEYS,
        };
        let room = self.block_size.len().saturating_sub(start);
        let room = if self.checksum_seed.is_some() { room.saturating_sub(TAIL_LEN) } else { room };
        let room = room.checked_div(KEY_LEN).unwrap_or(0).saturating_mul(KEY_LEN);
        (start, start.saturating_add(room))
    }

    /// How many keys a root or node has room for, the first included.
    #[must_use]
    pub fn index_limit(&self, kind: IndexKind) -> usize {
        let (start, end) = self.keys_area(kind);
        end.saturating_sub(start).checked_div(KEY_LEN).unwrap_or(0)
    }

    /// Returns true if a block of a hashed directory, other than its first, looks like a node and not like a
    /// leaf.
    #[must_use]
    pub fn looks_like_node(&self, block: &[u8]) -> bool {
        RawEntry::ref_from_prefix(block).is_ok_and(|(head, _)| {
            head.inode == 0
                && head.name_len == 0
                && self.decode_rec_len(head.rec_len.get()) == self.block_size.len()
        })
    }

    /// What the root says; `Err` if this is not the root of an index that can be used, so that the directory
    /// has to be read as a linear one.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn root_info(&self, block: &[u8]) -> Result<RootInfo, Problem> {
        self.check_root_entries(block)?;
        let info = block.get(ROOT_INFO..).and_then(|bytes| RawRootInfo::ref_from_prefix(bytes).ok());
        let Some((info, _)) = info else { return Err("no room for an index root".into()) };
        if info.reserved_zero != 0 || usize::from(info.info_length) != size_of::<RawRootInfo>() {
            return Err(format!("index root: info_length {} is not 8", info.info_length).into());
        }
        let Some(hash_version) = HashVersion::from_byte(info.hash_version) else {
            return Err(format!("index root: hash_version {} is unknown", info.hash_version).into());
        };
        if info.unused_flags & 1 != 0 {
            return Err(format!("index root: unknown flags {:#x}", info.unused_flags).into());
        }
        if info.indirect_levels > self.max_levels() {
            return Err(format!(
                "index root: {} levels are more than {}",
                info.indirect_levels,
                self.max_levels()
            )
            .into());
        }
        let limit = self.raw_limit_and_count(block, IndexKind::Root)?.0;
        if limit != self.index_limit(IndexKind::Root) {
            return Err(
                format!("index root: limit {limit} is not {}", self.index_limit(IndexKind::Root)).into()
            );
        }
        Ok(RootInfo { hash_version, levels: info.indirect_levels })
    }

    fn check_root_entries(&self, block: &[u8]) -> Result<(), Problem> {
        self.check_len(block)?;
        let head = |offset: usize| {
            block.get(offset..).and_then(|bytes| RawEntry::ref_from_prefix(bytes).ok()).map(|(head, _)| *head)
        };
        let (Some(dot), Some(dotdot)) = (head(0), head(DOT_LEN)) else {
            return Err("no room for an index root".into());
        };
        let rest = self.block_size.len().saturating_sub(DOT_LEN);
        if usize::from(dot.rec_len.get()) != DOT_LEN || self.decode_rec_len(dotdot.rec_len.get()) != rest {
            return Err("index root: '.' and '..' do not cover the block".into());
        }
        Ok(())
    }

    fn raw_limit_and_count(&self, block: &[u8], kind: IndexKind) -> Result<(usize, usize), Problem> {
        let (start, _) = self.keys_area(kind);
        let raw = block.get(start..).and_then(|bytes| RawCountLimit::ref_from_prefix(bytes).ok());
        let Some((raw, _)) = raw else { return Err("no room for keys".into()) };
        Ok((raw.limit.get().into(), raw.count.get().into()))
    }

    /// The verifier of a root or node: what stands before the keys, limit and count, checksum.
    ///
    /// # Errors
    /// The first thing that is wrong, in words.
    pub fn verify_index(&self, block: &[u8], kind: IndexKind) -> Result<(), Problem> {
        match kind {
            IndexKind::Root => self.check_root_entries(block)?,
            IndexKind::Node => {
                self.check_len(block)?;
                if !self.looks_like_node(block) {
                    return Err("index node: no unused entry covers the block".into());
                }
            }
        }
        let (limit, count) = self.raw_limit_and_count(block, kind)?;
        let expected = self.index_limit(kind);
        if limit != expected {
            return Err(format!("index: limit {limit} is not {expected}").into());
        }
        if count == 0 || count > limit {
            return Err(format!("index: count {count} is not in 1..={limit}").into());
        }
        if let Some(seed) = self.checksum_seed {
            let expected = self.index_checksum(seed, block, kind, count);
            let found = self.index_tail(block, kind).map(|tail| tail.dt_checksum.get());
            if found != Some(expected) {
                let found = found.unwrap_or(0);
                return Err(format!("index: checksum {found:#010x} is not {expected:#010x}").into());
            }
        }
        Ok(())
    }

    fn index_tail<'a>(&self, block: &'a [u8], kind: IndexKind) -> Option<&'a RawIndexTail> {
        let (_, end) = self.keys_area(kind);
        block.get(end..).and_then(|bytes| RawIndexTail::ref_from_prefix(bytes).ok()).map(|(tail, _)| tail)
    }

    fn index_checksum(&self, seed: u32, block: &[u8], kind: IndexKind, count: usize) -> u32 {
        let (start, _) = self.keys_area(kind);
        let covered = start.saturating_add(count.saturating_mul(KEY_LEN));
        let sum = crc32c(seed, block.get(..covered).unwrap_or(block));
        let reserved = self.index_tail(block, kind).map_or(U32::ZERO, |tail| tail.dt_reserved);
        crc32c(crc32c(sum, reserved.as_bytes()), &[0; 4])
    }

    /// Makes the checksum of a root or node right; no-op without metadata_csum.
    pub fn set_index_checksum(&self, block: &mut [u8], kind: IndexKind) {
        let Some(seed) = self.checksum_seed else { return };
        let (_, end) = self.keys_area(kind);
        let sum = self.index_checksum(seed, block, kind, self.index_count(block, kind));
        if let Some((tail, _)) =
            block.get_mut(end..).and_then(|bytes| RawIndexTail::mut_from_prefix(bytes).ok())
        {
            tail.dt_checksum = sum.into();
        }
    }

    /// Keys in use, at most the limit, whatever the block says.
    #[must_use]
    pub fn index_count(&self, block: &[u8], kind: IndexKind) -> usize {
        let count = self.raw_limit_and_count(block, kind).map_or(0, |(_, count)| count);
        count.min(self.index_limit(kind))
    }

    /// The keys of a root or node as they lie there, the first with the limit and count in place of its hash.
    fn raw_keys<'a>(&self, block: &'a [u8], kind: IndexKind) -> &'a [RawKey] {
        let (start, _) = self.keys_area(kind);
        let len = self.index_count(block, kind).saturating_mul(KEY_LEN);
        let bytes = block.get(start..start.saturating_add(len)).unwrap_or_default();
        <[RawKey]>::ref_from_bytes(bytes).unwrap_or_default()
    }

    /// Key number `at`, if there is one.
    #[must_use]
    pub fn index_key(&self, block: &[u8], kind: IndexKind, at: usize) -> Option<Key> {
        let raw = self.raw_keys(block, kind).get(at)?;
        let hash = if at == 0 { 0 } else { raw.hash.get() };
        Some(Key { hash, block: raw.block.get() & BLOCK_MASK })
    }

    /// All keys.
    pub fn index_keys<'a>(&self, block: &'a [u8], kind: IndexKind) -> impl Iterator<Item = Key> + 'a {
        self.raw_keys(block, kind).iter().enumerate().map(|(at, raw)| Key {
            hash: if at == 0 { 0 } else { raw.hash.get() },
            block: raw.block.get() & BLOCK_MASK,
        })
    }

    /// The key that leads to names with `hash`: the last that is not greater.
    #[must_use]
    pub fn index_search(&self, block: &[u8], kind: IndexKind, hash: u32) -> usize {
        let keys = self.raw_keys(block, kind);
        keys.get(1..).unwrap_or_default().partition_point(|key| key.hash.get() <= hash)
    }

    /// Replaces all keys; the hash of the first is not kept.
    ///
    /// # Errors
    /// - There are no keys, or more than fit.
    /// - The block is unchanged then.
    pub fn set_index_keys(&self, block: &mut [u8], kind: IndexKind, keys: &[Key]) -> Result<(), Problem> {
        let limit = self.index_limit(kind);
        if keys.is_empty() || keys.len() > limit {
            return Err(format!("index: {} keys are not in 1..={limit}", keys.len()).into());
        }
        let (start, end) = self.keys_area(kind);
        let Some(area) = block.get_mut(start..end) else { return Err("no room for keys".into()) };
        let (slots, _) = area.as_chunks_mut::<KEY_LEN>();
        for (slot, key) in slots.iter_mut().zip(keys) {
            let raw = RawKey { hash: key.hash.into(), block: key.block.into() };
            slot.copy_from_slice(raw.as_bytes());
        }
        let number = |n: usize| U16::new(u16::try_from(n).unwrap_or(u16::MAX));
        let raw = RawCountLimit { limit: number(limit), count: number(keys.len()) };
        if let Some(target) = area.get_mut(..size_of::<RawCountLimit>()) {
            target.copy_from_slice(raw.as_bytes());
        }
        Ok(())
    }

    /// Adds a key behind key number `at`.
    ///
    /// # Errors
    /// - There is no room, or no key number `at`.
    /// - The block is unchanged then.
    pub fn insert_index_key(
        &self,
        block: &mut [u8],
        kind: IndexKind,
        at: usize,
        key: Key,
    ) -> Result<(), Problem> {
        let count = self.index_count(block, kind);
        if at >= count || count >= self.index_limit(kind) {
            return Err(format!("index: no room for a key behind number {at} of {count}").into());
        }
        let (start, end) = self.keys_area(kind);
        let place = start.saturating_add(at.saturating_add(1).saturating_mul(KEY_LEN));
        let used = start.saturating_add(count.saturating_mul(KEY_LEN));
        let Some(area) = block.get_mut(..end) else { return Err("no room for keys".into()) };
        area.copy_within(place..used, place.saturating_add(KEY_LEN));
        let raw = RawKey { hash: key.hash.into(), block: key.block.into() };
        if let Some(target) = area.get_mut(place..place.saturating_add(KEY_LEN)) {
            target.copy_from_slice(raw.as_bytes());
        }
        if let Some((raw, _)) =
            area.get_mut(start..).and_then(|bytes| RawCountLimit::mut_from_prefix(bytes).ok())
        {
            raw.count = U16::new(u16::try_from(count.saturating_add(1)).unwrap_or(u16::MAX));
        }
        Ok(())
    }

    /// Makes `block` the root of an index without levels, with one key.
    ///
    /// # Errors
    /// The block has another size.
    pub fn make_root(
        &self,
        block: &mut [u8],
        directory: u32,
        parent: u32,
        hash_version: HashVersion,
        child: u32,
    ) -> Result<(), Problem> {
        self.check_len(block)?;
        block.fill(0);
        let rest = self.block_size.len().saturating_sub(DOT_LEN);
        let kind = FileType::Directory.directory_byte();
        self.put(block, 0, DOT_LEN, b".", directory, kind);
        self.put(block, DOT_LEN, rest, b"..", parent, kind);
        let info = RawRootInfo {
            reserved_zero: 0.into(),
            hash_version: hash_version.byte(),
            info_length: 8,
            indirect_levels: 0,
            unused_flags: 0,
        };
        if let Some(target) = block.get_mut(ROOT_INFO..ROOT_KEYS) {
            target.copy_from_slice(info.as_bytes());
        }
        self.set_index_keys(block, IndexKind::Root, &[Key { hash: 0, block: child }])
    }

    /// Makes `block` a node with these keys.
    ///
    /// # Errors
    /// As [`Layout::set_index_keys`].
    pub fn make_node(&self, block: &mut [u8], keys: &[Key]) -> Result<(), Problem> {
        self.check_len(block)?;
        block.fill(0);
        self.put(block, 0, self.block_size.len(), &[], 0, 0);
        self.set_index_keys(block, IndexKind::Node, keys)
    }

    /// Sets the number of levels between root and leaves.
    pub fn set_levels(&self, block: &mut [u8], levels: u8) {
        if let Some((info, _)) =
            block.get_mut(ROOT_INFO..).and_then(|bytes| RawRootInfo::mut_from_prefix(bytes).ok())
        {
            info.indirect_levels = levels;
        }
    }

    /// Makes `..` in a root point to another directory.
    pub fn set_root_parent(&self, block: &mut [u8], parent: u32) {
        self.set_inode(block, DOT_LEN, parent, FileType::Directory);
    }
}
