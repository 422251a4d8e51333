//! Mapping: what lies at an offset of a file, how far the answer reaches, and which sequence number proves it fresh.
//!
//! Reads, buffered writes, zeroing, writeback, SEEK_DATA/SEEK_HOLE and fiemap ask here. The answer comes from the
//! extent status tree; what it does not know is read from the device's tree and added.
//!
//! Who asks holds one of: the inode's `rwlock`, its `invalidate_lock`, or the lock of a folio over the range. Who
//! holds a folio's lock only (writeback) adds nothing beyond what he asked for: a truncation may be removing what lies
//! behind, and what was added would outlive it.
//!
//! Reads and writes ask under the folio's lock and use the answer there, so it needs no second look; writeback keeps
//! an answer from folio to folio and compares sequence numbers each time.

pub(crate) mod allocate;
pub(crate) mod pointers;
pub(crate) mod preallocation;
pub(crate) mod reserved_blocks;

use ext4_core::meta::block_map;
use ext4_core::{BlockNumber, Error, LogicalBlock, Result};

use crate::cache::extent_status::status::{Extent, Status};
use crate::inode::InodeInfo;
use crate::volume::Volume;

/// What lies at a range of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Nothing.
    Hole,
    /// Dirty data for which space is promised.
    Delalloc,
    /// Data at this byte of the device.
    Mapped(u64),
    /// Blocks without data, at this byte of the device.
    Unwritten(u64),
}

/// A range of a file and what lies there, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Iomap {
    /// The first byte: the one asked for.
    pub offset: u64,
    /// For how many bytes it holds.
    pub length: u64,
    /// What is there.
    pub kind: Kind,
}

/// Walks bytes `position..end` of a file, mapping by mapping.
pub(crate) struct Iterator<'a> {
    volume: &'a Volume,
    inode: &'a InodeInfo,
    position: u64,
    end: u64,
}

impl<'a> Iterator<'a> {
    /// The caller holds one of the locks the module names.
    pub fn new(volume: &'a Volume, inode: &'a InodeInfo, position: u64, end: u64) -> Self {
        Self { volume, inode, position, end }
    }

    /// The next mapping; `None` at the end.
    ///
    /// # Errors
    /// Those of the device and of what it holds.
    pub async fn next(&mut self) -> Result<Option<Iomap>> {
        if self.position >= self.end {
            return Ok(None);
        }
        let bits = self.volume.info.block_size().bits();
        let block_size = self.volume.info.block_size();
        let first = LogicalBlock::containing(self.position, block_size);
        let extent = lookup(self.volume, self.inode, first).await?;
        let within = self.position - first.byte(block_size);
        let stop = extent.end.byte(block_size).min(self.end);
        let byte = |block: BlockNumber| (block.0 << bits) + within;
        let map = Iomap {
            offset: self.position,
            length: stop - self.position,
            kind: match extent.status {
                Status::Hole => Kind::Hole,
                Status::Delayed => Kind::Delalloc,
                Status::Written(block) => Kind::Mapped(byte(block)),
                Status::Unwritten(block) => Kind::Unwritten(byte(block)),
            },
        };
        self.position = stop;
        Ok(Some(map))
    }
}

/// What lies at `block`. The caller holds one of the locks the module names, and not the inode's.
///
/// # Errors
/// Those of the device and of what it holds.
pub(crate) async fn lookup(volume: &Volume, inode: &InodeInfo, block: LogicalBlock) -> Result<Extent> {
    if let Some(extent) = inode.extent_status.lookup(block) {
        return Ok(extent);
    }
    load(volume, inode, block, u32::MAX).await
}

/// As [`lookup`], for who holds nothing but the lock of a folio that covers `len` blocks from `block` on.
///
/// # Errors
/// As [`lookup`].
pub(crate) async fn lookup_under_folio(
    volume: &Volume,
    inode: &InodeInfo,
    block: LogicalBlock,
    len: u32,
) -> Result<Extent> {
    if let Some(extent) = inode.extent_status.lookup(block) {
        return Ok(extent);
    }
    load(volume, inode, block, len).await
}

async fn load(volume: &Volume, inode: &InodeInfo, block: LogicalBlock, len: u32) -> Result<Extent> {
    let disk = inode.inode.read().await;
    if let Some(extent) = inode.extent_status.lookup(block) {
        return Ok(extent);
    }
    let mut mapping = block_map::lookup(&volume.info, &disk, block).await?;
    if mapping.logical != block || mapping.len == 0 {
        return Err(Error::corrupt(
            format!("inode {} block {block}", inode.number),
            format!("the block map answers for {} blocks at {}", mapping.len, mapping.logical),
        ));
    }
    mapping.len = mapping.len.min(len);
    inode.extent_status.cache(&mapping);
    tracing::trace!(
        ino = inode.number.0,
        lblk = block.0,
        len = mapping.len,
        state = ?mapping.state,
        "ext4_es_cache_extent"
    );
    // Still under the inode's lock: nobody can have taken it out.
    inode.extent_status.lookup(block).ok_or_else(|| {
        Error::corrupt(format!("inode {} block {block}", inode.number), "its mapping does not stay cached")
    })
}
