//! TODO header.

use std::sync::Arc;

use ext4_core::Result;
use ext4_core::format::inode::Inode;
use ext4_core::meta::{Transaction as _, credits, inode_table};

use crate::inode::InodeInfo;
use crate::volume::Volume;
use crate::volume::handle::Handle;

/// Writes `inode`, of which the caller holds the lock, into its slot as part of `handle`, and remembers the
/// transaction for fsync (`datasync`: also for fdatasync).
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

/// Logs times where a write or an access changed them and nothing else logged them since. Those of a deleted inode are
/// not: its deletion logged it, and nobody changes its times then.
pub(crate) async fn log_times(volume: &Volume, inode: &Arc<InodeInfo>) -> Result<()> {
    let handle = volume.begin_tracked(credits::INODE, "times").await?;
    let disk = inode.inode.write().await;
    if inode.pages.times.are_unlogged() {
        log_inode(volume, &handle, inode, &disk, false).await?;
    }
    Ok(())
}
