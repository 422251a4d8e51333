//! Locks of a part of an operation: `freeze` (s_umount) and `rwlock` (i_rwsem) are held until the part has
//! ended, also if the caller that took them stops waiting.
//!
//! Invariant: a part is counted in both locks while the caller holds them, so no other task gets one of them
//! between.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ext4_core::environment::RunToEnd;

use crate::base::runtime::run_to_end;
use crate::inode::InodeInfo;
use crate::volume::Volume;

/// A part of an operation that holds `freeze` for reading and the `rwlock` of the inode for writing.
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

/// Runs `operation` to its end under `freeze` and the `rwlock` of the inode. The caller holds `freeze` for
/// reading and `rwlock` for writing; the operation keeps both if the caller stops waiting.
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
