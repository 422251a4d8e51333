//! Who may move i_disksize: the tail gate and the order of the file.

use std::sync::Arc;

use ext4_core::meta::block_map;
use ext4_core::{Error, LogicalBlock, Result};

use super::convert::Group;
use crate::extent_status::Status;
use crate::filesystem::FilesystemInner;
use crate::inode_info::InodeInfo;

/// The answer.
pub(super) enum Gate {
    /// It may.
    Open,
    /// Earlier data is unfinished; `kick`: nobody writes the tail block yet.
    Closed { kick: bool },
    /// What it would have waited for could not be written.
    Failed(Error),
}

/// May `group`, which reaches past i_disksize, move it?
pub(super) async fn gate(
    fs: &FilesystemInner,
    inode: &InodeInfo,
    disk: &ext4_core::format::inode::Inode,
    group: &Group,
) -> Result<Gate> {
    let block_size = fs.info.block_size();
    let floor = disk.size & !(u64::from(block_size.bytes()) - 1);
    let tail = (floor >> block_size.bits()) as u32;
    {
        let state = inode.completion.state.lock();
        if state.in_flight.range(..(group.offset, 0)).any(|(_, end)| *end > floor) {
            return Ok(Gate::Closed { kick: false });
        }
        if let Some((block, error)) = &state.failed_tail
            && *block < group.blocks.start
        {
            return Ok(Gate::Failed(error.clone()));
        }
    }
    if floor == disk.size || tail >= group.blocks.start || !inode.pages.is_block_dirty(floor) {
        return Ok(Gate::Open);
    }
    let status = match inode.extent_status.lookup(tail) {
        Some(extent) => extent.status,
        None => Status::from(block_map::lookup(&fs.info, disk, LogicalBlock(tail)).await?.state),
    };
    if !matches!(status, Status::Written(_)) {
        // Nothing stale can be there.
        return Ok(Gate::Open);
    }
    let folio = inode.pages.find(floor);
    let own = folio.is_some_and(|tail| {
        group.members.iter().flat_map(|ioend| &ioend.pieces).any(|(folio, _)| Arc::ptr_eq(folio, &tail))
    });
    if own {
        // The folio's dirty bits were all taken when its writeback began, so the block was made dirty after that, and the
        // folio cannot be written again before this ioend has finished: waiting would be for ever. Nor is there a need.
        // Whoever extended the file past the block zeroed it behind the size first, and made it dirty where it was
        // written; so what the device has of it, from this writeback or an earlier one, has the zeros.
        return Ok(Gate::Open);
    }
    Ok(Gate::Closed { kick: true })
}
