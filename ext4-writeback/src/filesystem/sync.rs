//! Making things durable: sync of the whole file system, and of one inode.
//!
//! Invariant: data first, then the commit, then, where the commit did not do it, a flush of the device. The other way
//! round a size could be durable before the bytes that it covers.

use std::sync::Arc;

use ext4_core::format::inode::FileType;
use ext4_core::{InodeNumber, Result};

use crate::base::runtime::run_to_end;
use crate::filesystem::{Filesystem, FilesystemInner};
use crate::volume::OnMedium;

impl Filesystem {
    /// sync(2): everything written so far is durable when it returns.
    ///
    /// # Errors
    /// The first of the device's and the journal's; what can be written is written all the same.
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

    /// fsync of an inode by its number: a directory's names, a file's data and attributes are durable when it
    /// returns.
    ///
    /// # Errors
    /// The device's and the journal's, `ENOENT`.
    pub async fn sync_inode(&self, inode: InodeNumber) -> Result<()> {
        self.inner.volume.errors.check_alive()?;
        if self.inner.volume.options.read_only {
            return Ok(());
        }
        self.run("fsync", inode, move |fs| async move {
            let info = fs.inode(inode).await?;
            let regular = info.inode.read().await.file_type() == Some(FileType::Regular);
            if regular {
                crate::writeback::sync_inode::sync_inode_data(&fs.engine, &info).await?;
            }
            // As in the kernel: what fsync of a directory or a symlink asks for has no tags.
            fs.volume.make_durable(info.last_transaction(false), regular, OnMedium::No).await
        })
        .await
    }
}

impl FilesystemInner {
    /// Writes everything: data, then metadata, then flushes.
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
        data.and(metadata).and(flushed).and(findings)
    }
}
