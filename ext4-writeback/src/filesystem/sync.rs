//! Making things durable: sync of the whole file system, and of one inode.
//!
//! Invariant: data first, then the commit, then, where the commit did not do it, a flush of the device. The other way
//! round a size could be durable before the bytes that it covers.

use std::sync::Arc;

use ext4_core::format::inode::FileType;
use ext4_core::{InodeNumber, Result};

use crate::base::runtime::run_to_end;
use crate::filesystem::{Filesystem, FilesystemInner};

impl Filesystem {
    /// sync(2): everything written so far is durable when it returns.
    ///
    /// # Errors
    /// The first of the device's and the journal's; what can be written is written all the same.
    pub async fn sync(&self) -> Result<()> {
        self.inner.errors.check_alive()?;
        if self.inner.options.read_only {
            return Ok(());
        }
        let fs = Arc::clone(&self.inner);
        run_to_end(&self.inner.runtime, async move {
            let _mounted = fs.freeze.read().await;
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
        self.inner.errors.check_alive()?;
        if self.inner.options.read_only {
            return Ok(());
        }
        self.run("fsync", inode, move |fs| async move {
            let info = fs.inode(inode).await?;
            let regular = info.inode.read().await.file_type() == Some(FileType::Regular);
            if regular {
                crate::writeback::inode::sync_inode_data(&fs, &info).await?;
            }
            let flushed = match (&fs.journal, info.last_transaction(false)) {
                (Some(journal), Some(transaction)) if regular => fs.commit_file(journal, transaction).await?,
                // As in the kernel: what fsync of a directory or a symlink asks for has no tags.
                (Some(journal), Some(transaction)) => journal.commit(transaction).await?,
                (Some(_), None) => false,
                (None, _) => {
                    fs.write_dirty_blocks().await?;
                    false
                }
            };
            if flushed { Ok(()) } else { fs.flush_device().await }
        })
        .await
    }
}

impl FilesystemInner {
    /// Writes everything: data, then metadata, then flushes.
    pub(crate) async fn sync_all(self: &Arc<Self>) -> Result<()> {
        tracing::debug!("ext4_sync_fs");
        self.delete_released().await;
        let data = crate::writeback::sync_all::sync_all_data(self).await;
        let findings = self.record_findings().await;
        let metadata = match &self.journal {
            Some(journal) => journal.force_commit().await,
            None => self.write_dirty_blocks().await,
        };
        let flushed = self.flush_device().await;
        data.and(metadata).and(flushed).and(findings)
    }

    /// Flushes the device where the options ask for it.
    pub(crate) async fn flush_device(&self) -> Result<()> {
        if self.options.barrier { self.info.device().flush().await } else { Ok(()) }
    }
}
