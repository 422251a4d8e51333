//! Unmounting: everything comes to rest, from the outside inwards.
//!
//! Callers (kept out by `freeze`) → the flusher, which writes all data back → its completions → commit → checkpoint →
//! discards → the superblock marked clean → the device flushed. Each step only finds work that the steps before have
//! finished making; in another order a late conversion would need a journal that is closed.

use std::sync::Arc;

use ext4_core::{Errno, Error, Result};

use crate::base::runtime::run_to_end;
use crate::filesystem::{Filesystem, FilesystemInner};

impl Filesystem {
    /// Drains and closes everything; the device holds a clean file system when it returns. Other clones of the file
    /// system get `ENODEV` from then on.
    ///
    /// # Errors
    /// `EBUSY` where files are open: nothing has happened then. Others: what failed; the file system is as after a
    /// crash.
    pub async fn unmount(self) -> Result<()> {
        let fs = Arc::clone(&self.inner);
        run_to_end(&self.inner.volume.runtime, unmount(fs)).await
    }
}

async fn unmount(fs: Arc<FilesystemInner>) -> Result<()> {
    let mut mounted = fs.volume.freeze.write().await;
    if !*mounted {
        return Err(Error::posix(Errno::ENODEV, "unmounted already"));
    }
    let open = fs.inodes.open_files();
    if open > 0 {
        return Err(Error::posix(Errno::EBUSY, format!("{open} files are open")));
    }
    *mounted = false;
    if fs.volume.options.read_only {
        return Ok(());
    }
    fs.delete_released().await;
    let stopped = crate::writeback::flusher::stop(&fs.engine).await;
    if let Err(error) = fs.volume.check_writable() {
        // Nothing more may be written but what was found: the superblock keeps saying that there is something to
        // recover.
        if let Err(error) = fs.volume.record_on_device().await {
            tracing::warn!(%error, "the error could not be recorded in the superblock");
        }
        return stopped.and(Err(error));
    }
    match &fs.volume.journal {
        Some(journal) => journal.close(fs.volume.options.erase_journal).await?,
        None => fs.volume.write_dirty_blocks().await?,
    }
    if let Some(discards) = &fs.volume.discards {
        discards.drain().await;
    }
    fs.volume.flush_device().await?;
    fs.volume.mark_clean().await?;
    let journal = fs.volume.journal.as_ref().map(|journal| journal.statistics());
    tracing::info!(data = ?fs.volume.counters.snapshot(), ?journal, "unmounted");
    stopped.and(fs.volume.write_errors.take_for_unmount())
}
