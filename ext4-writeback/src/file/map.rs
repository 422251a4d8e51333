//! Memory maps of a file's bytes, for programs that embed the file system: [`File::map_read`] and
//! [`File::map_write`].
//!
//! ```text
//!   map_read    folio ──────────── the same bytes; a writer gives the folio other memory meanwhile
//!   map_write   folio ── copy ──► bytes of the caller's own ── commit ──► folio, dirty
//!                        space reserved                  the space becomes that of delayed blocks
//! ```
//!
//! A memory map has nothing to do with a *mapping* ([`crate::iomap`]), which is where blocks of a file lie.
//!
//! Invariants:
//! - A memory map holds no lock of the file, so its owner may keep it for any time: fsync, truncation, reads
//!   and writes go on. Data that is on its way to the device never changes under it, since no writer changes
//!   a viewed folio in place.
//! - A commit writes within the file, to the byte. Were bytes put behind the end, an extension of the file
//!   would show them.
//! - Space is reserved by `map_write`, or it fails with `ENOSPC`; a commit needs no more. Reserved space that
//!   was not used is released when the map is dropped: a reservation without dirty data above it would never
//!   be used or released.
//! - Read maps hold at most a quarter of the memory for file data: a folio that is given other memory finds
//!   some.
//!
//! Locks: `rwlock` of the inode for writing while space is reserved and while a commit writes; the folio lock
//! while a read map is made.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use ext4_core::device::memory::MAX_FOLIO_SIZE;
use ext4_core::device::{AlignedBuffer, PoolView};
use ext4_core::{Errno, Error, LogicalBlock, Result};

use crate::cache::extent_status::status::Status;
use crate::file::File;
use crate::file::options::SyncMode;
use crate::inode::locks::under_locks;
use crate::io::buffered_write::{self, AllocationMode};
use crate::io::inline_data;
use crate::iomap;
use crate::iomap::allocate::{self, ENOSPC_RETRIES};
use crate::iomap::reserved_blocks::ReservedBlocks;
use crate::writeback::flusher::throttle;

/// Bytes of a file to change and commit: a memory map for writing, from [`File::map_write`]. They are the
/// owner's own copy; dropping it without [`MappedBytesMut::commit`] writes nothing.
pub struct MappedBytesMut<'f> {
    file: &'f File,
    offset: u64,
    bytes: AlignedBuffer,
    reserved: ReservedBlocks,
}

impl fmt::Debug for MappedBytesMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MappedBytesMut({}+{} of inode {})", self.offset, self.bytes.len(), self.file.inode.number)
    }
}

impl Deref for MappedBytesMut<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for MappedBytesMut<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl MappedBytesMut<'_> {
    /// The byte offset in the file of the first byte of the map.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Writes all bytes of the map into the page cache, as one write. Returns how many bytes were written:
    /// fewer than the map has only if the file was cut shorter since it was made. They are dirty then, and
    /// become durable as those of any write do.
    ///
    /// # Errors
    /// - `ENOENT`: the file was deleted.
    /// - `EROFS`, `ENODEV`: the file system is not written any more, or is unmounted.
    /// - `ENOSPC`: only if a hole was made in the range since the map was made.
    /// - `EIO`, `EUCLEAN`: a block that is written in part had to be read, and the device or what it holds
    ///   failed.
    pub async fn commit(self) -> Result<usize> {
        let file = self.file;
        let written = file.filesystem.observe("write", file.inode.number, self.write()).await?;
        if written > 0 {
            let range = self.offset..self.offset + written as u64;
            file.sync_change(range, SyncMode::None).await?;
        }
        Ok(written)
    }

    async fn write(&self) -> Result<usize> {
        let (file, fs) = (self.file, self.file.fs());
        let mounted = fs.volume.freeze.read().await;
        if !*mounted {
            return Err(Error::posix(Errno::ENODEV, "unmounted"));
        }
        fs.volume.check_writable()?;
        throttle::throttle(&fs.engine, &file.inode).await;
        let _content = file.inode.rwlock.write().await;
        file.inode.check_alive()?;
        let room = file.inode.size().saturating_sub(self.offset);
        let len = self.bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if len == 0 {
            return Ok(0);
        }
        let (bytes, reserved) = (&self.bytes[..len], Some(&self.reserved));
        let written =
            buffered_write::write_reserved(&fs.engine, &file.inode, self.offset, bytes, reserved).await?;
        file.note_times().await;
        Ok(written)
    }
}

/// Where the bytes of a read map lie.
enum View {
    /// In a folio.
    Folio(PoolView),
    /// In memory of their own: the data of an inline file is in its inode.
    Copied(Vec<u8>),
}

/// Bytes of a file in the page cache, as they were when the map was made: a memory map for reading, from
/// [`File::map_read`].
pub struct MappedBytes {
    view: View,
    /// Bytes of memory that the view keeps in use: those of the whole folio.
    folio_len: usize,
    /// Bytes of memory that all read maps of the file system keep in use.
    viewed: Arc<AtomicUsize>,
}

impl Deref for MappedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.view {
            View::Folio(view) => view,
            View::Copied(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for MappedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// Passes the view on without a copy: the [`Bytes`] and its clones keep the folio's memory until the last is
/// dropped.
impl From<MappedBytes> for Bytes {
    fn from(mapped: MappedBytes) -> Self {
        Self::from_owner(mapped)
    }
}

impl fmt::Debug for MappedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MappedBytes({} bytes)", self.len())
    }
}

impl Drop for MappedBytes {
    fn drop(&mut self) {
        self.viewed.fetch_sub(self.folio_len, Ordering::AcqRel);
    }
}

impl File {
    /// A memory map for writing: the bytes from byte `offset` on, at most `len`, up to the end of the file
    /// and up to the next multiple of 2 MiB. They hold what the file holds; nothing is written before
    /// [`MappedBytesMut::commit`]. Space for holes in the range is reserved now (or blocks are allocated, if
    /// space is low).
    ///
    /// The map is a copy of the caller's own and holds no lock. A commit writes all of its bytes, over what
    /// other writers wrote there since: map what is to be written and no more.
    ///
    /// # Errors
    /// - `ENXIO`: `offset` is at or behind the end of the file (the kernel's SIGBUS), or `len` is 0.
    /// - `ENOSPC`: no space for the holes in the range.
    /// - `ENOENT`: the file was deleted.
    /// - `EROFS`, `ENODEV`: the file system is not written, or is unmounted.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn map_write(&self, offset: u64, len: usize) -> Result<MappedBytesMut<'_>> {
        self.filesystem.observe("write", self.inode.number, self.map_for_writing(offset, len)).await
    }

    async fn map_for_writing(&self, offset: u64, len: usize) -> Result<MappedBytesMut<'_>> {
        let (fs, inode) = (self.fs(), &self.inode);
        let mounted = fs.volume.freeze.read().await;
        if !*mounted {
            return Err(Error::posix(Errno::ENODEV, "unmounted"));
        }
        let reserved = ReservedBlocks::new(&fs.volume);
        let mut retries = 0;
        let end = loop {
            fs.volume.check_writable()?;
            // Before any folio is locked: what makes room may write back this very folio.
            throttle::throttle(&fs.engine, inode).await;
            let _content = inode.rwlock.write().await;
            inode.check_alive()?;
            let end = self.end_of_map(offset, len)?;
            // A commit needs blocks, which an inline file has not.
            inline_data::move_out(&fs.engine, inode).await?;
            match self.reserve_holes(&reserved, offset, end).await {
                Ok(()) => break end,
                Err(error) if error.errno() == Errno::ENOSPC && retries < ENOSPC_RETRIES => {
                    retries += 1;
                    if !buffered_write::free_space(&fs.engine, retries).await? {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        };
        let mut bytes = AlignedBuffer::zeroed((end - offset) as usize)?;
        // If the file is cut meanwhile, the rest are zeros, and the commit writes none of them.
        self.read_cached_at(offset, &mut bytes).await?;
        Ok(MappedBytesMut { file: self, offset, bytes, reserved })
    }

    fn end_of_map(&self, offset: u64, len: usize) -> Result<u64> {
        let size = self.inode.size();
        if offset >= size || len == 0 {
            let context = format!("bytes {offset}+{len} of inode {}, of {size} bytes", self.inode.number);
            return Err(Error::posix(Errno::ENXIO, context));
        }
        let folio_end = (offset + 1).next_multiple_of(MAX_FOLIO_SIZE as u64);
        Ok(offset.saturating_add(len as u64).min(size).min(folio_end))
    }

    /// Reserves space for the holes of bytes `offset..end`, or allocates their blocks. The caller holds
    /// `rwlock` for writing.
    async fn reserve_holes(&self, reserved: &ReservedBlocks, offset: u64, end: u64) -> Result<()> {
        let (fs, inode) = (self.fs(), &self.inode);
        let block_size = fs.volume.info.block_size();
        let first = LogicalBlock::containing(offset, block_size);
        let last = LogicalBlock::at_or_behind(end, block_size);
        let indirect = inode.is_indirect().await;
        if indirect && buffered_write::needs_pointers_first(&fs.engine) {
            buffered_write::prepare(&fs.engine, inode, offset, end).await?;
        }
        if !indirect && buffered_write::allocation_mode(&fs.engine) == AllocationMode::AtOnce {
            let (shared, owned) = (Arc::clone(fs), Arc::clone(inode));
            let operation =
                async move { allocate::allocate_holes(&shared.volume, &owned, first..last).await };
            return under_locks(&fs.volume, inode, operation).await;
        }
        // With bigalloc every cluster that a hole touches: the most that it can need.
        let clusters = fs.volume.info.cluster_bits();
        let mut holes = 0;
        let mut at = first;
        while at < last {
            let extent = iomap::lookup(&fs.volume, inode, at).await?;
            let stop = extent.end.min(last);
            if extent.status == Status::Hole {
                holes += u64::from(((stop.0 - 1) >> clusters) - (at.0 >> clusters) + 1);
            }
            at = stop;
        }
        reserved.add(holes)
    }

    /// A memory map for reading, without a copy: the bytes from byte `offset` on, at most `len`, up to the
    /// end of the file and as far as one folio holds them. They stay as they were when the map was made: a
    /// later write gives the folio other memory, so a reader that wants to see it maps again. A map holds no
    /// lock, but keeps the memory of its folio in use until it is dropped.
    ///
    /// # Errors
    /// - `ENXIO`: `offset` is at or behind the end of the file, or `len` is 0.
    /// - `EAGAIN`: read maps keep a quarter of the memory for file data in use already.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn map_read(&self, offset: u64, len: usize) -> Result<MappedBytes> {
        self.filesystem.observe("read", self.inode.number, self.map_for_reading(offset, len)).await
    }

    async fn map_for_reading(&self, offset: u64, len: usize) -> Result<MappedBytes> {
        let (fs, inode) = (self.fs(), &self.inode);
        loop {
            let end = self.end_of_map(offset, len)?;
            if inode.is_inline() {
                // A hole behind inline data may be as long as a file can be.
                let len = (end - offset).min(u64::from(fs.volume.info.block_size().bytes()));
                let mut bytes = vec![0; len as usize];
                if let Some(count) = inline_data::read(inode, offset, &mut bytes).await? {
                    bytes.truncate(count);
                    let viewed = Arc::clone(&fs.engine.viewed);
                    return Ok(MappedBytes { view: View::Copied(bytes), folio_len: 0, viewed });
                }
            }
            if let Some(folio) = inode.pages.find(offset) {
                let stop = end.min(folio.end());
                let guard = folio.lock().await;
                let uptodate = guard.is_uptodate(guard.blocks_touched(offset, stop));
                if !guard.is_removed() && uptodate && stop <= inode.size() {
                    let (viewed, folio_len) = (Arc::clone(&fs.engine.viewed), guard.len());
                    if viewed.fetch_add(folio_len, Ordering::AcqRel) + folio_len
                        > fs.engine.dirty.capacity() / 4
                    {
                        viewed.fetch_sub(folio_len, Ordering::AcqRel);
                        let context =
                            format!("read maps keep {} bytes in use", viewed.load(Ordering::Acquire));
                        return Err(Error::posix(Errno::EAGAIN, context));
                    }
                    guard.mark_accessed();
                    return Ok(MappedBytes {
                        view: View::Folio(guard.view(offset, stop)),
                        folio_len,
                        viewed,
                    });
                }
            }
            self.read_ahead_of(offset, end).await?;
        }
    }
}
