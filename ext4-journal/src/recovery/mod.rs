//! Recovery: brings the file system to the state of the last transaction that was committed.
//!
//! Three passes, each over what the one before found:
//! 1. [`mod@scan`] walks the log from its tail and finds the end of the committed transactions. It changes
//!    nothing.
//! 2. [`revoke`] collects which images must not be replayed.
//! 3. [`replay`] verifies the images and writes the rest to their places.
//!
//! Damage is refused, or left out and reported: see [`Damage`].
//!
//! Then the file system's device is flushed, and only then does the superblock say that the log is empty. A
//! crash anywhere before that leaves the log as it was, and recovering again writes the same images again.
//!
//! If [`fast_commit`]s follow the last commit, the log is not emptied yet: the file system works out what
//! they mean, on top of what was replayed, and returns the blocks that they change, which
//! `Journal::finish_recovery` brings in as one transaction.
//!
//! Invariants:
//! - The walk ends after one turn of the ring, whatever the blocks say.
//! - Memory is bounded by the ring: one record for each descriptor and revoke block, one entry for each
//!   image, images up to [`replay::BATCH_BYTES`], and a bounded report.
//! - Nothing is written outside the file system's device, and nothing into the log itself.
//! - What jbd2 refuses is refused here before anything is written: a bad checksum inside the committed part
//!   is an error that names it, and the log stays as it is. (jbd2 itself may have written by then.)
//! - A salvage leaves in the journal superblock, in the same write that empties the log, that there was an
//!   error. Were it recorded in another write, a crash between the two writes would leave a damaged file
//!   system that passes for a clean one.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)
)]

mod fast_commit;
mod replay;
mod report;
mod revoke;
mod scan;

use std::sync::Arc;

use ext4_core::device::BlockDevice;
use ext4_core::{Result, TransactionId};

pub use fast_commit::{FastCommit, FastCommitEnd, FastCommitEndReason, FastCommits};
pub use report::{Damage, EndReason, Finding, LogEnd, Recovery, RecoveryReport};
pub(crate) use revoke::{Revoked, collect};
pub(crate) use scan::{Found, scan};

use crate::format::Superblock;
use crate::log::Log;
use replay::Replay;

/// The result of [`run`]: the report, and what is left to do.
pub(crate) struct Replayed {
    pub(crate) report: RecoveryReport,
    /// The first id that no transaction in the log can have.
    pub(crate) next: TransactionId,
    /// The log block behind the last commit.
    pub(crate) head: u32,
}

/// Replays the log into `filesystem` and flushes that; collects the fast commits that follow.
///
/// # Errors
/// - I/O: the log's device's or the file system's.
/// - Unsupported: fast commits need a feature that is not known.
/// - Corrupt: a committed transaction is damaged and `mode` refuses that.
pub(crate) async fn run(
    log: &Log,
    superblock: &Superblock,
    filesystem: &Arc<dyn BlockDevice>,
    mode: Recovery,
) -> Result<Replayed> {
    let layout = superblock.layout();
    let found = scan(log, superblock).await?;
    let mut report = RecoveryReport {
        transactions: found.transactions,
        first: superblock.sequence(),
        end: found.end,
        ..RecoveryReport::default()
    };
    match (&found.damage, &found.suspicion) {
        (Some(finding), _) if mode.damage == Damage::Refuse => return Err(finding.clone().into()),
        (Some(finding), _) | (None, Some(finding)) => report.add(finding.clone()),
        (None, None) => {}
    }
    let end = found.end.transaction;
    // Fast commits belong to the last full one: behind a damaged transaction they have nothing to stand on.
    if found.damage.is_none() {
        report.fast_commits = fast_commit::scan(log, superblock, end).await?;
    }
    let revoked = collect(log, &layout, &found).await?;
    let replay = Replay { log, layout, found: &found, revoked: &revoked, filesystem };
    replay.run(mode, &mut report).await?;
    let mut last = end;
    if !mode.check {
        filesystem.flush().await?;
        if found.damage.is_some() {
            last = scan::last_id(log, end).await?;
        }
    }
    tracing::info!(
        transactions = report.transactions,
        blocks = report.blocks,
        revoked = report.revoked,
        findings = report.findings.len(),
        fast_commits = report.fast_commits.commits.len(),
        "journal recovered up to transaction {}",
        end.previous()
    );
    Ok(Replayed { report, next: last.next(), head: found.head })
}
