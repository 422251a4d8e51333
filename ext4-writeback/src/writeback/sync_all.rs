//! TODO header.

use crate::writeback::inode::settle;
use std::sync::Arc;

use ext4_core::Result;

use crate::inode::lazytime;
use crate::writeback::Engine;
use crate::writeback::completion::wait::wait_for_ioends;
use crate::writeback::gather::Gather;
use crate::writeback::size::SizeToSync;
use crate::writeback::writepages::{WritebackControl, writepages};

/// Writes all dirty data of all inodes back and waits for it, conversions and sizes included: what was dirty at the call is on
/// the device at the return, also if the flusher or another sync had it in hand.
///
/// # Errors
/// The first of those that came up; each is recorded in its inode too.
pub(crate) async fn sync_all_data(engine: &Arc<Engine>) -> Result<()> {
    let control = &engine.dirty;
    let mut result = Ok(());
    let mut gather = Gather::new(engine);
    // What becomes dirty from now on is not this call's business.
    let inodes = control.take_all_dirty_inodes();
    let mut written = Vec::with_capacity(inodes.len());
    for inode in &inodes {
        let size = SizeToSync::begin(inode);
        let passed = match inode.pages.writeback_lock.try_lock() {
            Ok(_pass) => writepages(engine, inode, &mut gather, &WritebackControl::sync(0..u64::MAX)).await,
            Err(_) => {
                // Another pass may wait for folios that are in our plug.
                gather.submit();
                let _pass = inode.pages.writeback_lock.lock().await;
                writepages(engine, inode, &mut gather, &WritebackControl::sync(0..u64::MAX)).await
            }
        };
        written.push((inode, size, passed.is_ok()));
        result = result.and(passed.map(|_| ()));
    }
    gather.submit();
    wait_for_ioends(engine).await;
    for (inode, size, passed) in written {
        let mut settled = settle(engine, inode, true).await;
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
