//! open(2) of a regular file: checks, the open count, and what a synchronous file makes durable.
//!
//! Invariant: the open count is raised under the inode's lock, while its link count is looked at. So an
//! unlink that takes the last link sees the opener, and leaves the inode to the close.

use std::ops::Range;

use ext4_core::format::inode::{FileType, InodeFlags};
use ext4_core::{Errno, Error, InodeNumber, Result};

use crate::file::File;
use crate::file::options::{OpenOptions, SyncMode};
use crate::filesystem::Filesystem;
use crate::volume::OnMedium;

impl Filesystem {
    /// Opens the regular file `inode`.
    ///
    /// # Errors
    /// Those of [`Filesystem::open_with`].
    pub async fn open(&self, inode: InodeNumber) -> Result<File> {
        self.open_with(inode, OpenOptions::default()).await
    }

    /// Opens the regular file `inode` as `options` say.
    ///
    /// # Errors
    /// - `EISDIR`: it is a directory.
    /// - `EINVAL`: it is no regular file, or no file can have that number.
    /// - `ENOENT`: the inode is free, or has no links any more.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn open_with(&self, inode: InodeNumber, options: OpenOptions) -> Result<File> {
        self.observe("open", inode, async {
            let mut options = options;
            let inode = self.inner.inode(inode).await?;
            {
                let raw = inode.on_disk.read().await;
                inode.check_alive()?;
                match raw.file_type() {
                    Some(FileType::Regular) => {}
                    Some(FileType::Directory) => {
                        return Err(Error::posix(Errno::EISDIR, format!("inode {}", inode.number)));
                    }
                    _ => {
                        return Err(Error::posix(
                            Errno::EINVAL,
                            format!("inode {} is no regular file", inode.number),
                        ));
                    }
                }
                if raw.links_count == 0 {
                    return Err(Error::posix(Errno::ENOENT, format!("inode {} was unlinked", inode.number)));
                }
                if raw.flags.contains(InodeFlags::SYNC) {
                    options.sync = SyncMode::All;
                }
                // Under the lock, so that an unlink that takes the last link sees it.
                self.inner.inodes.opened(&inode);
            }
            Ok(File::new(self.clone(), inode, options))
        })
        .await
    }
}

impl File {
    /// How the file was opened; `sync` is [`SyncMode::All`] also if the inode has the flag `S`.
    #[must_use]
    pub fn options(&self) -> OpenOptions {
        self.options
    }

    /// Makes bytes `range`, which were just changed through this file, durable, if the file was opened for
    /// that or if `asked` says so.
    ///
    /// # Errors
    /// Those of [`File::sync_all`].
    pub(crate) async fn sync_change(&self, range: Range<u64>, asked: SyncMode) -> Result<()> {
        self.sync_written(range, asked, OnMedium::No).await
    }

    /// As [`File::sync_change`], for a change whose data may be on the medium already.
    ///
    /// # Errors
    /// Those of [`File::sync_all`].
    pub(crate) async fn sync_written(
        &self,
        range: Range<u64>,
        asked: SyncMode,
        on_medium: OnMedium,
    ) -> Result<()> {
        match self.options.sync.max(asked) {
            SyncMode::None => Ok(()),
            SyncMode::Data => self.sync_bytes(range, true, on_medium).await,
            SyncMode::All => self.sync_bytes(range, false, on_medium).await,
        }
    }
}
