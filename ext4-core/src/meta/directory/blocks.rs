//! From a logical block of a directory to its verified buffer, and new blocks at its end.
//!
//! Invariant: a directory's blocks reach from 0 to its size without a gap; a block that is appended is filled before
//! the function that appended it returns to the caller of this room.

use super::Directory;
use crate::error::{Errno, Error, Result};
use crate::format::directory::index::IndexKind;
use crate::format::directory::{Layout, Problem};
use crate::format::features::Incompat;
use crate::format::inode::Inode;
use crate::meta::block_allocator::{AllocationRequest, allocate_blocks, free_blocks};
use crate::meta::extent_tree::{self, MappingState};
use crate::meta::{BlockKind, Buffer, Transaction, block_map};
use crate::types::{BlockNumber, LogicalBlock};

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

    fn verify(
        layout: &Layout,
        indexed: bool,
        logical: u32,
        expect: Expect,
        block: &[u8],
    ) -> Result<(), Problem> {
        let checksums = layout.checksum_seed.is_some();
        match expect {
            Expect::Leaf => layout.verify_leaf(block),
            // Without checksums a root that is none makes the directory a linear one; see `root_info`.
            Expect::Root if checksums => layout.verify_index(block, IndexKind::Root),
            Expect::Root => layout.check_len(block),
            Expect::Node => layout.verify_index(block, IndexKind::Node),
            Expect::Any if checksums && indexed && logical == 0 => {
                layout.verify_index(block, IndexKind::Root)
            }
            Expect::Any if checksums && indexed && layout.looks_like_node(block) => {
                layout.verify_index(block, IndexKind::Node)
            }
            Expect::Any => layout.verify_leaf(block),
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
        let kind = match expect {
            Expect::Leaf | Expect::Any => BlockKind::Directory,
            Expect::Root | Expect::Node => BlockKind::DirectoryIndex,
        };
        let (layout, indexed, number) = (self.layout, self.indexed, inode.number);
        self.info
            .cache
            .read(physical, kind, |block| {
                Self::verify(&layout, indexed, logical, expect, block).map_err(|problem| {
                    let what = format!("directory {number}: logical block {logical} at block {physical}");
                    Error::corrupt(what, problem)
                })
            })
            .await
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

    /// Adds a block to the end of the directory; it holds zeros.
    pub(super) async fn append(
        &self,
        transaction: &dyn Transaction,
        inode: &mut Inode,
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
        let (physical, _) = allocate_blocks(self.info, transaction, &request).await?;
        let mapped = if inode.uses_extents() {
            extent_tree::insert(self.info, transaction, inode, LogicalBlock(logical), physical, 1, false)
                .await
        } else {
            let at = LogicalBlock(logical);
            block_map::insert(self.info, transaction, inode, at, physical, 1).await.map(drop)
        };
        // A directory that cannot grow is full.
        let full = |error: Error| if error.errno() == Errno::EFBIG { self.full(inode) } else { error };
        if let Err(error) = mapped.map_err(full) {
            free_blocks(self.info, transaction, physical, 1, true).await?;
            return Err(error);
        }
        let buffer = self.info.cache.create(transaction, physical)?;
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
            .modify(transaction, |block| {
                self.layout.fill_leaf(block, entries.iter().copied())?;
                self.layout.set_leaf_checksum(block);
                Ok(())
            })?
            .map_err(|problem: Problem| Error::corrupt(format!("block {}", buffer.block()), problem))
    }
}
