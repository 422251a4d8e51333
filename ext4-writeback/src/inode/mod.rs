//! An inode in memory (`inode` and `ext4_inode_info`): its locks, the inode as it is logged, its page cache.
//!
//! Locks, outermost first: `rwlock` (i_rwsem) → `invalidate_lock` → folio lock → journal handle → `on_disk`
//! (i_data_sem) → group and buffer locks; [`crate::base::lock_order`] has all levels, and checks them in
//! debug builds. A task that holds a handle never asks for a folio lock and never waits for writeback or data
//! I/O. The `rwlock`s of several inodes are taken a directory before what is in it; only rename locks two
//! directories of which neither holds the other, under its mutex. At most one `on_disk` lock is held at a
//! time, but for that of an inode that is being made and that no other task can have found.
//!
//! Invariant: a task that changes `on_disk` logs it before it gives the lock back, so an inode that no task
//! holds can be dropped from memory and read again. Times changed by a write are the exception: `pages.times`
//! says so then, and the flusher's queue holds the inode until they are logged.

pub(crate) mod cache;
pub(crate) mod lazytime;
pub(crate) mod locks;
pub(crate) mod log;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use ext4_core::format::inode::{FileType, Inode, InodeFlags};
use ext4_core::{Errno, Error, InodeNumber, Result, TransactionId};

use crate::base::lock_order::{Level, OrderedRwLock};
use crate::base::operation_lock::OperationLock;
use crate::cache::error_sequence::ErrorSequence;
use crate::cache::extent_status::ExtentStatusTree;
use crate::cache::extent_status::tree::Reclaimable;
use crate::cache::ioends::CompletionQueue;
use crate::cache::page_cache::PageCache;
use crate::cache::picks::Preallocation;
use crate::volume::Volume;

/// Marks a word of [`InodeInfo::sync_transaction`] that holds a transaction id.
const KNOWN: u64 = 1 << 32;

/// An inode in memory. See the module.
#[derive(Debug)]
pub(crate) struct InodeInfo {
    /// Its number.
    pub number: InodeNumber,
    /// i_rwsem: held for writing by each operation that changes the content or size of the file, or the names
    /// of the directory.
    pub rwlock: OperationLock<()>,
    /// mapping->invalidate_lock: held for writing while page cache is dropped (truncate, punch), for reading
    /// while it is filled.
    pub invalidate_lock: OrderedRwLock<()>,
    /// i_data_sem and what it protects: the inode as it is logged; `size` in it is i_disksize.
    pub on_disk: OrderedRwLock<Inode>,
    /// i_size: in-memory size in bytes; at least i_disksize outside of truncate.
    pub size: AtomicU64,
    /// i_sync_tid: the last transaction that changed the inode, for fsync. The upper half is 1 if there was
    /// one since the inode was read; otherwise the word is 0.
    pub sync_transaction: AtomicU64,
    /// i_datasync_tid: the last transaction that changed what fdatasync makes durable; a word like
    /// `sync_transaction`.
    pub datasync_transaction: AtomicU64,
    /// The folios.
    pub pages: PageCache,
    /// The extent status tree: which blocks lie where.
    pub extent_status: ExtentStatusTree,
    /// Blocks picked for delayed data. Changed under `on_disk`.
    pub preallocation: Preallocation,
    /// Ioends in flight and completed, and i_disksize.
    pub completion: CompletionQueue,
    /// Errors of writeback (errseq_t).
    pub write_errors: ErrorSequence,
    /// True if mapped by indirect blocks, not by extents; see [`InodeInfo::is_indirect`].
    indirect: OnceLock<bool>,
    /// True if the inode holds its data itself (inline data). Set under `on_disk`.
    pub inline: AtomicBool,
    /// How many files are open on the inode.
    pub open_count: AtomicU32,
    /// True if the inode has no links: it is deleted when the last file is closed. Set under `on_disk`.
    pub unlinked: AtomicBool,
    /// True if the file was truncated to 0 bytes (EXT4_STATE_DA_ALLOC_CLOSE): what is written next is written
    /// back when a file is closed.
    pub replaced_by_truncation: AtomicBool,
    /// True if the inode was deleted: its number may be in use again. Set under `rwlock` and `on_disk`.
    pub freed: AtomicBool,
}

impl InodeInfo {
    /// The inode in memory, as it was read. A cluster has 2^`cluster_bits` blocks; the extents of its extent
    /// status tree are counted in `reclaimable`.
    pub fn new(inode: Inode, cluster_bits: u32, reclaimable: &Arc<Reclaimable>) -> Self {
        let disk_size = inode.size;
        Self {
            number: inode.number,
            rwlock: OperationLock::new(Level::Inode, ()),
            invalidate_lock: OrderedRwLock::new(Level::Mapping, ()),
            size: AtomicU64::new(inode.size),
            sync_transaction: AtomicU64::new(0),
            datasync_transaction: AtomicU64::new(0),
            pages: PageCache::new(),
            extent_status: ExtentStatusTree::of(cluster_bits, reclaimable),
            preallocation: Preallocation::default(),
            completion: CompletionQueue::new(disk_size),
            write_errors: ErrorSequence::new(),
            indirect: OnceLock::new(),
            inline: AtomicBool::new(inode.flags.contains(InodeFlags::INLINE_DATA)),
            open_count: AtomicU32::new(0),
            unlinked: AtomicBool::new(inode.links_count == 0),
            replaced_by_truncation: AtomicBool::new(false),
            freed: AtomicBool::new(false),
            on_disk: OrderedRwLock::new(Level::Data, inode),
        }
    }

    /// i_size in bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Returns true if the flusher, or a sync, has something to do for the inode: dirty folios, times that
    /// are not logged, or a size that the device does not have.
    pub fn needs_writeback(&self) -> bool {
        self.pages.is_dirty() || self.size() > self.completion.disk_size()
    }

    /// Remembers that data of the inode was lost, for its openers and for sync and unmount of the file
    /// system.
    pub fn record_write_error(&self, volume: &Volume, error: &Error) {
        self.write_errors.record(error);
        volume.write_errors.record(self.number, error);
    }

    /// The error that an opener with `cursor` has not been told of; it is told now.
    pub fn take_write_error(&self, volume: &Volume, cursor: &mut u64) -> Result<()> {
        let told = self.write_errors.check_and_advance(cursor);
        if told.is_err() {
            volume.write_errors.note_told(self.number);
        }
        told
    }

    /// Returns true if the file is mapped by indirect blocks: it has neither extents nor inline data. Once
    /// true, that does not change.
    pub async fn is_indirect(&self) -> bool {
        if let Some(indirect) = self.indirect.get() {
            return *indirect;
        }
        let mapping = InodeFlags::EXTENTS | InodeFlags::INLINE_DATA;
        let flags = self.on_disk.read().await.flags & mapping;
        if flags.contains(InodeFlags::INLINE_DATA) {
            return false;
        }
        *self.indirect.get_or_init(|| flags.is_empty())
    }

    /// Returns true if the file is known to be mapped by extents, or to become so.
    pub fn has_extents(&self) -> bool {
        self.indirect.get() == Some(&false)
    }

    /// Returns true if the inode holds its data itself (inline data).
    pub fn is_inline(&self) -> bool {
        self.inline.load(Ordering::Acquire)
    }

    /// Raises i_size to `size` bytes if it is less. The caller holds `rwlock` for writing and the folio lock.
    pub fn raise_size(&self, size: u64) {
        self.size.fetch_max(size, Ordering::SeqCst);
    }

    /// Notes that `transaction` changed the inode; with `datasync`, something that fdatasync makes durable.
    pub fn note_transaction(&self, transaction: TransactionId, datasync: bool) {
        let word = KNOWN | u64::from(transaction.0);
        self.sync_transaction.store(word, Ordering::Release);
        if datasync {
            self.datasync_transaction.store(word, Ordering::Release);
        }
    }

    /// The transaction that fsync (with `datasync`: fdatasync) has to wait for, if there is one.
    pub fn last_transaction(&self, datasync: bool) -> Option<TransactionId> {
        let word = if datasync { &self.datasync_transaction } else { &self.sync_transaction };
        let word = word.load(Ordering::Acquire);
        (word & KNOWN != 0).then_some(TransactionId(word as u32))
    }

    /// Checks that the inode was not deleted while the caller waited for its lock.
    ///
    /// # Errors
    /// `ENOENT` if it was.
    pub fn check_alive(&self) -> Result<()> {
        if self.freed.load(Ordering::Acquire) {
            return Err(Error::posix(Errno::ENOENT, format!("inode {} was deleted", self.number)));
        }
        Ok(())
    }
}

/// Checks that `inode` is a directory that was not removed.
///
/// # Errors
/// - `ENOTDIR` if it is no directory.
/// - `ENOENT` if it was removed.
pub(crate) fn check_directory(inode: &Inode) -> Result<()> {
    if inode.file_type() != Some(FileType::Directory) {
        return Err(Error::posix(Errno::ENOTDIR, format!("inode {}", inode.number)));
    }
    if inode.links_count == 0 {
        return Err(Error::posix(Errno::ENOENT, format!("directory {} was removed", inode.number)));
    }
    Ok(())
}
