//! Direct reads: from the device into an aligned buffer, or without waiting (RWF_NOWAIT) from what is known
//! in memory.

use std::sync::Arc;

use ext4_core::device::{AlignedBuffer, BioFlags, Operation};
use ext4_core::{Errno, Error, IoPurpose, LogicalBlock, Result};

use crate::base::counters::LiveCounters;
use crate::cache::extent_status::status::Status;
use crate::inode::InodeInfo;
use crate::io::direct::transfer::{Piece, transfer};
use crate::io::direct::{coherence, unit};
use crate::io::inline_data;
use crate::iomap;
use crate::iomap::Kind;
use crate::writeback::Engine;

/// Direct read at byte `offset` into `buffer`, both aligned to the logical block of the device. Returns how
/// many bytes: fewer only at the end of the file.
///
/// # Errors
/// - `ENOENT`: the inode has been deleted.
/// - `EIO`: delayed data over the range could not be written back.
/// - Those of writeback and of the device; corrupt metadata.
pub(crate) async fn read(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    offset: u64,
    buffer: &mut AlignedBuffer,
) -> Result<usize> {
    let _content = inode.rwlock.read().await;
    inode.check_alive()?;
    if let Some(count) = inline_data::read(inode, offset, buffer).await? {
        // The file became inline while this waited for `rwlock`.
        return Ok(count);
    }
    let size = inode.size();
    let end = offset.saturating_add(buffer.len() as u64).min(size);
    if offset >= end {
        return Ok(0);
    }
    LiveCounters::add(&engine.volume.counters.direct_reads, 1);
    let range = offset..end.next_multiple_of(unit(engine));
    coherence::write_back(engine, inode, &range).await?;
    let mut pieces: Vec<Piece> = Vec::new();
    let mut maps = iomap::Iterator::new(&engine.volume, inode, range.start, range.end);
    while let Some(map) = maps.next().await? {
        let place = match map.kind {
            Kind::Mapped(byte) => Some(byte),
            Kind::Hole | Kind::Unwritten(_) => None,
            Kind::Delalloc => {
                let location = format!("inode {} at byte {}", inode.number, map.offset);
                return Err(Error::io("write back", location, Errno::EIO).for_purpose(IoPurpose::Data));
            }
        };
        pieces.push(Piece { len: map.length as usize, place });
    }
    transfer(engine, Operation::Read, BioFlags::SYNC, &pieces, buffer).await?;
    // The device may hold any bytes behind the end of the file: they must not show.
    let count = (end - offset) as usize;
    let read = (range.end - range.start) as usize;
    buffer[count..read].fill(0);
    Ok(count)
}

/// Reads without I/O and without waiting, from byte `offset` on without a gap: bytes in the page cache, and
/// zeros for holes and unwritten blocks. `None` if not even the first byte is known.
///
/// Dirty data is copied from memory instead of being written back first: the bytes are the same.
///
/// # Errors
/// - `ENOENT`: the inode has been deleted.
/// - Corrupt: the inline data is not valid.
pub(crate) fn read_now(
    engine: &Engine,
    inode: &InodeInfo,
    offset: u64,
    buffer: &mut [u8],
) -> Result<Option<usize>> {
    // Truncation and buffered writes hold `rwlock` for writing.
    let Ok(_content) = inode.rwlock.try_read() else { return Ok(None) };
    inode.check_alive()?;
    if inode.is_inline() {
        let Ok(disk) = inode.on_disk.try_read() else { return Ok(None) };
        return inline_data::read_from(&disk, offset, buffer);
    }
    let end = offset.saturating_add(buffer.len() as u64).min(inode.size());
    if offset >= end {
        return Ok(Some(0));
    }
    let mut at = offset;
    while at < end {
        // Within the buffer.
        let rest = &mut buffer[(at - offset) as usize..(end - offset) as usize];
        let count = match crate::io::read::read_cached(inode, at, rest) as u64 {
            0 => {
                let zeros = zeros_at(engine, inode, at, end);
                rest[..zeros as usize].fill(0);
                zeros
            }
            count => count,
        };
        if count == 0 {
            break;
        }
        at += count;
    }
    if at == offset {
        return Ok(None);
    }
    LiveCounters::add(&engine.volume.counters.direct_reads, 1);
    Ok(Some((at - offset) as usize))
}

/// How many bytes from `at` on, below `end`, are known to be in holes or unwritten blocks, with no folio over
/// them.
fn zeros_at(engine: &Engine, inode: &InodeInfo, at: u64, end: u64) -> u64 {
    let block_size = engine.volume.info.block_size();
    let block = LogicalBlock::containing(at, block_size);
    let Some(extent) = inode.extent_status.lookup(block) else { return 0 };
    if !matches!(extent.status, Status::Hole | Status::Unwritten(_)) {
        return 0;
    }
    let next_block = block.offset(1).byte(block_size);
    let in_memory = inode.pages.first_from(at).map_or(end, |folio| folio.start().max(next_block));
    extent.end.byte(block_size).min(in_memory).min(end) - at
}
