//! Buffered writes: from the caller's memory into folios.
//!
//! Per folio: find or make it, lock it, wait for I/O on the blocks that change, read what is overwritten in part, know
//! what lies below. Then, with nothing awaited in between ([`step`]): promise space for the holes, copy, mark dirty, raise
//! i_size. A future that is dropped before leaves nothing; after, everything. So there is no reservation without
//! dirty data above it, and nothing to take back when a copy fails. Where nothing has to be waited for at all, as in most
//! small writes, the step is taken without a future around it ([`write_now`]).
//!
//! Without delayed allocation (asked for, or when space is low) the holes are allocated first, as unwritten blocks,
//! under a handle that is stopped before any folio is locked. A file of indirect blocks has nothing unwritten: there its
//! blocks of pointers are allocated first, and the rest is promised as ever ([`crate::iomap::pointers`]).
//!
//! Invariants:
//! - `rwlock` is held for writing: nobody truncates, and nobody else fills holes.
//! - A block that is overwritten in part is uptodate first, or zeroed around the copy where nothing written lies below.
//! - Bytes between the old end of the file and the start of the write are zeros before the size passes them.
//! - Throttling comes before any folio lock.

use crate::iomap::allocate;
use crate::writeback::flusher::throttle;
use crate::writeback::sync_all;
use std::ops::Range;
use std::sync::Arc;

use ext4_core::meta::block_map;
use ext4_core::{Errno, Error, Result};

use crate::base::counters::LiveCounters;
use crate::base::runtime::run_to_end;
use crate::cache::extent_status::status::{Reservation, Status};
use crate::cache::folio::{FolioGuard, WriteState};
use crate::inode::InodeInfo;
use crate::inode::locks::under_locks;
use crate::io::inline_data;
use crate::io::read::{find_or_create, read_blocks};
use crate::io::zero::{mark_dirty, zero_block_tail};
use crate::iomap;
use crate::iomap::allocate::ENOSPC_RETRIES;
use crate::iomap::pointers::prepare_pointers;
use crate::iomap::reserved_blocks::ReservedBlocks;
use crate::writeback::Engine;

/// Free blocks (clusters) below which writes allocate at once: what metadata may need on the way to the device.
const LOW_SPACE_MARGIN: u64 = 64;

/// How much is copied between two looks at the dirty limit.
const THROTTLE_STEP: u64 = 4 << 20;

/// For how many bytes blocks of pointers are allocated at a time.
const PREPARE_STEP: u64 = 1 << 20;

/// How one write gets its blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AllocationMode {
    Delayed,
    AtOnce,
}

/// Near the end of the space a promise may not be kept: the extent's own metadata needs blocks too.
pub(crate) fn allocation_mode(engine: &Engine) -> AllocationMode {
    if !engine.volume.options.delayed_allocation {
        return AllocationMode::AtOnce;
    }
    let (free, promised) = engine.volume.info.free_and_reserved_blocks();
    if promised > 0 && free < 2 * promised {
        engine.dirty.kick_everything();
    }
    if 2 * free < 3 * promised || free < promised + (LOW_SPACE_MARGIN << engine.volume.info.cluster_bits()) {
        return AllocationMode::AtOnce;
    }
    AllocationMode::Delayed
}

/// A file of indirect blocks gets its blocks of pointers before its data, which is promised: always without delayed
/// allocation, and where three of them for each promised block might not be found at publication.
pub(crate) fn needs_pointers_first(engine: &Engine) -> bool {
    let (free, promised) = engine.volume.info.free_and_reserved_blocks();
    !engine.volume.options.delayed_allocation || free < 4 * promised + LOW_SPACE_MARGIN
}

/// Writes `data` at byte `position`. The caller holds `rwlock` for writing. Returns how many bytes; fewer only where
/// an error came after some.
///
/// # Errors
/// `ENOSPC`, `EFBIG`, those of the device; unsupported for a file of indirect blocks where there are clusters.
pub(crate) async fn write(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
    data: &[u8],
) -> Result<usize> {
    write_promised(engine, inode, position, data, None).await
}

/// As [`write`], with blocks that `promise` holds already.
///
/// # Errors
/// As [`write`].
pub(crate) async fn write_promised(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
    data: &[u8],
    promise: Option<&ReservedBlocks>,
) -> Result<usize> {
    if promise.is_some() {
        inline_data::move_out(engine, inode).await?;
    } else if inline_data::write(engine, inode, position, data).await? {
        return Ok(data.len());
    }
    let size = inode.size();
    if position > size {
        zero_block_tail(engine, inode, size).await?;
    }
    let mut mode = match promise {
        Some(promise) if promise.blocks() > 0 => Some(AllocationMode::Delayed),
        _ => None,
    };
    // Up to where a file of indirect blocks has its blocks of pointers, where it must have them before.
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
    // The caller has looked at the dirty limit.
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
            write_folio(engine, inode, at, now, mode, promise).await
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

/// Allocates the blocks of pointers for bytes `position..end` of a file of indirect blocks. The caller holds `rwlock` for
/// writing.
pub(crate) async fn prepare(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
    end: u64,
) -> Result<()> {
    let bits = engine.volume.info.block_size().bits();
    let last = u32::try_from(end.div_ceil(1 << bits)).unwrap_or(u32::MAX);
    let blocks = (position >> bits) as u32..last;
    let (shared, owned) = (Arc::clone(engine), Arc::clone(inode));
    under_locks(&engine.volume, inode, async move { prepare_pointers(&shared.volume, &owned, blocks).await })
        .await
}

fn partial(done: usize, error: Error) -> Result<usize> {
    if done > 0 { Ok(done) } else { Err(error) }
}

/// Tries to get blocks back: those that were freed are free after the commit; data that is delayed may need fewer
/// than was promised.
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

/// Writes as much of `data` as goes into the folio that holds `position`. `mode`: how holes are filled, where that is not
/// for the free space to say.
async fn write_folio(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
    data: &[u8],
    mode: Option<AllocationMode>,
    promise: Option<&ReservedBlocks>,
) -> Result<usize> {
    let wanted = data.len() as u64;
    let sequential = inode.pages.writes.go_on_at(position);
    let mut folio = find_or_create(engine, inode, position, wanted, sequential).await?;
    loop {
        match step(engine, inode, &folio, position, data, mode, promise)? {
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
                // As much as this call writes, at once.
                let bits = engine.volume.info.block_size().bits();
                let last = (position + wanted).div_ceil(1 << bits).min(u64::from(u32::MAX)) as u32;
                under_locks(&engine.volume, inode, async move {
                    allocate::allocate_holes(&shared.volume, &owned, first..last).await
                })
                .await?;
                folio = find_or_create(engine, inode, position, wanted, sequential).await?;
            }
        }
    }
}

/// Writes `data` at `position` where nothing has to be waited for: the folio is there, and takes all of it. False where it
/// is not so; then nothing happened. The caller holds `rwlock` for writing.
pub(crate) fn write_now(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, position: u64, data: &[u8]) -> bool {
    let size = inode.size();
    // A file without bytes may be given some inside its inode.
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
        folio.touch();
    }
    // An error is found again by who writes step by step, who may find a remedy.
    matches!(step(engine, inode, &folio, position, data, None, None), Ok(Step::Done(_)))
}

/// What a write does with a folio, or what has to come first.
enum Step {
    /// So many bytes were written.
    Done(usize),
    /// The folio is no part of the file any more.
    Removed,
    /// A device may be reading some of these blocks.
    InFlight(Range<u32>),
    /// It is not known what lies below this block of the file.
    Unknown(u32),
    /// These blocks of the folio are overwritten in part, and what they hold is on the device only.
    Read(Range<u32>),
    /// There are holes from this block of the file on, and space is too low for promises.
    Hole(u32),
}

/// Writes as much of `data` as goes into the locked folio, which holds `position`, or says what has to come first: then
/// nothing was changed.
fn step(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    folio: &FolioGuard,
    position: u64,
    data: &[u8],
    mode: Option<AllocationMode>,
    promise: Option<&ReservedBlocks>,
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
        // Uptodate, and what lies below is known.
        return copy(inode, folio, position, data, || {});
    }
    // The blocks at the edges, where they are overwritten in part and not in memory.
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
    // From here on nothing fails once a block is delayed: one without dirty memory above it would never be written.
    folio.make_unviewed(touched.clone())?;
    let mode = mode.unwrap_or_else(|| allocation_mode(engine));
    let mut hole = false;
    let reserved = inode.extent_status.reserve(first + touched.start..first + touched.end, |blocks| {
        if mode == AllocationMode::Delayed {
            match promise {
                Some(promise) => promise.take(blocks)?,
                None => engine.volume.info.reserve_blocks(blocks)?,
            }
            tracing::trace!(ino = inode.number.0, reserve_blocks = blocks, "ext4_da_reserve_space");
            return Ok(());
        }
        hole = true;
        Err(Error::posix(Errno::EAGAIN, "blocks are allocated first"))
    });
    match reserved {
        Ok(Reservation::Done) => {}
        Ok(Reservation::NotCached(block)) => return Ok(Step::Unknown(block)),
        Err(_) if hole => return Ok(Step::Hole(first + touched.start)),
        Err(error) => return Err(error),
    }
    // Around the copy nothing written lies below: zeros, but for what is behind the end of the file, which nobody reads and
    // which writeback, or whoever extends the file, zeroes.
    let size = inode.size();
    for (block, uptodate) in edges(&touched, &state) {
        if !covered.contains(&block) && !uptodate {
            let (from, to) = (start_of(block), start_of(block + 1));
            folio.zero(from, position.clamp(from, to))?;
            folio.zero(end.clamp(from, to), size.clamp(end.clamp(from, to), to))?;
        }
    }
    copy(inode, folio, position, data, || mark_dirty(engine, inode, folio, touched))
}

/// The first and the last of the blocks that a write touches, and whether memory holds their content.
fn edges(touched: &Range<u32>, state: &WriteState) -> [(u32, bool); 2] {
    [(touched.start, state.uptodate[0]), (touched.end - 1, state.uptodate[1])]
}

/// Copies `data` to byte `position` of the locked folio, whose blocks are ready for it; `mark` makes them dirty.
fn copy(
    inode: &InodeInfo,
    folio: &FolioGuard,
    position: u64,
    data: &[u8],
    mark: impl FnOnce(),
) -> Result<Step> {
    let end = position + data.len() as u64;
    folio.write(position, end, |bytes| bytes.copy_from_slice(data))?;
    // Dirty first: a completion that saw the size and nothing dirty before it would take i_disksize along.
    mark();
    note_written(inode, end);
    Ok(Step::Done(data.len()))
}

/// A write ended at `end`. Before the folio is unlocked: writeback zeroes what lies behind the size.
fn note_written(inode: &InodeInfo, end: u64) {
    if end > inode.size() {
        inode.raise_size(end);
    }
    inode.pages.writes.note(end);
}
