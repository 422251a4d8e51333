//! An inode in memory: its locks, the copy of what is on the device, its page cache (the kernel's `inode` and
//! `ext4_inode_info`).
//!
//! Locks, outermost first: `rwlock` (i_rwsem) → `invalidate_lock` → folio lock → journal handle → `inode`
//! (i_data_sem) → group and buffer locks. Whoever holds a handle never asks for a folio lock and never waits for
//! writeback or data I/O. The `rwlock`s of several inodes are taken a directory before what is in it; two directories
//! of which neither holds the other only by rename, under its mutex (see [`crate::namespace`]). At most one `inode`
//! lock is held at a time, but for that of an inode that is being made and that nobody has found yet.
//!
//! Invariant: whoever changed `inode` logs it before giving its lock back, so an inode that nobody holds can be
//! dropped from memory and read again. Times changed by a write are the exception: `pages.times` says so then, and
//! the flusher's queue holds the inode until they are logged.

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

/// Marks a word of [`InodeInfo::sync_transaction`] that holds a transaction id.
const KNOWN: u64 = 1 << 32;

/// See the module.
#[derive(Debug)]
pub(crate) struct InodeInfo {
    /// Its number.
    pub number: InodeNumber,
    /// i_rwsem: held for writing by every change of the file's content or size, and of a directory's names.
    pub rwlock: OperationLock<()>,
    /// Held for writing while page cache is dropped (truncate, punch), for reading by those who fill it.
    pub invalidate_lock: OrderedRwLock<()>,
    /// i_data_sem and what it protects: the inode as it is logged; `size` in it is i_disksize.
    pub inode: OrderedRwLock<Inode>,
    /// i_size: in-memory size in bytes; at least i_disksize outside of truncate.
    pub size: AtomicU64,
    /// The last transaction that changed the inode at all (fsync), and one that changed what fdatasync needs.
    /// The upper half is 1 where there was one since the inode was read.
    pub sync_transaction: AtomicU64,
    /// See `sync_transaction`.
    pub datasync_transaction: AtomicU64,
    /// The folios.
    pub pages: PageCache,
    /// What lies where.
    pub extent_status: ExtentStatusTree,
    /// Blocks picked for delayed data. Changed under `inode`.
    pub preallocation: Preallocation,
    /// I/O in flight and completed, and the size on the device.
    pub completion: CompletionQueue,
    /// Failed writebacks.
    pub write_errors: ErrorSequence,
    /// Mapped by indirect blocks, not by extents; see [`InodeInfo::is_indirect`].
    indirect: OnceLock<bool>,
    /// It holds its data itself; see [`crate::io::inline_data`]. Set under `inode`.
    pub inline: AtomicBool,
    /// How many [`crate::file::File`]s are open.
    pub open_count: AtomicU32,
    /// It has no links: it goes when the last file is closed. Set under `inode`.
    pub unlinked: AtomicBool,
    /// It was cut to nothing: what is written next is sent to the device when a file is closed.
    pub replaced_by_truncation: AtomicBool,
    /// The inode was deleted: its number may be another's by now. Set under `rwlock` and `inode`.
    pub freed: AtomicBool,
}

impl InodeInfo {
    /// The inode in memory, as it was read; clusters have 2^`cluster_bits` blocks, and its extents are counted in
    /// `reclaimable`.
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
            inode: OrderedRwLock::new(Level::Data, inode),
        }
    }

    /// i_size in bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// True for a file that is mapped by indirect blocks, neither by extents nor holding its data itself. That does not
    /// change once it is so.
    pub async fn is_indirect(&self) -> bool {
        if let Some(indirect) = self.indirect.get() {
            return *indirect;
        }
        let mapping = InodeFlags::EXTENTS | InodeFlags::INLINE_DATA;
        let flags = self.inode.read().await.flags & mapping;
        if flags.contains(InodeFlags::INLINE_DATA) {
            return false;
        }
        *self.indirect.get_or_init(|| flags.is_empty())
    }

    /// True for a file that is known to be mapped by extents, or to become so.
    pub fn has_extents(&self) -> bool {
        self.indirect.get() == Some(&false)
    }

    /// True for a file that holds its data itself.
    pub fn is_inline(&self) -> bool {
        self.inline.load(Ordering::Acquire)
    }

    /// i_size is at least `size` bytes. The caller holds `rwlock` for writing and the folio's lock.
    pub fn raise_size(&self, size: u64) {
        self.size.fetch_max(size, Ordering::SeqCst);
    }

    /// Remembers that `transaction` changed the inode; `datasync`: something that fdatasync must make durable.
    pub fn note_transaction(&self, transaction: TransactionId, datasync: bool) {
        let word = KNOWN | u64::from(transaction.0);
        self.sync_transaction.store(word, Ordering::Release);
        if datasync {
            self.datasync_transaction.store(word, Ordering::Release);
        }
    }

    /// The transaction that fsync (fdatasync: `datasync`) has to wait for, where there is one.
    pub fn last_transaction(&self, datasync: bool) -> Option<TransactionId> {
        let word = if datasync { &self.datasync_transaction } else { &self.sync_transaction };
        let word = word.load(Ordering::Acquire);
        (word & KNOWN != 0).then_some(TransactionId(word as u32))
    }

    /// Fails where the inode was deleted while the caller waited for its lock.
    pub fn check_alive(&self) -> Result<()> {
        if self.freed.load(Ordering::Acquire) {
            return Err(Error::posix(Errno::ENOENT, format!("inode {} was deleted", self.number)));
        }
        Ok(())
    }
}

/// `ENOTDIR` where `inode` is no directory, `ENOENT` where it was removed.
pub(crate) fn check_directory(inode: &Inode) -> Result<()> {
    if inode.file_type() != Some(FileType::Directory) {
        return Err(Error::posix(Errno::ENOTDIR, format!("inode {}", inode.number)));
    }
    if inode.links_count == 0 {
        return Err(Error::posix(Errno::ENOENT, format!("directory {} was removed", inode.number)));
    }
    Ok(())
}
