//! The flusher: background writeback by age and by amount (kernel: `wb_workfn`).
//!
//! - `throttle.rs`: writers that are ahead of the device wait.
//! - `memory.rs`: memory for folios.
//!
//! How much is dirty, in which inodes and since when is in [`crate::writeback::dirty`].
//!
//! Each time the flusher wakes it writes: inodes that must not wait; inodes that have been dirty for long;
//! and, if more than the background limit is dirty, the oldest inodes until half of that limit is left.
//! Inodes take turns, so that a large file does not keep small ones waiting.
//!
//! Invariants:
//! - A run of the flusher ends: of an old inode it writes the data that was dirty at the inode's first turn,
//!   whatever writers do meanwhile.
//! - Without a commit interval there is no flusher (deterministic mode): nothing is written unless a caller
//!   asks or memory is short, and then the writer itself writes everything back and waits for it. So the
//!   order of allocations, and the image, depends on the calls alone.

pub(crate) mod memory;
#[cfg(test)]
mod tests;
pub(crate) mod throttle;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ext4_core::Result;

use crate::base::lock_order::Scoped;
use crate::inode::{InodeInfo, lazytime, log};
use crate::writeback::Engine;
use crate::writeback::completion::wait;
use crate::writeback::gather::Gather;
use crate::writeback::sync_all::sync_all_data;
use crate::writeback::writepages::{WritebackControl, writepages};

/// Starts the flusher, if the mount has one. It is the last step of a mount.
pub(crate) fn start(engine: &Arc<Engine>) {
    if engine.dirty.limits.deterministic || engine.volume.options.read_only {
        return;
    }
    engine.dirty.flusher.running.store(true, Ordering::Release);
    let wake = Arc::clone(&engine.dirty.flusher.wake);
    let runtime = Arc::clone(&engine.volume.runtime);
    let period = engine.dirty.limits.period;
    let weak = Arc::downgrade(engine);
    engine.volume.runtime.spawn(Box::pin(Scoped::new(Box::pin(async move {
        loop {
            tokio::select! {
                biased;
                () = wake.notified() => {}
                () = runtime.sleep(period) => {}
            }
            let Some(engine) = weak.upgrade() else { return };
            let control = &engine.dirty;
            if control.flusher.stopping.load(Ordering::Acquire) {
                control.flusher.running.store(false, Ordering::Release);
                control.note_progress();
                return;
            }
            control.flusher.kicked.store(false, Ordering::Release);
            flush_old(&engine).await;
            lazytime::log_expired(&engine.volume, &engine.lazy_times).await;
            if control.dirty_bytes() > control.limits.background {
                flush_background(&engine).await;
            }
        }
    }))));
}

/// Writes back inodes that must not wait, and those that have been dirty for long; all inodes if that was
/// asked for.
async fn flush_old(engine: &Arc<Engine>) {
    let control = &engine.dirty;
    let now = engine.volume.runtime.monotonic();
    let everything = control.flusher.everything.swap(false, Ordering::AcqRel);
    let before = if everything { Some(now) } else { now.checked_sub(control.limits.expiry) };
    let mut inodes: VecDeque<_> = control.take_urgent().into_iter().map(|inode| (inode, None)).collect();
    if let Some(before) = before {
        while let Some(inode) = control.take_dirty_inode(Some(before)) {
            inodes.push_back((inode, None));
        }
    }
    let mut gather = Gather::new(engine);
    while let Some((inode, generation)) = inodes.pop_front() {
        // Folios that become dirty from the inode's first turn on are young.
        let generation = generation.unwrap_or_else(|| inode.pages.tag_dirty());
        let pass = WritebackControl::turn(control.turn()).before(generation);
        let written = flush_inode(engine, &inode, &mut gather, &pass).await;
        if written > 0 && inode.pages.next_dirty(0, generation).is_some() {
            inodes.push_back((inode, Some(generation)));
        } else {
            put_back(engine, &inode).await;
        }
    }
    gather.submit();
}

/// Background writeback, oldest inodes first, until half of the background limit is dirty. Waits for I/O, so
/// that the flusher is not ahead of the device without bound.
async fn flush_background(engine: &Arc<Engine>) {
    let control = &engine.dirty;
    let enough = || control.not_started() <= control.limits.background / 2;
    while !enough() && !control.flusher.stopping.load(Ordering::Acquire) {
        let mut gather = Gather::new(engine);
        let mut turns = control.queued_inodes();
        let before = control.not_started();
        while turns > 0
            && !enough()
            && let Some(inode) = control.take_dirty_inode(None)
        {
            turns -= 1;
            flush_inode(engine, &inode, &mut gather, &WritebackControl::turn(control.turn())).await;
            put_back(engine, &inode).await;
        }
        gather.submit();
        let notified = control.progress.notified();
        if control.not_started() >= before {
            // Everything is locked or under writeback: something has to end first.
            tokio::select! {
                biased;
                () = notified => {}
                () = engine.volume.runtime.sleep(Duration::from_millis(10)) => {}
            }
        }
    }
}

/// One inode's turn; returns how many bytes were written.
async fn flush_inode(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    gather: &mut Gather,
    pass: &WritebackControl,
) -> u64 {
    // If another task has a pass over the inode now, that is as good.
    let Ok(_pass) = inode.pages.pass.lock.try_lock() else { return 0 };
    // Errors are recorded in the inode, for its openers.
    match writepages(engine, inode, gather, pass).await {
        Ok(written) => written,
        Err(error) => {
            tracing::warn!(ino = inode.number.0, %error, "writeback failed");
            0
        }
    }
}

/// Logs the times of an inode that had its turn, and puts it back into the queue if it is still dirty.
async fn put_back(engine: &Arc<Engine>, inode: &Arc<InodeInfo>) {
    if !inode.pages.is_dirty_folios() && inode.pages.times.are_unlogged() {
        if engine.volume.options.lazytime {
            engine.lazy_times.add(inode, engine.volume.runtime.monotonic());
            return;
        }
        let _ = log::log_times(&engine.volume, inode).await;
    }
    if inode.needs_writeback() && engine.volume.check_writable().is_ok() {
        engine.dirty.enqueue(engine.volume.runtime.monotonic(), inode);
    }
}

/// Stops the flusher, writes everything back and waits until no completion worker runs: for unmount.
///
/// # Errors
/// As [`sync_all_data`].
pub(crate) async fn stop(engine: &Arc<Engine>) -> Result<()> {
    let control = &engine.dirty;
    control.flusher.stopping.store(true, Ordering::Release);
    control.flusher.wake.notify_one();
    wait::wait_for_progress(engine, || !control.flusher.running.load(Ordering::Acquire)).await;
    let result = sync_all_data(engine).await;
    wait::wait_for_workers(engine).await;
    result
}
