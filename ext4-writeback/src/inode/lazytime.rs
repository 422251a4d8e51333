//! `lazytime`: times that nobody asked to keep are written only when there is another reason to.
//!
//! A write, or a read where access times are kept, changes times in memory. Without this option the flusher logs them
//! within half a minute, one block of the inode table for each file that was overwritten. With it they wait here, and go
//! to the device with the next change of the inode, by fsync or sync, at unmount, when the inode leaves memory, or when
//! they have waited for a day. A crash loses what waited, and nothing else.
//!
//! Invariant: an inode whose times are not logged is here or in the flusher's queue, and either keeps it in memory. At
//! most [`MOST`] are here; who is one too many has been here longest, and its times are logged: it may leave memory.

use crate::inode::log::log_times;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::inode::InodeInfo;
use crate::volume::Volume;

/// How long times wait at most (the kernel's documentation of `lazytime`).
const EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);

/// How many inodes wait at most.
const MOST: usize = 4096;

/// Inodes whose times wait, those that have waited longest first.
#[derive(Debug, Default)]
pub(crate) struct LazyTimes {
    waiting: Mutex<VecDeque<(Arc<InodeInfo>, Duration)>>,
}

impl LazyTimes {
    /// `inode`'s times wait from now on, if they do not yet.
    pub fn add(&self, inode: &Arc<InodeInfo>, now: Duration) {
        if inode.pages.times.enter_lazy_list() {
            self.waiting.lock().push_back((Arc::clone(inode), now));
        }
    }

    /// One that has waited since `before` or longer, or is one too many.
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

/// Logs times that have waited for long enough. The flusher calls it.
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
