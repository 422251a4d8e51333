//! The page cache (address_space) of one inode: its folios in the order of the file, which of them are dirty,
//! and what writers, the flusher and passes of writeback remember of the file.
//!
//! Invariants:
//! - Folios do not overlap. A task that has locked a folio checks that it was not removed meanwhile.
//! - A folio is in the dirty set exactly while one of its blocks is dirty; both change under the folio's
//!   lock.
//! - A dirty folio is never reclaimed.
//!
//! Locks: the mutex of the tree; under it only the state mutexes of folios are taken.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use ext4_core::device::memory::{MAX_FOLIO_SIZE, PAGE_SIZE};
use ext4_core::{BlockSize, Result, Timestamp};
use parking_lot::Mutex;

use crate::base::lock_order::{Level, OrderedMutex};
use crate::cache::folio::{Folio, FolioGuard};

/// The most bytes that are copied while the tree and the state of a folio are locked: a copy that takes no
/// longer than locking the folio would.
const COPIED_AT_ONCE: usize = 4096;

#[derive(Debug, Default)]
struct Tree {
    folios: BTreeMap<u64, Arc<Folio>>,
    /// First byte of each dirty folio → the generation in which it became dirty.
    dirty: BTreeMap<u64, u64>,
    generation: u64,
    /// The folio that was found last: a stream of small writes finds it again without a walk.
    recent: Option<Arc<Folio>>,
}

/// The folios of one inode. Reclaim holds it weakly and so does not keep the inode in memory.
#[derive(Debug, Default)]
pub(crate) struct AddressSpace {
    tree: Mutex<Tree>,
}

impl AddressSpace {
    /// The folio that holds byte `position`.
    pub fn find(&self, position: u64) -> Option<Arc<Folio>> {
        let mut tree = self.tree.lock();
        if let Some(recent) = &tree.recent
            && (recent.start()..recent.end()).contains(&position)
        {
            return Some(Arc::clone(recent));
        }
        let (_, folio) = tree.folios.range(..=position).next_back()?;
        if folio.end() <= position {
            return None;
        }
        let folio = Arc::clone(folio);
        tree.recent = Some(Arc::clone(&folio));
        Some(folio)
    }

    /// Writes `data` at byte `position` of the file if that takes no more than a small copy
    /// ([`Folio::write_dirty`]), and calls `written`. Unless `goes_on` (the write begins where the last one
    /// ended), it counts as a use of the folio.
    ///
    /// # Errors
    /// If it takes more: the folio that holds `position`, if there is one. Nothing was written then.
    pub fn write_dirty(
        &self,
        position: u64,
        data: &[u8],
        goes_on: bool,
        written: impl FnOnce(),
    ) -> Result<(), Option<Arc<Folio>>> {
        if data.len() > COPIED_AT_ONCE {
            return Err(self.find(position));
        }
        let write = |folio: &Arc<Folio>| {
            if !folio.write_dirty(position, data, written) {
                return Err(Some(Arc::clone(folio)));
            }
            if !goes_on {
                folio.mark_accessed();
            }
            Ok(())
        };
        let tree = self.tree.lock();
        if let Some(recent) = &tree.recent
            && (recent.start()..recent.end()).contains(&position)
        {
            return write(recent);
        }
        drop(tree);
        write(&self.find(position).ok_or(None)?)
    }

    /// The first folio that ends behind byte `position`.
    pub fn first_from(&self, position: u64) -> Option<Arc<Folio>> {
        let tree = self.tree.lock();
        if let Some((_, folio)) = tree.folios.range(..=position).next_back()
            && folio.end() > position
        {
            return Some(Arc::clone(folio));
        }
        tree.folios.range(position..).next().map(|(_, folio)| Arc::clone(folio))
    }

    /// How many bytes before byte `position` are in memory, or being read, without a gap; at most `most`.
    pub fn cached_before(&self, position: u64, most: u64) -> u64 {
        let tree = self.tree.lock();
        let mut from = position;
        for (start, folio) in tree.folios.range(..position).rev() {
            if folio.end() < from || position - from >= most {
                break;
            }
            from = *start;
        }
        (position - from).min(most)
    }

    /// The first byte of the first folio at or behind byte `position`; `u64::MAX` if there is none.
    fn room_behind(&self, position: u64) -> u64 {
        let tree = self.tree.lock();
        tree.folios.range(position..).next().map_or(u64::MAX, |(start, _)| *start)
    }

    /// Adds `folio`. Returns false if it overlaps another one; then it was not added.
    pub fn insert(&self, folio: &Arc<Folio>) -> bool {
        let mut tree = self.tree.lock();
        let overlaps = tree
            .folios
            .range(..folio.end())
            .next_back()
            .is_some_and(|(_, other)| other.end() > folio.start());
        if !overlaps {
            tree.folios.insert(folio.start(), Arc::clone(folio));
            tree.recent = Some(Arc::clone(folio));
        }
        !overlaps
    }

    /// Takes a locked folio out of the file. Returns true if it was dirty.
    pub fn remove(&self, folio: &FolioGuard) -> bool {
        let mut tree = self.tree.lock();
        tree.folios.remove(&folio.start());
        tree.dirty.remove(&folio.start());
        if tree.recent.as_ref().is_some_and(|recent| Arc::ptr_eq(recent, folio)) {
            tree.recent = None;
        }
        drop(tree);
        folio.set_removed()
    }

    /// Adds the locked folio, which has dirty blocks now, to the dirty set.
    pub fn note_dirty(&self, folio: &FolioGuard) {
        let mut tree = self.tree.lock();
        let generation = tree.generation;
        tree.dirty.insert(folio.start(), generation);
    }

    /// Takes the locked folio, which has no dirty blocks any more, out of the dirty set.
    pub fn note_clean(&self, folio: &FolioGuard) {
        self.tree.lock().dirty.remove(&folio.start());
    }

    /// Tags all folios that are dirty now (PAGECACHE_TAG_TOWRITE), in one step: they are of the generation
    /// that is returned or of an earlier one. A folio loses its tag with its last dirty bit.
    pub fn tag_dirty(&self) -> u64 {
        let mut tree = self.tree.lock();
        tree.generation += 1;
        tree.generation - 1
    }

    /// The first dirty folio that starts at or behind byte `position` and became dirty in `generation` or
    /// before.
    pub fn next_dirty(&self, position: u64, generation: u64) -> Option<Arc<Folio>> {
        let tree = self.tree.lock();
        let (start, _) = tree.dirty.range(position..).find(|(_, since)| **since <= generation)?;
        tree.folios.get(start).map(Arc::clone)
    }

    /// Returns true if the block that holds byte `position` is dirty.
    #[cfg(test)]
    pub fn is_block_dirty(&self, position: u64) -> bool {
        self.find(position).is_some_and(|folio| {
            let block = folio.blocks_touched(position, position + 1).start;
            folio.is_block_dirty(block)
        })
    }

    /// Returns true if the block that holds byte `position`, or one behind it, is dirty.
    pub fn is_dirty_from(&self, position: u64) -> bool {
        let mut at = position;
        if let Some(folio) = self.find(position) {
            if folio.next_dirty(folio.blocks_touched(position, folio.end())).is_some() {
                return true;
            }
            at = folio.end();
        }
        self.tree.lock().dirty.range(at..).next().is_some()
    }

    /// Returns true if a folio is dirty.
    pub fn is_dirty_folios(&self) -> bool {
        !self.tree.lock().dirty.is_empty()
    }

    /// SEEK_DATA (`data`) or SEEK_HOLE within bytes `from..end`, whose blocks are unwritten: the first byte
    /// with dirty data in memory, or the first one without.
    pub fn seek(&self, from: u64, end: u64, data: bool) -> Option<u64> {
        let mut at = from;
        while at < end {
            let Some(folio) = self.first_from(at).filter(|folio| folio.start() < end) else {
                return (!data).then_some(at);
            };
            if folio.start() > at {
                if !data {
                    return Some(at);
                }
                at = folio.start();
            }
            let blocks = folio.blocks_touched(at, end);
            let block_len = folio.len() as u64 / u64::from(folio.blocks());
            let byte = |block: u32| folio.start() + u64::from(block) * block_len;
            // Data under writeback counts as well; it is known for whole folios only.
            let run =
                if folio.is_under_writeback() { Some(blocks.clone()) } else { folio.next_dirty(blocks) };
            match (run, data) {
                (Some(run), true) => return Some(byte(run.start).max(at)),
                (None, true) => at = folio.end(),
                (None, false) => return Some(at),
                (Some(run), false) if byte(run.start) > at => return Some(at),
                (Some(run), false) => at = byte(run.end),
            }
        }
        None
    }

    #[cfg(test)]
    pub fn folio_sizes(&self) -> Vec<usize> {
        self.tree.lock().folios.values().map(|folio| folio.len()).collect()
    }
}

/// The page cache of one inode: its folios, and what its writers, the flusher and passes of writeback
/// remember of it.
#[derive(Debug)]
pub(crate) struct PageCache {
    space: Arc<AddressSpace>,
    /// mtime and ctime that are newer than the logged ones.
    pub times: Times,
    /// What writers made dirty, for the flusher and the throttle.
    pub dirtied: Dirtied,
    /// Passes of writeback (writepages).
    pub pass: Pass,
    /// The stream of writes.
    pub writes: Writes,
}

/// mtime and ctime of one inode, between a write that changes them in memory and the transaction that logs
/// them. They are on one of three ways there: the flusher's queue, the list of `lazytime`, another change of
/// the inode.
#[derive(Debug, Default)]
pub(crate) struct Times {
    unlogged: AtomicBool,
    lazy: AtomicBool,
    tick: AtomicU64,
}

impl Times {
    /// Returns true if times were changed and not logged since.
    pub fn are_unlogged(&self) -> bool {
        self.unlogged.load(Ordering::Acquire)
    }

    /// The times were changed in memory. The caller holds the lock of the inode for writing.
    pub fn set_unlogged(&self) {
        self.unlogged.store(true, Ordering::Release);
    }

    /// The times were logged, or no longer have to be. The caller holds the lock of the inode for writing.
    pub fn set_logged(&self) {
        self.unlogged.store(false, Ordering::Release);
    }

    /// A write set the times to `now`. The caller holds the lock of the inode for writing.
    pub fn note_write(&self, now: Timestamp) {
        self.set_unlogged();
        self.tick.store(tick(now), Ordering::Relaxed);
    }

    /// Returns true if a write has set the times in the clock tick (4 ms) of `now`, and they were not logged
    /// since.
    pub fn are_of(&self, now: Timestamp) -> bool {
        self.tick.load(Ordering::Relaxed) == tick(now) && self.are_unlogged()
    }

    /// Puts the inode on the list of `lazytime`. Returns true if it was not there yet; the caller adds it
    /// then.
    pub fn enter_lazy_list(&self) -> bool {
        !self.lazy.swap(true, Ordering::AcqRel)
    }

    /// The inode was taken off the list of `lazytime`.
    pub fn leave_lazy_list(&self) {
        self.lazy.store(false, Ordering::Release);
    }
}

/// What writers made dirty, as the flusher and the throttle (balance_dirty_pages) count it.
#[derive(Debug, Default)]
pub(crate) struct Dirtied {
    queued: AtomicBool,
    owed: AtomicUsize,
}

impl Dirtied {
    /// Puts the inode into the flusher's queue. Returns true if it was not there yet; the caller adds it
    /// then.
    pub fn enter_queue(&self) -> bool {
        !self.queued.swap(true, Ordering::AcqRel)
    }

    /// The inode was taken out of the flusher's queue.
    pub fn leave_queue(&self) {
        self.queued.store(false, Ordering::Release);
    }

    /// A folio of `len` bytes was made dirty, for which its writer was not throttled yet.
    pub fn owe(&self, len: usize) {
        self.owed.fetch_add(len, Ordering::Relaxed);
    }

    /// The bytes of folios that were made dirty since the last call.
    pub fn take_owed(&self) -> u64 {
        self.owed.swap(0, Ordering::Relaxed) as u64
    }
}

/// Passes of writeback over one inode, and truncations that come between.
#[derive(Debug)]
pub(crate) struct Pass {
    /// One pass at a time (I_SYNC): blocks past i_disksize are submitted in the order of the file.
    pub lock: OrderedMutex<()>,
    index: AtomicU64,
    cut: AtomicU64,
}

impl Pass {
    /// The byte at which the next turn in the background begins (writeback_index).
    pub fn index(&self) -> u64 {
        self.index.load(Ordering::Relaxed)
    }

    /// The next turn in the background begins at byte `index`. The caller holds `lock`.
    pub fn set_index(&self, index: u64) {
        self.index.store(index, Ordering::Relaxed);
    }

    /// A pass begins: truncations before it are not its concern. The caller holds `lock`.
    pub fn forget_cut(&self) {
        self.cut.store(u64::MAX, Ordering::SeqCst);
    }

    /// The file is truncated to `size` bytes. To be called before the first folio is dropped for it.
    pub fn note_cut(&self, size: u64) {
        self.cut.fetch_min(size, Ordering::SeqCst);
    }

    /// The lowest size in bytes that the file was truncated to since the pass began. Asked for under the lock
    /// of a folio: a folio that was made dirty after a truncation finds that truncation here.
    pub fn cut(&self) -> u64 {
        self.cut.load(Ordering::SeqCst)
    }
}

/// The stream of writes to one file: a write that goes on where the last one ended gets larger folios.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    last_end: AtomicU64,
}

impl Writes {
    /// A write ended at byte `end`.
    pub fn note(&self, end: u64) {
        self.last_end.store(end, Ordering::Relaxed);
    }

    /// Returns true if a write at byte `position` follows the last one.
    pub fn go_on_at(&self, position: u64) -> bool {
        position != 0 && self.last_end.load(Ordering::Relaxed) == position
    }
}

impl std::ops::Deref for PageCache {
    type Target = AddressSpace;

    fn deref(&self) -> &AddressSpace {
        &self.space
    }
}

/// The number of the clock tick (4 ms) of `now`; no tick has the number 0.
fn tick(now: Timestamp) -> u64 {
    (now.seconds as u64).wrapping_mul(250) + u64::from(now.nanoseconds / 4_000_000) + 1
}

impl PageCache {
    /// An empty cache.
    pub fn new() -> Self {
        let pass = Pass {
            lock: OrderedMutex::new(Level::Writeback, ()),
            index: AtomicU64::new(0),
            cut: AtomicU64::new(0),
        };
        Self {
            space: Arc::default(),
            times: Times::default(),
            dirtied: Dirtied::default(),
            pass,
            writes: Writes::default(),
        }
    }

    /// The folios, held weakly, for reclaim.
    pub fn space(&self) -> Weak<AddressSpace> {
        Arc::downgrade(&self.space)
    }

    /// Returns true if something has to be written back or logged before the inode may leave memory.
    pub fn is_dirty(&self) -> bool {
        self.space.is_dirty_folios() || self.times.are_unlogged()
    }

    /// The first byte and the length in bytes of a new folio for an access of `len` bytes from byte
    /// `position` on; it is at most `limit` bytes long. A stream of small accesses (`sequential`) gets folios
    /// twice as long each time, as far as its offsets are aligned.
    pub fn placement(
        &self,
        position: u64,
        len: u64,
        sequential: bool,
        block_size: BlockSize,
        limit: usize,
    ) -> (u64, usize) {
        let least = PAGE_SIZE.max(block_size.len()) as u64;
        // If another task has added a folio over `position` meanwhile, the new one is refused when it is
        // inserted.
        let high = self.room_behind(position);
        let start = position & !(least - 1);
        let mut want = (position - start) + len;
        if sequential && start > 0 {
            let before = self.find(start - 1).map_or(0, |folio| folio.len() as u64);
            want = want.max(2 * before);
        }
        let most = (limit as u64).clamp(least, MAX_FOLIO_SIZE as u64);
        let mut size = least;
        while size * 2 <= most
            && size < want
            && start.is_multiple_of(size * 2)
            && (size * 2 <= want.next_multiple_of(least) || sequential)
            && start + size * 2 <= high
        {
            size *= 2;
        }
        (start, size as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ext4_core::Error;

    use crate::cache::error_sequence::ErrorSequence;
    use ext4_core::Errno;
    use ext4_core::device::MemoryPool;

    fn fill(cache: &PageCache, pool: &Arc<MemoryPool>, writes: impl Iterator<Item = (u64, u64)>) {
        for (position, len) in writes {
            let mut at = position;
            while at < position + len {
                if let Some(folio) = cache.find(at) {
                    at = folio.end();
                    continue;
                }
                let sequential = cache.writes.go_on_at(position);
                let (start, size) =
                    cache.placement(at, position + len - at, sequential, BlockSize::KIB_4, MAX_FOLIO_SIZE);
                let memory = Arc::new(pool.allocate(size).expect("pool").expect("room"));
                assert!(cache.insert(&Folio::new(memory, start, BlockSize::KIB_4)));
                at = start + size as u64;
            }
            cache.writes.note(position + len);
        }
    }

    #[test]
    fn a_stream_of_small_writes_gets_large_folios() {
        let pool = MemoryPool::new(64 << 20);
        let cache = PageCache::new();
        fill(&cache, &pool, (0..2048).map(|i| (i * 4096, 4096)));
        let sizes = cache.folio_sizes();
        assert_eq!(sizes[..4], [4096, 4096, 8192, 16384]);
        assert_eq!(*sizes.last().expect("one"), 2 << 20);
        assert!(sizes.len() < 16);
    }

    #[test]
    fn a_long_write_gets_large_folios_and_a_small_file_none() {
        let pool = MemoryPool::new(64 << 20);
        let cache = PageCache::new();
        fill(&cache, &pool, std::iter::once((0, 5 << 20)));
        assert_eq!(cache.folio_sizes(), [2 << 20, 2 << 20, 1 << 20]);
        let cache = PageCache::new();
        fill(&cache, &pool, std::iter::once((0, 10_000)));
        assert_eq!(cache.folio_sizes(), [8192, 4096]);
    }

    #[test]
    fn an_error_is_reported_once_to_every_opener() {
        let errors = ErrorSequence::new();
        let (mut first, mut second) = (errors.sample(), errors.sample());
        errors.record(&Error::io("write", "bytes 0..4096", Errno::EIO));
        assert!(errors.check_and_advance(&mut first).is_err());
        assert!(errors.check_and_advance(&mut first).is_ok());
        assert!(errors.check_and_advance(&mut second).is_err());
        let mut late = errors.sample();
        assert!(errors.check_and_advance(&mut late).is_ok());
    }
}
