//! What happens when the file system is found to contradict itself: the finding is kept for the superblock
//! (s_error_count, s_first_error_*, s_last_error_*, the error state) and, with `errors=remount-ro`, nothing is written
//! any more.
//!
//! Invariant: the first error of a mount is never overwritten by later ones, in memory or in the superblock; it is
//! what names the cause.

use std::sync::atomic::{AtomicBool, Ordering};

use ext4_core::{Errno, Error, InodeNumber, Result, Timestamp};
use parking_lot::Mutex;

/// One finding.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    /// When.
    pub time: Timestamp,
    /// The inode that was being worked on; 0 where there was none.
    pub inode: InodeNumber,
    /// The operation, as it goes into s_first_error_func and s_last_error_func (up to 32 bytes).
    pub operation: &'static str,
}

/// Findings that the superblock does not have yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    /// How many.
    pub count: u32,
    /// The first of the mount that is not in the superblock.
    pub first: Option<Finding>,
    /// The last.
    pub last: Option<Finding>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct ErrorPolicy {
    /// `errors=remount-ro` (or `panic`, which a library treats the same way).
    stop_writing: bool,
    stopped: AtomicBool,
    findings: Mutex<Findings>,
}

impl ErrorPolicy {
    /// `stop_writing`: nothing is written after the first finding.
    pub fn new(stop_writing: bool) -> Self {
        Self { stop_writing, ..Self::default() }
    }

    /// Notes what `error` says where it is a contradiction on the device; true where this finding is the one that
    /// stops all writing.
    pub fn note(&self, error: &Error, inode: InodeNumber, operation: &'static str, time: Timestamp) -> bool {
        if !error.is_corrupt() {
            return false;
        }
        tracing::error!(%error, %inode, operation, "the file system contradicts itself");
        let finding = Finding { time, inode, operation };
        {
            let mut findings = self.findings.lock();
            findings.count = findings.count.saturating_add(1);
            findings.first.get_or_insert_with(|| finding.clone());
            findings.last = Some(finding);
        }
        self.stop_writing && !self.stopped.swap(true, Ordering::AcqRel)
    }

    /// `EROFS` where an error has stopped all writing.
    pub fn check(&self) -> Result<()> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(Error::posix(Errno::EROFS, "read-only since an error was found"));
        }
        Ok(())
    }

    /// Takes what the superblock does not have yet.
    pub fn take(&self) -> Option<Findings> {
        let mut findings = self.findings.lock();
        (findings.count > 0).then(|| std::mem::take(&mut *findings))
    }
}
