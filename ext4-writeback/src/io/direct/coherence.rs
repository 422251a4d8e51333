//! Page cache coherence of direct I/O: writeback and invalidation of a range that is transferred past the
//! page cache.
//!
//! Locks: the caller holds `rwlock`, so no buffered write makes folios dirty meanwhile; folio locks are taken
//! one at a time.

use std::ops::Range;
use std::sync::Arc;

use ext4_core::{Errno, Error, IoPurpose, Result};

use crate::base::runtime::run_to_end;
use crate::inode::InodeInfo;
use crate::writeback::Engine;
use crate::writeback::sync_inode::sync_inode_range;

/// Returns true if a folio over bytes `range` is dirty or under writeback.
pub(crate) fn is_busy(inode: &InodeInfo, range: &Range<u64>) -> bool {
    let mut at = range.start;
    while at < range.end
        && let Some(folio) = inode.pages.first_from(at)
        && folio.start() < range.end
    {
        if folio.is_dirty() || folio.is_under_writeback() {
            return true;
        }
        at = folio.end();
    }
    false
}

/// Writes back dirty folios over bytes `range` and waits for their I/O and conversions. The caller holds
/// `rwlock`, so no folio becomes dirty meanwhile.
///
/// # Errors
/// Those of writeback, as fsync would report them; every opener of the file gets them from its own fsync too.
pub(crate) async fn write_back(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    range: &Range<u64>,
) -> Result<()> {
    if is_busy(inode, range) { write_back_busy(engine, inode, range.clone()).await } else { Ok(()) }
}

async fn write_back_busy(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, range: Range<u64>) -> Result<()> {
    let before = inode.write_errors.position();
    let (shared, owned) = (Arc::clone(engine), Arc::clone(inode));
    let operation = async move { sync_inode_range(&shared, &owned, range, false).await };
    run_to_end(&engine.volume.runtime, operation).await?;
    inode.write_errors.since(before)
}

/// Makes sure that i_disksize is at least `end` bytes: writes back the whole file if it is not.
///
/// # Errors
/// As [`write_back`]; `EIO`: earlier data could not be written, and i_disksize ends before it.
pub(crate) async fn ensure_disksize(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, end: u64) -> Result<()> {
    if inode.completion.disk_size() >= end {
        return Ok(());
    }
    write_back_busy(engine, inode, 0..u64::MAX).await?;
    if inode.completion.disk_size() < end {
        let location = format!("inode {} before byte {end}", inode.number);
        return Err(Error::io("write back", location, Errno::EIO).for_purpose(IoPurpose::Data));
    }
    Ok(())
}

/// Invalidates the page cache of bytes `range`. No block of the range is dirty, and the caller holds
/// `rwlock`.
pub(crate) async fn invalidate(inode: &Arc<InodeInfo>, range: &Range<u64>) {
    let mut at = range.start;
    while at < range.end
        && let Some(folio) = inode.pages.first_from(at)
        && folio.start() < range.end
    {
        // A task that reads the folio from the device unlocks it when the read has ended.
        let guard = folio.lock().await;
        if guard.is_removed() {
            continue;
        }
        at = guard.end();
        if guard.is_dirty() || guard.is_under_writeback() {
            // The dirty blocks of the folio lie outside of the range.
            guard.discard_blocks(guard.blocks_touched(range.start, range.end));
        } else {
            inode.pages.remove(&guard);
        }
    }
}
