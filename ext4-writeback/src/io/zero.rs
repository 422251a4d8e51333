//! Zeroing the rest of a block in the page cache: what lies behind the end of the file before the file grows past it.
//!
//! The block that holds an unaligned end of a file may have anything behind it on the device: an append that got there
//! without its size before a crash. So nothing may raise the size past such a block without zeroing it first, and the
//! size on the device waits for the zeros ([`crate::writeback::completion`], the tail gate).
//!
//! Invariant: no handle is open (a folio is locked), `rwlock` is held for writing or nobody else knows the inode, and
//! the size is not raised here.

use crate::writeback::completion::wait;
use std::sync::Arc;

use ext4_core::{LogicalBlock, Result};

use crate::cache::extent_status::status::Status;
use crate::cache::folio::FolioGuard;
use crate::inode::InodeInfo;
use crate::io::read::{find_or_create, read_blocks};
use crate::iomap;
use crate::writeback::Engine;

/// Zeroes from byte `position` to the end of its block, in memory and, where the block is written on the device, to be
/// written. Nothing for an aligned `position`.
///
/// # Errors
/// Those of reading the block; the host's refusal to map memory.
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
    let extent = iomap::lookup(
        &engine.volume,
        inode,
        LogicalBlock::containing(position, engine.volume.info.block_size()),
    )
    .await?;
    if matches!(extent.status, Status::Written(_)) {
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
                break;
            }
        }
        folio.zero(position, end)?;
        let block = folio.blocks_touched(position, end);
        mark_dirty(engine, inode, &folio, block);
        return Ok(());
    }
    // Nothing stale can come from the device, but memory may hold what was cut off, or what could not be written.
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

/// Zeroes bytes `from..to`, which lie in one block, in memory: to be written where the block holds data, or dirty memory
/// lies over it. Not ordered with anything (punch and zero range never promised that); sync makes it durable.
///
/// The caller holds `invalidate_lock` for writing: the folio's writeback has to end first, so that what is zeroed is
/// neither in flight nor about to become the block's content by a conversion.
///
/// # Errors
/// Those of reading the block; the host's refusal to map memory.
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
            // Zeros already, but for what is in memory.
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
        // Now that the folio is locked nobody converts or fills what lies below.
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
        mark_dirty(engine, inode, &guard, blocks);
        return Ok(());
    }
}

/// Waits, with the folio locked, until no device reads `blocks`.
pub(crate) async fn wait_for_io(folio: &FolioGuard, blocks: &std::ops::Range<u32>) {
    folio.wait_for_io(blocks).await;
}

/// `blocks` of the locked folio were changed.
pub(crate) fn mark_dirty(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    folio: &FolioGuard,
    blocks: std::ops::Range<u32>,
) {
    if folio.set_dirty(blocks) {
        inode.pages.note_dirty(folio);
        engine.dirty.note_dirty(engine.volume.runtime.monotonic(), inode, folio.len());
    }
}
