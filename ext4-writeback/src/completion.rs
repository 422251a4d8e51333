//! Completed ioends of one inode.

use std::sync::atomic::{AtomicU64, Ordering};

/// The inode's list of ioends.
#[derive(Debug)]
pub(crate) struct CompletionQueue {
    disk_size: AtomicU64,
}

impl CompletionQueue {
    /// Nothing in flight; `disk_size` is the size in the inode on the device (i_disksize).
    pub fn new(disk_size: u64) -> Self {
        Self { disk_size: AtomicU64::new(disk_size) }
    }

    /// i_disksize.
    pub fn disk_size(&self) -> u64 {
        self.disk_size.load(Ordering::SeqCst)
    }
}
