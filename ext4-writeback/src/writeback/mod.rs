//! From the dirty folio to the completed ioend: the engine that writes data back.
//!
//! - `writepages.rs`: which folios a pass takes, and in which order; `writepage.rs`: the blocks of one folio; `gather.rs`:
//!   ioends, bios and plugs.
//! - `completion/`: what follows the I/O: conversion, publication, i_disksize.
//! - `size.rs`: the sizes. `dirty.rs`: how much is dirty, where and since when. `flusher/`: the flusher, throttling and
//!   memory. `sync_inode.rs`, `sync_all.rs`: writing back one inode, and all of them.
//!
//! Invariant: tasks in the background hold the [`Engine`] weakly, but for the pass and the ioends that are under way.

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

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use ext4_core::device::MemoryPool;

use crate::inode::lazytime::LazyTimes;
use crate::volume::Volume;
use crate::writeback::dirty::Dirty;

/// A volume, and what has to be written back to it.
pub(crate) struct Engine {
    /// Device, superblock, journal, error policy.
    pub volume: Arc<Volume>,
    /// Dirty accounting, the flusher's state, ioends in flight.
    pub dirty: Dirty,
    /// Memory for folios.
    pub pool: Arc<MemoryPool>,
    /// Bytes of folios that callers view.
    pub viewed: Arc<AtomicUsize>,
    /// Inodes whose times are logged when there is another reason.
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
}
