//! Waiting for an inode's ioends, and doing what a completion worker would meanwhile: two changes of tasks less for each
//! fsync, which with a fast device cost more than the device.
//!
//! Invariant: between the moment an attendance begins and its end its owner waits for nothing but the inode's progress
//! and the journal, which waits for no completion. Did he wait for anything else, a folio for instance that is under
//! writeback, he could wait for a completion that has been left to him.
//!
//! What is left when he goes, the workers get.

use crate::writeback::completion::give_to_workers;
use crate::writeback::completion::process_and_schedule;
use std::ops::Range;
use std::sync::Arc;

use crate::base::lock_order::assert_no_handle;
use crate::inode::InodeInfo;
use crate::writeback::Engine;

/// See the module.
pub(crate) struct Attendance<'a> {
    engine: &'a Arc<Engine>,
    inode: &'a Arc<InodeInfo>,
}

impl<'a> Attendance<'a> {
    /// Begins. `None` where the order of completions is to be the same every time.
    pub fn begin(engine: &'a Arc<Engine>, inode: &'a Arc<InodeInfo>) -> Option<Self> {
        if engine.dirty.is_deterministic() {
            return None;
        }
        inode.completion.attend();
        Some(Self { engine, inode })
    }

    /// Waits until every ioend over bytes `range` of the inode with a number below `until` is finished. No handle may
    /// be held.
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
