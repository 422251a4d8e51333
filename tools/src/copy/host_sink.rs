//! The sink that makes a tree on the host.
//!
//! The tree may come from an untrusted image. Every object is made relative to an open directory, and no name
//! below the root follows a symlink, so that no name in an image can lead out of the target directory.
//!
//! Owners and device nodes need root. Without it, the sink warns of each attribute that it cannot preserve,
//! and a file whose owner could not be set loses its set-user-ID and set-group-ID bits.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ext4_core::format::inode::FileType;
use ext4_core::{Errno, Error, Timestamp};
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, makedev,
    mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};

use super::{Content, Entry, Node, Preserve, Report, Sink};
use crate::display::escaped;

/// Makes a tree below a directory of the host; see the module.
#[derive(Debug)]
pub struct HostSink {
    preserve: Preserve,
    umask: u16,
    /// The path of open directories from the target to the current directory.
    directories: Vec<Level>,
    links: HashMap<(u64, u64), PathBuf>,
    is_root: bool,
    warned_of_owner: AtomicBool,
    /// True if an existing root file is overwritten in place, as cp(1) does; below the root, files are
    /// replaced.
    root_in_place: bool,
}

#[derive(Debug)]
struct Level {
    directory: OwnedFd,
    path: PathBuf,
    node: Option<Node>,
}

impl HostSink {
    /// A sink that makes its root in (or merges it into) the existing `directory`. `root_in_place` is true if
    /// an existing file in the place of the root is overwritten rather than replaced.
    ///
    /// # Errors
    /// The host's errors for opening the directory.
    pub fn new(
        directory: &Path,
        preserve: Preserve,
        umask: u16,
        root_in_place: bool,
    ) -> ext4_core::Result<Self> {
        let opened = File::open(directory)
            .map_err(|source| Error::host("open", directory.display().to_string(), &source))?;
        let level = Level { directory: opened.into(), path: directory.into(), node: None };
        Ok(Self {
            preserve,
            umask,
            directories: vec![level],
            links: HashMap::new(),
            is_root: nix::unistd::geteuid().is_root(),
            warned_of_owner: AtomicBool::new(false),
            root_in_place,
        })
    }

    fn level(&self) -> &Level {
        self.directories.last().expect("the directory a sink was made for is never left")
    }

    fn stat(&self, name: &OsStr) -> Result<Option<FileStat>, Error> {
        match fstatat(&self.level().directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(failed("read", errno)),
        }
    }

    /// Unlinks `name`, if it exists, so that another object can be made there.
    fn clear(&self, name: &OsStr) -> Result<(), Error> {
        if self.stat(name)?.is_some() {
            unlinkat(&self.level().directory, name, UnlinkatFlags::NoRemoveDir)
                .map_err(|errno| failed("replace", errno))?;
        }
        Ok(())
    }

    fn permissions(&self, node: &Node) -> u16 {
        if self.preserve.mode { node.mode } else { node.mode & 0o777 & !self.umask }
    }

    fn create(&self, name: &OsStr, node: &Node) -> Result<File, Error> {
        let directory = &self.level().directory;
        let at_root = self.directories.len() == 1;
        let mode = Mode::from_bits_truncate(u32::from(self.permissions(node) & 0o700 | 0o600));
        let common = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        if at_root && self.root_in_place && self.stat(name)?.is_some() {
            return openat(directory, name, common | OFlag::O_TRUNC, mode)
                .map(File::from)
                .map_err(|errno| failed("open", errno));
        }
        let make =
            || openat(directory, name, common | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW, mode);
        let made = match make() {
            Err(Errno::EEXIST) => {
                self.clear(name)?;
                make()
            }
            made => made,
        };
        made.map(File::from).map_err(|errno| failed("create", errno))
    }

    /// Sets the attributes of `node` on an object in the current directory. Owner first, since that clears
    /// set-user-ID bits and capabilities; then extended attributes, while the mode still lets the owner set
    /// them; then the mode; times last.
    fn apply(&self, object: Object, name: &OsStr, node: &Node, report: &dyn Report) -> Result<(), Error> {
        let mut mode = self.permissions(node);
        if self.preserve.owner {
            match object.change_owner(node.uid, node.gid) {
                Ok(()) => {}
                Err(Errno::EPERM | Errno::EINVAL) => {
                    mode &= 0o1777;
                    if !self.warned_of_owner.swap(true, Ordering::Relaxed) {
                        report.warning("owners are not kept: that needs root");
                    }
                }
                Err(errno) => return Err(failed("change the owner of", errno)),
            }
        }
        if self.preserve.xattrs {
            // Access control lists last: they may remove the right to set the other attributes.
            let (lists, others): (Vec<_>, Vec<_>) =
                node.xattrs.iter().partition(|(attribute, _)| attribute.starts_with(b"system."));
            for (attribute, value) in others.into_iter().chain(lists) {
                if let Err(source) = object.set_xattr(OsStr::from_bytes(attribute), value) {
                    report.warning(&format!(
                        "{}: attribute {} is not kept: {source}",
                        self.level().path.join(name).display(),
                        escaped(attribute)
                    ));
                }
            }
        }
        if node.file_type != FileType::Symlink {
            object.change_mode(mode).map_err(|errno| failed("change the mode of", errno))?;
        }
        if self.preserve.times {
            object.set_times(node.atime, node.mtime).map_err(|errno| failed("set the times of", errno))?;
        }
        Ok(())
    }

    fn remember(&mut self, name: &OsStr, node: &Node) {
        if let Some(identity) = node.identity {
            let path = self.level().path.join(name);
            self.links.insert(identity, path);
        }
    }

    fn make_special(&mut self, entry: &Entry, report: &dyn Report) -> Result<(), Error> {
        let name = OsStr::from_bytes(&entry.name);
        let node = &entry.node;
        self.clear(name)?;
        let directory = &self.level().directory;
        let kind = match node.file_type {
            FileType::Symlink => {
                symlinkat(OsStr::from_bytes(&node.target), directory, name)
                    .map_err(|errno| failed("create", errno))?;
                self.apply_by_name(name, node, report)?;
                self.remember(name, node);
                return Ok(());
            }
            FileType::Fifo => SFlag::S_IFIFO,
            FileType::Socket => SFlag::S_IFSOCK,
            FileType::CharacterDevice => SFlag::S_IFCHR,
            FileType::BlockDevice => SFlag::S_IFBLK,
            FileType::Regular | FileType::Directory => {
                return Err(failed("create", Errno::EINVAL));
            }
        };
        let device = makedev(node.device.0.into(), node.device.1.into());
        match mknodat(directory, name, kind, Mode::from_bits_truncate(0o600), device) {
            Ok(()) => {}
            Err(Errno::EPERM) if !self.is_root => {
                report.warning(&format!("{}: device node left out: that needs root", escaped(&entry.path)));
                return Ok(());
            }
            Err(errno) => return Err(failed("create", errno)),
        }
        self.apply_by_name(name, node, report)?;
        self.remember(name, node);
        Ok(())
    }

    fn make_directory(&mut self, entry: &Entry) -> Result<(), Error> {
        let parent = self.level();
        let name = if entry.name.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(&entry.name) };
        let mut made = false;
        if !entry.name.is_empty() {
            match mkdirat(&parent.directory, name, Mode::S_IRWXU) {
                Ok(()) => made = true,
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(failed("create", errno)),
            }
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory =
            openat(&parent.directory, name, flags, Mode::empty()).map_err(|errno| failed("open", errno))?;
        let path = if entry.name.is_empty() { parent.path.clone() } else { parent.path.join(name) };
        let node = (made || self.preserve.mode).then(|| entry.node.clone());
        self.directories.push(Level { directory, path, node });
        Ok(())
    }

    /// Sets the attributes of the current directory and makes its parent the current one.
    fn leave_directory(&mut self, report: &dyn Report) -> Result<(), Error> {
        let Some(Level { directory, path, node }) = self.directories.pop() else { return Ok(()) };
        if let Some(node) = node {
            let name = path.file_name().unwrap_or(OsStr::new("."));
            self.apply(Object::Open(directory.as_fd()), name, &node, report)?;
        }
        Ok(())
    }

    fn apply_by_name(&self, name: &OsStr, node: &Node, report: &dyn Report) -> Result<(), Error> {
        let directory = self.level().directory.as_fd();
        self.apply(Object::Named(directory, name), name, node, report)
    }
}

/// The object that attributes are set on: an open file or directory, or a name for objects that cannot be
/// opened. An open file stays accessible whatever its mode.
#[derive(Clone, Copy)]
enum Object<'a> {
    Open(BorrowedFd<'a>),
    Named(BorrowedFd<'a>, &'a OsStr),
}

impl Object<'_> {
    fn change_owner(self, uid: u32, gid: u32) -> Result<(), Errno> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match self {
            Self::Open(file) => fchown(file, uid, gid),
            Self::Named(directory, name) => fchownat(directory, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW),
        }
    }

    fn change_mode(self, mode: u16) -> Result<(), Errno> {
        let mode = Mode::from_bits_truncate(mode.into());
        match self {
            Self::Open(file) => fchmod(file, mode),
            Self::Named(directory, name) => fchmodat(directory, name, mode, FchmodatFlags::FollowSymlink),
        }
    }

    fn set_times(self, atime: Timestamp, mtime: Timestamp) -> Result<(), Errno> {
        let time = |time: Timestamp| TimeSpec::new(time.seconds, time.nanoseconds.into());
        let (atime, mtime) = (time(atime), time(mtime));
        match self {
            Self::Open(file) => futimens(file, &atime, &mtime),
            Self::Named(directory, name) => {
                utimensat(directory, name, &atime, &mtime, UtimensatFlags::NoFollowSymlink)
            }
        }
    }

    fn set_xattr(self, name: &OsStr, value: &[u8]) -> std::io::Result<()> {
        // The system calls for attributes take no directory handle; a path through /proc names the same
        // object.
        let handle = |file: BorrowedFd| Path::new("/proc/self/fd").join(file.as_raw_fd().to_string());
        match self {
            Self::Open(file) => xattr::set_deref(handle(file), name, value),
            Self::Named(directory, file) => xattr::set(handle(directory).join(file), name, value),
        }
    }
}

impl Sink for HostSink {
    async fn enter(&mut self, entry: &Entry) -> anyhow::Result<()> {
        Ok(tokio::task::block_in_place(|| self.make_directory(entry))?)
    }

    async fn leave(&mut self, report: &dyn Report) -> anyhow::Result<()> {
        Ok(tokio::task::block_in_place(|| self.leave_directory(report))?)
    }

    async fn file(
        &mut self,
        entry: &Entry,
        content: &mut Content,
        report: &dyn Report,
    ) -> anyhow::Result<u64> {
        let name = OsStr::from_bytes(&entry.name);
        let file = tokio::task::block_in_place(|| self.create(name, &entry.node))?;
        let mut bytes = 0;
        let mut end = 0;
        while let Some(chunk) = content.next().await? {
            tokio::task::block_in_place(|| file.write_all_at(&chunk.data, chunk.offset))
                .map_err(|source| Error::host("write", entry_path(self, name), &source))?;
            end = chunk.offset + chunk.data.len() as u64;
            bytes += chunk.data.len() as u64;
            report.bytes(chunk.data.len() as u64);
        }
        tokio::task::block_in_place(|| {
            let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
            if regular && end < entry.node.size {
                file.set_len(entry.node.size)
                    .map_err(|source| Error::host("extend", entry_path(self, name), &source))?;
            }
            if regular {
                self.apply(Object::Open(file.as_fd()), name, &entry.node, report)?;
            }
            self.remember(name, &entry.node);
            Ok::<_, Error>(())
        })?;
        Ok(bytes)
    }

    async fn special(&mut self, entry: &Entry, report: &dyn Report) -> anyhow::Result<()> {
        Ok(tokio::task::block_in_place(|| self.make_special(entry, report))?)
    }

    async fn link(&mut self, entry: &Entry) -> anyhow::Result<()> {
        let name = OsStr::from_bytes(&entry.name);
        let other = entry.node.identity.and_then(|identity| self.links.get(&identity));
        // A device node that could not be made has no other names either; the sink has warned of it.
        let Some(other) = other else { return Ok(()) };
        tokio::task::block_in_place(|| {
            self.clear(name)?;
            linkat(nix::fcntl::AT_FDCWD, other, &self.level().directory, name, LinkatFlags::empty())
                .map_err(|errno| failed("link", errno))
        })?;
        Ok(())
    }
}

fn entry_path(sink: &HostSink, name: &OsStr) -> String {
    sink.level().path.join(name).display().to_string()
}

fn failed(operation: &'static str, errno: Errno) -> Error {
    Error::posix(errno, operation)
}
