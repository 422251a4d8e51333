//! The place of a log: which blocks of which device it takes.

use std::sync::Arc;

use ext4_core::device::BlockDevice;
use ext4_core::{BlockNumber, BlockSize};

/// The log's blocks on its device, in the order of the log.
#[derive(Clone, Debug)]
pub struct JournalLocation {
    /// The device that holds the log.
    pub device: Arc<dyn BlockDevice>,
    /// The log's block size.
    pub block_size: BlockSize,
    /// Runs of log blocks: the first block on the device and the number of blocks. Empty runs are skipped.
    pub runs: Vec<(BlockNumber, u32)>,
    /// The log block with the journal superblock: 0 for a journal in an inode; for a journal on a device of
    /// its own, whose log blocks are the device's blocks,
    /// [`external_superblock_block`](crate::external_superblock_block).
    pub superblock: u32,
}
