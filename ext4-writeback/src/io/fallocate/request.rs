//! One fallocate call: its mode, its range, and the steps that all modes share.
//!
//! Locks: [`Request::run`] takes `rwlock` for writing, and moves inline data out first. The modes take
//! `invalidate_lock` for writing themselves if they drop page cache.

use std::sync::Arc;

use ext4_core::format::inode::InodeFlags;
use ext4_core::meta::credits;
use ext4_core::{Errno, Error, LogicalBlock, Result};

use crate::inode::InodeInfo;
use crate::inode::log::log_inode;
use crate::io::{inline_data, zero};
use crate::iomap::pointers::max_size_with_extents;
use crate::writeback::{Engine, size};

/// The mode of [`File::fallocate`](crate::File::fallocate): what it does with a range of bytes
/// (fallocate(2)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FallocateMode {
    /// Allocate blocks for holes; a file that is shorter grows to the end of the range (mode 0).
    Allocate,
    /// Allocate blocks for holes, and keep the size: blocks may lie behind it (FALLOC_FL_KEEP_SIZE).
    AllocateKeepSize,
    /// Free the blocks: the range reads as zeros. The size stays (FALLOC_FL_PUNCH_HOLE).
    PunchHole,
    /// Allocate blocks for holes, and make the whole range read as zeros; the file grows as with `Allocate`
    /// (FALLOC_FL_ZERO_RANGE).
    ZeroRange,
    /// As `ZeroRange`, and keep the size (FALLOC_FL_ZERO_RANGE with FALLOC_FL_KEEP_SIZE).
    ZeroRangeKeepSize,
    /// Remove the range from the file: bytes behind it move to its start, and the file becomes shorter
    /// (FALLOC_FL_COLLAPSE_RANGE). Whole blocks (with bigalloc: clusters) only.
    CollapseRange,
    /// Insert a hole into the file: bytes at the offset and behind it move towards the end, and the file
    /// becomes longer (FALLOC_FL_INSERT_RANGE). Whole blocks (with bigalloc: clusters) only.
    InsertRange,
}

/// One fallocate call. Its range ends within the largest size of a file.
pub(crate) struct Request<'a> {
    pub(crate) engine: &'a Arc<Engine>,
    pub(crate) inode: &'a Arc<InodeInfo>,
    mode: FallocateMode,
    /// The first byte.
    pub(crate) offset: u64,
    /// The byte behind the last.
    pub(crate) end: u64,
}

impl<'a> Request<'a> {
    /// A call over `len` bytes at byte `offset`.
    ///
    /// # Errors
    /// - `EINVAL`: `len` is 0.
    /// - `EFBIG`: the range ends behind the largest size of a file.
    pub(crate) fn new(
        engine: &'a Arc<Engine>,
        inode: &'a Arc<InodeInfo>,
        mode: FallocateMode,
        offset: u64,
        len: u64,
    ) -> Result<Self> {
        if len == 0 {
            return Err(invalid("a range of no bytes"));
        }
        let limit = max_size_with_extents(&engine.volume);
        match offset.checked_add(len).filter(|end| *end <= limit) {
            Some(end) => Ok(Self { engine, inode, mode, offset, end }),
            None => Err(Error::posix(Errno::EFBIG, format!("{len} bytes at {offset}: files end at {limit}"))),
        }
    }

    /// Runs the call. The caller runs this to its end.
    ///
    /// # Errors
    /// - `EPERM`: the file is immutable, or append-only and the mode does more than allocate.
    /// - Unsupported: the file has indirect blocks, and the mode is not `PunchHole`.
    /// - `ENOENT`: the inode has been deleted.
    /// - Those of the mode, of the journal and of the device.
    pub(crate) async fn run(&self) -> Result<()> {
        let _changing = self.inode.rwlock.write().await;
        self.inode.check_alive()?;
        inline_data::convert_out(self.engine, self.inode).await?;
        self.check_kind().await?;
        tracing::debug!(inode = self.inode.number.0, mode = ?self.mode, offset = self.offset, end = self.end,
            "ext4_fallocate_enter");
        match self.mode {
            FallocateMode::Allocate => self.allocate(true).await,
            FallocateMode::AllocateKeepSize => self.allocate(false).await,
            FallocateMode::PunchHole => self.punch().await,
            FallocateMode::ZeroRange => self.zero(true).await,
            FallocateMode::ZeroRangeKeepSize => self.zero(false).await,
            FallocateMode::CollapseRange => self.collapse().await,
            FallocateMode::InsertRange => self.insert().await,
        }
    }

    /// Checks that the mode is allowed for the file's flags and mapping.
    async fn check_kind(&self) -> Result<()> {
        let disk = self.inode.on_disk.read().await;
        let allocates = matches!(self.mode, FallocateMode::Allocate | FallocateMode::AllocateKeepSize);
        if disk.flags.contains(InodeFlags::IMMUTABLE)
            || (disk.flags.contains(InodeFlags::APPEND) && !allocates)
        {
            return Err(Error::posix(Errno::EPERM, format!("inode {}", self.inode.number)));
        }
        if self.mode != FallocateMode::PunchHole && !disk.flags.contains(InodeFlags::EXTENTS) {
            return Err(Error::Unsupported(format!(
                "inode {} is not mapped by extents: {:?}",
                self.inode.number, self.mode
            )));
        }
        Ok(())
    }

    /// The blocks that the range touches.
    pub(crate) fn touched(&self) -> std::ops::Range<LogicalBlock> {
        let block_size = self.engine.volume.info.block_size();
        LogicalBlock::containing(self.offset, block_size)..LogicalBlock::at_or_behind(self.end, block_size)
    }

    /// The blocks that lie wholly in bytes `offset..end`.
    pub(crate) fn covered(&self, end: u64) -> std::ops::Range<LogicalBlock> {
        let block_size = self.engine.volume.info.block_size();
        let first = LogicalBlock::at_or_behind(self.offset, block_size);
        first..LogicalBlock::containing(end, block_size).max(first)
    }

    /// Zeroes the parts of blocks at the edges of bytes `offset..end`.
    pub(crate) async fn zero_edges(&self, end: u64) -> Result<()> {
        let block_size = u64::from(self.engine.volume.info.block_size().bytes());
        let head = self.offset.next_multiple_of(block_size).min(end);
        if !self.offset.is_multiple_of(block_size) {
            zero::zero_within_block(self.engine, self.inode, self.offset, head).await?;
        }
        let tail = end - end % block_size;
        zero::zero_within_block(self.engine, self.inode, tail.max(head), end).await
    }

    /// The last handle of a mode that changed content: stamps mtime and ctime, and raises i_disksize if data
    /// whose completion would have raised it is gone.
    pub(crate) async fn stamp(&self) -> Result<()> {
        let (engine, inode) = (self.engine, self.inode);
        let handle = engine.volume.begin_tracked(credits::INODE, "fallocate").await?;
        let mut disk = inode.on_disk.write().await;
        size::raise_disksize_or_expedite(engine, inode, &mut disk);
        size::stamp_mtime_ctime(engine, &mut disk);
        log_inode(&engine.volume, &handle, inode, &disk, true).await
    }
}

/// `EINVAL` with a message.
pub(crate) fn invalid(what: impl Into<String>) -> Error {
    Error::posix(Errno::EINVAL, what)
}
