//! sync(2) of the whole file system, and fsync of one inode by its number.
//!
//! Invariant: data first, then the commit, then a flush of the device, if the commit did not flush it. In
//! another order a size could be durable before the bytes that it covers.

use std::sync::Arc;

use ext4_core::format::inode::FileType;
use ext4_core::{InodeNumber, Result};

use crate::base::runtime::run_to_end;
use crate::filesystem::{Filesystem, FilesystemInner};
use crate::volume::OnMedium;

impl Filesystem {
    /// syncfs(2): everything that was written before is durable when it returns.
    ///
    /// # Errors
    /// The first of these; what can be written is written all the same:
    /// - `ENOSPC`, `EIO`, `EUCLEAN`: data could not be written back.
    /// - `EROFS`: the journal has aborted.
    pub async fn sync(&self) -> Result<()> {
        self.inner.volume.errors.check_alive()?;
        if self.inner.volume.options.read_only {
            return Ok(());
        }
        let fs = Arc::clone(&self.inner);
        run_to_end(&self.inner.volume.runtime, async move {
            let _mounted = fs.volume.freeze.read().await;
            fs.sync_all().await
        })
        .await
    }

    /// fsync(2) of an inode of any type: a directory's names, or a file's data and attributes, are durable
    /// when it returns.
    ///
    /// # Errors
    /// - `ENOENT`: the inode is free.
    /// - `ENOSPC`, `EIO`, `EUCLEAN`: data could not be written back.
    /// - `EROFS`: the file system is not written, or the journal has aborted.
    pub async fn fsync(&self, inode: InodeNumber) -> Result<()> {
        self.inner.volume.errors.check_alive()?;
        if self.inner.volume.options.read_only {
            return Ok(());
        }
        self.run("fsync", inode, move |fs| async move {
            let inode = fs.inode(inode).await?;
            // As a file that was opened for this call.
            let mut cursor = inode.write_errors.sample();
            let regular = inode.on_disk.read().await.file_type() == Some(FileType::Regular);
            if regular {
                crate::writeback::sync_inode::sync_inode_data(&fs.engine, &inode).await?;
            }
            // As in the kernel: what fsync of a directory or a symlink asks for has no tags.
            let durable = fs.volume.make_durable(inode.last_transaction(false), regular, OnMedium::No).await;
            inode.take_write_error(&fs.volume, &mut cursor).and(durable)
        })
        .await
    }
}

impl FilesystemInner {
    /// Writes all data back, then commits all metadata, then flushes the device.
    pub(crate) async fn sync_all(self: &Arc<Self>) -> Result<()> {
        tracing::debug!("ext4_sync_fs");
        self.delete_released().await;
        let data = crate::writeback::sync_all::sync_all_data(&self.engine).await;
        let findings = self.volume.record_findings().await;
        let metadata = match &self.volume.journal {
            Some(journal) => journal.force_commit().await,
            None => self.volume.write_dirty_blocks().await,
        };
        let flushed = self.volume.flush_device().await;
        let lost = self.volume.write_errors.take();
        data.and(metadata).and(flushed).and(findings).and(lost)
    }
}
