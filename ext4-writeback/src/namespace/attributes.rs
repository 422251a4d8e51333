//! What stat, setattr and statfs speak of.

use crate::inode::log::log_inode;
use std::sync::Arc;

use ext4_core::format::inode::{FileType, Inode, InodeFlags};
use ext4_core::meta::{Transaction as _, credits};
use ext4_core::{Errno, Error, InodeNumber, Result, Timestamp};

use crate::filesystem::{Filesystem, FilesystemInner};
use crate::inode::InodeInfo;
use crate::namespace::new_inode::Times;
use crate::volume::fast_commit::reason::Reason;

/// What stat tells about an inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// Its number.
    pub inode: InodeNumber,
    /// Its type.
    pub file_type: FileType,
    /// Type and permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes (i_size: what was written, also where it is not on the device yet).
    pub size: u64,
    /// Allocated and reserved, in 512-byte sectors.
    pub sectors: u64,
    /// Hard links.
    pub links: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation, where recorded.
    pub crtime: Option<Timestamp>,
    /// For device nodes: major and minor number.
    pub device: Option<(u32, u32)>,
    /// Flags.
    pub flags: InodeFlags,
    /// Generation.
    pub generation: u32,
}

/// What to change of an inode; `None` leaves it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttributes {
    /// Permission bits (the type bits are ignored).
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

impl Filesystem {
    /// What stat tells of an inode.
    ///
    /// # Errors
    /// `ENOENT` where it is free.
    pub async fn attributes(&self, inode: InodeNumber) -> Result<Attributes> {
        self.observe("getattr", inode, async {
            let info = self.inner.inode(inode).await?;
            let raw = info.inode.read().await;
            info.check_alive()?;
            let what = format!("inode {inode}");
            let file_type = raw
                .file_type()
                .ok_or_else(|| Error::corrupt(what, format!("mode {:#o} has no type", raw.mode)))?;
            let device = matches!(file_type, FileType::CharacterDevice | FileType::BlockDevice)
                .then(|| raw.device_number());
            // As the kernel: some programs take a file of no blocks for one that is all hole.
            let inline = if info.is_inline() && raw.file_type() == Some(FileType::Regular) {
                raw.size.div_ceil(512)
            } else {
                0
            };
            let promised = info
                .extent_status
                .reserved_blocks()
                .saturating_mul(self.inner.volume.info.block_size().sectors());
            Ok(Attributes {
                inode,
                file_type,
                mode: raw.mode,
                uid: raw.uid,
                gid: raw.gid,
                size: if file_type == FileType::Regular { info.size() } else { raw.size },
                sectors: raw.sectors.saturating_add(promised).saturating_add(inline),
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

    /// Changes attributes; ctime follows. As for chown(2), a new owner or group takes the set-user-ID bit from what is
    /// no directory, and the set-group-ID bit where the group may execute, unless `mode` is given too.
    ///
    /// # Errors
    /// `EPERM` for an immutable inode, `EISDIR` and `EINVAL` for the size of what is no regular file, `EFBIG`,
    /// `ENOSPC`, `ENOENT`.
    pub async fn set_attributes(&self, inode: InodeNumber, changes: &SetAttributes) -> Result<()> {
        let changes = SetAttributes {
            atime: changes.atime.map(|time| self.inner.volume.keepable(time)),
            mtime: changes.mtime.map(|time| self.inner.volume.keepable(time)),
            ..*changes
        };
        self.run("setattr", inode, move |fs| async move {
            let info = fs.inode(inode).await?;
            info.check_alive()?;
            check_changeable(&info, &changes).await?;
            if let Some(size) = changes.size {
                crate::io::truncate::set_size(&fs.engine, &info, size).await?;
            }
            if changes == (SetAttributes { size: changes.size, ..SetAttributes::default() }) {
                return fs.sync_attributes(inode).await;
            }
            set(&fs, &info, &changes).await?;
            fs.sync_attributes(inode).await
        })
        .await
    }

    /// Sets all times at once, also those no program can set through a kernel: for tools that restore a tree.
    ///
    /// # Errors
    /// As [`Filesystem::set_attributes`].
    pub async fn restore_times(&self, inode: InodeNumber, times: &Times) -> Result<()> {
        let times = *times;
        self.run("restore times", inode, move |fs| async move {
            let info = fs.inode(inode).await?;
            let handle = fs.volume.begin_tracked(credits::INODE, "restore times").await?;
            let mut raw = info.inode.write().await;
            info.check_alive()?;
            raw.atime = fs.volume.keepable(times.atime);
            raw.mtime = fs.volume.keepable(times.mtime);
            raw.ctime = fs.volume.keepable(times.ctime);
            if times.crtime.is_some() && raw.crtime.is_some() {
                raw.crtime = times.crtime;
            }
            log_inode(&fs.volume, &handle, &info, &raw, false).await
        })
        .await
    }

    /// Notes an access where access times are written: as with `relatime`, only where the one noted is a day old or
    /// older than the last change.
    pub(crate) async fn touch_atime(&self, info: &Arc<InodeInfo>) -> Result<()> {
        let fs = &self.inner;
        if !fs.volume.options.access_times || fs.volume.check_writable().is_err() {
            return Ok(());
        }
        let now = fs.volume.now();
        {
            let raw = info.inode.read().await;
            let old = raw.atime <= raw.mtime || raw.atime <= raw.ctime;
            let day = now.seconds.saturating_sub(raw.atime.seconds) >= 24 * 60 * 60;
            if raw.flags.contains(InodeFlags::NOATIME) || !(old || day) {
                return Ok(());
            }
        }
        if fs.volume.options.lazytime {
            let mut raw = info.inode.write().await;
            if info.check_alive().is_err() {
                return Ok(());
            }
            raw.atime = now;
            info.pages.times.set_unlogged();
            fs.engine.lazy_times.add(info, fs.volume.runtime.monotonic());
            return Ok(());
        }
        let info = Arc::clone(info);
        self.run("access time", info.number, move |fs| async move {
            let handle = fs.volume.begin_tracked(credits::INODE, "access time").await?;
            let mut raw = info.inode.write().await;
            if info.check_alive().is_err() {
                return Ok(());
            }
            raw.atime = now;
            log_inode(&fs.volume, &handle, &info, &raw, false).await
        })
        .await
    }
}

async fn set(fs: &Arc<FilesystemInner>, info: &Arc<InodeInfo>, changes: &SetAttributes) -> Result<()> {
    let _content = info.rwlock.write().await;
    info.check_alive()?;
    let acl = if changes.mode.is_some() { credits::XATTR } else { 0 };
    let handle = fs.volume.begin_tracked(credits::INODE + acl, "setattr").await?;
    let mut raw = info.inode.write().await;
    if let Some(mode) = changes.mode
        && crate::namespace::xattr::follow_mode(&fs.volume.info, &handle, &mut raw, mode).await?
    {
        fs.volume.fast_commits.mark_ineligible(handle.id(), Reason::Xattr);
    }
    apply(&mut raw, changes, fs.volume.now());
    log_inode(&fs.volume, &handle, info, &raw, false).await
}

async fn check_changeable(info: &InodeInfo, changes: &SetAttributes) -> Result<()> {
    let raw = info.inode.read().await;
    let append = raw.flags.contains(InodeFlags::APPEND);
    if raw.flags.contains(InodeFlags::IMMUTABLE) || (append && *changes != SetAttributes::default()) {
        let context = format!("inode {} is immutable or append-only", info.number);
        return Err(Error::posix(Errno::EPERM, context));
    }
    if changes.size.is_some() && raw.file_type() != Some(FileType::Regular) {
        let errno = if raw.is_dir() { Errno::EISDIR } else { Errno::EINVAL };
        return Err(Error::posix(errno, format!("size of inode {}", info.number)));
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
