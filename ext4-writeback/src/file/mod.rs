//! An open file.

pub(crate) mod close;
pub(crate) mod copy_range;
pub(crate) mod direct;
pub(crate) mod fallocate;
pub(crate) mod inline_extent;
pub(crate) mod map;
pub(crate) mod open;
pub(crate) mod options;
pub(crate) mod sync_range;
pub(crate) mod transfer;

use crate::io::read;
use crate::writeback::sync_inode::start_inode_range;
use crate::writeback::sync_inode::sync_inode_data;
use std::ops::Range;
use std::sync::Arc;

use ext4_core::meta::block_map;
use ext4_core::meta::extent_tree::{Mapping, MappingState};
use ext4_core::meta::inline_data::is_inline;
use ext4_core::{Errno, Error, LogicalBlock, Result};
use parking_lot::Mutex;

use crate::base::runtime::run_to_end;
use crate::file::options::WriteFlags;
use crate::file::options::{OpenOptions, SyncMode};
use crate::filesystem::{Filesystem, FilesystemInner};
use crate::inode::InodeInfo;
use crate::io::fsync::sync_inode;
use crate::io::read_ahead::ReadAhead;
use crate::io::{inline_data, truncate};
use crate::iomap;
use crate::iomap::Kind;
use crate::namespace::attributes::Attributes;
use crate::volume::OnMedium;

/// An open regular file. Cloning is by `Arc` outside; every method takes `&self`.
#[derive(Debug)]
pub struct File {
    pub(crate) filesystem: Filesystem,
    pub(crate) inode: Arc<InodeInfo>,
    pub(crate) options: OpenOptions,
    /// How far this opener has seen the inode's write errors.
    error_cursor: Mutex<u64>,
    read_ahead: Mutex<ReadAhead>,
}

/// What [`File::seek`] looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SeekTarget {
    /// The next byte at or after the offset that is not in a hole (SEEK_DATA).
    Data,
    /// The next byte at or after the offset that is in a hole; the end of the file counts as one (SEEK_HOLE).
    Hole,
}

impl File {
    /// Opens `inode`; the caller has counted it in `open_count`, and counts it off when the file is dropped.
    pub(crate) fn new(filesystem: Filesystem, inode: Arc<InodeInfo>, options: OpenOptions) -> Self {
        let error_cursor = Mutex::new(inode.write_errors.sample());
        Self { filesystem, inode, options, error_cursor, read_ahead: Mutex::default() }
    }

    pub(crate) fn fs(&self) -> &Arc<FilesystemInner> {
        &self.filesystem.inner
    }

    /// Reads at byte `offset` into `buffer`; returns how many bytes, fewer only at the end of the file.
    ///
    /// # Errors
    /// Those of the device and of what it holds; `EINVAL` where a direct read is not aligned.
    pub async fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        if self.options.direct {
            return self.read_direct_copied(offset, buffer).await;
        }
        let read = self.read_cached_at(offset, buffer);
        let count = self.filesystem.observe("read", self.inode.number, read).await?;
        self.note_access().await;
        Ok(count)
    }

    /// Notes a read, where access times are kept. That it cannot be noted is no error of the read.
    pub(crate) async fn note_access(&self) {
        if self.fs().volume.options.access_times
            && let Err(error) = self.filesystem.touch_atime(&self.inode).await
        {
            tracing::warn!(inode = self.inode.number.0, %error, "an access was not noted");
        }
    }

    /// Through the page cache, however the file was opened.
    pub(crate) async fn read_cached_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        read::read(&self.fs().engine, &self.inode, offset, buffer, &self.read_ahead).await
    }

    /// Has the page cache hold the folio at `offset`, for an access up to `end`.
    pub(crate) async fn read_ahead_of(&self, offset: u64, end: u64) -> Result<()> {
        read::fill_sequential(&self.fs().engine, &self.inode, offset, end, &self.read_ahead).await
    }

    /// Errors of writeback that this opener has not seen.
    pub(crate) fn report_write_errors(&self) -> Result<()> {
        self.inode.write_errors.check_and_advance(&mut self.error_cursor.lock())
    }

    /// Writes all of `data` at byte `offset`, into the page cache, or past it where the file was opened so. Returns how
    /// many bytes; fewer only where an error came after some.
    ///
    /// # Errors
    /// `ENOSPC`, `EFBIG`, `EROFS`; those of the device where a block is overwritten in part; `EINVAL` where a direct
    /// write is not aligned; those of fsync where the file was opened for synchronous writes.
    pub async fn write_at(&self, offset: u64, data: &[u8]) -> Result<usize> {
        if self.write_now(Some(offset), data).is_some() {
            return Ok(data.len());
        }
        self.write_with(offset, data, WriteFlags::empty()).await
    }

    /// fsync: data, size and attributes are durable when it returns. Errors of earlier writeback are reported once.
    ///
    /// # Errors
    /// Those of writeback since this file was opened or last asked, and of the journal.
    pub async fn sync_all(&self) -> Result<()> {
        self.sync(false).await
    }

    /// fdatasync: as [`File::sync_all`], without times.
    ///
    /// # Errors
    /// As [`File::sync_all`].
    pub async fn sync_data(&self) -> Result<()> {
        self.sync(true).await
    }

    async fn sync(&self, datasync: bool) -> Result<()> {
        self.sync_bytes(0..u64::MAX, datasync, OnMedium::No).await
    }

    /// As fsync, for the data of bytes `range` only; where it reaches past what the device has of the file, for all from
    /// there on.
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

    /// Truncates or extends (with a hole) to `size` bytes.
    ///
    /// # Errors
    /// `EFBIG`, `EROFS`, those of the device.
    pub async fn set_len(&self, size: u64) -> Result<()> {
        let inode = Arc::clone(&self.inode);
        self.filesystem
            .run("truncate", inode.number, move |fs| async move {
                truncate::set_size(&fs.engine, &inode, size).await
            })
            .await?;
        self.sync_change(0..u64::MAX, SyncMode::None).await
    }

    /// The size in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.inode.size()
    }

    /// True for a file of no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What stat tells.
    ///
    /// # Errors
    /// Those of [`Filesystem::attributes`].
    pub async fn attributes(&self) -> Result<Attributes> {
        self.filesystem.attributes(self.inode.number).await
    }

    /// SEEK_DATA and SEEK_HOLE; `None` where there is no data behind `offset`. `ENXIO` past the end.
    ///
    /// Unwritten blocks are holes unless there is data above them in memory.
    ///
    /// # Errors
    /// `ENXIO`; those of the device and of what it holds.
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

    /// Starts writing dirty data back, without waiting for it to be durable.
    ///
    /// # Errors
    /// Those of mapping.
    pub async fn start_writeback(&self) -> Result<()> {
        let (fs, inode) = (Arc::clone(self.fs()), Arc::clone(&self.inode));
        fs.volume.errors.check_alive()?;
        let runtime = Arc::clone(&fs.volume.runtime);
        run_to_end(&runtime, async move { start_inode_range(&fs.engine, &inode, 0..u64::MAX).await }).await
    }

    /// The mappings of the file, holes left out, delayed data written back first (fiemap). None where it holds its data
    /// itself: see [`File::inline_extent`].
    ///
    /// # Errors
    /// Those of writeback, of the device and of what it holds.
    pub async fn extents(&self) -> Result<Vec<Mapping>> {
        let fs = self.fs();
        fs.volume.errors.check_alive()?;
        if self.inode.pages.is_dirty_folios() || self.inode.extent_status.delayed_blocks() > 0 {
            let (shared, inode) = (Arc::clone(fs), Arc::clone(&self.inode));
            run_to_end(&fs.volume.runtime, async move { sync_inode_data(&shared.engine, &inode).await })
                .await?;
        }
        let disk = self.inode.inode.read().await;
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
