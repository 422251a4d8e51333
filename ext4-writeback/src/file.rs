//! An open file.

use std::sync::Arc;

use ext4_core::meta::extent_tree::Mapping;

use crate::inode_info::InodeInfo;
use crate::{Attributes, Filesystem, Result};

/// An open regular file. Cloning is by `Arc` outside; every method takes `&self`.
#[derive(Debug)]
pub struct File {
    pub(crate) filesystem: Filesystem,
    pub(crate) inode: Arc<InodeInfo>,
    /// How far this opener has seen the inode's write errors.
    pub(crate) error_cursor: parking_lot::Mutex<u64>,
}

/// What [`File::seek`] looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SeekTarget {
    /// The next byte at or after the offset that is not in a hole (SEEK_DATA).
    Data,
    /// The next byte at or after the offset that is in a hole; the end of the file counts as one (SEEK_HOLE).
    Hole,
}

impl File {
    /// Opens `inode`; the caller has counted it in `open_count`, and counts it off when the file is dropped.
    pub(crate) fn new(filesystem: Filesystem, inode: Arc<InodeInfo>) -> Self {
        let error_cursor = parking_lot::Mutex::new(inode.write_errors.sample());
        Self { filesystem, inode, error_cursor }
    }

    /// Reads at byte `offset` into `buffer`; returns how many bytes, fewer only at the end of the file.
    pub async fn read_at(&self, _offset: u64, _buffer: &mut [u8]) -> Result<usize> {
        todo!()
    }

    /// Writes all of `data` at byte `offset`, into the page cache. Returns how many bytes; fewer only where an error
    /// came after some.
    pub async fn write_at(&self, _offset: u64, _data: &[u8]) -> Result<usize> {
        todo!()
    }

    /// fsync: data, size and attributes are durable when it returns. Errors of earlier writeback are reported once.
    pub async fn sync_all(&self) -> Result<()> {
        todo!()
    }

    /// fdatasync: as [`File::sync_all`], without times.
    pub async fn sync_data(&self) -> Result<()> {
        todo!()
    }

    /// Truncates or extends (with a hole) to `size` bytes.
    pub async fn set_len(&self, _size: u64) -> Result<()> {
        todo!()
    }

    /// The size in bytes.
    pub fn len(&self) -> u64 {
        todo!()
    }

    /// True for a file of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What stat tells.
    pub async fn attributes(&self) -> Result<Attributes> {
        self.filesystem.attributes(self.inode.number).await
    }

    /// SEEK_DATA and SEEK_HOLE; `None` where there is no data behind `offset`. `ENXIO` past the end.
    pub async fn seek(&self, _offset: u64, _target: SeekTarget) -> Result<Option<u64>> {
        todo!()
    }

    /// Starts writing dirty data back, without waiting for it to be durable.
    pub async fn start_writeback(&self) -> Result<()> {
        todo!()
    }

    /// The mappings of the file, holes left out, delayed data written back first (fiemap).
    pub async fn extents(&self) -> Result<Vec<Mapping>> {
        todo!()
    }
}
