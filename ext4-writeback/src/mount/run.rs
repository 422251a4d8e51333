//! TODO header.

use std::sync::Arc;

use ext4_core::device::MemoryPool;
use ext4_core::environment::Runtime;
use ext4_core::format::features::Compat;
use ext4_core::format::inode::InodeLayout;
use ext4_core::format::superblock::{ERRORS_PANIC, ERRORS_READ_ONLY, STATE_VALID};
use ext4_core::meta::SuperblockInfo;
use ext4_core::meta::orphan::Orphans;
use ext4_core::{Errno, Error, InodeNumber, Result};
use ext4_journal::Journal;
use tokio::sync::Mutex;

use crate::base::operation_lock::OperationLock;
use crate::base::options::{MountOptions, OnError};
use crate::filesystem::{Filesystem, FilesystemInner};
use crate::inode::cache::InodeCache;
use crate::mount::CACHE_PER_INODE;
use crate::mount::found::{Devices, Found, load};
use crate::volume::discard::Discards;
use crate::volume::error_policy::ErrorPolicy;
use crate::volume::fast_commit::track::{Table, Tracker};
use crate::volume::superblock_state::{mark_mounted, mark_recovered};
use crate::writeback::dirty::Writeback;

/// Replays the journal where it holds something, and reads the file system again.
pub(crate) async fn recover(devices: &Devices, found: Found, options: &MountOptions) -> Result<Found> {
    let Found { info, journal: Some(journal), former, journal_error } = found else { return Ok(found) };
    if !journal.needs_recovery() {
        return Ok(Found { info, journal: Some(journal), former, journal_error });
    }
    drop(info);
    let report = journal.recover(&devices.filesystem).await?;
    let mut info = load(devices, options).await?;
    if !report.fast_commits.is_empty() {
        crate::recovery::finish_recovery(&info, &journal, &report.fast_commits).await?;
        info = load(devices, options).await?;
    }
    if options.read_only {
        mark_recovered(&info, &former, journal_error).await?;
    }
    Ok(Found { info, journal: Some(journal), former, journal_error })
}

/// Mounts for writing what needs no recovery any more.
pub(crate) async fn run(
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
    crate::writeback::flusher::start(&inner);
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
pub(crate) fn assemble(
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
        lazy_times: crate::inode::lazytime::LazyTimes::default(),
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
        overhead_blocks: crate::filesystem::statfs::overhead(&superblock),
        found_state: superblock.state | STATE_VALID,
        direct: Arc::default(),
        options,
        info,
    }
}
