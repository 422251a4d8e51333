//! Fallocate of an open file; what it does is in [`crate::io::fallocate`].

use std::sync::Arc;

use ext4_core::Result;

use crate::file::File;
use crate::file::options::SyncMode;
use crate::io::fallocate::request::{FallocateMode, Request};

impl File {
    /// Changes how `len` bytes from byte `offset` on are allocated, as `mode` says. Durable when it returns where the file
    /// was opened for that ([`crate::file::options::OpenOptions::sync`]).
    ///
    /// # Errors
    /// As the kernel's ext4: `EINVAL` for a length of 0, for a range to collapse or insert that is not whole blocks
    /// (clusters), for a collapse that reaches the end of the file, and for an insert at the end or behind it; `EFBIG`
    /// for a range or a size past the largest a file can have; `EOPNOTSUPP` for all modes but punching in a file that
    /// is mapped by indirect blocks; `EPERM` for an immutable file, and for all modes but allocation in one that can
    /// only be appended to; `ENOSPC`, where the size is that of what was allocated; `EROFS`; those of the device.
    pub async fn fallocate(&self, mode: FallocateMode, offset: u64, len: u64) -> Result<()> {
        let inode = Arc::clone(&self.inode);
        self.filesystem
            .run("fallocate", inode.number, move |fs| async move {
                Request::new(&fs.engine, &inode, mode, offset, len)?.run().await
            })
            .await?;
        // Collapse and insert have written back all that moved.
        self.sync_change(offset..offset.saturating_add(len), SyncMode::None).await
    }
}
