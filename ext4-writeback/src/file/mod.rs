//! An open regular file (`struct file`): the only folder with `impl File`.
//!
//! | file | what |
//! |---|---|
//! | `open`, `options`, `close` | opening, how a file is opened, closing |
//! | `transfer` | reads and writes with flags, of many slices, and of small ones without a future |
//! | `direct` | direct I/O |
//! | `bytes`, `map` | reads that hand out memory; memory maps |
//! | `fallocate`, `copy_file_range`, `sync_file_range` | the system calls of these names |
//! | `inline_extent` | fiemap of inline data |
//!
//! Every method takes a byte offset first, then the memory or the length. What an operation does to the
//! file's bytes is in [`crate::io`]; here are the options of the opener, access times, and what a synchronous
//! file makes durable.
//!
//! Invariants:
//! - An error of writeback is reported once to each opener: every [`File`] has a cursor of its own into the
//!   inode's error sequence (the kernel's `errseq_t`).
//! - An open file counts in its inode's open count until it is dropped. So unmount fails while it is open,
//!   and an inode without links is deleted when its last file is closed.

pub(crate) mod bytes;
pub(crate) mod close;
pub(crate) mod copy_file_range;
pub(crate) mod direct;
pub(crate) mod fallocate;
pub(crate) mod inline_extent;
pub(crate) mod map;
pub(crate) mod open;
pub(crate) mod options;
pub(crate) mod sync_file_range;
pub(crate) mod transfer;

use std::ops::Range;
use std::sync::Arc;

use ext4_core::meta::block_map;
use ext4_core::meta::extent_tree::{Mapping, MappingState};
use ext4_core::meta::inline_data::is_inline;
use ext4_core::{Errno, Error, LogicalBlock, Result};
use parking_lot::Mutex;

use crate::base::runtime::run_to_end;
use crate::file::options::{OpenOptions, SyncMode, WriteFlags};
use crate::filesystem::{Filesystem, FilesystemInner};
use crate::inode::InodeInfo;
use crate::io::fsync::sync_inode;
use crate::io::read_ahead::ReadAhead;
use crate::io::{inline_data, read, truncate};
use crate::iomap::{self, Kind};
use crate::namespace::attributes::Attributes;
use crate::volume::OnMedium;
use crate::writeback::sync_inode::{start_inode_range, sync_inode_data};

/// An open regular file. Every method takes `&self`; tasks share a file by reference or `Arc`.
#[derive(Debug)]
pub struct File {
    pub(crate) filesystem: Filesystem,
    pub(crate) inode: Arc<InodeInfo>,
    pub(crate) options: OpenOptions,
    /// The position in the inode's error sequence up to which this opener has seen errors.
    error_cursor: Mutex<u64>,
    read_ahead: Mutex<ReadAhead>,
}

/// What [`File::seek`] looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SeekTarget {
    /// The next byte at or after the offset that is not in a hole (`SEEK_DATA`).
    Data,
    /// The next byte at or after the offset that is in a hole (`SEEK_HOLE`); the end of the file counts as
    /// one.
    Hole,
}

impl File {
    /// An open file of `inode`, whose open count the caller has raised. Dropping the file lowers it.
    pub(crate) fn new(filesystem: Filesystem, inode: Arc<InodeInfo>, options: OpenOptions) -> Self {
        let error_cursor = Mutex::new(inode.write_errors.sample());
        Self { filesystem, inode, options, error_cursor, read_ahead: Mutex::default() }
    }

    pub(crate) fn fs(&self) -> &Arc<FilesystemInner> {
        &self.filesystem.inner
    }

    /// pread(2): reads at byte `offset` into `buffer`. Returns how many bytes were read, fewer only at the
    /// end of the file.
    ///
    /// # Errors
    /// - `EINVAL`: the file was opened for direct I/O, and offset or length are not multiples of
    ///   [`File::direct_alignment`].
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        if self.options.direct {
            return self.read_direct_copied(offset, buffer).await;
        }
        let read = self.read_cached_at(offset, buffer);
        let count = self.filesystem.observe("read", self.inode.number, read).await?;
        self.note_access().await;
        Ok(count)
    }

    /// Updates atime after a read, if access times are kept. A failure of that is no error of the read.
    pub(crate) async fn note_access(&self) {
        if self.fs().volume.options.access_times
            && let Err(error) = self.filesystem.touch_atime(&self.inode).await
        {
            tracing::warn!(inode = self.inode.number.0, %error, "the access time was not updated");
        }
    }

    /// Reads at byte `offset` through the page cache, however the file was opened.
    pub(crate) async fn read_cached_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        read::read(&self.fs().engine, &self.inode, offset, buffer, &self.read_ahead).await
    }

    /// Reads the folio at byte `offset` into the page cache, for an access up to byte `end`, with read-ahead.
    pub(crate) async fn read_ahead_of(&self, offset: u64, end: u64) -> Result<()> {
        read::fill_sequential(&self.fs().engine, &self.inode, offset, end, &self.read_ahead).await
    }

    /// Returns the errors of writeback that this opener has not seen.
    pub(crate) fn report_write_errors(&self) -> Result<()> {
        self.inode.take_write_error(&self.fs().volume, &mut self.error_cursor.lock())
    }

    /// pwrite(2): writes all of `data` at byte `offset`, into the page cache, or past it if the file was
    /// opened for direct I/O. Returns how many bytes were written; fewer only if an error came after some.
    ///
    /// # Errors
    /// - `ENOSPC`: no free blocks.
    /// - `EFBIG`: `offset` is past the largest size that the file can have.
    /// - `EROFS`: the file system is not written.
    /// - `EINVAL`: the file was opened for direct I/O, and offset or length are not multiples of
    ///   [`File::direct_alignment`].
    /// - `EIO`, `EUCLEAN`: a block that is written in part had to be read, and the device or what it holds
    ///   failed.
    /// - Those of [`File::sync_all`], if the file was opened for synchronous writes.
    pub async fn write_at(&self, offset: u64, data: &[u8]) -> Result<usize> {
        if self.write_now(Some(offset), data).is_some() {
            return Ok(data.len());
        }
        self.write_at_with(offset, data, WriteFlags::empty()).await
    }

    /// fsync(2): data, size and attributes are durable when it returns. Errors of earlier writeback are
    /// reported once.
    ///
    /// # Errors
    /// - `EIO`, `ENOSPC`, …: those of writeback since this file was opened, or since the last call that
    ///   reported any.
    /// - `EROFS`: the journal has aborted.
    pub async fn sync_all(&self) -> Result<()> {
        self.sync(false).await
    }

    /// fdatasync(2): data and size are durable when it returns; times need not be.
    ///
    /// # Errors
    /// Those of [`File::sync_all`].
    pub async fn sync_data(&self) -> Result<()> {
        self.sync(true).await
    }

    async fn sync(&self, datasync: bool) -> Result<()> {
        self.sync_bytes(0..u64::MAX, datasync, OnMedium::No).await
    }

    /// fsync of the data of bytes `range` only. If the range reaches past i_disksize, all data from
    /// i_disksize on is included.
    pub(crate) async fn sync_bytes(
        &self,
        range: Range<u64>,
        datasync: bool,
        on_medium: OnMedium,
    ) -> Result<()> {
        let inode = Arc::clone(&self.inode);
        self.fs().volume.errors.check_alive()?;
        if self.fs().volume.options.read_only {
            return Ok(());
        }
        let result = self
            .filesystem
            .run("fsync", inode.number, move |fs| async move {
                sync_inode(&fs.engine, &inode, range, datasync, on_medium).await
            })
            .await;
        self.report_write_errors().and(result)
    }

    /// ftruncate(2): cuts the file to `size` bytes, or extends it with a hole.
    ///
    /// # Errors
    /// - `EFBIG`: `size` is past the largest that the file can have.
    /// - `EROFS`: the file system is not written.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn set_len(&self, size: u64) -> Result<()> {
        let inode = Arc::clone(&self.inode);
        self.filesystem
            .run("truncate", inode.number, move |fs| async move {
                truncate::set_size(&fs.engine, &inode, size).await
            })
            .await?;
        self.sync_change(0..u64::MAX, SyncMode::None).await
    }

    /// The size in bytes (i_size).
    #[must_use]
    pub fn len(&self) -> u64 {
        self.inode.size()
    }

    /// Returns true if the file has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What stat(2) tells of the file.
    ///
    /// # Errors
    /// Those of [`Filesystem::attributes`].
    pub async fn metadata(&self) -> Result<Attributes> {
        self.filesystem.attributes(self.inode.number).await
    }

    /// lseek(2) with `SEEK_DATA` or `SEEK_HOLE`: the byte offset of what `target` asks for, at or after byte
    /// `offset`; `None` if no data follows. Unwritten blocks count as holes, unless there is data for them in
    /// the page cache.
    ///
    /// # Errors
    /// - `ENXIO`: `offset` is at or behind the end of the file.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn seek(&self, offset: u64, target: SeekTarget) -> Result<Option<u64>> {
        let fs = self.fs();
        fs.volume.errors.check_alive()?;
        let _steady = self.inode.invalidate_lock.read().await;
        let size = self.inode.size();
        if offset >= size {
            return Err(Error::posix(Errno::ENXIO, format!("offset {offset} of a file of {size} bytes")));
        }
        if let Some(end) = inline_data::data_end(&self.inode).await? {
            return Ok(match target {
                SeekTarget::Data => (offset < end).then_some(offset),
                SeekTarget::Hole => Some(offset.max(end)),
            });
        }
        let mut maps = iomap::Iterator::new(&fs.volume, &self.inode, offset, size);
        while let Some(map) = maps.next().await? {
            let end = map.offset + map.length;
            let found = match (map.kind, target) {
                (Kind::Mapped(_) | Kind::Delalloc, SeekTarget::Data) | (Kind::Hole, SeekTarget::Hole) => {
                    Some(map.offset)
                }
                (Kind::Mapped(_) | Kind::Delalloc, SeekTarget::Hole) | (Kind::Hole, SeekTarget::Data) => None,
                (Kind::Unwritten(_), target) => {
                    self.inode.pages.seek(map.offset, end, target == SeekTarget::Data)
                }
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok((target == SeekTarget::Hole).then_some(size))
    }

    /// Starts writeback of all dirty data, without waiting for its I/O.
    ///
    /// # Errors
    /// `ENOSPC`, `EIO`, `EUCLEAN`: blocks for delayed data could not be allocated.
    pub async fn start_writeback(&self) -> Result<()> {
        let (fs, inode) = (Arc::clone(self.fs()), Arc::clone(&self.inode));
        fs.volume.errors.check_alive()?;
        let runtime = Arc::clone(&fs.volume.runtime);
        run_to_end(&runtime, async move { start_inode_range(&fs.engine, &inode, 0..u64::MAX).await }).await
    }

    /// fiemap: the mappings of the file, without its holes. Delayed data is written back first. Empty if the
    /// file holds inline data: see [`File::inline_extent`].
    ///
    /// # Errors
    /// - Those of writeback.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn extents(&self) -> Result<Vec<Mapping>> {
        let fs = self.fs();
        fs.volume.errors.check_alive()?;
        if self.inode.pages.is_dirty_folios() || self.inode.extent_status.delayed_blocks() > 0 {
            let (shared, inode) = (Arc::clone(fs), Arc::clone(&self.inode));
            run_to_end(&fs.volume.runtime, async move { sync_inode_data(&shared.engine, &inode).await })
                .await?;
        }
        let disk = self.inode.on_disk.read().await;
        let mut mappings: Vec<Mapping> = Vec::new();
        if is_inline(&disk) {
            return Ok(mappings);
        }
        let mut at = LogicalBlock(0);
        while at <= LogicalBlock::MAX {
            let mapping = block_map::lookup(&fs.volume.info, &disk, at).await?;
            if mapping.state != MappingState::Hole {
                mappings.push(mapping);
            }
            let Some(next) = at.0.checked_add(mapping.len.max(1)) else { break };
            at = LogicalBlock(next);
        }
        Ok(mappings)
    }
}
