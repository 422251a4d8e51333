//! A jbd2-compatible journal: every change of metadata reaches the disk as a whole or not at all.
//!
//! ```text
//!   Handle ─ modify ─► running transaction ─ freeze ─► log ─► commit block ─► checkpoint: to their places
//!                         │ the next one runs while this one commits            │
//!                         └─────────────────────────────────────────────────────┴─► the log's tail moves on
//! ```
//!
//! A file system opens a [`Journal`] at a [`JournalLocation`], recovers it, lets it run over its buffer
//! cache, and makes each operation with a [`Handle`], which is the metadata plane's transaction.
//! [`Inspection`] looks at a log without changing it; [`NewJournal`] makes one.
//!
//! Folders are floors, and each names only lower ones; `tests/layers.rs` checks it against the table in
//! ARCHITECTURE.md: `format` (the on-disk structures), `log` (the ring of blocks), `recovery` and `state`
//! (what a crash left, what is known while it runs), `journal` (the journal itself) and `dump`, `running` (a
//! transaction's phases), `life` (open, recover, run, close).
//!
//! Invariants, each with the crash it prevents:
//! - The commit block is written only when everything of its transaction is in the log, behind a flush.
//!   Otherwise recovery could replay garbage.
//! - A block goes to its place only after the transaction that changed it has committed. Otherwise a crash
//!   would show half an operation.
//! - The log's tail moves on, on the medium, only after what it passes over is on the medium, and its blocks
//!   are written over only after that. Otherwise recovery would miss a committed change.
//! - A freed metadata block is not used for data before the freeing transaction, with its revoke, has
//!   committed and no write of the old content is in flight. Otherwise old metadata could appear in a file.
//!
//! Locks: one synchronous lock for the whole state, never held across an await or a device call; it is
//! outside a buffer's image lock. Two asynchronous ones: `committer` is held for a commit, and inside it the
//! one under which the journal superblock, and nothing else, is written. Devices are called only by the task
//! that commits or writes a fast commit, by the checkpoint task, recovery, start and close.
#![forbid(unsafe_code)]
#![deny(clippy::self_named_module_files)]

mod dump;
mod format;
mod journal;
mod life;
mod log;
mod recovery;
mod running;
mod state;

pub use dump::{
    FastCommitBlock, FastCommitBlocks, Inspection, LogBlock, LogBlockContent, LogBlocks, LogChecksum,
    LogPart, LogSummary, TagEntry,
};
pub use format::{FastCommitEncoder, FastCommitEntry, FastCommitTag, FastCommitTags};
pub use journal::{Journal, OnAbort};
pub use log::{
    JournalHeader, JournalLocation, NewJournal, attach_user, detach_user, external_superblock_block,
};
pub use recovery::{
    Damage, EndReason, FastCommit, FastCommitEnd, FastCommitEndReason, FastCommits, Finding, LogEnd,
    Recovery, RecoveryReport,
};
pub use running::Handle;
pub use state::{FastCommitSource, FastCommitStatistics, Ineligible, JournalOptions, Statistics, Times};
