//! creat(2), mkdir(2), mknod(2) and symlink(2): new inodes and their first names.
//!
//! Invariant: the name is added last, when the inode that it points to is whole, and both in one handle. If
//! adding fails (no space), the inode is treated as an unlinked one: put on the orphan list in the same
//! handle, then deleted. So a crash shows the name with a whole inode, or no name and no lost inode.
//!
//! Locks: `rwlock` of the directory for writing; the new inode's own lock from before it is in the inode
//! cache until it is whole.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ext4_core::format::features::Incompat;
use ext4_core::format::inode::{FileType, Inode, InodeFlags};
use ext4_core::format::xattr::acl::Acl;
use ext4_core::meta::xattr::SetMode;
use ext4_core::meta::{
    Transaction as _, credits, directory, extent_tree, inode_allocator, inode_table, xattr,
};
use ext4_core::{Errno, Error, InodeNumber, Result};

use crate::filesystem::{Filesystem, FilesystemInner};
use crate::inode::log::log_inode;
use crate::inode::{InodeInfo, check_directory};
use crate::namespace::names::{check_may_add, check_name};
use crate::namespace::new_inode::{
    Credentials, NewInode, Times, check_device, inherited_flags, mode_and_group,
};
use crate::namespace::xattr::{ACCESS_ACL, DEFAULT_ACL};
use ext4_core::meta::links::{self, names_changed};

use crate::namespace::symlink;
use crate::volume::fast_commit::reason::Reason;
use crate::volume::fast_commit::track::Operation;
use crate::volume::handle::Handle;

/// Extended attributes that are set in the handle that creates the inode; more are set one by one after it.
const XATTRS_AT_ONCE: usize = 8;

impl Filesystem {
    /// creat(2): creates a regular file named `name` in the directory `parent`. Returns its inode.
    ///
    /// # Errors
    /// Those of [`Filesystem::create_with`].
    pub async fn create(
        &self,
        parent: InodeNumber,
        name: impl AsRef<[u8]>,
        owner: Credentials,
    ) -> Result<InodeNumber> {
        self.create_with(parent, name, inheriting(FileType::Regular, owner)).await
    }

    /// mkdir(2): creates a directory named `name` in the directory `parent`. Returns its inode.
    ///
    /// # Errors
    /// Those of [`Filesystem::create_with`].
    pub async fn mkdir(
        &self,
        parent: InodeNumber,
        name: impl AsRef<[u8]>,
        owner: Credentials,
    ) -> Result<InodeNumber> {
        self.create_with(parent, name, inheriting(FileType::Directory, owner)).await
    }

    /// symlink(2): creates a symlink to `target` named `name` in the directory `parent`. Returns its inode.
    ///
    /// # Errors
    /// Those of [`Filesystem::create_with`].
    pub async fn symlink(
        &self,
        parent: InodeNumber,
        name: impl AsRef<[u8]>,
        target: impl AsRef<[u8]>,
        owner: Credentials,
    ) -> Result<InodeNumber> {
        let new = NewInode { target: target.as_ref().to_vec(), ..NewInode::new(FileType::Symlink, owner) };
        self.create_with(parent, name, new).await
    }

    /// mknod(2): creates a regular file, device node (`device`: major and minor number), FIFO or socket named
    /// `name` in the directory `parent`. Returns its inode.
    ///
    /// # Errors
    /// - `EINVAL`: the type is that of a directory or symlink.
    /// - Those of [`Filesystem::create_with`].
    pub async fn mknod(
        &self,
        parent: InodeNumber,
        name: impl AsRef<[u8]>,
        file_type: FileType,
        device: (u32, u32),
        owner: Credentials,
    ) -> Result<InodeNumber> {
        if matches!(file_type, FileType::Directory | FileType::Symlink) {
            return Err(Error::posix(Errno::EINVAL, format!("mknod of a {file_type:?}")));
        }
        self.create_with(parent, name, NewInode { device, ..inheriting(file_type, owner) }).await
    }

    /// Creates what `new` says, with all its attributes, named `name` in the directory `parent`, in one
    /// handle. Returns its inode.
    ///
    /// # Errors
    /// - `EEXIST`: the name exists, or is `.` or `..`.
    /// - `ENOENT`: the directory was removed, or the name or the symlink's target is empty.
    /// - `ENOTDIR`: `parent` is no directory.
    /// - `EMLINK`: the directory has too many subdirectories.
    /// - `ENAMETOOLONG`: the name is longer than 255 bytes, or the symlink's target than a block or 4095
    ///   bytes.
    /// - `EINVAL`: a slash or NUL in the name, a NUL in the target, or a device number that does not fit.
    /// - `EPERM`: the directory is immutable.
    /// - `ENOSPC`: no free inode or block.
    /// - `EROFS`: the file system is not written.
    /// - Those of [`Filesystem::setxattr`].
    pub async fn create_with(
        &self,
        parent: InodeNumber,
        name: impl AsRef<[u8]>,
        new: NewInode,
    ) -> Result<InodeNumber> {
        let name = name.as_ref().to_vec();
        self.run("create", parent, move |fs| async move {
            check_name(&name, Errno::EEXIST)?;
            symlink::check_target(&fs, &new)?;
            let made = match make(&fs, parent, &name, &new).await {
                Err(error) if error.errno() == Errno::ENOSPC && fs.volume.commit_for_space().await? => {
                    make(&fs, parent, &name, &new).await
                }
                result => result,
            }?;
            fs.sync_names(&[parent]).await?;
            Ok(made)
        })
        .await
    }
}

/// A new inode as a system call makes it: it inherits its directory's default access control list.
fn inheriting(file_type: FileType, owner: Credentials) -> NewInode {
    NewInode { inherit_acl: true, ..NewInode::new(file_type, owner) }
}

async fn make(
    fs: &Arc<FilesystemInner>,
    parent: InodeNumber,
    name: &[u8],
    new: &NewInode,
) -> Result<InodeNumber> {
    let info = &fs.volume.info;
    let parent = fs.inode(parent).await?;
    let _names = parent.rwlock.write().await;
    let template = {
        let directory = parent.on_disk.read().await;
        parent.check_alive()?;
        check_directory(&directory)?;
        check_may_add(&directory)?;
        if directory::lookup(info, &directory, name).await?.is_some() {
            return Err(Error::posix(Errno::EEXIST, format!("{:?}", String::from_utf8_lossy(name))));
        }
        if new.file_type == FileType::Directory {
            links::check_room_for_subdirectory(info.features(), &directory)?;
        }
        template(fs, &directory, new)?
    };
    let (at_once, later) = new.xattrs.split_at(new.xattrs.len().min(XATTRS_AT_ONCE));
    let credits = credits_for(new, at_once.len());
    let handle = match new.file_type {
        FileType::Regular => fs.volume.begin_tracked(credits, "create").await?,
        FileType::Directory => fs.volume.begin_ineligible(credits, "create", Reason::Directory).await?,
        _ => fs.volume.begin_ineligible(credits, "create", Reason::SpecialFile).await?,
    };
    let is_directory = new.file_type == FileType::Directory;
    let number = inode_allocator::allocate_inode(info, &handle, parent.number, is_directory).await?;
    track_inode(fs, &handle, number).await?;
    let child = Arc::new(fs.new_inode_info(Inode { number, ..template }));
    let made = {
        // Held until the inode is whole: an operation that finds it by its number before that waits.
        let mut inode = child.on_disk.write_unfound().await;
        fs.inodes.insert(&child);
        let made = match fill(fs, &handle, &parent, &mut inode, new, at_once).await {
            Ok(()) => add_name(fs, &handle, &parent, name, &inode).await,
            Err(error) => Err(error),
        };
        if made.is_err() {
            fs.volume.fast_commits.mark_ineligible(handle.id(), Reason::Failure);
            inode.links_count = 0;
            child.unlinked.store(true, Ordering::Release);
            fs.volume.orphans.add(info, &handle, &mut inode).await?;
        }
        child.size.store(inode.size, Ordering::Release);
        log_inode(&fs.volume, &handle, &child, &inode, true).await?;
        // From now on a write of the inode keeps bytes of its slot that this library does not know.
        inode.is_new = false;
        made
    };
    drop(handle);
    if let Err(error) = made {
        fs.delete_unlinked(&child).await;
        return Err(error);
    }
    for (name, value) in later {
        crate::namespace::xattr::set(fs, &child, name, Some(value), SetMode::Any, false).await?;
    }
    Ok(number)
}

/// Notes the new inode for fast commits, before anything of it is in its slot of the inode table.
async fn track_inode(fs: &FilesystemInner, handle: &Handle, number: InodeNumber) -> Result<()> {
    if fs.volume.fast_commits.is_enabled() {
        let blank = inode_table::slot(&fs.volume.info, number).await?.is_blank(fs.volume.extra_isize);
        fs.volume.fast_commits.inode_made(handle.id(), number, blank);
    }
    Ok(())
}

fn credits_for(new: &NewInode, xattrs: usize) -> u32 {
    let content = match new.file_type {
        FileType::Directory | FileType::Symlink => credits::ALLOCATE_BLOCKS + credits::EXTENT + 1,
        _ => 0,
    };
    let inherited = if new.inherit_acl { 2 } else { 0 };
    let xattrs = credits::XATTR * u32::try_from(xattrs + inherited).unwrap_or(u32::MAX);
    credits::ALLOCATE_INODE + content + xattrs + credits::ADD_NAME + credits::INODE + credits::ORPHAN
}

/// The new inode, without number and content.
fn template(fs: &FilesystemInner, parent: &Inode, new: &NewInode) -> Result<Inode> {
    let info = &fs.volume.info;
    let now = fs.volume.now();
    let (mode, gid) = mode_and_group(new, parent);
    let mut inode = Inode::new(InodeNumber(0), mode, &fs.volume.inode_layout, fs.volume.extra_isize, now);
    inode.links_count = 1;
    inode.uid = new.credentials.uid;
    inode.gid = gid;
    inode.flags = inherited_flags(parent.flags, new.file_type);
    inode.generation = info.environment.random_u32();
    inode.project = if inode.flags.contains(InodeFlags::PROJINHERIT) { parent.project } else { 0 };
    let times = new.times.unwrap_or(Times { atime: now, mtime: now, ctime: now, crtime: None });
    inode.atime = fs.volume.keepable(times.atime);
    inode.mtime = fs.volume.keepable(times.mtime);
    inode.ctime = fs.volume.keepable(times.ctime);
    inode.crtime = inode.crtime.map(|now| times.crtime.unwrap_or(now));
    let extents = info.features().incompat.contains(Incompat::EXTENTS);
    if extents && matches!(new.file_type, FileType::Regular | FileType::Directory) {
        extent_tree::initialize(&mut inode);
    }
    if matches!(new.file_type, FileType::CharacterDevice | FileType::BlockDevice) {
        check_device(new.device)?;
        inode.set_device_number(new.device.0, new.device.1);
    }
    Ok(inode)
}

/// Gives the new inode its content and its extended attributes.
async fn fill(
    fs: &FilesystemInner,
    handle: &Handle,
    parent: &InodeInfo,
    inode: &mut Inode,
    new: &NewInode,
    xattrs: &[(Vec<u8>, Vec<u8>)],
) -> Result<()> {
    let info = &fs.volume.info;
    match new.file_type {
        FileType::Directory => {
            inode.links_count = 2;
            directory::initialize(info, handle, inode, parent.number).await?;
        }
        FileType::Symlink => symlink::store_target(info, handle, inode, &new.target).await?,
        _ => {}
    }
    if new.inherit_acl && new.file_type != FileType::Symlink {
        inherit_acl(fs, handle, parent, inode).await?;
    }
    for (name, value) in xattrs {
        xattr::set(info, handle, inode, name, Some(value), SetMode::Any).await?;
    }
    if inode.file_acl.0 != 0 || inode.xattr_area.iter().any(|byte| *byte != 0) {
        fs.volume.fast_commits.mark_ineligible(handle.id(), Reason::Xattr);
    }
    Ok(())
}

/// Gives the new inode the access control list and mode that follow from its directory's default list; a new
/// directory gets the default list as well.
async fn inherit_acl(
    fs: &FilesystemInner,
    handle: &Handle,
    parent: &InodeInfo,
    inode: &mut Inode,
) -> Result<()> {
    let info = &fs.volume.info;
    let Some(default) = xattr::get(info, &*parent.on_disk.read().await, DEFAULT_ACL).await? else {
        return Ok(());
    };
    let acl = Acl::from_call(&default)
        .map_err(|problem| Error::corrupt(format!("inode {}: default ACL", parent.number), problem))?;
    let Some(acl) = acl else { return Ok(()) };
    let (access, permissions) = acl.inherit(inode.mode);
    inode.mode = (inode.mode & !0o777) | permissions;
    if let Some(access) = access {
        xattr::set(info, handle, inode, ACCESS_ACL, Some(&access.to_call()), SetMode::Any).await?;
    }
    if inode.is_dir() {
        xattr::set(info, handle, inode, DEFAULT_ACL, Some(&default), SetMode::Any).await?;
    }
    Ok(())
}

/// Adds the name of the new inode to its directory.
async fn add_name(
    fs: &FilesystemInner,
    handle: &Handle,
    parent: &InodeInfo,
    name: &[u8],
    inode: &Inode,
) -> Result<()> {
    let file_type = inode.file_type().unwrap_or(FileType::Regular);
    let mut directory = parent.on_disk.write().await;
    let size = directory.size;
    let added = directory::add(&fs.volume.info, handle, &mut directory, name, inode.number, file_type).await;
    fs.volume.fast_commits.directory_changed(handle.id(), &directory, size);
    fs.volume.fast_commits.name_changed(handle.id(), Operation::Create, parent.number, inode.number, name);
    if added.is_ok() {
        names_changed(&mut directory, fs.volume.now());
        if file_type == FileType::Directory {
            links::add_subdirectory(&mut directory);
        }
    }
    // Even if adding failed: the directory may have grown.
    parent.size.store(directory.size, Ordering::Release);
    log_inode(&fs.volume, handle, parent, &directory, true).await?;
    added
}
