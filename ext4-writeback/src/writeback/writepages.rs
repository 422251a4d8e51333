//! One pass over the dirty folios of one inode: which of them, in which order, and when it ends (the kernel's
//! `writeback_iter` and `writeback_control`).
//!
//! ```text
//!   range asked for                 [--------------)
//!   i_disksize          |
//!   range written       [--------------------------)     where it reaches past i_disksize: all from there on
//! ```
//!
//! Invariants:
//! - A pass holds the inode's writeback lock and visits folios in ascending order, each once: where writers keep
//!   making folios dirty, it ends all the same. A pass that waits takes what was dirty when it began and nothing else:
//!   every folio has the number of the generation it became dirty in, and a pass begins a new one.
//! - What lies behind i_disksize is submitted in the order of the file, without gaps: a range that reaches past it
//!   begins at it, and a pass that may not wait stops at the first folio behind it that it would have to skip. Were it
//!   otherwise, a later ioend would find nothing unfinished before it and take i_disksize along, and a crash would show
//!   zeros where appended data should be.
//! - For the same reason a pass ends where the file was cut off while it ran: what lies behind the cut by now is new,
//!   and begins before the place where the pass is.

use crate::writeback::completion::wait;
use std::ops::Range;
use std::sync::Arc;

use ext4_core::Result;

use crate::base::counters::LiveCounters;
use crate::cache::extent_status::status::Status;
use crate::cache::folio::FolioGuard;
use crate::inode::InodeInfo;
use crate::writeback::Engine;
use crate::writeback::gather::Gather;
use crate::writeback::writepage::WritepageContext;

/// What a pass does about what is busy, and about errors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// Everything that was dirty when it began (WB_SYNC_ALL): waits for folios that are under writeback already, goes
    /// on behind an error.
    Sync,
    /// As much as the budget allows (WB_SYNC_NONE): passes by what is busy, stops at an error.
    Background,
}

/// What a pass is asked to write (the kernel's `writeback_control`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct WritebackControl {
    /// See [`Mode`].
    pub mode: Mode,
    /// Bytes of the file. Whole folios are written.
    pub range: Range<u64>,
    /// In the background: it stops when folios of so many bytes were written (nr_to_write).
    pub budget: u64,
    /// Only folios that became dirty in this generation or before ([`PageCache::tag_dirty`](crate::cache::page_cache)). A pass
    /// in [`Mode::Sync`] begins a new one.
    pub generation: u64,
    /// It begins where the last pass of this kind stopped, not at the start of the range, and does not wrap
    /// (range_cyclic).
    pub cyclic: bool,
}

impl WritebackControl {
    /// `range`, for somebody who waits for it.
    pub fn sync(range: Range<u64>) -> Self {
        Self { mode: Mode::Sync, range, budget: u64::MAX, generation: u64::MAX, cyclic: false }
    }

    /// `range`, as far as it is not busy.
    pub fn start(range: Range<u64>) -> Self {
        Self { mode: Mode::Background, range, budget: u64::MAX, generation: u64::MAX, cyclic: false }
    }

    /// An inode's turn in the background: about `budget` bytes.
    pub fn turn(budget: u64) -> Self {
        Self { mode: Mode::Background, range: 0..u64::MAX, budget, generation: u64::MAX, cyclic: true }
    }

    /// The same, for what became dirty in `generation` or before.
    pub fn before(self, generation: u64) -> Self {
        Self { generation, ..self }
    }
}

/// Writes dirty folios of `inode` into `gather`. The caller holds the inode's writeback lock, and submits. Returns the
/// bytes of the folios it wrote.
///
/// # Errors
/// The first; errors are recorded in the inode too.
pub(crate) async fn writepages(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    gather: &mut Gather,
    control: &WritebackControl,
) -> Result<u64> {
    let pages = &inode.pages;
    if pages.is_dirty_folios()
        && let Err(error) = engine.volume.check_writable()
    {
        // The kernel's ext4_writepages stops here too: with a journal that stopped, no data goes out.
        inode.write_errors.record(&error);
        return Err(error);
    }
    gather.set_sync(control.mode == Mode::Sync);
    let disk_end = || {
        let size = inode.completion.disk_size();
        size & !(u64::from(engine.volume.info.block_size().bytes()) - 1)
    };
    pages.pass.forget_cut();
    let last = if control.mode == Mode::Sync { pages.tag_dirty() } else { control.generation };
    // Folios that become dirty behind this point by an append that races with us are the next pass's.
    let mut end = control.range.end.min(inode.size());
    let mut position = if control.cyclic { pages.pass.index() } else { control.range.start };
    if end > disk_end() {
        position = position.min(disk_end());
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
    let mut context = WritepageContext::new(engine, inode, control.range.end).await;
    let mut result = Ok(());
    let mut written = 0;
    // Where the next pass begins: at the start, where this one gets to the end.
    let mut index = 0;
    while position < end
        && let Some(folio) = pages.next_dirty(position, last)
        && folio.start() < end
    {
        let guard = match folio.try_lock() {
            Some(guard) => guard,
            None => {
                // Before waiting for anything that may depend on our own I/O, the plug goes out.
                gather.submit();
                folio.lock().await
            }
        };
        if guard.is_removed() || !guard.is_dirty() {
            position = guard.start() + 1;
            continue;
        }
        end = end.min(pages.pass.cut());
        if guard.start() >= end {
            break;
        }
        if guard.is_under_writeback() {
            drop(guard);
            if control.mode == Mode::Sync {
                gather.submit();
                wait::wait_for_progress(engine, || !folio.is_under_writeback()).await;
                continue;
            }
            gather.submit();
            if folio.end() > disk_end() {
                index = folio.start();
                break;
            }
            position = folio.end();
            continue;
        }
        position = guard.end();
        written += guard.len() as u64;
        let tail = dirty_tail(engine, inode, &guard);
        if let Some(block) = tail {
            inode.completion.expect_tail(block);
        }
        let outcome = context.writeback_folio(gather, &guard).await;
        if tail.is_some() {
            gather.close();
            inode.completion.note_tail_sent(&outcome);
        }
        drop(guard);
        if let Err(error) = outcome {
            inode.write_errors.record(&error);
            result = result.and(Err(error));
        }
        if control.mode == Mode::Background && (result.is_err() || written >= control.budget) {
            index = position;
            break;
        }
    }
    if control.cyclic {
        pages.pass.set_index(index);
    }
    gather.close();
    LiveCounters::add(&engine.volume.counters.passes, 1);
    tracing::trace!(
        ino = inode.number.0,
        ret = ?result.as_ref().err(),
        bytes_written = written,
        writeback_index = index,
        "ext4_writepages_result"
    );
    result.map(|()| written)
}

/// The block that i_disksize ends in, where that is unaligned, and the block is in `folio`, dirty, and may be written on
/// the device: what is behind it there must not show.
fn dirty_tail(engine: &Engine, inode: &InodeInfo, folio: &FolioGuard) -> Option<u32> {
    let size = inode.completion.disk_size();
    let block_size = engine.volume.info.block_size();
    let within = (folio.start()..folio.end()).contains(&size);
    if !within || size.is_multiple_of(u64::from(block_size.bytes())) {
        return None;
    }
    let block = (size >> block_size.bits()) as u32;
    let status = inode.extent_status.lookup(block).map(|extent| extent.status);
    let harmless = matches!(status, Some(Status::Hole | Status::Delayed | Status::Unwritten(_)));
    (!harmless && folio.is_block_dirty(block - folio.first_block())).then_some(block)
}
