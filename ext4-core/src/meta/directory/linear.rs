//! Linear directories, those without an index: block by block, name by name.
//!
//! A hole in such a directory is passed over, as the kernel does; the walk costs one mapping for each run of
//! blocks.

use std::ops::ControlFlow;

use super::blocks::Expect;
use super::{Directory, Located, NewEntry};
use crate::error::{Errno, Error, Result};
use crate::format::directory::Layout;
use crate::format::directory::leaf::Space;
use crate::format::inode::Inode;
use crate::meta::extent_tree::MappingState;
use crate::meta::{Buffer, Transaction, block_map};
use crate::types::LogicalBlock;

/// How many blocks are asked for in one go.
const READ_AHEAD: u32 = 32;

impl Directory<'_> {
    /// Gives `f` each block of the directory from `logical` on, index blocks included, until it breaks.
    pub(super) async fn walk<T>(
        &self,
        inode: &Inode,
        mut logical: u32,
        mut f: impl FnMut(u32, &Buffer) -> Result<ControlFlow<T>> + Send,
    ) -> Result<Option<T>> {
        let blocks = self.blocks(inode);
        while logical < blocks {
            let run = block_map::lookup(self.info, inode, LogicalBlock(logical)).await?;
            let len = run.len.clamp(1, blocks - logical);
            if let MappingState::Written(first) = run.state {
                for i in 0..len {
                    let physical = first.offset(u64::from(i));
                    if len > 1 && i % READ_AHEAD == 0 {
                        self.info.cache.prefetch(physical, READ_AHEAD.min(len - i));
                    }
                    let buffer = self.read_at(inode, logical + i, physical, Expect::Any).await?;
                    if let ControlFlow::Break(value) = f(logical + i, &buffer)? {
                        return Ok(Some(value));
                    }
                }
            }
            logical += len;
        }
        Ok(None)
    }

    /// How to walk over the entries of block `logical`, whatever it is: those of an index root lie as if
    /// there were no checksum tail, since the index covers it. `None` for a node, which has none.
    pub(super) fn entries_layout(&self, logical: u32, block: &[u8]) -> Option<Layout> {
        if self.indexed && self.layout.checksum_seed.is_some() {
            if logical == 0 {
                return Some(Layout { checksum_seed: None, ..self.layout });
            }
            if self.layout.looks_like_node(block) {
                return None;
            }
        }
        Some(self.layout)
    }

    fn find_in(&self, inode: &Inode, logical: u32, buffer: &Buffer, name: &[u8]) -> Result<Option<Located>> {
        let found = buffer.read(|block| match self.entries_layout(logical, block) {
            Some(layout) => layout.find(block, name),
            None => Ok(None),
        });
        let found = found.map_err(|problem| self.corrupt_block(inode, buffer, problem))?;
        Ok(found.map(|found| Located { buffer: buffer.clone(), found }))
    }

    /// Finds a name by looking at every block.
    pub(super) async fn locate_linear(&self, inode: &Inode, name: &[u8]) -> Result<Option<Located>> {
        self.walk(inode, 0, |logical, buffer| {
            Ok(match self.find_in(inode, logical, buffer, name)? {
                Some(located) => ControlFlow::Break(located),
                None => ControlFlow::Continue(()),
            })
        })
        .await
    }

    /// Finds `.` or `..`, which lie nowhere else.
    pub(super) async fn locate_in_first_block(&self, inode: &Inode, name: &[u8]) -> Result<Option<Located>> {
        if self.blocks(inode) == 0 {
            return Ok(None);
        }
        let buffer = self.read_block(inode, 0, Expect::Any).await?;
        self.find_in(inode, 0, &buffer, name)
    }

    /// Adds a name to the first block with room for it; else makes the directory hashed if it has one block
    /// and `may_index`; else to a new block.
    pub(super) async fn add_linear(
        &self,
        transaction: &dyn Transaction,
        inode: &mut Inode,
        entry: &NewEntry<'_>,
        may_index: bool,
    ) -> Result<()> {
        let place = self
            .walk(inode, 0, |_, buffer| {
                Ok(match self.space_in(inode, buffer, entry.name)? {
                    Space::At(offset) => ControlFlow::Break((buffer.clone(), offset)),
                    Space::Full | Space::Exists(_) => ControlFlow::Continue(()),
                })
            })
            .await?;
        if let Some((buffer, offset)) = place {
            return self.insert_at(transaction, inode, &buffer, offset, entry);
        }
        match self.blocks(inode) {
            0 => Err(self.corrupt(inode, 0, "the directory has no blocks".into())),
            1 if may_index => self.make_indexed(transaction, inode, entry).await,
            _ => {
                let (_, buffer) = self.append(transaction, inode, self.leaf_kind()).await?;
                let kind = entry.file_type.directory_byte();
                self.write_leaf(transaction, &buffer, &[(entry.name, entry.inode, kind)])
            }
        }
    }

    /// Where in a leaf a name has room; `EEXIST` if it is seen on the way.
    pub(super) fn space_in(&self, inode: &Inode, buffer: &Buffer, name: &[u8]) -> Result<Space> {
        let space = buffer
            .read(|block| self.layout.find_space(block, name))
            .map_err(|problem| self.corrupt_block(inode, buffer, problem))?;
        if let Space::Exists(_) = space {
            let context = format!("{:?} in directory {}", String::from_utf8_lossy(name), inode.number);
            return Err(Error::posix(Errno::EEXIST, context));
        }
        Ok(space)
    }

    /// Adds a name where [`Directory::space_in`] said.
    pub(super) fn insert_at(
        &self,
        transaction: &dyn Transaction,
        inode: &Inode,
        buffer: &Buffer,
        offset: usize,
        entry: &NewEntry<'_>,
    ) -> Result<()> {
        buffer
            .modify(transaction, |block| {
                self.layout.insert(block, offset, entry.name, entry.inode, entry.file_type)
            })?
            .map_err(|problem| self.corrupt_block(inode, buffer, problem))
    }
}
