//! Write errors of one inode (errseq_t): an error of writeback is reported once to each open file, by fsync
//! or close.
//!
//! Invariant: an open file has a cursor; an error with a number behind the cursor has not been reported to
//! that file.
//!
//! Lock: one mutex, a leaf.

use ext4_core::{Error, Result};
use parking_lot::Mutex;

/// The number of write errors of one inode, and the last of them.
#[derive(Debug, Default)]
pub(crate) struct ErrorSequence {
    last: Mutex<(u64, Option<Error>)>,
}

impl ErrorSequence {
    /// No error yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The cursor of a file that is opened now: earlier errors are not reported to it.
    pub fn sample(&self) -> u64 {
        self.last.lock().0
    }

    /// Notes `error`, for every file that is open.
    pub fn record(&self, error: &Error) {
        let mut last = self.last.lock();
        last.0 += 1;
        last.1 = Some(error.clone());
    }

    /// Moves `cursor` to the last error.
    ///
    /// # Errors
    /// The last error, if there was one since `cursor`.
    pub fn check_and_advance(&self, cursor: &mut u64) -> Result<()> {
        let last = self.last.lock();
        if *cursor == last.0 {
            return Ok(());
        }
        *cursor = last.0;
        last.1.clone().map_or(Ok(()), Err)
    }
}
