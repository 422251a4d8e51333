//! The gate of i_disksize: which completed ioend may move it. It is the tail gate and the order of the file.
//!
//! The block that i_disksize ends in (the tail block: unaligned, and written on the device) may hold anything
//! behind i_disksize on the device. A task that extends the file zeroes those bytes in memory first, and
//! makes the block dirty. Nothing may move i_disksize past the tail block before those zeros are on the
//! device. An ioend behind the tail block never finds them missing, because:
//!
//! - Data behind the end of the file became dirty after the tail block did: i_size passes the block when it
//!   has been zeroed, or written over by a contiguous append.
//! - A pass that reaches past i_disksize begins at the tail block and goes on in the order of the file
//!   ([`crate::writeback::writepages`]). So the tail block is in an ioend that was entered before any ioend
//!   behind it, and the gate is closed while that ioend is unfinished.
//! - If that ioend failed, or the tail block could not be mapped and was in no ioend, the block is the
//!   inode's failed tail: ioends behind it fail with it, until the block has been written.
//!
//! A tail block that is dirty *again* when an ioend behind it completes was changed after its zeros had been
//! submitted: it does not close the gate. Waiting for it could never end, as its folio may be the ioend's
//! own, which is not written again before that ioend has finished.

use ext4_core::Error;
use ext4_core::format::inode::Inode;

use crate::inode::InodeInfo;
use crate::volume::Volume;
use crate::writeback::completion::group::Group;

/// Whether an ioend may move i_disksize.
pub(crate) enum Gate {
    /// It may move i_disksize.
    Open,
    /// Earlier data is unfinished: the ioend is parked.
    Closed,
    /// The tail block could not be written: the ioend fails with the same error.
    Failed(Error),
}

/// The gate for `group`, which reaches past i_disksize. The caller holds the inode's lock.
pub(crate) fn gate(volume: &Volume, inode: &InodeInfo, disk: &Inode, group: &Group) -> Gate {
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
