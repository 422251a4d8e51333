//! TODO header.

use crate::writeback::inode::settle;
use std::sync::Arc;

use ext4_core::Result;

use crate::inode::lazytime;
use crate::writeback::Engine;
use crate::writeback::completion::wait::wait_for_ioends;
use crate::writeback::gather::Gather;
use crate::writeback::writepages::{WritebackControl, writepages};

/// Writes all dirty data of all inodes back and waits for it, conversions and sizes included.
///
/// # Errors
/// The first of those that came up; each is recorded in its inode too.
pub(crate) async fn sync_all_data(engine: &Arc<Engine>) -> Result<()> {
    let control = &engine.dirty;
    let mut result = Ok(());
    let mut gather = Gather::new(engine);
    let mut inodes = Vec::new();
    // What becomes dirty from now on is not this call's business.
    for _ in 0..control.queued_inodes() {
        let Some(inode) = control.take_dirty_inode(None) else { break };
        let written = match inode.pages.pass.lock.try_lock() {
            Ok(_pass) => writepages(engine, &inode, &mut gather, &WritebackControl::sync(0..u64::MAX)).await,
            Err(_) => {
                // Another pass may wait for folios that are in our plug.
                gather.submit();
                let _pass = inode.pages.pass.lock.lock().await;
                writepages(engine, &inode, &mut gather, &WritebackControl::sync(0..u64::MAX)).await
            }
        };
        result = result.and(written.map(|_| ()));
        inodes.push(inode);
    }
    gather.submit();
    wait_for_ioends(engine).await;
    for inode in inodes {
        result = result.and(settle(engine, &inode, true).await);
        if inode.pages.is_dirty() && engine.volume.check_writable().is_ok() {
            control.enqueue(engine.volume.runtime.monotonic(), &inode);
        }
    }
    lazytime::log_all(&engine.volume, &engine.lazy_times).await;
    result
}
