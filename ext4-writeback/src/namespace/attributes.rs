//! getattr and setattr: the attributes of an inode, and access times.
//!
//! Invariant: a new mode and the access control list that follows it change in one handle, so no crash shows
//! permission bits that say one thing and a list that says another.
//!
//! Locks: `rwlock` for writing around a change; a change of size takes its own locks first
//! ([`crate::io::truncate`]).

use std::sync::Arc;

use ext4_core::format::inode::{FileType, Inode, InodeFlags};
use ext4_core::meta::{Transaction as _, credits};
use ext4_core::{Errno, Error, InodeNumber, Result, Timestamp};

use crate::filesystem::{Filesystem, FilesystemInner};
use crate::inode::InodeInfo;
use crate::inode::log::log_inode;
use crate::io::truncate;
use crate::namespace::new_inode::Times;
use crate::namespace::xattr;
use crate::volume::fast_commit::reason::Reason;

/// What stat(2) tells of an inode.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Attributes {
    /// The number.
    pub inode: InodeNumber,
    /// The type.
    pub file_type: FileType,
    /// Type and permission bits (i_mode).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes (i_size): it counts delayed data too.
    pub size: u64,
    /// Allocated blocks, and blocks reserved for delayed data, in sectors of 512 bytes.
    pub sectors: u64,
    /// Hard links.
    pub links: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation; `None` if the inode has no room for it.
    pub crtime: Option<Timestamp>,
    /// For device nodes: major and minor number.
    pub device: Option<(u32, u32)>,
    /// Flags (i_flags).
    pub flags: InodeFlags,
    /// Generation (i_generation), for NFS handles.
    pub generation: u32,
}

/// The attributes of an inode to change: none by [`SetAttributes::new`]; a method for each field sets a new
/// value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct SetAttributes {
    /// Permission bits; type bits are ignored.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<Timestamp>,
    /// Last change of the content.
    pub mtime: Option<Timestamp>,
}

impl SetAttributes {
    /// No change.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes the permission bits.
    #[must_use]
    pub fn mode(mut self, mode: u16) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Changes the owner.
    #[must_use]
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// Changes the group.
    #[must_use]
    pub fn gid(mut self, gid: u32) -> Self {
        self.gid = Some(gid);
        self
    }

    /// Changes the size, in bytes.
    #[must_use]
    pub fn size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }

    /// Changes the time of the last access.
    #[must_use]
    pub fn atime(mut self, atime: Timestamp) -> Self {
        self.atime = Some(atime);
        self
    }

    /// Changes the time of the last change of the content.
    #[must_use]
    pub fn mtime(mut self, mtime: Timestamp) -> Self {
        self.mtime = Some(mtime);
        self
    }
}

impl Filesystem {
    /// stat(2) of an inode (FUSE's getattr).
    ///
    /// # Errors
    /// - `ENOENT`: the inode is free.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn attributes(&self, inode: InodeNumber) -> Result<Attributes> {
        self.observe("getattr", inode, async {
            let inode = self.inner.inode(inode).await?;
            let raw = inode.on_disk.read().await;
            inode.check_alive()?;
            let what = format!("inode {}", inode.number);
            let file_type = raw
                .file_type()
                .ok_or_else(|| Error::corrupt(what, format!("mode {:#o} has no type", raw.mode)))?;
            let device = matches!(file_type, FileType::CharacterDevice | FileType::BlockDevice)
                .then(|| raw.device_number());
            // As in the kernel: some programs take a file without blocks for one that is all hole.
            let inline = if inode.is_inline() && raw.file_type() == Some(FileType::Regular) {
                raw.size.div_ceil(512)
            } else {
                0
            };
            let reserved = inode
                .extent_status
                .reserved_blocks()
                .saturating_mul(self.inner.volume.info.block_size().sectors());
            Ok(Attributes {
                inode: inode.number,
                file_type,
                mode: raw.mode,
                uid: raw.uid,
                gid: raw.gid,
                size: if file_type == FileType::Regular { inode.size() } else { raw.size },
                sectors: raw.sectors.saturating_add(reserved).saturating_add(inline),
                links: u32::from(raw.links_count),
                atime: raw.atime,
                mtime: raw.mtime,
                ctime: raw.ctime,
                crtime: raw.crtime,
                device,
                flags: raw.flags,
                generation: raw.generation,
            })
        })
        .await
    }

    /// chmod(2), chown(2), utimensat(2) and truncate(2) of an inode (FUSE's setattr). ctime is updated. As by
    /// chown(2), a new owner or group takes the set-user-ID bit from an inode that is no directory, and its
    /// set-group-ID bit if the group may execute, unless a mode is given too.
    ///
    /// # Errors
    /// - `EPERM`: the inode is immutable or append-only.
    /// - `EISDIR`, `EINVAL`: the size of a directory, or of another inode that is no regular file.
    /// - `EFBIG`: the size is past the largest that the file can have.
    /// - `ENOSPC`: no free block for an access control list.
    /// - `ENOENT`: the inode is free.
    /// - `EROFS`: the file system is not written.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn set_attributes(&self, inode: InodeNumber, changes: &SetAttributes) -> Result<()> {
        let changes = SetAttributes {
            atime: changes.atime.map(|time| self.inner.volume.keepable(time)),
            mtime: changes.mtime.map(|time| self.inner.volume.keepable(time)),
            ..*changes
        };
        self.run("setattr", inode, move |fs| async move {
            let inode = fs.inode(inode).await?;
            inode.check_alive()?;
            check_changeable(&inode, &changes).await?;
            if let Some(size) = changes.size {
                truncate::set_size(&fs.engine, &inode, size).await?;
            }
            if changes == (SetAttributes { size: changes.size, ..SetAttributes::default() }) {
                return fs.sync_attributes(inode.number).await;
            }
            set(&fs, &inode, &changes).await?;
            fs.sync_attributes(inode.number).await
        })
        .await
    }

    /// Sets all times of an inode at once, also ctime and crtime, which no system call sets: for tools that
    /// restore a tree.
    ///
    /// # Errors
    /// - `ENOENT`: the inode is free.
    /// - `EROFS`: the file system is not written.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn restore_times(&self, inode: InodeNumber, times: &Times) -> Result<()> {
        let times = *times;
        self.run("restore times", inode, move |fs| async move {
            let inode = fs.inode(inode).await?;
            let handle = fs.volume.begin_tracked(credits::INODE, "restore times").await?;
            let mut raw = inode.on_disk.write().await;
            inode.check_alive()?;
            raw.atime = fs.volume.keepable(times.atime);
            raw.mtime = fs.volume.keepable(times.mtime);
            raw.ctime = fs.volume.keepable(times.ctime);
            if times.crtime.is_some() && raw.crtime.is_some() {
                raw.crtime = times.crtime;
            }
            log_inode(&fs.volume, &handle, &inode, &raw, false).await
        })
        .await
    }

    /// Updates atime, if access times are kept: as with `relatime`, only if it is a day old, or not newer
    /// than the last change.
    pub(crate) async fn touch_atime(&self, inode: &Arc<InodeInfo>) -> Result<()> {
        let fs = &self.inner;
        if !fs.volume.options.access_times || fs.volume.check_writable().is_err() {
            return Ok(());
        }
        let now = fs.volume.now();
        {
            let raw = inode.on_disk.read().await;
            let old = raw.atime <= raw.mtime || raw.atime <= raw.ctime;
            let day = now.seconds.saturating_sub(raw.atime.seconds) >= 24 * 60 * 60;
            if raw.flags.contains(InodeFlags::NOATIME) || !(old || day) {
                return Ok(());
            }
        }
        if fs.volume.options.lazytime {
            let mut raw = inode.on_disk.write().await;
            if inode.check_alive().is_err() {
                return Ok(());
            }
            raw.atime = now;
            inode.pages.times.set_unlogged();
            fs.engine.lazy_times.add(inode, fs.volume.runtime.monotonic());
            return Ok(());
        }
        let inode = Arc::clone(inode);
        self.run("access time", inode.number, move |fs| async move {
            let handle = fs.volume.begin_tracked(credits::INODE, "access time").await?;
            let mut raw = inode.on_disk.write().await;
            if inode.check_alive().is_err() {
                return Ok(());
            }
            raw.atime = now;
            log_inode(&fs.volume, &handle, &inode, &raw, false).await
        })
        .await
    }
}

async fn set(fs: &Arc<FilesystemInner>, inode: &Arc<InodeInfo>, changes: &SetAttributes) -> Result<()> {
    let _content = inode.rwlock.write().await;
    inode.check_alive()?;
    let acl = if changes.mode.is_some() { credits::XATTR } else { 0 };
    let handle = fs.volume.begin_tracked(credits::INODE + acl, "setattr").await?;
    let mut raw = inode.on_disk.write().await;
    if let Some(mode) = changes.mode
        && xattr::follow_mode(&fs.volume.info, &handle, &mut raw, mode).await?
    {
        fs.volume.fast_commits.mark_ineligible(handle.id(), Reason::Xattr);
    }
    apply(&mut raw, changes, fs.volume.now());
    log_inode(&fs.volume, &handle, inode, &raw, false).await
}

async fn check_changeable(inode: &InodeInfo, changes: &SetAttributes) -> Result<()> {
    let raw = inode.on_disk.read().await;
    let append = raw.flags.contains(InodeFlags::APPEND);
    if raw.flags.contains(InodeFlags::IMMUTABLE) || (append && *changes != SetAttributes::default()) {
        let context = format!("inode {} is immutable or append-only", inode.number);
        return Err(Error::posix(Errno::EPERM, context));
    }
    if changes.size.is_some() && raw.file_type() != Some(FileType::Regular) {
        let errno = if raw.is_dir() { Errno::EISDIR } else { Errno::EINVAL };
        return Err(Error::posix(errno, format!("size of inode {}", inode.number)));
    }
    Ok(())
}

fn apply(raw: &mut Inode, changes: &SetAttributes, now: Timestamp) {
    let (set_user, set_group, group_execute) = (0o4000, 0o2000, 0o0010);
    if let Some(mode) = changes.mode {
        raw.mode = (raw.mode & 0xf000) | (mode & 0o7777);
    } else if (changes.uid.is_some() || changes.gid.is_some()) && !raw.is_dir() {
        raw.mode &= !set_user;
        if raw.mode & group_execute != 0 {
            raw.mode &= !set_group;
        }
    }
    raw.uid = changes.uid.unwrap_or(raw.uid);
    raw.gid = changes.gid.unwrap_or(raw.gid);
    raw.atime = changes.atime.unwrap_or(raw.atime);
    raw.mtime = changes.mtime.unwrap_or(raw.mtime);
    raw.ctime = now;
}
