//! preadv2 and pwritev2: reads and writes with flags of their own (`RWF_*`), and of many slices.
//!
//! Invariant: a write of many slices is one write. It takes the inode's `rwlock` once, so no reader that
//! takes that lock and no other writer sees a part of it.
//!
//! Locks: `freeze` and `rwlock` for writing around a buffered write; [`File::write_now`] tries `rwlock` only.

use std::borrow::Cow;
use std::io::{IoSlice, IoSliceMut};

use ext4_core::{Errno, Error, Result};

use crate::file::File;
use crate::file::options::{ReadFlags, SyncMode, WriteFlags};
use crate::io::direct::write::Written;
use crate::io::{buffered_write, read};
use crate::iomap::pointers::{max_size, max_size_with_extents};
use crate::writeback::flusher::throttle;

/// Slices of at most this many bytes in all are joined before they are written: two halves of a block become
/// a whole one, which need not be read first.
const JOINED: usize = 256 << 10;

impl File {
    /// As [`File::read_at`], with flags.
    ///
    /// # Errors
    /// - `EAGAIN`: with [`ReadFlags::NOWAIT`], the first byte is not in memory.
    /// - Those of [`File::read_at`].
    pub async fn read_at_with(&self, offset: u64, buffer: &mut [u8], flags: ReadFlags) -> Result<usize> {
        if !flags.contains(ReadFlags::NOWAIT) {
            return self.read_at(offset, buffer).await;
        }
        self.fs().volume.errors.check_alive()?;
        if self.options.direct {
            return self.read_direct_now(offset, buffer);
        }
        match read::read_cached(&self.inode, offset, buffer) {
            0 if !buffer.is_empty() && offset < self.inode.size() => Err(self.would_wait("a read")),
            count => Ok(count),
        }
    }

    pub(crate) fn would_wait(&self, what: &str) -> Error {
        Error::posix(Errno::EAGAIN, format!("inode {}: {what} would wait", self.inode.number))
    }

    /// preadv(2): reads at byte `offset` into `buffers`, one after the other. Returns how many bytes were
    /// read; fewer only at the end of the file, or if an error came after some.
    ///
    /// # Errors
    /// Those of [`File::read_at`].
    pub async fn read_vectored_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<usize> {
        let mut done = 0;
        for buffer in buffers {
            match self.read_at(offset + done as u64, buffer).await {
                Ok(count) => {
                    done += count;
                    if count < buffer.len() {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// As [`File::write_at`], with flags. Returns how many bytes were written; only [`File::append`] tells at
    /// which offset a write with [`WriteFlags::APPEND`] was.
    ///
    /// # Errors
    /// - `EOPNOTSUPP`: a buffered write with [`WriteFlags::NOWAIT`].
    /// - `EAGAIN`: a direct write with [`WriteFlags::NOWAIT`] would wait.
    /// - Those of [`File::write_at`]; those of [`File::sync_all`], if the flags ask for a durable write.
    pub async fn write_at_with(&self, offset: u64, data: &[u8], flags: WriteFlags) -> Result<usize> {
        let (_, count) = self.write_slices(offset, &[IoSlice::new(data)], flags).await?;
        Ok(count)
    }

    /// pwritev(2): writes all of `slices`, one after the other, at byte `offset`, as one write. Returns how
    /// many bytes were written; fewer only if an error came after some.
    ///
    /// # Errors
    /// Those of [`File::write_at`].
    pub async fn write_vectored_at(&self, offset: u64, slices: &[IoSlice<'_>]) -> Result<usize> {
        self.write_vectored_at_with(offset, slices, WriteFlags::empty()).await
    }

    /// As [`File::write_vectored_at`], with flags.
    ///
    /// # Errors
    /// Those of [`File::write_at_with`].
    pub async fn write_vectored_at_with(
        &self,
        offset: u64,
        slices: &[IoSlice<'_>],
        flags: WriteFlags,
    ) -> Result<usize> {
        let (_, count) = self.write_slices(offset, slices, flags).await?;
        Ok(count)
    }

    /// Writes `data` at the end of the file (`O_APPEND`). Returns the byte offset of that, and how many bytes
    /// were written.
    ///
    /// # Errors
    /// Those of [`File::write_at`].
    pub async fn append(&self, data: &[u8]) -> Result<(u64, usize)> {
        if let Some(position) = self.write_now(None, data) {
            return Ok((position, data.len()));
        }
        self.write_slices(0, &[IoSlice::new(data)], WriteFlags::APPEND).await
    }

    /// Writes `slices`: the way of every write but those of [`File::write_now`]. Returns the byte offset at
    /// which they were written, and how many bytes.
    pub(crate) async fn write_slices(
        &self,
        offset: u64,
        slices: &[IoSlice<'_>],
        flags: WriteFlags,
    ) -> Result<(u64, usize)> {
        if slices.iter().all(|slice| slice.is_empty()) {
            return Ok((offset, 0));
        }
        let position = (!self.options.append && !flags.contains(WriteFlags::APPEND)).then_some(offset);
        let written = if self.options.direct {
            self.write_direct_copied(position, &joined(slices), flags).await?
        } else if flags.contains(WriteFlags::NOWAIT) {
            let context = format!("inode {}: a buffered write that does not wait", self.inode.number);
            return Err(Error::posix(Errno::EOPNOTSUPP, context));
        } else {
            let written = self.write_buffered(position, slices);
            let (at, count) = self.filesystem.observe("write", self.inode.number, written).await?;
            Written::at(at, count)
        };
        let Written { at, count, on_medium } = written;
        if count > 0 {
            self.sync_written(at..at + count as u64, flags.sync_mode(), on_medium).await?;
        }
        Ok((at, count))
    }

    /// Writes all of `data` at byte `position`, or at the end of the file if that is `None`, if the write has
    /// to wait for nothing: no lock, no memory, no device, no throttling. Returns the byte offset. Returns
    /// `None`, and has changed nothing, if it would have to wait.
    pub(crate) fn write_now(&self, position: Option<u64>, data: &[u8]) -> Option<u64> {
        if self.options.direct || self.options.sync != SyncMode::None || data.is_empty() {
            return None;
        }
        let (fs, inode) = (self.fs(), &self.inode);
        // Not under `freeze`: unmount fails while a file is open.
        if fs.volume.check_writable().is_err() || throttle::would_throttle(&fs.engine) {
            return None;
        }
        let _changing = inode.rwlock.try_write().ok()?;
        // The first write of a clock tick updates the times, which may wait: it goes the other way.
        if inode.check_alive().is_err() || !inode.pages.times.are_of(fs.volume.now()) {
            return None;
        }
        let position = position.filter(|_| !self.options.append).unwrap_or_else(|| inode.size());
        let end = position.checked_add(data.len() as u64)?;
        (end <= max_size_with_extents(&fs.volume)
            && buffered_write::write_now(&fs.engine, inode, position, data))
        .then_some(position)
    }

    async fn write_buffered(&self, position: Option<u64>, slices: &[IoSlice<'_>]) -> Result<(u64, usize)> {
        let fs = self.fs();
        let mounted = match fs.volume.freeze.try_read() {
            Ok(guard) => guard,
            Err(_) => fs.volume.freeze.read().await,
        };
        if !*mounted {
            return Err(Error::posix(Errno::ENODEV, "unmounted"));
        }
        fs.volume.check_writable()?;
        throttle::throttle(&fs.engine, &self.inode).await;
        // The file system may have stopped writing while this writer was throttled.
        fs.volume.check_writable()?;
        let _changing = match self.inode.rwlock.try_write() {
            Ok(guard) => guard,
            Err(_) => self.inode.rwlock.write().await,
        };
        self.inode.check_alive()?;
        let position = position.unwrap_or_else(|| self.inode.size());
        let limit = max_size(&fs.volume, &self.inode).await;
        if position >= limit {
            return Err(Error::posix(Errno::EFBIG, format!("a write at {position}: files end at {limit}")));
        }
        let total = slices.iter().map(|slice| slice.len()).sum::<usize>();
        let joined = if slices.len() > 1 && total <= JOINED { Some(joined(slices)) } else { None };
        let one = joined.as_ref().map(|joined| IoSlice::new(joined));
        let slices = one.as_ref().map_or(slices, std::slice::from_ref);
        let mut done = 0;
        for slice in slices.iter().filter(|slice| !slice.is_empty()) {
            let at = position + done as u64;
            let room = usize::try_from(limit.saturating_sub(at)).unwrap_or(usize::MAX);
            let data = &slice[..slice.len().min(room)];
            if data.is_empty() {
                break;
            }
            match buffered_write::write(&fs.engine, &self.inode, at, data).await {
                Ok(count) => {
                    done += count;
                    if count < slice.len() {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        self.note_times().await;
        Ok((position, done))
    }

    /// Updates mtime and ctime after a write, once for each clock tick as the kernel does. They are logged
    /// with the size, by fsync or by the flusher, which has the inode in its queue.
    pub(crate) async fn note_times(&self) {
        let now = self.fs().volume.now();
        let pages = &self.inode.pages;
        if pages.times.are_of(now) {
            return;
        }
        let mut disk = match self.inode.on_disk.try_write() {
            Ok(disk) => disk,
            Err(_) => self.inode.on_disk.write().await,
        };
        disk.mtime = now;
        disk.ctime = now;
        pages.times.note_write(now);
    }
}

fn joined<'a>(slices: &'a [IoSlice<'_>]) -> Cow<'a, [u8]> {
    match slices {
        [one] => Cow::Borrowed(one),
        many => Cow::Owned(many.iter().flat_map(|slice| slice.iter().copied()).collect()),
    }
}
