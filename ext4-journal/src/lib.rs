//! A jbd2-compatible journal.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ext4_core::device::BlockDevice;
use ext4_core::environment::{Environment, Runtime};
use ext4_core::meta::transaction::OnCommit;
use ext4_core::meta::{Buffer, BufferCache, Transaction};
use ext4_core::{BlockNumber, BlockSize, Error, Result, TransactionId};

/// Where the log lies: its blocks on the device, in the order of the log.
#[derive(Clone, Debug)]
pub struct JournalLocation {
    /// The device that holds the log.
    pub device: Arc<dyn BlockDevice>,
    /// The log's block size.
    pub block_size: BlockSize,
    /// Runs of log blocks: first block on the device, how many. Log block 0 is the journal superblock.
    pub runs: Vec<(BlockNumber, u32)>,
}

/// How the journal runs.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// Commit a running transaction that is this old; `None`: only when asked or when it is full.
    pub commit_interval: Option<Duration>,
    /// Flush the device where the order of writes asks for it.
    pub barrier: bool,
}

/// What a recovery did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Transactions replayed.
    pub transactions: u32,
    /// Blocks written to their places.
    pub blocks: u64,
    /// Blocks not written because they had been revoked.
    pub revoked: u64,
}

/// A log and its running, committing and checkpointed transactions.
#[derive(Debug)]
pub struct Journal {}

impl Journal {
    /// The image of the superblock of an empty log, for mkfs: version 2, checksums v3 where `metadata_csum`, 64-bit
    /// tags where `bit64` ... (jbd2 sets those features at the first mount; ours does as mke2fs).
    pub fn new_superblock(_block_size: BlockSize, _blocks: u32, _uuid: [u8; 16]) -> Vec<u8> {
        todo!()
    }

    /// Reads and verifies the journal superblock. Changes nothing.
    pub async fn open(
        _location: JournalLocation,
        _options: JournalOptions,
        _environment: Arc<dyn Environment>,
        _runtime: Arc<dyn Runtime>,
    ) -> Result<Arc<Self>> {
        todo!()
    }

    /// True when the log holds transactions that must be replayed.
    pub fn needs_recovery(&self) -> bool {
        todo!()
    }

    /// Three passes: scan, revoke, replay; writes the blocks to `filesystem`, flushes it, and empties the log.
    pub async fn recover(&self, _filesystem: &Arc<dyn BlockDevice>) -> Result<RecoveryReport> {
        todo!()
    }

    /// Begins to run: sets the features the file system asks for, takes `cache` (whose device holds the blocks that
    /// are journaled) and starts the commit and checkpoint tasks. After recovery.
    pub async fn start_running(
        self: &Arc<Self>,
        _cache: &Arc<BufferCache>,
        _metadata_csum: bool,
        _bit64: bool,
    ) -> Result<()> {
        todo!()
    }

    /// Starts a handle that may change `credits` blocks; waits where the running transaction is being locked or the
    /// log is full. `operation` names it in assertions.
    pub async fn start(self: &Arc<Self>, _credits: u32, _operation: &'static str) -> Result<Handle> {
        todo!()
    }

    /// Most credits one handle can have.
    pub fn max_credits(&self) -> u32 {
        todo!()
    }

    /// Makes transaction `id` durable: commits it where it is running, waits where it is committing; nothing to do
    /// where it has committed. Returns true when that flushed the file system's device after the call.
    pub async fn commit(self: &Arc<Self>, _id: TransactionId) -> Result<bool> {
        todo!()
    }

    /// Commits what is running and waits for it and for what is committing.
    pub async fn force_commit(self: &Arc<Self>) -> Result<()> {
        todo!()
    }

    /// Writes every committed block to its place and empties the log (freeze, unmount, before growing a bitmap …).
    pub async fn flush(self: &Arc<Self>) -> Result<()> {
        todo!()
    }

    /// Commits, checkpoints, marks the log clean, stops the tasks. With `erase`, the log's blocks are zeroed and the
    /// sequence starts again at 1, so that images are reproducible and sparse.
    pub async fn close(self: &Arc<Self>, _erase: bool) -> Result<()> {
        todo!()
    }

    /// Stops the journal after an error: what is running never commits. The first error stays.
    pub fn abort(&self, _error: &Error) {
        todo!()
    }

    /// The error that stopped the journal.
    pub fn aborted(&self) -> Option<Error> {
        todo!()
    }
}

/// One operation's part in the running transaction. Dropping it stops it.
#[derive(Debug)]
pub struct Handle {}

#[async_trait]
impl Transaction for Handle {
    fn id(&self) -> TransactionId {
        todo!()
    }
    fn get_write_access(&self, _buffer: &Buffer) -> Result<()> {
        todo!()
    }
    fn get_create_access(&self, _buffer: &Buffer) -> Result<()> {
        todo!()
    }
    fn dirty_metadata(&self, _buffer: &Buffer) -> Result<()> {
        todo!()
    }
    fn forget(&self, _block: BlockNumber, _buffer: Option<&Buffer>) -> Result<()> {
        todo!()
    }
    fn credits(&self) -> u32 {
        todo!()
    }
    fn extend(&self, _credits: u32) -> Result<bool> {
        todo!()
    }
    async fn restart(&self, _credits: u32) -> Result<()> {
        todo!()
    }
    fn on_commit(&self, _callback: OnCommit) {
        todo!()
    }
}
