//! Writing dirty folios back.

use std::sync::Arc;

use crate::Result;
use crate::filesystem::FilesystemInner;
use crate::inode_info::InodeInfo;

/// Writes all dirty data of `inode` back and waits for it: I/O, conversions, size and times are in transactions when
/// it returns; nothing is committed.
pub(crate) async fn sync_inode_data(_fs: &Arc<FilesystemInner>, _inode: &Arc<InodeInfo>) -> Result<()> {
    todo!()
}
