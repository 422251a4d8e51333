//! Completion of a direct write (kernel: `ext4_dio_write_end_io`): its blocks become written and both sizes
//! move, or the blocks that it allocated are freed.
//!
//! Invariant: one handle converts the blocks of one run and moves i_disksize to their end; runs are taken in
//! the order of the file. So i_disksize covers written data only, as after an ioend
//! ([`crate::writeback::completion`]).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ext4_core::meta::{Transaction as _, credits, extent_tree};
use ext4_core::{BlockNumber, LogicalBlock, Result};

use crate::base::counters::LiveCounters;
use crate::inode::InodeInfo;
use crate::inode::log::log_inode;
use crate::io::truncate;
use crate::volume::fast_commit::mapped::Mapped;
use crate::volume::fast_commit::reason::Reason;
use crate::writeback::Engine;

const CREDITS: u32 = credits::EXTENT + credits::INODE;

/// A run of unwritten blocks that hold data now: blocks of the file, and the first on the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub blocks: Range<LogicalBlock>,
    pub physical: BlockNumber,
}

/// Converts `runs`, which are in the order of the file, and raises i_size and i_disksize to `size` bytes if
/// given. The caller holds `rwlock`, for writing if there is a `size`, and i_disksize was i_size when the
/// write began.
///
/// # Errors
/// Those of the journal and of the extent tree. Blocks that were not converted stay unwritten, and i_size
/// ends before them.
pub(crate) async fn complete(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    runs: &[Run],
    size: Option<u64>,
) -> Result<()> {
    let block_size = engine.volume.info.block_size();
    for run in runs {
        let handle = engine.volume.begin_tracked(CREDITS, "direct write").await?;
        let mut disk = inode.on_disk.write().await;
        let (first, len) = (run.blocks.start, run.blocks.end - run.blocks.start);
        let converted =
            extent_tree::convert_to_written(&engine.volume.info, &handle, &mut disk, first, len).await;
        if let Err(error) = converted {
            engine.volume.fast_commits.mark_ineligible(handle.id(), Reason::Failure);
            log_inode(&engine.volume, &handle, inode, &disk, true).await?;
            return Err(error);
        }
        inode.extent_status.set_written(run.blocks.clone());
        let mapped = Mapped::Blocks { physical: run.physical, unwritten: false };
        engine.volume.fast_commits.range_changed(
            handle.id(),
            inode.number,
            (run.blocks.start.0, run.blocks.end.0),
            mapped,
        );
        if let Some(size) = size {
            raise(inode, &mut disk, size.min(run.blocks.end.byte(block_size)));
        }
        log_inode(&engine.volume, &handle, inode, &disk, true).await?;
        LiveCounters::add(&engine.volume.counters.conversions, 1);
    }
    if let Some(size) = size
        && inode.completion.disk_size() < size
    {
        let handle = engine.volume.begin_tracked(credits::INODE, "direct write").await?;
        let mut disk = inode.on_disk.write().await;
        raise(inode, &mut disk, size);
        log_inode(&engine.volume, &handle, inode, &disk, true).await?;
    }
    Ok(())
}

/// Raises i_size and i_disksize to at least `size` bytes. The caller logs the inode.
fn raise(inode: &InodeInfo, disk: &mut ext4_core::format::inode::Inode, size: u64) {
    inode.size.fetch_max(size, Ordering::SeqCst);
    if disk.size < size {
        disk.size = size;
        inode.completion.set_disk_size(size);
    }
}

/// After a failed write: frees the blocks among `allocated` that lie behind i_size. The caller holds `rwlock`
/// for writing.
///
/// # Errors
/// Those of the journal and of the device; corrupt metadata.
pub(crate) async fn free_behind_end(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    allocated: &[Range<LogicalBlock>],
) -> Result<()> {
    let end = LogicalBlock::at_or_behind(inode.size(), engine.volume.info.block_size());
    for range in allocated.iter().rev() {
        let range = range.start.max(end)..range.end;
        if range.is_empty() {
            continue;
        }
        truncate::free_range(engine, inode, range, "direct write failed").await?;
    }
    Ok(())
}
