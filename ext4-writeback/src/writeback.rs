//! Writeback of one inode: its dirty folios, mapped and added to ioends; and who asks for it. Which folios, and in which
//! order, is [`crate::writepages`]'s to say.
//!
//! ```text
//!   folio locked → dirty bits taken, under writeback → i_size sampled, bytes behind it zeroed
//!     per dirty run:  kept mapping, while its sequence holds
//!                     else what the extent status tree knows, or the device (no handle)
//!                     delayed: handle → inode lock → look again → allocate unwritten → tree → log → stop
//!     → ioend → plug
//!   folio unlocked; the writeback ends when its ioends have
//! ```
//!
//! Invariants:
//! - i_size is sampled after the dirty bits are taken: what is appended later makes the block dirty again.
//! - Where the file's data is published ([`crate::preallocation`]) blocks are picked instead, without a handle; nothing on
//!   the device changes until their data is there.
//! - Blocks allocated here are unwritten: a crash before their data is on the device shows zeros, never what another
//!   file left there.
//! - Before waiting for anything that may depend on our own I/O, the plug goes out.
//! - What cannot be mapped is lost and reported: its delayed blocks give their promise back.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ext4_core::meta::block_allocator::AllocationRequest;
use ext4_core::meta::{Transaction as _, block_map, credits, extent_tree};
use ext4_core::{Errno, Error, LogicalBlock, Result};

use crate::attendance::Attendance;
use crate::completion;
use crate::counters::LiveCounters;
use crate::extent_status::{Extent, Status};
use crate::fast_commit::{Mapped, Reason};
use crate::filesystem::FilesystemInner;
use crate::flusher;
use crate::folio::{Folio, FolioGuard};
use crate::inode_info::InodeInfo;
use crate::ioend::{Gather, Kind};
use crate::writepages::{WritebackControl, writepages};
use crate::{iomap, preallocation};

/// The most blocks one allocation asks for (the kernel's MAX_WRITEPAGES_EXTENT_LEN).
pub(crate) const MAX_EXTENT_BLOCKS: u32 = 2048;
/// Credits to allocate a run and insert its extent.
pub(crate) const ALLOCATE_CREDITS: u32 = credits::ALLOCATE_BLOCKS + credits::EXTENT + credits::INODE;
/// How often an allocation is tried again after a commit that may free blocks.
pub(crate) const ENOSPC_RETRIES: u32 = 3;

/// One pass over an inode: what it maps with.
pub(crate) struct WritepageContext<'a> {
    fs: &'a Arc<FilesystemInner>,
    inode: &'a Arc<InodeInfo>,
    /// The block behind the range that is written: what is allocated reaches so far at most, or to the end of the run
    /// of dirty blocks.
    range_end: u32,
    mapping: Option<Extent>,
    /// Delayed data is published, not allocated.
    publishes: bool,
}

impl<'a> WritepageContext<'a> {
    /// For a pass over a range that ends at byte `range_end`.
    pub async fn new(fs: &'a Arc<FilesystemInner>, inode: &'a Arc<InodeInfo>, range_end: u64) -> Self {
        let range_end = u32::try_from(fs.info.block_size().blocks_for(range_end)).unwrap_or(u32::MAX);
        let publishes = preallocation::is_published(fs, inode).await;
        Self { fs, inode, range_end, mapping: None, publishes }
    }

    /// Takes the dirty blocks of one folio, locked and dirty, and adds them to ioends.
    ///
    /// # Errors
    /// Where blocks have no place on the device: those from the first such block on are lost. The host's refusal to map
    /// memory: then the folio stays dirty.
    pub async fn writeback_folio(&mut self, gather: &mut Gather, folio: &FolioGuard) -> Result<()> {
        let (fs, inode) = (self.fs, self.inode);
        let bits = fs.info.block_size().bits();
        if folio.start() >= inode.size() {
            // A truncation is about to drop it.
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
        fs.writeback.note_writeback(folio.len());
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
                            // Only where the allocation of this run failed for an earlier folio.
                            result = Err(Error::io(
                                "map",
                                format!("inode {} block {}", inode.number, extent.start),
                                Errno::EIO,
                            ));
                        }
                    }
                }
                Err(error) => {
                    // The rest of the folio is lost.
                    let first = folio.first_block();
                    let lost = first + run.start..first + folio.blocks();
                    preallocation::drop_delayed(fs, inode, lost).await;
                    // Where everything has stopped meanwhile, that has been said.
                    if fs.check_writable().is_ok() {
                        let space = fs.info.free_and_reserved_blocks();
                        tracing::error!(ino = inode.number.0, lblk = first + run.start, %error, free = space.0,
                            dirty = space.1, "no blocks for delayed data: it is lost");
                    }
                    result = Err(error);
                    break;
                }
            }
        }
        if folio.finish_piece() {
            fs.writeback.end_writeback(folio.len());
        }
        result
    }

    /// What lies at `block`, allocated where it was delayed. `len`: how many blocks are wanted at least.
    async fn map(&mut self, gather: &mut Gather, block: u32, len: u32) -> Result<Extent> {
        let es = &self.inode.extent_status;
        if let Some(kept) = self.mapping
            && kept.sequence == es.sequence()
            && (kept.start..kept.end).contains(&block)
        {
            let status = kept.status.advance(block - kept.start);
            return Ok(Extent { start: block, status, ..kept });
        }
        let mut extent = iomap::lookup_under_folio(self.fs, self.inode, block, len).await?;
        if extent.status == Status::Delayed {
            extent = self.allocate_retrying(gather, block, len).await?;
        }
        self.mapping = Some(extent);
        Ok(extent)
    }

    async fn allocate_retrying(&self, gather: &mut Gather, block: u32, len: u32) -> Result<Extent> {
        let mut retries = 0;
        loop {
            // One allocation for the whole of a long run, of which this folio is the beginning.
            let wanted = len.max(self.range_end.saturating_sub(block)).min(MAX_EXTENT_BLOCKS);
            let allocated = if self.publishes {
                pick_delayed(self.fs, self.inode, block, len, wanted).await
            } else {
                allocate_delayed(self.fs, self.inode, block, wanted).await
            };
            match allocated {
                Err(error) if error.errno() == Errno::ENOSPC && retries < ENOSPC_RETRIES => {
                    let Some(journal) = &self.fs.journal else { return Err(error) };
                    // Blocks that were freed are free after the commit. It never needs this folio.
                    retries += 1;
                    gather.submit();
                    self.fs.commit_and_release(journal).await?;
                }
                result => return result,
            }
        }
    }
}

/// Picks blocks for the delayed ones at `block`; what lies there then, as far as one pick reaches. The caller holds the
/// folio's lock.
async fn pick_delayed(
    fs: &Arc<FilesystemInner>,
    inode: &Arc<InodeInfo>,
    block: u32,
    len: u32,
    wanted: u32,
) -> Result<Extent> {
    preallocation::pick(fs, inode, block, wanted).await?;
    let extent = iomap::lookup_under_folio(fs, inode, block, len).await?;
    match inode.preallocation.find(block) {
        Some((_, end)) if extent.status == Status::Delayed => {
            Ok(Extent { end: extent.end.min(end), ..extent })
        }
        _ => Ok(extent),
    }
}

/// Allocates blocks for the delayed ones at `block`, up to `len`, as unwritten; whatever else lies there by now is
/// returned as it is. The caller holds the folio's lock, or `rwlock` for writing.
pub(crate) async fn allocate_delayed(
    fs: &Arc<FilesystemInner>,
    inode: &Arc<InodeInfo>,
    block: u32,
    len: u32,
) -> Result<Extent> {
    let handle = fs.begin_tracked(ALLOCATE_CREDITS, "writepages").await?;
    let mut disk = inode.inode.write().await;
    let es = &inode.extent_status;
    // Truncation and a new write may have come between the two looks.
    let extent = match es.lookup(block) {
        Some(extent) => extent,
        None => {
            let mapping = block_map::lookup(&fs.info, &disk, LogicalBlock(block)).await?;
            let status = Status::from(mapping.state);
            Extent { start: block, end: block + mapping.len, status, sequence: es.sequence() }
        }
    };
    if extent.status != Status::Delayed {
        return Ok(extent);
    }
    let request = AllocationRequest {
        goal: extent_tree::allocation_goal(&fs.info, &disk, LogicalBlock(block)).await?,
        inode: inode.number,
        len: (extent.end - block).min(len).min(MAX_EXTENT_BLOCKS),
        reserved: true,
        metadata: false,
    };
    let new = extent_tree::allocate(&fs.info, &handle, &disk, LogicalBlock(block), &request).await?;
    let (physical, got) = (new.physical, new.len);
    let inserted =
        extent_tree::insert(&fs.info, &handle, &mut disk, LogicalBlock(block), physical, got, true).await;
    if let Err(error) = inserted {
        fs.fast_commits.mark_ineligible(handle.id(), Reason::Failure);
        extent_tree::give_back(&fs.info, &handle, &new, false).await?;
        // The allocation used the promise up; the blocks are delayed again.
        fs.info.reserve_freed_clusters(u64::from(new.clusters));
        fs.log_inode(&handle, inode, &disk, false).await?;
        return Err(error);
    }
    let mapped = Mapped::Blocks { physical, unwritten: true };
    fs.fast_commits.range_changed(handle.id(), inode.number, (block, block + got), mapped);
    let (promised, sequence) = es.set(block..block + got, Status::Unwritten(physical));
    fs.info.release_reserved_blocks(promised.saturating_sub(u64::from(new.clusters)));
    fs.log_inode(&handle, inode, &disk, false).await?;
    let counters = &fs.writeback.counters;
    LiveCounters::add(&counters.allocations, 1);
    LiveCounters::add(&counters.blocks_allocated, u64::from(got));
    tracing::debug!(
        ino = inode.number.0,
        lblk = block,
        len = got,
        wanted = request.len,
        pblk = physical.0,
        "ext4_da_write_pages_extent"
    );
    Ok(Extent { start: block, end: block + got, status: Status::Unwritten(physical), sequence })
}

/// Allocates, as unwritten, the holes among `blocks` of a file with extents: a write without delayed allocation. Runs
/// before any folio is locked. (For one without extents there is [`crate::indirect`].)
///
/// # Errors
/// `ENOSPC`; those of the journal and of the device.
pub(crate) async fn allocate_holes(
    fs: &Arc<FilesystemInner>,
    inode: &Arc<InodeInfo>,
    blocks: Range<u32>,
) -> Result<()> {
    let mut at = blocks.start;
    while at < blocks.end {
        let extent = iomap::lookup(fs, inode, at).await?;
        if extent.status != Status::Hole {
            at = extent.end;
            continue;
        }
        at += allocate_hole(fs, inode, at..extent.end.min(blocks.end), Purpose::Write).await?;
    }
    Ok(())
}

/// What blocks are allocated for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// Data, which will move the size.
    Write,
    /// Themselves; the size moves along with them, up to this byte where it is more.
    Fallocate { size: u64 },
}

/// Allocates, as unwritten, as much of the hole `blocks` as one run has, in one handle; returns how many blocks.
///
/// # Errors
/// As [`allocate_holes`].
pub(crate) async fn allocate_hole(
    fs: &Arc<FilesystemInner>,
    inode: &Arc<InodeInfo>,
    blocks: Range<u32>,
    purpose: Purpose,
) -> Result<u32> {
    let at = blocks.start;
    let operation = if purpose == Purpose::Write { "write" } else { "fallocate" };
    let handle = fs.begin_tracked(ALLOCATE_CREDITS, operation).await?;
    let mut disk = inode.inode.write().await;
    let request = AllocationRequest {
        goal: extent_tree::allocation_goal(&fs.info, &disk, LogicalBlock(at)).await?,
        inode: inode.number,
        len: (blocks.end - at).min(MAX_EXTENT_BLOCKS),
        reserved: false,
        metadata: false,
    };
    let new = extent_tree::allocate(&fs.info, &handle, &disk, LogicalBlock(at), &request).await?;
    let (physical, end) = (new.physical, at + new.len);
    let inserted =
        extent_tree::insert(&fs.info, &handle, &mut disk, LogicalBlock(at), physical, new.len, true).await;
    if let Err(error) = inserted {
        fs.fast_commits.mark_ineligible(handle.id(), Reason::Failure);
        extent_tree::give_back(&fs.info, &handle, &new, false).await?;
        fs.log_inode(&handle, inode, &disk, false).await?;
        return Err(error);
    }
    let mapped = Mapped::Blocks { physical, unwritten: true };
    fs.fast_commits.range_changed(handle.id(), inode.number, (at, end), mapped);
    // Where delayed blocks share a cluster with these, it needs no promise any more.
    let (promised, _) = inode.extent_status.set(at..end, Status::Unwritten(physical));
    fs.info.release_reserved_blocks(promised);
    if let Purpose::Fallocate { size } = purpose {
        let reached = (u64::from(end) << fs.info.block_size().bits()).min(size);
        if reached > inode.size() {
            crate::truncate::grow(fs, inode, &mut disk, reached);
        }
    }
    fs.log_inode(&handle, inode, &disk, purpose != Purpose::Write).await?;
    LiveCounters::add(&fs.writeback.counters.allocations, 1);
    LiveCounters::add(&fs.writeback.counters.blocks_allocated, u64::from(new.len));
    tracing::debug!(
        ino = inode.number.0,
        lblk = at,
        len = new.len,
        pblk = physical.0,
        "ext4_allocate_blocks"
    );
    Ok(new.len)
}

/// Logs times where a write or an access changed them and nothing else logged them since. Those of a deleted inode are
/// not: its deletion logged it, and nobody changes its times then.
pub(crate) async fn log_times(fs: &Arc<FilesystemInner>, inode: &Arc<InodeInfo>) -> Result<()> {
    let handle = fs.begin_tracked(credits::INODE, "times").await?;
    let disk = inode.inode.write().await;
    if inode.pages.times_dirty.load(Ordering::Acquire) {
        fs.log_inode(&handle, inode, &disk, false).await?;
    }
    Ok(())
}

/// After the writeback of everything: the size follows, and the times where asked for.
pub(crate) async fn settle(fs: &Arc<FilesystemInner>, inode: &Arc<InodeInfo>, times: bool) -> Result<()> {
    if inode.size() > inode.completion.disk_size() && fs.check_writable().is_ok() {
        completion::process(fs, vec![Arc::clone(inode)]).await;
    }
    if times && inode.pages.times_dirty.load(Ordering::Acquire) {
        log_times(fs, inode).await?;
    }
    Ok(())
}

/// Starts writing the dirty data of bytes `range` of `inode` back, but for what is under writeback already. Where the
/// range reaches past i_disksize, all from there on is written.
///
/// # Errors
/// Those of mapping; recorded in the inode too.
pub(crate) async fn start_inode_range(
    fs: &Arc<FilesystemInner>,
    inode: &Arc<InodeInfo>,
    range: Range<u64>,
) -> Result<()> {
    let _pass = inode.pages.writeback_lock.lock().await;
    let mut gather = Gather::new(fs);
    let result = writepages(fs, inode, &mut gather, &WritebackControl::start(range)).await;
    gather.submit();
    result.map(|_| ())
}

/// Writes all dirty data of `inode` back and waits for it: I/O, conversions, size and times are in transactions when
/// it returns; nothing is committed.
///
/// # Errors
/// Those of mapping and of the journal. A failed write is only in the inode's error sequence.
pub(crate) async fn sync_inode_data(fs: &Arc<FilesystemInner>, inode: &Arc<InodeInfo>) -> Result<()> {
    sync_data(fs, inode, true).await
}

/// As [`sync_inode_data`]; times only where asked for (fdatasync does not).
///
/// # Errors
/// As [`sync_inode_data`].
pub(crate) async fn sync_data(fs: &Arc<FilesystemInner>, inode: &Arc<InodeInfo>, times: bool) -> Result<()> {
    sync_inode_range(fs, inode, 0..u64::MAX, times).await
}

/// As [`sync_inode_data`], for what was dirty in bytes `range` when it began; what else is written does not have to
/// end. Where the range reaches past i_disksize, that is all from there on.
///
/// # Errors
/// As [`sync_inode_data`].
pub(crate) async fn sync_inode_range(
    fs: &Arc<FilesystemInner>,
    inode: &Arc<InodeInfo>,
    range: Range<u64>,
    times: bool,
) -> Result<()> {
    let (result, attendance) = {
        let _pass = inode.pages.writeback_lock.lock().await;
        let mut gather = Gather::new(fs);
        let result =
            writepages(fs, inode, &mut gather, &WritebackControl::sync(range.clone())).await.map(|_| ());
        // From here on nothing is waited for but the device and the journal. A fast device ends it within this call.
        let attendance = Attendance::begin(fs, inode);
        gather.submit();
        (result, attendance)
    };
    match attendance {
        Some(attendance) => attendance.wait(fs.writeback.next_ioend(), &range).await,
        None => wait_for_range(fs, inode, &range).await,
    }
    if range.end <= inode.completion.disk_size() && !times {
        return result;
    }
    result.and(settle(fs, inode, times).await)
}

/// Waits until the ioends over bytes `range` of `inode` that are in flight now are finished.
pub(crate) async fn wait_for_range(fs: &Arc<FilesystemInner>, inode: &Arc<InodeInfo>, range: &Range<u64>) {
    let until = fs.writeback.next_ioend();
    flusher::wait_for_progress(fs, || inode.completion.is_range_finished_below(range, until)).await;
}

/// Waits for the writeback of one folio.
pub(crate) async fn wait_for_folio(fs: &Arc<FilesystemInner>, folio: &Folio) {
    flusher::wait_for_progress(fs, || !folio.is_under_writeback()).await;
}
