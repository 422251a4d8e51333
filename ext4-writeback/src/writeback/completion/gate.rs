//! Who may move i_disksize: the tail gate and the order of the file.
//!
//! The block that i_disksize ends in (unaligned, and written on the device) may hold anything behind it there. Whoever
//! extends the file zeroes that in memory first, and makes the block dirty. Nothing may move i_disksize past the block
//! before those zeros have been on the device, and this is why an ioend behind it never finds them missing:
//!
//! - What can be dirty behind the end of the file became so after the block did: i_size passes the block when it has been
//!   zeroed, or written over by a contiguous append.
//! - A pass that reaches past i_disksize begins at its block and goes on in the order of the file
//!   ([`crate::writeback::writepages`]). So the block is in an ioend that was entered before any behind it, and while that is
//!   unfinished the gate is closed.
//! - Where that ioend failed, or the block could not be mapped and was in none, it is the inode's failed tail: what lies
//!   behind it fails with it, until the block has been written.
//!
//! A block that is dirty *again* when an ioend behind it completes was changed after its zeros had been sent: it stops
//! nobody. To wait for it would be worse than useless, for its folio may be the ioend's own, which is not written again
//! before that ioend has finished.

use ext4_core::Error;

use crate::inode::InodeInfo;
use crate::volume::Volume;
use crate::writeback::completion::group::Group;

/// The answer.
pub(crate) enum Gate {
    /// It may.
    Open,
    /// Earlier data is unfinished.
    Closed,
    /// What it would have waited for could not be written.
    Failed(Error),
}

/// May `group`, which reaches past i_disksize, move it?
pub(crate) fn gate(
    volume: &Volume,
    inode: &InodeInfo,
    disk: &ext4_core::format::inode::Inode,
    group: &Group,
) -> Gate {
    let floor = disk.size & !(u64::from(volume.info.block_size().bytes()) - 1);
    let state = inode.completion.state.lock();
    if state.is_under_way(floor, (group.offset, 0)) {
        return Gate::Closed;
    }
    match &state.failed_tail {
        Some((block, error)) if *block < group.blocks.start => Gate::Failed(error.clone()),
        _ => Gate::Open,
    }
}
