//! Free-block counters (`s_freeclusters_counter`, `s_dirtyclusters_counter`), here called the books: what is
//! free, what of it waits for a commit, what is reserved for delayed allocation.
//!
//! ```text
//!   free (as the bitmaps say) = pending (freed, not committed) + reserved + kept back + available
//! ```
//!
//! Invariants:
//! - Only blocks that can be allocated at once are reserved. Were a reservation made of blocks that wait for
//!   a commit, writeback could find none, and data that a write had accepted would be lost.
//! - What is kept back (root's share, and a margin for the nodes of extent trees, as in the kernel: 2% or
//!   4,096 blocks) is used by metadata only, so that writeback can always map what was reserved.
//!
//! Locks: one innermost mutex, held for a few additions.

use parking_lot::Mutex;

use crate::error::{Errno, Error, Result};

/// The margin for extent nodes. Source: the kernel's `ext4_calculate_resv_clusters`.
const MOST_MARGIN: u64 = 4096;

/// See the module. All counts are blocks; clusters with bigalloc.
#[derive(Debug)]
pub(crate) struct Space {
    books: Mutex<Books>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Books {
    free: u64,
    pending: u64,
    reserved: u64,
    /// Root's share; 0 if it may be used.
    root: u64,
    margin: u64,
}

impl Books {
    fn available(&self, metadata: bool) -> u64 {
        let kept = if metadata { 0 } else { self.root.saturating_add(self.margin) };
        self.free.saturating_sub(self.pending).saturating_sub(self.reserved).saturating_sub(kept)
    }
}

impl Space {
    /// `free` of `blocks` are free, `root` are kept for root.
    pub fn new(blocks: u64, free: u64, root: u64) -> Self {
        let margin = (blocks / 50).min(MOST_MARGIN);
        Self { books: Mutex::new(Books { free, pending: 0, reserved: 0, root, margin }) }
    }

    /// Changes root's share.
    pub fn keep_for_root(&self, blocks: u64) {
        self.books.lock().root = blocks;
    }

    /// Reserves exactly `count` blocks.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub fn reserve(&self, count: u64) -> Result<()> {
        let mut books = self.books.lock();
        let available = books.available(false);
        if count > available {
            return Err(Error::posix(
                Errno::ENOSPC,
                format!("{count} blocks wanted, {available} available of {} free", books.free),
            ));
        }
        books.reserved += count;
        Ok(())
    }

    /// Reserves up to `count` blocks, as many as there are; `None` for none.
    pub fn reserve_up_to(&self, count: u64, metadata: bool) -> Option<u64> {
        let mut books = self.books.lock();
        let granted = count.min(books.available(metadata));
        books.reserved += granted;
        (granted > 0).then_some(granted)
    }

    /// Reserves `count` blocks that were just freed, whether their commit is over or not, and whatever else
    /// is left: nothing else was counted on them.
    pub fn reserve_freed(&self, count: u64) {
        self.books.lock().reserved += count;
    }

    /// Ends a reservation.
    pub fn release(&self, count: u64) {
        let mut books = self.books.lock();
        debug_assert!(count <= books.reserved, "{count} released of {} reserved", books.reserved);
        books.reserved = books.reserved.saturating_sub(count);
    }

    /// `count` reserved blocks were allocated.
    pub fn allocated(&self, count: u64) {
        let mut books = self.books.lock();
        debug_assert!(count <= books.reserved, "{count} allocated of {} reserved", books.reserved);
        books.reserved = books.reserved.saturating_sub(count);
        books.free = books.free.saturating_sub(count);
    }

    /// `count` blocks were freed; they can be allocated after [`Space::committed`].
    pub fn freed(&self, count: u64) {
        let mut books = self.books.lock();
        books.free += count;
        books.pending += count;
    }

    /// The transaction that freed `count` blocks has committed.
    pub fn committed(&self, count: u64) {
        let mut books = self.books.lock();
        books.pending = books.pending.saturating_sub(count);
    }

    /// Keeps up to `count` free blocks from being reserved until [`Space::committed`], at most half of those
    /// that are left for metadata; returns how many.
    pub fn withhold_up_to(&self, count: u64) -> u64 {
        let mut books = self.books.lock();
        let granted = count.min(books.available(true).div_ceil(2));
        books.pending += granted;
        granted
    }

    /// `count` free blocks turned out not to be usable, or were taken without a reservation.
    pub fn lost(&self, count: u64) {
        let mut books = self.books.lock();
        books.free = books.free.saturating_sub(count);
    }

    /// (free, reserved, pending).
    pub fn counts(&self) -> (u64, u64, u64) {
        let books = self.books.lock();
        (books.free, books.reserved, books.pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_leave_the_kept_blocks_alone() {
        let space = Space::new(1000, 100, 30);
        // 2% of 1,000 are the margin.
        assert!(space.reserve(51).is_err());
        space.reserve(50).unwrap();
        assert_eq!(space.reserve_up_to(1, false), None);
        assert_eq!(space.reserve_up_to(60, true), Some(50));
        space.allocated(50);
        space.release(50);
        assert_eq!(space.counts(), (50, 0, 0));
        space.freed(10);
        assert_eq!(space.reserve_up_to(100, false), None);
        space.committed(10);
        assert_eq!(space.reserve_up_to(100, false), Some(10));
        space.keep_for_root(0);
        assert_eq!(space.reserve_up_to(100, false), Some(30));
        assert_eq!(space.withhold_up_to(100), 10, "half of the margin");
        assert_eq!(space.reserve_up_to(100, true), Some(10));
    }
}
