//! copy_file_range(2): from one file to another, or to another place of the same file, through the page
//! cache.
//!
//! Holes of the source are not copied byte by byte: they are punched into the destination, and left out
//! behind its end.
//!
//! Locks: for each piece those of a read of the source, then those of a write of the destination, never both
//! at a time. So two files need no order, and a copy from a to b beside one from b to a is no deadlock. The
//! copy is as atomic as that many reads and writes: if the source is changed meanwhile, the destination may
//! hold either content.

use std::sync::Arc;

use ext4_core::{Errno, Error, Result};

use crate::file::options::OpenOptions;
use crate::file::{File, SeekTarget};
use crate::io::fallocate::request::FallocateMode;
use crate::io::truncate;

/// Bytes that are read and written at a time.
const PIECE: u64 = 1 << 20;

impl File {
    /// Copies up to `len` bytes from byte `source_offset` of `source` to byte `offset` of this file. Returns
    /// how many bytes were copied: fewer if the source ends before, or if an error came after some.
    ///
    /// # Errors
    /// - `EBADF`: this file was opened for appending.
    /// - `EXDEV`: the files are on different file systems.
    /// - `EINVAL`: both files are the same, and the ranges overlap.
    /// - `EFBIG`: `offset` is past the largest size that this file can have.
    /// - Those of [`File::read_at`] and [`File::write_at`].
    pub async fn copy_file_range(
        &self,
        source: &Self,
        source_offset: u64,
        offset: u64,
        len: u64,
    ) -> Result<u64> {
        let fs = &self.filesystem.inner;
        if !Arc::ptr_eq(fs, &source.filesystem.inner) {
            return Err(Error::posix(Errno::EXDEV, "copying from another file system"));
        }
        if self.options.append {
            return Err(Error::posix(Errno::EBADF, "copying to a file that is opened for appending"));
        }
        let (plain_target, plain_source) = (self.through_the_cache(), source.through_the_cache());
        let (target, source) =
            (plain_target.as_ref().unwrap_or(self), plain_source.as_ref().unwrap_or(source));
        let limit = crate::iomap::pointers::max_size(&fs.volume, &self.inode).await;
        let len = len.min(source.len().saturating_sub(source_offset));
        if len == 0 {
            return Ok(0);
        }
        if offset >= limit {
            return Err(Error::posix(Errno::EFBIG, format!("a copy to {offset}: files end at {limit}")));
        }
        let len = len.min(limit - offset);
        let same = Arc::ptr_eq(&self.inode, &source.inode);
        if same && source_offset < offset + len && offset < source_offset + len {
            return Err(Error::posix(Errno::EINVAL, "copying a range onto itself"));
        }
        let mut done = 0;
        while done < len {
            let (from, to) = (source_offset + done, offset + done);
            match target.copy_piece(source, from, to, len - done).await {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// The same file opened without `direct`, since a copy need not be aligned; `None` if it was not opened
    /// so.
    fn through_the_cache(&self) -> Option<Self> {
        if !self.options.direct {
            return None;
        }
        self.filesystem.inner.inodes.opened(&self.inode);
        let options = OpenOptions { direct: false, ..self.options };
        Some(Self::new(self.filesystem.clone(), Arc::clone(&self.inode), options))
    }

    /// Copies the data, or the hole, that begins at byte `from`, at most `most` bytes. Returns how many
    /// bytes; 0 at the end of the source.
    async fn copy_piece(&self, source: &Self, from: u64, to: u64, most: u64) -> Result<u64> {
        let data = match source.seek(from, SeekTarget::Data).await {
            // Nothing but a hole up to the end.
            Ok(data) => data.unwrap_or(u64::MAX),
            // The source became shorter meanwhile.
            Err(error) if error.errno() == Errno::ENXIO => return Ok(0),
            Err(error) => return Err(error),
        };
        if data > from {
            let count = most.min(data - from).min(source.len().saturating_sub(from));
            self.put_hole(to, count).await?;
            return Ok(count);
        }
        let hole = source.seek(from, SeekTarget::Hole).await.map_or(None, |hole| hole).unwrap_or(u64::MAX);
        let count = most.min(PIECE).min(hole.saturating_sub(from).max(1));
        let mut bytes = vec![0; count as usize];
        let count = source.read_at(from, &mut bytes).await?;
        if count == 0 {
            return Ok(0);
        }
        Ok(self.write_at(to, &bytes[..count]).await? as u64)
    }

    /// Has `len` bytes from byte `to` on read as zeros, without blocks if possible.
    async fn put_hole(&self, to: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        if to < self.len() {
            self.fallocate(FallocateMode::PunchHole, to, len).await?;
        }
        let inode = Arc::clone(&self.inode);
        self.filesystem
            .run("copy range", inode.number, move |fs| async move {
                truncate::extend_to(&fs.engine, &inode, to + len).await
            })
            .await
    }
}
