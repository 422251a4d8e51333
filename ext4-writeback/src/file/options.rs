//! How a file is opened, and how one read or write of it is done.

use bitflags::bitflags;

use crate::base::options::setters;

/// What has to be durable when a write returns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum SyncMode {
    /// Nothing: fsync comes when it comes.
    #[default]
    None,
    /// The data, and what is needed to find it again (`O_DSYNC`).
    Data,
    /// The data and all attributes (`O_SYNC`).
    All,
}

/// How a file is opened: [`OpenOptions::new`] has the defaults, a method for each field sets it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Reads and writes go past the page cache (`O_DIRECT`). Offsets and lengths are multiples of
    /// [`File::direct_alignment`].
    pub direct: bool,
    /// What every write, truncation and allocation through this file makes durable before it returns. A file with the
    /// flag `S` (`chattr +S`) is always [`SyncMode::All`].
    pub sync: SyncMode,
    /// Every write goes to the end of the file, whatever its offset says (`O_APPEND`).
    pub append: bool,
}

impl OpenOptions {
    /// Through the page cache, with no write durable before it is asked for.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

setters! {
    OpenOptions:
    direct: bool,
    sync: SyncMode,
    append: bool,
}

bitflags! {
    /// How one read is done.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct ReadFlags: u32 {
        /// Nothing is waited for: what is in memory, `EAGAIN` where the first byte is not (`RWF_NOWAIT`). A direct read
        /// gives that too, and the zeros of holes and unwritten blocks, as far as it is known in memory where they are. It
        /// starts no I/O: unlike the kernel's, which waits for the device, though for nothing else.
        const NOWAIT = 1 << 0;
    }

    /// How one write is done.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct WriteFlags: u32 {
        /// Nothing is waited for before the I/O starts (`RWF_NOWAIT`). For direct writes: `EAGAIN` where a lock, cached
        /// data or an allocation is in the way. Buffered writes refuse it (`EOPNOTSUPP`), as the kernel's do over iomap.
        const NOWAIT = 1 << 0;
        /// As for a file opened with [`SyncMode::Data`] (`RWF_DSYNC`).
        const DSYNC = 1 << 1;
        /// As for a file opened with [`SyncMode::All`] (`RWF_SYNC`).
        const SYNC = 1 << 2;
        /// The offset is the end of the file, whatever was given (`RWF_APPEND`).
        const APPEND = 1 << 3;
    }
}

impl WriteFlags {
    pub(crate) fn sync_mode(self) -> SyncMode {
        if self.contains(Self::SYNC) {
            SyncMode::All
        } else if self.contains(Self::DSYNC) {
            SyncMode::Data
        } else {
            SyncMode::None
        }
    }
}
