//! Growing an htree (`make_indexed_dir`, `do_split`): from a linear directory, leaf by leaf, node by node,
//! level by level.
//!
//! A full leaf gives the upper half of its hashes to a new block at the end of the directory; what stays is
//! packed towards the end of the leaf, so that a reader that is listing the block still has all of it ahead.
//! A full index block does the same; a full root hands all its keys to a new node and has one level more.
//!
//! Every step allocates first and changes then, and leaves a directory that is whole: running out of space in
//! the middle costs at most a split that was not needed.

use super::blocks::Expect;
use super::htree::{Frame, Path, Probe};
use super::{Directory, NewEntry};
use crate::error::{Errno, Error, Result};
use crate::format::directory::index::{IndexKind, Key};
use crate::format::directory::leaf::{Entry, Space};
use crate::format::directory::{Layout, Problem};
use crate::format::hash::{HashVersion, Hasher};
use crate::format::inode::{Inode, InodeFlags};
use crate::meta::{Buffer, Transaction};

/// How often an addition may find something else to split: each level of the index twice and the leaf a few
/// times.
const MAX_SPLITS: u32 = 12;

impl Directory<'_> {
    /// Makes a linear directory of one full block a hashed one, and adds `entry`.
    pub(super) async fn make_indexed(
        &self,
        transaction: &dyn Transaction,
        inode: &mut Inode,
        entry: &NewEntry<'_>,
    ) -> Result<()> {
        let first = self.read_block(inode, 0, Expect::Leaf).await?;
        let parent = first
            .read(|block| self.layout.check_first_leaf(block, inode.number.0))
            .map_err(|problem| self.corrupt_block(inode, &first, problem))?;
        // As the superblock has it: whether bytes are signed is said there alone, e2fsck knows no other
        // numbers here.
        let version = HashVersion::from_byte(self.info.fixed.def_hash_version)
            .ok_or_else(|| Error::Unsupported("the superblock's default directory hash".into()))?;
        let (leaf, buffer) = self.append(transaction, inode, self.leaf_kind()).await?;
        let image = first.image();
        let names = used_entries(&self.layout, &image).map_err(|problem| self.corrupt(inode, 0, problem))?;
        // The first two are `.` and `..`.
        let rest = names.iter().skip(2).map(content);
        self.fill(transaction, inode, &buffer, |block| self.layout.fill_leaf(block, rest))?;
        first
            .modify_as(transaction, self.index_kind(IndexKind::Root), |block| {
                self.layout.make_root(block, inode.number.0, parent, version, leaf)
            })?
            .map_err(|problem| self.corrupt(inode, 0, problem))?;
        inode.flags.insert(InodeFlags::INDEX);
        let this = Self { indexed: true, ..*self };
        match this.add_hashed(transaction, inode, entry).await? {
            Probe::Done(()) => Ok(()),
            Probe::Unusable(problem) => Err(this.corrupt(inode, 0, problem)),
        }
    }

    /// Adds a name through the index, splitting what is full on the way.
    pub(super) async fn add_hashed(
        &self,
        transaction: &dyn Transaction,
        inode: &mut Inode,
        entry: &NewEntry<'_>,
    ) -> Result<Probe<()>> {
        for _ in 0..MAX_SPLITS {
            let path = match self.probe(inode, entry.name).await? {
                Probe::Done(path) => path,
                Probe::Unusable(problem) => return Ok(Probe::Unusable(problem)),
            };
            let leaf = self.read_block(inode, path.leaf, Expect::Leaf).await?;
            if let Space::At(offset) = self.space_in(inode, &leaf, entry.name)? {
                self.insert_at(transaction, inode, &leaf, offset, entry)?;
                return Ok(Probe::Done(()));
            }
            if !self.split_index(transaction, inode, &path).await? {
                self.split_leaf(transaction, inode, &path, &leaf).await?;
            }
        }
        Err(self.corrupt(inode, 0, "index: splitting makes no room".into()))
    }

    fn is_full(&self, frame: &Frame) -> bool {
        frame.buffer.read(|block| self.layout.index_count(block, frame.kind))
            >= self.layout.index_limit(frame.kind)
    }

    /// Makes room for one more key above the leaf, one step; `false` if there is room already.
    async fn split_index(
        &self,
        transaction: &dyn Transaction,
        inode: &mut Inode,
        path: &Path,
    ) -> Result<bool> {
        // The lowest full block under one that is not full is split; if all are full, the root goes deeper.
        let full = path.frames.iter().rev().take_while(|frame| self.is_full(frame)).count();
        let Some(top) = path.frames.len().checked_sub(full) else { return Ok(false) };
        let Some(frame) = path.frames.get(top) else { return Ok(false) };
        match top.checked_sub(1).and_then(|above| path.frames.get(above)) {
            Some(parent) => self.split_node(transaction, inode, frame, parent).await?,
            None => self.add_level(transaction, inode, frame, path.frames.len()).await?,
        }
        Ok(true)
    }

    /// Moves the upper half of a node's keys to a new one, which its parent has room for.
    async fn split_node(
        &self,
        transaction: &dyn Transaction,
        inode: &mut Inode,
        frame: &Frame,
        parent: &Frame,
    ) -> Result<()> {
        let (logical, buffer) = self.append(transaction, inode, self.index_kind(IndexKind::Node)).await?;
        let keys: Vec<Key> = frame.buffer.read(|block| self.layout.index_keys(block, frame.kind).collect());
        let (lower, upper) = keys.split_at(keys.len() / 2);
        let Some(first) = upper.first() else {
            return Err(self.corrupt(inode, frame.logical, "index: no keys to split".into()));
        };
        let key = Key { hash: first.hash, block: logical };
        self.write_node(transaction, inode, &buffer, upper)?;
        self.write_keys(transaction, inode, frame, lower)?;
        self.add_key(transaction, inode, parent, key)
    }

    /// Moves all keys of the root to a new node below it.
    async fn add_level(
        &self,
        transaction: &dyn Transaction,
        inode: &mut Inode,
        root: &Frame,
        levels: usize,
    ) -> Result<()> {
        if levels > usize::from(self.layout.max_levels()) {
            let context = format!("the index of directory {}", inode.number);
            return Err(Error::posix(Errno::ENOSPC, context));
        }
        let (logical, buffer) = self.append(transaction, inode, self.index_kind(IndexKind::Node)).await?;
        let keys: Vec<Key> = root.buffer.read(|block| self.layout.index_keys(block, root.kind).collect());
        self.write_node(transaction, inode, &buffer, &keys)?;
        let levels = u8::try_from(levels).unwrap_or(u8::MAX);
        root.buffer
            .modify(transaction, |block| {
                self.layout.set_index_keys(block, IndexKind::Root, &[Key { hash: 0, block: logical }])?;
                self.layout.set_levels(block, levels);
                Ok(())
            })?
            .map_err(|problem| self.corrupt(inode, 0, problem))
    }

    fn write_node(
        &self,
        transaction: &dyn Transaction,
        inode: &Inode,
        buffer: &Buffer,
        keys: &[Key],
    ) -> Result<()> {
        buffer
            .modify(transaction, |block| self.layout.make_node(block, keys))?
            .map_err(|problem| self.corrupt_block(inode, buffer, problem))
    }

    fn write_keys(
        &self,
        transaction: &dyn Transaction,
        inode: &Inode,
        frame: &Frame,
        keys: &[Key],
    ) -> Result<()> {
        frame
            .buffer
            .modify(transaction, |block| self.layout.set_index_keys(block, frame.kind, keys))?
            .map_err(|problem| self.corrupt(inode, frame.logical, problem))
    }

    fn add_key(&self, transaction: &dyn Transaction, inode: &Inode, frame: &Frame, key: Key) -> Result<()> {
        frame
            .buffer
            .modify(transaction, |block| self.layout.insert_index_key(block, frame.kind, frame.at, key))?
            .map_err(|problem| self.corrupt(inode, frame.logical, problem))
    }

    /// Moves the names with the greater hashes of a full leaf to a new one.
    async fn split_leaf(
        &self,
        transaction: &dyn Transaction,
        inode: &mut Inode,
        path: &Path,
        leaf: &Buffer,
    ) -> Result<()> {
        let Some(parent) = path.frames.last() else { return Ok(()) };
        let image = leaf.image();
        let names =
            used_entries(&self.layout, &image).map_err(|problem| self.corrupt(inode, path.leaf, problem))?;
        let Some(split) = Split::choose(&self.layout, &path.hasher, &names) else {
            return Err(self.corrupt(inode, path.leaf, "full with fewer than two names".into()));
        };
        let (logical, buffer) = self.append(transaction, inode, self.leaf_kind()).await?;
        let side = |upper: bool| {
            names
                .iter()
                .zip(&split.goes)
                .filter(move |(_, goes)| **goes == upper)
                .map(|(entry, _)| content(entry))
        };
        self.fill(transaction, inode, &buffer, |block| self.layout.fill_leaf(block, side(true)))?;
        self.fill(transaction, inode, leaf, |block| self.layout.fill_leaf_from_end(block, side(false)))?;
        self.add_key(transaction, inode, parent, Key { hash: split.hash, block: logical })
    }

    fn fill(
        &self,
        transaction: &dyn Transaction,
        inode: &Inode,
        buffer: &Buffer,
        f: impl FnOnce(&mut [u8]) -> Result<(), Problem>,
    ) -> Result<()> {
        buffer.modify(transaction, f)?.map_err(|problem| self.corrupt_block(inode, buffer, problem))
    }
}

fn content<'e>(entry: &Entry<'e>) -> (&'e [u8], u32, u8) {
    (entry.name, entry.inode, entry.type_byte)
}

fn used_entries<'b>(layout: &Layout, block: &'b [u8]) -> Result<Vec<Entry<'b>>, Problem> {
    layout.entries(block).filter(|entry| !matches!(entry, Ok(entry) if entry.inode == 0)).collect()
}

/// Which names of a full leaf go to a new one.
struct Split {
    /// The new leaf's key: the least hash that goes, with the lowest bit set if a name with this hash stays.
    hash: u32,
    /// For each name, in the order of the leaf.
    goes: Vec<bool>,
}

impl Split {
    /// Half the bytes go, and neither side holds more than half a block if names are so long that this is
    /// possible; if that makes no cut, half the names go (the rule of the kernel's `do_split`).
    fn choose(layout: &Layout, hasher: &Hasher, names: &[Entry<'_>]) -> Option<Self> {
        let mut order: Vec<(u32, usize)> =
            names.iter().enumerate().map(|(at, entry)| (hasher.hash(entry.name).major, at)).collect();
        order.sort_unstable();
        let half = layout.block_size.len() / 2;
        let (mut size, mut moving) = (0, 0);
        for (_, at) in order.iter().rev() {
            let len = names.get(*at)?.used();
            if size + len / 2 > half {
                break;
            }
            size += len;
            moving += 1;
        }
        let cut = if moving < order.len() { order.len() - moving } else { order.len() / 2 };
        let (below, first) = (order.get(cut.checked_sub(1)?)?, order.get(cut)?);
        let hash = first.0 | u32::from(first.0 == below.0);
        let mut goes = vec![false; names.len()];
        for (_, at) in order.get(cut..)? {
            *goes.get_mut(*at)? = true;
        }
        Some(Self { hash, goes })
    }
}
