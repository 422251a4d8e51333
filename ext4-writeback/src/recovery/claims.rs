//! Claims (EXT4_FC_TAG_ADD_RANGE): blocks that tags name are kept from the allocator during a replay of fast
//! commits, and settled at its end.
//!
//! ```text
//!   claimed ── free before ───────────────┐
//!          └── in use before ─ given up ──┴─► mapped at the end: stay used; not mapped: freed
//!                            └ kept ────────► where its file has had them all the time: nothing to do
//!                                             newly mapped: another file's, an error
//! ```
//!
//! A block can go from one file to another within the fast commits (both are mapped anew by `move_ext`), and
//! the tags of the new owner may come first. So no claimed block is ever free while tags are applied, and its
//! owner is looked up when all tags are applied.
//!
//! Invariant: at the end no block has two owners, and no block was taken from another file. Otherwise two
//! files would show each other's data.

use std::ops::Range;

use ext4_core::format::extent::{Entry, Extent};
use ext4_core::meta::{SuperblockInfo, Transaction, block_allocator};
use ext4_core::{BlockNumber, Error, InodeNumber, Result};
use rangemap::RangeSet;

/// The claims of a replay. See the module. Ranges are of blocks on the device; with bigalloc of whole
/// clusters, as two files with blocks in one cluster are as wrong as two with the same block.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// Each claim, in the order of the tags.
    pub(crate) claims: Vec<(InodeNumber, Extent)>,
    /// All claimed blocks.
    claimed: RangeSet<u64>,
    /// Claimed blocks that were free before, or were given up by a file.
    pub(crate) available: RangeSet<u64>,
    /// Claimed blocks that were mapped by a tag.
    pub(crate) inserted: RangeSet<u64>,
}

impl Claims {
    /// Claims the blocks of an ADD_RANGE.
    ///
    /// # Errors
    /// - Corrupt if no file can have such an extent.
    /// - Those of the device and of the transaction.
    pub async fn claim(
        &mut self,
        info: &SuperblockInfo,
        transaction: &dyn Transaction,
        inode: InodeNumber,
        entry: &Entry,
    ) -> Result<()> {
        let extent = Extent::from_entry(entry);
        if extent.len == 0 || extent.logical.0.checked_add(extent.len).is_none() {
            let problem = format!("blocks {}+{} of a file", extent.logical, extent.len);
            return Err(Error::corrupt(format!("inode {inode}"), problem));
        }
        let len = u64::from(extent.len);
        for free in block_allocator::mark_used(info, transaction, extent.physical, len).await? {
            self.available.insert(free);
        }
        self.claimed.insert(blocks(info, extent.physical, len));
        self.claims.push((inode, extent));
        Ok(())
    }

    /// The claimed parts of `range`.
    pub fn of(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let part = |claimed: &Range<u64>| claimed.start.max(range.start)..claimed.end.min(range.end);
        self.claimed.overlapping(range).map(part).collect()
    }

    /// Returns true if nothing is claimed.
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// A file gave these blocks up, all of them claimed.
    pub fn given_up(&mut self, range: Range<u64>) {
        self.available.insert(range);
    }

    /// A tag mapped these blocks.
    pub fn inserted(&mut self, range: Range<u64>) {
        self.inserted.insert(range);
    }
}

/// The blocks of a run; with bigalloc those of all clusters that it touches.
pub(crate) fn blocks(info: &SuperblockInfo, first: BlockNumber, len: u64) -> Range<u64> {
    let mask = (1_u64 << info.cluster_bits()) - 1;
    first.0 & !mask..(first.offset(len).0.saturating_add(mask) & !mask)
}
