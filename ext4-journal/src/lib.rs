//! A jbd2-compatible journal: every change of metadata reaches the disk as a whole or not at all.
//!
//! ```text
//!   Handle ─ modify ─► running transaction ─ freeze ─► log ─► commit block ─► checkpoint: blocks to their places
//!                            │ the next one runs while this one commits         │
//!                            └──────────────────────────────────────────────────┴─► the tail of the log moves on
//! ```
//!
//! One file for each phase of a transaction's life: [`handle`](Handle) (joining it), `queue` (waiting to join it),
//! `reservation` (joining it later), `transaction` (its states), `revoke` (freed blocks), `commit`, `fast_commit` (fsync's short
//! way), `checkpoint`, `recovery` (what a crash left); below them `format` (the on-disk
//! structures) and `log` (the ring of blocks); `journal` holds the state and the two tasks.
//!
//! Invariants, each with the crash it prevents:
//! - The commit block is written only when everything of its transaction is in the log, behind a flush. Otherwise
//!   recovery could replay garbage.
//! - A block goes to its place only after the transaction that changed it has committed. Otherwise a crash would show
//!   half an operation.
//! - The log's tail moves on, on the medium, only after what it passes over is on the medium, and its blocks are
//!   written over only after that. Otherwise recovery would miss a committed change.
//! - A freed metadata block is not used for data before the freeing transaction, with its revoke, has committed and no
//!   write of the old content is in flight. Otherwise old metadata could appear in a file.
//!
//! Locks: one synchronous lock for the whole state, never held across an await or a device call; it is outside a
//! buffer's image lock. Two asynchronous ones: `committer` is held for a commit, and inside it the one under which
//! the journal superblock, and nothing else, is written. Devices are called only by whoever commits or writes a fast
//! commit, by the checkpoint task, recovery, start and close.
#![forbid(unsafe_code)]

mod checkpoint;
mod commit;
pub mod create;
pub mod dump;
mod fast_commit;
mod format;
mod handle;
mod header;
mod journal;
mod log;
mod queue;
mod recovery;
mod reservation;
mod revoke;
mod statistics;
mod transaction;

use std::sync::Arc;
use std::time::Duration;

use ext4_core::device::BlockDevice;
use ext4_core::{BlockNumber, BlockSize};

pub use fast_commit::{FastCommitSource, FastCommitStatistics, Ineligible};
pub use format::{FastCommitEncoder, FastCommitEntry, FastCommitTag, FastCommitTags};
pub use handle::Handle;
pub use header::JournalHeader;
pub use journal::{Journal, OnAbort};
pub use recovery::fast_commit::{FastCommit, FastCommitEnd, FastCommitEndReason, FastCommits};
pub use recovery::report::{Damage, EndReason, Finding, LogEnd, Recovery, RecoveryReport};
pub use reservation::Reservation;
pub use statistics::{Statistics, Times};

/// Where the log lies: its blocks on the device, in the order of the log.
#[derive(Clone, Debug)]
pub struct JournalLocation {
    /// The device that holds the log.
    pub device: Arc<dyn BlockDevice>,
    /// The log's block size.
    pub block_size: BlockSize,
    /// Runs of log blocks: first block on the device, how many.
    pub runs: Vec<(BlockNumber, u32)>,
    /// The log block with the journal superblock: 0 in an inode; on a device of its own, where log blocks are the
    /// device's, [`create::external_superblock_block`].
    pub superblock: u32,
}

/// How the journal runs.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// Commit a running transaction that is this old; `None`: only when asked or when it is full.
    pub commit_interval: Option<Duration>,
    /// Flush the device where the order of writes asks for it.
    pub barrier: bool,
}
