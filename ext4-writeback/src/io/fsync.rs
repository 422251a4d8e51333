//! TODO header.

use crate::writeback::inode::sync_inode_range;
use std::ops::Range;
use std::sync::Arc;

use ext4_core::Result;

use crate::filesystem::FilesystemInner;
use crate::inode::InodeInfo;

/// Whether the data that is to be made durable is on the medium: then the device is flushed only for what leads to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OnMedium {
    /// The device may have it in its cache.
    No,
    /// It was written with FUA.
    Yes,
}

/// What fsync of bytes `range` does, but for reporting errors of the past.
///
/// # Errors
/// Those of writeback, of the journal and of the device.
pub(crate) async fn sync_inode(
    fs: &Arc<FilesystemInner>,
    inode: &Arc<InodeInfo>,
    range: Range<u64>,
    datasync: bool,
    on_medium: OnMedium,
) -> Result<()> {
    tracing::debug!(ino = inode.number.0, datasync, "ext4_sync_file_enter");
    let result = sync_inode_and_commit(fs, inode, range, datasync, on_medium).await;
    tracing::debug!(ino = inode.number.0, ret = ?result.as_ref().err(), "ext4_sync_file_exit");
    result
}

async fn sync_inode_and_commit(
    fs: &Arc<FilesystemInner>,
    inode: &Arc<InodeInfo>,
    range: Range<u64>,
    datasync: bool,
    on_medium: OnMedium,
) -> Result<()> {
    sync_inode_range(fs, inode, range, !datasync).await?;
    // Asked for after the wait: the conversions have noted their transactions by now.
    let flushed = match (&fs.journal, inode.last_transaction(datasync)) {
        (Some(journal), Some(id)) => fs.commit_file(journal, id).await?,
        (Some(_), None) => false,
        (None, _) => {
            fs.write_dirty_blocks().await?;
            false
        }
    };
    // Without a journal the blocks that lead to the data went out just now, to the device's cache.
    let needed = on_medium == OnMedium::No || fs.journal.is_none();
    if !flushed && needed && fs.options.barrier {
        fs.info.device().flush().await?;
    }
    Ok(())
}
