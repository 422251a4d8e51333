//! `errors=` (ext4_error): what follows if the file system contradicts itself, its metadata cannot be read or
//! written, or its journal stops. Such an error is a *finding*: it is kept for the superblock (s_error_count,
//! s_first_error_*, s_last_error_*, the error state), and what the option says follows.
//!
//! | | continue | remount-ro | panic |
//! |---|---|---|---|
//! | corrupt, or metadata I/O failed | recorded | recorded, nothing written any more | recorded, poisoned |
//! | the journal stopped | recorded, nothing is written any more | the same | recorded, poisoned |
//!
//! Invariants:
//! - The first error of a mount is never overwritten by later ones, in memory or in the superblock; it names
//!   the cause.
//! - Once stopped, always stopped; once poisoned, every operation fails before it looks at anything: with
//!   `panic`, a file system whose state in memory cannot be trusted must not be read either.
//! - Where the failed I/O was submitted decides if it is a finding ([`ext4_core::IoPurpose`]), not the
//!   operation that met it. A failed read or write of file data is the reader's or writer's error, a failed
//!   flush or commit that of the caller that wants to have something durable, and a failed discard changes
//!   nothing; none of them is a finding.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use ext4_core::{Errno, Error, InodeNumber, Result, Timestamp};
use parking_lot::Mutex;

use crate::base::options::OnError;

/// One error found in the file system.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    /// When it was found.
    pub time: Timestamp,
    /// The inode that was being worked on; 0 if there was none.
    pub inode: InodeNumber,
    /// The operation, as it goes into s_first_error_func and s_last_error_func (up to 32 bytes).
    pub operation: &'static str,
    /// The kind of error, as it goes into s_first_error_errcode and s_last_error_errcode.
    pub code: u8,
}

/// Errors found that the superblock does not have yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    /// How many there are.
    pub count: u32,
    /// The first of the mount that is not in the superblock.
    pub first: Option<Finding>,
    /// The last.
    pub last: Option<Finding>,
}

/// What the caller has to do about an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Consequence {
    /// Nothing: the error is no finding.
    Nothing,
    /// The superblock is to get it.
    Record,
    /// All writing stops now, and the superblock is to get it past the journal.
    Stop,
}

/// The findings of a mount, and what follows from them. See the module.
#[derive(Debug)]
pub(crate) struct ErrorPolicy {
    on_error: OnError,
    stopped: AtomicBool,
    /// What poisoned the file system.
    poison: OnceLock<String>,
    findings: Mutex<Findings>,
}

impl ErrorPolicy {
    /// No findings; `on_error` follows an error.
    pub fn new(on_error: OnError) -> Self {
        Self {
            on_error,
            stopped: AtomicBool::new(false),
            poison: OnceLock::new(),
            findings: Mutex::default(),
        }
    }

    /// Notes `error`, which `operation` on `inode` failed with, if it is a finding.
    pub fn note(
        &self,
        error: &Error,
        inode: InodeNumber,
        operation: &'static str,
        time: Timestamp,
    ) -> Consequence {
        if !error.is_corrupt() && !error.is_metadata_io() {
            return Consequence::Nothing;
        }
        tracing::error!(%error, %inode, operation, "error in the file system");
        self.keep(Finding { time, inode, operation, code: error_code(error) });
        if self.on_error == OnError::Continue {
            return Consequence::Record;
        }
        let stops = self.stop(error);
        if stops { Consequence::Stop } else { Consequence::Record }
    }

    /// Notes that the journal stopped with `error`. Returns true if nothing had stopped writing before.
    pub fn note_abort(&self, error: &Error, time: Timestamp) -> bool {
        let stops = self.stop(error);
        if stops {
            let code = error_code(error);
            self.keep(Finding { time, inode: InodeNumber(0), operation: "journal", code });
        }
        stops
    }

    fn stop(&self, error: &Error) -> bool {
        if self.on_error == OnError::Panic {
            let _ = self.poison.set(error.to_string());
        }
        !self.stopped.swap(true, Ordering::AcqRel)
    }

    fn keep(&self, finding: Finding) {
        let mut findings = self.findings.lock();
        findings.count = findings.count.saturating_add(1);
        findings.first.get_or_insert_with(|| finding.clone());
        findings.last = Some(finding);
    }

    /// Checks that no error has poisoned the file system.
    ///
    /// # Errors
    /// `EIO` if one has.
    pub fn check_alive(&self) -> Result<()> {
        match self.poison.get() {
            None => Ok(()),
            Some(cause) => {
                Err(Error::posix(Errno::EIO, format!("poisoned by an error (errors=panic): {cause}")))
            }
        }
    }

    /// Checks that no error has stopped all writing.
    ///
    /// # Errors
    /// `EROFS` if one has; as [`ErrorPolicy::check_alive`].
    pub fn check(&self) -> Result<()> {
        if self.stopped.load(Ordering::Acquire) {
            self.check_alive()?;
            return Err(Error::posix(Errno::EROFS, "read-only since an error was found"));
        }
        Ok(())
    }

    /// Takes the findings that the superblock does not have yet.
    pub fn take(&self) -> Option<Findings> {
        let mut findings = self.findings.lock();
        (findings.count > 0).then(|| std::mem::take(&mut *findings))
    }

    /// Puts back findings that could not be written into the superblock.
    pub fn put_back(&self, mut taken: Findings) {
        let mut findings = self.findings.lock();
        taken.count = taken.count.saturating_add(findings.count);
        taken.last = findings.last.take().or(taken.last);
        *findings = taken;
    }
}

/// The number of an error in s_first_error_errcode. Source: kernel documentation, "Super Block" (EXT4_ERR_*).
fn error_code(error: &Error) -> u8 {
    if error.is_corrupt() {
        return 5;
    }
    match error.errno() {
        Errno::EIO => 2,
        Errno::ENOMEM => 3,
        Errno::ENOSPC => 6,
        Errno::EROFS => 8,
        Errno::EFBIG => 9,
        Errno::EOVERFLOW => 12,
        Errno::EBUSY => 13,
        Errno::ESHUTDOWN => 16,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use ext4_core::IoPurpose;

    use super::*;

    fn note(policy: &ErrorPolicy, error: &Error, operation: &'static str) -> Consequence {
        policy.note(error, InodeNumber(12), operation, Timestamp::default())
    }

    #[test]
    fn what_follows_an_error_is_what_was_asked_for() {
        let wrong = Error::corrupt("block 7", "is wrong");
        let failed = Error::io("read", "bytes 0..512", Errno::EIO);
        let policy = ErrorPolicy::new(OnError::Continue);
        assert_eq!(note(&policy, &wrong, "lookup"), Consequence::Record);
        assert_eq!(note(&policy, &failed, "lookup"), Consequence::Record);
        for purpose in [IoPurpose::Data, IoPurpose::Other] {
            let failed = failed.clone().for_purpose(purpose);
            assert_eq!(note(&policy, &failed, "lookup"), Consequence::Nothing, "{purpose:?}");
        }
        assert_eq!(note(&policy, &Error::posix(Errno::ENOENT, ""), "lookup"), Consequence::Nothing);
        assert!(policy.check().is_ok());
        let findings = policy.take().unwrap();
        assert_eq!((findings.count, findings.first.unwrap().code, findings.last.unwrap().code), (2, 5, 2));
        assert!(policy.take().is_none());
        assert!(policy.note_abort(&failed, Timestamp::default()));
        assert_eq!(policy.check().unwrap_err().errno(), Errno::EROFS);
        assert!(policy.check_alive().is_ok());

        let policy = ErrorPolicy::new(OnError::RemountReadOnly);
        assert_eq!(note(&policy, &wrong, "lookup"), Consequence::Stop);
        assert_eq!(note(&policy, &wrong, "lookup"), Consequence::Record, "stopped already");
        assert!(!policy.note_abort(&failed, Timestamp::default()), "the stop aborts the journal");
        assert_eq!(policy.take().unwrap().count, 2);

        let policy = ErrorPolicy::new(OnError::Panic);
        assert_eq!(note(&policy, &wrong, "lookup"), Consequence::Stop);
        let error = policy.check_alive().unwrap_err();
        assert_eq!(error.errno(), Errno::EIO);
        assert!(error.to_string().contains("block 7"), "{error}");
        assert_eq!(policy.check().unwrap_err().errno(), Errno::EIO);
    }

    #[test]
    fn the_first_error_stays_the_first_when_the_superblock_could_not_be_written() {
        let policy = ErrorPolicy::new(OnError::Continue);
        for inode in [11, 12, 13] {
            let error = Error::corrupt("inode", "is wrong");
            policy.note(&error, InodeNumber(inode), "lookup", Timestamp::default());
            if inode == 12 {
                policy.put_back(policy.take().unwrap());
            }
        }
        let taken = policy.take().unwrap();
        assert_eq!((taken.count, taken.first.unwrap().inode.0, taken.last.unwrap().inode.0), (3, 11, 13));
    }
}
