//! link(2): another name for an inode.
//!
//! Locks: `rwlock` of the directory, then that of the inode, both for writing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ext4_core::format::inode::{FileType, InodeFlags};
use ext4_core::meta::{Transaction as _, credits, directory};
use ext4_core::{Errno, Error, InodeNumber, Result};

use crate::filesystem::{Filesystem, FilesystemInner};
use crate::inode::check_directory;
use crate::inode::log::log_inode;
use crate::namespace::names::{check_may_add, check_name};
use crate::volume::fast_commit::track::Operation;
use ext4_core::meta::links::LINK_MAX;
use ext4_core::meta::links::names_changed;

impl Filesystem {
    /// link(2): gives `inode` the further name `name` in the directory `parent`.
    ///
    /// # Errors
    /// - `EPERM`: the inode is a directory, immutable or append-only, or the directory is immutable.
    /// - `EMLINK`: the inode has 65,000 links.
    /// - `ENOENT`: the inode has no links any more, the directory was removed, or the name is empty.
    /// - `EEXIST`: the name exists, or is `.` or `..`.
    /// - `ENOTDIR`, `ENAMETOOLONG`, `EINVAL`, `ENOSPC`, `EROFS`: as for [`Filesystem::create_with`].
    pub async fn link(&self, inode: InodeNumber, parent: InodeNumber, name: impl AsRef<[u8]>) -> Result<()> {
        let name = name.as_ref().to_vec();
        self.run("link", parent, move |fs| async move {
            check_name(&name, Errno::EEXIST)?;
            match link(&fs, inode, parent, &name).await {
                Err(error) if error.errno() == Errno::ENOSPC && fs.volume.commit_for_space().await? => {
                    link(&fs, inode, parent, &name).await
                }
                result => result,
            }?;
            fs.sync_names(&[parent]).await
        })
        .await
    }
}

async fn link(
    fs: &Arc<FilesystemInner>,
    number: InodeNumber,
    parent: InodeNumber,
    name: &[u8],
) -> Result<()> {
    let parent = fs.inode(parent).await?;
    let child = fs.inode(number).await?;
    // A directory is refused before its lock is asked for: it could be the parent itself, or above it.
    if child.on_disk.read().await.is_dir() {
        return Err(Error::posix(Errno::EPERM, format!("inode {number} is a directory")));
    }
    let _names = parent.rwlock.write().await;
    let _content = child.rwlock.write().await;
    {
        let directory = parent.on_disk.read().await;
        parent.check_alive()?;
        check_directory(&directory)?;
        check_may_add(&directory)?;
        if directory::lookup(&fs.volume.info, &directory, name).await?.is_some() {
            return Err(Error::posix(Errno::EEXIST, format!("{:?}", String::from_utf8_lossy(name))));
        }
    }
    let file_type = {
        let inode = child.on_disk.read().await;
        child.check_alive()?;
        if inode.links_count == 0 {
            return Err(Error::posix(Errno::ENOENT, format!("inode {number} was unlinked")));
        }
        if inode.links_count >= LINK_MAX {
            return Err(Error::posix(Errno::EMLINK, format!("inode {number}")));
        }
        if inode.flags.intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND) {
            let context = format!("inode {number} is immutable or append-only");
            return Err(Error::posix(Errno::EPERM, context));
        }
        inode.file_type().unwrap_or(FileType::Regular)
    };
    let handle = fs.volume.begin_tracked(credits::ADD_NAME + 2 * credits::INODE, "link").await?;
    let now = fs.volume.now();
    let added = {
        let mut directory = parent.on_disk.write().await;
        let size = directory.size;
        let added = directory::add(&fs.volume.info, &handle, &mut directory, name, number, file_type).await;
        fs.volume.fast_commits.directory_changed(handle.id(), &directory, size);
        if added.is_ok() {
            fs.volume.fast_commits.name_changed(handle.id(), Operation::Link, parent.number, number, name);
            names_changed(&mut directory, now);
        }
        parent.size.store(directory.size, Ordering::Release);
        log_inode(&fs.volume, &handle, &parent, &directory, true).await?;
        added
    };
    added?;
    let mut inode = child.on_disk.write().await;
    inode.links_count += 1;
    inode.ctime = now;
    log_inode(&fs.volume, &handle, &child, &inode, true).await
}
