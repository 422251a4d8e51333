//! Writeback of all dirty inodes, waited for: what sync, unmount and a writer without a flusher need (kernel:
//! `sync_inodes_sb`).
//!
//! Invariants:
//! - It takes all inodes that are in the queue at the call, and those in hand of the flusher or another sync:
//!   what was dirty at the call is on the device at the return. Inodes that are added later are left
//!   out, so it ends even if writers keep adding more.
//! - It never waits for another pass while folios are in its own plug: that pass may wait for these folios.
//!
//! Locks: the writeback lock of one inode at a time. No folio lock and no handle may be held by the caller.

use std::sync::Arc;

use ext4_core::Result;

use crate::inode::lazytime;
use crate::writeback::Engine;
use crate::writeback::completion::wait::wait_for_ioends;
use crate::writeback::gather::Gather;
use crate::writeback::size::SizeToSync;
use crate::writeback::sync_inode::log_size_and_times;
use crate::writeback::writepages::{WritebackControl, writepages};

/// Writes back the dirty data of all inodes and waits for it, conversions and i_disksize included: what was
/// dirty at the call is on the device at the return, also if the flusher or another sync had it in hand.
///
/// # Errors
/// The first error of mapping or of the journal; the others are recorded in their inodes only.
pub(crate) async fn sync_all_data(engine: &Arc<Engine>) -> Result<()> {
    let control = &engine.dirty;
    let mut result = Ok(());
    let mut gather = Gather::new(engine);
    // What becomes dirty from now on is not this call's business.
    let inodes = control.take_all_dirty_inodes();
    let mut written = Vec::with_capacity(inodes.len());
    for inode in &inodes {
        let size = SizeToSync::begin(inode);
        let passed = match inode.pages.pass.lock.try_lock() {
            Ok(_pass) => writepages(engine, inode, &mut gather, &WritebackControl::sync(0..u64::MAX)).await,
            Err(_) => {
                // The other pass may wait for folios in this plug.
                gather.submit();
                let _pass = inode.pages.pass.lock.lock().await;
                writepages(engine, inode, &mut gather, &WritebackControl::sync(0..u64::MAX)).await
            }
        };
        written.push((inode, size, passed.is_ok()));
        result = result.and(passed.map(|_| ()));
    }
    gather.submit();
    wait_for_ioends(engine).await;
    for (inode, size, passed) in written {
        let mut settled = log_size_and_times(engine, inode, true).await;
        if passed && settled.is_ok() {
            settled = size.follow(&engine.volume, u64::MAX).await;
        }
        result = result.and(settled);
        if inode.needs_writeback() && engine.volume.check_writable().is_ok() {
            control.enqueue(engine.volume.runtime.monotonic(), inode);
        }
    }
    lazytime::log_all(&engine.volume, &engine.lazy_times).await;
    result
}
