//! fsync waiting for an inode's ioends and doing the completion worker's part meanwhile: that saves two task
//! switches for each fsync, which cost more than a fast device does.
//!
//! Invariant: from the beginning of an attendance to its end, its owner waits only for the inode's progress
//! and for the journal, which waits for no completion. If the owner waited for anything else, for instance
//! for a folio under writeback, it could wait for a completion that is left to the owner itself.
//!
//! Work that is left when the attendance ends goes to the workers.

use std::ops::Range;
use std::sync::Arc;

use crate::base::lock_order::assert_no_handle;
use crate::inode::InodeInfo;
use crate::writeback::Engine;
use crate::writeback::completion::{give_to_workers, process_and_schedule};

/// An attendance on one inode; it ends when this is dropped.
pub(crate) struct Attendance<'a> {
    engine: &'a Arc<Engine>,
    inode: &'a Arc<InodeInfo>,
}

impl<'a> Attendance<'a> {
    /// Begins an attendance; `None` in deterministic mode, in which the order of completions is the same
    /// every time.
    pub fn begin(engine: &'a Arc<Engine>, inode: &'a Arc<InodeInfo>) -> Option<Self> {
        if engine.dirty.is_deterministic() {
            return None;
        }
        inode.completion.attend();
        Some(Self { engine, inode })
    }

    /// Waits until every ioend over bytes `range` of the inode with a number below `until` is finished. No
    /// handle may be held.
    pub async fn wait(&self, until: u64, range: &Range<u64>) {
        assert_no_handle("waiting for writeback");
        let queue = &self.inode.completion;
        loop {
            let mut progress = std::pin::pin!(queue.progress());
            progress.as_mut().enable();
            if queue.is_range_finished_below(range, until) {
                return;
            }
            if queue.has_work() {
                process_and_schedule(self.engine, vec![Arc::clone(self.inode)]).await;
            } else {
                progress.await;
            }
        }
    }
}

impl Drop for Attendance<'_> {
    fn drop(&mut self) {
        if self.inode.completion.stop_attending() {
            give_to_workers(self.engine, self.inode);
        }
    }
}
