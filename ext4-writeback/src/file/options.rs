//! Open flags (`O_*`), and the flags of one read or write (`RWF_*`).

use bitflags::bitflags;

use crate::base::options::setters;

/// What is durable when a write returns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum SyncMode {
    /// Nothing, until fsync, sync or unmount.
    #[default]
    None,
    /// The data, and the metadata that is needed to read it (`O_DSYNC`).
    Data,
    /// The data and all attributes (`O_SYNC`).
    All,
}

/// How a file is opened: [`OpenOptions::new`] has the defaults, a method for each field sets it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct OpenOptions {
    /// True if reads and writes go past the page cache (`O_DIRECT`). Offsets and lengths are multiples of
    /// [`crate::file::File::direct_alignment`].
    pub direct: bool,
    /// What every write, truncation and allocation through this file makes durable before it returns. A file
    /// with the flag `S` (`chattr +S`) is always opened with [`SyncMode::All`].
    pub sync: SyncMode,
    /// True if every write goes to the end of the file, whatever its offset says (`O_APPEND`).
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
    /// The flags of one read (`RWF_*` of preadv2).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct ReadFlags: u32 {
        /// The read waits for nothing (`RWF_NOWAIT`): it returns what is in memory, or `EAGAIN` if the first
        /// byte is not. A direct read returns that too, and the zeros of holes and unwritten blocks that the
        /// extent status tree knows. It starts no I/O, unlike the kernel's, which waits for the device and
        /// for nothing else.
        const NOWAIT = 1 << 0;
    }

    /// The flags of one write (`RWF_*` of pwritev2).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct WriteFlags: u32 {
        /// The write waits for nothing before its I/O starts (`RWF_NOWAIT`). A direct write fails with
        /// `EAGAIN` if a lock, cached data or an allocation is in the way. A buffered write fails with
        /// `EOPNOTSUPP`, as the kernel's do over iomap.
        const NOWAIT = 1 << 0;
        /// The write is durable as if the file were opened with [`SyncMode::Data`] (`RWF_DSYNC`).
        const DSYNC = 1 << 1;
        /// The write is durable as if the file were opened with [`SyncMode::All`] (`RWF_SYNC`).
        const SYNC = 1 << 2;
        /// The write goes to the end of the file, whatever its offset says (`RWF_APPEND`).
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
