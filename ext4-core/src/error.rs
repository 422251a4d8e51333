//! Errors, in families that callers treat differently: I/O (the device failed), unsupported (a feature by its
//! name), corrupt (what, where, found, expected), and the errors of the POSIX interface itself (`ENOENT` …).
//! One table, [`Error::errno`], gives each its number.

use std::fmt;

pub use nix::errno::Errno;

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A structure on the device that cannot be what it claims to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Corrupt {
    /// The structure and where it lies: `block 1234: extent header`.
    pub what: String,
    /// What was found there and what was expected: `magic 0x0 is not 0xf30a`.
    pub problem: String,
}

impl Corrupt {
    /// A corruption report: `Corrupt::new("block 7: extent header", "magic 0x0 is not 0xf30a")`.
    pub fn new(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { what: what.into(), problem: problem.into() }
    }
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.problem)
    }
}

/// What a failed I/O was for: it decides if the failure says something of the file system. Set at the place
/// that submits the I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IoPurpose {
    /// Metadata of the file system was read or written: the purpose of all I/O that is not marked otherwise.
    #[default]
    Metadata,
    /// Content of a file: the error is the reader's or the writer's.
    Data,
    /// None of both: a commit (a journal that stops is noted where it stops), a flush, a discard, memory from
    /// the host.
    Other,
}

/// Every failure of this library. Cheap to clone, because one failed I/O may have several waiters.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device, or the host file under it, failed.
    #[error("{operation} {location}: {}", errno.desc())]
    Io {
        /// What was being done: `read`, `write`, `flush`, `open` …
        operation: &'static str,
        /// To what: `bytes 4096..8192`, a path …
        location: String,
        /// The host's error.
        errno: Errno,
        /// What the I/O was for.
        purpose: IoPurpose,
    },
    /// The file system uses something this library does not do.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The file system contradicts itself.
    #[error("corrupt: {0}")]
    Corrupt(Box<Corrupt>),
    /// The request cannot be carried out: what POSIX has an errno for.
    #[error("{context}: {}", errno.desc())]
    Posix {
        /// The errno of the interface.
        errno: Errno,
        /// What was asked, of what.
        context: String,
    },
    /// The journal has stopped after an error; nothing more is written.
    #[error("journal aborted: {0}")]
    Aborted(String),
}

impl Error {
    /// An error of the POSIX interface.
    pub fn posix(errno: Errno, context: impl Into<String>) -> Self {
        Self::Posix { errno, context: context.into() }
    }

    /// A failed I/O.
    pub fn io(operation: &'static str, location: impl Into<String>, errno: Errno) -> Self {
        Self::Io { operation, location: location.into(), errno, purpose: IoPurpose::default() }
    }

    /// A failed I/O of the host, from what `std` reports.
    pub fn host(operation: &'static str, location: impl Into<String>, source: &std::io::Error) -> Self {
        let errno = source.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        Self::io(operation, location, errno)
    }

    /// The same error; if it is one of I/O, its I/O was for `purpose`.
    #[must_use]
    pub fn for_purpose(mut self, purpose: IoPurpose) -> Self {
        if let Self::Io { purpose: now, .. } = &mut self {
            *now = purpose;
        }
        self
    }

    /// Returns true if metadata of the file system could not be read or written.
    #[must_use]
    pub fn is_metadata_io(&self) -> bool {
        matches!(self, Self::Io { purpose: IoPurpose::Metadata, .. })
    }

    /// A corruption report.
    pub fn corrupt(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Corrupt::new(what, problem).into()
    }

    /// The errno a POSIX caller would see. Corruption is `EUCLEAN` as in the kernel's ext4 (`EFSCORRUPTED`).
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Io { errno, .. } | Self::Posix { errno, .. } => *errno,
            Self::Unsupported(_) => Errno::EOPNOTSUPP,
            Self::Corrupt(_) => Errno::EUCLEAN,
            Self::Aborted(_) => Errno::EROFS,
        }
    }

    /// Returns true for a structure on the device that contradicts itself.
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Self::Corrupt(_))
    }
}

impl From<Corrupt> for Error {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt(Box::new(corrupt))
    }
}
