//! The second pass: which images must not be replayed.

use ext4_core::{BlockNumber, Result, TransactionId};
use rustc_hash::FxHashMap;

use super::scan::Found;
use crate::format::Layout;
use crate::log::{Log, Reader};

/// For each block that has images in the log and was revoked: the last transaction that did so.
#[derive(Debug, Default)]
pub(crate) struct Revoked(FxHashMap<BlockNumber, TransactionId>);

impl Revoked {
    /// True where an image of `block` in transaction `id` must not be replayed: a revoke in the same transaction or a
    /// later one covers it.
    pub(crate) fn covers(&self, block: BlockNumber, id: TransactionId) -> bool {
        self.0.get(&block).is_some_and(|last| last.is_at_or_after(id))
    }
}

/// Reads the revoke blocks that the scan found.
///
/// # Errors
/// The device's; corrupt where a list is longer than its block.
pub(crate) async fn collect(log: &Log, layout: &Layout, found: &Found) -> Result<Revoked> {
    let mut revoked = Revoked::default();
    let mut reader = Reader::new(log);
    for record in found.records.iter().filter(|record| record.revoke) {
        for block in layout.revokes(reader.read(record.block).await?)? {
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
