//! Clusters (bigalloc): the unit of allocation is a cluster, the unit of a mapping is still a block.
//!
//! ```text
//!   cluster in the file     |  0  1  2  3 |  4  5  6  7 |  8  9 10 11 |
//!   mapped                        [ 2→42 ─────────── 6→46 ]  [9→49 ]
//!   cluster on the device   | 40 41 42 43 | 44 45 46 47 | 48 49 50 51 |
//! ```
//!
//! A cluster of the file has one cluster on the device, with every block at its own place in it. Blocks 0 and
//! 1 above are a hole although their cluster is in use; what is written there later goes to 40 and 41,
//! without an allocation.
//!
//! Invariants:
//! - If a block of a cluster is mapped, further blocks of it are mapped to the same cluster on the device.
//!   Were they not, the second cluster would be lost as soon as the first extent is looked at alone.
//! - A cluster is freed by the operation that unmaps its last block. That is read from the tree each time,
//!   never carried from one step of a truncation to the next: a crash between two steps cannot lose it.
//!
//! On file systems without bigalloc nothing here looks at the tree.

use std::ops::Range;

use super::{allocation_goal, next_extent, path};
use crate::error::{Error, Result};
use crate::format::extent::{Extent, MAX_WRITTEN_LEN};
use crate::format::inode::Inode;
use crate::meta::block_allocator::{AllocationRequest, allocate_blocks, free_blocks};
use crate::meta::{SuperblockInfo, Transaction};
use crate::types::{BlockNumber, LogicalBlock};

/// Blocks for a range of a file, not mapped yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allocated {
    /// The first.
    pub physical: BlockNumber,
    /// How many.
    pub len: u32,
    /// How many clusters were allocated for them (blocks without bigalloc); 0 if the file has the cluster
    /// already.
    pub clusters: u32,
}

/// Allocates blocks for 1 to `request.len` blocks of `inode` from `logical` on, which are a hole. With
/// bigalloc, what shares a cluster with mapped blocks gets its place in that cluster, whatever `request`
/// says, and for the rest [`allocation_goal`] stands in for a goal that is `None`. Map them with
/// [`super::insert`], or [`give_back`] them.
///
/// # Errors
/// - As [`allocate_blocks`].
/// - Corrupt if the tree is damaged or `logical` is mapped.
pub async fn allocate(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &Inode,
    logical: LogicalBlock,
    request: &AllocationRequest,
) -> Result<Allocated> {
    let bits = info.cluster_bits();
    if bits == 0 {
        let (physical, len) = allocate_blocks(info, transaction, request).await?;
        return Ok(Allocated { physical, len, clusters: len });
    }
    let wrong = |problem: &str| Error::corrupt(format!("inode {} block {logical}", inode.number), problem);
    let mask = (1_u32 << bits) - 1;
    let within = logical.0 & mask;
    let start = logical.0 - within;
    let before = path::locate(info, inode, logical).await?.before;
    let after = next_extent(info, inode, logical).await?;
    if before.is_some_and(|before| before.end() > logical) || after.is_some_and(|a| a.logical <= logical) {
        return Err(wrong("is mapped already"));
    }
    let mut len = request.len.clamp(1, MAX_WRITTEN_LEN);
    if let Some(after) = after {
        len = len.min(after.logical.0 - logical.0);
    }
    let shared = before
        .filter(|before| before.end().0 > start)
        .map(|before| before.physical.offset(u64::from(before.len) - 1))
        .or_else(|| after.filter(|after| after.logical.0 & !mask == start).map(|after| after.physical));
    if let Some(neighbour) = shared {
        let cluster = neighbour.0 & !u64::from(mask);
        let physical = BlockNumber(cluster + u64::from(within));
        let len = len.min(mask - within + 1);
        if !info.is_data_range(physical, u64::from(len)) {
            return Err(wrong("has a neighbour whose cluster is no place for a file"));
        }
        return Ok(Allocated { physical, len, clusters: 0 });
    }
    if let Some(after) = after {
        // The blocks that share its cluster have their place there.
        len = len.min((after.logical.0 & !mask) - logical.0);
    }
    let goal = match request.goal {
        None => allocation_goal(info, inode, logical).await?,
        goal => goal,
    };
    let wanted = (within + len).div_ceil(mask + 1);
    let request = AllocationRequest { goal, len: wanted, ..*request };
    let (first, clusters) = allocate_blocks(info, transaction, &request).await?;
    let room = (u64::from(clusters) << bits) - u64::from(within);
    // At most `len`.
    let len = room.min(u64::from(len)) as u32;
    Ok(Allocated { physical: first.offset(u64::from(within)), len, clusters })
}

/// Takes an allocation back that could not be mapped. `metadata`: as in [`free_blocks`].
///
/// # Errors
/// As [`free_blocks`].
pub async fn give_back(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    allocated: &Allocated,
    metadata: bool,
) -> Result<()> {
    if allocated.clusters == 0 {
        return Ok(());
    }
    free_blocks(info, transaction, allocated.physical, u64::from(allocated.len), metadata).await
}

/// Returns true if a block of the cluster of the file that holds `logical` is mapped. Without bigalloc: that
/// block.
///
/// # Errors
/// As [`super::lookup`].
pub async fn is_cluster_mapped(info: &SuperblockInfo, inode: &Inode, logical: LogicalBlock) -> Result<bool> {
    let cluster = logical.0 >> info.cluster_bits();
    let first = LogicalBlock(cluster << info.cluster_bits());
    let extent = next_extent(info, inode, first).await?;
    Ok(extent.is_some_and(|extent| extent.logical.0 >> info.cluster_bits() <= cluster))
}

/// The clusters on the device that `extent` touches.
fn touched(info: &SuperblockInfo, extent: &Extent) -> Range<u64> {
    let bits = info.cluster_bits();
    extent.physical.0 >> bits..(extent.physical.0 + u64::from(extent.len)).div_ceil(1 << bits)
}

/// What of the file's clusters at the two ends of `range` is mapped outside of it: the clusters on the
/// device.
async fn kept_at_ends(
    info: &SuperblockInfo,
    inode: &Inode,
    range: Range<LogicalBlock>,
) -> Result<Vec<Range<u64>>> {
    let mask = (1_u32 << info.cluster_bits()) - 1;
    let before = range.start.0 & !mask..range.start.0;
    let behind = range.end.0..range.end.0.checked_next_multiple_of(mask + 1).unwrap_or(u32::MAX);
    let mut kept = Vec::new();
    for part in [before, behind] {
        let mut at = part.start;
        while at < part.end {
            let Some(extent) = next_extent(info, inode, LogicalBlock(at)).await? else { break };
            if let Some(outside) = extent.part(LogicalBlock(at), LogicalBlock(part.end)) {
                kept.push(touched(info, &outside));
            }
            at = extent.end().0;
        }
    }
    Ok(kept)
}

/// How many sectors mapping `extent`, which is a hole yet, adds to i_blocks.
pub(super) async fn added_sectors(info: &SuperblockInfo, inode: &Inode, extent: &Extent) -> Result<u64> {
    if info.cluster_bits() == 0 {
        return Ok(info.block_size().sectors() * u64::from(extent.len));
    }
    check_aligned(info, inode, extent)?;
    let kept = kept_at_ends(info, inode, extent.logical..extent.end()).await?;
    let new = without(touched(info, extent), &kept);
    Ok(new.iter().map(|run| run.end - run.start).sum::<u64>() * info.cluster_sectors())
}

/// Which clusters are out of use when `parts`, from the back of the file to its front and with nothing mapped
/// between them, are unmapped; as runs of blocks. Called before that.
pub(super) async fn unused_without(
    info: &SuperblockInfo,
    inode: &Inode,
    parts: &[Extent],
) -> Result<Vec<(BlockNumber, u64)>> {
    let (Some(last), Some(first)) = (parts.first(), parts.last()) else { return Ok(Vec::new()) };
    for part in parts {
        check_aligned(info, inode, part)?;
    }
    let kept = kept_at_ends(info, inode, first.logical..last.end()).await?;
    let mut runs: Vec<Range<u64>> = parts.iter().map(|part| touched(info, part)).collect();
    runs.sort_unstable_by_key(|run| run.start);
    runs.dedup_by(|next, run| {
        let joined = next.start <= run.end;
        if joined {
            run.end = run.end.max(next.end);
        }
        joined
    });
    let bits = info.cluster_bits();
    let unused = runs.into_iter().flat_map(|run| without(run, &kept));
    Ok(unused.map(|run| (BlockNumber(run.start << bits), (run.end - run.start) << bits)).collect())
}

/// `run` less `kept`.
fn without(run: Range<u64>, kept: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = vec![run];
    for kept in kept {
        left = left
            .into_iter()
            .flat_map(|run| [run.start..run.end.min(kept.start), run.start.max(kept.end)..run.end])
            .filter(|run| run.start < run.end)
            .collect();
    }
    left
}

fn check_aligned(info: &SuperblockInfo, inode: &Inode, extent: &Extent) -> Result<()> {
    let mask = (1_u64 << info.cluster_bits()) - 1;
    if (extent.physical.0 ^ u64::from(extent.logical.0)) & mask == 0 {
        return Ok(());
    }
    Err(Error::corrupt(
        format!("inode {}: extent tree", inode.number),
        format!("block {} is mapped to {}, another place in its cluster", extent.logical, extent.physical),
    ))
}
