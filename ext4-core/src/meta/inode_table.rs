//! Inodes in their table.

use super::{SuperblockInfo, Transaction};
use crate::error::Result;
use crate::format::inode::Inode;
use crate::types::InodeNumber;

/// Reads and verifies an inode. A free one (no links and a deletion time, or mode 0) is returned too: the caller
/// decides.
pub async fn read_inode(_info: &SuperblockInfo, _inode: InodeNumber) -> Result<Inode> {
    todo!()
}

/// Writes an inode into its slot with its checksum, as part of `transaction`.
pub async fn write_inode(
    _info: &SuperblockInfo,
    _transaction: &dyn Transaction,
    _inode: &Inode,
) -> Result<()> {
    todo!()
}
