//! Synchronous inodes (`chattr +S`, `chattr +D`): a change of such an inode is durable when the operation
//! returns.
//!
//! With the flag `S` (SYNC) that is every change of the inode, and of a directory's names; with `D` (DIRSYNC)
//! every change of a directory's names. The flags are read from the inode each time, except by writes of an
//! open file, which takes the flag when it is opened (`file/open.rs`).

use std::sync::Arc;

use ext4_core::format::inode::InodeFlags;
use ext4_core::{Errno, InodeNumber, Result};

use crate::filesystem::FilesystemInner;
use crate::volume::OnMedium;

impl FilesystemInner {
    /// Makes changes of the names of `directories` durable, if one of them is synchronous. The caller holds
    /// no handle and no lock.
    ///
    /// # Errors
    /// `EIO`, `EROFS`: the commit failed. The names are changed all the same.
    pub(crate) async fn sync_names(self: &Arc<Self>, directories: &[InodeNumber]) -> Result<()> {
        self.sync_if_flagged(directories, InodeFlags::SYNC | InodeFlags::DIRSYNC).await
    }

    /// Makes changes of the attributes or the size of `inode` durable, if it is synchronous. The caller holds
    /// no handle and no lock.
    ///
    /// # Errors
    /// As [`FilesystemInner::sync_names`].
    pub(crate) async fn sync_attributes(self: &Arc<Self>, inode: InodeNumber) -> Result<()> {
        self.sync_if_flagged(&[inode], InodeFlags::SYNC).await
    }

    async fn sync_if_flagged(self: &Arc<Self>, inodes: &[InodeNumber], flags: InodeFlags) -> Result<()> {
        for number in inodes {
            let inode = match self.inode(*number).await {
                Ok(inode) => inode,
                // Deleted since then.
                Err(error) if error.errno() == Errno::ENOENT => continue,
                Err(error) => return Err(error),
            };
            if !inode.on_disk.read().await.flags.intersects(flags) {
                continue;
            }
            self.volume.make_durable(inode.last_transaction(false), false, OnMedium::No).await?;
        }
        Ok(())
    }
}
