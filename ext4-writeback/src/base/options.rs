//! Mount options (`mount -o`), and the macro that gives options structs their builder methods.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ext4_core::device::BlockDevice;
use ext4_core::environment::{Environment, Runtime, SystemEnvironment};

/// What the file system does after an error (`errors=`): its metadata is corrupt, or cannot be read or
/// written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnError {
    /// The error is recorded, and work goes on. If the journal had to abort, nothing more is written all the
    /// same.
    Continue,
    /// Nothing is written any more; reads go on.
    RemountReadOnly,
    /// Every operation fails from then on, reads included. The process lives.
    Panic,
}

/// When the blocks of delayed data are mapped by their file (`alloc=`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocation {
    /// Before the data is written, as unwritten extents; a second transaction converts them when the data is
    /// on the device.
    Unwritten,
    /// When the data is on the device: one transaction less, and no unwritten extents. Until then the blocks
    /// are picked in memory only. Files without extents are always written this way. Not with bigalloc.
    Publish,
}

/// Gives an options struct a method for each field that sets it and returns the options, so that callers name
/// what differs from the default, and a field that is added later breaks none of them.
macro_rules! setters {
    ($options:ident: $($name:ident: $type:ty),* $(,)?) => {
        impl $options {
            $(
                #[doc = concat!(
                    "Sets [`", stringify!($name), "`](Self#structfield.", stringify!($name), ")."
                )]
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
    /// True if nothing on the device may change (`ro`): a journal that needs recovery is replayed in memory.
    /// Default: false.
    pub read_only: bool,
    /// True if the journal is not replayed, and the file system is read as it lies on the device (`noload`);
    /// only with `read_only`. Default: false.
    pub noload: bool,
    /// The most bytes of changes that recovery in memory keeps. The mount fails with `ENOSPC` if it needs
    /// more. Default: 1 GiB.
    pub overlay_limit: u64,
    /// The journal device, for a file system with an external journal (`journal_path`). Default: none.
    pub journal_device: Option<Arc<dyn BlockDevice>>,
    /// Bytes of memory for file data and metadata together. Default: 256 MiB.
    pub cache: usize,
    /// Bytes of dirty data above which the flusher writes back (`vm.dirty_background_bytes`). `None`, the
    /// default: an eighth of `dirty_bytes`, at least 16 and at most 32 MiB, or half of `dirty_bytes` if that
    /// is less.
    pub dirty_background_bytes: Option<usize>,
    /// Bytes of dirty data and of data under writeback at which writers are throttled (`vm.dirty_bytes`), at
    /// most seven eighths of the memory for file data. `None`, the default: half of that memory.
    pub dirty_bytes: Option<usize>,
    /// Time between two looks of the flusher for old dirty data (`vm.dirty_writeback_centisecs`). Default: 5
    /// s.
    pub writeback_interval: Duration,
    /// Age at which dirty data is written back (`vm.dirty_expire_centisecs`). Default: 30 s.
    pub dirty_expiry: Duration,
    /// True if blocks are allocated at writeback and not by the write (`delalloc`). Default: true.
    pub delayed_allocation: bool,
    /// When the blocks of delayed data become part of their file (`alloc=`). Default:
    /// [`Allocation::Unwritten`].
    pub allocation: Allocation,
    /// Time between two commits of the journal (`commit=`). `None`: no timer, and the flusher runs only if
    /// memory is short; nothing happens unless asked, so an image can be the same byte for byte. Default: 5
    /// s.
    pub commit_interval: Option<Duration>,
    /// True if the device is flushed when the order of writes asks for it (`barrier`). Default: true.
    pub barrier: bool,
    /// What the file system does after an error (`errors=`). `None`, the default: what the superblock says.
    pub errors: Option<OnError>,
    /// True if fsync uses fast commits, if the file system has the feature `fast_commit`. Default: true.
    pub fast_commit: bool,
    /// True if a failed write of data aborts the journal (`data_err=abort`). Default: false.
    pub data_error_aborts: bool,
    /// True if freed blocks are discarded after the commit that freed them (`discard`). Only with a journal:
    /// without one nothing tells when a deletion is durable. Default: false.
    pub discard: bool,
    /// True if unmount zeroes the log and lets its sequence start at 1 again. Default: false.
    pub erase_journal: bool,
    /// True if access times are kept (`relatime`). Default: false (`noatime`).
    pub access_times: bool,
    /// True if the times that a write or a read changes are logged only with another change of the inode, by
    /// fsync, sync and unmount, or after a day (`lazytime`). Default: false.
    pub lazytime: bool,
    /// The path of the last mount for the superblock (s_last_mounted, at most 63 bytes). `None`, the default,
    /// leaves it.
    pub last_mounted: Option<Vec<u8>>,
    /// The source of time and randomness. Default: [`SystemEnvironment`].
    pub environment: Arc<dyn Environment>,
    /// The runtime of tasks and timers. `None`, the default: the tokio runtime that `mount` is called in.
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
