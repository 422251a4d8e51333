//! Extent trees: lookup, insert, split, merge, remove, conversion of unwritten extents.

use super::{SuperblockInfo, Transaction};
use crate::error::Result;
use crate::format::inode::Inode;
use crate::types::{BlockNumber, LogicalBlock};

/// What lies at a place of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MappingState {
    /// Nothing; reads as zeros.
    Hole,
    /// Blocks with data, from this one on.
    Written(BlockNumber),
    /// Blocks allocated but not written; reads as zeros.
    Unwritten(BlockNumber),
}

/// What lies at `logical`, and for how many blocks the answer holds. At least one; a hole reaches to the next
/// extent or to the last possible block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The first block of the answer.
    pub logical: LogicalBlock,
    /// For how many blocks it holds.
    pub len: u32,
    /// What is there.
    pub state: MappingState,
}

/// Makes `inode` extent-mapped with an empty tree.
pub fn initialize(_inode: &mut Inode) {
    todo!()
}

/// What lies at `logical` of an extent-mapped inode. The answer starts at `logical` exactly.
pub async fn lookup(_info: &SuperblockInfo, _inode: &Inode, _logical: LogicalBlock) -> Result<Mapping> {
    todo!()
}

/// Where block allocation for `logical` should start looking: behind the extent before it, in front of the one after.
pub async fn allocation_goal(
    _info: &SuperblockInfo,
    _inode: &Inode,
    _logical: LogicalBlock,
) -> Result<Option<BlockNumber>> {
    todo!()
}

/// Maps `len` blocks at `logical`, which are a hole, to `physical`. Merges with neighbours, allocates and splits nodes.
/// Adds what nodes take, and `len` blocks, to `inode.sectors`. `len` at most 32,768 (32,767 unwritten).
pub async fn insert(
    _info: &SuperblockInfo,
    _transaction: &dyn Transaction,
    _inode: &mut Inode,
    _logical: LogicalBlock,
    _physical: BlockNumber,
    _len: u32,
    _unwritten: bool,
) -> Result<()> {
    todo!()
}

/// Makes the unwritten blocks among `logical..logical + len` written; splits and merges. Holes are left alone;
/// written ones are fine.
pub async fn convert_to_written(
    _info: &SuperblockInfo,
    _transaction: &dyn Transaction,
    _inode: &mut Inode,
    _logical: LogicalBlock,
    _len: u32,
) -> Result<()> {
    todo!()
}

/// How far [`remove`] came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removal {
    /// Nothing is mapped in the range any more.
    Done,
    /// The transaction's credits ran low: log the inode, restart the transaction, call again with the same range.
    More,
}

/// Unmaps and frees the blocks of `first..=last`, from the end of the range towards its start, so that an interrupted
/// truncation can be resumed. Frees emptied nodes. Takes what it freed off `inode.sectors`.
pub async fn remove(
    _info: &SuperblockInfo,
    _transaction: &dyn Transaction,
    _inode: &mut Inode,
    _first: LogicalBlock,
    _last: LogicalBlock,
) -> Result<Removal> {
    todo!()
}

/// The node blocks of the tree, for consistency checks and `extents -v`.
pub async fn node_blocks(_info: &SuperblockInfo, _inode: &Inode) -> Result<Vec<BlockNumber>> {
    todo!()
}
