//! Extent insertion (`ext4_ext_insert_extent`): mapping blocks that were a hole.

use super::edit::Edit;
use super::{check_range, cluster};
use crate::error::{Errno, Error, Result};
use crate::format::extent::Extent;
use crate::format::inode::Inode;
use crate::meta::{SuperblockInfo, Transaction};
use crate::types::{BlockNumber, LogicalBlock};

/// Maps `len` blocks at `logical`, which are a hole, to `physical`. Merges with neighbours, allocates and
/// splits nodes. Adds what nodes take, and `len` blocks (with bigalloc the clusters that the file did not
/// have), to `inode.sectors`. `len` at most 32,768 (32,767 unwritten).
///
/// Needs at most [`crate::meta::credits::EXTENT`] credits.
///
/// # Errors
/// `ENOSPC` if a node is needed and there is no block for it, `EINVAL` for a wrong length, corrupt if
/// something is mapped there already: the tree is as it was.
pub async fn insert(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    logical: LogicalBlock,
    physical: BlockNumber,
    len: u32,
    unwritten: bool,
) -> Result<()> {
    check_range(inode, logical, len)?;
    if len > Extent::max_len(unwritten) {
        return Err(Error::posix(
            Errno::EINVAL,
            format!("inode {}: an extent of {len} blocks", inode.number),
        ));
    }
    let mapped = Extent { logical, len, physical, unwritten };
    let sectors = cluster::added_sectors(info, inode, &mapped).await?;
    let mut edit = Edit::find(info, transaction, inode, logical).await?;
    let at = edit.leaf().at;
    let before = match at.checked_sub(1) {
        Some(before) => edit.extent(before)?,
        None => None,
    };
    let after = edit.extent(at)?;
    let mut new = mapped;
    let next = after.map_or(edit.leaf().range.end, |after| after.logical);
    if before.is_some_and(|before| before.end() > logical) || new.end() > next {
        return Err(Error::corrupt(
            format!("inode {}: extent tree", edit.inode.number),
            format!("blocks {logical}+{len} are mapped already"),
        ));
    }
    let (mut first, mut removed) = (at, 0);
    if let Some(merged) = before.and_then(|before| before.merged(&new)) {
        new = merged;
        first -= 1;
        removed += 1;
    }
    if let Some(merged) = after.and_then(|after| new.merged(&after)) {
        new = merged;
        removed += 1;
    }
    edit.replace(first, removed, &[new]).await?;
    inode.sectors += sectors;
    Ok(())
}
