//! Data that could not be written, as far as the whole file system has to be told (the kernel's s_wb_err).
//!
//! - A sync of the file system reports an error once, also if openers were told.
//! - Unmount reports what neither an opener nor a sync was told of: after it there is no one left to ask.
//!
//! Locks: the mutex is a leaf.

use std::collections::BTreeMap;

use ext4_core::{Error, InodeNumber, Result};
use parking_lot::Mutex;

/// Inodes whose errors are remembered one by one. With more of them, unmount still finds the first ones.
const MOST_UNTOLD: usize = 4096;

#[derive(Debug, Default)]
struct State {
    /// Since the last sync.
    unsynced: Option<Error>,
    untold: BTreeMap<InodeNumber, Error>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct WriteErrors {
    state: Mutex<State>,
}

impl WriteErrors {
    /// Data of `inode` was lost.
    pub fn record(&self, inode: InodeNumber, error: &Error) {
        let mut state = self.state.lock();
        state.unsynced.get_or_insert_with(|| error.clone());
        if state.untold.len() < MOST_UNTOLD {
            state.untold.insert(inode, error.clone());
        }
    }

    /// An opener of `inode` was told.
    pub fn note_told(&self, inode: InodeNumber) {
        self.state.lock().untold.remove(&inode);
    }

    /// What a sync of the file system has to report; it is told now.
    pub fn take_for_sync(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.untold.clear();
        state.unsynced.take().map_or(Ok(()), Err)
    }

    /// What unmount has to report.
    pub fn take_for_unmount(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.unsynced = None;
        let untold = std::mem::take(&mut state.untold);
        untold.into_values().next().map_or(Ok(()), Err)
    }
}
