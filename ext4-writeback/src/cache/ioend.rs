//! An ioend: one contiguous write of a file to one contiguous range of the device, from the moment it grows
//! until its folios' writeback ends.
//!
//! Invariant: an ioend does not know its inode; the floor of writeback passes the inode along with it.

use std::ops::Range;
use std::sync::Arc;

use ext4_core::{BlockNumber, LogicalBlock, Result};

use crate::cache::folio::Folio;

/// The state of the blocks below an ioend, which says what has to follow its I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Written blocks: only i_disksize may have to follow.
    Overwrite,
    /// Unwritten blocks: they have to be converted to written ones.
    Unwritten,
    /// Blocks that are picked in memory only: they have to be mapped by the file.
    Picked,
}

/// One contiguous write. See the module.
#[derive(Debug)]
pub(crate) struct Ioend {
    /// Its number; each number of a mounted file system is used once.
    pub id: u64,
    /// The first byte of the file that it writes.
    pub offset: u64,
    /// Its length in bytes of the file.
    pub size: u64,
    /// The blocks of the file that it writes.
    pub blocks: Range<LogicalBlock>,
    /// The block on the device that the first of `blocks` is written to.
    pub physical: BlockNumber,
    /// The state of the blocks below.
    pub kind: Kind,
    /// The folios and the blocks within each, in the order of the file.
    pub pieces: Vec<(Arc<Folio>, Range<u32>)>,
    /// The result of the I/O and of what followed it.
    pub result: Result<()>,
}

impl Ioend {
    /// The byte behind the last.
    pub fn end(&self) -> u64 {
        self.offset + self.size
    }
}
