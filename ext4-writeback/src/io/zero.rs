//! Zeroing part of a block in the page cache: the bytes behind i_size before the file grows past them, and
//! the edges of a punched or zeroed range (kernel: `ext4_block_zero_page_range`).
//!
//! The block that holds an unaligned i_size may hold anything behind it on the device: an append whose data
//! got there before a crash, and its size did not. So nothing may raise i_size past such a block without
//! zeroing it first, and i_disksize waits for the zeros ([`crate::writeback::completion`], the tail gate).
//!
//! Invariant: the caller holds no handle (a folio is locked here); it holds `rwlock` for writing, or no other
//! task knows the inode. The size is not raised here.

use std::sync::Arc;

use ext4_core::{LogicalBlock, Result};

use crate::cache::extent_status::status::Status;
use crate::cache::folio::FolioGuard;
use crate::inode::InodeInfo;
use crate::io::read::{find_or_create, read_blocks};
use crate::iomap;
use crate::writeback::Engine;
use crate::writeback::completion::wait;

/// Zeroes from byte `position` to the end of its block in memory, and makes the block dirty if it is written
/// on the device. Does nothing if `position` is aligned.
///
/// # Errors
/// Those of reading the block; the host refuses to map memory.
pub(crate) async fn zero_block_tail(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
) -> Result<()> {
    let block_size = u64::from(engine.volume.info.block_size().bytes());
    if position.is_multiple_of(block_size) {
        return Ok(());
    }
    let end = position.next_multiple_of(block_size);
    if let Some(folio) = read_tail(engine, inode, position, end).await? {
        folio.zero(position, end)?;
        let block = folio.blocks_touched(position, end);
        engine.mark_dirty(inode, &folio, block);
        return Ok(());
    }
    // Nothing stale can come from the device, but memory may hold bytes that were cut off or could not be
    // written.
    if let Some(folio) = inode.pages.find(position) {
        let folio = folio.lock().await;
        let block = folio.blocks_touched(position, end);
        if !folio.is_removed() && folio.is_uptodate(block.clone()) {
            wait_for_io(&folio, &block).await;
            folio.zero(position, end)?;
        }
    }
    Ok(())
}

/// Reads the block that [`zero_block_tail`] will zero the rest of, so that zeroing it does not fail for the
/// device, unless memory is so short that the block is given up before. For callers that change something
/// between the two.
///
/// # Errors
/// Those of reading the block; the host's refusal to map memory.
pub(crate) async fn read_block_tail(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
) -> Result<()> {
    let block_size = u64::from(engine.volume.info.block_size().bytes());
    if !position.is_multiple_of(block_size) {
        let end = position.next_multiple_of(block_size);
        drop(read_tail(engine, inode, position, end).await?);
    }
    Ok(())
}

/// The locked folio with the block of bytes `position..end`, uptodate and not read by the device, if the
/// block is written there.
async fn read_tail(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
    end: u64,
) -> Result<Option<FolioGuard>> {
    let block = LogicalBlock::containing(position, engine.volume.info.block_size());
    let extent = iomap::lookup(&engine.volume, inode, block).await?;
    if !matches!(extent.status, Status::Written(_)) {
        return Ok(None);
    }
    let mut folio = find_or_create(engine, inode, position, end - position, false).await?;
    loop {
        let block = folio.blocks_touched(position, end);
        if !folio.is_uptodate(block.clone()) {
            folio = read_blocks(engine, inode, folio, block).await?;
        } else if folio.is_in_flight(&block) {
            wait_for_io(&folio, &block).await;
        } else if folio.is_removed() {
            drop(folio);
            folio = find_or_create(engine, inode, position, end - position, false).await?;
        } else {
            return Ok(Some(folio));
        }
    }
}

/// Zeroes bytes `from..to`, which lie in one block, in memory. They are written back if the block is written
/// on the device, or dirty memory lies over it. The zeros are not ordered with other changes (as in the
/// kernel's punch and zero range); sync makes them durable.
///
/// The caller holds `invalidate_lock` for writing. This waits for the folio's writeback first, so that the
/// zeroed bytes are neither in flight nor about to become the block's content by a conversion.
///
/// # Errors
/// Those of reading the block; the host refuses to map memory.
pub(crate) async fn zero_within_block(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    from: u64,
    to: u64,
) -> Result<()> {
    if from >= to {
        return Ok(());
    }
    let number = LogicalBlock::containing(from, engine.volume.info.block_size());
    loop {
        let below = iomap::lookup(&engine.volume, inode, number).await?.status;
        let guard = if matches!(below, Status::Written(_)) {
            find_or_create(engine, inode, from, to - from, false).await?
        } else {
            // Reads as zeros already, except for what is in memory.
            let Some(folio) = inode.pages.find(from) else { return Ok(()) };
            folio.lock().await
        };
        if guard.is_removed() {
            continue;
        }
        if guard.is_under_writeback() {
            let folio = Arc::clone(&guard);
            drop(guard);
            wait::wait_for_folio(engine, &folio).await;
            continue;
        }
        let blocks = guard.blocks_touched(from, to);
        if guard.is_block_dirty(blocks.start) {
            guard.zero(from, to)?;
            return Ok(());
        }
        // With the folio locked, no task converts or allocates the block below.
        if !matches!(iomap::lookup(&engine.volume, inode, number).await?.status, Status::Written(_)) {
            if guard.is_uptodate(blocks) {
                guard.zero(from, to)?;
            }
            return Ok(());
        }
        if !guard.is_uptodate(blocks.clone()) {
            drop(read_blocks(engine, inode, guard, blocks).await?);
            continue;
        }
        guard.zero(from, to)?;
        engine.mark_dirty(inode, &guard, blocks);
        return Ok(());
    }
}

/// Waits, with the folio locked, until no bio reads `blocks` of its memory.
pub(crate) async fn wait_for_io(folio: &FolioGuard, blocks: &std::ops::Range<u32>) {
    folio.wait_for_io(blocks).await;
}
