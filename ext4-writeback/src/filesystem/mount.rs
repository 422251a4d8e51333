//! Mounting.
//!
//! ```text
//!   superblock, groups ─► journal found ─► recovered ─► read again ─► marked as mounted ─► journal runs ─►
//!   orphans finished ─► flusher runs
//! ```
//!
//! Invariant: nothing of the file system but its superblock, its group descriptors and the journal's inode is looked
//! at before recovery; what the log holds is newer. All of it is read again afterwards.
//!
//! Where the journal lies: `journal_location.rs`; mounting to read only, which never writes: `read_only.rs`.

use std::sync::Arc;

use ext4_core::device::{BlockDevice, MemoryPool};
use ext4_core::environment::Runtime;
use ext4_core::format::features::{Compat, RoCompat};
use ext4_core::format::inode::InodeLayout;
use ext4_core::format::superblock::{ERRORS_PANIC, ERRORS_READ_ONLY, STATE_ERROR, STATE_VALID};
use ext4_core::meta::SuperblockInfo;
use ext4_core::meta::orphan::Orphans;
use ext4_core::{Errno, Error, InodeNumber, Result};
use ext4_journal::{Journal, JournalOptions};
use tokio::sync::Mutex;

use super::journal_location;
use super::superblock_state::{FormerErrors, mark_mounted, mark_recovered};
use super::{Filesystem, FilesystemInner};
use crate::discard::Discards;
use crate::error_policy::ErrorPolicy;
use crate::fast_commit::{Table, Tracker};
use crate::flusher::Writeback;
use crate::inode_cache::InodeCache;
use crate::operation_lock::OperationLock;
use crate::runtime::{TokioRuntime, run_to_end};
use crate::{Allocation, MountOptions, OnError};

/// Bytes of the cache that stand for one inode in memory: 256 MiB hold 16,384.
const CACHE_PER_INODE: usize = 16 << 10;

impl Filesystem {
    /// Mounts: verifies the superblock, recovers the journal, processes orphans, marks the superblock as mounted.
    /// Read-only, nothing is written: a file system that needs recovery is recovered in memory.
    ///
    /// # Errors
    /// Corrupt, or unsupported with the names of the features; `EROFS` for a device that cannot be written and is to
    /// be; `EINVAL` for options that contradict each other or the file system; `ENXIO` for a journal device that was
    /// not given; the devices'.
    pub async fn mount(device: Arc<dyn BlockDevice>, options: MountOptions) -> Result<Self> {
        let runtime = options.runtime.clone().unwrap_or_else(|| Arc::new(TokioRuntime::current()));
        let mounting = mount(device, options, Arc::clone(&runtime));
        run_to_end(&runtime, mounting).await
    }
}

async fn mount(
    device: Arc<dyn BlockDevice>,
    options: MountOptions,
    runtime: Arc<dyn Runtime>,
) -> Result<Filesystem> {
    let devices = Devices { filesystem: device, journal: options.journal_device.clone() };
    if options.read_only {
        return super::read_only::mount(devices, options, runtime).await;
    }
    if options.noload {
        let context = "noload: with the journal ignored a file system can only be mounted read-only";
        return Err(Error::posix(Errno::EINVAL, context));
    }
    let found = look(&devices, &options, &runtime).await?;
    let features = found.info.features();
    if options.allocation == Allocation::Publish && features.ro_compat.contains(RoCompat::BIGALLOC) {
        let context = "alloc=publish: blocks that share a cluster (bigalloc) cannot be picked one by one";
        return Err(Error::posix(Errno::EINVAL, context));
    }
    devices.check_writable()?;
    let opened = recover(&devices, found, &options).await?;
    run(opened, options, runtime).await
}

/// What a file system lies on.
#[derive(Clone, Debug)]
pub(super) struct Devices {
    pub filesystem: Arc<dyn BlockDevice>,
    /// The journal's own, where it has one.
    pub journal: Option<Arc<dyn BlockDevice>>,
}

impl Devices {
    pub fn check_writable(&self) -> Result<()> {
        let read_only = |device: &Arc<dyn BlockDevice>| device.geometry().read_only;
        if read_only(&self.filesystem) {
            return Err(Error::posix(Errno::EROFS, "the device cannot be written; mount it read-only"));
        }
        if self.journal.as_ref().is_some_and(read_only) {
            return Err(Error::posix(Errno::EROFS, "the journal's device cannot be written"));
        }
        Ok(())
    }
}

/// A file system as it lies on the device.
pub(super) struct Found {
    pub info: Arc<SuperblockInfo>,
    /// Not recovered, where it needs that.
    pub journal: Option<Arc<Journal>>,
    /// What the superblock said of errors.
    pub former: FormerErrors,
    /// The journal was stopped by an error in its last life.
    pub journal_error: bool,
}

impl Found {
    /// True where the log holds something. It is replayed also where the superblock does not say so, as e2fsck does.
    pub fn needs_recovery(&self) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.needs_recovery())
    }

    /// Says what is known of errors, once at each mount.
    pub fn warn_of_errors(&self) {
        let superblock = self.info.superblock();
        if superblock.state & STATE_ERROR != 0 || self.journal_error {
            tracing::warn!("the file system has errors: a check is recommended");
        }
        self.former.warn();
    }
}

pub(super) async fn load(devices: &Devices, options: &MountOptions) -> Result<Arc<SuperblockInfo>> {
    let (device, environment) = (Arc::clone(&devices.filesystem), Arc::clone(&options.environment));
    SuperblockInfo::load(device, options.cache / 4, environment, options.read_only).await
}

/// Reads superblock and groups, finds the journal and looks at it. Writes nothing.
pub(super) async fn look(
    devices: &Devices,
    options: &MountOptions,
    runtime: &Arc<dyn Runtime>,
) -> Result<Found> {
    let info = load(devices, options).await?;
    let superblock = info.superblock();
    let former = FormerErrors::of(&superblock);
    if !superblock.features.compat.contains(Compat::HAS_JOURNAL) || options.noload {
        return Ok(Found { info, journal: None, former, journal_error: false });
    }
    let location = journal_location::locate(&info, devices.journal.as_ref()).await?;
    let journal_options =
        JournalOptions { commit_interval: options.commit_interval, barrier: options.barrier };
    let environment = Arc::clone(&options.environment);
    let journal = Journal::open(location, journal_options, environment, Arc::clone(runtime)).await?;
    let journal_error = journal.recorded_errno() != 0;
    Ok(Found { info, journal: Some(journal), former, journal_error })
}

/// Replays the journal where it holds something, and reads the file system again.
pub(super) async fn recover(devices: &Devices, found: Found, options: &MountOptions) -> Result<Found> {
    let Found { info, journal: Some(journal), former, journal_error } = found else { return Ok(found) };
    if !journal.needs_recovery() {
        return Ok(Found { info, journal: Some(journal), former, journal_error });
    }
    drop(info);
    let report = journal.recover(&devices.filesystem).await?;
    let mut info = load(devices, options).await?;
    if !report.fast_commits.is_empty() {
        crate::fast_commit::finish_recovery(&info, &journal, &report.fast_commits).await?;
        info = load(devices, options).await?;
    }
    if options.read_only {
        mark_recovered(&info, &former, journal_error).await?;
    }
    Ok(Found { info, journal: Some(journal), former, journal_error })
}

/// Mounts for writing what needs no recovery any more.
pub(super) async fn run(
    opened: Found,
    options: MountOptions,
    runtime: Arc<dyn Runtime>,
) -> Result<Filesystem> {
    opened.warn_of_errors();
    let Found { info, journal, former, journal_error } = opened;
    let discards = discards(&info, journal.as_ref(), &options, &runtime)?;
    if info.superblock().state & STATE_VALID == 0 {
        tracing::warn!("not unmounted cleanly and without a journal: a check is recommended");
    }
    mark_mounted(&info, &options, &former, journal_error).await?;
    if let Some(journal) = &journal {
        if journal_error {
            journal.clear_errno().await?;
        }
        let features = info.features();
        if options.fast_commit && features.compat.contains(Compat::FAST_COMMIT) {
            journal.allow_fast_commits();
        }
        journal.start_running(&info.cache, features.metadata_csum(), features.bit64()).await?;
    }
    let orphans = Orphans::load(&info).await?;
    let mut inner = assemble(info, journal, orphans, options, runtime);
    inner.discards = discards;
    let inner = Arc::new(inner);
    if let Some(journal) = &inner.journal {
        let weak = Arc::downgrade(&inner);
        journal.set_on_abort(Box::new(move |error| {
            if let Some(inner) = weak.upgrade() {
                inner.journal_aborted(error);
            }
        }));
    }
    inner.process_orphans().await;
    crate::flusher::start(&inner);
    Ok(Filesystem { inner })
}

/// The way of freed blocks, where they are to be discarded and the device can.
fn discards(
    info: &SuperblockInfo,
    journal: Option<&Arc<Journal>>,
    options: &MountOptions,
    runtime: &Arc<dyn Runtime>,
) -> Result<Option<Arc<Discards>>> {
    if !options.discard {
        return Ok(None);
    }
    let Some(journal) = journal else {
        let context = "discard: without a journal nothing says when a deletion is durable";
        return Err(Error::posix(Errno::EINVAL, context));
    };
    if !info.device().geometry().discard {
        tracing::warn!("discard: the device does not support it");
        return Ok(None);
    }
    let discards = Discards::new(info.device(), info.block_size(), journal, runtime);
    info.set_freed_blocks(Arc::clone(&discards) as _);
    Ok(Some(discards))
}

/// Puts the parts of a mounted file system together.
pub(super) fn assemble(
    info: Arc<SuperblockInfo>,
    journal: Option<Arc<Journal>>,
    orphans: Orphans,
    options: MountOptions,
    runtime: Arc<dyn Runtime>,
) -> FilesystemInner {
    let superblock = info.superblock();
    let table = Table {
        journal: superblock.journal_inum,
        inodes_per_group: superblock.inodes_per_group,
        inodes_per_block: superblock.inodes_per_block(),
        has_clusters: superblock.cluster_bits() != 0,
    };
    let fast_commits = journal.as_ref().is_some_and(|journal| journal.has_fast_commits());
    let data_capacity = options.cache - options.cache / 4;
    FilesystemInner {
        journal,
        runtime,
        orphans,
        fast_commits: Arc::new(Tracker::new(fast_commits, table)),
        pool: MemoryPool::new(data_capacity),
        writeback: Writeback::new(&options, data_capacity),
        viewed: Arc::default(),
        reclaimable_extents: Arc::default(),
        lazy_times: crate::lazytime::LazyTimes::default(),
        discards: None,
        inodes: InodeCache::new(options.cache / CACHE_PER_INODE),
        errors: ErrorPolicy::new(options.errors.unwrap_or(match superblock.errors {
            ERRORS_READ_ONLY => OnError::RemountReadOnly,
            ERRORS_PANIC => OnError::Panic,
            _ => OnError::Continue,
        })),
        error_writer: Mutex::new(()),
        freeze: OperationLock::new(true),
        rename: Mutex::new(()),
        inode_layout: InodeLayout {
            features: superblock.features,
            inode_size: superblock.inode_size,
            block_size: superblock.block_size,
            cluster_sectors: superblock.block_size.sectors() << superblock.cluster_bits(),
            checksum_seed: info.checksum_seed(),
            linux: superblock.creator_os == 0,
            hurd: superblock.creator_os == 1,
        },
        extra_isize: superblock.want_extra_isize.max(superblock.min_extra_isize),
        first_inode: InodeNumber(superblock.first_ino),
        overhead_blocks: super::statfs::overhead(&superblock),
        found_state: superblock.state | STATE_VALID,
        direct: Arc::default(),
        options,
        info,
    }
}
