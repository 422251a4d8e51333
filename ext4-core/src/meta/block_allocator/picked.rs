//! Blocks picked in memory (the kernel's in-memory preallocation): no other allocation gets them, and nothing
//! on the device knows of it.
//!
//! For data that is written before anything points to it: blocks are picked, the data goes to them, and only
//! then one handle marks them as in use and maps them. A crash before its commit leaves nothing: the blocks
//! are free on the device, whatever was written to them.
//!
//! ```text
//!   reserved ── pick ──► picked ─┬─ use_picked (under a handle) ──► in use, no longer reserved
//!                                └─ return_picked ────────────────► reserved, allocatable
//! ```
//!
//! Invariants:
//! - What is picked was allocatable: free in the bitmap, and free in every state that a crash can leave. Were
//!   a block picked that a transaction freed which has not committed, the data would lie on the old owner's.
//! - A picked block is set in its group's `allocatable`, not in the bitmap, and the group's bitmap stays in
//!   memory.
//! - The caller that picks has reserved each block ([`SuperblockInfo::reserve_blocks`]) and keeps it
//!   reserved: statfs, and every other request for space, see picked blocks as reserved ones.
//! - Each pick is ended once, by using or by returning it.
//!
//! With bigalloc whole clusters are picked, for a file that has no cluster there yet: what is picked, used
//! and returned is counted in clusters then, and named by its first block.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::{AllocationRequest, MOST_BLOCKS, Taking, bit_of_block, raise_longest_run, search};
use crate::error::{Error, Result};
use crate::format::bitmap;
use crate::format::group_descriptor::GroupFlags;
use crate::meta::superblock_info::group::{BitmapOf, GroupState, gone};
use crate::meta::{SuperblockInfo, Transaction};
use crate::types::{BlockNumber, GroupNumber};

/// Picks one contiguous run of 1 to `request.len` reserved blocks, the longest near the goal, every one of
/// them below `below`. The run lies within one block group.
///
/// # Errors
/// - `ENOSPC` if there is no free space.
/// - Unsupported with bigalloc.
/// - Those of the device.
pub async fn pick_blocks(
    info: &SuperblockInfo,
    request: &AllocationRequest,
    below: BlockNumber,
) -> Result<(BlockNumber, u32)> {
    if info.fixed.cluster_bits() != 0 {
        return Err(Error::Unsupported("picking blocks with bigalloc".into()));
    }
    pick_clusters(info, request, below).await
}

/// As [`pick_blocks`]; with bigalloc a run of `request.len` reserved clusters: the first one's first block,
/// and how many clusters.
///
/// # Errors
/// - `ENOSPC` if there is no free space.
/// - Those of the device.
pub async fn pick_clusters(
    info: &SuperblockInfo,
    request: &AllocationRequest,
    below: BlockNumber,
) -> Result<(BlockNumber, u32)> {
    let wanted = request.len.clamp(1, MOST_BLOCKS).min(info.fixed.block_bitmap_bits());
    search(info, Taking::Picked { below }, request, wanted).await
}

/// Keeps a run that a search found from others. Under the group lock.
pub(super) fn keep(
    info: &SuperblockInfo,
    number: GroupNumber,
    state: &mut GroupState,
    run: Range<u32>,
) -> Result<()> {
    let map = state.blocks.as_mut().ok_or_else(|| gone(number, BitmapOf::Blocks))?;
    let len = run.end - run.start;
    if map.allocatable.is_none() {
        map.allocatable = Some(map.bitmap.read(|bytes| Box::from(bytes)));
    }
    if let Some(allocatable) = &mut map.allocatable {
        bitmap::set_range(allocatable, run);
    }
    map.picked += len;
    info.group(number)?.free_blocks.fetch_sub(len, Ordering::Relaxed);
    Ok(())
}

/// Marks `len` picked blocks (clusters with bigalloc) as in use. They stop being reserved. Does not touch any
/// inode. Needs two credits for each block group that the run touches.
///
/// # Errors
/// - Those of the device and of the transaction.
///
/// Then some may be marked, and the transaction is not to be committed.
pub async fn use_picked(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    first: BlockNumber,
    len: u32,
) -> Result<()> {
    for (number, run) in pieces(info, first, len)? {
        let place = info.descriptor_buffer(number).await?;
        let mut state = info
            .lock_bitmap(number, BitmapOf::Blocks)
            .await?
            .ok_or_else(|| gone(number, BitmapOf::Blocks))?;
        let state = &mut *state;
        let len = run.end - run.start;
        state.modify_bitmap(info, transaction, number, BitmapOf::Blocks, |bytes| {
            debug_assert!(bitmap::is_clear_range(bytes, run.clone()), "a picked block is in use");
            bitmap::set_range(bytes, run);
        })?;
        let map = state.blocks.as_mut().ok_or_else(|| gone(number, BitmapOf::Blocks))?;
        debug_assert!(len <= map.picked, "{len} of {} picked blocks used", map.picked);
        map.picked = map.picked.saturating_sub(len);
        map.forget_allocatable();
        state.descriptor.free_blocks_count = state.descriptor.free_blocks_count.saturating_sub(len);
        state.descriptor.flags.remove(GroupFlags::BLOCK_UNINIT);
        info.space.allocated(u64::from(len));
        info.write_descriptor(transaction, number, &state.descriptor, &place)?;
    }
    Ok(())
}

/// Gives `len` picked blocks (clusters with bigalloc) back; they stay reserved for the caller. Takes the
/// group lock only.
pub fn return_picked(info: &SuperblockInfo, first: BlockNumber, len: u32) {
    let Ok(pieces) = pieces(info, first, len) else { return };
    for (number, run) in pieces {
        let Ok(group) = info.group(number) else { continue };
        let len = run.end - run.start;
        {
            let mut state = group.lock();
            let Some(map) = &mut state.blocks else { continue };
            debug_assert!(len <= map.picked, "{len} of {} picked blocks returned", map.picked);
            map.picked = map.picked.saturating_sub(len);
            if let Some(allocatable) = &mut map.allocatable {
                bitmap::clear_range(allocatable, run);
            }
            map.forget_allocatable();
        }
        group.free_blocks.fetch_add(len, Ordering::Relaxed);
        group.longest_run.store(u32::MAX, Ordering::Relaxed);
        raise_longest_run(&info.longest_run);
    }
}

/// The run, group by group: bits of the group's bitmap.
fn pieces(info: &SuperblockInfo, first: BlockNumber, len: u32) -> Result<Vec<(GroupNumber, Range<u32>)>> {
    let mut pieces = Vec::with_capacity(1);
    let (mut next, mut left) = (first, len);
    while left > 0 {
        let outside = || Error::corrupt(format!("block {next}"), "is outside the file system");
        let (number, offset) = bit_of_block(info, next).ok_or_else(outside)?;
        let len = left.min(info.block_bits(number).saturating_sub(offset));
        if len == 0 {
            return Err(outside());
        }
        pieces.push((number, offset..offset + len));
        next = next.offset(u64::from(len) << info.fixed.cluster_bits());
        left -= len;
    }
    Ok(pieces)
}
