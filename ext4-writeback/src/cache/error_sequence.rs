//! TODO header.

use ext4_core::{Error, Result};
use parking_lot::Mutex;

/// Write errors of one inode, each reported once to every opener.
#[derive(Debug, Default)]
pub(crate) struct ErrorSequence {
    last: Mutex<(u64, Option<Error>)>,
}

impl ErrorSequence {
    /// No error yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where an opener starts: errors up to now are not his.
    pub fn sample(&self) -> u64 {
        self.last.lock().0
    }

    /// Remembers `error` for every opener.
    pub fn record(&self, error: &Error) {
        let mut last = self.last.lock();
        last.0 += 1;
        last.1 = Some(error.clone());
    }

    /// The error since `cursor`, if there was one; moves the cursor on.
    pub fn check_and_advance(&self, cursor: &mut u64) -> Result<()> {
        let last = self.last.lock();
        if *cursor == last.0 {
            return Ok(());
        }
        *cursor = last.0;
        last.1.clone().map_or(Ok(()), Err)
    }
}
