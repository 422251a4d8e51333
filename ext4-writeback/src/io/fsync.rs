//! fsync and fdatasync of one file: its data with their conversions, then the transaction that makes them
//! reachable.

use std::ops::Range;
use std::sync::Arc;

use ext4_core::Result;

use crate::inode::InodeInfo;
use crate::volume::OnMedium;
use crate::writeback::Engine;
use crate::writeback::sync_inode::sync_inode_range;

/// fsync (`datasync`: fdatasync) of bytes `range`, without the report of earlier errors: the caller checks
/// the inode's error sequence. `on_medium`: whether the data is on the medium already.
///
/// # Errors
/// Those of writeback, of the journal and of the device.
pub(crate) async fn sync_inode(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    range: Range<u64>,
    datasync: bool,
    on_medium: OnMedium,
) -> Result<()> {
    tracing::debug!(ino = inode.number.0, datasync, "ext4_sync_file_enter");
    let result = sync_inode_and_commit(engine, inode, range, datasync, on_medium).await;
    tracing::debug!(ino = inode.number.0, ret = ?result.as_ref().err(), "ext4_sync_file_exit");
    result
}

async fn sync_inode_and_commit(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    range: Range<u64>,
    datasync: bool,
    on_medium: OnMedium,
) -> Result<()> {
    sync_inode_range(engine, inode, range, !datasync).await?;
    // After the wait the conversions have noted their transactions in the inode.
    engine.volume.make_durable(inode.last_transaction(datasync), true, on_medium).await
}
