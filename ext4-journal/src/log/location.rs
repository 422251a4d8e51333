//! Where a log lies.

use std::sync::Arc;

use ext4_core::device::BlockDevice;
use ext4_core::{BlockNumber, BlockSize};

/// Where the log lies: its blocks on the device, in the order of the log.
#[derive(Clone, Debug)]
pub struct JournalLocation {
    /// The device that holds the log.
    pub device: Arc<dyn BlockDevice>,
    /// The log's block size.
    pub block_size: BlockSize,
    /// Runs of log blocks: first block on the device, how many.
    pub runs: Vec<(BlockNumber, u32)>,
    /// The log block with the journal superblock: 0 in an inode; on a device of its own, where log blocks are
    /// the device's, [`external_superblock_block`](crate::external_superblock_block).
    pub superblock: u32,
}
