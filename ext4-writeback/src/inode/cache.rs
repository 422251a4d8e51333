//! The inode cache: inodes in memory, one [`InodeInfo`] for each number.
//!
//! Invariants:
//! - At most one `InodeInfo` of a number is held by tasks. Concurrent loads wait for the first; an inode that
//!   is held (by an open file, a dirty page cache, an operation) is never evicted. If there were two, one
//!   would overwrite in the inode table what the other changed.
//! - A new inode is in the cache, its `on_disk` lock held, before its slot in the inode table is written; a
//!   deleted one leaves the cache before its number is free. So a load never finds a slot half way between
//!   two lives.
//! - The transaction that fsync of an evicted inode would have waited for is not lost: an inode that is
//!   loaded starts with the last transaction of all evicted inodes.
//!
//! Memory: at most `capacity` inodes that no task holds.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ext4_core::{InodeNumber, Result, TransactionId};
use parking_lot::Mutex;
use quick_cache::Lifecycle;
use quick_cache::sync::Cache;
use rustc_hash::FxBuildHasher;

use crate::inode::InodeInfo;

/// The last transaction of an evicted inode, as in [`InodeInfo::sync_transaction`].
type Evicted = Arc<AtomicU64>;

#[derive(Clone)]
struct KeepUsed(Evicted);

impl Lifecycle<u32, Arc<InodeInfo>> for KeepUsed {
    type RequestState = ();

    fn is_pinned(&self, _number: &u32, inode: &Arc<InodeInfo>) -> bool {
        Arc::strong_count(inode) > 1 || inode.pages.is_dirty()
    }

    fn on_evict(&self, (): &mut (), _number: u32, inode: Arc<InodeInfo>) {
        let Some(last) = inode.last_transaction(false) else { return };
        let word = inode.sync_transaction.load(Ordering::Acquire);
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |known| {
            (known == 0 || last.is_after(TransactionId(known as u32))).then_some(word)
        });
    }
}

/// The inode cache. See the module.
pub(crate) struct InodeCache {
    inodes: Cache<u32, Arc<InodeInfo>, quick_cache::UnitWeighter, FxBuildHasher, KeepUsed>,
    evicted: Evicted,
    /// How many files are open.
    open_files: AtomicUsize,
    /// Inodes without links whose last file was closed, and which wait to be deleted.
    released: Mutex<Vec<Arc<InodeInfo>>>,
}

impl fmt::Debug for InodeCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InodeCache({} inodes, {} open files)", self.inodes.len(), self.open_files())
    }
}

impl InodeCache {
    /// A cache of at most `capacity` inodes that no task holds.
    pub fn new(capacity: usize) -> Self {
        let evicted = Evicted::default();
        let capacity = capacity.max(64);
        let inodes = Cache::with(
            capacity,
            capacity as u64,
            quick_cache::UnitWeighter,
            FxBuildHasher,
            KeepUsed(Arc::clone(&evicted)),
        );
        Self { inodes, evicted, open_files: AtomicUsize::new(0), released: Mutex::default() }
    }

    /// The inode `number`; `load` reads it if it is not in memory.
    ///
    /// # Errors
    /// That of `load`.
    pub async fn get(
        &self,
        number: InodeNumber,
        load: impl Future<Output = Result<InodeInfo>>,
    ) -> Result<Arc<InodeInfo>> {
        if let Some(inode) = self.inodes.get(&number.0) {
            return Ok(inode);
        }
        let guard = match self.inodes.get_value_or_guard_async(&number.0).await {
            Ok(inode) => return Ok(inode),
            Err(guard) => guard,
        };
        let inode = load.await?;
        let evicted = self.evicted.load(Ordering::Acquire);
        inode.sync_transaction.store(evicted, Ordering::Release);
        inode.datasync_transaction.store(evicted, Ordering::Release);
        let inode = Arc::new(inode);
        match guard.insert(Arc::clone(&inode)) {
            Ok(()) => Ok(inode),
            // The number was allocated again while the old slot was being read: then the new inode is valid.
            Err(_) => Ok(self.inodes.get(&number.0).unwrap_or(inode)),
        }
    }

    /// Adds an inode that was just allocated.
    pub fn insert(&self, inode: &Arc<InodeInfo>) {
        self.inodes.insert(inode.number.0, Arc::clone(inode));
    }

    /// Removes an inode that is being deleted.
    pub fn remove(&self, number: InodeNumber) {
        drop(self.inodes.remove(&number.0));
    }

    /// Counts an open file.
    pub fn opened(&self, inode: &InodeInfo) {
        inode.open_count.fetch_add(1, Ordering::AcqRel);
        self.open_files.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts a closed file. Returns true if it was the last one of the inode.
    pub fn closed(&self, inode: &InodeInfo) -> bool {
        self.open_files.fetch_sub(1, Ordering::AcqRel);
        inode.open_count.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// How many files are open.
    pub fn open_files(&self) -> usize {
        self.open_files.load(Ordering::Acquire)
    }

    /// Queues an inode without links whose last file was closed.
    pub fn release(&self, inode: Arc<InodeInfo>) {
        self.released.lock().push(inode);
    }

    /// Takes an inode that waits to be deleted.
    pub fn next_released(&self) -> Option<Arc<InodeInfo>> {
        self.released.lock().pop()
    }
}

#[cfg(test)]
mod tests {

    use ext4_core::Error;

    use super::*;
    use crate::testing::test_inode;

    fn inode(number: u32) -> InodeInfo {
        InodeInfo::new(test_inode(number, 0o100_644), 0, &Arc::default())
    }

    #[tokio::test]
    async fn what_is_held_stays_however_much_comes() {
        let cache = InodeCache::new(64);
        let mut held = Vec::new();
        for number in 1..=1000 {
            held.push(cache.get(InodeNumber(number), async { Ok(inode(number)) }).await.unwrap());
        }
        for number in 1001..5000 {
            cache.get(InodeNumber(number), async { Ok(inode(number)) }).await.unwrap();
        }
        for inode in &held {
            let again = cache.get(inode.number, async { panic!("it was evicted") }).await.unwrap();
            assert!(Arc::ptr_eq(inode, &again));
        }
        drop(held);
        for number in 5000..8000 {
            cache.get(InodeNumber(number), async { Ok(inode(number)) }).await.unwrap();
        }
        assert!(cache.inodes.len() <= 64, "{} inodes are kept", cache.inodes.len());
    }

    #[tokio::test]
    async fn one_of_many_loads_and_a_failure_is_not_kept() {
        let cache = InodeCache::new(64);
        let failed = cache.get(InodeNumber(9), async { Err(Error::corrupt("inode 9", "damaged")) }).await;
        assert!(failed.unwrap_err().is_corrupt());
        let loads = AtomicUsize::new(0);
        let load = || {
            cache.get(InodeNumber(9), async {
                loads.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                Ok(inode(9))
            })
        };
        let (a, b, c) = tokio::join!(load(), load(), load());
        assert_eq!(loads.load(Ordering::Relaxed), 1);
        let (a, b, c) = (a.unwrap(), b.unwrap(), c.unwrap());
        assert!(Arc::ptr_eq(&a, &b) && Arc::ptr_eq(&b, &c));
    }

    #[tokio::test]
    async fn the_last_transaction_survives_eviction() {
        let cache = InodeCache::new(64);
        let changed = cache.get(InodeNumber(1), async { Ok(inode(1)) }).await.unwrap();
        changed.note_transaction(TransactionId(77), false);
        drop(changed);
        // Each twice: an inode that is asked for again pushes out one that is not.
        for number in (2..2000).flat_map(|number| [number, number]) {
            cache.get(InodeNumber(number), async { Ok(inode(number)) }).await.unwrap();
        }
        assert!(cache.inodes.peek(&1).is_none(), "the test needs it evicted");
        let again = cache.get(InodeNumber(1), async { Ok(inode(1)) }).await.unwrap();
        let last = again.last_transaction(true).unwrap();
        assert!(last.is_at_or_after(TransactionId(77)));
    }
}
