//! A jbd2-compatible journal: every change of metadata reaches the disk as a whole or not at all.
//!
//! ```text
//!   Handle ─ modify ─► running transaction ─ freeze ─► log ─► commit block ─► checkpoint
//!                            │ the next one runs while this one commits  │
//!                            └───────────────────────────────────────────┴─► the tail of the log moves on
//! ```
//!
//! The folders are floors (ARCHITECTURE.md has the table): `format` (the on-disk structures), `log` (the ring
//! of blocks), `recovery` (what a crash left) and `state` beside it, `journal`, `running` (a file for each
//! phase of a transaction's life), `life` (from open to close, with the two tasks).
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

pub use dump::*;
pub use format::fast_commit::{FastCommitEncoder, FastCommitEntry, FastCommitTag, FastCommitTags};
pub use journal::{Journal, OnAbort};
pub use log::create::{NewJournal, attach_user, detach_user, external_superblock_block};
pub use log::header::JournalHeader;
pub use log::location::JournalLocation;
pub use recovery::fast_commit::{FastCommit, FastCommitEnd, FastCommitEndReason, FastCommits};
pub use recovery::report::{Damage, EndReason, Finding, LogEnd, Recovery, RecoveryReport};
pub use running::handle::Handle;
pub use state::fast_commits::{FastCommitSource, FastCommitStatistics, Ineligible};
pub use state::options::JournalOptions;
pub use state::statistics::{Statistics, Times};
