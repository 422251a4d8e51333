//! A file's bytes as memory: what a memory map is to programs of a kernel, for those who embed the file system.
//!
//! ```text
//!   map_read    folio ──────────── the same bytes, while others write: the folio goes on with other memory then
//!   map_write   folio ── copy ──► bytes of the caller's own ── commit ──► folio, dirty
//!                        space promised                        the promise becomes the blocks' reservation
//! ```
//!
//! Invariants:
//! - Neither holds a lock of the file: it can be held for as long as its owner likes, and fsync, truncation, reads and
//!   writes go on. What is on its way to the device never changes under it, since nobody stores into a folio in place.
//! - A store lies within the file, to the byte: nothing is put behind the end, where an extension would show it.
//! - Space is there, or the mapping fails with `ENOSPC`; a commit needs no more. What was promised and not used goes back
//!   when the mapping is dropped: a promise without dirty data above it would never be kept or given back.
//! - Views pin at most a quarter of the memory for file data: the folios that go on without them find room.

use crate::iomap::allocate;
use crate::writeback::flusher::throttle;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ext4_core::device::memory::MAX_FOLIO_SIZE;
use ext4_core::device::{AlignedBuffer, PoolView};
use ext4_core::{Errno, Error, LogicalBlock, Result};

use crate::cache::extent_status::status::Status;
use crate::file::File;
use crate::inode::locks::under_locks;
use crate::io::buffered_write;
use crate::io::buffered_write::AllocationMode;
use crate::iomap;
use crate::iomap::allocate::ENOSPC_RETRIES;
use crate::iomap::reserved_blocks::ReservedBlocks;

/// Bytes of a file to store into: [`File::map_write`].
pub struct MappedFolio<'f> {
    file: &'f File,
    offset: u64,
    bytes: AlignedBuffer,
    promise: ReservedBlocks,
}

impl fmt::Debug for MappedFolio<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MappedFolio({}+{} of inode {})", self.offset, self.bytes.len(), self.file.inode.number)
    }
}

impl Deref for MappedFolio<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for MappedFolio<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl MappedFolio<'_> {
    /// The first byte of the file in it.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Stores the bytes into the page cache, as one write of all of them; returns how many: fewer than there are where
    /// the file was cut shorter since it was mapped. They are dirty then, and durable as any write is.
    ///
    /// # Errors
    /// `EROFS`, `ENOENT` where the file was deleted; those of the device where a block is stored to in part and has left
    /// memory. Space is not among them, but where somebody made a hole there meanwhile.
    pub async fn commit(self) -> Result<usize> {
        let file = self.file;
        let stored = file.filesystem.observe("write", file.inode.number, self.store()).await?;
        if stored > 0 {
            let range = self.offset..self.offset + stored as u64;
            file.sync_change(range, crate::file::options::SyncMode::None).await?;
        }
        Ok(stored)
    }

    async fn store(&self) -> Result<usize> {
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
        let (bytes, promise) = (&self.bytes[..len], Some(&self.promise));
        let stored =
            buffered_write::write_reserved(&fs.engine, &file.inode, self.offset, bytes, promise).await?;
        file.note_times().await;
        Ok(stored)
    }
}

/// Where mapped bytes lie.
enum View {
    /// In a folio.
    Folio(PoolView),
    /// In memory of their own: a file that holds its data itself has no folio.
    Copied(Vec<u8>),
}

/// Bytes of a file in the page cache, as they were when they were mapped: [`File::map_read`].
pub struct MappedBytes {
    view: View,
    folio_len: usize,
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
    /// Maps the bytes from `offset` on to store into them: up to `len`, up to the end of the file, and up to the next
    /// multiple of 2 MiB. They hold what the file holds; nothing is stored before [`MappedFolio::commit`], and dropping
    /// the mapping stores nothing. Blocks that are missing are promised (or allocated, where space is low) now.
    ///
    /// It is a copy of the caller's own, and locks nothing. A commit writes all of its bytes: what others wrote there since
    /// it was mapped is overwritten, so map what is to be stored and no more.
    ///
    /// # Errors
    /// `ENXIO` at or behind the end of the file (the kernel's SIGBUS), `ENOSPC`, `EROFS`; those of the device and of what
    /// it holds.
    pub async fn map_write(&self, offset: u64, len: usize) -> Result<MappedFolio<'_>> {
        self.filesystem.observe("write", self.inode.number, self.map_for_store(offset, len)).await
    }

    async fn map_for_store(&self, offset: u64, len: usize) -> Result<MappedFolio<'_>> {
        let (fs, inode) = (self.fs(), &self.inode);
        let mounted = fs.volume.freeze.read().await;
        if !*mounted {
            return Err(Error::posix(Errno::ENODEV, "unmounted"));
        }
        let promise = ReservedBlocks::new(&fs.volume);
        let mut retries = 0;
        let end = loop {
            fs.volume.check_writable()?;
            // Before any folio is locked: what makes room may write back this very folio.
            throttle::throttle(&fs.engine, inode).await;
            let _content = inode.rwlock.write().await;
            inode.check_alive()?;
            let end = self.end_of_mapping(offset, len)?;
            // A store promises blocks, so the file has to have some.
            crate::io::inline_data::move_out(&fs.engine, inode).await?;
            match self.promise_blocks(&promise, offset, end).await {
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
        // Where the file is cut meanwhile, the rest are zeros, and the commit stores none of them.
        self.read_cached_at(offset, &mut bytes).await?;
        Ok(MappedFolio { file: self, offset, bytes, promise })
    }

    fn end_of_mapping(&self, offset: u64, len: usize) -> Result<u64> {
        let size = self.inode.size();
        if offset >= size || len == 0 {
            let context = format!("bytes {offset}+{len} of inode {}, of {size} bytes", self.inode.number);
            return Err(Error::posix(Errno::ENXIO, context));
        }
        let folio_end = (offset + 1).next_multiple_of(MAX_FOLIO_SIZE as u64);
        Ok(offset.saturating_add(len as u64).min(size).min(folio_end))
    }

    /// Promises the holes of bytes `offset..end`, or allocates them. The caller holds `rwlock` for writing.
    async fn promise_blocks(&self, promise: &ReservedBlocks, offset: u64, end: u64) -> Result<()> {
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
        // With bigalloc each cluster of a hole, which is as many as it can take.
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
        promise.add(holes)
    }

    /// Maps the bytes from `offset` on to read them where they lie, without a copy: at most `len`, and as far as one folio
    /// holds them. They stay as they were when they were mapped: whoever writes there meanwhile writes other memory.
    /// So reads of a mapping see no later write; map again for that. It keeps nobody waiting, but the memory of its
    /// folio is in use until it is dropped.
    ///
    /// # Errors
    /// `ENXIO` at or behind the end of the file, `EAGAIN` where mappings hold a quarter of the memory for file data
    /// already; those of the device and of what it holds.
    pub async fn map_read(&self, offset: u64, len: usize) -> Result<MappedBytes> {
        self.filesystem.observe("read", self.inode.number, self.map_for_reading(offset, len)).await
    }

    async fn map_for_reading(&self, offset: u64, len: usize) -> Result<MappedBytes> {
        let (fs, inode) = (self.fs(), &self.inode);
        loop {
            let end = self.end_of_mapping(offset, len)?;
            if inode.is_inline() {
                // A hole behind such data may be as long as a file can be.
                let len = (end - offset).min(u64::from(fs.volume.info.block_size().bytes()));
                let mut bytes = vec![0; len as usize];
                if let Some(count) = crate::io::inline_data::read(inode, offset, &mut bytes).await? {
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
                        let context = format!("mappings hold {} bytes", viewed.load(Ordering::Acquire));
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
