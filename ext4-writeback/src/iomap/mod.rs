//! iomap: the mapping of a file at an offset, how far it reaches, and which sequence number proves it fresh.
//!
//! Reads, buffered writes, zeroing, writeback, SEEK_DATA/SEEK_HOLE and fiemap look mappings up here. The
//! answer comes from the extent status tree; blocks that the tree does not know are read from the extent tree
//! or block map on the device and added.
//!
//! Locks: the caller holds one of the inode's `rwlock`, its `invalidate_lock`, or the lock of a folio over
//! the range. A caller that holds only a folio's lock (writeback) adds nothing to the tree beyond the range
//! it asked for: a truncation may be removing the blocks behind it, and what was added would outlive the
//! truncation.
//!
//! Reads and writes look up under the folio's lock and use the answer there, so they need no second look;
//! writeback keeps a mapping from folio to folio and compares sequence numbers each time.

pub(crate) mod allocate;
pub(crate) mod pointers;
pub(crate) mod preallocation;
pub(crate) mod reserved_blocks;

use ext4_core::meta::block_map;
use ext4_core::{BlockNumber, Error, LogicalBlock, Result};

use crate::cache::extent_status::status::{Extent, Status};
use crate::inode::InodeInfo;
use crate::volume::Volume;

/// The type of an iomap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// No block and no data.
    Hole,
    /// Delayed: dirty data for which blocks are reserved.
    Delalloc,
    /// Data at this byte of the device.
    Mapped(u64),
    /// Blocks without data, at this byte of the device.
    Unwritten(u64),
}

/// An iomap: a range of a file and its type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Iomap {
    /// The first byte of the file: the one asked for.
    pub offset: u64,
    /// The length in bytes.
    pub length: u64,
    /// Its type.
    pub kind: Kind,
}

/// Iterates over the mappings of bytes `position..end` of a file.
pub(crate) struct Iterator<'a> {
    volume: &'a Volume,
    inode: &'a InodeInfo,
    position: u64,
    end: u64,
}

#[deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
impl<'a> Iterator<'a> {
    /// An iterator at byte `position`. The caller holds one of the locks that the module names.
    pub fn new(volume: &'a Volume, inode: &'a InodeInfo, position: u64, end: u64) -> Self {
        Self { volume, inode, position, end }
    }

    /// The next mapping; `None` at byte `end`.
    ///
    /// # Errors
    /// Those of the device; corrupt metadata.
    pub async fn next(&mut self) -> Result<Option<Iomap>> {
        if self.position >= self.end {
            return Ok(None);
        }
        let block_size = self.volume.info.block_size();
        let first = LogicalBlock::containing(self.position, block_size);
        let extent = lookup(self.volume, self.inode, first).await?;
        let within = self.position.saturating_sub(first.byte(block_size));
        let stop = extent.end.byte(block_size).min(self.end);
        let byte = |block: BlockNumber| {
            block.byte(block_size).and_then(|byte| byte.checked_add(within)).ok_or_else(|| {
                let place = format!("inode {} block {first}", self.inode.number);
                Error::corrupt(place, format!("it is mapped to block {block}, behind byte 2^64"))
            })
        };
        let map = Iomap {
            offset: self.position,
            length: stop.saturating_sub(self.position),
            kind: match extent.status {
                Status::Hole => Kind::Hole,
                Status::Delayed => Kind::Delalloc,
                Status::Written(block) => Kind::Mapped(byte(block)?),
                Status::Unwritten(block) => Kind::Unwritten(byte(block)?),
            },
        };
        self.position = stop;
        Ok(Some(map))
    }
}

/// The mapping at `block` and behind it. The caller holds one of the locks that the module names, and not the
/// inode's.
///
/// # Errors
/// Those of the device; corrupt metadata.
pub(crate) async fn lookup(volume: &Volume, inode: &InodeInfo, block: LogicalBlock) -> Result<Extent> {
    if let Some(extent) = inode.extent_status.lookup(block) {
        return Ok(extent);
    }
    load(volume, inode, block, u32::MAX).await
}

/// As [`lookup`], for a caller that holds only the lock of a folio over `len` blocks from `block` on.
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

/// Looks `block` up on the device and adds at most `len` blocks of its mapping to the extent status tree.
async fn load(volume: &Volume, inode: &InodeInfo, block: LogicalBlock, len: u32) -> Result<Extent> {
    let disk = inode.on_disk.read().await;
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
    // Still under the inode's lock: no task can have removed it.
    inode.extent_status.lookup(block).ok_or_else(|| {
        Error::corrupt(format!("inode {} block {block}", inode.number), "its mapping does not stay cached")
    })
}
