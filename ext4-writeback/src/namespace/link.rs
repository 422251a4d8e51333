//! Giving an inode another name.

use crate::inode::log::log_inode;
use std::sync::Arc;

use ext4_core::format::inode::{FileType, InodeFlags};
use ext4_core::meta::{Transaction as _, credits, directory};
use ext4_core::{Errno, Error, InodeNumber, Result};

use crate::filesystem::{Filesystem, FilesystemInner};
use crate::inode::check_directory;
use crate::namespace::links::LINK_MAX;
use crate::namespace::names::{check_may_add, check_name};
use crate::namespace::names_changed;
use crate::volume::fast_commit::track::Operation;

impl Filesystem {
    /// Gives an inode another name.
    ///
    /// # Errors
    /// `EPERM` for a directory and for an immutable or append-only inode, `EMLINK` past 65,000 links, `ENOENT` where
    /// it has no name any more, `EEXIST`, `ENOSPC`.
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
    if child.inode.read().await.is_dir() {
        return Err(Error::posix(Errno::EPERM, format!("inode {number} is a directory")));
    }
    let _names = parent.rwlock.write().await;
    let _content = child.rwlock.write().await;
    {
        let directory = parent.inode.read().await;
        parent.check_alive()?;
        check_directory(&directory)?;
        check_may_add(&directory)?;
        if directory::lookup(&fs.volume.info, &directory, name).await?.is_some() {
            return Err(Error::posix(Errno::EEXIST, format!("{:?}", String::from_utf8_lossy(name))));
        }
    }
    let file_type = {
        let inode = child.inode.read().await;
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
        let mut directory = parent.inode.write().await;
        let size = directory.size;
        let added = directory::add(&fs.volume.info, &handle, &mut directory, name, number, file_type).await;
        fs.volume.fast_commits.directory_changed(handle.id(), &directory, size);
        if added.is_ok() {
            fs.volume.fast_commits.name_changed(handle.id(), Operation::Link, parent.number, number, name);
            names_changed(&mut directory, now);
        }
        parent.size.store(directory.size, std::sync::atomic::Ordering::Release);
        log_inode(&fs.volume, &handle, &parent, &directory, true).await?;
        added
    };
    added?;
    let mut inode = child.inode.write().await;
    inode.links_count += 1;
    inode.ctime = now;
    log_inode(&fs.volume, &handle, &child, &inode, true).await
}
