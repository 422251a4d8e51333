//! Directories, linear and hashed.

use super::{SuperblockInfo, Transaction};
use crate::error::Result;
use crate::format::inode::{FileType, Inode};
use crate::types::InodeNumber;

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirectoryEntry {
    /// The name: 1 to 255 bytes, neither `/` nor NUL in it.
    pub name: Vec<u8>,
    /// The inode.
    pub inode: InodeNumber,
    /// Its type, where the entry tells.
    pub file_type: Option<FileType>,
    /// Where to go on after this entry: pass to [`read`].
    pub next: u64,
}

/// Makes `directory`, a new inode with no blocks, a directory with `.` and `..`.
pub async fn initialize(
    _info: &SuperblockInfo,
    _transaction: &dyn Transaction,
    _directory: &mut Inode,
    _parent: InodeNumber,
) -> Result<()> {
    todo!()
}

/// Finds a name. O(log n) in a hashed directory.
pub async fn lookup(
    _info: &SuperblockInfo,
    _directory: &Inode,
    _name: &[u8],
) -> Result<Option<(InodeNumber, Option<FileType>)>> {
    todo!()
}

/// Adds a name that is not there. A linear directory that outgrows one block becomes hashed (`dir_index`). May grow
/// the directory: changes size, sectors, flags, i_block of `directory`, not its times or links.
///
/// # Errors
/// `ENAMETOOLONG`, `ENOSPC`; `EEXIST` where the name is found in passing (the caller looks it up first).
pub async fn add(
    _info: &SuperblockInfo,
    _transaction: &dyn Transaction,
    _directory: &mut Inode,
    _name: &[u8],
    _inode: InodeNumber,
    _file_type: FileType,
) -> Result<()> {
    todo!()
}

/// Removes a name; `ENOENT` where it is not there.
pub async fn remove(
    _info: &SuperblockInfo,
    _transaction: &dyn Transaction,
    _directory: &Inode,
    _name: &[u8],
) -> Result<InodeNumber> {
    todo!()
}

/// Makes an existing name (also `..`) point to another inode.
pub async fn replace(
    _info: &SuperblockInfo,
    _transaction: &dyn Transaction,
    _directory: &Inode,
    _name: &[u8],
    _inode: InodeNumber,
    _file_type: FileType,
) -> Result<()> {
    todo!()
}

/// Up to `max` entries from `position` on (0: the start), `.` and `..` included. In the order of the blocks; a
/// position stays valid while entries are added and removed, as far as an entry that existed all the time is
/// returned exactly once in a linear directory.
pub async fn read(
    _info: &SuperblockInfo,
    _directory: &Inode,
    _position: u64,
    _max: usize,
) -> Result<Vec<DirectoryEntry>> {
    todo!()
}

/// True when there is nothing but `.` and `..`.
pub async fn is_empty(_info: &SuperblockInfo, _directory: &Inode) -> Result<bool> {
    todo!()
}
