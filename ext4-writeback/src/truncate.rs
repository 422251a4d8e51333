//! Truncation: changing a file's size, and freeing what lies behind it.
//!
//! ```text
//!   down:  handle { orphan, i_size = i_disksize = new, log } → drop folios behind (waits for their writeback)
//!          → zero the rest of the last block → handles { free from the end towards the start } → handle { no orphan }
//!   up:    zero the rest of the old last block → i_size = new → handle { i_disksize, where all before it is written }
//! ```
//!
//! Invariants:
//! - From the first commit of a truncation on, either it is finished or the inode is an orphan, and recovery finishes
//!   it. The size is the new one all the time.
//! - The page cache behind the new size is gone before the first block is freed, and stays away (`rwlock`,
//!   `invalidate_lock`): no I/O goes to a block that may belong to another file.
//! - The inode's lock is given up between transactions: others that hold a handle wait for it.
//! - No folio is locked under a handle.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ext4_core::meta::extent_tree::{self, Removal};
use ext4_core::meta::{Transaction as _, block_map, credits};
use ext4_core::{Error, LogicalBlock, Result};

use crate::completion;
use crate::extent_status::Status;
use crate::fast_commit::{Mapped, Reason};
use crate::filesystem::FilesystemInner;
use crate::inline_data;
use crate::inode_info::InodeInfo;
use crate::iomap::zero::zero_block_tail;
use crate::writeback;

const ORPHAN_CREDITS: u32 = credits::ORPHAN + credits::INODE;
const FREE_CREDITS: u32 = credits::FREE_STEP + ORPHAN_CREDITS;
/// One step of freeing, with a split where the range is the middle of an extent.
const FREE_RANGE_CREDITS: u32 = credits::FREE_STEP + credits::EXTENT + credits::INODE;

/// Sets the size of a regular file. Takes `rwlock` itself. The caller runs it to its end.
///
/// # Errors
/// `EFBIG`, those of the journal and of the device.
pub(crate) async fn set_size(fs: &Arc<FilesystemInner>, inode: &Arc<InodeInfo>, size: u64) -> Result<()> {
    let limit = crate::indirect::max_size(fs, inode).await;
    if size > limit {
        return Err(Error::posix(ext4_core::Errno::EFBIG, format!("{size} bytes: at most {limit}")));
    }
    let _changing = inode.rwlock.write().await;
    inode.check_alive()?;
    if inline_data::set_size(fs, inode, size).await? {
        return Ok(());
    }
    if size > inode.size() { extend(fs, inode, size).await } else { shrink(fs, inode, size).await }
}

/// Extends a regular file to `size` bytes, with a hole; nothing where it is as long already. Takes `rwlock` itself. The
/// caller runs it to its end, and has checked `size` against [`crate::indirect::max_size`].
///
/// # Errors
/// Those of the journal and of the device.
pub(crate) async fn extend_to(fs: &Arc<FilesystemInner>, inode: &Arc<InodeInfo>, size: u64) -> Result<()> {
    let _changing = inode.rwlock.write().await;
    inode.check_alive()?;
    if size <= inode.size() || inline_data::set_size(fs, inode, size).await? {
        return Ok(());
    }
    extend(fs, inode, size).await
}

/// The largest size a file with extents can have: 2^32 - 1 blocks (kernel: `ext4_max_size`). For one file ask
/// [`crate::indirect::max_size`].
pub(crate) fn max_size(fs: &FilesystemInner) -> u64 {
    u64::from(u32::MAX) << fs.info.block_size().bits()
}

/// mtime and ctime become now.
pub(crate) fn touch(fs: &FilesystemInner, disk: &mut ext4_core::format::inode::Inode) {
    disk.stamp_change(fs.now());
}

async fn extend(fs: &Arc<FilesystemInner>, inode: &Arc<InodeInfo>, size: u64) -> Result<()> {
    fs.check_writable()?;
    zero_block_tail(fs, inode, inode.size()).await?;
    raise_size(fs, inode, size, "truncate").await
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

async fn shrink(fs: &Arc<FilesystemInner>, inode: &Arc<InodeInfo>, size: u64) -> Result<()> {
    if size == 0 && inode.size() > 0 {
        inode.replaced_by_truncation.store(true, Ordering::Release);
    }
    let _dropping = inode.invalidate_lock.write().await;
    {
        let handle = fs.begin_tracked(ORPHAN_CREDITS, "truncate").await?;
        let mut disk = inode.inode.write().await;
        fs.orphans.add(&fs.info, &handle, &mut disk).await?;
        fs.fast_commits.truncation_begins(handle.id(), inode.number);
        inode.size.store(size, Ordering::SeqCst);
        inode.pages.note_cut(size);
        disk.size = size.min(disk.size);
        inode.completion.set_disk_size(disk.size);
        touch(fs, &mut disk);
        fs.log_inode(&handle, inode, &disk, true).await?;
    }
    inode.completion.forget_failed_tail();
    drop_folios(fs, inode, size..u64::MAX).await;
    zero_block_tail(fs, inode, size).await?;
    free_behind(fs, inode, size, true).await
}

/// Drops the page cache of bytes `range`: whole folios and, of those at its ends, the blocks that lie wholly in it.
/// Waits for their writeback. The caller holds `invalidate_lock` for writing, and no handle.
pub(crate) async fn drop_folios(fs: &Arc<FilesystemInner>, inode: &Arc<InodeInfo>, range: Range<u64>) {
    let mut at = range.start;
    while let Some(folio) = inode.pages.first_from(at).filter(|folio| folio.start() < range.end) {
        // What was parked behind data that is cut off now has to be looked at again.
        completion::schedule(fs, inode);
        writeback::wait_for_folio(fs, &folio).await;
        let guard = folio.lock().await;
        if guard.is_removed() {
            continue;
        }
        if guard.is_under_writeback() {
            continue;
        }
        if guard.start() >= range.start && guard.end() <= range.end {
            if inode.pages.remove(&guard) {
                fs.writeback.note_clean(guard.len());
            }
        } else {
            let blocks = guard.blocks_covered(range.start, range.end);
            if guard.discard_blocks(blocks) {
                inode.pages.note_clean(&guard);
                fs.writeback.note_clean(guard.len());
            }
        }
        at = guard.end();
    }
}

/// Frees all blocks from byte `size` on, in as many transactions as it takes, and takes the inode off the orphans
/// where `finish`. The page cache there is gone and stays away.
async fn free_behind(
    fs: &Arc<FilesystemInner>,
    inode: &Arc<InodeInfo>,
    size: u64,
    finish: bool,
) -> Result<()> {
    let first = fs.info.block_size().blocks_for(size);
    let first = u32::try_from(first).unwrap_or(u32::MAX);
    tracing::debug!(ino = inode.number.0, size, "ext4_truncate_enter");
    loop {
        let handle = fs.begin_tracked(FREE_CREDITS, "truncate").await?;
        let mut disk = inode.inode.write().await;
        // Between two transactions somebody may have looked at what was not freed yet.
        let promised = inode.extent_status.remove(first..u32::MAX);
        inode.preallocation.give_back(&fs.info, first..u32::MAX);
        fs.info.release_reserved_blocks(promised);
        if promised > 0 {
            tracing::trace!(ino = inode.number.0, freed_blocks = promised, "ext4_da_release_space");
        }
        tracing::trace!(ino = inode.number.0, lblk = first, "ext4_es_remove_extent");
        let removal = if first < u32::MAX {
            block_map::remove(&fs.info, &handle, &mut disk, LogicalBlock(first), LogicalBlock::MAX).await?
        } else {
            Removal::Done
        };
        promise_freed_cluster(fs, inode, &disk, first).await;
        if removal == Removal::Done && finish {
            fs.orphans.remove(&fs.info, &handle, &mut disk).await?;
            // What earlier handles freed of it is in the range too: none of it is to be left.
            fs.fast_commits.range_changed(handle.id(), inode.number, (first, u32::MAX), Mapped::Hole);
            fs.fast_commits.truncation_ends(handle.id(), inode.number);
        }
        fs.log_inode(&handle, inode, &disk, true).await?;
        if removal == Removal::Done {
            tracing::debug!(ino = inode.number.0, sectors = disk.sectors, "ext4_truncate_exit");
            return Ok(());
        }
    }
}

/// Unmaps and frees `blocks`, of which no page cache is left and which stays away, in as many transactions as it takes.
/// The caller holds `rwlock` for writing.
///
/// The tree of what lies where is made to forget the range in every handle: between two the inode's lock is given up,
/// and who looks then finds part of the range still mapped.
///
/// # Errors
/// Those of the journal and of the device.
pub(crate) async fn free_range(
    fs: &Arc<FilesystemInner>,
    inode: &Arc<InodeInfo>,
    blocks: Range<u32>,
    operation: &'static str,
) -> Result<()> {
    if blocks.is_empty() {
        return Ok(());
    }
    let (first, last) = (LogicalBlock(blocks.start), LogicalBlock(blocks.end - 1));
    loop {
        let handle = fs.begin_tracked(FREE_RANGE_CREDITS, operation).await?;
        let mut disk = inode.inode.write().await;
        let promised = inode.extent_status.remove(blocks.clone());
        inode.preallocation.give_back(&fs.info, blocks.clone());
        fs.info.release_reserved_blocks(promised);
        let removed = block_map::remove(&fs.info, &handle, &mut disk, first, last).await;
        if removed.is_err() {
            fs.fast_commits.mark_ineligible(handle.id(), Reason::Failure);
        } else {
            // What other handles free of it is a hole too, as soon as this is durable: one of the states that a crash
            // may show.
            let range = (blocks.start, blocks.end);
            fs.fast_commits.range_changed(handle.id(), inode.number, range, Mapped::Hole);
        }
        for end in [first, last] {
            promise_freed_cluster(fs, inode, &disk, end.0).await;
        }
        if matches!(removed, Ok(Removal::Done)) {
            inode.extent_status.set(blocks.clone(), Status::Hole);
        }
        fs.log_inode(&handle, inode, &disk, true).await?;
        if removed? == Removal::Done {
            return Ok(());
        }
    }
}

/// Blocks of the cluster of `block`, at an end of a range that was freed, may still be delayed. Where they shared it with
/// allocated ones, and all of those are gone, the cluster is promised to them. The caller holds `disk` since it freed.
async fn promise_freed_cluster(
    fs: &FilesystemInner,
    inode: &InodeInfo,
    disk: &ext4_core::format::inode::Inode,
    block: u32,
) {
    if !inode.extent_status.shares_cluster(block) {
        return;
    }
    // One promise too many is given back when the blocks are allocated; one too few would be taken from others.
    let mapped = extent_tree::is_cluster_mapped(&fs.info, disk, LogicalBlock(block)).await.unwrap_or(false);
    if !mapped && inode.extent_status.cluster_freed(block) {
        fs.info.reserve_freed_clusters(1);
    }
}

/// Drops the page cache and frees all blocks of an inode that is being deleted and that nobody uses any more. The
/// inode is on the orphan list; it stays there.
///
/// # Errors
/// Those of the journal and of the device.
pub(crate) async fn free_all_blocks(fs: &Arc<FilesystemInner>, inode: &Arc<InodeInfo>) -> Result<()> {
    let _dropping = inode.invalidate_lock.write().await;
    inode.size.store(0, Ordering::SeqCst);
    {
        let mut disk = inode.inode.write().await;
        disk.size = 0;
        inode.completion.set_disk_size(0);
    }
    inode.pages.times_dirty.store(false, Ordering::Release);
    drop_folios(fs, inode, 0..u64::MAX).await;
    if inode.is_inline() {
        return Ok(());
    }
    free_behind(fs, inode, 0, false).await
}

/// Finishes a truncation that a crash interrupted: frees what lies past the size and takes the inode off the orphans.
///
/// # Errors
/// As [`free_all_blocks`].
pub(crate) async fn resume(fs: &Arc<FilesystemInner>, inode: &Arc<InodeInfo>) -> Result<()> {
    if inode.is_inline() {
        return inline_data::resume(fs, inode).await;
    }
    let _dropping = inode.invalidate_lock.write().await;
    zero_block_tail(fs, inode, inode.size()).await?;
    free_behind(fs, inode, inode.size(), true).await
}
