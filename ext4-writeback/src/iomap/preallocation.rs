//! Direct publication, the writeback side: blocks that are picked in memory for delayed data (the kernel's
//! "in-memory preallocation").
//!
//! ```text
//!   delayed ── pick ──► delayed, blocks picked ── data written ──► one handle (writeback/completion):
//!      ▲                    │                                      blocks in use, mapped as written, size
//!      └── I/O error and    └── truncated, or its data lost: the blocks are returned
//!          dirty again
//! ```
//!
//! Files of indirect blocks are always written this way, as their blocks cannot be unwritten; files with
//! extents if the mount says so ([`crate::base::options::Allocation::Publish`]). Nothing is logged before the
//! data is on the device, so a crash leaves no trace of a pick: the blocks are free on the device.
//!
//! Invariants:
//! - Picked blocks lie below delayed blocks only. A task that takes delayed blocks out of the extent status
//!   tree returns the blocks picked for them under the same hold of the inode's lock; a task that picks looks
//!   at the tree under that lock. If a pick were left behind, its blocks would be out of use until unmount.
//! - A delayed block keeps its one reservation until it is published or dropped; a pick neither takes nor
//!   gives a reservation. So statfs and allocations see picked blocks as reserved, and a pick finds its
//!   blocks.
//! - A delayed block has at most one place: a second look finds the pick of the first. While its data is in
//!   flight its folio is under writeback, so no other pass submits it; an overwrite meanwhile makes the block
//!   dirty again, and goes to the same place as a plain overwrite once the block is published.
//! - A task that drops the page cache (truncate, punch) waits for writeback first: data in flight is
//!   published, or its blocks are returned, before the page cache is gone.
//! - The data is on the medium before its publication commits: its I/O has completed before the handle began,
//!   and every commit, full or fast, flushes the device that holds the data between its log content and the
//!   block that makes it valid. (Without a journal the order of the two is not guaranteed.)
//! - Data whose I/O failed is lost and reported: blocks that were not made dirty again meanwhile become a
//!   hole and lose their reservation; the others stay delayed and are picked anew.
//!
//! Locks: the record's mutex is a leaf. The group lock is never taken inside it: runs are taken out of the
//! record first.

use std::ops::Range;

use ext4_core::meta::block_allocator::AllocationRequest;
use ext4_core::meta::block_allocator::picked::pick_blocks;
use ext4_core::meta::block_map;
use ext4_core::{BlockNumber, LogicalBlock, Result};

use crate::base::counters::LiveCounters;
use crate::base::options::Allocation;
use crate::cache::extent_status::status::Status;
use crate::inode::InodeInfo;
use crate::volume::Volume;

/// Returns true if delayed data of `inode` is published when it is on the device, instead of being given
/// unwritten blocks.
pub(crate) async fn is_published(volume: &Volume, inode: &InodeInfo) -> bool {
    // bigalloc: the other blocks of a cluster look for their place in the extent tree, and a pick is not in
    // it.
    volume.info.cluster_bits() == 0
        && (volume.options.allocation == Allocation::Publish || inode.is_indirect().await)
}

/// Picks blocks for the delayed blocks at `block`, up to `len`, if none are picked yet. Returns true if
/// `block` is delayed. The caller holds the folio's lock and no handle.
///
/// # Errors
/// `ENOSPC`: there is no free block. Those of the device; corrupt metadata.
pub(crate) async fn pick(volume: &Volume, inode: &InodeInfo, block: LogicalBlock, len: u32) -> Result<bool> {
    let disk = inode.on_disk.write().await;
    let extent = inode.extent_status.lookup(block).filter(|extent| extent.status == Status::Delayed);
    let Some(extent) = extent else { return Ok(false) };
    let record = &inode.preallocation;
    if record.find(block).is_some() {
        return Ok(true);
    }
    let end = extent.end.min(block.offset(len)).min(record.next(block).unwrap_or(LogicalBlock::END));
    let goal = match record.goal(block) {
        Some(goal) => Some(goal),
        None => block_map::allocation_goal(&volume.info, &disk, block).await?,
    };
    let request =
        AllocationRequest { goal, inode: inode.number, len: end - block, reserved: true, metadata: false };
    let below = if disk.uses_extents() { BlockNumber(u64::MAX) } else { block_map::ADDRESSABLE };
    let (physical, got) = pick_blocks(&volume.info, &request, below).await?;
    record.insert(block..block + got, physical);
    let counters = &volume.counters;
    LiveCounters::add(&counters.allocations, 1);
    LiveCounters::add(&counters.blocks_allocated, u64::from(got));
    tracing::debug!(
        inode = inode.number.0,
        block = block.0,
        got,
        physical = physical.0,
        "ext4_da_pick_blocks"
    );
    Ok(true)
}

/// Makes the delayed blocks of `range` a hole and releases their reservation: their data is lost. The caller
/// holds the lock of the folio that they lie in, and no handle.
pub(crate) async fn drop_delayed(volume: &Volume, inode: &InodeInfo, range: Range<LogicalBlock>) {
    let _disk = inode.on_disk.write().await;
    inode.preallocation.give_back(&volume.info, range.clone());
    let dropped = inode.extent_status.remove_delayed(range);
    volume.info.release_reserved_blocks(dropped);
    tracing::trace!(ino = inode.number.0, freed_blocks = dropped, "ext4_da_release_space");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::picks::Preallocation;
    use crate::testing::blocks;

    #[test]
    fn the_record_of_picks_agrees_with_a_vector_of_blocks() {
        const BLOCKS: usize = 100;
        let mut random = fastrand::Rng::with_seed(17);
        let record = Preallocation::default();
        let mut model: Vec<Option<u64>> = vec![None; BLOCKS];
        for _ in 0..5000 {
            let start = random.usize(0..BLOCKS);
            let end = random.usize(start..=BLOCKS);
            if start == end {
                continue;
            }
            if random.bool() {
                let free = model[start..end].iter().take_while(|block| block.is_none()).count();
                if free > 0 {
                    let physical = random.u64(1000..9000);
                    record.insert(blocks(start as u32..(start + free) as u32), BlockNumber(physical));
                    for (n, block) in model[start..start + free].iter_mut().enumerate() {
                        *block = Some(physical + n as u64);
                    }
                }
            } else {
                let taken = record.take(blocks(start as u32..end as u32));
                let given: Vec<u64> =
                    taken.iter().flat_map(|(first, len)| (0..u64::from(*len)).map(|n| first.0 + n)).collect();
                let expected: Vec<u64> = model[start..end].iter_mut().filter_map(Option::take).collect();
                assert_eq!(given, expected);
            }
            for (at, block) in model.iter().enumerate() {
                assert_eq!(
                    record.find(LogicalBlock(at as u32)).map(|(physical, _)| physical.0),
                    *block,
                    "at {at}"
                );
                let next =
                    model[at..].iter().position(Option::is_some).map(|n| LogicalBlock((at + n) as u32));
                if block.is_none() {
                    assert_eq!(record.next(LogicalBlock(at as u32)), next, "behind {at}");
                }
            }
        }
    }
}
