//! Block allocation for a file: for its delayed blocks at writeback, for holes at a write without delayed
//! allocation and at fallocate.
//!
//! Invariants:
//! - Blocks allocated here are unwritten: a crash before their data is on the device shows zeros, never what
//!   another file left there.
//! - If there is no block for a node of the extent tree, the new blocks are freed in the same handle, and the
//!   reservation they used up is made again.
//! - No size is known here: the caller of [`allocate_hole`] says what follows from an allocation.

use std::ops::Range;
use std::sync::Arc;

use ext4_core::format::inode::Inode;
use ext4_core::meta::block_allocator::AllocationRequest;
use ext4_core::meta::credits;
use ext4_core::meta::{Transaction as _, block_map, extent_tree};
use ext4_core::{BlockNumber, LogicalBlock, Result};

use crate::base::counters::LiveCounters;
use crate::cache::extent_status::status::{Extent, Status};
use crate::inode::InodeInfo;
use crate::inode::log::log_inode;
use crate::iomap;
use crate::volume::Volume;
use crate::volume::fast_commit::mapped::Mapped;
use crate::volume::fast_commit::reason::Reason;
use crate::volume::handle::Handle;

/// The most blocks one allocation asks for (the kernel's MAX_WRITEPAGES_EXTENT_LEN).
pub(crate) const MAX_EXTENT_BLOCKS: u32 = 2048;

/// Credits to allocate a run and insert its extent.
pub(crate) const ALLOCATE_CREDITS: u32 = credits::ALLOCATE_BLOCKS + credits::EXTENT + credits::INODE;

/// ENOSPC retries: how often an allocation is tried again after a commit that may free blocks.
pub(crate) const ENOSPC_RETRIES: u32 = 3;

/// A run of blocks that was allocated and mapped as unwritten.
struct Run {
    physical: BlockNumber,
    len: u32,
    /// The sequence number of the extent status tree that knows the run.
    sequence: u64,
}

/// Allocates blocks for the file's blocks `blocks`, as far as one run goes, maps them as unwritten, and
/// enters them in the extent status tree and in the fast commit. `delayed`: true if the blocks are delayed,
/// and their reservation pays for them. If a node of the extent tree cannot be allocated, everything is as it
/// was. The caller logs the inode after `Ok`.
async fn allocate_run(
    volume: &Volume,
    handle: &Handle,
    inode: &Arc<InodeInfo>,
    disk: &mut Inode,
    blocks: Range<LogicalBlock>,
    delayed: bool,
) -> Result<Run> {
    let (info, at) = (&volume.info, blocks.start);
    let request = AllocationRequest {
        goal: extent_tree::allocation_goal(info, disk, at).await?,
        inode: inode.number,
        len: (blocks.end - at).min(MAX_EXTENT_BLOCKS),
        reserved: delayed,
        metadata: false,
    };
    let new = extent_tree::allocate(info, handle, disk, at, &request).await?;
    let (physical, len) = (new.physical, new.len);
    if let Err(error) = extent_tree::insert(info, handle, disk, at, physical, len, true).await {
        volume.fast_commits.mark_ineligible(handle.id(), Reason::Failure);
        extent_tree::give_back(info, handle, &new, false).await?;
        if delayed {
            // The allocation used the reservation up, and the blocks stay delayed.
            info.reserve_freed_clusters(u64::from(new.clusters));
        }
        log_inode(volume, handle, inode, disk, false).await?;
        return Err(error);
    }
    let mapped = Mapped::Blocks { physical, unwritten: true };
    volume.fast_commits.range_changed(handle.id(), inode.number, (at.0, at.0 + len), mapped);
    // bigalloc: delayed blocks that share a cluster with these need no reservation any more.
    let (reserved, sequence) = inode.extent_status.set(at..at + len, Status::Unwritten(physical));
    let used = if delayed { u64::from(new.clusters) } else { 0 };
    info.release_reserved_blocks(reserved.saturating_sub(used));
    LiveCounters::add(&volume.counters.allocations, 1);
    LiveCounters::add(&volume.counters.blocks_allocated, u64::from(len));
    Ok(Run { physical, len, sequence })
}

/// Allocates the delayed blocks at `block`, up to `len`, as unwritten. If `block` is not delayed any more,
/// its mapping is returned and nothing is allocated. The caller holds the folio's lock, or `rwlock` for
/// writing, and no handle.
///
/// # Errors
/// `ENOSPC`: there is no free block, or none for a node of the extent tree. Those of the journal and of the
/// device.
pub(crate) async fn allocate_delayed(
    volume: &Volume,
    inode: &Arc<InodeInfo>,
    block: LogicalBlock,
    len: u32,
) -> Result<Extent> {
    let handle = volume.begin_tracked(ALLOCATE_CREDITS, "writepages").await?;
    let mut disk = inode.on_disk.write().await;
    let es = &inode.extent_status;
    // Between the caller's lookup and this one a truncation and a new write may have come.
    let extent = match es.lookup(block) {
        Some(extent) => extent,
        None => {
            let mapping = block_map::lookup(&volume.info, &disk, block).await?;
            let status = Status::from(mapping.state);
            Extent { start: block, end: block.offset(mapping.len), status, sequence: es.sequence() }
        }
    };
    if extent.status != Status::Delayed {
        return Ok(extent);
    }
    let end = extent.end.min(block.offset(len));
    let Run { physical, len: got, sequence } =
        allocate_run(volume, &handle, inode, &mut disk, block..end, true).await?;
    log_inode(volume, &handle, inode, &disk, false).await?;
    tracing::debug!(
        ino = inode.number.0,
        lblk = block.0,
        len = got,
        wanted = end - block,
        pblk = physical.0,
        "ext4_da_write_pages_extent"
    );
    Ok(Extent { start: block, end: block + got, status: Status::Unwritten(physical), sequence })
}

/// Allocates the holes among `blocks` of a file with extents as unwritten: for a write without delayed
/// allocation. The caller holds `rwlock` for writing and no folio lock. (For a file of indirect blocks see
/// [`crate::iomap::pointers`].)
///
/// # Errors
/// `ENOSPC`: there is no free block; some of the holes may have been allocated. Those of the journal and of
/// the device.
pub(crate) async fn allocate_holes(
    volume: &Volume,
    inode: &Arc<InodeInfo>,
    blocks: Range<LogicalBlock>,
) -> Result<()> {
    let mut at = blocks.start;
    while at < blocks.end {
        let extent = iomap::lookup(volume, inode, at).await?;
        if extent.status != Status::Hole {
            at = extent.end;
            continue;
        }
        at += allocate_hole(volume, inode, at..extent.end.min(blocks.end), "write", false, |_, _| ()).await?;
    }
    Ok(())
}

/// Allocates as much of the hole `blocks` as one run has, as unwritten, in one handle; returns how many
/// blocks.
///
/// `operation` names the handle. `datasync`: true if fdatasync has to make the allocation durable.
/// `on_allocated` is called under the inode's lock, before the inode is logged, with the block behind the
/// last one that was allocated.
///
/// # Errors
/// As [`allocate_holes`].
pub(crate) async fn allocate_hole(
    volume: &Volume,
    inode: &Arc<InodeInfo>,
    blocks: Range<LogicalBlock>,
    operation: &'static str,
    datasync: bool,
    on_allocated: impl FnOnce(&mut Inode, LogicalBlock) + Send,
) -> Result<u32> {
    let handle = volume.begin_tracked(ALLOCATE_CREDITS, operation).await?;
    let mut disk = inode.on_disk.write().await;
    let run = allocate_run(volume, &handle, inode, &mut disk, blocks.clone(), false).await?;
    on_allocated(&mut disk, blocks.start + run.len);
    log_inode(volume, &handle, inode, &disk, datasync).await?;
    tracing::debug!(
        ino = inode.number.0,
        lblk = blocks.start.0,
        len = run.len,
        pblk = run.physical.0,
        "ext4_allocate_blocks"
    );
    Ok(run.len)
}
