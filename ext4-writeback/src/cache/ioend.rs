//! TODO header.

use std::ops::Range;
use std::sync::Arc;

use ext4_core::{BlockNumber, Result};

use crate::cache::folio::Folio;
use crate::inode::InodeInfo;

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

/// See the module.
#[derive(Debug)]
pub(crate) struct Ioend {
    /// Its number among all of the file system.
    pub id: u64,
    /// Whose data.
    pub inode: Arc<InodeInfo>,
    /// The first byte of the file.
    pub offset: u64,
    /// Its length in bytes, as in the invariant.
    pub size: u64,
    /// The first block of the file and how many.
    pub blocks: Range<u32>,
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
