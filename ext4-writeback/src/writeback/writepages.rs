//! One pass of writepages over the dirty folios of one inode: which folios, in which order, and when it ends
//! (the kernel's `writeback_iter` and `writeback_control`).
//!
//! ```text
//!   range asked for                 [--------------)
//!   i_disksize          |
//!   range written       [--------------------------)     past i_disksize: from the block of i_disksize on
//!
//!   begin ─► next dirty folio ─► lock ─► not dirty any more ───────────────────────► skipped
//!        ▲                           ─► behind a truncation ──────────────────────► the pass ends
//!        │                           ─► under writeback: Sync ────────────────────► wait, look at it again
//!        │                                               Background, i_disksize  ─► the pass ends here
//!        │                                               Background, else ────────► skipped
//!        │                           ─► dirty ─► into ioends ─► error, budget ────► the pass ends
//!        └───────────────────────────────────────────────── else ─┘
//!   no folio left, or the pass ends ─► writeback index, last ioend closed
//! ```
//!
//! Invariants:
//! - A pass holds the inode's writeback lock and visits folios in ascending order, each once: it ends even if
//!   writers keep making folios dirty. A pass in [`Mode::Sync`] takes what was dirty when it began and
//!   nothing else: every folio has the number of the generation it became dirty in, and a pass begins a new
//!   generation.
//! - Data behind i_disksize is submitted in the order of the file, without gaps: a range that reaches past
//!   i_disksize begins at it, and a pass that may not wait stops at the first folio behind i_disksize that it
//!   would have to skip. Otherwise a later ioend would find nothing unfinished before it and move i_disksize,
//!   and a crash would show zeros in place of appended data.
//! - For the same reason a pass ends if the file was truncated while it ran: data behind the cut is new by
//!   now, and begins before the position of the pass.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use ext4_core::{LogicalBlock, Result};

use crate::base::counters::LiveCounters;
use crate::cache::extent_status::status::Status;
use crate::cache::folio::{Folio, FolioGuard};
use crate::inode::InodeInfo;
use crate::writeback::Engine;
use crate::writeback::completion::{self, wait};
use crate::writeback::gather::Gather;
use crate::writeback::writepage::WritepageContext;

/// Which folios a writepages pass waits for or skips, and what it does after an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// Everything that was dirty when the pass began (WB_SYNC_ALL): waits for folios that are under writeback
    /// already, goes on after an error.
    Sync,
    /// As much as the budget allows (WB_SYNC_NONE): skips folios that are under writeback, stops at an error.
    Background,
}

/// The kernel's `writeback_control`: what a writepages pass is asked to write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct WritebackControl {
    /// See [`Mode`].
    pub mode: Mode,
    /// Bytes of the file. Whole folios are written.
    pub range: Range<u64>,
    /// In [`Mode::Background`]: the pass stops when folios of this many bytes were written (nr_to_write).
    pub budget: u64,
    /// Only folios that became dirty in this generation or before
    /// ([`tag_dirty`](crate::cache::page_cache::AddressSpace::tag_dirty)). A pass in [`Mode::Sync`] begins
    /// a new generation.
    pub generation: u64,
    /// True if the pass begins at the inode's writeback index, not at the start of the range (range_cyclic).
    /// It does not wrap around.
    pub cyclic: bool,
}

impl WritebackControl {
    /// WB_SYNC_ALL over bytes `range`: for a caller that waits for the data.
    pub fn sync(range: Range<u64>) -> Self {
        Self { mode: Mode::Sync, range, budget: u64::MAX, generation: u64::MAX, cyclic: false }
    }

    /// WB_SYNC_NONE over bytes `range`: what is under writeback already is skipped.
    pub fn start(range: Range<u64>) -> Self {
        Self { mode: Mode::Background, range, budget: u64::MAX, generation: u64::MAX, cyclic: false }
    }

    /// An inode's turn in the flusher: about `budget` bytes, from the writeback index on.
    pub fn turn(budget: u64) -> Self {
        Self { mode: Mode::Background, range: 0..u64::MAX, budget, generation: u64::MAX, cyclic: true }
    }

    /// The same pass, for folios that became dirty in `generation` or before.
    pub fn before(self, generation: u64) -> Self {
        Self { generation, ..self }
    }
}

/// writepages: adds dirty folios of `inode` to ioends in `gather`. The caller holds the inode's writeback
/// lock, and submits `gather`. Returns how many bytes the folios have that were written.
///
/// # Errors
/// The first error of mapping a folio; `EROFS` or the journal's error if nothing may be written any more.
/// Every error is recorded in the inode too.
pub(crate) async fn writepages(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    gather: &mut Gather,
    control: &WritebackControl,
) -> Result<u64> {
    if inode.pages.is_dirty_folios()
        && let Err(error) = engine.volume.check_writable()
    {
        // The kernel's ext4_writepages stops here too: with a journal that stopped, no data goes out.
        inode.record_write_error(&engine.volume, &error);
        return Err(error);
    }
    gather.set_sync(control.mode == Mode::Sync);
    let mut pass = Pass::begin(engine, inode, gather, control).await;
    while let Some(folio) = pass.next_dirty() {
        if pass.visit(&folio).await.is_break() {
            break;
        }
    }
    pass.finish()
}

/// A writepages pass that is under way.
struct Pass<'a> {
    engine: &'a Arc<Engine>,
    inode: &'a Arc<InodeInfo>,
    gather: &'a mut Gather,
    control: &'a WritebackControl,
    context: WritepageContext<'a>,
    /// The youngest generation of dirty folios that is taken.
    generation: u64,
    /// The byte of the file where the pass looks for its next folio.
    position: u64,
    /// The byte behind the last that is looked at.
    end: u64,
    /// Bytes of the folios that were written.
    written: u64,
    /// The next pass's writeback index: 0, the start of the file, if this one gets to its end.
    next_index: u64,
    result: Result<()>,
}

impl<'a> Pass<'a> {
    async fn begin(
        engine: &'a Arc<Engine>,
        inode: &'a Arc<InodeInfo>,
        gather: &'a mut Gather,
        control: &'a WritebackControl,
    ) -> Self {
        let pages = &inode.pages;
        pages.pass.forget_cut();
        let generation = if control.mode == Mode::Sync { pages.tag_dirty() } else { control.generation };
        // Folios that become dirty behind this size by an append that races with the pass are the next
        // pass's.
        let end = control.range.end.min(inode.size());
        let mut position = if control.cyclic { pages.pass.index() } else { control.range.start };
        let disk_end = disk_end(engine, inode);
        if end > disk_end {
            position = position.min(disk_end);
        }
        if let Some(folio) = pages.find(position) {
            position = folio.start();
        }
        tracing::trace!(
            ino = inode.number.0,
            range_start = position,
            range_end = end,
            nr_to_write = control.budget,
            range_cyclic = control.cyclic,
            sync_mode = ?control.mode,
            "ext4_writepages"
        );
        let context = WritepageContext::new(engine, inode, control.range.end).await;
        Self {
            engine,
            inode,
            gather,
            control,
            context,
            generation,
            position,
            end,
            written: 0,
            next_index: 0,
            result: Ok(()),
        }
    }

    fn next_dirty(&self) -> Option<Arc<Folio>> {
        if self.position >= self.end {
            return None;
        }
        let folio = self.inode.pages.next_dirty(self.position, self.generation)?;
        (folio.start() < self.end).then_some(folio)
    }

    /// Writes `folio`, skips it, or waits until it can be looked at again; breaks if the pass ends.
    async fn visit(&mut self, folio: &Arc<Folio>) -> ControlFlow<()> {
        let guard = self.lock(folio).await;
        if guard.is_removed() || !guard.is_dirty() {
            self.position = guard.start() + 1;
            return ControlFlow::Continue(());
        }
        self.end = self.end.min(self.inode.pages.pass.cut());
        if guard.start() >= self.end {
            return ControlFlow::Break(());
        }
        if guard.is_under_writeback() {
            drop(guard);
            return self.meet_writeback(folio).await;
        }
        self.write(guard).await
    }

    async fn lock(&mut self, folio: &Arc<Folio>) -> FolioGuard {
        match folio.try_lock() {
            Some(guard) => guard,
            None => {
                // Before waiting for anything that may depend on this pass's own I/O, the plug goes out.
                self.gather.submit();
                folio.lock().await
            }
        }
    }

    /// `folio`, which is unlocked, is under writeback already: waits for it, skips it, or ends the pass.
    async fn meet_writeback(&mut self, folio: &Arc<Folio>) -> ControlFlow<()> {
        self.gather.submit();
        if self.control.mode == Mode::Sync {
            wait::wait_for_progress(self.engine, || !folio.is_under_writeback()).await;
            return ControlFlow::Continue(());
        }
        if folio.end() > disk_end(self.engine, self.inode) {
            self.next_index = folio.start();
            return ControlFlow::Break(());
        }
        self.position = folio.end();
        ControlFlow::Continue(())
    }

    /// Adds the dirty blocks of the locked folio to ioends; breaks at the end of the budget and, in the
    /// background, at an error.
    async fn write(&mut self, guard: FolioGuard) -> ControlFlow<()> {
        self.position = guard.end();
        self.written += guard.len() as u64;
        let tail = dirty_tail(self.engine, self.inode, &guard);
        if let Some(block) = tail {
            self.inode.completion.expect_tail(block);
        }
        // In flight before the dirty bits are taken: mapping may wait, and no size moves over them meanwhile.
        self.inode.completion.open_window(guard.start()..guard.end(), self.engine.dirty.next_ioend());
        let outcome = self.context.writeback_folio(self.gather, &guard).await;
        if let Some(block) = tail {
            self.gather.close();
            self.inode.completion.note_tail_sent(&outcome);
            if outcome.is_err() && self.inode.completion.failed_tail_block() == Some(block) {
                // Its zeros exist in memory only: the next pass tries again.
                let within = block - guard.first_block();
                self.engine.mark_dirty(self.inode, &guard, within..within + 1);
            }
        }
        if self.inode.completion.close_window() {
            completion::schedule(self.engine, self.inode);
        }
        if !guard.is_under_writeback() {
            // Nothing of it is in flight, so no ioend will wake the tasks that wait for the window.
            self.engine.dirty.note_progress();
        }
        drop(guard);
        if let Err(error) = outcome {
            self.inode.record_write_error(&self.engine.volume, &error);
            if self.result.is_ok() {
                self.result = Err(error);
            }
        }
        let stops = self.result.is_err() || self.written >= self.control.budget;
        if self.control.mode == Mode::Background && stops {
            self.next_index = self.position;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn finish(self) -> Result<u64> {
        if self.control.cyclic {
            self.inode.pages.pass.set_index(self.next_index);
        }
        self.gather.close();
        LiveCounters::add(&self.engine.volume.counters.passes, 1);
        tracing::trace!(
            ino = self.inode.number.0,
            ret = ?self.result.as_ref().err(),
            bytes_written = self.written,
            writeback_index = self.next_index,
            "ext4_writepages_result"
        );
        self.result.map(|()| self.written)
    }
}

/// The first byte of the block that i_disksize ends in.
fn disk_end(engine: &Engine, inode: &InodeInfo) -> u64 {
    inode.completion.disk_size() & !(u64::from(engine.volume.info.block_size().bytes()) - 1)
}

/// The block that i_disksize ends in, if i_disksize is unaligned, and the block is in `folio`, dirty, and may
/// be written on the device: what the device holds in it behind i_disksize must not show.
fn dirty_tail(engine: &Engine, inode: &InodeInfo, folio: &FolioGuard) -> Option<LogicalBlock> {
    let size = inode.completion.disk_size();
    let block_size = engine.volume.info.block_size();
    let within = (folio.start()..folio.end()).contains(&size);
    if !within || size.is_multiple_of(u64::from(block_size.bytes())) {
        return None;
    }
    let block = LogicalBlock::containing(size, block_size);
    let status = inode.extent_status.lookup(block).map(|extent| extent.status);
    let harmless = matches!(status, Some(Status::Hole | Status::Delayed | Status::Unwritten(_)));
    (!harmless && folio.is_block_dirty(block - folio.first_block())).then_some(block)
}
