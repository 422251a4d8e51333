//! The htree (`dx_probe`): from a name's hash to its leaf, through the index.
//!
//! ```text
//!   root (block 0) ──► node ──► leaf ─ ─► next leaf, if the next key's lowest bit is set
//! ```
//!
//! Invariant: a walk down meets no block twice, and a walk along leaves with one hash ends after as many as
//! the directory has blocks. Were this wrong, one damaged block number would keep a lookup busy for ever.

use super::blocks::Expect;
use super::{Directory, Located};
use crate::error::Result;
use crate::format::directory::Problem;
use crate::format::directory::index::{IndexKind, Key};
use crate::format::hash::{Hasher, NameHash};
use crate::format::inode::Inode;
use crate::meta::Buffer;

/// The outcome of using an index.
pub(super) enum Probe<T> {
    /// It could be used.
    Done(T),
    /// The root is not that of an index this library knows: the directory can be read as a linear one.
    Unusable(Problem),
}

/// One level on the way down: a root or node, and the key that was followed.
pub(super) struct Frame {
    pub(super) logical: u32,
    pub(super) buffer: Buffer,
    pub(super) kind: IndexKind,
    pub(super) at: usize,
}

/// The way from the root to a leaf.
pub(super) struct Path {
    pub(super) hasher: Hasher,
    pub(super) hash: NameHash,
    /// Root first; at least one.
    pub(super) frames: Vec<Frame>,
    /// The leaf.
    pub(super) leaf: u32,
}

impl Directory<'_> {
    /// Walks down to the leaf of `name`.
    pub(super) async fn probe(&self, inode: &Inode, name: &[u8]) -> Result<Probe<Path>> {
        let buffer = self.read_block(inode, 0, Expect::Root).await?;
        let root = match buffer.read(|block| self.layout.root_info(block)) {
            Ok(root) => root,
            Err(problem) => return Ok(Probe::Unusable(problem)),
        };
        // Without checksums this is the first look at limit and count.
        buffer
            .read(|block| self.layout.verify_index(block, IndexKind::Root))
            .map_err(|problem| self.corrupt(inode, 0, problem))?;
        let hasher = self.hasher(root.hash_version);
        let hash = hasher.hash(name);
        let mut path = Path { hasher, hash, frames: Vec::with_capacity(3), leaf: 0 };
        path.leaf = self.push(inode, &mut path.frames, 0, buffer, IndexKind::Root, Some(hash.major))?;
        for _ in 0..root.levels {
            let logical = path.leaf;
            let buffer = self.read_block(inode, logical, Expect::Node).await?;
            path.leaf =
                self.push(inode, &mut path.frames, logical, buffer, IndexKind::Node, Some(hash.major))?;
        }
        Ok(Probe::Done(path))
    }

    /// Adds a level to the way down: the key for `hash`, or the first. Returns the child.
    fn push(
        &self,
        inode: &Inode,
        frames: &mut Vec<Frame>,
        logical: u32,
        buffer: Buffer,
        kind: IndexKind,
        hash: Option<u32>,
    ) -> Result<u32> {
        let (at, key) = buffer.read(|block| {
            let at = hash.map_or(0, |hash| self.layout.index_search(block, kind, hash));
            (at, self.layout.index_key(block, kind, at))
        });
        let child = self.child(inode, frames, logical, key)?;
        frames.push(Frame { logical, buffer, kind, at });
        Ok(child)
    }

    /// The child of a key in block `logical`, below `frames`; none of them may come again.
    fn child(&self, inode: &Inode, frames: &[Frame], logical: u32, key: Option<Key>) -> Result<u32> {
        let Some(key) = key else {
            return Err(self.corrupt(inode, logical, "index: a key is missing".into()));
        };
        if key.block == logical || key.block == 0 || frames.iter().any(|frame| frame.logical == key.block) {
            let problem = format!("index: key leads back to block {}", key.block);
            return Err(self.corrupt(inode, logical, problem.into()));
        }
        Ok(key.block)
    }

    /// Goes on to the next leaf if names with the same hash may lie there; `false` if not.
    async fn next_leaf(&self, inode: &Inode, path: &mut Path) -> Result<bool> {
        let depth = path.frames.len();
        let (mut popped, key) = loop {
            let Some(frame) = path.frames.last_mut() else {
                return Ok(false);
            };
            frame.at += 1;
            let key = frame.buffer.read(|block| self.layout.index_key(block, frame.kind, frame.at));
            match key {
                Some(key) => break (depth - path.frames.len(), key),
                None => path.frames.pop(),
            };
        };
        if key.hash & !1 != path.hash.major {
            return Ok(false);
        }
        let logical = path.frames.last().map_or(0, |frame| frame.logical);
        let above = path.frames.len().saturating_sub(1);
        path.leaf = self.child(inode, &path.frames[..above], logical, Some(key))?;
        while popped > 0 {
            let logical = path.leaf;
            let buffer = self.read_block(inode, logical, Expect::Node).await?;
            path.leaf = self.push(inode, &mut path.frames, logical, buffer, IndexKind::Node, None)?;
            popped -= 1;
        }
        Ok(true)
    }

    /// Finds a name through the index.
    pub(super) async fn locate_hashed(&self, inode: &Inode, name: &[u8]) -> Result<Probe<Option<Located>>> {
        let mut path = match self.probe(inode, name).await? {
            Probe::Done(path) => path,
            Probe::Unusable(problem) => return Ok(Probe::Unusable(problem)),
        };
        for _ in 0..self.blocks(inode) {
            let buffer = self.read_block(inode, path.leaf, Expect::Leaf).await?;
            let found = buffer
                .read(|block| self.layout.find(block, name))
                .map_err(|problem| self.corrupt_block(inode, &buffer, problem))?;
            if let Some(found) = found {
                return Ok(Probe::Done(Some(Located { buffer, found })));
            }
            if !self.next_leaf(inode, &mut path).await? {
                return Ok(Probe::Done(None));
            }
        }
        Err(self.corrupt(
            inode,
            path.leaf,
            "index: one hash goes on through more leaves than there are".into(),
        ))
    }
}
