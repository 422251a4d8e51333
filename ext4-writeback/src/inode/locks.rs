//! TODO header.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ext4_core::environment::RunToEnd;

use crate::base::runtime::run_to_end;
use crate::inode::InodeInfo;
use crate::volume::Volume;

/// A part of the work of somebody who has `freeze` for reading and the inode's `rwlock` for writing.
struct Part {
    volume: Arc<Volume>,
    inode: Arc<InodeInfo>,
}

impl Part {
    fn new(volume: &Arc<Volume>, inode: &Arc<InodeInfo>) -> Self {
        volume.freeze.reading.fetch_add(1, Ordering::AcqRel);
        inode.rwlock.writing.fetch_add(1, Ordering::AcqRel);
        Self { volume: Arc::clone(volume), inode: Arc::clone(inode) }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let (freeze, rwlock) = (&self.volume.freeze, &self.inode.rwlock);
        rwlock.writing.fetch_sub(1, Ordering::AcqRel);
        rwlock.ended.notify_waiters();
        freeze.reading.fetch_sub(1, Ordering::AcqRel);
        freeze.ended.notify_waiters();
    }
}

/// Runs `operation` to its end under `freeze` and the inode's `rwlock`, which the caller holds (for writing), and which it
/// holds for itself where he stops waiting.
pub(crate) fn under_locks<R: Send + 'static>(
    volume: &Arc<Volume>,
    inode: &Arc<InodeInfo>,
    operation: impl Future<Output = R> + Send + 'static,
) -> RunToEnd<R> {
    let part = Part::new(volume, inode);
    run_to_end(&volume.runtime, async move {
        let result = operation.await;
        drop(part);
        result
    })
}
