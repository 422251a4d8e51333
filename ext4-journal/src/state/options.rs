//! How a journal runs.

use std::time::Duration;

/// How the journal runs.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// Commit a running transaction that is this old; `None`: only when asked or when it is full.
    pub commit_interval: Option<Duration>,
    /// Flush the device where the order of writes asks for it.
    pub barrier: bool,
}
