//! Punching a hole: whole blocks are freed, parts of blocks at the ends zeroed.
//!
//! ```text
//!   drop the page cache of the whole blocks (waits for their writeback) → zero the parts of blocks in memory
//!     → handles { delayed blocks give their promise back, free from the end of the range to its start, log }
//!     → handle { the size, if data that would have brought it along is gone; times }
//! ```
//!
//! The tree of what lies where is made to forget the range in every handle: between two the inode's lock is given up,
//! and who looks then finds part of the range still mapped.

use ext4_core::meta::extent_tree::Removal;
use ext4_core::meta::{Transaction as _, block_map, credits};
use ext4_core::{LogicalBlock, Result};

use super::Request;
use crate::extent_status::Status;
use crate::fast_commit::{Mapped, Reason};
use crate::truncate;

/// One step of freeing, with a split where the range is the middle of an extent.
const PUNCH_CREDITS: u32 = credits::FREE_STEP + credits::EXTENT + credits::INODE;

impl Request<'_> {
    pub(super) async fn punch(&self) -> Result<()> {
        let (fs, inode) = (self.fs, self.inode);
        let size = inode.size();
        if self.offset >= size {
            return Ok(());
        }
        let block_size = fs.info.block_size();
        let _dropping = inode.invalidate_lock.write().await;
        // Blocks behind the end are left to truncation; the last block goes whole: what is behind the end in it is nothing.
        let end = if self.end < size { self.end } else { size.next_multiple_of(block_size.bytes().into()) };
        let blocks = self.covered(end);
        self.drop_cache(&blocks).await;
        self.zero_edges(end).await?;
        self.free(blocks).await?;
        self.stamp().await
    }

    /// Drops the page cache of `blocks`, and forgets that the last block of i_disksize could not be written where it is
    /// among them: nothing stale is left of it.
    pub(super) async fn drop_cache(&self, blocks: &std::ops::Range<u32>) {
        let (fs, inode) = (self.fs, self.inode);
        let bits = fs.info.block_size().bits();
        if blocks.is_empty() {
            return;
        }
        let bytes = u64::from(blocks.start) << bits..u64::from(blocks.end) << bits;
        truncate::drop_folios(fs, inode, bytes.clone()).await;
        if bytes.contains(&inode.completion.disk_size()) {
            inode.completion.forget_failed_tail();
        }
    }

    /// Unmaps and frees `blocks`, of which no page cache is left, in as many transactions as it takes.
    async fn free(&self, blocks: std::ops::Range<u32>) -> Result<()> {
        let (fs, inode) = (self.fs, self.inode);
        if blocks.is_empty() {
            return Ok(());
        }
        let last = LogicalBlock(blocks.end - 1);
        loop {
            let handle = fs.begin_tracked(PUNCH_CREDITS, "fallocate").await?;
            let mut disk = inode.inode.write().await;
            let promised = inode.extent_status.remove(blocks.clone());
            inode.preallocation.give_back(&fs.info, blocks.clone());
            fs.info.release_reserved_blocks(promised);
            let first = LogicalBlock(blocks.start);
            let removed = block_map::remove(&fs.info, &handle, &mut disk, first, last).await;
            if removed.is_err() {
                fs.fast_commits.mark_ineligible(handle.id(), Reason::Failure);
            } else {
                // What other handles free of it is a hole too, as soon as this is durable: one of the states that a
                // crash may show.
                fs.fast_commits.range_changed(
                    handle.id(),
                    inode.number,
                    (blocks.start, blocks.end),
                    Mapped::Hole,
                );
            }
            if matches!(removed, Ok(Removal::Done)) {
                inode.extent_status.set(blocks.clone(), Status::Hole);
            }
            fs.log_inode(&handle, inode, &disk, true).await?;
            if removed? == Removal::Done {
                return Ok(());
            }
        }
    }
}
