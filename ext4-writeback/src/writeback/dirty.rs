//! Dirty accounting: how much is dirty or under writeback, in which inodes, and since when (kernel:
//! `bdi_writeback`).
//!
//! ```text
//!   dirty folio bytes   0 ──────────── background ───── set point ───────── limit ──────── capacity
//!                         nothing       the flusher      writers are        writers wait
//!                                       writes           slowed down        until it is less
//! ```
//!
//! Invariants:
//! - An inode with dirty folios, or with times that are not logged, is in the queue, which keeps it in
//!   memory, or was taken out by a task that puts it back.
//! - The queue is in the order of age: an inode that is put back after its turn, still dirty, gets a new age.
//!
//! Locks: the mutexes in this file are leaves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use ext4_core::InodeNumber;
use ext4_core::device::memory::{MAX_FOLIO_SIZE, PAGE_SIZE};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::base::options::MountOptions;
use crate::cache::folio_lists::FolioLists;
use crate::inode::InodeInfo;

/// The completion workers' queue.
#[derive(Debug, Default)]
pub(crate) struct Completed {
    pub(crate) queue: VecDeque<Arc<InodeInfo>>,
    /// True if a worker runs.
    pub(crate) worker: bool,
}

/// Inodes with ioends whose I/O has ended, and how many ioends are on the device.
#[derive(Debug, Default)]
pub(crate) struct CompletedInodes {
    pub(crate) completed: Mutex<Completed>,
    pub(crate) ios: AtomicUsize,
}

impl CompletedInodes {
    /// An ioend is about to be submitted.
    pub fn io_started(&self) {
        self.ios.fetch_add(1, Ordering::AcqRel);
    }
}

/// The least that the flusher writes of one inode before the next inode's turn, in bytes: as much as a long
/// allocation, so that taking turns does not fragment files.
const LEAST_TURN: u64 = 8 << 20;

/// The most that the flusher writes of one inode before the next inode's turn, in bytes.
const LONGEST_TURN: u64 = 64 << 20;

/// The lowest background limit by default (if the dirty limit is not low), in bytes: two of the longest
/// allocations. Not more than keeps a device busy: a stream that will be synced loses the time by which its
/// writeback begins later.
const EARLIEST_BACKGROUND: usize = 16 << 20;

/// The highest background limit by default, in bytes: four of the longest allocations.
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

/// Limits that decide when dirty data is written back: fixed at the mount.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Bytes of the folio pool.
    pub(crate) capacity: usize,
    /// Background limit: the flusher writes if more bytes than this are dirty or under writeback.
    pub(crate) background: usize,
    /// Dirty limit: writers wait while more bytes than this are dirty or under writeback.
    pub(crate) limit: usize,
    /// How often the flusher looks for old data (dirty_writeback_interval).
    pub(crate) period: Duration,
    /// How old dirty data gets before the flusher writes it (dirty_expire_interval).
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
    /// Bytes of folios that have become clean since the mount.
    cleaned: AtomicU64,
    /// Writers that wait in [`crate::writeback::flusher::throttle::throttle`].
    pub(crate) throttled: AtomicUsize,
}

/// The inodes that the flusher has to look at.
#[derive(Debug, Default)]
struct DirtyInodes {
    /// All dirty inodes, in the order of age.
    queue: Mutex<VecDeque<DirtyInode>>,
    /// Inodes that the flusher writes at its next run, whatever their age.
    urgent: Mutex<Vec<Arc<InodeInfo>>>,
    /// Inodes that were taken out of the queue and not put back: in how many hands each is. A mutex below
    /// that of the queue.
    in_hand: Mutex<BTreeMap<InodeNumber, (Arc<InodeInfo>, usize)>>,
}

/// A dirty inode in the hands of the flusher or of a sync. Until this is dropped, a sync of everything finds
/// it.
#[derive(Debug)]
pub(crate) struct InHand<'a> {
    dirty: &'a Dirty,
    inode: Arc<InodeInfo>,
}

impl std::ops::Deref for InHand<'_> {
    type Target = Arc<InodeInfo>;

    fn deref(&self) -> &Arc<InodeInfo> {
        &self.inode
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        let mut in_hand = self.dirty.inodes.in_hand.lock();
        if let Some((_, hands)) = in_hand.get_mut(&self.inode.number) {
            *hands -= 1;
            if *hands == 0 {
                in_hand.remove(&self.inode.number);
            }
        }
    }
}

/// The flusher's state: what it is asked for, and whether it runs.
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

/// What one mounted file system has to write back, and its folios (the kernel's `bdi_writeback`).
#[derive(Debug)]
pub(crate) struct Dirty {
    pub(crate) limits: Limits,
    pub(crate) amount: Amount,
    inodes: DirtyInodes,
    pub(crate) flusher: FlusherState,
    pub(crate) folios: FolioLists,
    /// Notified if a folio became clean, an ioend was finished or the flusher ended.
    pub(crate) progress: Notify,
    /// Ioends that are not finished.
    ioends: Mutex<Unfinished>,
    /// Inodes with ioends whose I/O has ended.
    pub(crate) completed: CompletedInodes,
}

impl Drop for Dirty {
    fn drop(&mut self) {
        // The flusher sleeps with a weak reference; it wakes, finds nothing left, and ends.
        self.flusher.wake.notify_one();
    }
}

impl Dirty {
    /// Nothing dirty. `data_capacity`: the bytes of the folio pool.
    pub fn new(options: &MountOptions, data_capacity: usize) -> Self {
        // An eighth always stays for clean folios: a write into a part of a block reads it first.
        let limit = options.dirty_bytes.unwrap_or(data_capacity / 2).min(data_capacity / 8 * 7);
        // Early: a stream that will be synced goes to the device while it is still being written. But not so
        // early that long allocations are cut into pieces.
        let early = (limit / 8).clamp(EARLIEST_BACKGROUND, LATEST_BACKGROUND).min(limit / 2);
        let background = options.dirty_background_bytes.unwrap_or(early);
        // As in the kernel: a background limit that is not below the dirty limit becomes half of it.
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

    /// Returns true if no background task runs: the order of all writes depends on the calls alone.
    pub fn is_deterministic(&self) -> bool {
        self.limits.deterministic
    }

    /// The largest folio in bytes that the pool allows: sixteen of them fit.
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

    /// How many bytes the flusher writes of one inode in one turn.
    pub(crate) fn turn(&self) -> u64 {
        (self.limits.limit as u64 / 8).clamp(LEAST_TURN, LONGEST_TURN)
    }

    /// A folio of `inode` with `len` bytes became dirty.
    pub fn note_dirty(&self, now: Duration, inode: &Arc<InodeInfo>, len: usize) {
        self.amount.dirty.fetch_add(len, Ordering::Relaxed);
        inode.pages.dirtied.owe(len);
        self.enqueue(now, inode);
    }

    /// Puts `inode` into the queue of dirty inodes, if it is not in it.
    pub fn enqueue(&self, now: Duration, inode: &Arc<InodeInfo>) {
        if inode.pages.dirtied.enter_queue() {
            self.inodes.queue.lock().push_back(DirtyInode { inode: Arc::clone(inode), since: now });
        }
    }

    /// Has the flusher write `inode` now: its i_disksize waits for its data.
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

    /// A folio of `len` bytes became clean without writeback.
    pub fn note_clean(&self, len: usize) {
        self.amount.dirty.fetch_sub(len, Ordering::Relaxed);
        self.amount.cleaned.fetch_add(len as u64, Ordering::Relaxed);
        self.progress.notify_waiters();
    }

    /// The writeback of a dirty folio of `len` bytes began.
    pub fn note_writeback(&self, len: usize) {
        self.amount.under_writeback.fetch_add(len, Ordering::Relaxed);
        self.amount.dirty.fetch_sub(len, Ordering::Relaxed);
    }

    /// The writeback of a folio of `len` bytes ended.
    pub fn end_writeback(&self, len: usize) {
        self.amount.under_writeback.fetch_sub(len, Ordering::Relaxed);
        self.amount.cleaned.fetch_add(len as u64, Ordering::Relaxed);
        self.progress.notify_waiters();
    }

    /// Wakes all tasks that wait for progress.
    pub fn note_progress(&self) {
        self.progress.notify_waiters();
    }

    /// Registers an ioend that is being built; returns its number.
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

    /// The number that the next ioend will have.
    pub fn next_ioend(&self) -> u64 {
        self.ioends.lock().next
    }

    /// Returns true if every ioend with a number below `id` is finished.
    pub(crate) fn is_finished_below(&self, id: u64) -> bool {
        self.ioends.lock().ids.first().is_none_or(|first| *first >= id)
    }

    /// Asks the flusher to run. Returns true if it had not been asked already.
    pub fn kick(&self) -> bool {
        let first = !self.limits.deterministic && !self.flusher.kicked.swap(true, Ordering::AcqRel);
        if first {
            self.flusher.wake.notify_one();
        }
        first
    }

    /// Asks the flusher to write all data that is dirty now: space is short, and delayed data may need less
    /// of it than is reserved.
    pub fn kick_everything(&self) {
        self.flusher.everything.store(true, Ordering::Release);
        self.kick();
    }

    fn hand_out(&self, inode: Arc<InodeInfo>) -> InHand<'_> {
        let mut in_hand = self.inodes.in_hand.lock();
        in_hand.entry(inode.number).or_insert_with(|| (Arc::clone(&inode), 0)).1 += 1;
        drop(in_hand);
        InHand { dirty: self, inode }
    }

    /// All inodes that are dirty now: the whole queue, which is empty then, and those in the hands of the
    /// flusher and of other syncs. Were those left out, a sync would return while their data is on its way.
    pub(crate) fn take_all_dirty_inodes(&self) -> Vec<InHand<'_>> {
        let mut queue = self.inodes.queue.lock();
        let others: Vec<_> =
            self.inodes.in_hand.lock().values().map(|(inode, _)| Arc::clone(inode)).collect();
        let mut all = Vec::with_capacity(queue.len() + others.len());
        for dirty in queue.drain(..) {
            dirty.inode.pages.dirtied.leave_queue();
            all.push(self.hand_out(dirty.inode));
        }
        all.extend(others.into_iter().map(|inode| self.hand_out(inode)));
        all
    }

    /// The oldest inode of the queue; `before`: if it has been there since then.
    pub(crate) fn take_dirty_inode(&self, before: Option<Duration>) -> Option<InHand<'_>> {
        let mut queue = self.inodes.queue.lock();
        if let (Some(before), Some(first)) = (before, queue.front())
            && first.since > before
        {
            return None;
        }
        let dirty = queue.pop_front()?;
        dirty.inode.pages.dirtied.leave_queue();
        // Under the queue's mutex: at no moment is the inode neither here nor there.
        Some(self.hand_out(dirty.inode))
    }

    /// Takes the inodes that are not to wait until they are old. They may be in the queue too.
    pub(crate) fn take_urgent(&self) -> Vec<InHand<'_>> {
        let urgent = std::mem::take(&mut *self.inodes.urgent.lock());
        urgent.into_iter().map(|inode| self.hand_out(inode)).collect()
    }

    /// How many inodes are in the queue.
    pub(crate) fn queued_inodes(&self) -> usize {
        self.inodes.queue.lock().len()
    }
}
