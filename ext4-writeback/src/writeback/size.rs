//! TODO header.

use std::sync::Arc;

use ext4_core::Result;
use ext4_core::meta::credits;

use crate::filesystem::FilesystemInner;
use crate::inode::InodeInfo;

/// mtime and ctime become now.
pub(crate) fn touch(fs: &FilesystemInner, disk: &mut ext4_core::format::inode::Inode) {
    let now = fs.now();
    disk.mtime = now;
    disk.ctime = now;
}

/// Makes the size at least `size`, which is in i_disksize too where all before it is written, and stamps the times. The
/// caller holds `rwlock` for writing and has zeroed the rest of the old last block.
///
/// # Errors
/// Those of the journal and of the device.
pub(crate) async fn raise_size(
    fs: &Arc<FilesystemInner>,
    inode: &Arc<InodeInfo>,
    size: u64,
    operation: &'static str,
) -> Result<()> {
    let handle = fs.begin_tracked(credits::INODE, operation).await?;
    let mut disk = inode.inode.write().await;
    grow(fs, inode, &mut disk, size);
    fs.log_inode(&handle, inode, &disk, true).await
}

/// The part of [`raise_size`] under the inode's lock, which the caller holds with a handle, and logs.
pub(crate) fn grow(
    fs: &FilesystemInner,
    inode: &Arc<InodeInfo>,
    disk: &mut ext4_core::format::inode::Inode,
    size: u64,
) {
    // i_size first: a completion that is under way looks at it last, and takes i_disksize along.
    inode.raise_size(size);
    settle_size(fs, inode, disk);
    touch(fs, disk);
}

/// i_disksize becomes i_size, where all data before that is written: for sizes that no data of their own brings along.
/// Otherwise the completion of that data does it. The caller logs the inode.
pub(crate) fn settle_size(
    fs: &FilesystemInner,
    inode: &Arc<InodeInfo>,
    disk: &mut ext4_core::format::inode::Inode,
) {
    let size = inode.size();
    if size <= disk.size {
        return;
    }
    let floor = disk.size & !(u64::from(fs.info.block_size().bytes()) - 1);
    if !inode.completion.is_in_flight_from(floor)
        && !inode.completion.has_failed_tail()
        && !inode.pages.is_dirty_from(floor)
    {
        disk.size = size;
        inode.completion.set_disk_size(size);
    } else {
        // The size follows the data, which is not to wait until it is old.
        fs.writeback.expedite(inode);
    }
}
