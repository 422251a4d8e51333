//! Recovery: brings the file system to the state of the last transaction that was committed.
//!
//! Three passes, each over what the one before found:
//! 1. [`scan`] walks the log from its tail and finds where the committed transactions end. It changes nothing.
//! 2. [`revoke`] collects which images must not be replayed.
//! 3. [`replay`] verifies the images and writes the rest to their places.
//!
//! Then the device is flushed, and only then the superblock says that the log is empty. A crash anywhere before that
//! leaves the log as it was, and recovering again writes the same images again.
//!
//! Invariants:
//! - The walk ends after one turn of the ring, whatever the blocks say.
//! - Memory is bounded by the ring: one record for each descriptor and revoke block, one entry for each image, and
//!   images up to [`replay::BATCH_BYTES`].
//! - Nothing is written outside the file system's device, and nothing into the log itself.
//! - What jbd2 refuses is refused: a bad checksum inside the committed part is an error that names it, and the log
//!   stays as it is.

pub(crate) mod fast_commit;
pub(crate) mod replay;
pub(crate) mod revoke;
pub(crate) mod scan;

use std::sync::Arc;

use ext4_core::device::BlockDevice;
use ext4_core::{Error, Result, TransactionId};

use crate::RecoveryReport;
use crate::format::Superblock;
use crate::log::Log;

/// Replays the log into `filesystem` and flushes that. Returns what was done and the first id that no transaction in
/// the log can have.
///
/// # Errors
/// The devices'; corrupt where a committed transaction is damaged; unsupported where fast commits follow the last one.
pub(crate) async fn run(
    log: &Log,
    superblock: &Superblock,
    filesystem: &Arc<dyn BlockDevice>,
) -> Result<(RecoveryReport, TransactionId)> {
    let layout = superblock.layout();
    let found = scan::scan(log, superblock).await?;
    if superblock.fast_commit_blocks() > 0 {
        let block = log.read_block(superblock.last().saturating_add(1)).await?;
        if fast_commit::begins(&block, found.end) {
            return Err(Error::Unsupported(format!(
                "journal: fast commits after transaction {} (feature FAST_COMMIT)",
                found.end.previous()
            )));
        }
    }
    let revoked = revoke::collect(log, &layout, &found).await?;
    let mut report = replay::replay(log, &layout, &found, &revoked, filesystem).await?;
    report.transactions = found.transactions;
    filesystem.flush().await?;
    tracing::info!(
        transactions = report.transactions,
        blocks = report.blocks,
        revoked = report.revoked,
        "journal recovered up to transaction {}",
        found.end.previous()
    );
    Ok((report, found.end.next()))
}
