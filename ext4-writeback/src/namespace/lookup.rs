//! lookup and readdir: finding a directory entry by its name, and listing them.
//!
//! Locks: `rwlock` of the directory for reading.

use ext4_core::meta::directory;
use ext4_core::meta::directory::DirectoryEntry;
use ext4_core::{Errno, Error, InodeNumber, Result};

use crate::filesystem::Filesystem;
use crate::inode::check_directory;
use crate::namespace::NAME_MAX;

impl Filesystem {
    /// The inode that the entry `name` of the directory `parent` points to; also for `.` and `..`.
    ///
    /// # Errors
    /// - `ENOENT`: the directory has no such entry, or was removed.
    /// - `ENOTDIR`: `parent` is no directory.
    /// - `ENAMETOOLONG`: the name is longer than 255 bytes.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn lookup(&self, parent: InodeNumber, name: impl AsRef<[u8]>) -> Result<InodeNumber> {
        let name = name.as_ref();
        self.observe("lookup", parent, async {
            let not_there = || Error::posix(Errno::ENOENT, format!("{:?}", String::from_utf8_lossy(name)));
            if name.len() > NAME_MAX {
                let context = format!("name {:?}", String::from_utf8_lossy(name));
                return Err(Error::posix(Errno::ENAMETOOLONG, context));
            }
            let inode = self.inner.inode(parent).await?;
            let _names = inode.rwlock.read().await;
            let directory = inode.on_disk.read().await;
            inode.check_alive()?;
            check_directory(&directory)?;
            match name {
                b"" => Err(not_there()),
                b"." => Ok(parent),
                _ => match directory::lookup(&self.inner.volume.info, &directory, name).await? {
                    Some((inode, _)) => Ok(inode),
                    None => Err(not_there()),
                },
            }
        })
        .await
    }

    /// getdents(2): at most `max` entries of `directory` from `position` on, which is 0 at the start, then
    /// the [`DirectoryEntry::next`] of the last entry. `.` and `..` are included. Returns no entry at the
    /// end.
    ///
    /// # Errors
    /// - `ENOTDIR`: it is no directory.
    /// - `ENOENT`: it was removed.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn readdir(
        &self,
        directory: InodeNumber,
        position: u64,
        max: usize,
    ) -> Result<Vec<DirectoryEntry>> {
        self.observe("readdir", directory, async {
            let inode = self.inner.inode(directory).await?;
            let entries = {
                let _names = inode.rwlock.read().await;
                let raw = inode.on_disk.read().await;
                inode.check_alive()?;
                check_directory(&raw)?;
                directory::read(&self.inner.volume.info, &raw, position, max).await?
            };
            self.touch_atime(&inode).await?;
            Ok(entries)
        })
        .await
    }
}
