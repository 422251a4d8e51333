//! The ranges of one piece of pool memory that are viewed: what its writers ask before they change it.
//!
//! Invariant: `count` is not 0 as long as a range is in the list, as seen by every thread that has
//! synchronised with the viewer: a writer that reads 0 meets no view.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

/// Which bytes of one piece of memory are viewed.
#[derive(Debug, Default)]
pub(super) struct Views {
    /// How many there are: all that a writer looks at if there are none.
    count: AtomicUsize,
    ranges: Mutex<Vec<Range<usize>>>,
}

impl Views {
    /// Returns true if a byte of `range` is viewed.
    pub(super) fn cover(&self, range: &Range<usize>) -> bool {
        self.count.load(Ordering::SeqCst) > 0
            && self.ranges.lock().iter().any(|view| view.start < range.end && range.start < view.end)
    }

    pub(super) fn add(&self, range: Range<usize>) {
        self.ranges.lock().push(range);
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn remove(&self, range: &Range<usize>) {
        let mut ranges = self.ranges.lock();
        if let Some(index) = ranges.iter().position(|view| view == range) {
            ranges.swap_remove(index);
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}
