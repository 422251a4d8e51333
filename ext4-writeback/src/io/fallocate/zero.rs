//! FALLOC_FL_ZERO_RANGE: whole blocks become unwritten, parts of blocks at the ends are zeroed in memory.
//!
//! ```text
//!   zero the rest of the old last block (if the size grows)
//!     → allocate holes as unwritten, and move i_size with them         ENOSPC comes before anything is lost
//!     → drop the page cache of the whole blocks (waits for their writeback)
//!     → handles { written blocks become unwritten, log } → zero the parts of blocks in memory
//!     → handle { size, times }
//! ```
//!
//! Dropping page cache clears the dirty bits of whole blocks too that are part of a folio. If a dirty bit
//! were left, writeback would make the block written again, with zeros.

use ext4_core::meta::extent_tree::MappingState;
use ext4_core::meta::{Transaction as _, block_map, credits, extent_tree};
use ext4_core::{Errno, LogicalBlock, Result};

use crate::inode::log::log_inode;
use crate::io::fallocate::request::Request;
use crate::io::zero::zero_block_tail;
use crate::iomap::allocate::ENOSPC_RETRIES;
use crate::volume::fast_commit::mapped::Mapped;
use crate::volume::fast_commit::reason::Reason;
use crate::writeback::size;

const CONVERT_CREDITS: u32 = credits::EXTENT + credits::INODE;

impl Request<'_> {
    pub(crate) async fn zero(&self, grow: bool) -> Result<()> {
        let (engine, inode) = (self.engine, self.inode);
        let size = inode.size();
        let grows = grow && self.end > size;
        if grows {
            zero_block_tail(engine, inode, size).await?;
        }
        self.allocate_blocks(self.touched(), grows).await?;
        {
            let _dropping = inode.invalidate_lock.write().await;
            let blocks = self.covered(self.end);
            self.drop_cache(&blocks).await;
            self.unwrite(blocks).await?;
            self.zero_edges(self.end).await?;
        }
        if grows {
            return size::raise_size(engine, inode, self.end, "fallocate").await;
        }
        self.stamp().await
    }

    /// Converts the written blocks among `blocks`, whose page cache has been dropped, to unwritten.
    ///
    /// # Errors
    /// - `ENOSPC`: a split needs a node of the extent tree and there is no block for it, not even after a
    ///   commit; blocks before are converted.
    /// - Those of the journal and of the device.
    async fn unwrite(&self, blocks: std::ops::Range<LogicalBlock>) -> Result<()> {
        let (mut at, mut retries) = (blocks.start, 0);
        while at < blocks.end {
            match self.unwrite_some(&mut at, blocks.end).await {
                Err(error) if error.errno() == Errno::ENOSPC && retries < ENOSPC_RETRIES => {
                    retries += 1;
                    // Freed blocks can be allocated after the commit.
                    if !self.engine.volume.commit_for_space().await? {
                        return Err(error);
                    }
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// Converts blocks `at..end` as far as the credits of one handle go; advances `at`.
    async fn unwrite_some(&self, at: &mut LogicalBlock, end: LogicalBlock) -> Result<()> {
        let (engine, inode) = (self.engine, self.inode);
        let handle = engine.volume.begin_tracked(CONVERT_CREDITS, "fallocate").await?;
        let mut disk = inode.on_disk.write().await;
        let mut changed = false;
        while *at < end {
            let mapping = block_map::lookup(&engine.volume.info, &disk, *at).await?;
            let len = mapping.len.min(end - *at).max(1);
            if let MappingState::Written(physical) = mapping.state {
                if changed && handle.credits() < CONVERT_CREDITS && !handle.extend(CONVERT_CREDITS)? {
                    break;
                }
                changed = true;
                let range = *at..*at + len;
                inode.extent_status.remove(range.clone());
                let (transaction, first) = (&handle, *at);
                let converted = extent_tree::convert_to_unwritten(
                    &engine.volume.info,
                    transaction,
                    &mut disk,
                    first,
                    len,
                )
                .await;
                if let Err(error) = converted {
                    engine.volume.fast_commits.mark_ineligible(handle.id(), Reason::Failure);
                    log_inode(&engine.volume, &handle, inode, &disk, true).await?;
                    return Err(error);
                }
                let mapped = Mapped::Blocks { physical, unwritten: true };
                engine.volume.fast_commits.range_changed(
                    handle.id(),
                    inode.number,
                    (range.start.0, range.end.0),
                    mapped,
                );
            }
            *at += len;
        }
        if changed {
            log_inode(&engine.volume, &handle, inode, &disk, true).await?;
        }
        Ok(())
    }
}
