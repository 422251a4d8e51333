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

use crate::inode::log::log_inode;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ext4_core::meta::extent_tree::Removal;
use ext4_core::meta::{Transaction as _, block_map, credits, extent_tree};
use ext4_core::{Error, LogicalBlock, Result};

use crate::cache::extent_status::status::Status;
use crate::inode::InodeInfo;
use crate::io::drop_folios::drop_folios;
use crate::io::inline_data;
use crate::io::zero::zero_block_tail;
use crate::volume::fast_commit::mapped::Mapped;
use crate::volume::fast_commit::reason::Reason;
use crate::writeback::Engine;
use crate::writeback::size::{raise_size, touch};

const ORPHAN_CREDITS: u32 = credits::ORPHAN + credits::INODE;

const FREE_CREDITS: u32 = credits::FREE_STEP + ORPHAN_CREDITS;

/// One step of freeing, with a split where the range is the middle of an extent.
const FREE_RANGE_CREDITS: u32 = credits::FREE_STEP + credits::EXTENT + credits::INODE;

/// Sets the size of a regular file. Takes `rwlock` itself. The caller runs it to its end.
///
/// # Errors
/// `EFBIG`, those of the journal and of the device.
pub(crate) async fn set_size(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, size: u64) -> Result<()> {
    let limit = crate::iomap::pointers::max_size(&engine.volume, inode).await;
    if size > limit {
        return Err(Error::posix(ext4_core::Errno::EFBIG, format!("{size} bytes: at most {limit}")));
    }
    let _changing = inode.rwlock.write().await;
    inode.check_alive()?;
    if inline_data::set_size(engine, inode, size).await? {
        return Ok(());
    }
    if size > inode.size() { extend(engine, inode, size).await } else { shrink(engine, inode, size).await }
}

/// Extends a regular file to `size` bytes, with a hole; nothing where it is as long already. Takes `rwlock` itself. The
/// caller runs it to its end, and has checked `size` against [`crate::iomap::pointers::max_size`].
///
/// # Errors
/// Those of the journal and of the device.
pub(crate) async fn extend_to(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, size: u64) -> Result<()> {
    let _changing = inode.rwlock.write().await;
    inode.check_alive()?;
    if size <= inode.size() || inline_data::set_size(engine, inode, size).await? {
        return Ok(());
    }
    extend(engine, inode, size).await
}

async fn extend(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, size: u64) -> Result<()> {
    engine.volume.check_writable()?;
    zero_block_tail(engine, inode, inode.size()).await?;
    raise_size(engine, inode, size, "truncate").await
}

async fn shrink(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, size: u64) -> Result<()> {
    if size == 0 && inode.size() > 0 {
        inode.replaced_by_truncation.store(true, Ordering::Release);
    }
    let _dropping = inode.invalidate_lock.write().await;
    {
        let handle = engine.volume.begin_tracked(ORPHAN_CREDITS, "truncate").await?;
        let mut disk = inode.inode.write().await;
        engine.volume.orphans.add(&engine.volume.info, &handle, &mut disk).await?;
        engine.volume.fast_commits.truncation_begins(handle.id(), inode.number);
        inode.size.store(size, Ordering::SeqCst);
        inode.pages.pass.note_cut(size);
        disk.size = size.min(disk.size);
        inode.completion.set_disk_size(disk.size);
        touch(engine, &mut disk);
        log_inode(&engine.volume, &handle, inode, &disk, true).await?;
    }
    inode.completion.forget_failed_tail();
    drop_folios(engine, inode, size..u64::MAX).await;
    zero_block_tail(engine, inode, size).await?;
    free_behind(engine, inode, size, true).await
}

/// Frees all blocks from byte `size` on, in as many transactions as it takes, and takes the inode off the orphans
/// where `finish`. The page cache there is gone and stays away.
async fn free_behind(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, size: u64, finish: bool) -> Result<()> {
    let first = engine.volume.info.block_size().blocks_for(size);
    let first = u32::try_from(first).unwrap_or(u32::MAX);
    tracing::debug!(ino = inode.number.0, size, "ext4_truncate_enter");
    loop {
        let handle = engine.volume.begin_tracked(FREE_CREDITS, "truncate").await?;
        let mut disk = inode.inode.write().await;
        // Between two transactions somebody may have looked at what was not freed yet.
        let promised = inode.extent_status.remove(first..u32::MAX);
        inode.preallocation.give_back(&engine.volume.info, first..u32::MAX);
        engine.volume.info.release_reserved_blocks(promised);
        if promised > 0 {
            tracing::trace!(ino = inode.number.0, freed_blocks = promised, "ext4_da_release_space");
        }
        tracing::trace!(ino = inode.number.0, lblk = first, "ext4_es_remove_extent");
        let removal = if first < u32::MAX {
            block_map::remove(&engine.volume.info, &handle, &mut disk, LogicalBlock(first), LogicalBlock::MAX)
                .await?
        } else {
            Removal::Done
        };
        promise_freed_cluster(engine, inode, &disk, first).await;
        if removal == Removal::Done && finish {
            engine.volume.orphans.remove(&engine.volume.info, &handle, &mut disk).await?;
            // What earlier handles freed of it is in the range too: none of it is to be left.
            engine.volume.fast_commits.range_changed(
                handle.id(),
                inode.number,
                (first, u32::MAX),
                Mapped::Hole,
            );
            engine.volume.fast_commits.truncation_ends(handle.id(), inode.number);
        }
        log_inode(&engine.volume, &handle, inode, &disk, true).await?;
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
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    blocks: Range<u32>,
    operation: &'static str,
) -> Result<()> {
    if blocks.is_empty() {
        return Ok(());
    }
    let (first, last) = (LogicalBlock(blocks.start), LogicalBlock(blocks.end - 1));
    loop {
        let handle = engine.volume.begin_tracked(FREE_RANGE_CREDITS, operation).await?;
        let mut disk = inode.inode.write().await;
        let promised = inode.extent_status.remove(blocks.clone());
        inode.preallocation.give_back(&engine.volume.info, blocks.clone());
        engine.volume.info.release_reserved_blocks(promised);
        let removed = block_map::remove(&engine.volume.info, &handle, &mut disk, first, last).await;
        if removed.is_err() {
            engine.volume.fast_commits.mark_ineligible(handle.id(), Reason::Failure);
        } else {
            // What other handles free of it is a hole too, as soon as this is durable: one of the states that a crash
            // may show.
            let range = (blocks.start, blocks.end);
            engine.volume.fast_commits.range_changed(handle.id(), inode.number, range, Mapped::Hole);
        }
        for end in [first, last] {
            promise_freed_cluster(engine, inode, &disk, end.0).await;
        }
        if matches!(removed, Ok(Removal::Done)) {
            inode.extent_status.set(blocks.clone(), Status::Hole);
        }
        log_inode(&engine.volume, &handle, inode, &disk, true).await?;
        if removed? == Removal::Done {
            return Ok(());
        }
    }
}

/// Blocks of the cluster of `block`, at an end of a range that was freed, may still be delayed. Where they shared it with
/// allocated ones, and all of those are gone, the cluster is promised to them. The caller holds `disk` since it freed.
async fn promise_freed_cluster(
    engine: &Engine,
    inode: &InodeInfo,
    disk: &ext4_core::format::inode::Inode,
    block: u32,
) {
    if !inode.extent_status.shares_cluster(block) {
        return;
    }
    // One promise too many is given back when the blocks are allocated; one too few would be taken from others.
    let mapped =
        extent_tree::is_cluster_mapped(&engine.volume.info, disk, LogicalBlock(block)).await.unwrap_or(false);
    if !mapped && inode.extent_status.cluster_freed(block) {
        engine.volume.info.reserve_freed_clusters(1);
    }
}

/// Drops the page cache and frees all blocks of an inode that is being deleted and that nobody uses any more. The
/// inode is on the orphan list; it stays there.
///
/// # Errors
/// Those of the journal and of the device.
pub(crate) async fn free_all_blocks(engine: &Arc<Engine>, inode: &Arc<InodeInfo>) -> Result<()> {
    let _dropping = inode.invalidate_lock.write().await;
    inode.size.store(0, Ordering::SeqCst);
    {
        let mut disk = inode.inode.write().await;
        disk.size = 0;
        inode.completion.set_disk_size(0);
    }
    inode.pages.times.set_logged();
    drop_folios(engine, inode, 0..u64::MAX).await;
    if inode.is_inline() {
        return Ok(());
    }
    free_behind(engine, inode, 0, false).await
}

/// Finishes a truncation that a crash interrupted: frees what lies past the size and takes the inode off the orphans.
///
/// # Errors
/// As [`free_all_blocks`].
pub(crate) async fn resume(engine: &Arc<Engine>, inode: &Arc<InodeInfo>) -> Result<()> {
    if inode.is_inline() {
        return inline_data::resume(engine, inode).await;
    }
    let _dropping = inode.invalidate_lock.write().await;
    zero_block_tail(engine, inode, inode.size()).await?;
    free_behind(engine, inode, inode.size(), true).await
}
