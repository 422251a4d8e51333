//! Unmounting (the kernel's `ext4_put_super`): everything comes to rest, from the outside inwards.
//!
//! ```text
//!   callers kept out (freeze) ─► flusher writes all data back ─► completions ─► commit ─► checkpoint ─►
//!   discards ─► device flushed ─► superblock marked clean
//! ```
//!
//! Invariant: each step starts when the steps before make no more work for it. In another order a late
//! conversion would need a journal that is closed.

use std::sync::Arc;

use ext4_core::{Errno, Error, Result};

use crate::base::runtime::run_to_end;
use crate::filesystem::{Filesystem, FilesystemInner};
use crate::writeback::flusher;

impl Filesystem {
    /// umount(2): drains and closes everything; the device holds a clean file system when it returns.
    /// Operations of other clones of the file system fail with `ENODEV` from then on.
    ///
    /// # Errors
    /// - `EBUSY`: files are open, and nothing has happened.
    /// - `ENODEV`: it is unmounted already.
    /// - `ENOSPC`, `EIO`, `EUCLEAN`, `EROFS`: data or metadata could not be written. The file system is
    ///   unmounted, as after a crash.
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
    let stopped = flusher::stop(&fs.engine).await;
    if let Err(error) = fs.volume.check_writable() {
        // Nothing more is written but the errors that were found: the superblock keeps saying that the file
        // system needs recovery.
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
    stopped.and(fs.volume.write_errors.take())
}
