//! The file system for callers without an async runtime: the operations on paths and files, each of which
//! blocks the caller's thread until it is done.
//!
//! ```
//! use std::sync::Arc;
//! use ext4_writeback::blocking::{Filesystem, mkfs};
//! use ext4_writeback::{MemoryDevice, MkfsOptions, MountOptions, SystemEnvironment};
//!
//! fn main() -> ext4_writeback::Result<()> {
//!     let device = Arc::new(MemoryDevice::new(32 << 20));
//!     mkfs(device.clone(), &MkfsOptions::default(), &SystemEnvironment)?;
//!     let filesystem = Filesystem::mount(device, MountOptions::new())?;
//!     filesystem.create_dir_all("/etc/app")?;
//!     let file = filesystem.create("/etc/app/motd")?;
//!     file.write_at(0, b"hello")?;
//!     file.sync_all()?; // from here on it survives any crash
//!     drop(file);
//!     assert_eq!(filesystem.read("/etc/app/motd")?, b"hello");
//!     filesystem.unmount()
//! }
//! ```
//!
//! The flusher, the journal and a backend's reactor need tasks that run while the caller does not: a
//! [`Runtime`] of two threads runs them. [`Filesystem::mount`] makes one; [`Filesystem::mount_in`] uses one
//! that the caller made, for several file systems or for a device that has to be opened inside it
//! (`ext4_backend_uring`).
//!
//! What has no method here is reached through [`Runtime::block_on`] with [`Filesystem::as_async`] and
//! [`File::as_async`].
//!
//! # Errors
//! Besides its own errors every operation returns `EINVAL` if the calling thread belongs to a tokio runtime:
//! blocking there would stop that runtime's other tasks. Such a caller awaits the operations of
//! [`crate::Filesystem`] instead.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use ext4_core::device::BlockDevice;
use ext4_core::environment::Environment;
use ext4_core::meta::directory::DirectoryEntry;
use ext4_core::meta::mkfs::MkfsOptions;
use ext4_core::{Errno, Error, InodeNumber, Result};

use crate::base::options::MountOptions;
use crate::file::options::OpenOptions;
use crate::filesystem::statfs::StatFs;
use crate::io::fallocate::request::FallocateMode;
use crate::namespace::attributes::{Attributes, SetAttributes};

/// Threads that run the tasks in the background.
const WORKERS: usize = 2;

/// Two threads that run the tasks of file systems and backends. Cloning shares them.
#[derive(Clone)]
pub struct Runtime {
    threads: Arc<Threads>,
}

/// The threads: they end with the last clone of their [`Runtime`].
struct Threads {
    tokio: Option<tokio::runtime::Runtime>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Waiting for threads inside another runtime would panic.
        if tokio::runtime::Handle::try_current().is_ok()
            && let Some(tokio) = self.tokio.take()
        {
            tokio.shutdown_background();
        }
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("workers", &WORKERS).finish_non_exhaustive()
    }
}

impl Runtime {
    /// Starts the threads.
    ///
    /// # Errors
    /// `EAGAIN`, `EMFILE`, …: the host has no thread or file descriptor left.
    pub fn new() -> Result<Self> {
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name("ext4")
            .enable_all()
            .build()
            .map_err(|error| Error::host("start", "the runtime's threads", &error))?;
        Ok(Self { threads: Arc::new(Threads { tokio: Some(tokio) }) })
    }

    fn tokio(&self) -> &tokio::runtime::Runtime {
        self.threads.tokio.as_ref().expect("taken in Threads::drop only, when no clone is left")
    }

    /// Runs `future` on the calling thread until it is done, with the runtime's reactor and timers.
    ///
    /// # Errors
    /// - `EINVAL`: the calling thread belongs to a tokio runtime.
    /// - Those of `future`.
    pub fn block_on<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        check_may_block()?;
        self.tokio().block_on(future)
    }

    /// Runs `open` with the runtime as its surroundings: for a device that registers with a reactor when it
    /// is opened.
    ///
    /// # Errors
    /// - `EINVAL`: the calling thread belongs to a tokio runtime.
    /// - Those of `open`.
    pub fn enter<T>(&self, open: impl FnOnce() -> Result<T>) -> Result<T> {
        check_may_block()?;
        let _entered = self.tokio().enter();
        open()
    }
}

/// # Errors
/// `EINVAL`: the calling thread belongs to a tokio runtime.
fn check_may_block() -> Result<()> {
    if tokio::runtime::Handle::try_current().is_err() {
        return Ok(());
    }
    let context = "a call of ext4_writeback::blocking inside a tokio runtime: await the operations of \
                   ext4_writeback::Filesystem there";
    Err(Error::posix(Errno::EINVAL, context))
}

/// Makes a file system on `device`, as [`crate::mkfs`], for a device that needs no runtime to be opened in.
///
/// # Errors
/// Those of [`Runtime::new`] and [`crate::mkfs`].
pub fn mkfs(
    device: Arc<dyn BlockDevice>,
    options: &MkfsOptions,
    environment: &dyn Environment,
) -> Result<()> {
    check_may_block()?;
    Runtime::new()?.block_on(crate::mount::mkfs::mkfs(device, options, environment))
}

/// A mounted ext4 file system whose operations block. Cloning shares it. Dropping the last one without
/// [`Filesystem::unmount`] is a crash, and as safe as one.
///
/// Paths are as for [`crate::Filesystem::resolve`]: bytes, from the root directory, symlinks followed.
#[derive(Clone, Debug)]
pub struct Filesystem {
    // Before the runtime: what is dropped last lets its threads go.
    inner: crate::filesystem::Filesystem,
    runtime: Runtime,
}

impl Filesystem {
    /// Mounts the file system on `device`, with a [`Runtime`] of its own.
    ///
    /// # Errors
    /// Those of [`Runtime::new`] and [`crate::Filesystem::mount`].
    pub fn mount(device: Arc<dyn BlockDevice>, options: MountOptions) -> Result<Self> {
        check_may_block()?;
        Self::mount_in(&Runtime::new()?, device, options)
    }

    /// Mounts the file system on `device`; its tasks run in `runtime`.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::mount`].
    pub fn mount_in(runtime: &Runtime, device: Arc<dyn BlockDevice>, options: MountOptions) -> Result<Self> {
        let inner = runtime.block_on(crate::filesystem::Filesystem::mount(device, options))?;
        Ok(Self { inner, runtime: runtime.clone() })
    }

    /// The same file system, to await its operations: inside [`Runtime::block_on`].
    #[must_use]
    pub fn as_async(&self) -> &crate::filesystem::Filesystem {
        &self.inner
    }

    /// The threads that run its tasks.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    fn file(&self, inner: crate::file::File) -> File {
        File { inner, runtime: self.runtime.clone() }
    }

    /// Drains and closes everything; the device holds a clean file system when it returns. Other clones of
    /// the file system get `ENODEV` from then on.
    ///
    /// # Errors
    /// - `EBUSY`: files are open, and nothing has happened.
    /// - Those of [`crate::Filesystem::unmount`].
    pub fn unmount(self) -> Result<()> {
        self.runtime.block_on(self.inner.unmount())
    }

    /// Opens the regular file at `path`.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::open_path`].
    pub fn open(&self, path: impl AsRef<[u8]>) -> Result<File> {
        self.open_with(path, OpenOptions::new())
    }

    /// Opens the regular file at `path` as `options` say.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::open_path_with`].
    pub fn open_with(&self, path: impl AsRef<[u8]>, options: OpenOptions) -> Result<File> {
        Ok(self.file(self.runtime.block_on(self.inner.open_path_with(path, options))?))
    }

    /// Opens the regular file at `path` and cuts it to 0 bytes; creates it (owner 0, mode 0644) if it does
    /// not exist.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::create_path`].
    pub fn create(&self, path: impl AsRef<[u8]>) -> Result<File> {
        Ok(self.file(self.runtime.block_on(self.inner.create_path(path))?))
    }

    /// The whole content of the regular file at `path`.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::read`].
    pub fn read(&self, path: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        self.runtime.block_on(self.inner.read(path))
    }

    /// Replaces the content of the regular file at `path`, which is created if it does not exist.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::write`].
    pub fn write(&self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Result<()> {
        self.runtime.block_on(self.inner.write(path, content))
    }

    /// Creates the directory `path` (owner 0, mode 0755). Returns its inode.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::create_dir`].
    pub fn create_dir(&self, path: impl AsRef<[u8]>) -> Result<InodeNumber> {
        self.runtime.block_on(self.inner.create_dir(path))
    }

    /// Creates the directory `path`, and those above it that do not exist. Returns its inode.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::create_dir_all`].
    pub fn create_dir_all(&self, path: impl AsRef<[u8]>) -> Result<InodeNumber> {
        self.runtime.block_on(self.inner.create_dir_all(path))
    }

    /// All entries of the directory `path` but `.` and `..`.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::read_dir`].
    pub fn read_dir(&self, path: impl AsRef<[u8]>) -> Result<Vec<DirectoryEntry>> {
        self.runtime.block_on(self.inner.read_dir(path))
    }

    /// What stat(2) tells of the inode at `path`.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::metadata`].
    pub fn metadata(&self, path: impl AsRef<[u8]>) -> Result<Attributes> {
        self.runtime.block_on(self.inner.metadata(path))
    }

    /// What lstat(2) tells of the inode at `path`: a symlink that is the last component is not followed.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::symlink_metadata`].
    pub fn symlink_metadata(&self, path: impl AsRef<[u8]>) -> Result<Attributes> {
        self.runtime.block_on(self.inner.symlink_metadata(path))
    }

    /// Changes attributes of the inode at `path`.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::resolve`] and [`crate::Filesystem::set_attributes`].
    pub fn set_attributes(&self, path: impl AsRef<[u8]>, changes: &SetAttributes) -> Result<()> {
        self.runtime.block_on(async {
            let inode = self.inner.resolve(path, true).await?;
            self.inner.set_attributes(inode, changes).await
        })
    }

    /// The target of the symlink at `path`.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::read_link`].
    pub fn read_link(&self, path: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        self.runtime.block_on(self.inner.read_link(path))
    }

    /// Creates the symlink `path` that leads to `target`. Returns its inode.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::symlink_path`].
    pub fn symlink(&self, target: impl AsRef<[u8]>, path: impl AsRef<[u8]>) -> Result<InodeNumber> {
        self.runtime.block_on(self.inner.symlink_path(target, path))
    }

    /// Gives what is at `original` the second name `link`.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::hard_link`].
    pub fn hard_link(&self, original: impl AsRef<[u8]>, link: impl AsRef<[u8]>) -> Result<()> {
        self.runtime.block_on(self.inner.hard_link(original, link))
    }

    /// Renames `from` to `to`, which is replaced if it exists.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::rename_path`].
    pub fn rename(&self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Result<()> {
        self.runtime.block_on(self.inner.rename_path(from, to))
    }

    /// Removes the name `path` of something that is no directory.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::remove_file`].
    pub fn remove_file(&self, path: impl AsRef<[u8]>) -> Result<()> {
        self.runtime.block_on(self.inner.remove_file(path))
    }

    /// Removes the empty directory `path`.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::remove_dir`].
    pub fn remove_dir(&self, path: impl AsRef<[u8]>) -> Result<()> {
        self.runtime.block_on(self.inner.remove_dir(path))
    }

    /// Space and inodes, as statfs(2) tells them.
    #[must_use]
    pub fn statfs(&self) -> StatFs {
        self.inner.statfs()
    }

    /// sync(2): everything that was written before is durable when it returns.
    ///
    /// # Errors
    /// Those of [`crate::Filesystem::sync`].
    pub fn sync(&self) -> Result<()> {
        self.runtime.block_on(self.inner.sync())
    }
}

/// An open regular file whose operations block. Every method takes `&self`; threads share it by reference or
/// `Arc`.
#[derive(Debug)]
pub struct File {
    // Before the runtime: closing the file may start a task.
    inner: crate::file::File,
    runtime: Runtime,
}

impl File {
    /// The same file, to await its operations: inside [`Runtime::block_on`].
    #[must_use]
    pub fn as_async(&self) -> &crate::file::File {
        &self.inner
    }

    /// Reads at byte `offset` into `buffer`; returns how many bytes, fewer only at the end of the file.
    ///
    /// # Errors
    /// Those of [`crate::File::read_at`].
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.runtime.block_on(self.inner.read_at(offset, buffer))
    }

    /// Reads up to `len` bytes from byte `offset` on, without a copy if one folio holds them.
    ///
    /// # Errors
    /// Those of [`crate::File::read_bytes`].
    pub fn read_bytes(&self, offset: u64, len: usize) -> Result<bytes::Bytes> {
        self.runtime.block_on(self.inner.read_bytes(offset, len))
    }

    /// Writes `data` at byte `offset`; returns how many bytes, fewer only if an error came after some.
    ///
    /// # Errors
    /// Those of [`crate::File::write_at`].
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<usize> {
        self.runtime.block_on(self.inner.write_at(offset, data))
    }

    /// Writes `data` at the end of the file; returns the byte offset of that, and how many bytes.
    ///
    /// # Errors
    /// Those of [`crate::File::append`].
    pub fn append(&self, data: &[u8]) -> Result<(u64, usize)> {
        self.runtime.block_on(self.inner.append(data))
    }

    /// Cuts the file to `size` bytes, or extends it with a hole.
    ///
    /// # Errors
    /// Those of [`crate::File::set_len`].
    pub fn set_len(&self, size: u64) -> Result<()> {
        self.runtime.block_on(self.inner.set_len(size))
    }

    /// Changes how `len` bytes from byte `offset` on are allocated, as `mode` says.
    ///
    /// # Errors
    /// Those of [`crate::File::fallocate`].
    pub fn fallocate(&self, mode: FallocateMode, offset: u64, len: u64) -> Result<()> {
        self.runtime.block_on(self.inner.fallocate(mode, offset, len))
    }

    /// The size in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.inner.len()
    }

    /// Returns true if the file has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }

    /// What stat(2) tells of the file.
    ///
    /// # Errors
    /// Those of [`crate::File::metadata`].
    pub fn metadata(&self) -> Result<Attributes> {
        self.runtime.block_on(self.inner.metadata())
    }

    /// fsync(2): data, size and attributes are durable when it returns.
    ///
    /// # Errors
    /// Those of [`crate::File::sync_all`].
    pub fn sync_all(&self) -> Result<()> {
        self.runtime.block_on(self.inner.sync_all())
    }

    /// fdatasync(2): data and size are durable when it returns.
    ///
    /// # Errors
    /// Those of [`crate::File::sync_data`].
    pub fn sync_data(&self) -> Result<()> {
        self.runtime.block_on(self.inner.sync_data())
    }
}
