//! Data that could not be written, as far as the whole file system has to be told (the kernel's s_wb_err).
//!
//! Sync and unmount of the file system report what neither an opener nor an earlier sync was told of: after
//! unmount no caller is left to ask.
//!
//! Locks: the mutex is a leaf.

use std::collections::BTreeMap;

use ext4_core::{Error, InodeNumber, Result};
use parking_lot::Mutex;

/// Inodes whose errors are remembered one by one. With more of them, sync still finds the first ones.
const MOST_UNTOLD: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct WriteErrors {
    untold: Mutex<BTreeMap<InodeNumber, Error>>,
}

impl WriteErrors {
    /// Data of `inode` was lost.
    pub fn record(&self, inode: InodeNumber, error: &Error) {
        let mut untold = self.untold.lock();
        if untold.len() < MOST_UNTOLD {
            untold.insert(inode, error.clone());
        }
    }

    /// An opener of `inode` was told.
    pub fn note_told(&self, inode: InodeNumber) {
        self.untold.lock().remove(&inode);
    }

    /// What a sync or unmount of the file system has to report; it is told now.
    ///
    /// # Errors
    /// One of those that no caller was told of.
    pub fn take(&self) -> Result<()> {
        let untold = std::mem::take(&mut *self.untold.lock());
        untold.into_values().next().map_or(Ok(()), Err)
    }
}
