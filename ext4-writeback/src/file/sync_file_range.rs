//! sync_file_range(2): writeback of a range of a file, without making it durable.

use std::sync::Arc;

use bitflags::bitflags;
use ext4_core::Result;

use crate::base::runtime::run_to_end;
use crate::file::File;
use crate::writeback::completion::wait;
use crate::writeback::sync_inode::{start_inode_range, sync_inode_range};

bitflags! {
    /// The steps of [`File::sync_file_range`], in this order.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct SyncRange: u32 {
        /// Waits for folios of the range that are under writeback already.
        const WAIT_BEFORE = 1 << 0;
        /// Starts writeback of dirty folios, except those under writeback. With both waits: of all dirty
        /// folios.
        const WRITE = 1 << 1;
        /// Waits for folios of the range that are under writeback after the other steps.
        const WAIT_AFTER = 1 << 2;
    }
}

impl File {
    /// Writes bytes `offset..offset + len` back, as `flags` say; up to the end of the file if `len` is 0. No
    /// metadata is committed and no device cache is flushed, so nothing is durable by it. The folios at the
    /// edges are written whole; if the range reaches past i_disksize, all data from i_disksize on is written.
    ///
    /// # Errors
    /// - `ENOSPC`, `EIO`, `EUCLEAN`: blocks for delayed data could not be allocated.
    /// - If it waits, those of writeback that this file has not reported yet.
    pub async fn sync_file_range(&self, offset: u64, len: u64, flags: SyncRange) -> Result<()> {
        let end = if len == 0 { u64::MAX } else { offset.saturating_add(len) };
        let range = offset..end;
        let fs = Arc::clone(self.fs());
        fs.volume.errors.check_alive()?;
        let mut result = Ok(());
        if flags.contains(SyncRange::WAIT_BEFORE) {
            wait::wait_for_range(&fs.engine, &self.inode, &range).await;
        }
        if flags.contains(SyncRange::WRITE) {
            let (shared, inode, range) = (Arc::clone(&fs), Arc::clone(&self.inode), range.clone());
            let all = flags.is_all();
            result = run_to_end(&fs.volume.runtime, async move {
                if all {
                    sync_inode_range(&shared.engine, &inode, range, false).await
                } else {
                    start_inode_range(&shared.engine, &inode, range).await
                }
            })
            .await;
        }
        if flags.contains(SyncRange::WAIT_AFTER) {
            wait::wait_for_range(&fs.engine, &self.inode, &range).await;
        }
        if flags.intersects(SyncRange::WAIT_BEFORE | SyncRange::WAIT_AFTER) {
            result = self.report_write_errors().and(result);
        }
        result
    }
}
