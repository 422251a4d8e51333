//! Fallocate of an open file; what it does is in [`crate::io::fallocate`].

use std::sync::Arc;

use ext4_core::Result;

use crate::file::File;
use crate::file::options::SyncMode;
use crate::io::fallocate::request::{FallocateMode, Request};

impl File {
    /// fallocate(2): changes how `len` bytes from byte `offset` on are allocated, as `mode` says. The change
    /// is durable when it returns if the file was opened for that
    /// ([`crate::file::options::OpenOptions::sync`]).
    ///
    /// # Errors
    /// As the kernel's ext4:
    /// - `EINVAL`: `len` is 0; a range to collapse or insert is not whole blocks (clusters with bigalloc); a
    ///   collapse reaches the end of the file; an insert is at the end or behind it.
    /// - `EFBIG`: a range or a size past the largest that the file can have.
    /// - `EOPNOTSUPP`: any mode but punching, in a file that is mapped by indirect blocks.
    /// - `EPERM`: the file is immutable; any mode but allocation, in an append-only file.
    /// - `ENOSPC`: no free blocks; the size is then that of what was allocated.
    /// - `EROFS`: the file system is not written.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn fallocate(&self, mode: FallocateMode, offset: u64, len: u64) -> Result<()> {
        let inode = Arc::clone(&self.inode);
        self.filesystem
            .run("fallocate", inode.number, move |fs| async move {
                Request::new(&fs.engine, &inode, mode, offset, len)?.run().await
            })
            .await?;
        // Collapse and insert have written back all data that moved.
        self.sync_change(offset..offset.saturating_add(len), SyncMode::None).await
    }
}
