//! Direct I/O: between the caller's memory and the device, past the page cache.
//!
//! ```text
//!   read    rwlock(r) ─ write back what is dirty there ─ map ─ bios ─ zeros for holes and behind the end
//!   write   rwlock(r) ─ write back, drop the folios ─ all blocks there: bios ─ convert ─ drop the folios again
//!           rwlock(w) ─ … else: zero the old tail, write back ─ allocate unwritten ─ (w → r) ─ bios ─ convert, size ─ drop
//! ```
//!
//! | file | what |
//! |---|---|
//! | `coherence` | what the page cache holds of the range, before and after |
//! | `transfer` | pieces of the caller's memory, to and from the device |
//! | `read`, `write` | the two ways |
//! | `complete` | conversion and size after a write; taking back what a failed one allocated |
//!
//! Invariants:
//! - `rwlock` is held, for reading at least, from the first look at the mapping until the I/O has ended and what follows
//!   from it is done. Truncation and punching take it for writing: they wait for direct I/O in flight, and no block
//!   that a device is writing to is given to another file.
//! - A write runs to its end though its caller goes away: the lock would go with him.
//! - What was written through the cache is on the device before a direct read or write of it starts, and a write drops
//!   the folios before and after: a buffered reader may fill one while the I/O is under way, with blocks that were not
//!   written yet.
//! - Blocks that a write allocates are unwritten until its data is on the device. A write that extends the file begins when
//!   i_disksize is i_size and the zeros behind an unaligned end are on the device, and the size moves in the handle that
//!   converts its last blocks: a crash shows the old size or the data, never what lay there before.
//! - An overwrite that is to be durable and changes nothing but data is written with FUA, where the device has that: no
//!   flush follows it. Where anything leads to the data that is not durable yet, a commit does, and its flush.
//! - A write that fails converts nothing and moves no size. What it allocated behind the end is freed.

use std::sync::Arc;

use ext4_core::Result;
use ext4_core::device::AlignedBuffer;
use parking_lot::Mutex;

use crate::file::File;
use crate::file::options::SyncMode;
use crate::file::options::WriteFlags;
use crate::io::direct::write::{How, Written};
use crate::io::direct::{check_aligned, is_inline};
use crate::volume::OnMedium;

/// How much a direct read or write of borrowed memory copies at a time.
const COPY_STEP: usize = 8 << 20;

impl File {
    /// What offsets and lengths of direct I/O must be multiples of, in bytes: the device's logical block. Memory is
    /// always aligned in an [`AlignedBuffer`].
    #[must_use]
    pub fn direct_alignment(&self) -> u32 {
        self.fs().volume.info.device().geometry().logical_block_size
    }

    /// Reads at byte `offset` into `buffer`, past the page cache and without a copy, however the file was opened.
    /// Returns how many bytes, fewer than the buffer has only at the end of the file, and the buffer; what lies behind the
    /// bytes read is anything. Several may be under way at the same time.
    ///
    /// # Errors
    /// `EINVAL` where offset or length are not aligned (see [`File::direct_alignment`]); those of the device and of what
    /// it holds; those of writing back what was dirty there.
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

    /// Writes `buffer` at byte `offset`, past the page cache and without a copy, however the file was opened. Returns
    /// how many bytes, all of them or an error, and the buffer. Several may be under way at the same time, but for
    /// those that allocate blocks or extend the file. Where the blocks can only be written through the page cache (a
    /// part of a block that holds nothing yet, a hole of a file without extents), it does that and waits for the device.
    ///
    /// The data is on the device when it returns, as far as the device does not cache it: durable after fsync, or at
    /// once where the file was opened for synchronous writes.
    ///
    /// # Errors
    /// As [`File::read_direct`]; `ENOSPC`, `EFBIG`, `EROFS`.
    pub async fn write_direct(&self, offset: u64, buffer: AlignedBuffer) -> (Result<usize>, AlignedBuffer) {
        self.write_direct_with(offset, buffer, WriteFlags::empty()).await
    }

    /// As [`File::write_direct`], with flags.
    ///
    /// # Errors
    /// As [`File::write_direct`]; `EAGAIN` with [`WriteFlags::NOWAIT`].
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

    /// Whether FUA is worth its while: the data is to be durable and nothing else is, and FUA costs less than a flush. A
    /// write that has its times made durable too needs a commit, which flushes.
    fn writes_through(&self, flags: WriteFlags) -> bool {
        let fs = self.fs();
        self.options.sync.max(flags.sync_mode()) == SyncMode::Data
            && fs.volume.options.barrier
            && fs.volume.journal.is_some()
            && fs.volume.info.device().geometry().fua
    }

    /// At `position`, or at the end.
    async fn write_owned(
        &self,
        position: Option<u64>,
        buffer: AlignedBuffer,
        how: How,
    ) -> (Result<Written>, AlignedBuffer) {
        let inode = Arc::clone(&self.inode);
        // The buffer is there again, whichever way the operation ends.
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

    /// mtime and ctime follow; nothing is dirty, but the flusher has to log them.
    async fn note_direct_write(&self) {
        self.note_times().await;
        let engine = &self.fs().engine;
        engine.dirty.enqueue(engine.volume.runtime.monotonic(), &self.inode);
    }

    /// What a direct read can give without waiting, also for the device.
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

    /// A direct write of memory that may lie anywhere. What is made durable is what FUA makes so, where that is asked for.
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
