//! Reads that hand out [`Bytes`], to pass on to a socket or another task, without a copy if one folio holds
//! the range.
//!
//! ```text
//!   read_chunks   one Bytes per folio, each the folio's own memory      never a copy
//!   read_bytes    one Bytes: the folio's memory if one folio holds all  else one copy of the whole range
//! ```
//!
//! Invariants:
//! - Bytes that were handed out never change: a later write gives the folio other memory
//!   ([`crate::file::map`]).
//! - Memory that is handed out counts as mapped until the last clone of its [`Bytes`] is dropped, the whole
//!   folio for any part of it, and is bounded as every [`File::map_read`] is. [`File::read_bytes`] copies if
//!   that bound is reached, so readers that hold bytes for long slow themselves down and fail nothing.

use bytes::Bytes;
use ext4_core::{Errno, Error, Result};

use crate::file::File;

impl File {
    /// Reads up to `len` bytes from byte `offset` on as one contiguous [`Bytes`]; fewer only at the end of
    /// the file, none at or behind it. Always goes through the page cache.
    ///
    /// The bytes are the page cache's own memory if one folio holds the range (folios are 4 KiB to 2 MiB,
    /// aligned to their size) and the memory maps of this file system hold less than a quarter of the memory
    /// for file data; otherwise they are a copy. A later write does not change them.
    ///
    /// # Errors
    /// - `ENOMEM`: no memory for the copy.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn read_bytes(&self, offset: u64, len: usize) -> Result<Bytes> {
        let len = self.available(offset, len);
        if len == 0 {
            return Ok(Bytes::new());
        }
        let bytes = match self.map_read(offset, len).await {
            Ok(mapped) if mapped.len() == len => mapped.into(),
            // Several folios, or a file that was cut meanwhile.
            Ok(mapped) => {
                drop(mapped);
                self.read_copied(offset, len).await?
            }
            Err(error) if error.errno() == Errno::EAGAIN => self.read_copied(offset, len).await?,
            Err(error) if error.errno() == Errno::ENXIO => Bytes::new(),
            Err(error) => return Err(error),
        };
        self.note_access().await;
        Ok(bytes)
    }

    /// Reads up to `len` bytes from byte `offset` on, without ever copying: one [`Bytes`] for each folio, in
    /// the order of the file. Always goes through the page cache. Fewer bytes than `len` come at the end of
    /// the file, or if an error came after some: the next call, at the offset that follows, reports it.
    ///
    /// # Errors
    /// - `EAGAIN`: the memory maps of this file system hold a quarter of the memory for file data already.
    ///   Drop some bytes, or use [`File::read_bytes`].
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn read_chunks(&self, offset: u64, len: usize) -> Result<Vec<Bytes>> {
        let len = self.available(offset, len);
        let mut chunks: Vec<Bytes> = Vec::new();
        let mut done = 0;
        while done < len {
            match self.map_read(offset + done as u64, len - done).await {
                Ok(mapped) => {
                    done += mapped.len();
                    chunks.push(mapped.into());
                }
                // The file was cut meanwhile.
                Err(error) if error.errno() == Errno::ENXIO => break,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        self.note_access().await;
        Ok(chunks)
    }

    /// How many of `len` bytes from byte `offset` on lie within the file.
    fn available(&self, offset: u64, len: usize) -> usize {
        usize::try_from(self.len().saturating_sub(offset)).map_or(len, |room| len.min(room))
    }

    /// Reads bytes `offset..offset + len` into memory of the caller's own.
    async fn read_copied(&self, offset: u64, len: usize) -> Result<Bytes> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| {
            let context = format!("reading {len} bytes of inode {}", self.inode.number);
            Error::posix(Errno::ENOMEM, context)
        })?;
        bytes.resize(len, 0);
        let read = self.read_cached_at(offset, &mut bytes);
        let count = self.filesystem.observe("read", self.inode.number, read).await?;
        bytes.truncate(count);
        Ok(bytes.into())
    }
}
