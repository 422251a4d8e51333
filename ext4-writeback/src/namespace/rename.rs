//! rename(2): moving a directory entry, replacing another, exchanging two.
//!
//! Invariant: a regular file that replaces another has its data on the device, and its size in the journal,
//! before the rename's handle starts (the kernel's `ext4_alloc_da_blocks`). Otherwise a crash after the
//! rename committed could show an empty file under a name whose old content is gone: a program that saves a
//! file by writing a new one and renaming it over the old one would lose both.
//!
//! Locks: the rename mutex if there are two directories; their `rwlock`s, the upper one's first; then those
//! of the inodes whose links or `..` change ([`lock_children`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ext4_core::format::inode::{FileType, Inode};
use ext4_core::meta::{Transaction as _, credits, directory};
use ext4_core::{Errno, Error, InodeNumber, Result};
use tokio::sync::MutexGuard;

use crate::base::lock_order::{Guard, WriteGuard};
use crate::filesystem::{Filesystem, FilesystemInner};
use crate::inode::log::log_inode;
use crate::inode::{InodeInfo, check_directory};
use crate::namespace::names::{check_may_add, check_may_remove, check_name};
use crate::namespace::remove::{check_not_above, drop_link};
use crate::volume::fast_commit::reason::Reason;
use crate::volume::fast_commit::track::Operation;
use crate::volume::handle::Handle;
use ext4_core::meta::links::{self, names_changed};

/// The flags of [`Filesystem::rename`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RenameFlags {
    /// True if the rename fails with `EEXIST` if the target exists (`RENAME_NOREPLACE`).
    pub no_replace: bool,
    /// True if the two entries swap their inodes (`RENAME_EXCHANGE`).
    pub exchange: bool,
}

impl Filesystem {
    /// renameat2(2): moves the entry `from` (directory and name) to `to`, in one step that a crash shows done
    /// or not done.
    ///
    /// # Errors
    /// - `ENOENT`: `from` does not exist, or `to` does not with `exchange`; one of the directories was
    ///   removed.
    /// - `EEXIST`: `to` exists, with `no_replace`.
    /// - `EINVAL`: a directory would be moved into itself, or both flags are given.
    /// - `ENOTEMPTY`: `to` is a directory with entries.
    /// - `ENOTDIR`, `EISDIR`: one of the two is a directory and the other is not.
    /// - `EBUSY`: one of the names is `.` or `..`.
    /// - `EMLINK`: the new directory has too many subdirectories.
    /// - `EPERM`: an inode or a directory is immutable or append-only.
    /// - `ENOSPC`: no free block for the new entry.
    /// - `EROFS`: the file system is not written.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn rename(
        &self,
        from: (InodeNumber, impl AsRef<[u8]>),
        to: (InodeNumber, impl AsRef<[u8]>),
        flags: RenameFlags,
    ) -> Result<()> {
        let (from, from_name) = (from.0, from.1.as_ref().to_vec());
        let (to, to_name) = (to.0, to.1.as_ref().to_vec());
        self.run("rename", from, move |fs| async move {
            check_name(&from_name, Errno::EBUSY)?;
            check_name(&to_name, Errno::EBUSY)?;
            if flags.no_replace && flags.exchange {
                return Err(Error::posix(Errno::EINVAL, "rename: exchange without replacing"));
            }
            let request = Request { from, from_name: &from_name, to, to_name: &to_name, flags };
            if !flags.no_replace && !flags.exchange {
                write_replacement(&fs, &request).await?;
            }
            match rename(&fs, &request).await {
                Err(error) if error.errno() == Errno::ENOSPC && fs.volume.commit_for_space().await? => {
                    rename(&fs, &request).await
                }
                result => result,
            }?;
            fs.sync_names(&[from, to]).await
        })
        .await
    }
}

struct Request<'a> {
    from: InodeNumber,
    from_name: &'a [u8],
    to: InodeNumber,
    to_name: &'a [u8],
    flags: RenameFlags,
}

impl Request<'_> {
    fn crosses(&self) -> bool {
        self.from != self.to
    }
}

async fn find(fs: &FilesystemInner, directory: &InodeInfo, name: &[u8]) -> Result<Option<InodeNumber>> {
    let raw = directory.on_disk.read().await;
    directory.check_alive()?;
    check_directory(&raw)?;
    Ok(directory::lookup(&fs.volume.info, &raw, name).await?.map(|(number, _)| number))
}

/// Writes the data of a regular file that is about to replace something back, and waits for it. The caller
/// holds no lock of the rename yet, because this takes long. Data that is written meanwhile is not waited
/// for.
async fn write_replacement(fs: &Arc<FilesystemInner>, request: &Request<'_>) -> Result<()> {
    let source = {
        let (from, to) = (fs.inode(request.from).await?, fs.inode(request.to).await?);
        let replaced = {
            let _names = to.rwlock.read().await;
            find(fs, &to, request.to_name).await?
        };
        if replaced.is_none() {
            return Ok(());
        }
        let _names = from.rwlock.read().await;
        match find(fs, &from, request.from_name).await? {
            Some(source) if Some(source) != replaced => {
                fs.inode_of_entry(request.from, request.from_name, source).await?
            }
            _ => return Ok(()),
        }
    };
    if source.on_disk.read().await.file_type() == Some(FileType::Regular) {
        // Also an error that struck in the background and that no opener was told of: what would be replaced
        // is the only good copy then.
        let mut cursor = source.write_errors.sample();
        crate::writeback::sync_inode::sync_inode_data(&fs.engine, &source).await?;
        source.take_write_error(&fs.volume, &mut cursor)?;
    }
    Ok(())
}

/// The locks of the two directories. They may be dropped in any order.
struct Directories<'a> {
    _tree: Option<Guard<MutexGuard<'a, ()>>>,
    _first: WriteGuard<'a, ()>,
    _second: Option<WriteGuard<'a, ()>>,
    /// If one directory lies above the other: the upper one, and its child on the way to the lower one.
    way_down: Option<(InodeNumber, InodeNumber)>,
}

/// Locks both directories, the upper one first.
async fn lock_directories<'a>(
    fs: &'a Arc<FilesystemInner>,
    from: &'a InodeInfo,
    to: &'a InodeInfo,
) -> Result<Directories<'a>> {
    if from.number == to.number {
        let first = from.rwlock.write().await;
        return Ok(Directories { _tree: None, _first: first, _second: None, way_down: None });
    }
    let tree = fs.rename.lock().await;
    let below_from = child_on_way(fs, from.number, to.number).await?;
    let below_to = match below_from {
        Some(_) => None,
        None => child_on_way(fs, to.number, from.number).await?,
    };
    let from_first = below_from.is_some() || (below_to.is_none() && from.number < to.number);
    let (upper, lower) = if from_first { (from, to) } else { (to, from) };
    let first = upper.rwlock.write().await;
    let second = lower.rwlock.write().await;
    let way_down = below_from.or(below_to).map(|child| (upper.number, child));
    Ok(Directories { _tree: Some(tree), _first: first, _second: Some(second), way_down })
}

/// The child of directory `upper` on the way to directory `lower`, if `upper` lies above it. The caller holds
/// the rename mutex.
async fn child_on_way(
    fs: &Arc<FilesystemInner>,
    upper: InodeNumber,
    lower: InodeNumber,
) -> Result<Option<InodeNumber>> {
    let mut current = lower;
    // Bounded: a corrupt file system may have a loop of parents.
    for _ in 0..fs.volume.info.inodes_count() {
        if current == InodeNumber::ROOT {
            return Ok(None);
        }
        let inode = fs.inode(current).await?;
        let parent = find(fs, &inode, b"..").await?;
        let parent = parent.ok_or_else(|| Error::corrupt(format!("directory {current}"), "no entry .."))?;
        if parent == upper {
            return Ok(Some(current));
        }
        current = parent;
    }
    Err(Error::corrupt(format!("directory {lower}"), "its parents form a loop"))
}

async fn rename(fs: &Arc<FilesystemInner>, request: &Request<'_>) -> Result<()> {
    let (from, to) = (fs.inode(request.from).await?, fs.inode(request.to).await?);
    let replaced = {
        let directories = lock_directories(fs, &from, &to).await?;
        let missing =
            || Error::posix(Errno::ENOENT, format!("{:?}", String::from_utf8_lossy(request.from_name)));
        let source = find(fs, &from, request.from_name).await?.ok_or_else(missing)?;
        let target = find(fs, &to, request.to_name).await?;
        check_way(request, &directories, source, target)?;
        if target == Some(source) {
            return Ok(());
        }
        let source = fs.inode_of_entry(request.from, request.from_name, source).await?;
        check_not_above(&from, &source)?;
        let target = match target {
            Some(target) => {
                let target = fs.inode_of_entry(request.to, request.to_name, target).await?;
                check_not_above(&to, &target)?;
                Some(target)
            }
            None => None,
        };
        let _children = lock_children(request, &source, target.as_deref()).await;
        let types = check(fs, request, &from, &to, &source, target.as_deref()).await?;
        let credits = credits::ADD_NAME + 3 * credits::REMOVE_NAME + 4 * credits::INODE + credits::ORPHAN;
        let handle = match types {
            Types { source: FileType::Directory, .. } | Types { target: Some(FileType::Directory), .. } => {
                fs.volume.begin_ineligible(credits, "rename", Reason::RenameDirectory).await?
            }
            _ if request.flags.exchange => {
                fs.volume.begin_ineligible(credits, "rename", Reason::CrossRename).await?
            }
            _ => fs.volume.begin_tracked(credits, "rename").await?,
        };
        let step = Step { fs, handle: &handle, from: &from, to: &to, source: &source, request };
        match &target {
            Some(target) if request.flags.exchange => step.exchange(target, types).await?,
            target => step.move_name(target.as_deref(), types).await?,
        }
        drop(handle);
        target.clone().filter(|_| !request.flags.exchange)
    };
    if let Some(replaced) = replaced {
        fs.delete_unlinked(&replaced).await;
    }
    Ok(())
}

/// Checks the flags, and that no directory is moved into itself or over one above it.
fn check_way(
    request: &Request<'_>,
    directories: &Directories<'_>,
    source: InodeNumber,
    target: Option<InodeNumber>,
) -> Result<()> {
    if request.flags.no_replace && target.is_some() {
        let context = format!("{:?}", String::from_utf8_lossy(request.to_name));
        return Err(Error::posix(Errno::EEXIST, context));
    }
    if request.flags.exchange && target.is_none() {
        let context = format!("{:?}", String::from_utf8_lossy(request.to_name));
        return Err(Error::posix(Errno::ENOENT, context));
    }
    if directories.way_down == Some((request.from, source)) {
        return Err(Error::posix(Errno::EINVAL, format!("directory {source} into itself")));
    }
    if target.is_some() && directories.way_down == target.map(|target| (request.to, target)) {
        let errno = if request.flags.exchange { Errno::EINVAL } else { Errno::ENOTEMPTY };
        return Err(Error::posix(errno, format!("over a directory above {source}")));
    }
    Ok(())
}

/// Locks those of the two inodes whose links or `..` change: a directory only if its parent changes or it is
/// removed, so that two directories of one parent are never both locked.
async fn lock_children<'a>(
    request: &Request<'_>,
    source: &'a InodeInfo,
    target: Option<&'a InodeInfo>,
) -> [Option<WriteGuard<'a, ()>>; 2] {
    let source_is_directory = source.on_disk.read().await.is_dir();
    let target_is_directory = match target {
        Some(target) => target.on_disk.read().await.is_dir(),
        None => false,
    };
    let lock_source = !source_is_directory || request.crosses();
    let lock_target = !target_is_directory || request.crosses() || !request.flags.exchange;
    let mut order = [lock_source.then_some(source), target.filter(|_| lock_target)];
    // A directory before another inode; two other inodes by their numbers.
    let target_first = match (source_is_directory, target_is_directory) {
        (true, _) => false,
        (false, true) => true,
        (false, false) => target.is_some_and(|target| target.number < source.number),
    };
    if target_first {
        order.reverse();
    }
    let mut guards = [None, None];
    for (guard, inode) in guards.iter_mut().zip(order) {
        if let Some(inode) = inode {
            *guard = Some(inode.rwlock.write().await);
        }
    }
    guards
}

/// The types of source and target.
#[derive(Clone, Copy)]
struct Types {
    source: FileType,
    target: Option<FileType>,
}

fn type_of(inode: &Inode) -> Result<FileType> {
    let wrong = || Error::corrupt(format!("inode {}", inode.number), format!("mode {:#o}", inode.mode));
    inode.file_type().ok_or_else(wrong)
}

async fn check(
    fs: &FilesystemInner,
    request: &Request<'_>,
    from: &InodeInfo,
    to: &InodeInfo,
    source: &InodeInfo,
    target: Option<&InodeInfo>,
) -> Result<Types> {
    let (from_flags, from_room) = {
        let from = from.on_disk.read().await;
        (from.flags, links::check_room_for_subdirectory(fs.volume.info.features(), &from))
    };
    let (to_flags, room) = {
        let to = to.on_disk.read().await;
        check_may_add(&to)?;
        (to.flags, links::check_room_for_subdirectory(fs.volume.info.features(), &to))
    };
    let source_type = {
        let source = source.on_disk.read().await;
        check_may_remove(from_flags, &source)?;
        type_of(&source)?
    };
    let is_directory = source_type == FileType::Directory;
    let Some(target) = target else {
        if is_directory && request.crosses() {
            room?;
        }
        return Ok(Types { source: source_type, target: None });
    };
    let target = target.on_disk.read().await;
    check_may_remove(to_flags, &target)?;
    let target_type = type_of(&target)?;
    let types = Types { source: source_type, target: Some(target_type) };
    if request.flags.exchange {
        if request.crosses() && is_directory && target_type != FileType::Directory {
            room?;
        }
        if request.crosses() && !is_directory && target_type == FileType::Directory {
            from_room?;
        }
        return Ok(types);
    }
    match (is_directory, target_type == FileType::Directory) {
        (true, false) => Err(Error::posix(Errno::ENOTDIR, format!("inode {}", target.number))),
        (false, true) => Err(Error::posix(Errno::EISDIR, format!("inode {}", target.number))),
        (true, true) if !directory::is_empty(&fs.volume.info, &target).await? => {
            Err(Error::posix(Errno::ENOTEMPTY, format!("directory {}", target.number)))
        }
        _ => Ok(types),
    }
}

/// One checked and locked rename.
struct Step<'a> {
    fs: &'a FilesystemInner,
    handle: &'a Handle,
    from: &'a InodeInfo,
    to: &'a InodeInfo,
    source: &'a InodeInfo,
    request: &'a Request<'a>,
}

impl Step<'_> {
    async fn move_name(&self, target: Option<&InodeInfo>, types: Types) -> Result<()> {
        let (info, request) = (&self.fs.volume.info, self.request);
        let now = self.fs.volume.now();
        let is_directory = types.source == FileType::Directory;
        {
            let mut to = self.to.on_disk.write().await;
            let (name, number) = (request.to_name, self.source.number);
            let size = to.size;
            let added = match target {
                Some(_) => directory::replace(info, self.handle, &mut to, name, number, types.source).await,
                None => directory::add(info, self.handle, &mut to, name, number, types.source).await,
            };
            self.fs.volume.fast_commits.directory_changed(self.handle.id(), &to, size);
            if added.is_ok() {
                if let Some(target) = target {
                    self.name_changed(Operation::Unlink, self.to, target.number, name);
                }
                self.name_changed(Operation::Link, self.to, number, name);
                names_changed(&mut to, now);
                if is_directory && types.target.is_none() {
                    links::add_subdirectory(&mut to);
                }
            }
            self.to.size.store(to.size, Ordering::Release);
            log_inode(&self.fs.volume, self.handle, self.to, &to, true).await?;
            added?;
        }
        {
            let mut from = self.from.on_disk.write().await;
            directory::remove(info, self.handle, &mut from, request.from_name).await?;
            self.fs.volume.fast_commits.directory_changed(self.handle.id(), &from, from.size);
            self.name_changed(Operation::Unlink, self.from, self.source.number, request.from_name);
            names_changed(&mut from, now);
            if is_directory {
                links::remove_subdirectory(&mut from);
            }
            log_inode(&self.fs.volume, self.handle, self.from, &from, true).await?;
        }
        if is_directory && request.crosses() {
            self.set_parent(self.source, self.to.number).await?;
        }
        self.changed(self.source, now).await?;
        match target {
            Some(target) => drop_link(self.fs, self.handle, target, now).await,
            None => Ok(()),
        }
    }

    fn name_changed(&self, operation: Operation, parent: &InodeInfo, inode: InodeNumber, name: &[u8]) {
        let transaction = self.handle.id();
        self.fs.volume.fast_commits.name_changed(transaction, operation, parent.number, inode, name);
    }

    async fn exchange(&self, target: &InodeInfo, types: Types) -> Result<()> {
        let (info, request) = (&self.fs.volume.info, self.request);
        let now = self.fs.volume.now();
        let target_type = types.target.unwrap_or(types.source);
        let is_directory = |file_type| file_type == FileType::Directory;
        let ends = [
            (self.to, request.to_name, self.source, types.source, target_type),
            (self.from, request.from_name, target, target_type, types.source),
        ];
        for (parent, name, comes, comes_type, goes_type) in ends {
            let mut raw = parent.on_disk.write().await;
            directory::replace(info, self.handle, &mut raw, name, comes.number, comes_type).await?;
            names_changed(&mut raw, now);
            match (is_directory(comes_type), is_directory(goes_type)) {
                (true, false) if request.crosses() => links::add_subdirectory(&mut raw),
                (false, true) if request.crosses() => links::remove_subdirectory(&mut raw),
                _ => {}
            }
            log_inode(&self.fs.volume, self.handle, parent, &raw, true).await?;
        }
        for (parent, _, comes, comes_type, _) in ends {
            if is_directory(comes_type) && request.crosses() {
                self.set_parent(comes, parent.number).await?;
            }
            self.changed(comes, now).await?;
        }
        Ok(())
    }

    /// Has the `..` of a directory point to its new parent.
    async fn set_parent(&self, child: &InodeInfo, parent: InodeNumber) -> Result<()> {
        let mut raw = child.on_disk.write().await;
        directory::replace(&self.fs.volume.info, self.handle, &mut raw, b"..", parent, FileType::Directory)
            .await?;
        log_inode(&self.fs.volume, self.handle, child, &raw, true).await
    }

    /// Updates the inode's ctime.
    async fn changed(&self, inode: &InodeInfo, now: ext4_core::Timestamp) -> Result<()> {
        let mut raw = inode.on_disk.write().await;
        raw.ctime = now;
        log_inode(&self.fs.volume, self.handle, inode, &raw, true).await
    }
}
