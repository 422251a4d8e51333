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
    disk.stamp_change(engine.volume.now());
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
    let mut disk = inode.on_disk.write().await;
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
        // In the queue also if nothing is dirty: a sync of everything makes the size durable.
        engine.dirty.enqueue(engine.volume.runtime.monotonic(), inode);
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

/// The size that a sync has to make durable: i_size when the sync began.
///
/// [`follow_size`] waits until nothing below i_size is dirty. Writers that go on while a sync runs could keep
/// i_disksize back for ever, and the sync would return with a size that a crash takes back. So a sync that
/// has written all that was dirty when it began moves i_disksize up to the size it began with by itself: what
/// became dirty later in a part of the file that was a hole then is zeros after a crash, which is what the
/// file held when the sync began. A truncation meanwhile lowers what the sync may reach: behind the cut the
/// sync has written nothing.
pub(crate) struct SizeToSync<'a> {
    inode: &'a Arc<InodeInfo>,
    number: u64,
    size: u64,
}

impl<'a> SizeToSync<'a> {
    /// A sync of `inode` begins, before its pass.
    pub fn begin(inode: &'a Arc<InodeInfo>) -> Self {
        // In this order: a truncation between the two is seen.
        let number = inode.completion.begin_sync();
        Self { inode, number, size: inode.size() }
    }

    /// Everything that was dirty in bytes `..end` when the sync began has been written, without an error.
    ///
    /// # Errors
    /// Those of the journal and of the device.
    pub async fn follow(&self, volume: &Volume, end: u64) -> Result<()> {
        let (inode, queue) = (self.inode, &self.inode.completion);
        if end < self.size || self.size <= queue.disk_size() || queue.has_failed_tail() {
            return Ok(());
        }
        let handle = volume.begin_tracked(credits::INODE, "sync").await?;
        let mut disk = inode.on_disk.write().await;
        let size = self.size.min(queue.lowest_since(self.number)).min(inode.size());
        if size <= disk.size || queue.has_failed_tail() {
            return Ok(());
        }
        disk.size = size;
        queue.set_disk_size(size);
        log_inode(volume, &handle, inode, &disk, true).await
    }
}

impl Drop for SizeToSync<'_> {
    fn drop(&mut self) {
        self.inode.completion.end_sync(self.number);
    }
}
