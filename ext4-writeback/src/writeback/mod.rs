//! Writeback: from the dirty folio to the completed ioend.
//!
//! - `writepages.rs`: which folios a pass takes, and in which order; `writepage.rs`: the blocks of one folio;
//!   `gather.rs`: ioends, bios and plugs.
//! - `completion/`: what follows the I/O: conversion, publication, i_disksize.
//! - `size.rs`: i_size and i_disksize. `dirty.rs`: how much is dirty, in which inodes and since when.
//!   `flusher/`: the flusher, throttling and folio memory. `sync_inode.rs`, `sync_all.rs`: writeback of one
//!   inode, and of all.
//!
//! Invariant: background tasks hold the [`Engine`] weakly, except for a pass and ioends that are under way.

pub(crate) mod completion;
pub(crate) mod dirty;
pub(crate) mod flusher;
pub(crate) mod gather;
pub(crate) mod size;
pub(crate) mod sync_all;
pub(crate) mod sync_inode;
#[cfg(test)]
mod tests;
pub(crate) mod writepage;
pub(crate) mod writepages;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use ext4_core::device::MemoryPool;

use crate::cache::folio::FolioGuard;
use crate::inode::InodeInfo;
use crate::inode::lazytime::LazyTimes;
use crate::volume::Volume;
use crate::writeback::dirty::Dirty;

/// The writeback engine of one mounted file system: a volume, and what has to be written back to it.
pub(crate) struct Engine {
    /// Device, superblock, journal, error policy.
    pub volume: Arc<Volume>,
    /// Dirty accounting, the flusher's state, ioends in flight.
    pub dirty: Dirty,
    /// Memory for folios.
    pub pool: Arc<MemoryPool>,
    /// Bytes of folios that callers have mapped for reading.
    pub viewed: Arc<AtomicUsize>,
    /// lazytime: inodes whose times are logged when there is another reason to log the inode.
    pub lazy_times: LazyTimes,
}

impl Engine {
    /// An engine at rest, with a folio pool of `capacity` bytes.
    pub fn new(volume: &Arc<Volume>, capacity: usize) -> Self {
        Self {
            dirty: Dirty::new(&volume.options, capacity),
            pool: MemoryPool::new(capacity),
            viewed: Arc::default(),
            lazy_times: LazyTimes::default(),
            volume: Arc::clone(volume),
        }
    }

    /// `blocks` of the locked folio were changed.
    pub fn mark_dirty(&self, inode: &Arc<InodeInfo>, folio: &FolioGuard, blocks: Range<u32>) {
        if folio.set_dirty(blocks) {
            inode.pages.note_dirty(folio);
            self.dirty.note_dirty(self.volume.runtime.monotonic(), inode, folio.len());
        }
    }
}
