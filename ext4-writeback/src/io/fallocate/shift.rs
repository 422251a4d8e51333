//! FALLOC_FL_COLLAPSE_RANGE and FALLOC_FL_INSERT_RANGE: extents behind the range move along the file.
//!
//! ```text
//!   zero the rest of the last block → write everything back and wait for it
//!     → drop the page cache from the offset on
//!   collapse:  handles { free the range, extents move to the left, the first ones first } size in the last
//!   insert:    handles { size, split at the offset, extents move to the right, the last ones first }
//! ```
//!
//! Invariants:
//! - Nothing is dirty, in flight, parked or waiting to move i_disksize when the first extent moves:
//!   completions name blocks by their place in the file, and would find other blocks there.
//! - The zeros behind i_size are on the device before the last block moves: half way through it is not the
//!   last block, and its bytes behind i_size can be read.
//! - A handle has credits for the whole extent tree if the journal gives that many to one handle (a quarter
//!   of the log): the file then changes in one transaction. If it takes several, a crash half way shows a
//!   hole as long as the range at another place: for collapse between the part that has moved and the part
//!   that has not, with the old size; for insert the same, with the new size. Every block that had data has
//!   it once. The tree is consistent, and no written block lies behind i_size.
//! - The transaction is ineligible for fast commit: there is no tag for moved extents.

use std::sync::atomic::Ordering;

use ext4_core::meta::extent_tree::{Removal, Shift};
use ext4_core::meta::{credits, extent_tree};
use ext4_core::{Errno, Error, IoPurpose, LogicalBlock, Result};

use crate::inode::log::log_inode;
use crate::io::drop_folios;
use crate::io::fallocate::request::{Request, invalid};
use crate::io::zero::zero_block_tail;
use crate::iomap::pointers::max_size_with_extents;
use crate::volume::fast_commit::reason::Reason;
use crate::volume::handle::Handle;
use crate::writeback::size;
use crate::writeback::sync_inode::sync_inode_data;

/// Credits of the first step, in which freeing the range may split an extent. Later steps extend the handle.
const SHIFT_CREDITS: u32 = credits::FREE_STEP + credits::EXTENT + credits::INODE;

impl Request<'_> {
    /// The first block of the range and how many blocks it has.
    ///
    /// # Errors
    /// `EINVAL`: the range is not made of whole clusters.
    fn whole(&self) -> Result<(LogicalBlock, u32)> {
        let unit = u64::from(self.engine.volume.info.block_size().bytes())
            << self.engine.volume.info.superblock().cluster_bits();
        if !self.offset.is_multiple_of(unit) || !self.end.is_multiple_of(unit) {
            return Err(invalid(format!("bytes {}..{} are not whole blocks", self.offset, self.end)));
        }
        let blocks = self.touched();
        Ok((blocks.start, blocks.end - blocks.start))
    }

    /// Writes back the whole file and drops its page cache from the offset on, so that only the extent tree
    /// knows the place of its blocks.
    async fn quiesce(&self) -> Result<()> {
        let (engine, inode) = (self.engine, self.inode);
        zero_block_tail(engine, inode, inode.size()).await?;
        sync_inode_data(engine, inode).await?;
        let disk_size = inode.completion.disk_size();
        if inode.pages.is_dirty_folios() || disk_size != inode.size() {
            // Data that could not be written: its error is reported by fsync.
            let what = format!("inode {}: {disk_size} of {} bytes", inode.number, inode.size());
            return Err(Error::io("write back", what, Errno::EIO).for_purpose(IoPurpose::Data));
        }
        drop_folios::drop_folios(engine, inode, self.offset..u64::MAX).await;
        Ok(())
    }

    /// Begins a handle with credits for every node of the extent tree, as far as the journal gives that many
    /// to one handle: then the whole operation is in one transaction, however full the running one is.
    async fn begin(&self) -> Result<Handle> {
        let (engine, inode) = (self.engine, self.inode);
        let nodes = extent_tree::node_blocks(&engine.volume.info, &*inode.on_disk.read().await).await?.len();
        let most = engine.volume.journal.as_ref().map_or(SHIFT_CREDITS, |journal| journal.max_credits());
        let wanted = u32::try_from(nodes).unwrap_or(u32::MAX).saturating_add(SHIFT_CREDITS);
        let credits = wanted.min(most).max(SHIFT_CREDITS);
        engine.volume.begin_ineligible(credits, "fallocate", Reason::FallocRange).await
    }

    /// Sets i_size and i_disksize, and stamps mtime and ctime. The caller holds the inode's lock, and logs
    /// the inode.
    fn set_sizes(&self, disk: &mut ext4_core::format::inode::Inode, size: u64) {
        self.inode.pages.pass.note_cut(size);
        self.inode.completion.note_truncation(size);
        self.inode.size.store(size, Ordering::SeqCst);
        disk.size = size;
        self.inode.completion.set_disk_size(size);
        size::stamp_mtime_ctime(self.engine, disk);
    }

    /// FALLOC_FL_COLLAPSE_RANGE.
    pub(crate) async fn collapse(&self) -> Result<()> {
        let (engine, inode) = (self.engine, self.inode);
        let (first, count) = self.whole()?;
        let size = inode.size();
        if self.end >= size {
            return Err(invalid(format!("collapsing up to {} of {size} bytes", self.end)));
        }
        let _dropping = inode.invalidate_lock.write().await;
        self.quiesce().await?;
        let mut from = first + count;
        let mut freed = false;
        loop {
            let handle = self.begin().await?;
            let mut disk = inode.on_disk.write().await;
            inode.extent_status.remove(first..LogicalBlock::END);
            let step = async {
                if !freed {
                    let last = first + (count - 1);
                    let removal =
                        extent_tree::remove(&engine.volume.info, &handle, &mut disk, first, last).await?;
                    if removal == Removal::More {
                        return Ok(Shift::More(from));
                    }
                    freed = true;
                }
                extent_tree::shift_left(&engine.volume.info, &handle, &mut disk, from, count).await
            };
            let step = step.await;
            if matches!(step, Ok(Shift::Done)) {
                self.set_sizes(&mut disk, size - (self.end - self.offset));
            }
            log_inode(&engine.volume, &handle, inode, &disk, true).await?;
            match step? {
                Shift::Done => return Ok(()),
                Shift::More(next) => from = next,
            }
        }
    }

    /// FALLOC_FL_INSERT_RANGE.
    pub(crate) async fn insert(&self) -> Result<()> {
        let (engine, inode) = (self.engine, self.inode);
        let (first, count) = self.whole()?;
        let size = inode.size();
        if self.offset >= size {
            return Err(invalid(format!("inserting at {} of {size} bytes", self.offset)));
        }
        let limit = max_size_with_extents(&engine.volume);
        let new = size + (self.end - self.offset);
        if new > limit {
            return Err(Error::posix(Errno::EFBIG, format!("{new} bytes: files end at {limit}")));
        }
        let _dropping = inode.invalidate_lock.write().await;
        self.quiesce().await?;
        let mut limit = LogicalBlock::END;
        let mut begun = false;
        loop {
            let handle = self.begin().await?;
            let mut disk = inode.on_disk.write().await;
            inode.extent_status.remove(first..LogicalBlock::END);
            if !begun {
                self.check_room(&disk, count).await?;
                extent_tree::split_at(&engine.volume.info, &handle, &mut disk, first).await?;
                self.set_sizes(&mut disk, new);
                begun = true;
            }
            let start = first;
            let shifted =
                extent_tree::shift_right(&engine.volume.info, &handle, &mut disk, start, limit, count).await;
            log_inode(&engine.volume, &handle, inode, &disk, true).await?;
            match shifted? {
                Shift::Done => return Ok(()),
                Shift::More(next) => limit = next,
            }
        }
    }

    /// Checks that no block behind i_size moves past the last block that a file can have.
    ///
    /// # Errors
    /// `EINVAL`: one would.
    async fn check_room(&self, disk: &ext4_core::format::inode::Inode, count: u32) -> Result<()> {
        let last = extent_tree::last_extent(&self.engine.volume.info, disk).await?;
        if last.is_none_or(|last| last.end().0.checked_add(count).is_some()) {
            return Ok(());
        }
        Err(invalid("the last blocks would lie past the end of all files"))
    }
}
