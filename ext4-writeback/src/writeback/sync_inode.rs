//! Writeback of one inode, started or waited for (kernel: `filemap_fdatawrite_range`,
//! `file_write_and_wait_range`).
//!
//! ```text
//!   sync:  writeback lock { writepages } → plug goes out → wait for the ioends over the range
//!          → i_disksize, times
//!   start: writeback lock { writepages } → plug goes out
//! ```
//!
//! Which folios are written, and in which order, is in [`crate::writeback::writepages`]; how one folio is
//! mapped, in [`crate::writeback::writepage`].
//!
//! Invariant: after the plug has gone out, a caller waits for nothing but the device and the journal.

use std::ops::Range;
use std::sync::Arc;

use ext4_core::Result;

use crate::inode::InodeInfo;
use crate::inode::log::log_times;
use crate::writeback::Engine;
use crate::writeback::completion::attendance::Attendance;
use crate::writeback::completion::process_and_schedule;
use crate::writeback::completion::wait::wait_for_range;
use crate::writeback::gather::Gather;
use crate::writeback::size::SizeToSync;
use crate::writeback::writepages::{WritebackControl, writepages};

/// After the writeback of a whole inode: i_disksize follows i_size, and the times are logged if `times`.
///
/// # Errors
/// Those of the journal.
pub(crate) async fn log_size_and_times(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    times: bool,
) -> Result<()> {
    if inode.size() > inode.completion.disk_size() && engine.volume.check_writable().is_ok() {
        process_and_schedule(engine, vec![Arc::clone(inode)]).await;
    }
    if times && inode.pages.times.are_unlogged() {
        log_times(&engine.volume, inode).await?;
    }
    Ok(())
}

/// Starts writeback of bytes `range` of `inode` (WB_SYNC_NONE); folios under writeback already are skipped.
/// If the range reaches past i_disksize, everything from i_disksize on is written.
///
/// # Errors
/// Those of mapping a folio; recorded in the inode too.
pub(crate) async fn start_inode_range(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    range: Range<u64>,
) -> Result<()> {
    let _pass = inode.pages.pass.lock.lock().await;
    let mut gather = Gather::new(engine);
    let result = writepages(engine, inode, &mut gather, &WritebackControl::start(range)).await;
    gather.submit();
    result.map(|_| ())
}

/// Writes back all dirty data of `inode` and waits for it: when it returns, the I/O has ended, and
/// conversions, i_disksize and times are in transactions; nothing is committed.
///
/// # Errors
/// Those of mapping and of the journal. The error of a failed write is in the inode's error sequence only.
pub(crate) async fn sync_inode_data(engine: &Arc<Engine>, inode: &Arc<InodeInfo>) -> Result<()> {
    sync_data(engine, inode, true).await
}

/// As [`sync_inode_data`]; `times`: true if the times are logged too (fdatasync does not need them).
///
/// # Errors
/// As [`sync_inode_data`].
pub(crate) async fn sync_data(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, times: bool) -> Result<()> {
    sync_inode_range(engine, inode, 0..u64::MAX, times).await
}

/// As [`sync_inode_data`], for data that was dirty in bytes `range` at the call; other I/O is not waited for.
/// If the range reaches past i_disksize, everything from i_disksize on is written.
///
/// # Errors
/// As [`sync_inode_data`].
pub(crate) async fn sync_inode_range(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    range: Range<u64>,
    times: bool,
) -> Result<()> {
    let size = SizeToSync::begin(inode);
    let (result, attendance) = {
        let _pass = inode.pages.pass.lock.lock().await;
        let mut gather = Gather::new(engine);
        let result =
            writepages(engine, inode, &mut gather, &WritebackControl::sync(range.clone())).await.map(|_| ());
        // From here on this waits for the device and the journal only. A fast device ends the I/O within this
        // call.
        let attendance = Attendance::begin(engine, inode);
        gather.submit();
        (result, attendance)
    };
    match attendance {
        Some(attendance) => attendance.wait(engine.dirty.next_ioend(), &range).await,
        None => wait_for_range(engine, inode, &range).await,
    }
    if range.end <= inode.completion.disk_size() && !times {
        return result;
    }
    result.and(log_size_and_times(engine, inode, times).await)?;
    size.follow(&engine.volume, range.end).await
}
