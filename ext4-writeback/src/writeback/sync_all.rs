//! Writeback of all dirty inodes, waited for: what sync, unmount and a writer without a flusher need (kernel:
//! `sync_inodes_sb`).
//!
//! Invariants:
//! - It takes as many inodes from the queue as were there at the call: it ends even if writers keep adding
//!   more.
//! - It never waits for another pass while folios are in its own plug: that pass may wait for these folios.
//!
//! Locks: the writeback lock of one inode at a time. No folio lock and no handle may be held by the caller.

use std::sync::Arc;

use ext4_core::Result;

use crate::inode::lazytime;
use crate::writeback::Engine;
use crate::writeback::completion::wait::wait_for_ioends;
use crate::writeback::gather::Gather;
use crate::writeback::sync_inode::log_size_and_times;
use crate::writeback::writepages::{WritebackControl, writepages};

/// Writes back the dirty data of all inodes and waits for it, conversions and i_disksize included.
///
/// # Errors
/// The first error of mapping or of the journal; the others are recorded in their inodes only.
pub(crate) async fn sync_all_data(engine: &Arc<Engine>) -> Result<()> {
    let control = &engine.dirty;
    let mut result = Ok(());
    let mut gather = Gather::new(engine);
    let mut inodes = Vec::new();
    // Inodes that become dirty from now on are left out.
    for _ in 0..control.queued_inodes() {
        let Some(inode) = control.take_dirty_inode(None) else { break };
        let written = match inode.pages.writeback_lock.try_lock() {
            Ok(_pass) => writepages(engine, &inode, &mut gather, &WritebackControl::sync(0..u64::MAX)).await,
            Err(_) => {
                // The other pass may wait for folios in this plug.
                gather.submit();
                let _pass = inode.pages.writeback_lock.lock().await;
                writepages(engine, &inode, &mut gather, &WritebackControl::sync(0..u64::MAX)).await
            }
        };
        result = result.and(written.map(|_| ()));
        inodes.push(inode);
    }
    gather.submit();
    wait_for_ioends(engine).await;
    for inode in inodes {
        result = result.and(log_size_and_times(engine, &inode, true).await);
        if inode.pages.is_dirty() && engine.volume.check_writable().is_ok() {
            control.enqueue(engine.volume.runtime.monotonic(), &inode);
        }
    }
    lazytime::log_all(&engine.volume, &engine.lazy_times).await;
    result
}
