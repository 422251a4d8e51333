//! unlink(2) and rmdir(2): removing directory entries.
//!
//! Invariant: the transaction that takes the last link of an inode puts it on the orphan list, so a crash
//! before its deletion loses no block.
//!
//! Locks: `rwlock` of the directory, then that of the inode, both for writing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ext4_core::meta::{Transaction as _, credits, directory};
use ext4_core::{Errno, Error, InodeNumber, Result, Timestamp};

use crate::filesystem::{Filesystem, FilesystemInner};
use crate::inode::log::log_inode;
use crate::inode::{InodeInfo, check_directory};
use crate::namespace::names::{check_may_remove, check_name};
use crate::volume::fast_commit::reason::Reason;
use crate::volume::fast_commit::track::Operation;
use crate::volume::handle::Handle;
use ext4_core::meta::links::{self, names_changed};

impl Filesystem {
    /// unlink(2): removes the entry `name`, which is no directory, of the directory `parent`. The inode is
    /// deleted when its last link is gone and its last open file is closed.
    ///
    /// # Errors
    /// - `ENOENT`: there is no such entry, or the directory was removed.
    /// - `EISDIR`: the entry is a directory.
    /// - `ENOTDIR`: `parent` is no directory.
    /// - `EPERM`: the inode or its directory is immutable or append-only.
    /// - `EROFS`: the file system is not written.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn unlink(&self, parent: InodeNumber, name: impl AsRef<[u8]>) -> Result<()> {
        let name = name.as_ref().to_vec();
        self.run("unlink", parent, move |fs| async move {
            check_name(&name, Errno::EISDIR)?;
            remove(&fs, parent, &name, false).await?;
            fs.sync_names(&[parent]).await
        })
        .await
    }

    /// rmdir(2): removes the empty directory `name` of the directory `parent`.
    ///
    /// # Errors
    /// - `ENOENT`: there is no such entry, or the directory was removed.
    /// - `ENOTDIR`: the entry or `parent` is no directory.
    /// - `ENOTEMPTY`: it has entries besides `.` and `..`.
    /// - `EINVAL`: the name is `.` or `..`.
    /// - `EPERM`: it or its directory is immutable or append-only.
    /// - `EROFS`: the file system is not written.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn rmdir(&self, parent: InodeNumber, name: impl AsRef<[u8]>) -> Result<()> {
        let name = name.as_ref().to_vec();
        self.run("rmdir", parent, move |fs| async move {
            check_name(&name, Errno::EINVAL)?;
            remove(&fs, parent, &name, true).await?;
            fs.sync_names(&[parent]).await
        })
        .await
    }
}

async fn remove(
    fs: &Arc<FilesystemInner>,
    parent: InodeNumber,
    name: &[u8],
    expect_directory: bool,
) -> Result<()> {
    let parent = fs.inode(parent).await?;
    let victim = {
        let _names = parent.rwlock.write().await;
        let number = {
            let directory = parent.on_disk.read().await;
            parent.check_alive()?;
            check_directory(&directory)?;
            let found = directory::lookup(&fs.volume.info, &directory, name).await?;
            let missing = || Error::posix(Errno::ENOENT, format!("{:?}", String::from_utf8_lossy(name)));
            found.ok_or_else(missing)?.0
        };
        let victim = fs.inode_of_entry(parent.number, name, number).await?;
        check_not_above(&parent, &victim)?;
        let _content = victim.rwlock.write().await;
        check_removable(fs, &parent, &victim, expect_directory).await?;

        let credits = credits::REMOVE_NAME + 2 * credits::INODE + credits::ORPHAN;
        let handle = if expect_directory {
            fs.volume.begin_ineligible(credits, "rmdir", Reason::Directory).await?
        } else {
            fs.volume.begin_tracked(credits, "unlink").await?
        };
        let now = fs.volume.now();
        {
            let mut raw = parent.on_disk.write().await;
            directory::remove(&fs.volume.info, &handle, &mut raw, name).await?;
            fs.volume.fast_commits.directory_changed(handle.id(), &raw, raw.size);
            let (from, gone) = (parent.number, victim.number);
            fs.volume.fast_commits.name_changed(handle.id(), Operation::Unlink, from, gone, name);
            names_changed(&mut raw, now);
            if expect_directory {
                links::remove_subdirectory(&mut raw);
            }
            log_inode(&fs.volume, &handle, &parent, &raw, true).await?;
        }
        drop_link(fs, &handle, &victim, now).await?;
        drop(handle);
        Arc::clone(&victim)
    };
    fs.delete_unlinked(&victim).await;
    Ok(())
}

/// Checks that `child` is neither `parent` nor the root directory. A corrupt directory with an entry for
/// itself would be locked twice.
///
/// # Errors
/// `EUCLEAN`: it is.
pub(crate) fn check_not_above(parent: &InodeInfo, child: &InodeInfo) -> Result<()> {
    if parent.number == child.number || child.number == InodeNumber::ROOT {
        return Err(Error::corrupt(
            format!("directory {}", parent.number),
            format!("an entry points to {}, which is no child of it", child.number),
        ));
    }
    Ok(())
}

async fn check_removable(
    fs: &FilesystemInner,
    parent: &InodeInfo,
    victim: &InodeInfo,
    expect_directory: bool,
) -> Result<()> {
    let directory_flags = parent.on_disk.read().await.flags;
    let inode = victim.on_disk.read().await;
    check_may_remove(directory_flags, &inode)?;
    if inode.is_dir() != expect_directory {
        let errno = if expect_directory { Errno::ENOTDIR } else { Errno::EISDIR };
        return Err(Error::posix(errno, format!("inode {}", victim.number)));
    }
    if expect_directory && !directory::is_empty(&fs.volume.info, &inode).await? {
        return Err(Error::posix(Errno::ENOTEMPTY, format!("directory {}", victim.number)));
    }
    Ok(())
}

/// Lowers the link count of `victim` by one, or to 0 for a directory. An inode without links becomes an
/// orphan.
pub(crate) async fn drop_link(
    fs: &FilesystemInner,
    handle: &Handle,
    victim: &InodeInfo,
    now: Timestamp,
) -> Result<()> {
    let mut inode = victim.on_disk.write().await;
    inode.links_count = if inode.is_dir() { 0 } else { inode.links_count.saturating_sub(1) };
    inode.ctime = now;
    if inode.links_count == 0 {
        fs.volume.fast_commits.last_name_went(handle.id(), victim.number);
        fs.volume.orphans.add(&fs.volume.info, handle, &mut inode).await?;
        victim.unlinked.store(true, Ordering::Release);
    }
    log_inode(&fs.volume, handle, victim, &inode, true).await
}
