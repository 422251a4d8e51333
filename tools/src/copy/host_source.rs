//! The source that walks a tree of the host and reads its files ahead of the sink.
//!
//! The walk runs on a blocking thread; up to [`READERS`] further threads read large files. Holes are found
//! with `SEEK_DATA` and `SEEK_HOLE`. Extended attributes that the kernel lists but does not let the caller
//! read (`trusted.*` without privilege) are left out, as in other copying tools.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use ext4_core::format::inode::FileType;
use ext4_core::{Errno, Error, Timestamp};
use nix::unistd::Whence;
use tokio::sync::{Semaphore, mpsc};

use super::{
    CHUNK, Chunk, Content, Entry, Event, Events, Node, QUEUED_CHUNKS, QUEUED_EVENTS, READERS, SMALL_FILE,
};
use crate::target::join;

/// A tree of the host, and how to walk it.
#[derive(Clone, Debug)]
pub struct HostTree {
    /// The root of the tree: a directory, or any single object.
    pub root: PathBuf,
    /// The name in the root's event; empty to merge the root into an existing directory.
    pub name: Vec<u8>,
    /// True if a root that is a symlink is followed.
    pub follow_root: bool,
    /// True if the walk goes below the root.
    pub recursive: bool,
    /// True if extended attributes are read.
    pub xattrs: bool,
    /// Regular files that the walk leaves out, by any of their names: the files that are being written.
    pub exclude: Vec<PathBuf>,
}

impl HostTree {
    /// The tree of everything in the directory `root`, to be merged into an existing directory.
    #[must_use]
    pub fn contents_of(root: &Path) -> Self {
        Self {
            root: root.into(),
            name: Vec::new(),
            follow_root: true,
            recursive: true,
            xattrs: true,
            exclude: Vec::new(),
        }
    }

    /// Starts the walk. Has to be called within a tokio runtime.
    #[must_use]
    pub fn walk(self) -> Events {
        let (sender, receiver) = mpsc::channel(QUEUED_EVENTS);
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Handle::current();
            let readers = Arc::new(Semaphore::new(READERS));
            let mut walk = Walk { sender: &sender, readers, runtime, seen: HashSet::new() };
            if let Err(error) = walk.run(&self) {
                // If the sink failed first, the receiver is closed and the error is dropped.
                let _ = sender.blocking_send(Err(error));
            }
        });
        receiver
    }

    /// Calls `visit` for every object of the tree in the order of the walk, with its depth, path and
    /// attributes. Reads no file content.
    ///
    /// # Errors
    /// - The host's errors, with the path.
    /// - Those of `visit`.
    pub fn scan(
        &self,
        mut visit: impl FnMut(usize, &Path, &Node, &Metadata) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let excluded: Vec<(u64, u64)> = self
            .exclude
            .iter()
            .filter_map(|path| path.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino())))
            .collect();
        let walker = walkdir::WalkDir::new(&self.root)
            .follow_root_links(self.follow_root)
            .max_depth(if self.recursive { usize::MAX } else { 0 })
            .sort_by_file_name();
        for found in walker {
            let found = found.map_err(walk_error)?;
            let follow = self.follow_root && found.depth() == 0;
            let (node, metadata) = self.node(found.path(), follow)?;
            if node.file_type == FileType::Regular && excluded.contains(&(metadata.dev(), metadata.ino())) {
                tracing::warn!(path = %found.path().display(), "left out: this file is being written");
                continue;
            }
            visit(found.depth(), found.path(), &node, &metadata)?;
        }
        Ok(())
    }

    fn node(&self, path: &Path, follow: bool) -> anyhow::Result<(Node, Metadata)> {
        let metadata = if follow { path.metadata() } else { path.symlink_metadata() };
        let metadata = metadata.map_err(|source| host("read", path, &source))?;
        let file_type = file_type(&metadata);
        let target = match file_type {
            FileType::Symlink => {
                path.read_link().map_err(|source| host("read", path, &source))?.into_os_string().into_vec()
            }
            _ => Vec::new(),
        };
        let node = Node {
            file_type,
            mode: u16::try_from(metadata.mode() & 0o7777).unwrap_or_default(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            size: if file_type == FileType::Regular { metadata.size() } else { 0 },
            atime: timestamp(metadata.atime(), metadata.atime_nsec()),
            mtime: timestamp(metadata.mtime(), metadata.mtime_nsec()),
            device: device_numbers(metadata.rdev()),
            target,
            xattrs: if self.xattrs { xattrs(path, follow)? } else { Vec::new() },
            identity: (metadata.nlink() > 1 && file_type != FileType::Directory)
                .then_some((metadata.dev(), metadata.ino())),
        };
        Ok((node, metadata))
    }
}

struct Walk<'a> {
    sender: &'a mpsc::Sender<anyhow::Result<Event>>,
    readers: Arc<Semaphore>,
    runtime: tokio::runtime::Handle,
    seen: HashSet<(u64, u64)>,
}

impl Walk<'_> {
    fn run(&mut self, tree: &HostTree) -> anyhow::Result<()> {
        let mut open_directories = 0;
        let root = tree.root.as_os_str().as_bytes().len();
        tree.scan(|depth, path, node, metadata| {
            while open_directories > depth {
                self.send(Event::Leave)?;
                open_directories -= 1;
            }
            let name = match (depth, path.file_name()) {
                (0, _) => tree.name.clone(),
                (_, Some(name)) => name.as_bytes().to_vec(),
                (_, None) => anyhow::bail!("{}: has no name", path.display()),
            };
            // Messages show the path in the source, also if the root gets another name in the target.
            let below = path.as_os_str().as_bytes().get(root..).unwrap_or_default();
            let below = below.strip_prefix(b"/").unwrap_or(below);
            let shown = if below.is_empty() {
                tree.root.as_os_str().as_bytes().to_vec()
            } else {
                join(tree.root.as_os_str().as_bytes(), below)
            };
            let entry = Entry { name, path: shown, node: node.clone() };
            if node.file_type == FileType::Directory {
                open_directories += 1;
                return self.send(Event::Enter(entry));
            }
            if node.identity.is_some_and(|identity| !self.seen.insert(identity)) {
                return self.send(Event::Link(entry));
            }
            if node.file_type == FileType::Regular {
                let content = self.content(path, node.size, metadata)?;
                self.send(Event::File(entry, content))
            } else {
                self.send(Event::Special(entry))
            }
        })?;
        for _ in 0..open_directories {
            self.send(Event::Leave)?;
        }
        Ok(())
    }

    fn send(&self, event: Event) -> anyhow::Result<()> {
        self.sender.blocking_send(Ok(event)).context("the copy has ended")
    }

    fn content(&self, path: &Path, size: u64, metadata: &Metadata) -> anyhow::Result<Content> {
        if size == 0 {
            return Ok(Content::Small(Vec::new().into_iter()));
        }
        let file = File::open(path).map_err(|source| host("read", path, &source))?;
        let sparse = metadata.blocks().saturating_mul(512) < size;
        if size <= SMALL_FILE {
            let mut chunks = Vec::new();
            read_file(&file, path, size, sparse, &mut |chunk| {
                chunks.push(chunk);
                true
            })?;
            return Ok(Content::Small(chunks.into_iter()));
        }
        // Readers are admitted here, in the order of the walk, so that the first file in the queue is always
        // read.
        let permit = self.runtime.block_on(Arc::clone(&self.readers).acquire_owned())?;
        let (sender, receiver) = mpsc::channel(QUEUED_CHUNKS);
        let path = path.to_path_buf();
        self.runtime.spawn_blocking(move || {
            let _permit = permit;
            let read =
                read_file(&file, &path, size, sparse, &mut |chunk| sender.blocking_send(Ok(chunk)).is_ok());
            if let Err(error) = read {
                let _ = sender.blocking_send(Err(error));
            }
        });
        Ok(Content::Stream(receiver))
    }
}

/// Reads the first `size` bytes of a file in chunks, without the holes if it is `sparse`, until `give`
/// returns false. Chunks end at multiples of [`CHUNK`], so that they depend only on the file.
fn read_file(
    file: &File,
    path: &Path,
    size: u64,
    sparse: bool,
    give: &mut dyn FnMut(Chunk) -> bool,
) -> anyhow::Result<()> {
    let mut next = 0;
    while let Some((start, end)) = data_run(file, path, next, size, sparse)? {
        let mut offset = start;
        while offset < end {
            let boundary = (offset / CHUNK as u64 + 1) * CHUNK as u64;
            let want = usize::try_from(boundary.min(end) - offset).unwrap_or(CHUNK);
            let mut data = vec![0; want];
            let mut filled = 0;
            while filled < want {
                match file.read_at(&mut data[filled..], offset + filled as u64) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(source) if source.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(source) => return Err(host("read", path, &source).into()),
                }
            }
            data.truncate(filled);
            // A file that was truncated meanwhile ends here; the rest becomes a hole.
            if filled == 0 || !give(Chunk { offset, data }) || filled < want {
                return Ok(());
            }
            offset += filled as u64;
        }
        next = end;
    }
    Ok(())
}

/// The next run of data (start, end) at or after byte `from` and below `size`, or `None` if only a hole
/// follows.
fn data_run(
    file: &File,
    path: &Path,
    from: u64,
    size: u64,
    sparse: bool,
) -> anyhow::Result<Option<(u64, u64)>> {
    if from >= size {
        return Ok(None);
    }
    if !sparse {
        return Ok(Some((from, size)));
    }
    let seek = |offset: u64, whence| nix::unistd::lseek64(file, offset.cast_signed(), whence);
    let start = match seek(from, Whence::SeekData) {
        Ok(start) => start.cast_unsigned(),
        Err(Errno::ENXIO) => return Ok(None),
        // The file system does not support SEEK_DATA.
        Err(Errno::EINVAL) => return Ok(Some((from, size))),
        Err(errno) => return Err(Error::io("seek in", path.display().to_string(), errno).into()),
    };
    if start >= size {
        return Ok(None);
    }
    let end = seek(start, Whence::SeekHole)
        .map_err(|errno| Error::io("seek in", path.display().to_string(), errno))?
        .cast_unsigned();
    Ok(Some((start, end.clamp(start + 1, size))))
}

/// The runs of data (start, end) in the first `size` bytes of a file, in bytes.
///
/// # Errors
/// The host's errors for opening and seeking, with the path.
pub fn data_runs(path: &Path, size: u64) -> anyhow::Result<Vec<(u64, u64)>> {
    let file = File::open(path).map_err(|source| host("read", path, &source))?;
    let mut runs = Vec::new();
    let mut next = 0;
    while let Some((start, end)) = data_run(&file, path, next, size, true)? {
        runs.push((start, end));
        next = end;
    }
    Ok(runs)
}

fn xattrs(path: &Path, follow: bool) -> anyhow::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let names = if follow { xattr::list_deref(path) } else { xattr::list(path) };
    let names = match names {
        Ok(names) => names,
        Err(source) if source.raw_os_error() == Some(Errno::ENOTSUP as i32) => return Ok(Vec::new()),
        Err(source) => return Err(host("list the attributes of", path, &source).into()),
    };
    let mut found = Vec::new();
    for name in names {
        let value = if follow { xattr::get_deref(path, &name) } else { xattr::get(path, &name) };
        match value {
            Ok(Some(value)) => found.push((name.into_vec(), value)),
            Ok(None) => {}
            Err(source)
                if matches!(
                    source.raw_os_error().map(Errno::from_raw),
                    Some(Errno::EPERM | Errno::EACCES | Errno::ENOTSUP)
                ) =>
            {
                tracing::debug!(path = %path.display(), name = %name.display(), "attribute cannot be read");
            }
            Err(source) => return Err(host("read an attribute of", path, &source).into()),
        }
    }
    found.sort();
    Ok(found)
}

fn file_type(metadata: &Metadata) -> FileType {
    let kind = metadata.file_type();
    if kind.is_dir() {
        FileType::Directory
    } else if kind.is_symlink() {
        FileType::Symlink
    } else if kind.is_char_device() {
        FileType::CharacterDevice
    } else if kind.is_block_device() {
        FileType::BlockDevice
    } else if kind.is_fifo() {
        FileType::Fifo
    } else if kind.is_socket() {
        FileType::Socket
    } else {
        FileType::Regular
    }
}

fn timestamp(seconds: i64, nanoseconds: i64) -> Timestamp {
    Timestamp { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or_default() }
}

fn device_numbers(rdev: u64) -> (u32, u32) {
    let number = |part: u64| u32::try_from(part).unwrap_or(u32::MAX);
    (number(nix::sys::stat::major(rdev)), number(nix::sys::stat::minor(rdev)))
}

fn host(operation: &'static str, path: &Path, source: &std::io::Error) -> Error {
    Error::host(operation, path.display().to_string(), source)
}

fn walk_error(error: walkdir::Error) -> anyhow::Error {
    let path = error.path().map(|path| path.display().to_string()).unwrap_or_default();
    match error.io_error() {
        Some(source) => Error::host("read", path, source).into(),
        None => error.into(),
    }
}
