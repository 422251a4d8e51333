//! Mount options: what `mount` is told, with the kernel's option names.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ext4_core::device::BlockDevice;
use ext4_core::environment::{Environment, Runtime, SystemEnvironment};

/// What follows if the file system is found to contradict itself, or its metadata cannot be read or written
/// (`errors=`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnError {
    /// The error is recorded, and work goes on. (If the journal had to stop, nothing more can be written all
    /// the same.)
    Continue,
    /// The error is recorded, and nothing is written any more.
    RemountReadOnly,
    /// The error is recorded, and every operation fails from then on, reads included. The process lives.
    Panic,
}

/// When the blocks of delayed data are mapped by their file (`alloc=`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocation {
    /// Before the data is written, as unwritten blocks; when the data is on the device, a second transaction
    /// makes them written.
    Unwritten,
    /// When the data is on the device, all at once: one transaction less, and no unwritten blocks. Until then
    /// the blocks are known in memory only. (Files without extents are always written so.) Not with bigalloc.
    Publish,
}

/// How a file system is mounted.
#[derive(Clone)]
pub struct MountOptions {
    /// True if nothing on the device is changed (`ro`): a journal that needs recovery is replayed in memory.
    pub read_only: bool,
    /// True if the journal is ignored, and the file system is read as it lies (`noload`). Only with
    /// `read_only`.
    pub noload: bool,
    /// The most bytes of changes that recovery in memory keeps: 1 GiB. If it needs more, the mount fails
    /// (`ENOSPC`).
    pub overlay_limit: u64,
    /// The journal's device, for a file system whose journal is on a device of its own (`journal_path`).
    pub journal_device: Option<Arc<dyn BlockDevice>>,
    /// Bytes of memory for file data and metadata together: 256 MiB.
    pub cache: usize,
    /// Bytes of dirty data above which it is written back in the background (`vm.dirty_background_bytes`);
    /// `None`: an eighth of `dirty_bytes`, from 16 to 32 MiB, or half of `dirty_bytes` if that is less.
    pub dirty_background_bytes: Option<usize>,
    /// Bytes of dirty data and of data under writeback at which writers wait (`vm.dirty_bytes`); `None`: half
    /// of the memory for file data. Dirty data never takes more than seven eighths of that memory.
    pub dirty_bytes: Option<usize>,
    /// How often the flusher looks for old data: 5 s (`vm.dirty_writeback_centisecs`).
    pub writeback_interval: Duration,
    /// How old dirty data gets before it is written back: 30 s (`vm.dirty_expire_centisecs`).
    pub dirty_expiry: Duration,
    /// True if blocks are allocated at writeback (`delalloc`).
    pub delayed_allocation: bool,
    /// When blocks are mapped by their file (`alloc=`).
    pub allocation: Allocation,
    /// Time between commits (`commit=`): 5 s. `None`: no timer, and the flusher runs only when memory is
    /// short; nothing happens unless it is asked for, so that images come out the same byte for byte.
    pub commit_interval: Option<Duration>,
    /// True if the device is flushed wherever the order of writes asks for it (`barrier`).
    pub barrier: bool,
    /// What follows an error (`errors=`); `None`: what the superblock says.
    pub errors: Option<OnError>,
    /// True if fsync of a file uses fast commits, on a file system with the feature `fast_commit`.
    pub fast_commit: bool,
    /// True if a failed data write aborts the journal (`data_err=abort`).
    pub data_error_aborts: bool,
    /// True if freed blocks are discarded after the commit that freed them (`discard`). Only with a journal:
    /// without one it is not known when a deletion is durable.
    pub discard: bool,
    /// True if the log is zeroed at unmount, and its sequence starts again at 1.
    pub erase_journal: bool,
    /// True if access times are kept (`relatime`). Off by default (`noatime`).
    pub access_times: bool,
    /// True if times that a write or a read changes are logged only with another change of the inode, by
    /// fsync, sync and unmount, or after a day (`lazytime`).
    pub lazytime: bool,
    /// The mount point that is written into the superblock (s_last_mounted), up to 63 bytes; `None` leaves
    /// what is there.
    pub last_mounted: Option<Vec<u8>>,
    /// The source of time and randomness.
    pub environment: Arc<dyn Environment>,
    /// The runtime that runs tasks; `None`: the tokio runtime that `mount` is called in.
    pub runtime: Option<Arc<dyn Runtime>>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            noload: false,
            overlay_limit: 1 << 30,
            journal_device: None,
            cache: 256 << 20,
            dirty_background_bytes: None,
            dirty_bytes: None,
            writeback_interval: Duration::from_secs(5),
            dirty_expiry: Duration::from_secs(30),
            delayed_allocation: true,
            allocation: Allocation::Unwritten,
            commit_interval: Some(Duration::from_secs(5)),
            barrier: true,
            errors: None,
            fast_commit: true,
            data_error_aborts: false,
            discard: false,
            erase_journal: false,
            access_times: false,
            lazytime: false,
            last_mounted: None,
            environment: Arc::new(SystemEnvironment),
            runtime: None,
        }
    }
}

impl fmt::Debug for MountOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MountOptions")
            .field("read_only", &self.read_only)
            .field("noload", &self.noload)
            .field("overlay_limit", &self.overlay_limit)
            .field("journal_device", &self.journal_device)
            .field("cache", &self.cache)
            .field("dirty_background_bytes", &self.dirty_background_bytes)
            .field("dirty_bytes", &self.dirty_bytes)
            .field("writeback_interval", &self.writeback_interval)
            .field("dirty_expiry", &self.dirty_expiry)
            .field("delayed_allocation", &self.delayed_allocation)
            .field("allocation", &self.allocation)
            .field("commit_interval", &self.commit_interval)
            .field("barrier", &self.barrier)
            .field("errors", &self.errors)
            .field("fast_commit", &self.fast_commit)
            .field("data_error_aborts", &self.data_error_aborts)
            .field("discard", &self.discard)
            .field("erase_journal", &self.erase_journal)
            .field("access_times", &self.access_times)
            .field("lazytime", &self.lazytime)
            .field("last_mounted", &self.last_mounted)
            .finish_non_exhaustive()
    }
}
