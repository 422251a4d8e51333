//! Direct reads.

use std::sync::Arc;

use ext4_core::device::{AlignedBuffer, BioFlags, Operation};
use ext4_core::{Errno, Error, IoPurpose, Result};

use crate::base::counters::LiveCounters;
use crate::cache::extent_status::status::Status;
use crate::inode::InodeInfo;
use crate::io::direct::transfer::{Piece, transfer};
use crate::io::direct::{coherence, unit};
use crate::io::inline_data;
use crate::iomap;
use crate::iomap::Kind;
use crate::writeback::Engine;

/// Reads at byte `offset` into `buffer`, both aligned; how many bytes.
///
/// # Errors
/// Those of writeback, of the device and of what it holds.
pub(crate) async fn read(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    offset: u64,
    buffer: &mut AlignedBuffer,
) -> Result<usize> {
    let _content = inode.rwlock.read().await;
    inode.check_alive()?;
    if let Some(count) = inline_data::read(inode, offset, buffer).await? {
        // It became one while this was waiting.
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
    // What the device has behind the end of the file is nobody's business.
    let count = (end - offset) as usize;
    let read = (range.end - range.start) as usize;
    buffer[count..read].fill(0);
    Ok(count)
}

/// Reads what is known without I/O and without waiting, from byte `offset` on without a gap: what the page cache holds,
/// and zeros where nothing is written. `None` where that is not even the first byte.
///
/// What is dirty is given from memory instead of being written back first: the bytes are the same.
///
/// # Errors
/// `ENOENT`; corrupt, where the inode holds the data.
pub(crate) fn read_now(
    engine: &Engine,
    inode: &InodeInfo,
    offset: u64,
    buffer: &mut [u8],
) -> Result<Option<usize>> {
    // Truncation and buffered writes hold it for writing.
    let Ok(_content) = inode.rwlock.try_read() else { return Ok(None) };
    inode.check_alive()?;
    if inode.is_inline() {
        let Ok(disk) = inode.inode.try_read() else { return Ok(None) };
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

/// How many bytes from `at` on, below `end`, are known to hold nothing, on the device and in memory.
fn zeros_at(engine: &Engine, inode: &InodeInfo, at: u64, end: u64) -> u64 {
    let bits = engine.volume.info.block_size().bits();
    // Below i_size, which is below 2^32 blocks.
    let Some(extent) = inode.extent_status.lookup((at >> bits) as u32) else { return 0 };
    if !matches!(extent.status, Status::Hole | Status::Unwritten(_)) {
        return 0;
    }
    let next_block = ((at >> bits) + 1) << bits;
    let in_memory = inode.pages.first_from(at).map_or(end, |folio| folio.start().max(next_block));
    (u64::from(extent.end) << bits).min(in_memory).min(end) - at
}
