//! Fallocate: blocks for a range of a file, or none; zeros in it; or the range itself taken out or put in.
//!
//! | mode | file | what happens |
//! |---|---|---|
//! | `Allocate`, `AllocateKeepSize` | `allocate` | holes become unwritten blocks, delayed blocks are allocated |
//! | `PunchHole` | `punch` | whole blocks are freed, parts of blocks are zeroed |
//! | `ZeroRange`, `ZeroRangeKeepSize` | `zero` | whole blocks become unwritten, parts of blocks are zeroed |
//! | `CollapseRange`, `InsertRange` | `shift` | extents move along the file |
//!
//! Invariants:
//! - `rwlock` is held for writing all the time: nobody writes, truncates or fills holes meanwhile. What drops page cache
//!   holds `invalidate_lock` for writing too, so that nobody reads a block that is being freed into memory again.
//! - Page cache goes before blocks do: no I/O is under way to a block that may belong to another file.
//! - A size that grows follows the gate of every other growth ([`crate::completion`]): the rest of the old last block is
//!   zeroed first, and i_disksize waits for those zeros. Were it otherwise, a crash would show what the device held
//!   there.
//! - No folio is locked under a handle, and no transaction is waited for under the inode's lock: what needs several
//!   transactions gives the lock up in between, and every one of them leaves a whole file.
//!
//! None of this needs the list of orphans: nothing is ever mapped past the size that was not allowed to be there before.
//! After a crash half way a punched or zeroed range has blocks of both kinds, old and zero; what collapse and insert
//! show is said in `shift`.

mod allocate;
mod punch;
mod shift;
mod zero;

use std::sync::Arc;

use ext4_core::format::inode::InodeFlags;
use ext4_core::meta::credits;
use ext4_core::{Errno, Error, Result};

use crate::File;
use crate::filesystem::FilesystemInner;
use crate::inode_info::InodeInfo;
use crate::open_options::SyncMode;
use crate::truncate;

/// What [`File::fallocate`] does with a range (fallocate(2)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FallocateMode {
    /// Allocate blocks for holes; the file grows to the end of the range where it is shorter (mode 0).
    Allocate,
    /// The same, and the size stays: blocks may lie behind it (FALLOC_FL_KEEP_SIZE).
    AllocateKeepSize,
    /// Free the blocks: the range reads as zeros. The size stays (FALLOC_FL_PUNCH_HOLE).
    PunchHole,
    /// Allocate where needed, and make all of it read as zeros; the file grows as with `Allocate`
    /// (FALLOC_FL_ZERO_RANGE).
    ZeroRange,
    /// The same, and the size stays.
    ZeroRangeKeepSize,
    /// Take the range out of the file: what lies behind it moves to its start, and the file is shorter
    /// (FALLOC_FL_COLLAPSE_RANGE). Whole blocks only.
    CollapseRange,
    /// Put a hole into the file: what lies at the offset and behind it moves towards the end, and the file is longer
    /// (FALLOC_FL_INSERT_RANGE). Whole blocks only.
    InsertRange,
}

impl File {
    /// Changes how `len` bytes from byte `offset` on are allocated, as `mode` says. Durable when it returns where the file
    /// was opened for that ([`crate::OpenOptions::sync`]).
    ///
    /// # Errors
    /// As the kernel's ext4: `EINVAL` for a length of 0, for a range to collapse or insert that is not whole blocks
    /// (clusters), for a collapse that reaches the end of the file, and for an insert at the end or behind it; `EFBIG`
    /// for a range or a size past the largest a file can have; `EOPNOTSUPP` for all modes but punching in a file that
    /// is mapped by indirect blocks; `EPERM` for an immutable file, and for all modes but allocation in one that can
    /// only be appended to; `ENOSPC`, where the size is that of what was allocated; `EROFS`; those of the device.
    pub async fn fallocate(&self, mode: FallocateMode, offset: u64, len: u64) -> Result<()> {
        let inode = Arc::clone(&self.inode);
        self.filesystem
            .run("fallocate", inode.number, move |fs| async move {
                Request::new(&fs, &inode, mode, offset, len)?.run().await
            })
            .await?;
        // Collapse and insert have written back all that moved.
        self.sync_change(offset..offset.saturating_add(len), SyncMode::None).await
    }
}

/// One call, its range within what a file can have.
struct Request<'a> {
    fs: &'a Arc<FilesystemInner>,
    inode: &'a Arc<InodeInfo>,
    mode: FallocateMode,
    offset: u64,
    /// The byte behind the last.
    end: u64,
}

impl<'a> Request<'a> {
    fn new(
        fs: &'a Arc<FilesystemInner>,
        inode: &'a Arc<InodeInfo>,
        mode: FallocateMode,
        offset: u64,
        len: u64,
    ) -> Result<Self> {
        if len == 0 {
            return Err(invalid("a range of no bytes"));
        }
        let limit = truncate::max_size(fs);
        match offset.checked_add(len).filter(|end| *end <= limit) {
            Some(end) => Ok(Self { fs, inode, mode, offset, end }),
            None => Err(Error::posix(Errno::EFBIG, format!("{len} bytes at {offset}: files end at {limit}"))),
        }
    }

    async fn run(&self) -> Result<()> {
        let _changing = self.inode.rwlock.write().await;
        self.inode.check_alive()?;
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

    /// What this kind of file cannot have done to it.
    async fn check_kind(&self) -> Result<()> {
        let disk = self.inode.inode.read().await;
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
    fn touched(&self) -> std::ops::Range<u32> {
        let block_size = self.fs.info.block_size();
        // Within a file, so within 32 bits.
        (self.offset >> block_size.bits()) as u32..block_size.blocks_for(self.end) as u32
    }

    /// The blocks that lie wholly in bytes `offset..end`.
    fn covered(&self, end: u64) -> std::ops::Range<u32> {
        let block_size = self.fs.info.block_size();
        let first = block_size.blocks_for(self.offset) as u32;
        first..((end >> block_size.bits()) as u32).max(first)
    }

    /// Zeroes the parts of blocks at the ends of bytes `offset..end`.
    async fn zero_edges(&self, end: u64) -> Result<()> {
        let block_size = u64::from(self.fs.info.block_size().bytes());
        let head = self.offset.next_multiple_of(block_size).min(end);
        if !self.offset.is_multiple_of(block_size) {
            crate::iomap::zero::zero_within_block(self.fs, self.inode, self.offset, head).await?;
        }
        let tail = end - end % block_size;
        crate::iomap::zero::zero_within_block(self.fs, self.inode, tail.max(head), end).await
    }

    /// The last handle of an operation that changed content: the times; and the size, where data whose completion would
    /// have brought it along is gone.
    async fn stamp(&self) -> Result<()> {
        let (fs, inode) = (self.fs, self.inode);
        let handle = fs.begin_tracked(credits::INODE, "fallocate").await?;
        let mut disk = inode.inode.write().await;
        truncate::settle_size(fs, inode, &mut disk);
        truncate::touch(fs, &mut disk);
        fs.log_inode(&handle, inode, &disk, true).await
    }
}

fn invalid(what: impl Into<String>) -> Error {
    Error::posix(Errno::EINVAL, what)
}
