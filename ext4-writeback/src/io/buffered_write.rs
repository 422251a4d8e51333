//! Buffered writes: bytes are copied from the caller's memory into folios, with delayed allocation (kernel:
//! `iomap_file_buffered_write`, `ext4_da_write_begin`).
//!
//! Per folio: find or make it, lock it, wait for I/O on the blocks that change, read blocks that are
//! overwritten in part, look up the mapping. Then, with nothing awaited in between ([`step`]): reserve blocks
//! for the holes, copy, mark dirty, raise i_size. If the future is dropped before that step, nothing has
//! changed; if it is dropped after, all has. So there is no reservation without dirty data above it, and
//! nothing to undo if a copy fails. If nothing has to be waited for, as in most small writes, the step is
//! taken without a future around it ([`write_now`]).
//!
//! Without delayed allocation (by mount option, or if space is low) the holes are allocated first, as
//! unwritten blocks, under a handle that is stopped before any folio is locked. A file of indirect blocks has
//! no unwritten blocks: its indirect blocks are allocated first, and its data blocks are reserved as with
//! delayed allocation ([`crate::iomap::pointers`]).
//!
//! Invariants:
//! - The caller holds `rwlock` for writing: no other task truncates the file or fills its holes.
//! - A block that is overwritten in part is uptodate first, or zeroed around the copy if it is not written on
//!   the device.
//! - Bytes between the old i_size and the start of the write are zeros before i_size passes them.
//! - A writer is throttled before it locks a folio.

use std::ops::Range;
use std::sync::Arc;

use ext4_core::meta::block_map;
use ext4_core::{Errno, Error, LogicalBlock, Result};

use crate::base::counters::LiveCounters;
use crate::base::runtime::run_to_end;
use crate::cache::extent_status::status::{Reservation, Status};
use crate::cache::folio::{FolioGuard, WriteState};
use crate::inode::InodeInfo;
use crate::inode::locks::under_locks;
use crate::io::inline_data;
use crate::io::read::{find_or_create, read_blocks};
use crate::io::zero::zero_block_tail;
use crate::iomap;
use crate::iomap::allocate::{self, ENOSPC_RETRIES};
use crate::iomap::pointers::prepare_pointers;
use crate::iomap::reserved_blocks::ReservedBlocks;
use crate::writeback::Engine;
use crate::writeback::flusher::throttle;
use crate::writeback::sync_all;

/// Low space: free clusters below which writes allocate at once, as writeback may need them for metadata.
const LOW_SPACE_MARGIN: u64 = 64;

/// How many bytes are copied between two checks of the dirty limit.
const THROTTLE_STEP: u64 = 4 << 20;

/// For how many bytes of the file indirect blocks are allocated at a time.
const PREPARE_STEP: u64 = 1 << 20;

/// How one write gets its blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AllocationMode {
    /// Delayed allocation: blocks are reserved.
    Delayed,
    /// Holes are allocated as unwritten before the copy.
    AtOnce,
}

/// Delayed allocation, or not: if few blocks are free, a reservation might not suffice, as the metadata of
/// the extents needs blocks too (kernel: `ext4_nonda_switch`).
pub(crate) fn allocation_mode(engine: &Engine) -> AllocationMode {
    if !engine.volume.options.delayed_allocation {
        return AllocationMode::AtOnce;
    }
    let (free, reserved) = engine.volume.info.free_and_reserved_blocks();
    if reserved > 0 && free < 2 * reserved {
        engine.dirty.kick_everything();
    }
    if 2 * free < 3 * reserved || free < reserved + (LOW_SPACE_MARGIN << engine.volume.info.cluster_bits()) {
        return AllocationMode::AtOnce;
    }
    AllocationMode::Delayed
}

/// Returns true if a file of indirect blocks gets its indirect blocks before its data blocks are reserved:
/// always without delayed allocation, and if publication might not find three indirect blocks for each
/// reserved block.
pub(crate) fn needs_pointers_first(engine: &Engine) -> bool {
    let (free, reserved) = engine.volume.info.free_and_reserved_blocks();
    !engine.volume.options.delayed_allocation || free < 4 * reserved + LOW_SPACE_MARGIN
}

/// Buffered write of `data` at byte `position`. The caller holds `rwlock` for writing. Returns how many bytes
/// were written: fewer than asked for if an error came after some.
///
/// # Errors
/// - `ENOSPC`: there are no free blocks.
/// - `EFBIG`: the range lies behind what the file can map.
/// - Unsupported: a file of indirect blocks with bigalloc.
/// - Those of the journal and of the device; the host refuses to map memory.
pub(crate) async fn write(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
    data: &[u8],
) -> Result<usize> {
    write_reserved(engine, inode, position, data, None).await
}

/// As [`write()`], with blocks that are reserved already in `reserved`.
///
/// # Errors
/// As [`write()`].
pub(crate) async fn write_reserved(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
    data: &[u8],
    reserved: Option<&ReservedBlocks>,
) -> Result<usize> {
    if reserved.is_some() {
        inline_data::move_out(engine, inode).await?;
    } else if inline_data::write(engine, inode, position, data).await? {
        return Ok(data.len());
    }
    let size = inode.size();
    if position > size {
        zero_block_tail(engine, inode, size).await?;
    }
    let mut mode = match reserved {
        Some(reserved) if reserved.blocks() > 0 => Some(AllocationMode::Delayed),
        _ => None,
    };
    // The byte up to which a file of indirect blocks has its indirect blocks, if it must have them first.
    let mut prepared = u64::MAX;
    if inode.is_indirect().await {
        block_map::refuse_clusters(&engine.volume.info, inode.number)?;
        mode = Some(AllocationMode::Delayed);
        if needs_pointers_first(engine) {
            prepared = position;
        }
    }
    let mut done = 0;
    let mut retries = 0;
    // The caller has checked the dirty limit.
    let mut throttled = THROTTLE_STEP;
    while done < data.len() {
        let at = position + done as u64;
        if at - position >= throttled {
            throttle::throttle(engine, inode).await;
            throttled = at - position + THROTTLE_STEP;
        }
        let written = if at >= prepared {
            let end = (position + data.len() as u64).min(at + PREPARE_STEP);
            prepare(engine, inode, at, end).await.map(|()| {
                prepared = end;
                0
            })
        } else {
            let room = usize::try_from(prepared - at).unwrap_or(usize::MAX);
            let now = &data[done..data.len().min(done.saturating_add(room))];
            write_folio(engine, inode, at, now, mode, reserved).await
        };
        match written {
            Ok(count) => done += count,
            Err(error) if error.errno() == Errno::ENOSPC && retries < ENOSPC_RETRIES => {
                retries += 1;
                if !free_space(engine, retries).await? {
                    return partial(done, error);
                }
            }
            Err(error) => return partial(done, error),
        }
    }
    Ok(done)
}

/// Allocates the indirect blocks for bytes `position..end` of a file of indirect blocks. The caller holds
/// `rwlock` for writing.
///
/// # Errors
/// As [`prepare_pointers`].
pub(crate) async fn prepare(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
    end: u64,
) -> Result<()> {
    let block_size = engine.volume.info.block_size();
    let blocks = LogicalBlock::containing(position, block_size)..LogicalBlock::at_or_behind(end, block_size);
    let (shared, owned) = (Arc::clone(engine), Arc::clone(inode));
    under_locks(&engine.volume, inode, async move { prepare_pointers(&shared.volume, &owned, blocks).await })
        .await
}

fn partial(done: usize, error: Error) -> Result<usize> {
    if done > 0 { Ok(done) } else { Err(error) }
}

/// After ENOSPC: commits, as freed blocks can be allocated after the commit; at the first attempt writes all
/// data back before, as delayed data may need fewer blocks than are reserved. Returns true if the write may
/// be tried again.
///
/// # Errors
/// Those of the journal.
pub(crate) async fn free_space(engine: &Arc<Engine>, attempt: u32) -> Result<bool> {
    let Some(journal) = engine.volume.journal.clone() else { return Ok(false) };
    let shared = Arc::clone(engine);
    run_to_end(&engine.volume.runtime, async move {
        if attempt == 1 {
            // Errors are recorded in the inodes they belong to.
            let _ = sync_all::sync_all_data(&shared).await;
        }
        shared.volume.commit_and_release(&journal).await
    })
    .await?;
    Ok(true)
}

/// Writes as much of `data` as goes into the folio that holds byte `position`. `mode`: how holes are filled;
/// `None` if the free space decides.
async fn write_folio(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
    data: &[u8],
    mode: Option<AllocationMode>,
    reserved: Option<&ReservedBlocks>,
) -> Result<usize> {
    let wanted = data.len() as u64;
    let sequential = inode.pages.writes.go_on_at(position);
    let mut folio = find_or_create(engine, inode, position, wanted, sequential).await?;
    loop {
        match step(engine, inode, &folio, position, data, mode, reserved)? {
            Step::Done(count) => return Ok(count),
            Step::Removed => {
                drop(folio);
                folio = find_or_create(engine, inode, position, wanted, sequential).await?;
            }
            Step::InFlight(blocks) => {
                LiveCounters::add(&engine.volume.counters.stalls, 1);
                folio.wait_for_io(&blocks).await;
            }
            Step::Unknown(block) => {
                iomap::lookup(&engine.volume, inode, block).await?;
            }
            Step::Read(blocks) => folio = read_blocks(engine, inode, folio, blocks).await?,
            Step::Hole(first) => {
                drop(folio);
                let (shared, owned) = (Arc::clone(engine), Arc::clone(inode));
                // All holes of this call, at once.
                let block_size = engine.volume.info.block_size();
                let last = LogicalBlock::at_or_behind(position + wanted, block_size);
                under_locks(&engine.volume, inode, async move {
                    allocate::allocate_holes(&shared.volume, &owned, first..last).await
                })
                .await?;
                folio = find_or_create(engine, inode, position, wanted, sequential).await?;
            }
        }
    }
}

/// Buffered write without waiting. Returns true if `data` was written at byte `position`: the folio was there
/// and took all of it. Otherwise nothing has changed. The caller holds `rwlock` for writing.
pub(crate) fn write_now(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, position: u64, data: &[u8]) -> bool {
    let size = inode.size();
    // The first bytes of an empty file may become inline data.
    if inode.is_inline() || !inode.has_extents() || size == 0 || position > size {
        return false;
    }
    let end = position + data.len() as u64;
    let goes_on = inode.pages.writes.go_on_at(position);
    let folio = match inode.pages.write_dirty(position, data, goes_on, || note_written(inode, end)) {
        Ok(()) => return true,
        Err(Some(folio)) if end <= folio.end() => folio,
        Err(_) => return false,
    };
    let Ok(folio) = FolioGuard::try_new(folio) else { return false };
    if !goes_on {
        folio.mark_accessed();
    }
    // An error is met again by the write with a future, which may free space.
    matches!(step(engine, inode, &folio, position, data, None, None), Ok(Step::Done(_)))
}

/// The outcome of a write to one folio: done, or what has to be done first.
enum Step {
    /// This many bytes were written.
    Done(usize),
    /// The folio was removed from the page cache.
    Removed,
    /// A bio may be reading the memory of some of these blocks of the folio.
    InFlight(Range<u32>),
    /// The extent status tree does not know this block of the file.
    Unknown(LogicalBlock),
    /// These blocks of the folio are overwritten in part, and have to be read first.
    Read(Range<u32>),
    /// There are holes from this block of the file on, and space is too low for reservations.
    Hole(LogicalBlock),
}

/// Writes as much of `data` as goes into the locked folio, which holds byte `position`, or returns what has
/// to be done first: then nothing has changed.
fn step(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    folio: &FolioGuard,
    position: u64,
    data: &[u8],
    mode: Option<AllocationMode>,
    reserved: Option<&ReservedBlocks>,
) -> Result<Step> {
    let bits = engine.volume.info.block_size().bits();
    let end = folio.end().min(position + data.len() as u64);
    let data = &data[..(end - position) as usize];
    let touched = folio.blocks_touched(position, end);
    let state = folio.write_state(&touched);
    if state.removed {
        return Ok(Step::Removed);
    }
    if state.in_flight {
        return Ok(Step::InFlight(touched));
    }
    if state.dirty {
        // Dirty blocks are uptodate, and delayed or allocated.
        return copy(inode, folio, position, data, || {});
    }
    // The blocks at the edges, if they are overwritten in part and not in memory.
    let start_of = |block: u32| folio.start() + (u64::from(block) << bits);
    let covered = folio.blocks_covered(position, end);
    let first = folio.first_block();
    if covered != touched {
        let size = inode.size();
        for (block, uptodate) in edges(&touched, &state) {
            if covered.contains(&block) || uptodate || start_of(block) >= size {
                continue;
            }
            match inode.extent_status.lookup(first + block) {
                Some(extent) if matches!(extent.status, Status::Written(_)) => {
                    return Ok(Step::Read(block..block + 1));
                }
                Some(_) => {}
                None => return Ok(Step::Unknown(first + block)),
            }
        }
    }
    // From here on nothing fails once a block is delayed: one without dirty memory above it would never be
    // written.
    folio.make_unviewed(touched.clone())?;
    let mode = mode.unwrap_or_else(|| allocation_mode(engine));
    let mut hole = false;
    let reservation = inode.extent_status.reserve(first + touched.start..first + touched.end, |blocks| {
        if mode == AllocationMode::Delayed {
            match reserved {
                Some(reserved) => reserved.take(blocks)?,
                None => engine.volume.info.reserve_blocks(blocks)?,
            }
            tracing::trace!(ino = inode.number.0, reserve_blocks = blocks, "ext4_da_reserve_space");
            return Ok(());
        }
        hole = true;
        Err(Error::posix(Errno::EAGAIN, "blocks are allocated first"))
    });
    match reservation {
        Ok(Reservation::Done) => {}
        Ok(Reservation::NotCached(block)) => return Ok(Step::Unknown(block)),
        Err(_) if hole => return Ok(Step::Hole(first + touched.start)),
        Err(error) => return Err(error),
    }
    // Around the copy the block is not written on the device: zeros, except behind i_size, where no reader
    // looks and which writeback, or a task that extends the file, zeroes.
    let size = inode.size();
    for (block, uptodate) in edges(&touched, &state) {
        if !covered.contains(&block) && !uptodate {
            let (from, to) = (start_of(block), start_of(block + 1));
            folio.zero(from, position.clamp(from, to))?;
            folio.zero(end.clamp(from, to), size.clamp(end.clamp(from, to), to))?;
        }
    }
    copy(inode, folio, position, data, || engine.mark_dirty(inode, folio, touched))
}

/// The first and the last of the blocks that a write touches, and true for those that are uptodate.
fn edges(touched: &Range<u32>, state: &WriteState) -> [(u32, bool); 2] {
    [(touched.start, state.uptodate[0]), (touched.end - 1, state.uptodate[1])]
}

/// Copies `data` to byte `position` of the locked folio, whose blocks are ready for it; `mark` makes them
/// dirty.
fn copy(
    inode: &InodeInfo,
    folio: &FolioGuard,
    position: u64,
    data: &[u8],
    mark: impl FnOnce(),
) -> Result<Step> {
    let end = position + data.len() as u64;
    folio.write(position, end, |bytes| bytes.copy_from_slice(data))?;
    // Dirty first: a completion that saw the new i_size and nothing dirty before it would move i_disksize.
    mark();
    note_written(inode, end);
    Ok(Step::Done(data.len()))
}

/// Notes that a write ended at byte `end`. Called before the folio is unlocked: writeback zeroes bytes behind
/// i_size.
fn note_written(inode: &InodeInfo, end: u64) {
    if end > inode.size() {
        inode.raise_size(end);
    }
    inode.pages.writes.note(end);
}
