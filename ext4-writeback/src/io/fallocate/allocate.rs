//! FALLOC_FL_ALLOCATE_RANGE: every hole of the range becomes unwritten blocks, and delayed blocks are
//! allocated.
//!
//! ```text
//!   zero the rest of the old last block (if the size grows)
//!     → per run: hole    → handle { allocate, insert as unwritten, size = its end, times, log }
//!                delayed → handle { allocate from the reservation, insert, log }
//!     → handle { size, times }                    if the end of the range had its blocks before
//! ```
//!
//! If the file grows, i_size moves in the handle of each run: a crash half way shows the file as long as it
//! has blocks, and no block lies behind i_size unnoticed. Only while earlier data, or the zeros behind an
//! unaligned end, are on their way to the device does i_disksize wait for them, as for every growth
//! ([`size::raise_disksize_or_expedite`]); a crash then leaves unwritten blocks behind i_size, as
//! `AllocateKeepSize` does. They read as zeros if the file grows over them, and a truncation frees them.

use std::ops::Range;

use ext4_core::format::inode::Inode;
use ext4_core::{Errno, LogicalBlock, Result};

use crate::cache::extent_status::status::Status;
use crate::io::fallocate::request::Request;
use crate::io::zero::zero_block_tail;
use crate::iomap;
use crate::iomap::allocate::{self, ENOSPC_RETRIES, MAX_EXTENT_BLOCKS};
use crate::iomap::preallocation;
use crate::writeback::size;
use crate::writeback::sync_inode::sync_inode_range;

impl Request<'_> {
    /// Allocates the whole range. `grow`: true if i_size grows to the end of the range.
    ///
    /// # Errors
    /// As [`Request::allocate_blocks`].
    pub(crate) async fn allocate(&self, grow: bool) -> Result<()> {
        let (engine, inode) = (self.engine, self.inode);
        let size = inode.size();
        let grows = grow && self.end > size;
        if grows {
            zero_block_tail(engine, inode, size).await?;
        }
        let allocated = self.allocate_blocks(self.touched(), grows).await;
        if !grows {
            return allocated.and(self.stamp().await);
        }
        let reached = match &allocated {
            Ok(()) => self.end,
            Err(_) => self.reached().await?.min(self.end),
        };
        if reached > size {
            size::raise_size(engine, inode, reached, "fallocate").await?;
        }
        allocated
    }

    /// Allocates the holes and delayed blocks among `blocks`. `grows`: true if i_size moves with blocks that
    /// are allocated behind it, up to the end of the request; the caller has zeroed the rest of the old last
    /// block.
    ///
    /// # Errors
    /// `ENOSPC`: there is no free block; some of the blocks may have been allocated. Those of the journal and
    /// of the device.
    pub(crate) async fn allocate_blocks(&self, blocks: Range<LogicalBlock>, grows: bool) -> Result<()> {
        let (engine, inode) = (self.engine, self.inode);
        let (mut at, mut retries) = (blocks.start, 0);
        while at < blocks.end {
            let extent = iomap::lookup(&engine.volume, inode, at).await?;
            let stop = extent.end.min(blocks.end).min(at.offset(MAX_EXTENT_BLOCKS));
            let allocated = match extent.status {
                Status::Hole => {
                    // i_size moves in the same handle: after a crash none of the blocks lies behind it.
                    let limit = if grows { self.end } else { 0 };
                    let block_size = engine.volume.info.block_size();
                    let on_allocated = |disk: &mut Inode, end: LogicalBlock| {
                        let reached = end.byte(block_size).min(limit);
                        if reached > inode.size() {
                            size::grow(engine, inode, disk, reached);
                        }
                    };
                    allocate::allocate_hole(&engine.volume, inode, at..stop, "fallocate", true, on_allocated)
                        .await
                        .map(|_| ())
                }
                // Blocks may be picked, and data may be in flight to them: publication maps them.
                Status::Delayed if preallocation::is_published(&engine.volume, inode).await => {
                    let block_size = engine.volume.info.block_size();
                    let bytes = at.byte(block_size)..stop.byte(block_size);
                    sync_inode_range(engine, inode, bytes, false).await
                }
                // If writeback comes first, this finds allocated blocks, and allocates nothing.
                Status::Delayed => {
                    allocate::allocate_delayed(&engine.volume, inode, at, stop - at).await.map(|_| ())
                }
                Status::Unwritten(_) | Status::Written(_) => {
                    at = extent.end;
                    continue;
                }
            };
            match allocated {
                Err(error) if error.errno() == Errno::ENOSPC && retries < ENOSPC_RETRIES => {
                    retries += 1;
                    if !engine.volume.commit_for_space().await? {
                        return Err(error);
                    }
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// The byte up to which the range, from its start on, has blocks; 0 if it begins with a hole.
    async fn reached(&self) -> Result<u64> {
        let blocks = self.touched();
        let mut at = blocks.start;
        while at < blocks.end {
            let extent = iomap::lookup(&self.engine.volume, self.inode, at).await?;
            if matches!(extent.status, Status::Hole | Status::Delayed) {
                break;
            }
            at = extent.end;
        }
        if at == blocks.start {
            return Ok(0);
        }
        Ok(at.byte(self.engine.volume.info.block_size()))
    }
}
