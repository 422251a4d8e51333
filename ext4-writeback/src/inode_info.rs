//! An inode in memory: its locks, the copy of what is on the device, its page cache (the kernel's `inode` and
//! `ext4_inode_info`).
//!
//! Locks, outermost first: `rwlock` (i_rwsem) → `invalidate_lock` → folio lock → journal handle → `inode`
//! (i_data_sem) → group and buffer locks. Whoever holds a handle never asks for a folio lock and never waits for
//! writeback or data I/O.

use std::sync::atomic::{AtomicU32, AtomicU64};

use ext4_core::InodeNumber;
use ext4_core::format::inode::Inode;
use tokio::sync::RwLock;

/// See the module.
#[derive(Debug)]
pub(crate) struct InodeInfo {
    /// Its number.
    pub number: InodeNumber,
    /// i_rwsem: held for writing by every change of the file's content or size, and of a directory's names.
    pub rwlock: RwLock<()>,
    /// Held for writing while page cache is dropped (truncate, punch), for reading by those who fill it.
    pub invalidate_lock: RwLock<()>,
    /// i_data_sem and what it protects: the inode as it is logged; `size` in it is i_disksize.
    pub inode: RwLock<Inode>,
    /// i_size: in-memory size in bytes; at least i_disksize outside of truncate.
    pub size: AtomicU64,
    /// The last transaction that changed the inode at all (fsync), and one that changed what fdatasync needs.
    /// The upper half is 1 where there was one since the inode was read.
    pub sync_transaction: AtomicU64,
    /// See `sync_transaction`.
    pub datasync_transaction: AtomicU64,
    /// How many [`crate::File`]s are open.
    pub open_count: AtomicU32,
}
