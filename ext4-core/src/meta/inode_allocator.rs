//! Inode allocation.

use super::{SuperblockInfo, Transaction};
use crate::error::Result;
use crate::types::InodeNumber;

/// Allocates an inode number: directories spread over flex groups (Orlov), others near `parent`.
///
/// # Errors
/// `ENOSPC`; those of the device and the transaction.
pub async fn allocate_inode(
    _info: &SuperblockInfo,
    _transaction: &dyn Transaction,
    _parent: InodeNumber,
    _is_directory: bool,
) -> Result<InodeNumber> {
    todo!()
}

/// Frees an inode number. The table slot must have been cleared or marked deleted by the caller.
///
/// # Errors
/// Corrupt where it was free already or is reserved; those of the device and the transaction.
pub async fn free_inode(
    _info: &SuperblockInfo,
    _transaction: &dyn Transaction,
    _inode: InodeNumber,
    _is_directory: bool,
) -> Result<()> {
    todo!()
}
