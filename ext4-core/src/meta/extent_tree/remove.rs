//! Extent removal (`ext4_ext_remove_space`): unmapping and freeing blocks, from the end of a range to its
//! start.
//!
//! Invariant: whenever a step ends the tree is whole, and what is left of the range is its front: an
//! interrupted truncation is resumed by asking for the same range again.

use super::edit::{Edit, collapse, has_credits, replace_credits};
use super::{Removal, cluster, holds_metadata};
use crate::error::Result;
use crate::format::extent::Extent;
use crate::format::inode::Inode;
use crate::meta::{SuperblockInfo, Transaction, block_allocator, inode_table};
use crate::types::{BlockNumber, GroupNumber, LogicalBlock};

/// Unmaps the blocks of `first..=last` and frees them, with bigalloc the clusters of which nothing is mapped
/// any more, from the end of the range towards its start, so that an interrupted truncation can be resumed.
/// Frees emptied nodes. Takes what it freed off `inode.sectors`.
///
/// Works with [`crate::meta::credits::FREE_STEP`] credits and asks for more as long as the transaction has
/// room.
///
/// # Errors
/// If something was changed before, the inode has been logged: blocks that it no longer names may be free
/// already. `ENOSPC` if a hole in the middle of an extent needs a node and there is no block for it; corrupt;
/// the device's.
pub async fn remove(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    first: LogicalBlock,
    last: LogicalBlock,
) -> Result<Removal> {
    let before = (inode.i_block, inode.sectors);
    let result = remove_steps(info, transaction, inode, first, last.min(LogicalBlock::MAX)).await;
    if result.is_err() && before != (inode.i_block, inode.sectors) {
        inode_table::write_inode(info, transaction, inode).await?;
    }
    result
}

async fn remove_steps(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    first: LogicalBlock,
    last: LogicalBlock,
) -> Result<Removal> {
    if last < first {
        return Ok(Removal::Done);
    }
    loop {
        let mut edit = Edit::find(info, transaction, inode, last).await?;
        match step(&mut edit, first, last.offset(1)).await? {
            Step::Freed => {}
            Step::Nothing => break,
            Step::NoCredits => return Ok(Removal::More),
        }
    }
    collapse(info, transaction, inode).await?;
    Ok(Removal::Done)
}

enum Step {
    /// Something was freed; there may be more.
    Freed,
    /// Nothing is mapped in the range.
    Nothing,
    /// Something is mapped, but there are no credits to free it.
    NoCredits,
}

/// Frees as much of `first..end` as lies in the leaf of `end`, and as the credits allow.
async fn step(edit: &mut Edit<'_>, first: LogicalBlock, end: LogicalBlock) -> Result<Step> {
    let at = edit.leaf().at;
    let mut low = at;
    let mut parts: Vec<Extent> = Vec::new();
    let mut groups = Groups::default();
    let mut kept = [None, None];
    while let Some(candidate) = low.checked_sub(1) {
        let Some(extent) = edit.extent(candidate)? else { break };
        let Some(part) = extent.part(first, end) else { break };
        let front = extent.part(extent.logical, first);
        let behind = extent.part(end, extent.end());
        groups.add(edit.info, &part);
        if !has_credits(edit.transaction, credits(edit, &groups, front.is_some() && behind.is_some()))? {
            if parts.is_empty() {
                return Ok(Step::NoCredits);
            }
            break;
        }
        low = candidate;
        parts.push(part);
        if behind.is_some() {
            kept[1] = behind;
        }
        if front.is_some() {
            kept[0] = front;
            break;
        }
    }
    if parts.is_empty() {
        return Ok(Step::Nothing);
    }
    // Looked at before anything changes: an error afterwards would lose clusters.
    let unused = match edit.info.cluster_bits() {
        0 => Vec::new(),
        _ => cluster::unused_without(edit.info, edit.inode, &parts).await?,
    };
    let new: Vec<Extent> = kept.into_iter().flatten().collect();
    let empties = edit.leaf().count == at - low && new.is_empty();
    let nodes = if empties {
        edit.drop_leaf()?
    } else {
        edit.replace(low, at - low, &new).await?;
        Vec::new()
    };
    match edit.info.cluster_bits() {
        0 => free(edit, &parts).await?,
        _ => free_clusters(edit, &parts, &unused).await?,
    }
    edit.free_nodes(&nodes).await?;
    Ok(Step::Freed)
}

/// The nodes on the way, which change or are freed (their groups' bitmaps and descriptors), the inode, bitmap
/// and descriptor of each group of data; for a hole in the middle of an extent, a split.
fn credits(edit: &Edit<'_>, groups: &Groups, splits: bool) -> u32 {
    let depth = u32::try_from(edit.depth()).unwrap_or(u32::MAX);
    let nodes = depth.saturating_mul(3).saturating_add(1);
    let data = u32::try_from(groups.0.len()).unwrap_or(u32::MAX).saturating_mul(2);
    let split = if splits { replace_credits(edit.depth()) } else { 0 };
    nodes.saturating_add(data).saturating_add(split)
}

/// The groups that parts lie in.
#[derive(Default)]
struct Groups(Vec<GroupNumber>);

impl Groups {
    fn add(&mut self, info: &SuperblockInfo, part: &Extent) {
        let last = part.physical.offset(u64::from(part.len.saturating_sub(1)));
        let (from, to) = (info.group_of_block(part.physical), info.group_of_block(last));
        for group in (from.0..=to.0).map(GroupNumber) {
            if !self.0.contains(&group) {
                self.0.push(group);
            }
        }
    }
}

/// Frees `parts`, which follow each other from the back to the front, adjacent ones together.
async fn free(edit: &mut Edit<'_>, parts: &[Extent]) -> Result<()> {
    let metadata = holds_metadata(edit.inode);
    let mut parts = parts.iter().peekable();
    while let Some(part) = parts.next() {
        let (mut start, mut count) = (part.physical, u64::from(part.len));
        while let Some(before) = parts.next_if(|before| behind(before) == start) {
            start = before.physical;
            count += u64::from(before.len);
        }
        block_allocator::free_blocks(edit.info, edit.transaction, start, count, metadata).await?;
        let sectors = count.saturating_mul(edit.info.block_size().sectors());
        edit.inode.sectors = edit.inode.sectors.saturating_sub(sectors);
    }
    Ok(())
}

/// Frees what `parts`, which are unmapped now, leave `unused`. All of their blocks are forgotten: the rest of
/// a cluster may be freed by a later step, which does not know of them.
async fn free_clusters(edit: &mut Edit<'_>, parts: &[Extent], unused: &[(BlockNumber, u64)]) -> Result<()> {
    if holds_metadata(edit.inode) {
        for part in parts {
            for block in 0..u64::from(part.len) {
                edit.info.cache.forget(edit.transaction, part.physical.offset(block))?;
            }
        }
    }
    for (first, count) in unused {
        let count = (*count).min(edit.info.blocks_count().saturating_sub(first.0));
        block_allocator::free_blocks(edit.info, edit.transaction, *first, count, false).await?;
        let clusters = count.div_ceil(1 << edit.info.cluster_bits());
        let sectors = clusters.saturating_mul(edit.info.cluster_sectors());
        edit.inode.sectors = edit.inode.sectors.saturating_sub(sectors);
    }
    Ok(())
}

fn behind(extent: &Extent) -> BlockNumber {
    extent.physical.offset(u64::from(extent.len))
}
