//! The second part of mounting: recovery, then everything that runs while mounted, and how the parts are put
//! together.
//!
//! Invariant: the superblock says that the file system is mounted before the first transaction can start, so
//! a crash at any time later leads to recovery, or to a check without a journal.

use std::sync::Arc;

use ext4_core::environment::Runtime;
use ext4_core::format::features::Compat;
use ext4_core::format::superblock::STATE_VALID;
use ext4_core::meta::SuperblockInfo;
use ext4_core::meta::orphan::Orphans;
use ext4_core::{Errno, Error, InodeNumber, Result};
use ext4_journal::Journal;

use crate::base::lock_order::{Level, OrderedMutex};
use crate::base::options::MountOptions;
use crate::filesystem::statfs::overhead;
use crate::filesystem::{Filesystem, FilesystemInner};
use crate::inode::cache::InodeCache;
use crate::mount::found::{Devices, Found, load};
use crate::volume::Volume;
use crate::volume::discard::Discards;
use crate::volume::superblock_state::{mark_mounted, mark_recovered};
use crate::writeback::{Engine, flusher};

/// Bytes of [`MountOptions::cache`] for each inode in memory: 256 MiB allow 16,384 inodes.
const CACHE_PER_INODE: usize = 16 << 10;

/// Replays the journal if its log is not empty, applies its fast commits, and loads the file system again.
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

/// Mounts a recovered file system for writing: marks it as mounted, starts the journal, processes orphans,
/// starts the flusher.
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
    let inner = assemble(Volume::new(info, journal, orphans, discards, options, runtime));
    if let Some(journal) = &inner.volume.journal {
        let weak = Arc::downgrade(&inner.engine);
        journal.set_on_abort(Box::new(move |error| {
            if let Some(engine) = weak.upgrade() {
                engine.volume.journal_aborted(error);
                // Wakes writers that wait for memory, or for less dirty data: they find that nothing is
                // written any more.
                engine.dirty.note_progress();
            }
        }));
    }
    inner.process_orphans().await;
    flusher::start(&inner.engine);
    Ok(Filesystem { inner })
}

/// The queue of freed blocks to discard, if `discard` was asked for and the device can.
///
/// # Errors
/// `EINVAL`: `discard` without a journal.
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
pub(crate) fn assemble(volume: Volume) -> Arc<FilesystemInner> {
    let superblock = volume.info.superblock();
    let cache = volume.options.cache;
    let volume = Arc::new(volume);
    Arc::new(FilesystemInner {
        engine: Arc::new(Engine::new(&volume, cache - cache / 4)),
        volume,
        reclaimable_extents: Arc::default(),
        inodes: InodeCache::new(cache / CACHE_PER_INODE),
        rename: OrderedMutex::new(Level::Rename, ()),
        first_inode: InodeNumber(superblock.first_ino),
        overhead_blocks: overhead(&superblock),
    })
}
