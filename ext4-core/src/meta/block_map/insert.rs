//! Indirect mapping (`ext4_ind_map_blocks`): mapping blocks of a file without extents, and the blocks of
//! pointers on the way.
//!
//! Invariants:
//! - Blocks of pointers that are missing are allocated all before anything points to them, and filled from
//!   the bottom up; running out of space on the way gives back what was allocated and changes nothing. All of
//!   it happens under one handle, so that a crash shows the way whole or not at all.
//! - A pointer is set only if it was 0.
//! - A pointer has 32 bits: no block that one names lies past them.

use super::{Pointers, before_in_array, read_pointers, refuse_inline_data};
use crate::error::{Errno, Error, Result};
use crate::format::features::RoCompat;
use crate::format::indirect::{
    BlockPath, DIRECT, pointer, pointers_per_block, reach, set_pointers, table_blocks,
};
use crate::format::inode::Inode;
use crate::meta::block_allocator::{AllocationRequest, allocate_blocks, free_blocks};
use crate::meta::extent_tree::{self, MappingState};
use crate::meta::{BlockKind, Buffer, SuperblockInfo, Transaction};
use crate::types::{BlockNumber, LogicalBlock};

/// What pointers can name is below this block.
pub const ADDRESSABLE: BlockNumber = BlockNumber(1 << 32);

/// Maps blocks at `logical` to `physical`: as many of `len` as have their pointers in one array. They are a
/// hole. Adds them, and what blocks of pointers take, to `inode.sectors`. Returns how many were mapped; the
/// caller asks again for the rest.
///
/// Needs at most [`crate::meta::credits::POINTERS`] credits.
///
/// # Errors
/// - `EFBIG` past what pointers reach.
/// - `ENOSPC` if a block of pointers is needed and there is none, or the data lies past 32 bits.
/// - Corrupt if something is mapped there already: nothing was changed.
pub async fn insert(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    logical: LogicalBlock,
    physical: BlockNumber,
    len: u32,
) -> Result<u32> {
    super::refuse_clusters(info, inode.number)?;
    let way = Way::find(info, inode, logical).await?;
    let count = len.min(way.room(info));
    if physical.offset(u64::from(count)) > ADDRESSABLE {
        return Err(Error::posix(
            Errno::ENOSPC,
            format!("a block below 2^32 for block-mapped inode {}", inode.number),
        ));
    }
    way.grow(info, transaction, inode, Some((physical, count))).await?;
    inode.sectors += info.block_size().sectors() * u64::from(count);
    Ok(count)
}

/// Allocates the blocks of pointers on the way to `logical`, so that mapping it needs no further block.
/// Returns for how many blocks from there on that holds.
///
/// Needs at most [`crate::meta::credits::POINTERS`] credits.
///
/// # Errors
/// `EFBIG`, `ENOSPC`: nothing was changed.
pub async fn prepare(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    logical: LogicalBlock,
) -> Result<u32> {
    let way = Way::find(info, inode, logical).await?;
    let room = way.room(info);
    way.grow(info, transaction, inode, None).await?;
    Ok(room)
}

/// Where block allocation for `logical` of any inode should start looking; see
/// [`extent_tree::allocation_goal`].
///
/// # Errors
/// As [`super::lookup`].
pub async fn allocation_goal(
    info: &SuperblockInfo,
    inode: &Inode,
    logical: LogicalBlock,
) -> Result<Option<BlockNumber>> {
    refuse_inline_data(inode)?;
    if inode.uses_extents() {
        return extent_tree::allocation_goal(info, inode, logical).await;
    }
    let inside = |block: BlockNumber| (block.0 < info.blocks_count()).then_some(block);
    if let Some(before) = logical.0.checked_sub(1)
        && let MappingState::Written(block) = super::lookup(info, inode, LogicalBlock(before)).await?.state
    {
        return Ok(inside(block.offset(1)));
    }
    let Some(path) = BlockPath::new(info.block_size(), logical) else { return Ok(None) };
    let mut node = Pointers::root(inode, &path);
    for below in (0..path.levels).rev() {
        let child = node.get(inode, node.at);
        if child.0 == 0 {
            return Ok(node.buffer.as_ref().and_then(|buffer| inside(buffer.block().offset(1))));
        }
        node = Pointers::read(info, inode, child, path.pointers[path.levels - below]).await?;
    }
    if let Some((at, block)) = before_in_array(inode, &node) {
        let distance = u64::from(node.at - at);
        return Ok(inside(block.offset(distance)));
    }
    Ok(node.buffer.as_ref().and_then(|buffer| inside(buffer.block().offset(1))))
}

/// How many blocks a file without extents can have: what pointers reach, and without the feature `huge_file`
/// what i_blocks can count (32 bits of sectors, the blocks of pointers among them). Source: kernel,
/// `ext4_max_bitmap_size`.
#[must_use]
pub fn max_blocks(info: &SuperblockInfo) -> u64 {
    let block_size = info.block_size();
    let reach = reach(block_size).min(u64::from(LogicalBlock::MAX.0) + 1);
    if info.features().ro_compat.contains(RoCompat::HUGE_FILE) {
        return reach;
    }
    // As many blocks of pointers as that many blocks of data would take; the kernel does not count closer
    // either.
    let limit = u64::from(u32::MAX) / block_size.sectors();
    reach.min(limit.saturating_sub(table_blocks(block_size, limit)))
}

/// The way to a logical block, as far as there are blocks of pointers.
struct Way {
    path: BlockPath,
    /// The last block of pointers there is; `None`: the inode.
    last: Option<Buffer>,
    /// How deep that is: 0 is the inode.
    level: usize,
}

impl Way {
    async fn find(info: &SuperblockInfo, inode: &Inode, logical: LogicalBlock) -> Result<Self> {
        refuse_inline_data(inode)?;
        let too_far =
            || Error::posix(Errno::EFBIG, format!("block {logical} of block-mapped inode {}", inode.number));
        if logical > LogicalBlock::MAX {
            return Err(too_far());
        }
        let path = BlockPath::new(info.block_size(), logical).ok_or_else(too_far)?;
        let (mut last, mut level): (Option<Buffer>, _) = (None, 0);
        while level < path.levels {
            let at = path.pointers[level];
            let child = match &last {
                None => pointer(&inode.i_block, at),
                Some(buffer) => buffer.read(|bytes| pointer(bytes, at)),
            };
            if child.0 == 0 {
                break;
            }
            last = Some(read_pointers(info, inode, child).await?);
            level += 1;
        }
        Ok(Self { path, last, level })
    }

    /// How many pointers the last array has from this one on.
    fn room(&self, info: &SuperblockInfo) -> u32 {
        let end = if self.path.levels == 0 { DIRECT } else { pointers_per_block(info.block_size()) };
        end - self.path.pointers[self.path.levels]
    }

    /// Adds the blocks of pointers that are missing, and the pointers to a run of data.
    async fn grow(
        self,
        info: &SuperblockInfo,
        transaction: &dyn Transaction,
        inode: &mut Inode,
        data: Option<(BlockNumber, u32)>,
    ) -> Result<()> {
        let Self { path, last, level } = self;
        let missing = path.levels - level;
        let (first, count) = data.unwrap_or_default();
        if missing == 0 {
            let at = path.pointers[level];
            let used = |bytes: &[u8]| (at..at + count).any(|at| pointer(bytes, at).0 != 0);
            if last.as_ref().map_or_else(|| used(&inode.i_block), |buffer| buffer.read(used)) {
                return Err(Error::corrupt(
                    format!("inode {}: block map", inode.number),
                    format!("some of {count} blocks at pointer {at} are mapped already"),
                ));
            }
            if count == 0 {
                return Ok(());
            }
        }
        let near = data.map(|(first, count)| first.offset(u64::from(count)));
        let goal = near.or_else(|| last.as_ref().map(|buffer| buffer.block().offset(1)));
        let new = allocate(info, transaction, inode, goal, missing).await?;
        let (mut child, mut run) = (first, count);
        for (block, depth) in new.iter().zip((level + 1..=path.levels).rev()) {
            let at = path.pointers[depth];
            let buffer = info.cache.create(transaction, *block, BlockKind::Indirect(inode.number))?;
            buffer.modify(transaction, |bytes| set_pointers(bytes, at, child, run))?;
            (child, run) = (*block, 1);
        }
        let at = path.pointers[level];
        match last {
            None => set_pointers(&mut inode.i_block, at, child, run),
            Some(buffer) => buffer.modify(transaction, |bytes| set_pointers(bytes, at, child, run))?,
        }
        inode.sectors += info.block_size().sectors() * missing as u64;
        Ok(())
    }
}

/// Blocks for `count` blocks of pointers, or none.
async fn allocate(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &Inode,
    goal: Option<BlockNumber>,
    count: usize,
) -> Result<Vec<BlockNumber>> {
    let request = AllocationRequest { goal, inode: inode.number, len: 1, reserved: false, metadata: true };
    let mut blocks = Vec::with_capacity(count);
    let mut failed = None;
    while blocks.len() < count && failed.is_none() {
        match allocate_blocks(info, transaction, &request).await {
            Ok((block, _)) => {
                blocks.push(block);
                if block >= ADDRESSABLE {
                    let context = format!("a block below 2^32 for block-mapped inode {}", inode.number);
                    failed = Some(Error::posix(Errno::ENOSPC, context));
                }
            }
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        None => Ok(blocks),
        Some(error) => {
            for block in blocks {
                free_blocks(info, transaction, block, 1, false).await?;
            }
            Err(error)
        }
    }
}
