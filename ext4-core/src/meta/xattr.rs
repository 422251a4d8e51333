//! Extended attributes, in the inode and in a block.

use super::{SuperblockInfo, Transaction};
use crate::error::Result;
use crate::format::inode::Inode;

/// What to do when the attribute is there or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetMode {
    /// Create or replace.
    Any,
    /// `EEXIST` where it is there.
    Create,
    /// `ENODATA` where it is not there.
    Replace,
}

/// The value of the attribute `name` (full name with its prefix: `user.colour`); `None` where it is not there.
/// POSIX ACLs (`system.posix_acl_access`) are returned in the form of the system call, as the kernel does.
pub async fn get(_info: &SuperblockInfo, _inode: &Inode, _name: &[u8]) -> Result<Option<Vec<u8>>> {
    todo!()
}

/// All names, with their prefixes.
pub async fn list(_info: &SuperblockInfo, _inode: &Inode) -> Result<Vec<Vec<u8>>> {
    todo!()
}

/// Sets (`Some`) or removes (`None`) an attribute; in the inode where it fits, else in the block. Changes
/// `xattr_area`, `file_acl`, `sectors` of `inode`.
///
/// # Errors
/// `ENODATA`, `EEXIST`, `ERANGE` (name too long), `EOPNOTSUPP` (prefix), `ENOSPC` (no room).
pub async fn set(
    _info: &SuperblockInfo,
    _transaction: &dyn Transaction,
    _inode: &mut Inode,
    _name: &[u8],
    _value: Option<&[u8]>,
    _mode: SetMode,
) -> Result<()> {
    todo!()
}

/// Gives up the attribute block of an inode that is being deleted.
pub async fn release_block(
    _info: &SuperblockInfo,
    _transaction: &dyn Transaction,
    _inode: &mut Inode,
) -> Result<()> {
    todo!()
}
