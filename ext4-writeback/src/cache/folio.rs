//! Folios: naturally aligned, power-of-two pieces of a file in memory, 4 KiB to 2 MiB, with state for each
//! block (iomap_folio_state).
//!
//! ```text
//!   block        0   1   2   3   4 …
//!   uptodate     1   1   1   0   0      memory holds the block's content
//!   dirty        0   1   1   0   0      memory holds content that the device does not have
//!   in flight   [----)                  blocks a device is reading from this memory now
//! ```
//!
//! Invariants:
//! - A dirty block is uptodate. Setting bits rounds outwards, to every block touched; clearing dirty bits
//!   rounds inwards, to blocks wholly covered. Otherwise dropping part of a block would lose the rest of it.
//! - Dirty bits, `removed` and `writeback` are set, and dirty bits cleared, only under the folio's lock.
//! - Blocks in flight are not changed: a writer waits for the I/O (not for the conversion after it). So the
//!   device gets what memory held at one moment, and after a crash no append is there by half.
//! - `writeback` is cleared last: after the handle that converted the folio's blocks and moved i_disksize was
//!   dropped. So a task that waits for it (truncate, fsync) knows that the metadata is in a transaction.
//! - Bytes that are viewed (`File::map_read`) do not change: the folio goes on with other memory first. Views
//!   are made under the folio lock, so that no view is made between a check for views and the change that
//!   follows it.
//!
//! Locks: the folio lock is async and may be held across I/O (see [`crate::base::lock_order`]). The state
//! mutex is taken under that of the tree of folios. The locks of the memory are leaves.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use ext4_core::device::{PoolMemory, PoolView};
use ext4_core::wait;
use ext4_core::{BlockSize, Error, LogicalBlock, Result};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::base::lock_order::{Level, Rank, Token, assert_no_handle};
use crate::cache::block_set::BlockSet;

/// The folio lock in the lock order.
const RANK: Rank = Rank::new(Level::Folio);

/// How many uses are counted at most.
const MOST_USES: u8 = 3;

#[derive(Debug)]
struct State {
    locked: bool,
    removed: bool,
    writeback: bool,
    /// True if a task waits for a change of the state.
    waited_for: bool,
    /// Pieces of the folio in ioends that are not finished, and one more while the folio is put into ioends.
    pieces: u32,
    /// Pieces whose I/O has not ended.
    pieces_in_flight: u32,
    /// The blocks from the first to the last piece whose I/O has not ended.
    in_flight: Range<u32>,
    uptodate: BlockSet,
    dirty: BlockSet,
    read_error: Option<Error>,
}

impl State {
    /// Returns true if a device may be reading the memory of one of `blocks`.
    fn is_in_flight(&self, blocks: &Range<u32>) -> bool {
        self.in_flight.start < blocks.end && blocks.start < self.in_flight.end
    }
}

/// One folio. See the module.
#[derive(Debug)]
pub(crate) struct Folio {
    /// The content. Other memory takes its place if viewed bytes are to be changed (`File::map_read`).
    memory: RwLock<Arc<PoolMemory>>,
    len: usize,
    start: u64,
    block_size: BlockSize,
    blocks: u32,
    /// How often the folio was found again, up to [`MOST_USES`]: for reclaim.
    uses: AtomicU8,
    state: Mutex<State>,
    changed: Notify,
}

impl Folio {
    /// A folio at byte `start` of the file over `memory`, no block of it uptodate.
    pub fn new(memory: Arc<PoolMemory>, start: u64, block_size: BlockSize) -> Arc<Self> {
        debug_assert!(start.is_multiple_of(memory.len() as u64), "folios are naturally aligned");
        let blocks = (memory.len() >> block_size.bits()) as u32;
        let state = State {
            locked: false,
            removed: false,
            writeback: false,
            waited_for: false,
            pieces: 0,
            pieces_in_flight: 0,
            in_flight: 0..0,
            uptodate: BlockSet::empty(blocks),
            dirty: BlockSet::empty(blocks),
            read_error: None,
        };
        Arc::new(Self {
            len: memory.len(),
            memory: RwLock::new(memory),
            start,
            block_size,
            blocks,
            uses: AtomicU8::new(0),
            state: Mutex::new(state),
            changed: Notify::new(),
        })
    }

    /// The memory, for a bio.
    pub fn memory(&self) -> Arc<PoolMemory> {
        Arc::clone(&self.memory.read())
    }

    /// The first byte of the file that it holds.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The byte of the file behind the last one that it holds.
    pub fn end(&self) -> u64 {
        self.start + self.len as u64
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// How many blocks it has.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// The first logical block that it holds.
    pub fn first_block(&self) -> LogicalBlock {
        LogicalBlock((self.start >> self.block_size.bits()) as u32)
    }

    /// The blocks of the folio that bytes `from..to` of the file touch, within it.
    pub fn blocks_touched(&self, from: u64, to: u64) -> Range<u32> {
        let from = from.max(self.start) - self.start;
        let to = to.min(self.end()).saturating_sub(self.start);
        let first = (from >> self.block_size.bits()) as u32;
        let last = to.div_ceil(u64::from(self.block_size.bytes())) as u32;
        first..last.max(first)
    }

    /// The blocks of the folio that lie wholly in bytes `from..to` of the file.
    pub fn blocks_covered(&self, from: u64, to: u64) -> Range<u32> {
        let from = from.max(self.start) - self.start;
        let to = to.min(self.end()).saturating_sub(self.start);
        let first = from.div_ceil(u64::from(self.block_size.bytes())) as u32;
        let last = (to >> self.block_size.bits()) as u32;
        first..last.max(first)
    }

    /// Notes a use, for reclaim.
    pub fn mark_accessed(&self) {
        // Two uses at the same time may count as one.
        let uses = self.uses.load(Ordering::Relaxed);
        if uses < MOST_USES {
            self.uses.store(uses + 1, Ordering::Relaxed);
        }
    }

    /// How many uses were noted, up to [`MOST_USES`].
    pub fn uses(&self) -> u8 {
        self.uses.load(Ordering::Relaxed)
    }

    /// Forgets the uses; returns how many there were.
    pub fn take_uses(&self) -> u8 {
        self.uses.swap(0, Ordering::Relaxed)
    }

    /// Locks the folio if it is not locked.
    pub fn try_lock(self: &Arc<Self>) -> Option<FolioGuard> {
        FolioGuard::try_new(Arc::clone(self)).ok()
    }

    /// Locks the folio. The caller checks [`Folio::is_removed`] afterwards.
    pub async fn lock(self: &Arc<Self>) -> FolioGuard {
        RANK.check();
        if let Some(guard) = self.try_lock() {
            return guard;
        }
        self.wait_until(|state| {
            if state.locked {
                return None;
            }
            state.locked = true;
            Some(())
        })
        .await;
        FolioGuard { folio: Arc::clone(self), token: RANK.taken() }
    }

    async fn wait_until<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> T {
        wait::until(&self.changed, || {
            let mut state = self.state.lock();
            let value = ready(&mut state);
            state.waited_for |= value.is_none();
            value
        })
        .await
    }

    fn change<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let result = f(&mut state);
        let wake = std::mem::take(&mut state.waited_for);
        drop(state);
        if wake {
            self.changed.notify_waiters();
        }
        result
    }

    /// Returns true if the folio is not part of the file any more; the caller looks the folio up again then.
    pub fn is_removed(&self) -> bool {
        self.state.lock().removed
    }

    /// Returns true from the start of a writeback to the end of its conversions.
    pub fn is_under_writeback(&self) -> bool {
        self.state.lock().writeback
    }

    /// Returns true if a block is dirty.
    pub fn is_dirty(&self) -> bool {
        !self.state.lock().dirty.is_empty()
    }

    /// Waits until no device reads the memory of `blocks`.
    pub async fn wait_for_io(&self, blocks: &Range<u32>) {
        assert_no_handle("waiting for data I/O");
        self.wait_until(|state| (!state.is_in_flight(blocks)).then_some(())).await;
    }

    /// Returns true if a device may be reading the memory of one of `blocks`.
    pub fn is_in_flight(&self, blocks: &Range<u32>) -> bool {
        self.state.lock().is_in_flight(blocks)
    }

    /// Returns true if memory holds the content of all `blocks`.
    pub fn is_uptodate(&self, blocks: Range<u32>) -> bool {
        self.state.lock().uptodate.contains(blocks)
    }

    /// The first run of `blocks` that is not uptodate.
    pub fn next_not_uptodate(&self, blocks: Range<u32>) -> Option<Range<u32>> {
        self.state.lock().uptodate.next_gap(blocks.start, blocks.end)
    }

    /// The first run of `blocks` that is dirty.
    pub fn next_dirty(&self, blocks: Range<u32>) -> Option<Range<u32>> {
        self.state.lock().dirty.next_run(blocks.start, blocks.end)
    }

    /// Returns true if `block` is dirty.
    pub fn is_block_dirty(&self, block: u32) -> bool {
        self.state.lock().dirty.contains(block..block + 1)
    }

    /// Takes the error of a read that failed since the last call.
    pub fn take_read_error(&self) -> Option<Error> {
        self.state.lock().read_error.take()
    }

    /// One piece of the folio finished: its I/O, its conversion and its size are done. Returns true if that
    /// ended the writeback of the folio.
    pub fn finish_piece(&self) -> bool {
        self.change(|state| {
            state.pieces -= 1;
            if state.pieces == 0 {
                state.writeback = false;
            }
            !state.writeback
        })
    }

    /// The I/O of one piece ended.
    pub fn end_piece_io(&self) {
        self.change(|state| {
            state.pieces_in_flight -= 1;
            if state.pieces_in_flight == 0 {
                state.in_flight = 0..0;
            }
        });
    }

    /// Calls `f` with bytes `from..to` of the file, which lie in the folio.
    pub fn read<R>(&self, from: u64, to: u64, f: impl FnOnce(&[u8]) -> R) -> R {
        self.memory.read().read((from - self.start) as u32, (to - from) as u32, f)
    }

    /// Writes `data` at byte `position` of the file, and calls `written`, in one step as if under the folio
    /// lock. Returns true if that was possible: the bytes lie in the folio, their blocks are dirty, not in
    /// flight and not viewed, and the folio is not locked. Otherwise nothing was changed. For a few bytes:
    /// other users of the state wait meanwhile.
    pub fn write_dirty(&self, position: u64, data: &[u8], written: impl FnOnce()) -> bool {
        let end = position + data.len() as u64;
        if position < self.start || end > self.end() {
            return false;
        }
        let blocks = self.blocks_touched(position, end);
        let state = self.state.lock();
        if state.locked
            || state.removed
            || !state.dirty.contains(blocks.clone())
            || state.is_in_flight(&blocks)
        {
            return false;
        }
        let (offset, len) = ((position - self.start) as u32, data.len() as u32);
        let copied = self.memory.read().try_write(offset, len, |bytes| bytes.copy_from_slice(data)).is_some();
        if copied {
            written();
        }
        copied
    }

    fn unlock(&self) {
        self.change(|state| state.locked = false);
    }
}

/// The guard of a folio lock. What changes a folio is a method of its guard.
#[derive(Debug)]
pub(crate) struct FolioGuard {
    folio: Arc<Folio>,
    token: Token,
}

impl std::ops::Deref for FolioGuard {
    type Target = Arc<Folio>;

    fn deref(&self) -> &Arc<Folio> {
        &self.folio
    }
}

impl Drop for FolioGuard {
    fn drop(&mut self) {
        self.folio.unlock();
    }
}

/// The state of the blocks that a write changes, at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WriteState {
    /// True if the folio is not part of the file any more.
    pub removed: bool,
    /// True if a device may be reading the memory of one of the blocks.
    pub in_flight: bool,
    /// True if all of the blocks are dirty, so that each has a block on the device or a reserved one.
    pub dirty: bool,
    /// True if the first block is uptodate, and if the last one is.
    pub uptodate: [bool; 2],
}

impl FolioGuard {
    /// Locks `folio` if it is not locked.
    ///
    /// # Errors
    /// `folio`, if it is locked.
    pub fn try_new(folio: Arc<Folio>) -> std::result::Result<Self, Arc<Folio>> {
        let mut state = folio.state.lock();
        if state.locked {
            drop(state);
            return Err(folio);
        }
        state.locked = true;
        drop(state);
        Ok(Self { folio, token: RANK.taken() })
    }

    /// Leaves the lock to an I/O, whose end drops the guard: for the lock order the operation no longer holds
    /// the lock.
    pub fn lend_to_io(mut self) -> Self {
        self.token = Token::none();
        self
    }

    /// The state of `blocks`, which are at least one, for a write.
    pub fn write_state(&self, blocks: &Range<u32>) -> WriteState {
        let state = self.state.lock();
        let uptodate = |block: u32| state.uptodate.contains(block..block + 1);
        WriteState {
            removed: state.removed,
            in_flight: state.is_in_flight(blocks),
            dirty: state.dirty.contains(blocks.clone()),
            uptodate: [uptodate(blocks.start), uptodate(blocks.end - 1)],
        }
    }

    /// Calls `f` with bytes `from..to` of the file, which lie in the folio, to change them.
    ///
    /// # Errors
    /// `ENOMEM` or another refusal of the host to map memory, if the bytes are viewed; nothing was changed
    /// then.
    pub fn write<R>(&self, from: u64, to: u64, f: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        let (offset, len) = ((from - self.start) as u32, (to - from) as u32);
        let mut f = Some(f);
        loop {
            let memory = self.memory.read();
            let written = memory.try_write(offset, len, |bytes| f.take().map(|f| f(bytes)));
            if let Some(Some(written)) = written {
                return Ok(written);
            }
            drop(memory);
            self.leave_to_viewers()?;
        }
    }

    /// Gives the folio other memory if bytes of `blocks` are viewed: [`FolioGuard::write`] and
    /// [`FolioGuard::zero`] succeed for these blocks as long as the folio is locked.
    ///
    /// # Errors
    /// As [`FolioGuard::write`].
    pub fn make_unviewed(&self, blocks: Range<u32>) -> Result<()> {
        let bits = self.block_size.bits();
        let viewed = self.memory.read().is_viewed(blocks.start << bits, (blocks.end - blocks.start) << bits);
        if viewed { self.leave_to_viewers() } else { Ok(()) }
    }

    /// Gives the folio other memory if bytes of those of `blocks` that are not uptodate are viewed. To be
    /// called once, before a device reads into any of them.
    ///
    /// # Errors
    /// As [`FolioGuard::write`].
    pub fn make_gaps_unviewed(&self, blocks: Range<u32>) -> Result<()> {
        let bits = self.block_size.bits();
        let mut at = blocks.start;
        while let Some(gap) = self.next_not_uptodate(at..blocks.end) {
            at = gap.end;
            if self.memory.read().is_viewed(gap.start << bits, (gap.end - gap.start) << bits) {
                return self.leave_to_viewers();
            }
        }
        Ok(())
    }

    /// A view of bytes `from..to` of the file, which lie in the folio and are uptodate.
    pub fn view(&self, from: u64, to: u64) -> PoolView {
        PoolView::new(self.memory(), (from - self.start) as u32..(to - self.start) as u32)
    }

    /// Gives the folio a copy of its memory. I/O in flight goes on from the old memory.
    fn leave_to_viewers(&self) -> Result<()> {
        let mut memory = self.memory.write();
        let len = self.len as u32;
        let pool = memory.pool();
        // Bounded by the bound on views (`File::map_read`).
        let copy = pool.allocate_beyond(self.len)?;
        memory.read(0, len, |from| copy.write(0, len, |to| to.copy_from_slice(from)));
        *memory = Arc::new(copy);
        Ok(())
    }

    /// Fills bytes `from..to` of the file, which lie in the folio, with zeros.
    ///
    /// # Errors
    /// As [`FolioGuard::write`].
    pub fn zero(&self, from: u64, to: u64) -> Result<()> {
        if from < to { self.write(from, to, |bytes| bytes.fill(0)) } else { Ok(()) }
    }

    /// Memory holds the content of `blocks` now.
    pub fn set_uptodate(&self, blocks: Range<u32>) {
        self.state.lock().uptodate.insert(blocks);
    }

    /// `blocks` were changed in memory. Returns true if the folio was clean before.
    pub fn set_dirty(&self, blocks: Range<u32>) -> bool {
        let mut state = self.state.lock();
        let was_clean = state.dirty.is_empty();
        state.uptodate.insert(blocks.clone());
        state.dirty.insert(blocks);
        was_clean
    }

    /// Drops the content of `blocks`: they are neither dirty nor uptodate. Returns true if that made the
    /// folio clean.
    pub fn discard_blocks(&self, blocks: Range<u32>) -> bool {
        let mut state = self.state.lock();
        let was_dirty = !state.dirty.is_empty();
        state.uptodate.remove(blocks.clone());
        state.dirty.remove(blocks);
        was_dirty && state.dirty.is_empty()
    }

    /// The folio leaves the file. Returns true if it was dirty.
    pub fn set_removed(&self) -> bool {
        self.change(|state| {
            state.removed = true;
            let was_dirty = !state.dirty.is_empty();
            let blocks = self.blocks;
            state.dirty.remove(0..blocks);
            was_dirty
        })
    }

    /// Keeps the error of a read for the reader that waits for the folio.
    pub fn set_read_error(&self, error: Error) {
        self.state.lock().read_error = Some(error);
    }

    /// Begins a writeback: clears all dirty bits and returns them. The caller calls [`Folio::finish_piece`]
    /// once for the writeback itself.
    pub fn start_writeback(&self) -> BlockSet {
        let mut state = self.state.lock();
        debug_assert!(!state.writeback, "one writeback at a time");
        state.writeback = true;
        state.pieces = 1;
        let empty = BlockSet::empty(self.blocks);
        std::mem::replace(&mut state.dirty, empty)
    }

    /// `blocks` became a piece of an ioend, whose end calls [`Folio::end_piece_io`] and
    /// [`Folio::finish_piece`] once each.
    pub fn add_piece(&self, blocks: Range<u32>) {
        let mut state = self.state.lock();
        debug_assert!(state.writeback, "a piece is part of a writeback");
        state.pieces += 1;
        state.pieces_in_flight += 1;
        state.in_flight = if state.in_flight.is_empty() {
            blocks
        } else {
            state.in_flight.start.min(blocks.start)..state.in_flight.end.max(blocks.end)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ext4_core::device::MemoryPool;
    use ext4_core::device::memory::REGION_SIZE;

    #[test]
    fn k_13_clearing_rounds_inwards_and_setting_outwards() {
        let pool = MemoryPool::new(2 << 20);
        let memory = Arc::new(pool.allocate(8192).expect("pool").expect("room"));
        let folio = Folio::new(memory, 8192, BlockSize::KIB_1);
        assert_eq!(folio.blocks_touched(8192 + 1000, 8192 + 1025), 0..2);
        assert_eq!(folio.blocks_covered(8192 + 1000, 8192 + 3100), 1..3);
        assert_eq!(folio.blocks_covered(8192 + 1000, 8192 + 1025), 1..1);
        let guard = folio.try_lock().expect("free");
        assert!(folio.try_lock().is_none());
        assert!(guard.set_dirty(0..8));
        let covered = folio.blocks_covered(8192 + 500, 8192 + 2500);
        assert!(!guard.discard_blocks(covered));
        assert_eq!(folio.next_dirty(0..8), Some(0..1));
        assert_eq!(folio.next_dirty(1..8), Some(2..8));
    }

    #[test]
    fn what_is_viewed_stays_and_the_folio_goes_on_with_other_memory() {
        let pool = MemoryPool::new(2 << 20);
        let memory = Arc::new(pool.allocate(16384).expect("pool").expect("room"));
        let folio = Folio::new(memory, 0, BlockSize::KIB_4);
        let guard = folio.try_lock().expect("free");
        guard.write(0, 16384, |bytes| bytes.fill(1)).expect("memory");
        guard.set_uptodate(0..4);
        let view = guard.view(4096, 8192);
        let first = folio.memory().as_ptr();
        guard.write(8192, 12288, |bytes| bytes.fill(2)).expect("memory");
        assert_eq!(folio.memory().as_ptr(), first, "not viewed");
        // A device may fill blocks that are not uptodate, but no memory that is viewed.
        guard.make_gaps_unviewed(0..4).expect("memory");
        assert_eq!(folio.memory().as_ptr(), first, "there is no gap");
        guard.discard_blocks(1..2);
        guard.make_gaps_unviewed(0..1).expect("memory");
        assert_eq!(folio.memory().as_ptr(), first, "the gap is elsewhere");
        guard.make_gaps_unviewed(0..4).expect("memory");
        assert_ne!(folio.memory().as_ptr(), first);
        folio.memory().write(4096, 4096, |bytes| bytes.fill(3));
        assert!(view.iter().all(|byte| *byte == 1));
        assert!(folio.read(8192, 12288, |bytes| bytes.iter().all(|byte| *byte == 2)), "the rest came along");
        let again = guard.view(0, 4096);
        guard.write(100, 200, |bytes| bytes.fill(4)).expect("memory");
        assert!(again.iter().all(|byte| *byte == 1));
        assert!(folio.read(100, 200, |bytes| bytes.iter().all(|byte| *byte == 4)));
        drop((view, again));
    }

    /// In a child process, whose address space is not allowed to grow.
    #[test]
    fn without_memory_for_what_is_viewed_a_write_fails_and_nothing_is_changed() {
        const CHILD: &str = "EXT4_TEST_WITHOUT_MEMORY";
        if std::env::var_os(CHILD).is_none() {
            let name =
                "cache::folio::tests::without_memory_for_what_is_viewed_a_write_fails_and_nothing_is_changed";
            let child = std::process::Command::new(std::env::current_exe().expect("runs from a file"))
                .args(["--exact", name, "--nocapture", "--test-threads=1"])
                .env(CHILD, "1")
                .output()
                .expect("starts");
            let said = String::from_utf8_lossy(&child.stdout);
            assert!(child.status.success() && said.contains("refused"), "{said}{child:?}");
            return;
        }
        let pool = MemoryPool::new(2 << 20);
        let folio =
            Folio::new(Arc::new(pool.allocate(2 << 20).expect("pool").expect("room")), 0, BlockSize::KIB_4);
        let guard = folio.try_lock().expect("free");
        guard.zero(0, 2 << 20).expect("not viewed");
        guard.set_uptodate(0..512);
        let view = guard.view(4096, 8192);
        // All of the pool's region is taken.
        let rest: Vec<_> =
            (1..REGION_SIZE >> 21).map(|_| pool.allocate_beyond(2 << 20).expect("room")).collect();
        let pages = std::fs::read_to_string("/proc/self/statm").expect("procfs");
        let pages: u64 = pages.split(' ').next().and_then(|pages| pages.parse().ok()).expect("a number");
        let limit = pages * 4096 + (1 << 20);
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_AS, limit, limit).expect("lowers");
        let error = guard.write(5000, 5001, |bytes| bytes.fill(1)).expect_err("no memory");
        assert_eq!(error.errno(), ext4_core::Errno::ENOMEM);
        assert!(guard.make_unviewed(1..2).is_err() && guard.zero(4096, 4097).is_err());
        guard.make_unviewed(2..3).expect("not viewed");
        guard.write(8192, 8193, |bytes| bytes.fill(2)).expect("not viewed");
        assert!(view.iter().all(|byte| *byte == 0));
        drop(view);
        guard.write(5000, 5001, |bytes| bytes.fill(1)).expect("not viewed any more");
        println!("refused: {error}");
        drop(rest);
    }
}
