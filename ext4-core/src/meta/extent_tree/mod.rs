//! Extent trees: lookup, insert, split, merge, remove, conversion of unwritten extents.
//!
//! ```text
//!   inode.i_block   root      [ 0 ─┐ 900 ─┐            ]     levels[0]
//!                                  ▼      ▼
//!   blocks          index          …    [ 900 ─┐ 1200 ─ … ]  levels[1]
//!                                              ▼
//!                   leaf                     [ 900+40 → 5123, 944+8 → 7000 unwritten, … ]
//! ```
//!
//! | file | what |
//! |---|---|
//! | `path` | the way from the root to the leaf of a logical block, each node verified |
//! | `edit` | the primitive of every change: replace some extents of a leaf by others; splits, growth |
//! | `insert`, `convert`, `remove` | what replaces what |
//! | `shift` | extents move along the file |
//! | `cluster` | blocks for a hole; with bigalloc, what else uses a cluster |
//!
//! Invariants:
//! - Depth falls by one at each level and the logical ranges of children nest in that of their parent; it is
//!   checked on every visit, so a damaged tree ends a walk with an error and never with a loop.
//! - A node's first entry and its parent's key are the same number (the kernel refuses a tree in which they
//!   differ).
//! - Blocks for new nodes are allocated before anything is changed; from there on a change does not wait and
//!   takes no memory from the device. So `ENOSPC` leaves the tree as it was.
//! - A leaf stops naming blocks before the blocks are freed. Were it the other way round, an error between
//!   the two would leave blocks that belong to a file and may be given to another.
//!
//! Locks: the caller holds the inode's `i_data_sem` (for writing to change something). Nothing here restarts
//! a transaction: that waits for a commit, which waits for other handles, which may wait for this very lock.
//! If credits run out the caller is told.

mod cluster;
mod convert;
mod edit;
mod insert;
mod path;
mod remove;
mod shift;

use super::SuperblockInfo;
use crate::error::{Errno, Error, Result};
use crate::format::extent::{Extent, NodeMut, ROOT_ENTRIES};
use crate::format::inode::{FileType, Inode, InodeFlags};
use crate::types::{BlockNumber, LogicalBlock};

pub use cluster::{Allocated, allocate, give_back, is_cluster_mapped};
pub use convert::{Conversion, convert_step, convert_to_unwritten, convert_to_written};
pub use insert::insert;
pub use remove::remove;
pub use shift::{Shift, last_extent, shift_left, shift_right, split_at};

/// What lies at a place of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MappingState {
    /// Nothing; reads as zeros.
    Hole,
    /// Blocks with data, from this one on.
    Written(BlockNumber),
    /// Blocks allocated but not written; reads as zeros.
    Unwritten(BlockNumber),
}

/// What lies at `logical`, and for how many blocks the answer holds. At least one; a hole reaches to the next
/// extent or to the last possible block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The first block of the answer.
    pub logical: LogicalBlock,
    /// For how many blocks it holds.
    pub len: u32,
    /// What is there.
    pub state: MappingState,
}

/// How far [`remove`] came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removal {
    /// Nothing is mapped in the range any more.
    Done,
    /// The transaction's credits ran low: log the inode, go on in another handle, call again with the same
    /// range.
    More,
}

/// Makes `inode` extent-mapped with an empty tree.
pub fn initialize(inode: &mut Inode) {
    inode.flags.insert(InodeFlags::EXTENTS);
    NodeMut::new(&mut inode.i_block).initialize(0, ROOT_ENTRIES);
}

/// What lies at `logical` of an extent-mapped inode. The answer starts at `logical` exactly.
///
/// # Errors
/// - Corrupt if a node on the way is damaged.
/// - `EFBIG` past the last logical block.
/// - Those of the device.
pub async fn lookup(info: &SuperblockInfo, inode: &Inode, logical: LogicalBlock) -> Result<Mapping> {
    let place = path::locate(info, inode, logical).await?;
    if let Some(extent) = place.before.filter(|extent| extent.end() > logical) {
        return Ok(mapping(&extent, logical));
    }
    let end = place.after.map_or(place.end, |next| next.logical);
    Ok(Mapping { logical, len: end.0.saturating_sub(logical.0).max(1), state: MappingState::Hole })
}

/// `extent` from `logical`, which lies in it, on.
fn mapping(extent: &Extent, logical: LogicalBlock) -> Mapping {
    let skipped = logical.0.saturating_sub(extent.logical.0);
    let physical = extent.physical.offset(u64::from(skipped));
    let state =
        if extent.unwritten { MappingState::Unwritten(physical) } else { MappingState::Written(physical) };
    Mapping { logical, len: extent.len.saturating_sub(skipped), state }
}

/// The first extent that ends behind `from`: covers it, or else is the next one. `None` behind the last
/// extent. A walk over a file asks again with [`Extent::end`].
///
/// # Errors
/// As [`lookup`].
pub async fn next_extent(info: &SuperblockInfo, inode: &Inode, from: LogicalBlock) -> Result<Option<Extent>> {
    let mut from = from;
    while from <= LogicalBlock::MAX {
        let place = path::locate(info, inode, from).await?;
        if let Some(extent) = place.before.filter(|extent| extent.end() > from).or(place.after) {
            return Ok(Some(extent));
        }
        // Nothing more in this leaf: the next one starts exactly where this one's range ends.
        from = place.end;
    }
    Ok(None)
}

/// Where block allocation for `logical` should start looking: as far behind the extent before it as `logical`
/// is in the file, so that a file that is filled out of order ends up in order; or in front of the one after
/// it. `None` for an empty file.
///
/// # Errors
/// As [`lookup`].
pub async fn allocation_goal(
    info: &SuperblockInfo,
    inode: &Inode,
    logical: LogicalBlock,
) -> Result<Option<BlockNumber>> {
    let place = path::locate(info, inode, logical).await?;
    let inside = |block: BlockNumber| (block.0 < info.blocks_count()).then_some(block);
    if let Some(before) = place.before {
        let distance = u64::from(logical.0.saturating_sub(before.logical.0));
        let behind = before.physical.offset(u64::from(before.len));
        return Ok(inside(before.physical.offset(distance)).or_else(|| inside(behind)));
    }
    if let Some(after) = place.after {
        let distance = u64::from(after.logical.0.saturating_sub(logical.0));
        return Ok(Some(BlockNumber(after.physical.0.saturating_sub(distance).max(1))));
    }
    Ok(None)
}

/// The node blocks of the tree, level by level, for consistency checks and `extents -v`.
///
/// # Errors
/// As [`lookup`].
pub async fn node_blocks(info: &SuperblockInfo, inode: &Inode) -> Result<Vec<BlockNumber>> {
    path::node_blocks(info, inode).await
}

/// Blocks of directories and symlinks are metadata: they went through the journal, so their release must be
/// revoked.
pub(super) fn holds_metadata(inode: &Inode) -> bool {
    matches!(inode.file_type(), Some(FileType::Directory | FileType::Symlink))
        || inode.flags.intersects(InodeFlags::EA_INODE | InodeFlags::JOURNAL_DATA)
}

fn check_range(inode: &Inode, logical: LogicalBlock, len: u32) -> Result<()> {
    match logical.0.checked_add(len) {
        Some(_) if len > 0 => Ok(()),
        _ => Err(Error::posix(Errno::EFBIG, format!("inode {}: blocks {logical}+{len}", inode.number))),
    }
}
