//! Allocation: every block of the range gets one on the device, unwritten where it had none.
//!
//! ```text
//!   zero the rest of the old last block (where the size grows)
//!     → per run: hole    → handle { allocate, insert as unwritten, size = its end, times, log }
//!                delayed → handle { allocate out of what was promised, insert, log }
//!     → handle { size, times }                    where the end of the range had its blocks before
//! ```
//!
//! Where the file grows, the size moves in the handle of each run: a crash half way shows the file as long as what it has
//! blocks for, and none lies behind the size, where nobody would look for it. Only while earlier data, or the zeros behind
//! an unaligned end, are on their way to the device does i_disksize wait for them, as for every growth
//! ([`size::raise_disksize_or_expedite`]); a crash then leaves unwritten blocks behind the size, as `AllocateKeepSize` does. They
//! read as zeros if the file grows over them, and a truncation frees them.

use crate::iomap::allocate;
use crate::writeback::size;
use crate::writeback::sync_inode::sync_inode_range;
use std::ops::Range;

use ext4_core::format::inode::Inode;
use ext4_core::{Errno, LogicalBlock, Result};

use crate::cache::extent_status::status::Status;
use crate::io::fallocate::request::Request;
use crate::io::zero::zero_block_tail;
use crate::iomap;
use crate::iomap::allocate::{ENOSPC_RETRIES, MAX_EXTENT_BLOCKS};
use crate::iomap::preallocation;

impl Request<'_> {
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

    /// Gives every block of `blocks` one on the device. `grows`: the size moves along with what is allocated behind it, up
    /// to the end of the request; the rest of the old last block is zeroed.
    ///
    /// # Errors
    /// `ENOSPC`, with a part of them allocated; those of the journal and of the device.
    pub(crate) async fn allocate_blocks(&self, blocks: Range<LogicalBlock>, grows: bool) -> Result<()> {
        let (engine, inode) = (self.engine, self.inode);
        let (mut at, mut retries) = (blocks.start, 0);
        while at < blocks.end {
            let extent = iomap::lookup(&engine.volume, inode, at).await?;
            let stop = extent.end.min(blocks.end).min(at.offset(MAX_EXTENT_BLOCKS));
            let allocated = match extent.status {
                Status::Hole => {
                    // The size moves along with the blocks: after a crash none of them lies behind it.
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
                // Its blocks may be picked, and its data under way to them: they are mapped when it is there.
                Status::Delayed if preallocation::is_published(&engine.volume, inode).await => {
                    let block_size = engine.volume.info.block_size();
                    let bytes = at.byte(block_size)..stop.byte(block_size);
                    sync_inode_range(engine, inode, bytes, false).await
                }
                // Writeback may come first: then this finds its blocks, and allocates nothing.
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

    /// Up to which byte the range, from its start on, has blocks.
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
