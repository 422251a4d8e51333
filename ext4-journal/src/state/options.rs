//! The mount's options for the journal.

use std::time::Duration;

/// When the journal commits by itself, and whether it flushes.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// The age at which the commit task commits the running transaction. `None`: only a caller that asks, or
    /// a full transaction, begins a commit.
    pub commit_interval: Option<Duration>,
    /// True if the journal flushes the device as the order of writes needs it (the mount option `barrier`).
    /// False: a power cut can leave a log that recovery refuses or misreads.
    pub barrier: bool,
}
