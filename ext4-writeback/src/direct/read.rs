//! Direct reads.

use std::sync::Arc;

use ext4_core::device::{AlignedBuffer, Operation};
use ext4_core::{Errno, Error, Result};

use super::transfer::{Piece, transfer};
use super::{coherence, unit};
use crate::counters::LiveCounters;
use crate::filesystem::FilesystemInner;
use crate::inline_data;
use crate::inode_info::InodeInfo;
use crate::iomap::{self, Kind};

/// Reads at byte `offset` into `buffer`, both aligned; how many bytes.
///
/// # Errors
/// Those of writeback, of the device and of what it holds.
pub(super) async fn read(
    fs: &Arc<FilesystemInner>,
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
    LiveCounters::add(&fs.writeback.counters.direct_reads, 1);
    let range = offset..end.next_multiple_of(unit(fs));
    coherence::write_back(fs, inode, &range).await?;
    let mut pieces: Vec<Piece> = Vec::new();
    let mut maps = iomap::Iterator::new(fs, inode, range.start, range.end);
    while let Some(map) = maps.next().await? {
        let place = match map.kind {
            Kind::Mapped(byte) => Some(byte),
            Kind::Hole | Kind::Unwritten(_) => None,
            Kind::Delalloc => {
                let location = format!("inode {} at byte {}", inode.number, map.offset);
                return Err(Error::io("write back", location, Errno::EIO));
            }
        };
        pieces.push(Piece { len: map.length as usize, place });
    }
    transfer(fs, Operation::Read, &pieces, buffer).await?;
    // What the device has behind the end of the file is nobody's business.
    let count = (end - offset) as usize;
    let read = (range.end - range.start) as usize;
    buffer[count..read].fill(0);
    Ok(count)
}
