//! Logging an inode (ext4_mark_inode_dirty): writing it into its slot of the inode table as part of a
//! transaction.
//!
//! Invariant: fsync waits for the transaction that last logged the inode, so each logging notes its
//! transaction, under the lock of the inode. Were one not noted, fsync could return before the inode is
//! durable.

use std::sync::Arc;

use ext4_core::Result;
use ext4_core::format::inode::Inode;
use ext4_core::meta::{Transaction as _, credits, inode_table};

use crate::inode::InodeInfo;
use crate::volume::Volume;
use crate::volume::handle::Handle;

/// Writes `inode` into its slot as part of `handle`, and notes the transaction for fsync (with `datasync`:
/// also for fdatasync). The caller holds the lock of the inode for writing.
///
/// # Errors
/// Those of the device, if the block of the inode table has to be read, and of the transaction.
pub(crate) async fn log_inode(
    volume: &Volume,
    handle: &Handle,
    info: &InodeInfo,
    inode: &Inode,
    datasync: bool,
) -> Result<()> {
    inode_table::write_inode(&volume.info, handle, inode).await?;
    let transaction = handle.id();
    if volume.fast_commits.wants(transaction, inode) {
        let slot = inode_table::slot(&volume.info, inode.number).await?;
        volume.fast_commits.inode_logged(transaction, inode.number, slot);
    }
    info.note_transaction(transaction, datasync);
    info.pages.times.set_logged();
    Ok(())
}

/// Logs the times of `inode` if a write or an access changed them and they were not logged since. Times of a
/// deleted inode are never logged here: its deletion logged it, and no task changes its times afterwards.
///
/// # Errors
/// Those of [`Volume::begin_tracked`] and [`log_inode`].
pub(crate) async fn log_times(volume: &Volume, inode: &Arc<InodeInfo>) -> Result<()> {
    let handle = volume.begin_tracked(credits::INODE, "times").await?;
    let disk = inode.on_disk.write().await;
    if inode.pages.times.are_unlogged() {
        log_inode(volume, &handle, inode, &disk, false).await?;
    }
    Ok(())
}
