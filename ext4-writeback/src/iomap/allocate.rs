//! TODO header.

use std::ops::Range;
use std::sync::Arc;

use ext4_core::meta::block_allocator::AllocationRequest;
use ext4_core::meta::{Transaction as _, block_map, extent_tree};
use ext4_core::{LogicalBlock, Result};

use crate::base::counters::LiveCounters;
use crate::cache::extent_status::status::{Extent, Status};
use crate::filesystem::FilesystemInner;
use crate::inode::InodeInfo;
use crate::iomap;
use crate::volume::fast_commit::mapped::Mapped;
use crate::volume::fast_commit::reason::Reason;
use crate::writeback::inode::{ALLOCATE_CREDITS, MAX_EXTENT_BLOCKS};

/// Allocates blocks for the delayed ones at `block`, up to `len`, as unwritten; whatever else lies there by now is
/// returned as it is. The caller holds the folio's lock, or `rwlock` for writing.
pub(crate) async fn allocate_delayed(
    fs: &Arc<FilesystemInner>,
    inode: &Arc<InodeInfo>,
    block: u32,
    len: u32,
) -> Result<Extent> {
    let handle = fs.begin_tracked(ALLOCATE_CREDITS, "writepages").await?;
    let mut disk = inode.inode.write().await;
    let es = &inode.extent_status;
    // Truncation and a new write may have come between the two looks.
    let extent = match es.lookup(block) {
        Some(extent) => extent,
        None => {
            let mapping = block_map::lookup(&fs.info, &disk, LogicalBlock(block)).await?;
            let status = Status::from(mapping.state);
            Extent { start: block, end: block + mapping.len, status, sequence: es.sequence() }
        }
    };
    if extent.status != Status::Delayed {
        return Ok(extent);
    }
    let request = AllocationRequest {
        goal: extent_tree::allocation_goal(&fs.info, &disk, LogicalBlock(block)).await?,
        inode: inode.number,
        len: (extent.end - block).min(len).min(MAX_EXTENT_BLOCKS),
        reserved: true,
        metadata: false,
    };
    let new = extent_tree::allocate(&fs.info, &handle, &disk, LogicalBlock(block), &request).await?;
    let (physical, got) = (new.physical, new.len);
    let inserted =
        extent_tree::insert(&fs.info, &handle, &mut disk, LogicalBlock(block), physical, got, true).await;
    if let Err(error) = inserted {
        fs.fast_commits.mark_ineligible(handle.id(), Reason::Failure);
        extent_tree::give_back(&fs.info, &handle, &new, false).await?;
        // The allocation used the promise up; the blocks are delayed again.
        fs.info.reserve_freed_clusters(u64::from(new.clusters));
        fs.log_inode(&handle, inode, &disk, false).await?;
        return Err(error);
    }
    let mapped = Mapped::Blocks { physical, unwritten: true };
    fs.fast_commits.range_changed(handle.id(), inode.number, (block, block + got), mapped);
    let (promised, sequence) = es.set(block..block + got, Status::Unwritten(physical));
    fs.info.release_reserved_blocks(promised.saturating_sub(u64::from(new.clusters)));
    fs.log_inode(&handle, inode, &disk, false).await?;
    let counters = &fs.writeback.counters;
    LiveCounters::add(&counters.allocations, 1);
    LiveCounters::add(&counters.blocks_allocated, u64::from(got));
    tracing::debug!(
        ino = inode.number.0,
        lblk = block,
        len = got,
        wanted = request.len,
        pblk = physical.0,
        "ext4_da_write_pages_extent"
    );
    Ok(Extent { start: block, end: block + got, status: Status::Unwritten(physical), sequence })
}

/// Allocates, as unwritten, the holes among `blocks` of a file with extents: a write without delayed allocation. Runs
/// before any folio is locked. (For one without extents there is [`crate::iomap::pointers`].)
///
/// # Errors
/// `ENOSPC`; those of the journal and of the device.
pub(crate) async fn allocate_holes(
    fs: &Arc<FilesystemInner>,
    inode: &Arc<InodeInfo>,
    blocks: Range<u32>,
) -> Result<()> {
    let mut at = blocks.start;
    while at < blocks.end {
        let extent = iomap::lookup(fs, inode, at).await?;
        if extent.status != Status::Hole {
            at = extent.end;
            continue;
        }
        at += allocate_hole(fs, inode, at..extent.end.min(blocks.end), Purpose::Write).await?;
    }
    Ok(())
}

/// What blocks are allocated for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// Data, which will move the size.
    Write,
    /// Themselves; the size moves along with them, up to this byte where it is more.
    Fallocate { size: u64 },
}

/// Allocates, as unwritten, as much of the hole `blocks` as one run has, in one handle; returns how many blocks.
///
/// # Errors
/// As [`allocate_holes`].
pub(crate) async fn allocate_hole(
    fs: &Arc<FilesystemInner>,
    inode: &Arc<InodeInfo>,
    blocks: Range<u32>,
    purpose: Purpose,
) -> Result<u32> {
    let at = blocks.start;
    let operation = if purpose == Purpose::Write { "write" } else { "fallocate" };
    let handle = fs.begin_tracked(ALLOCATE_CREDITS, operation).await?;
    let mut disk = inode.inode.write().await;
    let request = AllocationRequest {
        goal: extent_tree::allocation_goal(&fs.info, &disk, LogicalBlock(at)).await?,
        inode: inode.number,
        len: (blocks.end - at).min(MAX_EXTENT_BLOCKS),
        reserved: false,
        metadata: false,
    };
    let new = extent_tree::allocate(&fs.info, &handle, &disk, LogicalBlock(at), &request).await?;
    let (physical, end) = (new.physical, at + new.len);
    let inserted =
        extent_tree::insert(&fs.info, &handle, &mut disk, LogicalBlock(at), physical, new.len, true).await;
    if let Err(error) = inserted {
        fs.fast_commits.mark_ineligible(handle.id(), Reason::Failure);
        extent_tree::give_back(&fs.info, &handle, &new, false).await?;
        fs.log_inode(&handle, inode, &disk, false).await?;
        return Err(error);
    }
    let mapped = Mapped::Blocks { physical, unwritten: true };
    fs.fast_commits.range_changed(handle.id(), inode.number, (at, end), mapped);
    // Where delayed blocks share a cluster with these, it needs no promise any more.
    let (promised, _) = inode.extent_status.set(at..end, Status::Unwritten(physical));
    fs.info.release_reserved_blocks(promised);
    if let Purpose::Fallocate { size } = purpose {
        let reached = (u64::from(end) << fs.info.block_size().bits()).min(size);
        if reached > inode.size() {
            crate::writeback::size::grow(fs, inode, &mut disk, reached);
        }
    }
    fs.log_inode(&handle, inode, &disk, purpose != Purpose::Write).await?;
    LiveCounters::add(&fs.writeback.counters.allocations, 1);
    LiveCounters::add(&fs.writeback.counters.blocks_allocated, u64::from(new.len));
    tracing::debug!(
        ino = inode.number.0,
        lblk = at,
        len = new.len,
        pblk = physical.0,
        "ext4_allocate_blocks"
    );
    Ok(new.len)
}
