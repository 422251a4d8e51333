//! FALLOC_FL_PUNCH_HOLE: whole blocks are freed, parts of blocks at the ends are zeroed.
//!
//! ```text
//!   drop the page cache of the whole blocks (waits for their writeback) → zero the parts of blocks in memory
//!     → handles { release the reservation of delayed blocks, free from the end to the start, log }
//!     → handle { i_disksize, if data that would have moved it is gone; times }
//! ```

use ext4_core::{LogicalBlock, Result};

use crate::io::drop_folios;
use crate::io::fallocate::request::Request;
use crate::io::truncate;

impl Request<'_> {
    pub(crate) async fn punch(&self) -> Result<()> {
        let (engine, inode) = (self.engine, self.inode);
        let size = inode.size();
        if self.offset >= size {
            return Ok(());
        }
        let block_size = engine.volume.info.block_size();
        let _dropping = inode.invalidate_lock.write().await;
        // Blocks behind i_size are left to truncation; the last block is freed whole, as nothing behind
        // i_size in it counts.
        let end = if self.end < size { self.end } else { size.next_multiple_of(block_size.bytes().into()) };
        let blocks = self.covered(end);
        self.drop_cache(&blocks).await;
        self.zero_edges(end).await?;
        truncate::free_range(engine, inode, blocks, "fallocate").await?;
        self.stamp().await
    }

    /// Drops the page cache of `blocks`. If the failed tail is among them it is forgotten: nothing stale is
    /// left of it.
    pub(crate) async fn drop_cache(&self, blocks: &std::ops::Range<LogicalBlock>) {
        let (engine, inode) = (self.engine, self.inode);
        let block_size = engine.volume.info.block_size();
        if blocks.is_empty() {
            return;
        }
        let bytes = blocks.start.byte(block_size)..blocks.end.byte(block_size);
        drop_folios::drop_folios(engine, inode, bytes).await;
        inode.completion.forget_failed_tail(blocks);
    }
}
