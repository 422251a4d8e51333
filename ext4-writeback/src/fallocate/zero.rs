//! Zeroing a range: whole blocks become unwritten, parts of blocks at the ends are zeroed in memory.
//!
//! ```text
//!   zero the rest of the old last block (where the size grows)
//!     → allocate what has no block, as unwritten                       ENOSPC comes before anything is lost
//!     → drop the page cache of the whole blocks (waits for their writeback)
//!     → handles { written blocks become unwritten, log } → zero the parts of blocks in memory
//!     → handle { size, times }
//! ```
//!
//! Dropping takes the dirty bits of the whole blocks along, also where they are part of a folio. Were one left,
//! writeback would make the block written again, with zeros.

use ext4_core::meta::extent_tree::{self, MappingState};
use ext4_core::meta::{Transaction as _, block_map, credits};
use ext4_core::{LogicalBlock, Result};

use super::Request;
use crate::fast_commit::{Mapped, Reason};
use crate::iomap::zero::zero_block_tail;
use crate::truncate;

const CONVERT_CREDITS: u32 = credits::EXTENT + credits::INODE;

impl Request<'_> {
    pub(super) async fn zero(&self, grow: bool) -> Result<()> {
        let (fs, inode) = (self.fs, self.inode);
        let size = inode.size();
        let grows = grow && self.end > size;
        if grows {
            zero_block_tail(fs, inode, size).await?;
        }
        self.allocate_blocks(self.touched()).await?;
        {
            let _dropping = inode.invalidate_lock.write().await;
            let blocks = self.covered(self.end);
            self.drop_cache(&blocks).await;
            self.unwrite(blocks).await?;
            self.zero_edges(self.end).await?;
        }
        if grows {
            return truncate::raise_size(fs, inode, self.end, "fallocate").await;
        }
        self.stamp().await
    }

    /// Makes the written blocks among `blocks`, of which no page cache is left, unwritten.
    async fn unwrite(&self, blocks: std::ops::Range<u32>) -> Result<()> {
        let (fs, inode) = (self.fs, self.inode);
        let mut at = blocks.start;
        while at < blocks.end {
            let handle = fs.begin_tracked(CONVERT_CREDITS, "fallocate").await?;
            let mut disk = inode.inode.write().await;
            let mut changed = false;
            while at < blocks.end {
                let mapping = block_map::lookup(&fs.info, &disk, LogicalBlock(at)).await?;
                let len = mapping.len.min(blocks.end - at).max(1);
                if let MappingState::Written(physical) = mapping.state {
                    if changed && handle.credits() < CONVERT_CREDITS && !handle.extend(CONVERT_CREDITS)? {
                        break;
                    }
                    changed = true;
                    inode.extent_status.remove(at..at + len);
                    let (transaction, first) = (&handle, LogicalBlock(at));
                    let converted =
                        extent_tree::convert_to_unwritten(&fs.info, transaction, &mut disk, first, len).await;
                    if let Err(error) = converted {
                        fs.fast_commits.mark_ineligible(handle.id(), Reason::Failure);
                        fs.log_inode(&handle, inode, &disk, true).await?;
                        return Err(error);
                    }
                    let mapped = Mapped::Blocks { physical, unwritten: true };
                    fs.fast_commits.range_changed(handle.id(), inode.number, (at, at + len), mapped);
                }
                at += len;
            }
            if changed {
                fs.log_inode(&handle, inode, &disk, true).await?;
            }
        }
        Ok(())
    }
}
