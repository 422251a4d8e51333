//! Reads and writes with flags of their own (`RWF_*` of preadv2 and pwritev2), and of many slices.
//!
//! A vectored call is one call: a write takes the file's lock once and is in nobody's way half done.

use crate::io::read;
use crate::iomap::pointers::max_size_with_extents;
use crate::writeback::flusher::throttle;
use std::borrow::Cow;
use std::io::{IoSlice, IoSliceMut};

use ext4_core::{Errno, Error, Result};

use crate::file::File;
use crate::file::options::{ReadFlags, SyncMode, WriteFlags};
use crate::io::buffered_write;
use crate::io::direct::write::Written;

/// Slices of up to so many bytes in all are joined before they are written: two halves of a block are a whole one then,
/// which need not be read first.
const JOINED: usize = 256 << 10;

impl File {
    /// As [`File::read_at`], with flags.
    ///
    /// # Errors
    /// As [`File::read_at`]; `EAGAIN` with [`ReadFlags::NOWAIT`].
    pub async fn read_with(&self, offset: u64, buffer: &mut [u8], flags: ReadFlags) -> Result<usize> {
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

    /// Reads at byte `offset` into `buffers`, one after the other; returns how many bytes, fewer only at the end of the
    /// file.
    ///
    /// # Errors
    /// As [`File::read_at`]; what was read before an error is reported instead of it.
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

    /// As [`File::write_at`], with flags. Returns how many bytes were written; where, with [`WriteFlags::APPEND`], only
    /// [`File::append`] tells.
    ///
    /// # Errors
    /// As [`File::write_at`]; `EOPNOTSUPP` and `EAGAIN` for [`WriteFlags::NOWAIT`]; those of fsync where the write is to be
    /// durable.
    pub async fn write_with(&self, offset: u64, data: &[u8], flags: WriteFlags) -> Result<usize> {
        let (_, count) = self.write_slices(offset, &[IoSlice::new(data)], flags).await?;
        Ok(count)
    }

    /// Writes all of `slices`, one after the other, at byte `offset`, in one call.
    ///
    /// # Errors
    /// As [`File::write_with`].
    pub async fn write_vectored_at(
        &self,
        offset: u64,
        slices: &[IoSlice<'_>],
        flags: WriteFlags,
    ) -> Result<usize> {
        let (_, count) = self.write_slices(offset, slices, flags).await?;
        Ok(count)
    }

    /// Writes `data` at the end of the file; returns where that was, and how many bytes.
    ///
    /// # Errors
    /// As [`File::write_at`].
    pub async fn append(&self, data: &[u8]) -> Result<(u64, usize)> {
        if let Some(position) = self.write_now(None, data) {
            return Ok((position, data.len()));
        }
        self.write_slices(0, &[IoSlice::new(data)], WriteFlags::APPEND).await
    }

    /// Every write goes through here: where it went and how many bytes.
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

    /// Writes `data`, all of it, where nothing has to be waited for: no lock, no memory, no device, no other writers'
    /// share. Returns where. `None` where it is not so, and nothing happened.
    pub(crate) fn write_now(&self, position: Option<u64>, data: &[u8]) -> Option<u64> {
        if self.options.direct || self.options.sync != SyncMode::None || data.is_empty() {
            return None;
        }
        let (fs, inode) = (self.fs(), &self.inode);
        // Not under `freeze`: nobody unmounts while a file is open.
        if fs.volume.check_writable().is_err() || throttle::would_throttle(&fs.engine) {
            return None;
        }
        let _changing = inode.rwlock.try_write().ok()?;
        // What is noted once for each tick is left to who waits.
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
        // It may have been waiting when the error struck.
        fs.volume.check_writable()?;
        let _changing = match self.inode.rwlock.try_write() {
            Ok(guard) => guard,
            Err(_) => self.inode.rwlock.write().await,
        };
        self.inode.check_alive()?;
        let position = position.unwrap_or_else(|| self.inode.size());
        let limit = crate::iomap::pointers::max_size(&fs.volume, &self.inode).await;
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

    /// A write changes mtime and ctime, in steps of the kernel's clock ticks. They are logged with the size, by fsync
    /// or by the flusher, which has the inode in its queue.
    pub(crate) async fn note_times(&self) {
        let now = self.fs().volume.now();
        let pages = &self.inode.pages;
        if pages.times.are_of(now) {
            return;
        }
        let mut disk = match self.inode.inode.try_write() {
            Ok(disk) => disk,
            Err(_) => self.inode.inode.write().await,
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
