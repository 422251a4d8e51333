//! Inodes that ask for it themselves: what is done to them is durable when the operation returns.
//!
//! `chattr +S` (SYNC): every change of the inode, and of a directory's names; `chattr +D` (DIRSYNC): of a directory's
//! names. The flags are read from the inode each time; a file's writes know them from its opening
//! ([`crate::file::options::OpenOptions::sync`]).

use ext4_core::format::inode::InodeFlags;
use ext4_core::{Errno, InodeNumber, Result};

use crate::filesystem::FilesystemInner;
use crate::volume::OnMedium;

impl FilesystemInner {
    /// After names of `directories` were changed: commits, where one of them asks for it. The caller holds no handle and
    /// no lock.
    ///
    /// # Errors
    /// Those of the journal and of the device. The names are changed all the same.
    pub(crate) async fn sync_names(self: &std::sync::Arc<Self>, directories: &[InodeNumber]) -> Result<()> {
        self.sync_where(directories, InodeFlags::SYNC | InodeFlags::DIRSYNC).await
    }

    /// After `inode`'s attributes or size were changed: the same.
    ///
    /// # Errors
    /// As [`FilesystemInner::sync_names`].
    pub(crate) async fn sync_attributes(self: &std::sync::Arc<Self>, inode: InodeNumber) -> Result<()> {
        self.sync_where(&[inode], InodeFlags::SYNC).await
    }

    async fn sync_where(
        self: &std::sync::Arc<Self>,
        inodes: &[InodeNumber],
        asking: InodeFlags,
    ) -> Result<()> {
        for number in inodes {
            let info = match self.inode(*number).await {
                Ok(info) => info,
                // Deleted since: there is nothing to be kept.
                Err(error) if error.errno() == Errno::ENOENT => continue,
                Err(error) => return Err(error),
            };
            if !info.inode.read().await.flags.intersects(asking) {
                continue;
            }
            self.volume.make_durable(info.last_transaction(false), false, OnMedium::No).await?;
        }
        Ok(())
    }
}
