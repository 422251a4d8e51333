//! Revokes: recovery replays no copy of a revoked block in the log up to the revoking transaction.
//!
//! A metadata block that is freed may be used for file data next. Data does not go through the log, so after
//! a crash a replayed old image would lie over the data of a file. The transaction that frees the block
//! records a revoke.
//!
//! | in one transaction                 | what it commits                                                  |
//! |------------------------------------|------------------------------------------------------------------|
//! | changed, then freed                | the revoke; the image is dropped                                 |
//! | freed, then used as metadata again | the image; the revoke is cancelled: the image hides older copies |
//! | freed, then used as data           | the revoke (the use happens only in a later transaction)         |
//! | freed in one, metadata in the next | the revoke in the one, the image in the next, which is replayed  |
//!
//! Cancelling looks only at the running transaction. A revoke of the committing one stays: it covers copies
//! up to that transaction, and the new image is in a later one.
//!
//! Invariant: a freed block is used again for data only after the freeing transaction has committed (the
//! allocator waits for `on_commit`), and by then neither is its image left to be checkpointed nor such a
//! write in flight.

use ext4_core::device::AlignedBuffer;
use ext4_core::{BlockNumber, Result, TransactionId};
use rustc_hash::FxHashSet;

use crate::format::Layout;

/// The blocks a transaction revokes.
#[derive(Debug, Default)]
pub(crate) struct Revokes(FxHashSet<BlockNumber>);

impl Revokes {
    /// Records that `block` was freed.
    pub(crate) fn revoke(&mut self, block: BlockNumber) {
        self.0.insert(block);
    }

    /// Cancels the revoke of `block`, which is metadata again.
    pub(crate) fn cancel(&mut self, block: BlockNumber) {
        if !self.0.is_empty() {
            self.0.remove(&block);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The revoked blocks in order, so that what is written does not depend on the hash.
    pub(crate) fn sorted(&self) -> Vec<BlockNumber> {
        let mut blocks: Vec<_> = self.0.iter().copied().collect();
        blocks.sort_unstable();
        blocks
    }
}

/// The revoke blocks of a transaction that revokes `blocks`.
pub(crate) fn revoke_blocks(
    layout: &Layout,
    id: TransactionId,
    blocks: &[BlockNumber],
) -> Result<Vec<AlignedBuffer>> {
    let mut written = Vec::new();
    for some in blocks.chunks(layout.revokes_per_block()) {
        let mut block = AlignedBuffer::zeroed(layout.block_size.len())?;
        layout.write_revokes(&mut block, id, some);
        written.push(block);
    }
    Ok(written)
}
