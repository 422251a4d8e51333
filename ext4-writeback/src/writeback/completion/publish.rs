//! Direct publication, the completion side: the data is on the device, and one handle makes its blocks part
//! of the file.
//!
//! [`crate::iomap::preallocation`] describes all of it. A step maps blocks and marks them as in use;
//! i_disksize may move as far as the steps came, so if a handle has no credits left it ends between two steps
//! and another handle goes on.
//!
//! Invariant: blocks are mapped first and marked in use afterwards: if there is no block for a node of the
//! extent tree or for an indirect block, nothing has been changed yet. Marking fails only if the transaction
//! itself fails.

use ext4_core::format::extent::Extent;
use ext4_core::format::inode::Inode;
use ext4_core::meta::Transaction as _;
use ext4_core::meta::block_allocator::picked::use_picked;
use ext4_core::meta::{SuperblockInfo, block_map, credits, extent_tree};
use ext4_core::{BlockNumber, GroupNumber, LogicalBlock, Result};

use crate::cache::extent_status::status::Status;
use crate::inode::InodeInfo;
use crate::volume::fast_commit::mapped::Mapped;
use crate::volume::fast_commit::reason::Reason;
use crate::volume::handle::Handle;
use crate::writeback::Engine;

/// Credits for one step, its inode included.
pub(crate) const STEP_CREDITS: u32 = credits::EXTENT + credits::ALLOCATE_BLOCKS + credits::INODE;

const _: () = assert!(credits::POINTERS <= credits::EXTENT, "a step takes either");

/// Publishes picked blocks from `first` on, which lie at `physical`: as many of `len` as one step takes.
/// Returns how many. The caller holds the inode's lock for writing, logs the inode before it releases the
/// lock, also after an error, and has [`STEP_CREDITS`].
///
/// # Errors
/// - `ENOSPC`: there is no block for a node of the extent tree or for an indirect block; nothing has changed.
/// - Those of the device and of the transaction.
pub(crate) async fn publish_step(
    engine: &Engine,
    handle: &Handle,
    inode: &InodeInfo,
    disk: &mut Inode,
    first: LogicalBlock,
    physical: BlockNumber,
    len: u32,
) -> Result<u32> {
    let info = &engine.volume.info;
    let len = len.min(Extent::max_len(false)).min(left_in_group(info, physical));
    let mapped = if disk.uses_extents() {
        extent_tree::insert(info, handle, disk, first, physical, len, false).await.map(|()| len)
    } else {
        block_map::insert(info, handle, disk, first, physical, len).await
    };
    let count =
        mapped.inspect_err(|_| engine.volume.fast_commits.mark_ineligible(handle.id(), Reason::Failure))?;
    if let Err(error) = use_picked(info, handle, physical, count).await {
        if let Some(journal) = &engine.volume.journal {
            journal.abort(&error);
        }
        return Err(error);
    }
    // In use now: out of the record of picks, and not returned.
    inode.preallocation.take(first..first + count);
    let (delayed, _) = inode.extent_status.set(first..first + count, Status::Written(physical));
    debug_assert_eq!(delayed, u64::from(count), "what is published was delayed");
    let mapped = Mapped::Blocks { physical, unwritten: false };
    engine.volume.fast_commits.range_changed(handle.id(), inode.number, (first.0, first.0 + count), mapped);
    tracing::debug!(inode = inode.number.0, block = first.0, count, physical = physical.0, "publish");
    Ok(count)
}

/// How many blocks there are from `block` to the end of its block group; at least 1.
fn left_in_group(info: &SuperblockInfo, block: BlockNumber) -> u32 {
    let next = GroupNumber(info.group_of_block(block).0.saturating_add(1));
    u32::try_from(info.group_first_block(next).0.saturating_sub(block.0)).unwrap_or(u32::MAX).max(1)
}
