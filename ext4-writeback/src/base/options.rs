//! Mount options.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ext4_core::device::BlockDevice;
use ext4_core::environment::{Environment, Runtime, SystemEnvironment};

/// What follows where the file system is found to contradict itself, or its metadata cannot be read or written
/// (`errors=`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnError {
    /// It is recorded, and work goes on. (Where the journal had to stop nothing more can be written all the same.)
    Continue,
    /// Nothing is written any more.
    RemountReadOnly,
    /// The file system is poisoned: everything that is asked of it fails from then on, reads included. The process
    /// lives.
    Panic,
}

/// When the blocks of delayed data become part of their file (`alloc=`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocation {
    /// Before the data is written, as unwritten blocks; when it is there a second transaction makes them written.
    Unwritten,
    /// When the data is on the device, all at once: one transaction less, and nothing unwritten. Until then the blocks
    /// are kept in memory. (Files without extents are always written so.) Not with bigalloc.
    Publish,
}

/// Gives an options struct a method for each field that sets it and returns the options, so that callers name what
/// differs from the default, and a field that is added later breaks none of them.
macro_rules! setters {
    ($options:ident: $($name:ident: $type:ty),* $(,)?) => {
        impl $options {
            $(
                #[doc = concat!("Sets [`", stringify!($name), "`](Self#structfield.", stringify!($name), ").")]
                #[must_use]
                pub fn $name(mut self, $name: $type) -> Self {
                    self.$name = $name;
                    self
                }
            )*
        }
    };
}
pub(crate) use setters;

/// How a file system is mounted: [`MountOptions::new`] has the defaults, a method for each field sets it.
///
/// ```
/// use ext4_writeback::MountOptions;
///
/// let options = MountOptions::new().read_only(true).cache(64 << 20);
/// assert!(options.read_only);
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct MountOptions {
    /// Nothing is changed: a journal that needs recovery is replayed in memory, over the device.
    pub read_only: bool,
    /// The journal is not looked at, and the file system is read as it lies (`noload`); only with `read_only`.
    pub noload: bool,
    /// The most bytes of changes that recovery in memory keeps: 1 GiB. Where it needs more the mount fails (`ENOSPC`).
    pub overlay_limit: u64,
    /// The journal's own device, for a file system that has its journal on one (`journal_path`).
    pub journal_device: Option<Arc<dyn BlockDevice>>,
    /// Bytes of memory for file data and metadata together: 256 MiB.
    pub cache: usize,
    /// Bytes of dirty data above which it is written back in the background (`vm.dirty_background_bytes`); `None`: an
    /// eighth of `dirty_bytes`, from 16 to 32 MiB, or half of `dirty_bytes` where that is less.
    pub dirty_background_bytes: Option<usize>,
    /// Bytes of dirty data and of data under writeback at which writers wait; `None`: half of the memory for file data,
    /// of which they never take more than seven eighths (`vm.dirty_bytes`).
    pub dirty_bytes: Option<usize>,
    /// How often the flusher looks for old data: 5 s (`vm.dirty_writeback_centisecs`).
    pub writeback_interval: Duration,
    /// How old dirty data gets before it is written back: 30 s (`vm.dirty_expire_centisecs`).
    pub dirty_expiry: Duration,
    /// Blocks are allocated at writeback (`delalloc`).
    pub delayed_allocation: bool,
    /// When blocks become part of their file.
    pub allocation: Allocation,
    /// Seconds between commits: 5. `None`: no timer (nothing happens unless asked: for images that must be the same
    /// byte for byte); the flusher runs only when memory is short.
    pub commit_interval: Option<Duration>,
    /// Device flushes where the order of writes asks for them.
    pub barrier: bool,
    /// What follows an error; `None`: what the superblock says.
    pub errors: Option<OnError>,
    /// fsync of a file uses fast commits, where the file system has the feature `fast_commit`.
    pub fast_commit: bool,
    /// A failed data write aborts the journal (`data_err=abort`).
    pub data_error_aborts: bool,
    /// Freed blocks are discarded after the commit that freed them (`discard`). Only with a journal: without one nothing
    /// says when a deletion is durable.
    pub discard: bool,
    /// At unmount the log is zeroed and its sequence starts again at 1.
    pub erase_journal: bool,
    /// Access times are written (`relatime`); default off: `noatime`.
    pub access_times: bool,
    /// Times that a write or a read changes are written only with another change of the inode, by fsync, sync and
    /// unmount, or after a day (`lazytime`).
    pub lazytime: bool,
    /// What the superblock shall say where it was last mounted (up to 63 bytes); `None` leaves it.
    pub last_mounted: Option<Vec<u8>>,
    /// Time and randomness.
    pub environment: Arc<dyn Environment>,
    /// Who runs tasks; `None`: the tokio runtime that `mount` is called in.
    pub runtime: Option<Arc<dyn Runtime>>,
}

impl MountOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

setters! {
    MountOptions:
    read_only: bool,
    noload: bool,
    overlay_limit: u64,
    journal_device: Option<Arc<dyn BlockDevice>>,
    cache: usize,
    dirty_background_bytes: Option<usize>,
    dirty_bytes: Option<usize>,
    writeback_interval: Duration,
    dirty_expiry: Duration,
    delayed_allocation: bool,
    allocation: Allocation,
    commit_interval: Option<Duration>,
    barrier: bool,
    errors: Option<OnError>,
    fast_commit: bool,
    data_error_aborts: bool,
    discard: bool,
    erase_journal: bool,
    access_times: bool,
    lazytime: bool,
    last_mounted: Option<Vec<u8>>,
    environment: Arc<dyn Environment>,
    runtime: Option<Arc<dyn Runtime>>,
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
