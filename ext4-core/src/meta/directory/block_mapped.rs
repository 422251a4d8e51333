//! Growing a directory that is mapped by blocks of pointers (ext2, ext3) instead of extents.
//!
//! Invariant: blocks of pointers that are missing are allocated all before anything points to them, and filled from the
//! bottom up; running out of space on the way gives back what was allocated and changes nothing.

use crate::error::{Errno, Error, Result};
use crate::format::indirect::{BlockPath, pointer};
use crate::format::inode::Inode;
use crate::meta::block_allocator::{AllocationRequest, allocate_blocks, free_blocks};
use crate::meta::{Buffer, SuperblockInfo, Transaction, block_map};
use crate::types::{BlockNumber, LogicalBlock};

/// Maps one block at `logical`, which is a hole. Adds it, and what blocks of pointers take, to `inode.sectors`.
pub(super) async fn map_block(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    logical: LogicalBlock,
    physical: BlockNumber,
) -> Result<()> {
    let too_far =
        || Error::posix(Errno::ENOSPC, format!("block {logical} of block-mapped inode {}", inode.number));
    let path = BlockPath::new(info.block_size(), logical).ok_or_else(too_far)?;
    // Down as far as there are blocks of pointers.
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
        last = Some(block_map::read_pointers(info, inode, child).await?);
        level += 1;
    }
    let missing = path.levels - level;
    let new = allocate(info, transaction, inode, physical, missing).await?;
    let mut child = physical;
    for (block, depth) in new.iter().zip((level + 1..=path.levels).rev()) {
        let at = path.pointers[depth];
        info.cache.create(transaction, *block)?.modify(transaction, |bytes| set_pointer(bytes, at, child))?;
        child = *block;
    }
    let at = path.pointers[level];
    match last {
        None => set_pointer(&mut inode.i_block, at, child),
        Some(buffer) => buffer.modify(transaction, |bytes| set_pointer(bytes, at, child))?,
    }
    inode.sectors += (1 + missing as u64) * info.block_size().sectors();
    Ok(())
}

/// Fails with bigalloc, where every file is mapped by extents (the kernel's `ext4_ind_map_blocks` does too).
///
/// # Errors
/// Unsupported.
pub(super) fn refuse_clusters(info: &SuperblockInfo, inode: &Inode) -> Result<()> {
    if info.cluster_bits() == 0 {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "inode {} is mapped by indirect blocks: with bigalloc it can only be read",
        inode.number
    )))
}

/// Blocks for `count` blocks of pointers, or none. A pointer has 32 bits: no block may lie past them.
async fn allocate(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &Inode,
    data: BlockNumber,
    count: usize,
) -> Result<Vec<BlockNumber>> {
    let request = AllocationRequest {
        goal: Some(data.offset(1)),
        inode: inode.number,
        len: 1,
        reserved: false,
        metadata: true,
    };
    let far = |block: &BlockNumber| u32::try_from(block.0).is_err();
    let mut blocks = Vec::with_capacity(count);
    let mut failed = None;
    while blocks.len() < count && failed.is_none() {
        match allocate_blocks(info, transaction, &request).await {
            Ok((block, _)) => blocks.push(block),
            Err(error) => failed = Some(error),
        }
    }
    if failed.is_none() && (far(&data) || blocks.iter().any(far)) {
        let context = format!("a block below 2^32 for block-mapped inode {}", inode.number);
        failed = Some(Error::posix(Errno::ENOSPC, context));
    }
    match failed {
        None => Ok(blocks),
        Some(error) => {
            for block in blocks {
                free_blocks(info, transaction, block, 1, true).await?;
            }
            Err(error)
        }
    }
}

fn set_pointer(bytes: &mut [u8], at: u32, block: BlockNumber) {
    let start = at as usize * 4;
    if let (Some(target), Ok(number)) = (bytes.get_mut(start..start + 4), u32::try_from(block.0)) {
        target.copy_from_slice(&number.to_le_bytes());
    }
}
