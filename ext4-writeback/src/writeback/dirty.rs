//! Dirty accounting: how much is dirty or under writeback, in which inodes, and since when.
//!
//! ```text
//!   dirty folio bytes   0 ──────────── background ───── set point ───────── limit ──────── capacity
//!                         nothing       the flusher      writers are        writers wait
//!                                       writes           slowed down        until it is less
//! ```
//!
//! Invariants:
//! - An inode with dirty folios, or with times that are not logged, is in the queue, which keeps it in memory, or in
//!   the hands of somebody who puts it back.
//! - The queue is in the order of age: who puts back what is still dirty of an old turn gives it a new age.
//!
//! Locks: the mutexes here are leaves.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use ext4_core::device::memory::{MAX_FOLIO_SIZE, PAGE_SIZE};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::base::options::MountOptions;
use crate::cache::folio_lists::FolioLists;
use crate::inode::InodeInfo;

#[derive(Debug, Default)]
pub(crate) struct Completed {
    pub(crate) queue: VecDeque<Arc<InodeInfo>>,
    pub(crate) worker: bool,
}

/// Inodes with ioends whose I/O has ended.
#[derive(Debug, Default)]
pub(crate) struct CompletedInodes {
    pub(crate) completed: Mutex<Completed>,
    pub(crate) ios: AtomicUsize,
}

impl CompletedInodes {
    /// An ioend goes to the device.
    pub fn io_started(&self) {
        self.ios.fetch_add(1, Ordering::AcqRel);
    }
}

/// The most and the least that the flusher writes of one inode before the next inode's turn, in bytes: the least is as
/// much as a long allocation, so that taking turns does not break files into pieces.
const LEAST_TURN: u64 = 8 << 20;

const LONGEST_TURN: u64 = 64 << 20;

/// Where the background limit lies by itself, but for where the other one is low: two and four of the longest allocations, in
/// bytes. No more than it takes to keep a device busy: a stream that will be synced loses what it is written later.
const EARLIEST_BACKGROUND: usize = 16 << 20;

const LATEST_BACKGROUND: usize = 32 << 20;

#[derive(Debug)]
struct DirtyInode {
    inode: Arc<InodeInfo>,
    since: Duration,
}

#[derive(Debug, Default)]
struct Unfinished {
    next: u64,
    ids: BTreeSet<u64>,
}

/// When dirty data is written back: fixed at the mount.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Bytes of the folio pool.
    pub(crate) capacity: usize,
    /// The flusher writes if more bytes than this are dirty or under writeback.
    pub(crate) background: usize,
    /// No writer makes more dirty while so many bytes are.
    pub(crate) limit: usize,
    /// How often the flusher looks for old data.
    pub(crate) period: Duration,
    /// How old dirty data gets.
    pub(crate) expiry: Duration,
    /// True if there is no flusher: writers write back inline.
    pub(crate) deterministic: bool,
}

/// How much is dirty, in bytes of folios.
#[derive(Debug, Default)]
pub(crate) struct Amount {
    /// Folios with dirty blocks.
    dirty: AtomicUsize,
    under_writeback: AtomicUsize,
    /// Folios that have become clean since the mount.
    cleaned: AtomicU64,
    /// Writers that wait in [`crate::writeback::flusher::throttle::throttle`].
    pub(crate) throttled: AtomicUsize,
}

/// The inodes that the flusher has to look at.
#[derive(Debug, Default)]
struct DirtyInodes {
    /// In the order of age.
    queue: Mutex<VecDeque<DirtyInode>>,
    /// Inodes that are not to wait until they are old.
    urgent: Mutex<Vec<Arc<InodeInfo>>>,
}

/// What the flusher is asked for, and whether it runs.
#[derive(Debug, Default)]
pub(crate) struct FlusherState {
    pub(crate) wake: Arc<Notify>,
    /// True if the flusher was asked to run and has not begun to.
    pub(crate) kicked: AtomicBool,
    /// True if the flusher is asked to write all that is dirty.
    pub(crate) everything: AtomicBool,
    pub(crate) stopping: AtomicBool,
    pub(crate) running: AtomicBool,
}

/// What one mounted file system has to write back, and its folios (the kernel's bdi_writeback).
#[derive(Debug)]
pub(crate) struct Dirty {
    pub(crate) limits: Limits,
    pub(crate) amount: Amount,
    inodes: DirtyInodes,
    pub(crate) flusher: FlusherState,
    pub(crate) folios: FolioLists,
    /// A folio became clean, an ioend was finished, the flusher ended.
    pub(crate) progress: Notify,
    /// Ioends that are not finished.
    ioends: Mutex<Unfinished>,
    /// Inodes with ioends whose I/O has ended.
    pub(crate) completed: CompletedInodes,
}

impl Drop for Dirty {
    fn drop(&mut self) {
        // The flusher sleeps with a weak reference; let it see that there is nothing left.
        self.flusher.wake.notify_one();
    }
}

impl Dirty {
    /// `data_capacity`: the bytes of the folio pool.
    pub fn new(options: &MountOptions, data_capacity: usize) -> Self {
        // An eighth always stays for clean folios: a write into a part of a block reads it first.
        let limit = options.dirty_bytes.unwrap_or(data_capacity / 2).min(data_capacity / 8 * 7);
        // Early: a stream that will be synced goes to the device while it is still being written. But not so early that what
        // is allocated together is cut into pieces.
        let early = (limit / 8).clamp(EARLIEST_BACKGROUND, LATEST_BACKGROUND).min(limit / 2);
        let background = options.dirty_background_bytes.unwrap_or(early);
        // As in the kernel: one that is not below the other is half of it.
        let background = if background < limit { background } else { limit / 2 };
        Self {
            limits: Limits {
                capacity: data_capacity,
                background,
                limit,
                period: options.writeback_interval,
                expiry: options.dirty_expiry,
                deterministic: options.commit_interval.is_none(),
            },
            amount: Amount::default(),
            inodes: DirtyInodes::default(),
            flusher: FlusherState::default(),
            folios: FolioLists::new(data_capacity),
            progress: Notify::new(),
            ioends: Mutex::default(),
            completed: CompletedInodes::default(),
        }
    }

    /// Bytes of the folio pool.
    pub fn capacity(&self) -> usize {
        self.limits.capacity
    }

    /// True where nothing runs on its own.
    pub fn is_deterministic(&self) -> bool {
        self.limits.deterministic
    }

    /// The largest folio that this much memory allows: sixteen of them fit.
    pub fn folio_limit(&self) -> usize {
        let share = (self.limits.capacity / 16).max(1);
        (1 << share.ilog2()).clamp(PAGE_SIZE, MAX_FOLIO_SIZE)
    }

    /// Bytes of folios that are dirty or under writeback.
    pub fn dirty_bytes(&self) -> usize {
        self.not_started() + self.amount.under_writeback.load(Ordering::Relaxed)
    }

    /// Bytes of folios that are dirty and not under writeback.
    pub(crate) fn not_started(&self) -> usize {
        self.amount.dirty.load(Ordering::Relaxed)
    }

    /// Bytes of folios that have become clean since the mount.
    pub(crate) fn cleaned(&self) -> u64 {
        self.amount.cleaned.load(Ordering::Relaxed)
    }

    /// How many bytes the flusher writes of one inode at a turn.
    pub(crate) fn turn(&self) -> u64 {
        (self.limits.limit as u64 / 8).clamp(LEAST_TURN, LONGEST_TURN)
    }

    /// A folio of `inode` with `len` bytes became dirty.
    pub fn note_dirty(&self, now: Duration, inode: &Arc<InodeInfo>, len: usize) {
        self.amount.dirty.fetch_add(len, Ordering::Relaxed);
        inode.pages.dirtied.owe(len);
        self.enqueue(now, inode);
    }

    /// The flusher has to see to `inode`.
    pub fn enqueue(&self, now: Duration, inode: &Arc<InodeInfo>) {
        if inode.pages.dirtied.enter_queue() {
            self.inodes.queue.lock().push_back(DirtyInode { inode: Arc::clone(inode), since: now });
        }
    }

    /// The flusher has to see to `inode` now: its size on the device waits for its data.
    pub fn expedite(&self, inode: &Arc<InodeInfo>) {
        if self.limits.deterministic {
            return;
        }
        {
            let mut urgent = self.inodes.urgent.lock();
            if urgent.iter().any(|known| Arc::ptr_eq(known, inode)) {
                return;
            }
            urgent.push(Arc::clone(inode));
        }
        self.kick();
    }

    /// A folio with `len` bytes has no dirty blocks any more.
    pub fn note_clean(&self, len: usize) {
        self.amount.dirty.fetch_sub(len, Ordering::Relaxed);
        self.amount.cleaned.fetch_add(len as u64, Ordering::Relaxed);
        self.progress.notify_waiters();
    }

    /// A dirty folio's writeback began.
    pub fn note_writeback(&self, len: usize) {
        self.amount.under_writeback.fetch_add(len, Ordering::Relaxed);
        self.amount.dirty.fetch_sub(len, Ordering::Relaxed);
    }

    /// A folio's writeback ended.
    pub fn end_writeback(&self, len: usize) {
        self.amount.under_writeback.fetch_sub(len, Ordering::Relaxed);
        self.amount.cleaned.fetch_add(len as u64, Ordering::Relaxed);
        self.progress.notify_waiters();
    }

    /// Wakes all tasks that wait for progress: they look again.
    pub fn note_progress(&self) {
        self.progress.notify_waiters();
    }

    /// An ioend is being built: its number.
    pub fn start_ioend(&self) -> u64 {
        let mut unfinished = self.ioends.lock();
        let id = unfinished.next;
        unfinished.next += 1;
        unfinished.ids.insert(id);
        id
    }

    /// An ioend was finished.
    pub fn finish_ioend(&self, id: u64) {
        self.ioends.lock().ids.remove(&id);
        self.progress.notify_waiters();
    }

    /// The number the next ioend will have.
    pub fn next_ioend(&self) -> u64 {
        self.ioends.lock().next
    }

    /// True where every ioend with a number below `id` is finished.
    pub(crate) fn is_finished_below(&self, id: u64) -> bool {
        self.ioends.lock().ids.first().is_none_or(|first| *first >= id)
    }

    /// Asks the flusher to run. True where it had not been asked.
    pub fn kick(&self) -> bool {
        let first = !self.limits.deterministic && !self.flusher.kicked.swap(true, Ordering::AcqRel);
        if first {
            self.flusher.wake.notify_one();
        }
        first
    }

    /// Asks the flusher to write all that is dirty now: space is short, and delayed data may need less of it than was
    /// promised.
    pub fn kick_everything(&self) {
        self.flusher.everything.store(true, Ordering::Release);
        self.kick();
    }

    /// The oldest inode of the queue; `before`: if it has been there since then.
    pub(crate) fn take_dirty_inode(&self, before: Option<Duration>) -> Option<Arc<InodeInfo>> {
        let mut queue = self.inodes.queue.lock();
        if let (Some(before), Some(first)) = (before, queue.front())
            && first.since > before
        {
            return None;
        }
        let dirty = queue.pop_front()?;
        dirty.inode.pages.dirtied.leave_queue();
        Some(dirty.inode)
    }

    /// The inodes that are not to wait. They may be in the queue as well.
    pub(crate) fn take_urgent(&self) -> Vec<Arc<InodeInfo>> {
        std::mem::take(&mut *self.inodes.urgent.lock())
    }

    pub(crate) fn queued_inodes(&self) -> usize {
        self.inodes.queue.lock().len()
    }
}
