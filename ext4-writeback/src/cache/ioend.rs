//! An ioend: one contiguous write of a file to one contiguous range of the device, from the moment it grows until its
//! folios' writeback ends.
//!
//! Invariant: an ioend does not know its inode: it travels with it (see [`crate::writeback::gather`]).

use std::ops::Range;
use std::sync::Arc;

use ext4_core::{BlockNumber, LogicalBlock, Result};

use crate::cache::folio::Folio;

/// What lies below an ioend, and so what has to follow its I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Written blocks: nothing but the size.
    Overwrite,
    /// Unwritten blocks: they have to be converted.
    Unwritten,
    /// Blocks that are picked in memory: they have to be published.
    Picked,
}

/// See the module and [`crate::writeback::gather`].
#[derive(Debug)]
pub(crate) struct Ioend {
    /// Its number among all of the file system.
    pub id: u64,
    /// The first byte of the file.
    pub offset: u64,
    /// Its length in bytes, as in the invariant.
    pub size: u64,
    /// The first block of the file and how many.
    pub blocks: Range<LogicalBlock>,
    /// Where it goes.
    pub physical: BlockNumber,
    /// What lies below.
    pub kind: Kind,
    /// The folios' parts, in the order of the file.
    pub pieces: Vec<(Arc<Folio>, Range<u32>)>,
    /// How the I/O ended.
    pub result: Result<()>,
}

impl Ioend {
    /// The byte behind the last.
    pub fn end(&self) -> u64 {
        self.offset + self.size
    }
}
