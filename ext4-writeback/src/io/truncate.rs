//! Truncation: changing i_size, and freeing the blocks behind it (kernel: `ext4_setattr`, `ext4_truncate`).
//!
//! ```text
//!   down:  handle { orphan, i_size = i_disksize = new, log }
//!          → drop folios behind (waits for their writeback) → zero the rest of the last block
//!          → handles { free from the end towards the start } → handle { no orphan }
//!   up:    zero the rest of the old last block → i_size = new
//!          → handle { i_disksize, if all before it is written }
//! ```
//!
//! Invariants:
//! - From the first commit of a truncation on, either it is finished or the inode is an orphan, and recovery
//!   finishes it. i_size is the new one all the time.
//! - The page cache behind the new size is dropped before the first block is freed, and is not filled again
//!   (`rwlock`, `invalidate_lock`): no I/O goes to a block that may belong to another file.
//! - The inode's lock is released between transactions: other tasks that hold a handle wait for it.
//! - No folio is locked under a handle.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ext4_core::meta::extent_tree::Removal;
use ext4_core::meta::{Transaction as _, block_map, credits, extent_tree};
use ext4_core::{Error, LogicalBlock, Result};

use crate::cache::extent_status::status::Status;
use crate::inode::InodeInfo;
use crate::inode::log::log_inode;
use crate::io::drop_folios::drop_folios;
use crate::io::inline_data;
use crate::io::zero::{read_block_tail, zero_block_tail};
use crate::volume::fast_commit::mapped::Mapped;
use crate::volume::fast_commit::reason::Reason;
use crate::writeback::Engine;
use crate::writeback::size::{raise_size, stamp_mtime_ctime};

const ORPHAN_CREDITS: u32 = credits::ORPHAN + credits::INODE;

const FREE_CREDITS: u32 = credits::FREE_STEP + ORPHAN_CREDITS;

/// Credits for one step of freeing a range, with a split if the range is the middle of an extent.
const FREE_RANGE_CREDITS: u32 = credits::FREE_STEP + credits::EXTENT + credits::INODE;

/// truncate: sets i_size of a regular file to `size` bytes. Takes `rwlock` itself. The caller runs this to
/// its end.
///
/// # Errors
/// - `EFBIG`: `size` is larger than [`crate::iomap::pointers::max_size`].
/// - `ENOENT`: the inode has been deleted.
/// - Those of the journal and of the device.
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

/// Extends a regular file to `size` bytes with a hole; does nothing if it is as long already. Takes `rwlock`
/// itself. The caller runs this to its end, and has checked `size` against
/// [`crate::iomap::pointers::max_size`].
///
/// # Errors
/// `ENOENT`: the inode has been deleted. Those of the journal and of the device.
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
    // Before anything is changed: what cannot be read cannot be zeroed later, and the truncation would stay
    // half done.
    read_block_tail(engine, inode, size).await?;
    {
        let handle = engine.volume.begin_tracked(ORPHAN_CREDITS, "truncate").await?;
        let mut disk = inode.on_disk.write().await;
        engine.volume.orphans.add(&engine.volume.info, &handle, &mut disk).await?;
        engine.volume.fast_commits.truncation_begins(handle.id(), inode.number);
        inode.size.store(size, Ordering::SeqCst);
        inode.pages.pass.note_cut(size);
        inode.completion.note_truncation(size);
        disk.size = size.min(disk.size);
        inode.completion.set_disk_size(disk.size);
        stamp_mtime_ctime(engine, &mut disk);
        log_inode(&engine.volume, &handle, inode, &disk, true).await?;
    }
    let first = LogicalBlock::at_or_behind(size, engine.volume.info.block_size());
    inode.completion.forget_failed_tail(&(first..LogicalBlock::END));
    drop_folios(engine, inode, size..u64::MAX).await;
    cut_off(engine, inode, size).await
}

/// The last part of a truncation: zeroes the rest of the last block and frees what lies behind it. If the
/// first fails, the second is done all the same, and no size passes the block
/// ([`crate::writeback::completion::gate`]).
async fn cut_off(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, size: u64) -> Result<()> {
    let zeroed = zero_block_tail(engine, inode, size).await;
    if let Err(error) = &zeroed {
        let block = LogicalBlock::containing(size, engine.volume.info.block_size());
        inode.completion.set_failed_tail(block, error);
    }
    let freed = free_behind(engine, inode, size, true).await;
    zeroed.and(freed)
}

/// Frees all blocks from byte `size` on, in as many transactions as it takes. `finish`: true if the inode
/// leaves the orphan list at the end. The page cache of these blocks has been dropped, and the caller's locks
/// keep it from being filled.
async fn free_behind(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, size: u64, finish: bool) -> Result<()> {
    let first = LogicalBlock::at_or_behind(size, engine.volume.info.block_size());
    tracing::debug!(ino = inode.number.0, size, "ext4_truncate_enter");
    loop {
        let handle = engine.volume.begin_tracked(FREE_CREDITS, "truncate").await?;
        let mut disk = inode.on_disk.write().await;
        // Between two transactions another task may have looked up mappings that were not freed yet.
        let reserved = inode.extent_status.remove(first..LogicalBlock::END);
        inode.preallocation.give_back(&engine.volume.info, first..LogicalBlock::END);
        engine.volume.info.release_reserved_blocks(reserved);
        if reserved > 0 {
            tracing::trace!(ino = inode.number.0, freed_blocks = reserved, "ext4_da_release_space");
        }
        tracing::trace!(ino = inode.number.0, lblk = first.0, "ext4_es_remove_extent");
        let removal = if first < LogicalBlock::END {
            block_map::remove(&engine.volume.info, &handle, &mut disk, first, LogicalBlock::MAX).await?
        } else {
            Removal::Done
        };
        reserve_freed_cluster(engine, inode, &disk, first).await;
        if removal == Removal::Done && finish {
            engine.volume.orphans.remove(&engine.volume.info, &handle, &mut disk).await?;
            // The range covers the blocks that earlier handles freed too.
            engine.volume.fast_commits.range_changed(
                handle.id(),
                inode.number,
                (first.0, u32::MAX),
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

/// Unmaps and frees `blocks`, in as many transactions as it takes. Their page cache has been dropped, and the
/// caller's locks keep it from being filled. The caller holds `rwlock` for writing. `operation` names the
/// handles.
///
/// Every handle removes the range from the extent status tree: between two handles the inode's lock is
/// released, and a task that looks up a mapping then finds part of the range still mapped.
///
/// # Errors
/// Those of the journal and of the device.
pub(crate) async fn free_range(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    blocks: Range<LogicalBlock>,
    operation: &'static str,
) -> Result<()> {
    if blocks.is_empty() {
        return Ok(());
    }
    let (first, last) = (blocks.start, LogicalBlock(blocks.end.0 - 1));
    loop {
        let handle = engine.volume.begin_tracked(FREE_RANGE_CREDITS, operation).await?;
        let mut disk = inode.on_disk.write().await;
        let reserved = inode.extent_status.remove(blocks.clone());
        inode.preallocation.give_back(&engine.volume.info, blocks.clone());
        engine.volume.info.release_reserved_blocks(reserved);
        let removed = block_map::remove(&engine.volume.info, &handle, &mut disk, first, last).await;
        if removed.is_err() {
            engine.volume.fast_commits.mark_ineligible(handle.id(), Reason::Failure);
        } else {
            // The blocks that other handles free become a hole too as soon as this is durable: one of the
            // states that a crash may show.
            let range = (blocks.start.0, blocks.end.0);
            engine.volume.fast_commits.range_changed(handle.id(), inode.number, range, Mapped::Hole);
        }
        for end in [first, last] {
            reserve_freed_cluster(engine, inode, &disk, end).await;
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

/// bigalloc: delayed blocks may be left in the cluster of `block`, which is at an end of a freed range. If
/// they shared it with allocated blocks, and all of those are gone, the cluster is reserved for them. The
/// caller has held `disk` since it freed the range.
async fn reserve_freed_cluster(
    engine: &Engine,
    inode: &InodeInfo,
    disk: &ext4_core::format::inode::Inode,
    block: LogicalBlock,
) {
    if !inode.extent_status.shares_cluster(block) {
        return;
    }
    // A reservation too many is released when the blocks are allocated; one too few would be taken from other
    // blocks.
    let mapped = extent_tree::is_cluster_mapped(&engine.volume.info, disk, block).await.unwrap_or(false);
    if !mapped && inode.extent_status.cluster_freed(block) {
        engine.volume.info.reserve_freed_clusters(1);
    }
}

/// Drops the page cache and frees all blocks of an inode that is being deleted and has no user left. The
/// inode is on the orphan list, and stays there.
///
/// # Errors
/// Those of the journal and of the device.
pub(crate) async fn free_all_blocks(engine: &Arc<Engine>, inode: &Arc<InodeInfo>) -> Result<()> {
    let _dropping = inode.invalidate_lock.write().await;
    inode.size.store(0, Ordering::SeqCst);
    {
        let mut disk = inode.on_disk.write().await;
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

/// Orphan processing: finishes a truncation that a crash interrupted. Frees the blocks behind i_size, and the
/// inode leaves the orphan list.
///
/// # Errors
/// As [`free_all_blocks`].
pub(crate) async fn resume(engine: &Arc<Engine>, inode: &Arc<InodeInfo>) -> Result<()> {
    if inode.is_inline() {
        return inline_data::resume(engine, inode).await;
    }
    let _dropping = inode.invalidate_lock.write().await;
    cut_off(engine, inode, inode.size()).await
}
