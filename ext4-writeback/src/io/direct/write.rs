//! Direct writes: which lock they take, what they allocate, and when they fall back to the page cache
//! (kernel: `ext4_dio_write_iter`).
//!
//! ```text
//!   overwrite: rwlock shared    → write back, blocks all there ─► invalidate → I/O → convert → invalidate
//!   else:      rwlock exclusive → write back, allocate unwritten ─► the same, i_size at the end
//!                               → inline data, part of an unwritten block, indirect holes ─► page cache
//! ```

use std::ops::Range;
use std::sync::Arc;

use ext4_core::device::{AlignedBuffer, BioFlags, Operation};
use ext4_core::{BlockNumber, Errno, Error, IoPurpose, LogicalBlock, Result};

use crate::base::counters::LiveCounters;
use crate::cache::extent_status::status::Status;
use crate::inode::InodeInfo;
use crate::io::buffered_write;
use crate::io::direct::complete::Run;
use crate::io::direct::transfer::{Piece, transfer};
use crate::io::direct::{check_aligned, coherence, complete, is_inline};
use crate::io::zero::zero_block_tail;
use crate::iomap::allocate::{self, ENOSPC_RETRIES};
use crate::iomap::{self, pointers};
use crate::volume::OnMedium;
use crate::writeback::Engine;

/// The plan of a direct write: the pieces of the buffer, and the unwritten runs that are converted after the
/// I/O.
#[derive(Default)]
struct Plan {
    pieces: Vec<Piece>,
    unwritten: Vec<Run>,
}

/// The mapping of a range that is to be written.
enum Ground {
    /// All blocks are there, and no unwritten block would be written in part.
    Ready(Plan),
    /// These blocks are holes.
    Holes(Vec<Range<LogicalBlock>>),
    /// A hole or an unwritten block would be written in part.
    Partial,
}

/// Flags of a direct write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// True if the write must not wait for anything before its I/O starts (RWF_NOWAIT).
    pub nowait: bool,
    /// True if the data is to be on the medium at the end (FUA), as far as it needs no conversion.
    pub through: bool,
}

/// The result of a direct write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    /// The first byte of the file.
    pub at: u64,
    /// The length in bytes.
    pub count: usize,
    /// [`OnMedium::Yes`] if all bytes are on the medium already.
    pub on_medium: OnMedium,
}

impl Written {
    /// `count` bytes at byte `at`, which may be in the device's cache only.
    pub fn at(at: u64, count: usize) -> Self {
        Self { at, count, on_medium: OnMedium::No }
    }
}

/// Direct write of `buffer` at byte `position`, or at i_size if `None`.
///
/// # Errors
/// - `EINVAL`: offset or length is not a multiple of the device's logical block.
/// - `EFBIG`: the write would end behind the largest size of the file.
/// - `ENOSPC`: there are no free blocks.
/// - `EAGAIN`: `how.nowait` is true, and the write would wait.
/// - `ENOENT`: the inode has been deleted.
/// - Those of the journal and of the device.
pub(crate) async fn write(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: Option<u64>,
    buffer: &mut AlignedBuffer,
    how: How,
) -> Result<Written> {
    check_aligned(engine, inode, position.unwrap_or(0), buffer.len())?;
    if buffer.is_empty() {
        return Ok(Written::at(position.unwrap_or(0), 0));
    }
    LiveCounters::add(&engine.volume.counters.direct_writes, 1);
    if let Some(offset) = position
        && let Some(written) = overwrite(engine, inode, offset, buffer, how).await?
    {
        return Ok(written);
    }
    if how.nowait {
        return Err(would_wait(inode));
    }
    allocate_and_write(engine, inode, position, buffer).await
}

fn would_wait(inode: &InodeInfo) -> Error {
    Error::posix(Errno::EAGAIN, format!("inode {}: a direct write would wait", inode.number))
}

/// An overwrite of blocks that are there, within i_size: `rwlock` is shared, and handles are begun for
/// conversions only. `None` if the write is not such an overwrite.
async fn overwrite(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    offset: u64,
    buffer: &mut AlignedBuffer,
    how: How,
) -> Result<Option<Written>> {
    let How { nowait, through } = how;
    let _content = match inode.rwlock.try_read() {
        Ok(guard) => guard,
        Err(_) if nowait => return Err(would_wait(inode)),
        Err(_) => inode.rwlock.read().await,
    };
    inode.check_alive()?;
    let range = offset..offset.saturating_add(buffer.len() as u64);
    if range.end > inode.size() || is_inline(inode).await {
        return Ok(None);
    }
    if nowait && (coherence::is_busy(inode, &range) || inode.completion.disk_size() < range.end) {
        return Err(would_wait(inode));
    }
    coherence::write_back(engine, inode, &range).await?;
    coherence::ensure_disksize(engine, inode, range.end).await?;
    let Ground::Ready(plan) = survey(engine, inode, &range).await? else { return Ok(None) };
    coherence::invalidate(inode, &range).await;
    // Blocks to be converted need a commit, whose flush covers the data too.
    let on_medium = if through && plan.unwritten.is_empty() { OnMedium::Yes } else { OnMedium::No };
    let written = carry_out(engine, inode, &plan, None, buffer, on_medium).await;
    coherence::invalidate(inode, &range).await;
    written.map(|()| Some(Written { at: offset, count: buffer.len(), on_medium }))
}

/// Any other write: `rwlock` is held for writing until the blocks are there and, if the file grows, to the
/// end.
async fn allocate_and_write(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: Option<u64>,
    buffer: &mut AlignedBuffer,
) -> Result<Written> {
    let content = inode.rwlock.write().await;
    inode.check_alive()?;
    let size = inode.size();
    let offset = position.unwrap_or(size);
    check_aligned(engine, inode, offset, buffer.len())?;
    let range = offset..offset.saturating_add(buffer.len() as u64);
    let limit = pointers::max_size(&engine.volume, inode).await;
    if range.end > limit {
        let context = format!("a direct write at {}..{}: files end at {limit}", range.start, range.end);
        return Err(Error::posix(Errno::EFBIG, context));
    }
    if is_inline(inode).await {
        return through_cache(engine, inode, &range, buffer).await;
    }
    if offset > size {
        zero_block_tail(engine, inode, size).await?;
    }
    let extends = range.end > size;
    coherence::write_back(engine, inode, &range).await?;
    if extends {
        // The zeros behind the old end are data too: they are on the device before i_disksize passes them.
        coherence::write_back(engine, inode, &(size.saturating_sub(1)..size + 1)).await?;
    }
    coherence::ensure_disksize(engine, inode, size.min(range.end)).await?;
    let indirect = inode.is_indirect().await;
    let mut allocated = Vec::new();
    let plan = match survey(engine, inode, &range).await? {
        Ground::Ready(plan) => plan,
        Ground::Holes(holes) if !indirect => {
            allocated = holes;
            let planned = match allocate(engine, inode, &allocated).await {
                Ok(()) => survey(engine, inode, &range).await,
                Err(error) => Err(error),
            };
            match planned {
                Ok(Ground::Ready(plan)) => plan,
                Ok(_) => {
                    let what = format!("inode {} bytes {}..{}", inode.number, range.start, range.end);
                    return Err(Error::corrupt(what, "a hole where blocks were just allocated"));
                }
                Err(error) => return Err(give_back(engine, inode, &allocated, error).await),
            }
        }
        Ground::Holes(_) | Ground::Partial => return through_cache(engine, inode, &range, buffer).await,
    };
    coherence::invalidate(inode, &range).await;
    if extends {
        let written = carry_out(engine, inode, &plan, Some(range.end), buffer, OnMedium::No).await;
        coherence::invalidate(inode, &range).await;
        return match written {
            Ok(()) => Ok(Written::at(offset, buffer.len())),
            Err(error) => Err(give_back(engine, inode, &allocated, error).await),
        };
    }
    // The blocks are there and stay: other tasks may read and overwrite meanwhile. After a failure they stay
    // unwritten.
    let _content = content.downgrade();
    let written = carry_out(engine, inode, &plan, None, buffer, OnMedium::No).await;
    coherence::invalidate(inode, &range).await;
    written.map(|()| Written::at(offset, buffer.len()))
}

/// The I/O of a planned write, and its completion.
async fn carry_out(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    plan: &Plan,
    size: Option<u64>,
    buffer: &mut AlignedBuffer,
    on_medium: OnMedium,
) -> Result<()> {
    let flags = match on_medium {
        OnMedium::No => BioFlags::SYNC,
        OnMedium::Yes => BioFlags::SYNC | BioFlags::FUA,
    };
    let result = transfer(engine, Operation::Write, flags, &plan.pieces, buffer).await;
    if let Err(error) = &result
        && engine.volume.options.data_error_aborts
        && let Some(journal) = &engine.volume.journal
    {
        journal.abort(error);
    }
    result?;
    complete::complete(engine, inode, &plan.unwritten, size).await
}

/// After a failed write: frees the blocks that were allocated behind i_size. Returns `error`, for the caller.
async fn give_back(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    allocated: &[Range<LogicalBlock>],
    error: Error,
) -> Error {
    if let Err(second) = complete::free_behind_end(engine, inode, allocated).await {
        // They stay unwritten behind i_size, which is allowed; the next truncation frees them.
        tracing::warn!(inode = inode.number.0, error = %second, "blocks behind the end were not freed");
    }
    error
}

/// Looks up the mapping of bytes `range`, over which nothing is dirty.
async fn survey(engine: &Engine, inode: &InodeInfo, range: &Range<u64>) -> Result<Ground> {
    let block_size = engine.volume.info.block_size();
    let bits = block_size.bits();
    let byte = |block: LogicalBlock| block.byte(block_size);
    let first = LogicalBlock::containing(range.start, block_size);
    let last = LogicalBlock::at_or_behind(range.end, block_size);
    let mut plan = Plan::default();
    let mut holes = Vec::new();
    let mut partial = false;
    let mut at = first;
    while at < last {
        let extent = iomap::lookup(&engine.volume, inode, at).await?;
        let blocks = at..extent.end.min(last);
        let whole = byte(blocks.start) >= range.start && byte(blocks.end) <= range.end;
        let piece = |physical: BlockNumber| {
            let from = byte(blocks.start).max(range.start);
            let to = byte(blocks.end).min(range.end);
            let place = (physical.0 << bits) + (from - byte(blocks.start));
            Piece { len: (to - from) as usize, place: Some(place) }
        };
        match extent.status {
            Status::Written(physical) => plan.pieces.push(piece(physical)),
            Status::Unwritten(physical) => {
                partial |= !whole;
                plan.pieces.push(piece(physical));
                plan.unwritten.push(Run { blocks: blocks.clone(), physical });
            }
            Status::Hole => {
                partial |= !whole;
                holes.push(blocks.clone());
            }
            Status::Delayed => {
                // Its data could not be written back, and that was reported.
                let location = format!("inode {} block {at}", inode.number);
                return Err(Error::io("write back", location, Errno::EIO).for_purpose(IoPurpose::Data));
            }
        }
        at = blocks.end;
    }
    Ok(match (partial, holes.is_empty()) {
        (true, _) => Ground::Partial,
        (false, false) => Ground::Holes(holes),
        (false, true) => Ground::Ready(plan),
    })
}

/// Allocates `holes` as unwritten blocks.
async fn allocate(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, holes: &[Range<LogicalBlock>]) -> Result<()> {
    for hole in holes {
        let mut retries = 0;
        loop {
            match allocate::allocate_holes(&engine.volume, inode, hole.clone()).await {
                Ok(()) => break,
                Err(error) if error.errno() == Errno::ENOSPC && retries < ENOSPC_RETRIES => {
                    retries += 1;
                    // Freed blocks can be allocated after the commit.
                    if !engine.volume.commit_for_space().await? {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// The fallback for what cannot be written in place: a buffered write that is written back before it returns.
/// The caller holds `rwlock` for writing.
async fn through_cache(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    range: &Range<u64>,
    buffer: &AlignedBuffer,
) -> Result<Written> {
    LiveCounters::add(&engine.volume.counters.direct_fallbacks, 1);
    let count = buffered_write::write(engine, inode, range.start, buffer).await?;
    let written = range.start..range.start + count as u64;
    coherence::write_back(engine, inode, &written).await?;
    coherence::invalidate(inode, &written).await;
    Ok(Written::at(range.start, count))
}
