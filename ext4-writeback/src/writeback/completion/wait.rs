//! Waiting for writeback: for folios, for ioends over a range, for workers.
//!
//! Invariant: no caller holds a handle (the journal waits for handles), and none has folios in a plug of its
//! own that is not submitted.
//!
//! A mount in deterministic mode has no workers: there the waiting task itself runs the completions
//! ([`run_when_io_ended`]).

use std::ops::Range;
use std::sync::Arc;

use crate::base::lock_order::assert_no_handle;
use crate::cache::folio::Folio;
use crate::inode::InodeInfo;
use crate::writeback::Engine;
use crate::writeback::completion::run_when_io_ended;

/// Waits until no completion worker runs and none is needed.
pub(crate) async fn wait_for_workers(engine: &Arc<Engine>) {
    wait_for_progress(engine, || {
        let completed = engine.dirty.completed.completed.lock();
        completed.queue.is_empty() && !completed.worker
    })
    .await;
}

/// Waits until every ioend that was unfinished at the call is finished.
pub(crate) async fn wait_for_ioends(engine: &Arc<Engine>) {
    let until = engine.dirty.next_ioend();
    wait_for_progress(engine, || engine.dirty.is_finished_below(until)).await;
}

/// Waits until `done` returns true, checking it again at every progress of writeback. No handle may be held.
pub(crate) async fn wait_for_progress(engine: &Arc<Engine>, done: impl Fn() -> bool) {
    assert_no_handle("waiting for writeback");
    let control = &engine.dirty;
    loop {
        let notified = control.progress.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if done() {
            return;
        }
        if control.limits.deterministic && run_when_io_ended(engine).await {
            continue;
        }
        notified.await;
    }
}

/// Waits until the ioends over bytes `range` of `inode` that are unfinished at the call are finished.
pub(crate) async fn wait_for_range(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, range: &Range<u64>) {
    let until = engine.dirty.next_ioend();
    wait_for_progress(engine, || inode.completion.is_range_finished_below(range, until)).await;
}

/// Waits until `folio` is not under writeback (kernel: `folio_wait_writeback`).
pub(crate) async fn wait_for_folio(engine: &Arc<Engine>, folio: &Folio) {
    wait_for_progress(engine, || !folio.is_under_writeback()).await;
}
