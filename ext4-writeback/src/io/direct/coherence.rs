//! What the page cache holds of a range that goes past it.

use crate::writeback::inode::sync_inode_range;
use std::ops::Range;
use std::sync::Arc;

use ext4_core::{Errno, Error, IoPurpose, Result};

use crate::base::runtime::run_to_end;
use crate::inode::InodeInfo;
use crate::writeback::Engine;

/// True where a folio over `range` is dirty or on its way to the device.
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

/// Writes back what is dirty in `range` and waits until it is on the device, converted and all. The caller holds
/// `rwlock`: nobody makes anything dirty meanwhile.
///
/// # Errors
/// Those of writeback, as fsync would report them; the file's openers learn of them all the same.
pub(crate) async fn write_back(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    range: &Range<u64>,
) -> Result<()> {
    if is_busy(inode, range) { write_back_busy(engine, inode, range.clone()).await } else { Ok(()) }
}

async fn write_back_busy(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, range: Range<u64>) -> Result<()> {
    let mut cursor = inode.write_errors.sample();
    let (shared, owned) = (Arc::clone(engine), Arc::clone(inode));
    let operation = async move { sync_inode_range(&shared, &owned, range, false).await };
    run_to_end(&engine.volume.runtime, operation).await?;
    inode.write_errors.check_and_advance(&mut cursor)
}

/// i_disksize covers the file up to byte `end`.
///
/// # Errors
/// As [`write_back`]; `EIO` where earlier data could not be written and the size on the device stays behind it.
pub(crate) async fn settle_size(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, end: u64) -> Result<()> {
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

/// Drops what the cache holds of `range`. Nothing of it is dirty, and the caller holds `rwlock`.
pub(crate) async fn invalidate(inode: &Arc<InodeInfo>, range: &Range<u64>) {
    let mut at = range.start;
    while at < range.end
        && let Some(folio) = inode.pages.first_from(at)
        && folio.start() < range.end
    {
        // Who reads it from the device lets go of it when that has ended.
        let guard = folio.lock().await;
        if guard.is_removed() {
            continue;
        }
        at = guard.end();
        if guard.is_dirty() || guard.is_under_writeback() {
            // What is dirty lies beside the range.
            guard.discard_blocks(guard.blocks_touched(range.start, range.end));
        } else {
            inode.pages.remove(&guard);
        }
    }
}
