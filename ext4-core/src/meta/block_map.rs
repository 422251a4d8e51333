//! What lies at a place of a file, whichever way it is mapped: extents or indirect blocks.

use super::SuperblockInfo;
use super::extent_tree::Mapping;
use crate::error::Result;
use crate::format::inode::Inode;
use crate::types::LogicalBlock;

/// What lies at `logical` of any inode with mapped blocks.
pub async fn lookup(_info: &SuperblockInfo, _inode: &Inode, _logical: LogicalBlock) -> Result<Mapping> {
    todo!()
}
