//! Errors of writeback, each reported once to every opener (the kernel's errseq_t).
//!
//! Invariant: an error is never lost between two openers: one that no opener has been told of is reported to
//! the next opener too, although it struck before.

use ext4_core::{Error, Result};
use parking_lot::Mutex;

#[derive(Debug, Default)]
struct Last {
    /// How many errors were recorded.
    number: u64,
    /// True if an opener was told of the last one.
    told: bool,
    error: Option<Error>,
}

/// The write errors of one inode, or of a file system. See the module.
#[derive(Debug, Default)]
pub(crate) struct ErrorSequence {
    last: Mutex<Last>,
}

impl ErrorSequence {
    /// No error yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where an opener starts: behind all errors, but for the last one if no opener was told of it.
    pub fn sample(&self) -> u64 {
        let last = self.last.lock();
        if last.error.is_some() && !last.told { last.number - 1 } else { last.number }
    }

    /// How many errors were recorded, for [`ErrorSequence::since`].
    pub fn position(&self) -> u64 {
        self.last.lock().number
    }

    /// The last error that was recorded after `position`. No opener counts as told by it.
    pub fn since(&self, position: u64) -> Result<()> {
        let last = self.last.lock();
        if position == last.number { Ok(()) } else { last.error.clone().map_or(Ok(()), Err) }
    }

    /// Notes `error`, for every file that is open.
    pub fn record(&self, error: &Error) {
        let mut last = self.last.lock();
        *last = Last { number: last.number + 1, told: false, error: Some(error.clone()) };
    }

    /// Moves `cursor` to the last error.
    ///
    /// # Errors
    /// The last error, if there was one since `cursor`.
    pub fn check_and_advance(&self, cursor: &mut u64) -> Result<()> {
        let mut last = self.last.lock();
        if *cursor == last.number {
            return Ok(());
        }
        *cursor = last.number;
        last.told = true;
        last.error.clone().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use ext4_core::Errno;

    use super::*;

    #[test]
    fn an_error_that_struck_while_no_file_was_open_is_told_to_the_next_opener_once() {
        let sequence = ErrorSequence::new();
        let mut early = sequence.sample();
        sequence.record(&Error::io("write", "block 1", Errno::EIO));
        let mut next = sequence.sample();
        assert!(sequence.check_and_advance(&mut next).is_err());
        assert!(sequence.check_and_advance(&mut next).is_ok(), "once");
        let mut later = sequence.sample();
        assert!(sequence.check_and_advance(&mut later).is_ok(), "another opener was told");
        assert!(sequence.check_and_advance(&mut early).is_err(), "each that was there is told");
    }
}
