//! The flusher.

use std::sync::Arc;

use crate::filesystem::FilesystemInner;
use crate::{MountOptions, Result};

/// Dirty accounting and the flusher's state of one mounted file system.
#[derive(Debug)]
pub(crate) struct WritebackControl {
    capacity: usize,
}

impl WritebackControl {
    /// `data_capacity`: the bytes of the folio pool.
    pub fn new(_options: &MountOptions, data_capacity: usize) -> Self {
        Self { capacity: data_capacity }
    }

    /// Bytes of the folio pool.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

/// Starts the flusher (where the options ask for one). After everything else of a mount.
pub(crate) fn start(_fs: &Arc<FilesystemInner>) {
    todo!()
}

/// Writes all dirty data of all inodes back and waits for it, conversions and sizes included.
pub(crate) async fn sync_all_data(_fs: &Arc<FilesystemInner>) -> Result<()> {
    todo!()
}

/// Writes everything back, stops the flusher and drains the completions.
pub(crate) async fn stop(_fs: &Arc<FilesystemInner>) -> Result<()> {
    todo!()
}
