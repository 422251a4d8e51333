//! Truncation.

use std::sync::Arc;

use crate::Result;
use crate::filesystem::FilesystemInner;
use crate::inode_info::InodeInfo;

/// Sets the size of a regular file. Takes `rwlock` itself.
pub(crate) async fn set_size(_fs: &Arc<FilesystemInner>, _inode: &Arc<InodeInfo>, _size: u64) -> Result<()> {
    todo!()
}

/// Drops the page cache and frees all blocks of an inode that is being deleted and that nobody uses any more. The
/// inode is on the orphan list; it stays there.
pub(crate) async fn free_all_blocks(_fs: &Arc<FilesystemInner>, _inode: &Arc<InodeInfo>) -> Result<()> {
    todo!()
}

/// Finishes a truncation that a crash interrupted: frees what lies past the size and takes the inode off the orphans.
pub(crate) async fn resume(_fs: &Arc<FilesystemInner>, _inode: &Arc<InodeInfo>) -> Result<()> {
    todo!()
}
