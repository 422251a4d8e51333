//! Writeback of one inode: its dirty folios, mapped and added to ioends; and who asks for it. Which folios, and in which
//! order, is [`crate::writeback::writepages`]'s to say.
//!
//! ```text
//!   folio locked → dirty bits taken, under writeback → i_size sampled, bytes behind it zeroed
//!     per dirty run:  kept mapping, while its sequence holds
//!                     else what the extent status tree knows, or the device (no handle)
//!                     delayed: handle → inode lock → look again → allocate unwritten → tree → log → stop
//!     → ioend → plug
//!   folio unlocked; the writeback ends when its ioends have
//! ```
//!
//! Invariants:
//! - i_size is sampled after the dirty bits are taken: what is appended later makes the block dirty again.
//! - Where the file's data is published ([`crate::iomap::preallocation`]) blocks are picked instead, without a handle; nothing on
//!   the device changes until their data is there.
//! - Blocks allocated here are unwritten: a crash before their data is on the device shows zeros, never what another
//!   file left there.
//! - Before waiting for anything that may depend on our own I/O, the plug goes out.
//! - What cannot be mapped is lost and reported: its delayed blocks give their promise back.

use crate::writeback::completion::process_and_schedule;
use std::ops::Range;
use std::sync::Arc;

use ext4_core::Result;

use crate::inode::InodeInfo;
use crate::inode::log::log_times;
use crate::writeback::Engine;
use crate::writeback::completion::attendance::Attendance;
use crate::writeback::completion::wait::wait_for_range;
use crate::writeback::gather::Gather;
use crate::writeback::writepages::{WritebackControl, writepages};

/// After the writeback of everything: the size follows, and the times where asked for.
pub(crate) async fn settle(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, times: bool) -> Result<()> {
    if inode.size() > inode.completion.disk_size() && engine.volume.check_writable().is_ok() {
        process_and_schedule(engine, vec![Arc::clone(inode)]).await;
    }
    if times && inode.pages.times.are_unlogged() {
        log_times(&engine.volume, inode).await?;
    }
    Ok(())
}

/// Starts writing the dirty data of bytes `range` of `inode` back, but for what is under writeback already. Where the
/// range reaches past i_disksize, all from there on is written.
///
/// # Errors
/// Those of mapping; recorded in the inode too.
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

/// Writes all dirty data of `inode` back and waits for it: I/O, conversions, size and times are in transactions when
/// it returns; nothing is committed.
///
/// # Errors
/// Those of mapping and of the journal. A failed write is only in the inode's error sequence.
pub(crate) async fn sync_inode_data(engine: &Arc<Engine>, inode: &Arc<InodeInfo>) -> Result<()> {
    sync_data(engine, inode, true).await
}

/// As [`sync_inode_data`]; times only where asked for (fdatasync does not).
///
/// # Errors
/// As [`sync_inode_data`].
pub(crate) async fn sync_data(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, times: bool) -> Result<()> {
    sync_inode_range(engine, inode, 0..u64::MAX, times).await
}

/// As [`sync_inode_data`], for what was dirty in bytes `range` when it began; what else is written does not have to
/// end. Where the range reaches past i_disksize, that is all from there on.
///
/// # Errors
/// As [`sync_inode_data`].
pub(crate) async fn sync_inode_range(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    range: Range<u64>,
    times: bool,
) -> Result<()> {
    let (result, attendance) = {
        let _pass = inode.pages.pass.lock.lock().await;
        let mut gather = Gather::new(engine);
        let result =
            writepages(engine, inode, &mut gather, &WritebackControl::sync(range.clone())).await.map(|_| ());
        // From here on nothing is waited for but the device and the journal. A fast device ends it within this call.
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
    result.and(settle(engine, inode, times).await)
}
