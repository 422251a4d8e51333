//! The sizes of a file: i_size in memory, i_disksize in the inode as it is logged, and who may move the second.
//!
//! Invariant: i_disksize never passes a byte whose data is not on the device, nor a last block whose rest may hold anything
//! but zeros there. Data that completes moves it through the gate of [`crate::writeback::completion`]; everything else
//! asks [`follow_size`].

use crate::inode::log::log_inode;
use std::sync::Arc;

use ext4_core::Result;
use ext4_core::format::inode::Inode;
use ext4_core::meta::credits;

use crate::inode::InodeInfo;
use crate::volume::Volume;
use crate::writeback::Engine;

/// mtime and ctime become now.
pub(crate) fn stamp_mtime_ctime(engine: &Engine, disk: &mut Inode) {
    let now = engine.volume.now();
    disk.mtime = now;
    disk.ctime = now;
}

/// Makes the size at least `size`, which is in i_disksize too where all before it is written, and stamps the times. The
/// caller holds `rwlock` for writing and has zeroed the rest of the old last block.
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

/// The part of [`raise_size`] under the inode's lock, which the caller holds with a handle, and logs.
pub(crate) fn grow(engine: &Engine, inode: &Arc<InodeInfo>, disk: &mut Inode, size: u64) {
    // i_size first: a completion that is under way looks at it last, and takes i_disksize along.
    inode.raise_size(size);
    raise_disksize_or_expedite(engine, inode, disk);
    stamp_mtime_ctime(engine, disk);
}

/// i_disksize becomes i_size, if all data before that is on the device: for sizes that no data of their own brings along.
/// Otherwise the completion of that data does it, and the flusher is told not to wait until the data is old. The caller
/// logs the inode.
pub(crate) fn raise_disksize_or_expedite(engine: &Engine, inode: &Arc<InodeInfo>, disk: &mut Inode) {
    if inode.size() > disk.size && !follow_size(&engine.volume, inode, disk) {
        engine.dirty.expedite(inode);
    }
}

/// The one rule for an i_disksize that no data of its own moves: it becomes i_size if no block from the one that i_disksize
/// ends in is dirty, in flight, or failed. Returns true if i_disksize moved. The caller holds the inode's lock for writing,
/// and logs the inode.
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
