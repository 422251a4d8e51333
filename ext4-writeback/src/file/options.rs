//! TODO header.

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

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
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
