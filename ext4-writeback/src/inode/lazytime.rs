//! `lazytime` (I_DIRTY_TIME): times are logged only together with something else.
//!
//! A write changes times in memory, and so does a read if access times are kept. Without this option the
//! flusher logs them within half a minute, one block of the inode table for each file that was overwritten.
//! With it the times wait, and go to the device with the next change of the inode, by fsync or sync, at
//! unmount, when the inode leaves memory, or when they have waited for a day. A crash loses the times that
//! waited, and nothing else.
//!
//! Invariant: an inode whose times are not logged is in [`LazyTimes`] or in the flusher's queue, and either
//! keeps it in memory. [`LazyTimes`] holds at most [`MOST`] inodes: if there are more, the times of the inode
//! that has waited longest are logged, and it may leave memory.
//!
//! Lock: the mutex of the list is a leaf.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::inode::InodeInfo;
use crate::inode::log::log_times;
use crate::volume::Volume;

/// How long times wait at most (kernel documentation, `lazytime`).
const EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);

/// How many inodes wait at most.
const MOST: usize = 4096;

/// Inodes whose times wait; the inode that has waited longest is first.
#[derive(Debug, Default)]
pub(crate) struct LazyTimes {
    waiting: Mutex<VecDeque<(Arc<InodeInfo>, Duration)>>,
}

impl LazyTimes {
    /// The times of `inode` wait from `now` on, if they do not wait yet.
    pub fn add(&self, inode: &Arc<InodeInfo>, now: Duration) {
        if inode.pages.times.enter_lazy_list() {
            self.waiting.lock().push_back((Arc::clone(inode), now));
        }
    }

    /// Takes the first inode if it has waited since `before` or longer, or if there are too many.
    fn take(&self, before: Option<Duration>) -> Option<Arc<InodeInfo>> {
        let mut waiting = self.waiting.lock();
        let too_many = waiting.len() > MOST;
        let (_, since) = waiting.front()?;
        if !too_many && before.is_none_or(|before| *since > before) {
            return None;
        }
        let (inode, _) = waiting.pop_front()?;
        inode.pages.times.leave_lazy_list();
        Some(inode)
    }
}

/// Logs times that have waited for [`EXPIRY`]. The flusher calls it.
pub(crate) async fn log_expired(volume: &Volume, times: &LazyTimes) {
    let before = volume.runtime.monotonic().checked_sub(EXPIRY);
    while let Some(inode) = times.take(before) {
        log(volume, &inode).await;
    }
}

/// Logs all times that wait: for sync and unmount.
pub(crate) async fn log_all(volume: &Volume, times: &LazyTimes) {
    let count = times.waiting.lock().len();
    for _ in 0..count {
        let Some(inode) = times.take(Some(Duration::MAX)) else { break };
        log(volume, &inode).await;
    }
}

async fn log(volume: &Volume, inode: &Arc<InodeInfo>) {
    if inode.pages.times.are_unlogged()
        && let Err(error) = log_times(volume, inode).await
    {
        tracing::warn!(inode = inode.number.0, %error, "times were not logged");
    }
}
