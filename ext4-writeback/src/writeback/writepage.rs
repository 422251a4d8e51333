//! writepage: the dirty blocks of one folio, mapped and added to ioends (kernel: `iomap_writeback_folio`).
//!
//! ```text
//!   folio locked → dirty bits taken, under writeback → i_size sampled, bytes behind it zeroed
//!     per dirty run:  kept mapping, while its sequence number holds
//!                     else what the extent status tree knows, or the device (no handle)
//!                     delayed: handle → inode lock → look again → allocate unwritten → tree → log → stop
//!     → ioend → plug
//!   folio unlocked; its writeback ends when its ioends have ended
//! ```
//!
//! Invariants:
//! - i_size is sampled after the dirty bits are taken: data that is appended later makes the block dirty
//!   again.
//! - If the file's data is published ([`crate::iomap::preallocation`]), blocks are picked instead, without a
//!   handle; nothing on the device changes until their data is there.
//! - Blocks allocated here are unwritten: a crash before their data is on the device shows zeros, never what
//!   another file left there.
//! - Before waiting for anything that may depend on the pass's own I/O, the plug goes out.
//! - Data that cannot be mapped is lost and reported: the reservation of its delayed blocks is released.

use std::sync::Arc;

use ext4_core::{Errno, Error, IoPurpose, LogicalBlock, Result};

use crate::cache::extent_status::status::{Extent, Status};
use crate::cache::folio::FolioGuard;
use crate::cache::ioend::Kind;
use crate::inode::InodeInfo;
use crate::iomap;
use crate::iomap::allocate::{ENOSPC_RETRIES, MAX_EXTENT_BLOCKS, allocate_delayed};
use crate::iomap::preallocation;
use crate::writeback::Engine;
use crate::writeback::gather::Gather;

/// The mapping state of one writepages pass over an inode (kernel: `iomap_writepage_ctx`).
pub(crate) struct WritepageContext<'a> {
    engine: &'a Arc<Engine>,
    inode: &'a Arc<InodeInfo>,
    /// The block behind the range that is written: an allocation reaches as far as that, or to the end of the
    /// run of dirty blocks.
    range_end: LogicalBlock,
    /// The mapping kept from the last lookup.
    mapping: Option<Extent>,
    /// True if delayed data is published, and not allocated before its I/O.
    publishes: bool,
}

impl<'a> WritepageContext<'a> {
    /// The state of a pass over a range that ends at byte `range_end`.
    pub async fn new(engine: &'a Arc<Engine>, inode: &'a Arc<InodeInfo>, range_end: u64) -> Self {
        let range_end = LogicalBlock::at_or_behind(range_end, engine.volume.info.block_size());
        let publishes = preallocation::is_published(&engine.volume, inode).await;
        Self { engine, inode, range_end, mapping: None, publishes }
    }

    /// Takes the dirty blocks of one locked, dirty folio and adds them to ioends.
    ///
    /// # Errors
    /// - Blocks cannot be mapped: the data from the first such block of the folio on is lost.
    /// - The host refuses to map memory: the folio stays dirty.
    pub async fn writeback_folio(&mut self, gather: &mut Gather, folio: &FolioGuard) -> Result<()> {
        let (engine, inode) = (self.engine, self.inode);
        let bits = engine.volume.info.block_size().bits();
        if folio.start() >= inode.size() {
            // A truncation is about to drop the folio.
            return Ok(());
        }
        tracing::trace!(
            ino = inode.number.0,
            pos = folio.start(),
            len = folio.len(),
            "iomap_writeback_folio"
        );
        let size = inode.size();
        if size < folio.end() {
            let from = size.max(folio.start());
            let block_end = size.next_multiple_of(1 << bits).min(folio.end());
            folio.zero(from, block_end)?;
        }
        let dirty = folio.start_writeback();
        inode.pages.note_clean(folio);
        engine.dirty.note_writeback(folio.len());
        let end = folio.blocks_touched(folio.start(), size.max(folio.start())).end;
        let mut at = 0;
        let mut result = Ok(());
        while let Some(run) = dirty.next_run(at, end) {
            match self.map(gather, folio.first_block() + run.start, run.end - run.start).await {
                Ok(extent) => {
                    let count = (extent.end - extent.start).min(run.end - run.start);
                    let blocks = run.start..run.start + count;
                    at = blocks.end;
                    let place = match extent.status {
                        Status::Written(physical) => Some((physical, Kind::Overwrite)),
                        Status::Unwritten(physical) => Some((physical, Kind::Unwritten)),
                        Status::Delayed => inode
                            .preallocation
                            .find(extent.start)
                            .map(|(physical, _)| (physical, Kind::Picked)),
                        Status::Hole => None,
                    };
                    match place {
                        Some((physical, kind)) => gather.add(inode, folio, blocks, physical, kind, size),
                        None => {
                            // Only if the allocation of this run failed for an earlier folio.
                            result = Err(Error::io(
                                "map",
                                format!("inode {} block {}", inode.number, extent.start),
                                Errno::EIO,
                            )
                            .for_purpose(IoPurpose::Data));
                        }
                    }
                }
                Err(error) => {
                    // The rest of the folio is lost.
                    let first = folio.first_block();
                    let lost = first + run.start..first + folio.blocks();
                    preallocation::drop_delayed(&engine.volume, inode, lost).await;
                    // If all writing has stopped meanwhile, that has been reported already.
                    if engine.volume.check_writable().is_ok() {
                        let space = engine.volume.info.free_and_reserved_blocks();
                        tracing::error!(ino = inode.number.0, lblk = (first + run.start).0, %error,
                            free = space.0, dirty = space.1, "no blocks for delayed data: it is lost");
                    }
                    result = Err(error);
                    break;
                }
            }
        }
        if folio.finish_piece() {
            engine.dirty.end_writeback(folio.len());
        }
        result
    }

    /// The mapping at `block`, allocated or picked if it was delayed. `len`: how many blocks are wanted at
    /// least.
    async fn map(&mut self, gather: &mut Gather, block: LogicalBlock, len: u32) -> Result<Extent> {
        // At each mapping, not once a pass: after an abort no more data goes out, overwrites included.
        self.engine.volume.check_writable()?;
        let es = &self.inode.extent_status;
        if let Some(kept) = self.mapping
            && kept.sequence == es.sequence()
            && (kept.start..kept.end).contains(&block)
        {
            let status = kept.status.advance(block - kept.start);
            return Ok(Extent { start: block, status, ..kept });
        }
        let mut extent = iomap::lookup_under_folio(&self.engine.volume, self.inode, block, len).await?;
        if extent.status == Status::Delayed {
            extent = self.allocate_retrying(gather, block, len).await?;
        }
        self.mapping = Some(extent);
        Ok(extent)
    }

    async fn allocate_retrying(&self, gather: &mut Gather, block: LogicalBlock, len: u32) -> Result<Extent> {
        let mut retries = 0;
        loop {
            // One allocation for the whole of a long run that begins in this folio.
            let wanted = len.max(self.range_end.distance(block)).min(MAX_EXTENT_BLOCKS);
            let allocated = if self.publishes {
                pick_delayed(self.engine, self.inode, block, len, wanted).await
            } else {
                allocate_delayed(&self.engine.volume, self.inode, block, wanted).await
            };
            match allocated {
                Err(error) if error.errno() == Errno::ENOSPC && retries < ENOSPC_RETRIES => {
                    let Some(journal) = &self.engine.volume.journal else { return Err(error) };
                    // Freed blocks can be allocated after the commit, which never needs this folio.
                    retries += 1;
                    gather.submit();
                    self.engine.volume.commit_and_release(journal).await?;
                }
                result => return result,
            }
        }
    }
}

/// Picks blocks for the delayed ones at `block`; returns the mapping there, as far as one pick reaches. The
/// caller holds the folio's lock.
async fn pick_delayed(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    block: LogicalBlock,
    len: u32,
    wanted: u32,
) -> Result<Extent> {
    preallocation::pick(&engine.volume, inode, block, wanted).await?;
    let extent = iomap::lookup_under_folio(&engine.volume, inode, block, len).await?;
    match inode.preallocation.find(block) {
        Some((_, end)) if extent.status == Status::Delayed => {
            Ok(Extent { end: extent.end.min(end), ..extent })
        }
        _ => Ok(extent),
    }
}
