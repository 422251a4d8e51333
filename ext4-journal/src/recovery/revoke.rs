//! The revoke pass, the second of recovery: which images must not be replayed.

use ext4_core::{BlockNumber, Error, Result, TransactionId};
use rustc_hash::FxHashMap;

use super::scan::Found;
use crate::format::Layout;
use crate::log::{Log, Reader};

/// The revoked blocks that have images in the log, each with the last transaction that revoked it.
#[derive(Debug, Default)]
pub(crate) struct Revoked(FxHashMap<BlockNumber, TransactionId>);

impl Revoked {
    /// Returns true if an image of `block` in transaction `id` must not be replayed: a revoke in the same
    /// transaction or a later one covers it.
    pub(crate) fn covers(&self, block: BlockNumber, id: TransactionId) -> bool {
        self.0.get(&block).is_some_and(|last| last.is_at_or_after(id))
    }
}

/// Reads the revoke blocks that the scan found.
///
/// # Errors
/// - I/O: the device's.
/// - Corrupt: a list that the scan found in order no longer is.
pub(crate) async fn collect(log: &Log, layout: &Layout, found: &Found) -> Result<Revoked> {
    let mut revoked = Revoked::default();
    let mut reader = Reader::new(log);
    for record in found.records.iter().filter(|record| record.revoke) {
        let blocks = layout.revokes(reader.read(record.block).await?).map_err(|bytes| {
            Error::corrupt(
                format!("journal: log block {}: revoke block", record.block),
                format!("{bytes} bytes in use"),
            )
        })?;
        for block in blocks {
            // A block without an image needs no entry: so the table is no larger than the log.
            if found.images.contains(&block) {
                let last = revoked.0.entry(block).or_insert(record.id);
                if record.id.is_after(*last) {
                    *last = record.id;
                }
            }
        }
    }
    Ok(revoked)
}
