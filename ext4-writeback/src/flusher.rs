//! Dirty accounting, memory for folios, and the flusher: who decides when data is written back.
//!
//! ```text
//!   dirty folio bytes   0 ─────────── background ─────────── limit ─────── capacity
//!                         nothing     the flusher writes     writers wait  (clean folios are given up)
//! ```
//!
//! Invariants:
//! - Dirty folios and those under writeback take at most `limit` bytes and one folio per writer, so reclaim always finds
//!   clean ones in the end and a reader never waits for ever.
//! - An inode with dirty folios, or with times that are not logged, is in the queue, which keeps it in memory.
//! - Throttling and waiting for memory happen with no folio lock and no handle held: writeback needs both.
//! - Without a commit interval there is no flusher: nothing is written unless somebody asks or memory is short, and
//!   then the writer itself writes everything and waits for it. So the order of allocations, and the image, depends on
//!   the calls alone.
//!
//! Locks: the mutexes here are leaves.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ext4_core::device::PoolMemory;
use ext4_core::device::memory::MAX_FOLIO_SIZE;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::completion::{self, CompletedInodes};
use crate::counters::LiveCounters;
use crate::filesystem::FilesystemInner;
use crate::folio::Folio;
use crate::inode_info::InodeInfo;
use crate::ioend::Gather;
use crate::lazytime;
use crate::lock_order::{Scoped, assert_no_handle};
use crate::page_cache::AddressSpace;
use crate::writeback;
use crate::writepages::{WritebackControl as Pass, writepages};
use crate::{MountOptions, Result};

/// How often the flusher looks for old data (the kernel's dirty_writeback_centisecs).
const PERIOD: Duration = Duration::from_secs(5);
/// How old dirty data gets (dirty_expire_centisecs).
const EXPIRY: Duration = Duration::from_secs(30);
/// How many bytes of one inode the flusher writes before the next inode's turn.
const FAIR_SHARE: u64 = 64 << 20;

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

#[derive(Debug)]
struct ClockEntry {
    space: Weak<AddressSpace>,
    folio: Weak<Folio>,
}

/// Dirty accounting and the flusher's state of one mounted file system.
#[derive(Debug)]
pub(crate) struct WritebackControl {
    capacity: usize,
    background: usize,
    limit: usize,
    /// No flusher: writers write back inline.
    deterministic: bool,
    /// Bytes of folios with dirty blocks, and of folios under writeback.
    dirty: AtomicUsize,
    under_writeback: AtomicUsize,
    queue: Mutex<VecDeque<DirtyInode>>,
    clock: Mutex<VecDeque<ClockEntry>>,
    /// Wakes the flusher.
    wake: Arc<Notify>,
    kicked: AtomicBool,
    stopping: AtomicBool,
    running: AtomicBool,
    /// A folio became clean, an ioend was finished, the flusher ended.
    progress: Notify,
    /// Ioends that are not finished.
    ioends: Mutex<Unfinished>,
    /// Inodes with ioends whose I/O has ended.
    pub(crate) completed: CompletedInodes,
    /// What happened.
    pub(crate) counters: LiveCounters,
}

impl Drop for WritebackControl {
    fn drop(&mut self) {
        // The flusher sleeps with a weak reference; let it see that there is nothing left.
        self.wake.notify_one();
    }
}

impl WritebackControl {
    /// `data_capacity`: the bytes of the folio pool.
    pub fn new(options: &MountOptions, data_capacity: usize) -> Self {
        Self {
            capacity: data_capacity,
            background: data_capacity / 4,
            limit: data_capacity / 2,
            deterministic: options.commit_interval.is_none(),
            dirty: AtomicUsize::new(0),
            under_writeback: AtomicUsize::new(0),
            queue: Mutex::default(),
            clock: Mutex::default(),
            wake: Arc::new(Notify::new()),
            kicked: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            running: AtomicBool::new(false),
            progress: Notify::new(),
            ioends: Mutex::default(),
            completed: CompletedInodes::default(),
            counters: LiveCounters::default(),
        }
    }

    /// Bytes of the folio pool.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// True where nothing runs on its own.
    pub fn is_deterministic(&self) -> bool {
        self.deterministic
    }

    /// The largest folio that this much memory allows: sixteen of them fit.
    pub fn folio_limit(&self) -> usize {
        let share = (self.capacity / 16).max(1);
        (1 << share.ilog2()).clamp(ext4_core::device::memory::PAGE_SIZE, MAX_FOLIO_SIZE)
    }

    /// Bytes of folios that are dirty or under writeback.
    pub fn dirty_bytes(&self) -> usize {
        self.dirty.load(Ordering::Relaxed) + self.under_writeback.load(Ordering::Relaxed)
    }

    /// A folio of `inode` with `len` bytes became dirty.
    pub fn note_dirty(&self, fs: &FilesystemInner, inode: &Arc<InodeInfo>, len: usize) {
        self.dirty.fetch_add(len, Ordering::Relaxed);
        self.enqueue(fs, inode);
    }

    /// The flusher has to see to `inode`.
    pub fn enqueue(&self, fs: &FilesystemInner, inode: &Arc<InodeInfo>) {
        if !inode.pages.queued.swap(true, Ordering::AcqRel) {
            let since = fs.runtime.monotonic();
            self.queue.lock().push_back(DirtyInode { inode: Arc::clone(inode), since });
        }
    }

    /// A folio with `len` bytes has no dirty blocks any more.
    pub fn note_clean(&self, len: usize) {
        self.dirty.fetch_sub(len, Ordering::Relaxed);
        self.progress.notify_waiters();
    }

    /// A dirty folio's writeback began.
    pub fn note_writeback(&self, len: usize) {
        self.under_writeback.fetch_add(len, Ordering::Relaxed);
        self.dirty.fetch_sub(len, Ordering::Relaxed);
    }

    /// A folio's writeback ended.
    pub fn end_writeback(&self, len: usize) {
        self.under_writeback.fetch_sub(len, Ordering::Relaxed);
        self.progress.notify_waiters();
    }

    /// Nothing is written any more: whoever waits for progress looks again.
    pub fn wake_everybody(&self) {
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

    /// Puts a folio under the clock.
    pub fn add_folio(&self, space: Weak<AddressSpace>, folio: &Arc<Folio>) {
        let mut clock = self.clock.lock();
        clock.push_back(ClockEntry { space, folio: Arc::downgrade(folio) });
        // Folios of deleted files leave dead entries behind; two sweeps of the front per addition outpace them.
        for _ in 0..2 {
            let Some(entry) = clock.pop_front() else { break };
            if entry.folio.strong_count() > 0 {
                clock.push_front(entry);
                break;
            }
        }
    }

    /// Gives up clean folios that were not used lately, until `want` bytes are free; returns how many were.
    pub fn reclaim(&self, want: usize) -> usize {
        let mut freed = 0;
        let mut budget = 2 * self.clock.lock().len();
        while freed < want && budget > 0 {
            budget -= 1;
            let Some(entry) = self.clock.lock().pop_front() else { break };
            let (Some(space), Some(folio)) = (entry.space.upgrade(), entry.folio.upgrade()) else { continue };
            if folio.is_removed() {
                continue;
            }
            let busy = folio.take_referenced() || folio.is_dirty() || folio.is_under_writeback();
            if !busy
                && let Some(guard) = folio.try_lock()
                && !guard.is_dirty()
                && !guard.is_under_writeback()
            {
                freed += guard.len();
                space.remove(&guard);
                LiveCounters::add(&self.counters.reclaimed_folios, 1);
                continue;
            }
            self.clock.lock().push_back(entry);
        }
        freed
    }

    /// Asks the flusher to run.
    pub fn kick(&self) {
        if !self.deterministic && !self.kicked.swap(true, Ordering::AcqRel) {
            self.wake.notify_one();
        }
    }

    fn take_dirty_inode(&self, before: Option<Duration>) -> Option<Arc<InodeInfo>> {
        let mut queue = self.queue.lock();
        if let (Some(before), Some(first)) = (before, queue.front())
            && first.since > before
        {
            return None;
        }
        let dirty = queue.pop_front()?;
        dirty.inode.pages.queued.store(false, Ordering::Release);
        Some(dirty.inode)
    }

    fn queued_inodes(&self) -> usize {
        self.queue.lock().len()
    }
}

/// Waits where too much is dirty. Nothing may be locked but `rwlock`.
pub(crate) async fn throttle(fs: &Arc<FilesystemInner>) {
    let control = &fs.writeback;
    if control.dirty_bytes() <= control.background {
        return;
    }
    if control.deterministic {
        // Nobody else does it. Errors are recorded in the inodes.
        let fs = Arc::clone(fs);
        let runtime = Arc::clone(&fs.runtime);
        let _ = crate::runtime::run_to_end(&runtime, async move { sync_all_data(&fs).await }).await;
        return;
    }
    control.kick();
    if control.dirty_bytes() <= control.limit {
        return;
    }
    assert_no_handle("throttling");
    LiveCounters::add(&control.counters.stalls, 1);
    loop {
        let notified = control.progress.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        // After an error that stopped all writing it will not become less.
        if control.dirty_bytes() <= control.limit || fs.check_writable().is_err() {
            return;
        }
        control.kick();
        notified.await;
    }
}

/// Memory for a folio: `len` bytes, or less where memory is short, down to `least`. Waits where all of it is in use.
/// No folio lock may be held.
pub(crate) async fn allocate_memory(
    fs: &Arc<FilesystemInner>,
    len: usize,
    least: usize,
) -> Result<Arc<PoolMemory>> {
    assert_no_handle("waiting for folio memory");
    let control = &fs.writeback;
    loop {
        let notified = control.progress.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if let Some(memory) = try_allocate_memory(fs, len, least)? {
            return Ok(memory);
        }
        LiveCounters::add(&control.counters.stalls, 1);
        if control.deterministic {
            let operation = {
                let fs = Arc::clone(fs);
                async move { sync_all_data(&fs).await }
            };
            let _ = crate::runtime::run_to_end(&fs.runtime, operation).await;
            tokio::task::yield_now().await;
            continue;
        }
        control.kick();
        // What is not dirty is locked or read right now, which ends without a word to us.
        tokio::select! {
            biased;
            () = notified => {}
            () = fs.runtime.sleep(Duration::from_millis(1)) => {}
        }
    }
}

/// As [`allocate_memory`], `None` instead of waiting.
pub(crate) fn try_allocate_memory(
    fs: &Arc<FilesystemInner>,
    len: usize,
    least: usize,
) -> Result<Option<Arc<PoolMemory>>> {
    if let Some(memory) = fs.pool.allocate(len)? {
        return Ok(Some(Arc::new(memory)));
    }
    fs.writeback.reclaim(2 * len);
    let mut size = len;
    loop {
        if let Some(memory) = fs.pool.allocate(size)? {
            return Ok(Some(Arc::new(memory)));
        }
        if size <= least {
            return Ok(None);
        }
        size /= 2;
    }
}

/// Starts the flusher (where the options ask for one). After everything else of a mount.
pub(crate) fn start(fs: &Arc<FilesystemInner>) {
    if fs.writeback.deterministic || fs.options.read_only {
        return;
    }
    fs.writeback.running.store(true, Ordering::Release);
    let wake = Arc::clone(&fs.writeback.wake);
    let runtime = Arc::clone(&fs.runtime);
    let weak = Arc::downgrade(fs);
    fs.runtime.spawn(Box::pin(Scoped::new(Box::pin(async move {
        loop {
            tokio::select! {
                biased;
                () = wake.notified() => {}
                () = runtime.sleep(PERIOD) => {}
            }
            let Some(fs) = weak.upgrade() else { return };
            if fs.writeback.stopping.load(Ordering::Acquire) {
                fs.writeback.running.store(false, Ordering::Release);
                fs.writeback.progress.notify_waiters();
                return;
            }
            fs.writeback.kicked.store(false, Ordering::Release);
            flush_old(&fs).await;
            lazytime::log_expired(&fs).await;
            if fs.writeback.dirty_bytes() > fs.writeback.background {
                flush_background(&fs).await;
            }
        }
    }))));
}

/// Writes back inodes that have been dirty for long.
async fn flush_old(fs: &Arc<FilesystemInner>) {
    let Some(before) = fs.runtime.monotonic().checked_sub(EXPIRY) else { return };
    let mut gather = Gather::new(fs);
    while let Some(inode) = fs.writeback.take_dirty_inode(Some(before)) {
        flush_inode(fs, &inode, &mut gather).await;
    }
    gather.submit();
}

/// Writes back, oldest first, until little enough is dirty. Waits for I/O, so that it is not ahead of the device
/// without bound.
async fn flush_background(fs: &Arc<FilesystemInner>) {
    let control = &fs.writeback;
    while control.dirty.load(Ordering::Relaxed) > control.background / 2
        && !control.stopping.load(Ordering::Acquire)
    {
        let mut gather = Gather::new(fs);
        let mut turns = control.queued_inodes();
        let before = control.dirty.load(Ordering::Relaxed);
        while turns > 0
            && control.dirty.load(Ordering::Relaxed) > control.background / 2
            && let Some(inode) = control.take_dirty_inode(None)
        {
            turns -= 1;
            flush_inode(fs, &inode, &mut gather).await;
        }
        gather.submit();
        let notified = control.progress.notified();
        if control.dirty.load(Ordering::Relaxed) >= before {
            // Everything is locked or under writeback: something has to end first.
            tokio::select! {
                biased;
                () = notified => {}
                () = fs.runtime.sleep(Duration::from_millis(10)) => {}
            }
        }
    }
}

/// One inode's turn.
async fn flush_inode(fs: &Arc<FilesystemInner>, inode: &Arc<InodeInfo>, gather: &mut Gather) {
    let Ok(_pass) = inode.pages.writeback_lock.try_lock() else {
        fs.writeback.enqueue(fs, inode);
        return;
    };
    // Errors are recorded in the inode, for its openers.
    let result = writepages(fs, inode, gather, &Pass::turn(FAIR_SHARE)).await;
    if let Err(error) = result {
        tracing::warn!(inode = inode.number.0, %error, "writeback failed");
    }
    if !inode.pages.is_dirty_folios() && inode.pages.times_dirty.load(Ordering::Acquire) {
        if fs.options.lazytime {
            fs.lazy_times.add(inode, fs.runtime.monotonic());
            return;
        }
        let _ = writeback::log_times(fs, inode).await;
    }
    if inode.pages.is_dirty() && fs.check_writable().is_ok() {
        fs.writeback.enqueue(fs, inode);
    }
}

/// Writes all dirty data of all inodes back and waits for it, conversions and sizes included.
///
/// # Errors
/// The first of those that came up; each is recorded in its inode too.
pub(crate) async fn sync_all_data(fs: &Arc<FilesystemInner>) -> Result<()> {
    let control = &fs.writeback;
    let mut result = Ok(());
    let mut gather = Gather::new(fs);
    let mut inodes = Vec::new();
    // What becomes dirty from now on is not this call's business.
    for _ in 0..control.queued_inodes() {
        let Some(inode) = control.take_dirty_inode(None) else { break };
        let written = match inode.pages.writeback_lock.try_lock() {
            Ok(_pass) => writepages(fs, &inode, &mut gather, &Pass::sync(0..u64::MAX)).await,
            Err(_) => {
                // Another pass may wait for folios that are in our plug.
                gather.submit();
                let _pass = inode.pages.writeback_lock.lock().await;
                writepages(fs, &inode, &mut gather, &Pass::sync(0..u64::MAX)).await
            }
        };
        result = result.and(written.map(|_| ()));
        inodes.push(inode);
    }
    gather.submit();
    wait_for_ioends(fs).await;
    for inode in inodes {
        result = result.and(writeback::settle(fs, &inode, true).await);
        if inode.pages.is_dirty() && fs.check_writable().is_ok() {
            control.enqueue(fs, &inode);
        }
    }
    lazytime::log_all(fs).await;
    result
}

/// Waits until every ioend that was in flight at the call is finished.
pub(crate) async fn wait_for_ioends(fs: &Arc<FilesystemInner>) {
    let until = fs.writeback.next_ioend();
    wait_for_progress(fs, || fs.writeback.ioends.lock().ids.first().is_none_or(|first| *first >= until))
        .await;
}

/// Waits until `done`, which progress makes true. No handle may be held.
pub(crate) async fn wait_for_progress(fs: &Arc<FilesystemInner>, done: impl Fn() -> bool) {
    assert_no_handle("waiting for writeback");
    let control = &fs.writeback;
    loop {
        let notified = control.progress.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if done() {
            return;
        }
        if control.deterministic && completion::run_when_io_ended(fs).await {
            continue;
        }
        notified.await;
    }
}

/// Wakes who waits for progress.
pub(crate) fn note_progress(fs: &FilesystemInner) {
    fs.writeback.progress.notify_waiters();
}

/// Writes everything back, stops the flusher and drains the completions.
///
/// # Errors
/// As [`sync_all_data`].
pub(crate) async fn stop(fs: &Arc<FilesystemInner>) -> Result<()> {
    let control = &fs.writeback;
    control.stopping.store(true, Ordering::Release);
    control.wake.notify_one();
    loop {
        let notified = control.progress.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if !control.running.load(Ordering::Acquire) {
            break;
        }
        notified.await;
    }
    let result = sync_all_data(fs).await;
    completion::wait_for_workers(fs).await;
    result
}
