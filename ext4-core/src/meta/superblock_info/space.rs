//! The books of free blocks: what is free, what of it waits for a commit, what is promised to delayed allocation.
//!
//! ```text
//!   free (as the bitmaps say) = pending (freed, not committed) + promised + kept back + available
//! ```
//!
//! Invariants:
//! - A promise is only given against blocks that can be allocated at once. Were a promise given against blocks
//!   that wait for a commit, writeback could find none, and data that a write had accepted would be lost.
//! - What is kept back (root's share, and a margin for the nodes of extent trees, as in the kernel: 2% or 4,096
//!   blocks) is used by metadata only, so that writeback can always map what was promised.
//!
//! Locks: one innermost mutex, held for a few additions.

use parking_lot::Mutex;

use crate::error::{Errno, Error, Result};

/// The margin for extent nodes. Source: the kernel's `ext4_calculate_resv_clusters`.
const MOST_MARGIN: u64 = 4096;

/// See the module. All counts are blocks.
#[derive(Debug)]
pub(crate) struct Space {
    books: Mutex<Books>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Books {
    free: u64,
    pending: u64,
    promised: u64,
    /// Root's share; 0 for who may use it.
    root: u64,
    margin: u64,
}

impl Books {
    fn available(&self, metadata: bool) -> u64 {
        let kept = if metadata { 0 } else { self.root.saturating_add(self.margin) };
        self.free.saturating_sub(self.pending).saturating_sub(self.promised).saturating_sub(kept)
    }
}

impl Space {
    /// `free` of `blocks` are free, `root` are kept for root.
    pub fn new(blocks: u64, free: u64, root: u64) -> Self {
        let margin = (blocks / 50).min(MOST_MARGIN);
        Self { books: Mutex::new(Books { free, pending: 0, promised: 0, root, margin }) }
    }

    /// Changes root's share.
    pub fn keep_for_root(&self, blocks: u64) {
        self.books.lock().root = blocks;
    }

    /// Promises exactly `count` blocks.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub fn promise(&self, count: u64) -> Result<()> {
        let mut books = self.books.lock();
        let available = books.available(false);
        if count > available {
            return Err(Error::posix(
                Errno::ENOSPC,
                format!("{count} blocks wanted, {available} available of {} free", books.free),
            ));
        }
        books.promised += count;
        Ok(())
    }

    /// Promises up to `count` blocks, as many as there are; `None` for none.
    pub fn promise_up_to(&self, count: u64, metadata: bool) -> Option<u64> {
        let mut books = self.books.lock();
        let granted = count.min(books.available(metadata));
        books.promised += granted;
        (granted > 0).then_some(granted)
    }

    /// Takes a promise back.
    pub fn release(&self, count: u64) {
        let mut books = self.books.lock();
        debug_assert!(count <= books.promised, "{count} released of {} promised", books.promised);
        books.promised = books.promised.saturating_sub(count);
    }

    /// `count` promised blocks were allocated.
    pub fn allocated(&self, count: u64) {
        let mut books = self.books.lock();
        debug_assert!(count <= books.promised, "{count} allocated of {} promised", books.promised);
        books.promised = books.promised.saturating_sub(count);
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

    /// Keeps up to `count` free blocks from being promised until [`Space::committed`], at most half of those that are
    /// left for metadata; returns how many.
    pub fn withhold_up_to(&self, count: u64) -> u64 {
        let mut books = self.books.lock();
        let granted = count.min(books.available(true).div_ceil(2));
        books.pending += granted;
        granted
    }

    /// `count` free blocks turned out not to be usable, or were taken without a promise.
    pub fn lost(&self, count: u64) {
        let mut books = self.books.lock();
        books.free = books.free.saturating_sub(count);
    }

    /// (free, promised, pending).
    pub fn counts(&self) -> (u64, u64, u64) {
        let books = self.books.lock();
        (books.free, books.promised, books.pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_leave_the_kept_blocks_alone() {
        let space = Space::new(1000, 100, 30);
        // 2% of 1,000 are the margin.
        assert!(space.promise(51).is_err());
        space.promise(50).unwrap();
        assert_eq!(space.promise_up_to(1, false), None);
        assert_eq!(space.promise_up_to(60, true), Some(50));
        space.allocated(50);
        space.release(50);
        assert_eq!(space.counts(), (50, 0, 0));
        space.freed(10);
        assert_eq!(space.promise_up_to(100, false), None);
        space.committed(10);
        assert_eq!(space.promise_up_to(100, false), Some(10));
        space.keep_for_root(0);
        assert_eq!(space.promise_up_to(100, false), Some(30));
        assert_eq!(space.withhold_up_to(100), 10, "half of the margin");
        assert_eq!(space.promise_up_to(100, true), Some(10));
    }
}
