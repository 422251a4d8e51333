//! Writing a range of a file to the device, without making it durable: sync_file_range(2).

use crate::writeback::completion::wait;
use crate::writeback::sync_inode::start_inode_range;
use crate::writeback::sync_inode::sync_inode_range;
use std::sync::Arc;

use bitflags::bitflags;
use ext4_core::Result;

use crate::base::runtime::run_to_end;
use crate::file::File;

bitflags! {
    /// What [`File::sync_range`] does, in this order.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct SyncRange: u32 {
        /// Waits for what is on its way to the device already.
        const WAIT_BEFORE = 1 << 0;
        /// Starts writing what is dirty, but for what is on its way. With both waits: all of it.
        const WRITE = 1 << 1;
        /// Waits for what is on its way then.
        const WAIT_AFTER = 1 << 2;
    }
}

impl File {
    /// Writes bytes `offset..offset + len` to the device, as `flags` say; to the end of the file where `len` is 0. No
    /// metadata is committed and no cache is flushed: nothing is durable by it. The folios at the edges are written
    /// whole; where the range reaches past what the device has of the file, all from there on is.
    ///
    /// # Errors
    /// Those of mapping; where it waits, those of writeback that this file has not reported yet.
    pub async fn sync_range(&self, offset: u64, len: u64, flags: SyncRange) -> Result<()> {
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
