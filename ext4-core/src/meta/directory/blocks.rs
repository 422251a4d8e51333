//! Directory blocks (`ext4_read_dirblock`, `ext4_append`): from a logical block to its verified buffer, and
//! new blocks at the end.
//!
//! Invariant: a directory's blocks reach from 0 to its size without a gap; a block that is appended is filled
//! before the function that appended it returns to the caller of this room.

use super::Directory;
use crate::error::{Errno, Error, Result};
use crate::format::directory::Problem;
use crate::format::directory::index::IndexKind;
use crate::format::features::Incompat;
use crate::format::inode::Inode;
use crate::meta::block_allocator::{AllocationRequest, allocate_blocks, free_blocks};
use crate::meta::extent_tree::{self, MappingState};
use crate::meta::{BlockKind, Buffer, Transaction, Verifier, block_map};
use crate::types::{BlockNumber, InodeNumber, LogicalBlock};

/// What a block is read as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Expect {
    /// Entries.
    Leaf,
    /// The root of the index.
    Root,
    /// A node of the index.
    Node,
    /// Whatever lies there, to be walked over as entries.
    Any,
}

impl Directory<'_> {
    /// How many blocks the directory has.
    pub(super) fn blocks(&self, inode: &Inode) -> u32 {
        u32::try_from(inode.size >> self.layout.block_size.bits()).unwrap_or(u32::MAX)
    }

    /// A corruption report about logical block `logical`.
    pub(super) fn corrupt(&self, inode: &Inode, logical: u32, problem: Problem) -> Error {
        Error::corrupt(format!("directory {}: logical block {logical}", inode.number), problem)
    }

    /// A corruption report about a block that is at hand.
    pub(super) fn corrupt_block(&self, inode: &Inode, buffer: &Buffer, problem: Problem) -> Error {
        Error::corrupt(format!("directory {}: block {}", inode.number, buffer.block()), problem)
    }

    /// The kind of a block of entries.
    pub(super) fn leaf_kind(&self) -> BlockKind {
        BlockKind::DirectoryLeaf(self.layout)
    }

    /// The kind of the root or of a node of the index.
    pub(super) fn index_kind(&self, kind: IndexKind) -> BlockKind {
        BlockKind::DirectoryIndex(self.layout, kind)
    }

    /// What block `logical`, with content `block`, is to be verified as.
    fn kind_of(&self, logical: u32, expect: Expect, block: &[u8]) -> BlockKind {
        let checksums = self.layout.checksum_seed.is_some();
        match expect {
            Expect::Leaf => self.leaf_kind(),
            Expect::Root => self.index_kind(IndexKind::Root),
            Expect::Node => self.index_kind(IndexKind::Node),
            Expect::Any if checksums && self.indexed && logical == 0 => self.index_kind(IndexKind::Root),
            Expect::Any if checksums && self.indexed && self.layout.looks_like_node(block) => {
                self.index_kind(IndexKind::Node)
            }
            Expect::Any => self.leaf_kind(),
        }
    }

    /// Reads the block at `physical`, known to be block `logical` of the directory.
    pub(super) async fn read_at(
        &self,
        inode: &Inode,
        logical: u32,
        physical: BlockNumber,
        expect: Expect,
    ) -> Result<Buffer> {
        let fetched = self.info.cache.fetch(physical).await?;
        let kind = fetched.read(|block| self.kind_of(logical, expect, block));
        fetched.verify(&DirectoryVerifier { kind, inode: inode.number, logical })
    }

    /// Reads block `logical`, which must be there.
    pub(super) async fn read_block(&self, inode: &Inode, logical: u32, expect: Expect) -> Result<Buffer> {
        let blocks = self.blocks(inode);
        if logical >= blocks {
            return Err(self.corrupt(inode, logical, format!("is past the end, {blocks} blocks").into()));
        }
        let mapping = block_map::lookup(self.info, inode, LogicalBlock(logical)).await?;
        match mapping.state {
            MappingState::Written(physical) => self.read_at(inode, logical, physical, expect).await,
            MappingState::Hole | MappingState::Unwritten(_) => {
                Err(self.corrupt(inode, logical, "is a hole".into()))
            }
        }
    }

    /// Adds a block of `kind` to the end of the directory; it holds zeros.
    pub(super) async fn append(
        &self,
        transaction: &dyn Transaction,
        inode: &mut Inode,
        kind: BlockKind,
    ) -> Result<(u32, Buffer)> {
        let logical = self.blocks(inode);
        let size = (u64::from(logical) + 1) << self.layout.block_size.bits();
        let large = self.info.features().incompat.contains(Incompat::LARGEDIR);
        if logical >= LogicalBlock::MAX.0 || (size > u64::from(u32::MAX) && !large) {
            return Err(self.full(inode));
        }
        let request = AllocationRequest {
            goal: self.goal(inode, logical).await?,
            inode: inode.number,
            len: 1,
            reserved: false,
            metadata: false,
        };
        let (info, at) = (self.info, LogicalBlock(logical));
        let physical = if inode.uses_extents() {
            let new = extent_tree::allocate(info, transaction, inode, at, &request).await?;
            if let Err(error) =
                extent_tree::insert(info, transaction, inode, at, new.physical, 1, false).await
            {
                extent_tree::give_back(info, transaction, &new, true).await?;
                return Err(if error.errno() == Errno::EFBIG { self.full(inode) } else { error });
            }
            new.physical
        } else {
            let (physical, _) = allocate_blocks(info, transaction, &request).await?;
            if let Err(error) = block_map::insert(info, transaction, inode, at, physical, 1).await {
                free_blocks(info, transaction, physical, 1, true).await?;
                // A directory that cannot grow is full.
                return Err(if error.errno() == Errno::EFBIG { self.full(inode) } else { error });
            }
            physical
        };
        let buffer = self.info.cache.create(transaction, physical, kind)?;
        inode.size = size;
        Ok((logical, buffer))
    }

    fn full(&self, inode: &Inode) -> Error {
        Error::posix(Errno::ENOSPC, format!("directory {} has reached its largest size", inode.number))
    }

    /// Next to the block before, so that a directory is read in one sweep.
    async fn goal(&self, inode: &Inode, logical: u32) -> Result<Option<BlockNumber>> {
        let Some(before) = logical.checked_sub(1) else { return Ok(None) };
        let mapping = block_map::lookup(self.info, inode, LogicalBlock(before)).await?;
        Ok(match mapping.state {
            MappingState::Written(physical) => Some(physical.offset(1)),
            MappingState::Hole | MappingState::Unwritten(_) => None,
        })
    }

    /// Fills a block of entries (name, inode, type byte).
    pub(super) fn write_leaf(
        &self,
        transaction: &dyn Transaction,
        buffer: &Buffer,
        entries: &[(&[u8], u32, u8)],
    ) -> Result<()> {
        buffer
            .modify(transaction, |block| self.layout.fill_leaf(block, entries.iter().copied()))?
            .map_err(|problem: Problem| Error::corrupt(format!("block {}", buffer.block()), problem))
    }
}

/// The verifier of a block of a directory.
struct DirectoryVerifier {
    kind: BlockKind,
    inode: InodeNumber,
    logical: u32,
}

impl Verifier for DirectoryVerifier {
    fn kind(&self) -> BlockKind {
        self.kind
    }

    fn verify(&self, block: BlockNumber, bytes: &[u8]) -> Result<()> {
        let verdict = match self.kind {
            // Without checksums a root that is none makes the directory a linear one; see `Directory::probe`.
            BlockKind::DirectoryIndex(layout, IndexKind::Root) if layout.checksum_seed.is_none() => {
                layout.check_len(bytes)
            }
            BlockKind::DirectoryIndex(layout, kind) => layout.verify_index(bytes, kind),
            BlockKind::DirectoryLeaf(layout) => layout.verify_leaf(bytes),
            _ => Err("is no block of a directory".into()),
        };
        verdict.map_err(|problem| {
            let what = format!("directory {}: logical block {} at block {block}", self.inode, self.logical);
            Error::corrupt(what, problem)
        })
    }
}
