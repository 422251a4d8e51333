//! Direct I/O (`O_DIRECT`) of an open file: between the caller's memory and the device, past the page cache.
//!
//! ```text
//!   read    rwlock(r) ─ write back dirty folios ─ map ─ bios ─ zeros for holes and behind the end
//!   write   rwlock(r) ─ write back, drop the folios ─ all blocks mapped: bios ─ convert ─ drop again
//!           rwlock(w) ─ … else: zero the old tail, write back ─ allocate unwritten ─ (w → r) ─ bios ─
//!                       convert, size ─ drop
//! ```
//!
//! | file of `io/direct` | what |
//! |---|---|
//! | `coherence` | what the page cache holds of the range, before and after |
//! | `transfer` | pieces of the caller's memory, to and from the device |
//! | `read`, `write` | the two ways |
//! | `complete` | conversion and size after a write; freeing what a failed write allocated |
//!
//! Invariants:
//! - `rwlock` is held, at least for reading, from the first look at the mapping until the I/O has ended and
//!   its conversion and size are done. Truncation and punching take it for writing: they wait for direct I/O
//!   in flight, so no block that a device is writing to is given to another file.
//! - A write runs to its end even if its caller stops waiting: the lock would be released with the caller's
//!   future.
//! - Data that was written through the page cache is on the device before a direct read or write of it
//!   starts. A write drops the folios before and after its I/O: a buffered reader may fill one while the I/O
//!   is under way, with blocks that were not written yet.
//! - Blocks that a write allocates are unwritten until its data is on the device. A write that extends the
//!   file begins when i_disksize is i_size and the zeros behind an unaligned end are on the device, and the
//!   size moves in the handle that converts its last blocks: a crash shows the old size or the data, never
//!   what lay there before.
//! - An overwrite that is to be durable and changes nothing but data is written with FUA, if the device has
//!   that: no flush follows it. If anything that leads to the data is not durable yet, a commit makes it so,
//!   with its flush.
//! - A write that fails converts nothing and moves no size. Blocks that it allocated behind the end are
//!   freed.

use std::sync::Arc;

use ext4_core::Result;
use ext4_core::device::AlignedBuffer;
use parking_lot::Mutex;

use crate::file::File;
use crate::file::options::{SyncMode, WriteFlags};
use crate::io::direct::write::{How, Written};
use crate::io::direct::{check_aligned, is_inline};
use crate::volume::OnMedium;

/// Bytes that a direct read or write of borrowed memory copies at a time.
const COPY_STEP: usize = 8 << 20;

impl File {
    /// Bytes that offsets and lengths of direct I/O must be multiples of: the device's logical block size.
    /// The memory of an [`AlignedBuffer`] is always aligned.
    #[must_use]
    pub fn direct_alignment(&self) -> u32 {
        self.fs().volume.info.device().geometry().logical_block_size
    }

    /// Reads at byte `offset` into `buffer`, past the page cache and without a copy, however the file was
    /// opened. Returns how many bytes were read, fewer than the buffer has only at the end of the file, and
    /// the buffer; its bytes behind those are undefined. Several direct reads may be under way at the same
    /// time.
    ///
    /// # Errors
    /// - `EINVAL`: offset or length are not multiples of [`File::direct_alignment`].
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    /// - Those of writing back dirty folios of the range.
    pub async fn read_direct(&self, offset: u64, buffer: AlignedBuffer) -> (Result<usize>, AlignedBuffer) {
        let mut back = buffer;
        let read = async {
            check_aligned(&self.fs().engine, &self.inode, offset, back.len())?;
            if is_inline(&self.inode).await {
                return self.read_cached_at(offset, &mut back).await;
            }
            crate::io::direct::read::read(&self.fs().engine, &self.inode, offset, &mut back).await
        };
        let result = self.filesystem.observe("read", self.inode.number, read).await;
        if result.is_ok() {
            self.note_access().await;
        }
        (result, back)
    }

    /// Writes `buffer` at byte `offset`, past the page cache and without a copy, however the file was opened.
    /// Returns how many bytes were written, all of them or an error, and the buffer. Several direct writes
    /// may be under way at the same time, except those that allocate blocks or extend the file. Blocks that
    /// can only be written through the page cache (a part of a block that holds nothing yet, a hole of a file
    /// without extents) are written that way, and waited for.
    ///
    /// The data has left the page cache for the device when it returns. It is durable after fsync, or at once
    /// if the file was opened for synchronous writes.
    ///
    /// # Errors
    /// - `ENOSPC`: no free blocks.
    /// - `EFBIG`: past the largest size that the file can have.
    /// - `EROFS`: the file system is not written.
    /// - Those of [`File::read_direct`].
    pub async fn write_direct(&self, offset: u64, buffer: AlignedBuffer) -> (Result<usize>, AlignedBuffer) {
        self.write_direct_with(offset, buffer, WriteFlags::empty()).await
    }

    /// As [`File::write_direct`], with flags.
    ///
    /// # Errors
    /// - `EAGAIN`: with [`WriteFlags::NOWAIT`], the write would wait.
    /// - Those of [`File::write_direct`].
    pub async fn write_direct_with(
        &self,
        offset: u64,
        buffer: AlignedBuffer,
        flags: WriteFlags,
    ) -> (Result<usize>, AlignedBuffer) {
        let append = self.options.append || flags.contains(WriteFlags::APPEND);
        let how = How { nowait: flags.contains(WriteFlags::NOWAIT), through: self.writes_through(flags) };
        let (result, buffer) = self.write_owned((!append).then_some(offset), buffer, how).await;
        let result = match result {
            Ok(Written { at, count, on_medium }) if count > 0 => {
                let range = at..at + count as u64;
                self.sync_written(range, flags.sync_mode(), on_medium).await.map(|()| count)
            }
            result => result.map(|written| written.count),
        };
        (result, buffer)
    }

    /// Returns true if the write goes out with FUA: its data is to be durable and nothing else is, and FUA
    /// costs less than a flush. A write whose times are to be durable too needs a commit, which flushes.
    fn writes_through(&self, flags: WriteFlags) -> bool {
        let fs = self.fs();
        self.options.sync.max(flags.sync_mode()) == SyncMode::Data
            && fs.volume.options.barrier
            && fs.volume.journal.is_some()
            && fs.volume.info.device().geometry().fua
    }

    /// Writes `buffer` at byte `position`, or at the end of the file if that is `None`.
    async fn write_owned(
        &self,
        position: Option<u64>,
        buffer: AlignedBuffer,
        how: How,
    ) -> (Result<Written>, AlignedBuffer) {
        let inode = Arc::clone(&self.inode);
        // The buffer comes back, whichever way the operation ends.
        let slot = Arc::new(Mutex::new(Some(buffer)));
        let held = Arc::clone(&slot);
        let result = self
            .filesystem
            .run("write", inode.number, move |fs| async move {
                let Some(mut buffer) = held.lock().take() else { return Ok(Written::at(0, 0)) };
                let result =
                    crate::io::direct::write::write(&fs.engine, &inode, position, &mut buffer, how).await;
                *held.lock() = Some(buffer);
                result
            })
            .await;
        if result.is_ok() {
            self.note_direct_write().await;
        }
        let buffer = slot.lock().take();
        (result, buffer.unwrap_or_else(AlignedBuffer::empty))
    }

    /// Updates mtime and ctime. No folio is dirty, but the flusher has to log the times.
    async fn note_direct_write(&self) {
        self.note_times().await;
        let engine = &self.fs().engine;
        engine.dirty.enqueue(engine.volume.runtime.monotonic(), &self.inode);
    }

    /// What a direct read returns without waiting, not even for the device
    /// ([`crate::file::options::ReadFlags::NOWAIT`]).
    pub(crate) fn read_direct_now(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        check_aligned(&self.fs().engine, &self.inode, offset, buffer.len())?;
        match crate::io::direct::read::read_now(&self.fs().engine, &self.inode, offset, buffer)? {
            Some(count) => Ok(count),
            None => Err(self.would_wait("a direct read")),
        }
    }

    /// A direct read into memory that may lie anywhere: through memory that is aligned.
    pub(crate) async fn read_direct_copied(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        check_aligned(&self.fs().engine, &self.inode, offset, buffer.len())?;
        let mut done = 0;
        for part in buffer.chunks_mut(COPY_STEP) {
            let aligned = AlignedBuffer::zeroed(part.len())?;
            match self.read_direct(offset + done as u64, aligned).await {
                (Ok(count), aligned) => {
                    part[..count].copy_from_slice(&aligned[..count]);
                    done += count;
                    if count < part.len() {
                        break;
                    }
                }
                (Err(_), _) if done > 0 => break,
                (Err(error), _) => return Err(error),
            }
        }
        Ok(done)
    }

    /// A direct write of borrowed memory, which is copied first. It makes nothing durable but what FUA does,
    /// if that is asked for.
    pub(crate) async fn write_direct_copied(
        &self,
        position: Option<u64>,
        data: &[u8],
        flags: WriteFlags,
    ) -> Result<Written> {
        check_aligned(&self.fs().engine, &self.inode, position.unwrap_or(0), data.len())?;
        let how = How { nowait: flags.contains(WriteFlags::NOWAIT), through: self.writes_through(flags) };
        let mut whole: Option<Written> = None;
        for part in data.chunks(COPY_STEP) {
            let done = whole.map_or(0, |whole| whole.count);
            let at = position.map(|position| position + done as u64);
            match (self.write_owned(at, AlignedBuffer::copied(part)?, how).await.0, &mut whole) {
                (Ok(written), Some(whole)) => {
                    whole.count += written.count;
                    if written.on_medium == OnMedium::No {
                        whole.on_medium = OnMedium::No;
                    }
                }
                (Ok(written), none) => *none = Some(written),
                (Err(_), Some(_)) => break,
                (Err(error), None) => return Err(error),
            }
        }
        Ok(whole.unwrap_or(Written::at(position.unwrap_or(0), 0)))
    }
}
