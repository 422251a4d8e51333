//! i_size and i_disksize of a file: the size in memory, the size in the inode as it is logged, and what may
//! move the second.
//!
//! Invariant: i_disksize never passes a byte whose data is not on the device, nor a last block that may hold
//! anything but zeros there behind its end. Data that completes moves it through the gate of
//! [`crate::writeback::completion`]; all other code calls [`follow_size`].

use std::sync::Arc;

use ext4_core::Result;
use ext4_core::format::inode::Inode;
use ext4_core::meta::credits;

use crate::inode::InodeInfo;
use crate::inode::log::log_inode;
use crate::volume::Volume;
use crate::writeback::Engine;

/// Sets mtime and ctime of `disk` to now. The caller logs the inode.
pub(crate) fn stamp_mtime_ctime(engine: &Engine, disk: &mut Inode) {
    let now = engine.volume.now();
    disk.mtime = now;
    disk.ctime = now;
}

/// Raises i_size to at least `size` bytes, and i_disksize too if all data before it is written; stamps mtime
/// and ctime. The caller holds `rwlock` for writing and has zeroed the rest of the old last block.
///
/// # Errors
/// Those of the journal and of the device.
pub(crate) async fn raise_size(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    size: u64,
    operation: &'static str,
) -> Result<()> {
    let handle = engine.volume.begin_tracked(credits::INODE, operation).await?;
    let mut disk = inode.inode.write().await;
    grow(engine, inode, &mut disk, size);
    log_inode(&engine.volume, &handle, inode, &disk, true).await
}

/// The part of [`raise_size`] under the inode's lock. The caller holds that lock and a handle, and logs the
/// inode.
pub(crate) fn grow(engine: &Engine, inode: &Arc<InodeInfo>, disk: &mut Inode, size: u64) {
    // i_size first: a completion that is under way looks at it last, and moves i_disksize too.
    inode.raise_size(size);
    raise_disksize_or_expedite(engine, inode, disk);
    stamp_mtime_ctime(engine, disk);
}

/// Raises i_disksize to i_size if all data before it is on the device: for a size without data of its own.
/// Otherwise the completion of that data raises it, and the flusher is told to write the data now. The caller
/// holds the inode's lock for writing, and logs the inode.
pub(crate) fn raise_disksize_or_expedite(engine: &Engine, inode: &Arc<InodeInfo>, disk: &mut Inode) {
    if inode.size() > disk.size && !follow_size(&engine.volume, inode, disk) {
        engine.dirty.expedite(inode);
    }
}

/// i_disksize for a size without data of its own, the one rule: it becomes i_size if no block, from the one
/// that i_disksize ends in on, is dirty, in flight, or failed. Returns true if i_disksize moved. The caller
/// holds the inode's lock for writing, and logs the inode.
pub(crate) fn follow_size(volume: &Volume, inode: &InodeInfo, disk: &mut Inode) -> bool {
    let size = inode.size();
    let floor = disk.size & !(u64::from(volume.info.block_size().bytes()) - 1);
    let may = size > disk.size
        && !inode.completion.has_failed_tail()
        && !inode.completion.is_in_flight_from(floor)
        && !inode.pages.is_dirty_from(floor);
    if may {
        disk.size = size;
        inode.completion.set_disk_size(size);
    }
    may
}
