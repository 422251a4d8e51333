//! Folios: naturally aligned, power-of-two pieces of a file in memory, 4 KiB to 2 MiB, with state per block.
//!
//! ```text
//!   block        0   1   2   3   4 …
//!   uptodate     1   1   1   0   0      memory holds the block's content
//!   dirty        0   1   1   0   0      … which the device does not have
//!   in flight   [----)                  blocks a device is reading from this memory now
//! ```
//!
//! Invariants:
//! - A dirty block is uptodate. Setting bits rounds outwards, to every block touched; clearing dirty bits rounds
//!   inwards, to blocks wholly covered. Were it otherwise, dropping part of a block would lose the rest of it.
//! - Dirty bits, `removed` and `writeback` are set, and dirty bits cleared, only under the folio's lock.
//! - Blocks in flight are not changed: a writer waits for the I/O (not for the conversion after it). So what is on the
//!   device is what one moment's memory held, and an append never shows half of itself after a crash.
//! - `writeback` is cleared last of all: after the transaction that converted the folio's blocks and moved the size
//!   has been joined and left. Who waits for it (truncate, fsync) knows that the metadata is in a transaction.
//! - Bytes that somebody views ([`crate::file::map`]) do not change: the folio goes on with other memory first. Views are
//!   made under the folio's lock, so that none comes up between a look and what follows from it.
//!
//! Locks: the folio lock is async and may be held across I/O; the state mutex, below that of the tree of folios; the locks
//! of the memory, leaves.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use ext4_core::device::{PoolMemory, PoolView};
use ext4_core::{BlockSize, Error, Result};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::base::lock_order::{Level, Rank, Token, assert_no_handle};
use crate::cache::block_set::BlockSet;

/// The folio lock in the lock order.
const RANK: Rank = Rank::new(Level::Folio);

/// More uses than this are not counted.
const MOST_USES: u8 = 3;

#[derive(Debug)]
struct State {
    locked: bool,
    removed: bool,
    writeback: bool,
    /// Somebody waits for a change.
    waited_for: bool,
    /// Pieces in ioends that are not finished, and one while the folio is being written back.
    pieces: u32,
    /// Pieces whose I/O has not ended, and the blocks from the first to the last of them.
    pieces_in_flight: u32,
    in_flight: Range<u32>,
    uptodate: BlockSet,
    dirty: BlockSet,
    read_error: Option<Error>,
}

impl State {
    /// A device may be reading the memory of one of `blocks`.
    fn is_in_flight(&self, blocks: &Range<u32>) -> bool {
        self.in_flight.start < blocks.end && blocks.start < self.in_flight.end
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Folio {
    /// Other memory takes its place where somebody views what is to be changed ([`crate::file::map`]).
    memory: RwLock<Arc<PoolMemory>>,
    len: usize,
    start: u64,
    block_size: BlockSize,
    blocks: u32,
    /// How often it was found again, up to a few: for reclaim.
    uses: AtomicU8,
    state: Mutex<State>,
    changed: Notify,
}

impl Folio {
    /// A folio at byte `start` of the file over `memory`, nothing of it uptodate.
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

    /// The first byte of the file in it.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The byte behind the last.
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

    /// The first logical block.
    pub fn first_block(&self) -> u32 {
        (self.start >> self.block_size.bits()) as u32
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
    pub fn touch(&self) {
        // Two that come at once may count as one.
        let uses = self.uses.load(Ordering::Relaxed);
        if uses < MOST_USES {
            self.uses.store(uses + 1, Ordering::Relaxed);
        }
    }

    /// How many uses were noted, up to a few.
    pub fn uses(&self) -> u8 {
        self.uses.load(Ordering::Relaxed)
    }

    /// Forgets the uses; returns how many there were.
    pub fn take_uses(&self) -> u8 {
        self.uses.swap(0, Ordering::Relaxed)
    }

    /// Locks the folio where nobody has it locked.
    pub fn try_lock(self: &Arc<Self>) -> Option<FolioGuard> {
        FolioGuard::try_new(Arc::clone(self)).ok()
    }

    /// Locks the folio. The caller checks [`Folio::is_removed`] then.
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
        loop {
            let notified = self.changed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            {
                let mut state = self.state.lock();
                if let Some(value) = ready(&mut state) {
                    return value;
                }
                state.waited_for = true;
            }
            notified.await;
        }
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

    /// True once the folio is no part of the file any more: look it up again.
    pub fn is_removed(&self) -> bool {
        self.state.lock().removed
    }

    /// True between the start of a writeback and the end of its conversions.
    pub fn is_under_writeback(&self) -> bool {
        self.state.lock().writeback
    }

    /// True where a block of it has to be written.
    pub fn is_dirty(&self) -> bool {
        !self.state.lock().dirty.is_empty()
    }

    /// Waits until no device reads the memory of `blocks`.
    pub async fn wait_for_io(&self, blocks: &Range<u32>) {
        assert_no_handle("waiting for data I/O");
        self.wait_until(|state| (!state.is_in_flight(blocks)).then_some(())).await;
    }

    /// True where a device may be reading the memory of one of `blocks`.
    pub fn is_in_flight(&self, blocks: &Range<u32>) -> bool {
        self.state.lock().is_in_flight(blocks)
    }

    /// True where the content of all `blocks` is in memory.
    pub fn is_uptodate(&self, blocks: Range<u32>) -> bool {
        self.state.lock().uptodate.contains(blocks)
    }

    /// The first of `blocks` whose content is not in memory, and those that follow it.
    pub fn next_not_uptodate(&self, blocks: Range<u32>) -> Option<Range<u32>> {
        self.state.lock().uptodate.next_gap(blocks.start, blocks.end)
    }

    /// The first run of `blocks` that is dirty.
    pub fn next_dirty(&self, blocks: Range<u32>) -> Option<Range<u32>> {
        self.state.lock().dirty.next_run(blocks.start, blocks.end)
    }

    /// True where `block` is dirty.
    pub fn is_block_dirty(&self, block: u32) -> bool {
        self.state.lock().dirty.contains(block..block + 1)
    }

    /// The error of a read that failed since the last call.
    pub fn take_read_error(&self) -> Option<Error> {
        self.state.lock().read_error.take()
    }

    /// Part of one ioend finished: its I/O, its conversion and its size are done. True when that ended the folio's
    /// writeback.
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

    /// Writes `data` at byte `position` of the file, where its blocks lie in the folio, are dirty, and nobody has locked the
    /// folio or reads or views them; then calls `written`: both as under the folio's lock, in one step. False where it is
    /// not so; then nothing happened. For a few bytes: who asks for the state meanwhile waits.
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

/// The folio is locked as long as this lives. What changes a folio is a method of its guard.
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

/// What a write wants to know of the blocks it changes, all at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WriteState {
    /// The folio is no part of the file any more.
    pub removed: bool,
    /// A device may be reading one of the blocks.
    pub in_flight: bool,
    /// All of them are dirty: what lies below is known to be there or promised.
    pub dirty: bool,
    /// Memory holds the content of the first, and of the last.
    pub uptodate: [bool; 2],
}

impl FolioGuard {
    /// Locks `folio` where nobody has it locked; gives it back otherwise.
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

    /// The lock is the I/O's from now on: the operation that took it no longer holds it, whoever drops the guard.
    pub fn lend_to_io(mut self) -> Self {
        self.token = Token::none();
        self
    }

    /// What a write to `blocks`, of which there is one at least, has to know.
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
    /// The host's refusal to map memory, where somebody views them: then nothing was changed.
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

    /// Where somebody views bytes of `blocks`, the folio goes on with other memory: [`FolioGuard::write`] and
    /// [`FolioGuard::zero`] succeed for them as long as the folio is locked.
    ///
    /// # Errors
    /// As [`FolioGuard::write`].
    pub fn make_unviewed(&self, blocks: Range<u32>) -> Result<()> {
        let bits = self.block_size.bits();
        let viewed = self.memory.read().is_viewed(blocks.start << bits, (blocks.end - blocks.start) << bits);
        if viewed { self.leave_to_viewers() } else { Ok(()) }
    }

    /// Where somebody views bytes of `blocks` that are not uptodate, the folio goes on with other memory. To be asked
    /// once, before a device reads into any of them.
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

    /// The folio goes on with a copy of its memory. What is on its way to the device goes on from the old memory.
    fn leave_to_viewers(&self) -> Result<()> {
        let mut memory = self.memory.write();
        let len = self.len as u32;
        let pool = memory.pool();
        // The bound on views bounds this ([`crate::file::map`]).
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

    /// `blocks` hold their content now.
    pub fn set_uptodate(&self, blocks: Range<u32>) {
        self.state.lock().uptodate.insert(blocks);
    }

    /// `blocks` were changed. True when the folio was clean before.
    pub fn set_dirty(&self, blocks: Range<u32>) -> bool {
        let mut state = self.state.lock();
        let was_clean = state.dirty.is_empty();
        state.uptodate.insert(blocks.clone());
        state.dirty.insert(blocks);
        was_clean
    }

    /// The content of `blocks` is dropped: neither dirty nor uptodate. True when that made the folio clean.
    pub fn discard_blocks(&self, blocks: Range<u32>) -> bool {
        let mut state = self.state.lock();
        let was_dirty = !state.dirty.is_empty();
        state.uptodate.remove(blocks.clone());
        state.dirty.remove(blocks);
        was_dirty && state.dirty.is_empty()
    }

    /// The folio leaves the file. True when it was dirty.
    pub fn set_removed(&self) -> bool {
        self.change(|state| {
            state.removed = true;
            let was_dirty = !state.dirty.is_empty();
            let blocks = self.blocks;
            state.dirty.remove(0..blocks);
            was_dirty
        })
    }

    /// Remembers the error of a read, for whoever waits for it.
    pub fn set_read_error(&self, error: Error) {
        self.state.lock().read_error = Some(error);
    }

    /// Begins a writeback: takes all dirty bits off and returns them. [`Folio::finish_piece`] is owed once for the
    /// writeback itself.
    pub fn start_writeback(&self) -> BlockSet {
        let mut state = self.state.lock();
        debug_assert!(!state.writeback, "one writeback at a time");
        state.writeback = true;
        state.pieces = 1;
        let empty = BlockSet::empty(self.blocks);
        std::mem::replace(&mut state.dirty, empty)
    }

    /// `blocks` became part of an ioend: [`Folio::end_piece_io`] and [`Folio::finish_piece`] are owed once each.
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
        assert_eq!(folio.memory().as_ptr(), first, "nobody looks there");
        // A device may fill blocks that are not uptodate: never those that somebody looks at.
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

    /// A child of its own, whose address space ends where it is.
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
        guard.zero(0, 2 << 20).expect("nobody looks");
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
        guard.make_unviewed(2..3).expect("nobody looks there");
        guard.write(8192, 8193, |bytes| bytes.fill(2)).expect("nobody looks there");
        assert!(view.iter().all(|byte| *byte == 0));
        drop(view);
        guard.write(5000, 5001, |bytes| bytes.fill(1)).expect("nobody looks any more");
        println!("refused: {error}");
        drop(rest);
    }
}
