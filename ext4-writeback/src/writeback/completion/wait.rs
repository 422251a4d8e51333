//! TODO header.

use std::ops::Range;
use std::sync::Arc;

use crate::base::lock_order::assert_no_handle;
use crate::cache::folio::Folio;
use crate::filesystem::FilesystemInner;
use crate::inode::InodeInfo;
use crate::writeback::completion::run_when_io_ended;

/// Waits until no worker runs and none is needed.
pub(crate) async fn wait_for_workers(fs: &Arc<FilesystemInner>) {
    wait_for_progress(fs, || {
        let completed = fs.writeback.completed.completed.lock();
        completed.queue.is_empty() && !completed.worker
    })
    .await;
}

/// Waits until every ioend that was in flight at the call is finished.
pub(crate) async fn wait_for_ioends(fs: &Arc<FilesystemInner>) {
    let until = fs.writeback.next_ioend();
    wait_for_progress(fs, || fs.writeback.is_finished_below(until)).await;
}

/// Waits until `done`, which progress makes true. No handle may be held.
pub(crate) async fn wait_for_progress(fs: &Arc<FilesystemInner>, done: impl Fn() -> bool) {
    assert_no_handle("waiting for writeback");
    let control = &fs.writeback;
    loop {
        let notified = control.progress.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if done() {
            return;
        }
        if control.deterministic && run_when_io_ended(fs).await {
            continue;
        }
        notified.await;
    }
}

/// Waits until the ioends over bytes `range` of `inode` that are in flight now are finished.
pub(crate) async fn wait_for_range(fs: &Arc<FilesystemInner>, inode: &Arc<InodeInfo>, range: &Range<u64>) {
    let until = fs.writeback.next_ioend();
    wait_for_progress(fs, || inode.completion.is_range_finished_below(range, until)).await;
}

/// Waits for the writeback of one folio.
pub(crate) async fn wait_for_folio(fs: &Arc<FilesystemInner>, folio: &Folio) {
    wait_for_progress(fs, || !folio.is_under_writeback()).await;
}
