//! Collapse range and insert range move extents along the file: towards its start over a range that was taken
//! out (collapse), towards its end to make room (insert). Only the logical blocks of extents change; no block
//! is allocated but for the one split.
//!
//! ```text
//!   left    [ a ][ hole ][ b ][ c ]  →  [ a ][ b ][ hole ][ c ]  →  [ a ][ b ][ c ]  front to back
//!   right   [ a ][ b ][ c ]          →  [ a ][ b ][ hole ][ c ]  →  [ a ][ hole ][ b ][ c ]  back to front
//! ```
//!
//! Invariant: a step moves all extents of one leaf, in one change of that leaf and of the keys above it, into
//! a hole that is as long as the way they go. So after every step the tree is whole, and a transaction may
//! end there: what a crash shows then is a file with the hole somewhere between its place before and its
//! place afterwards.

use super::edit::{Edit, has_credits};
use super::path;
use crate::error::{Errno, Error, Result};
use crate::format::extent::Extent;
use crate::format::inode::Inode;
use crate::meta::{SuperblockInfo, Transaction};
use crate::types::LogicalBlock;

/// How far a shift came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shift {
    /// Everything has moved.
    Done,
    /// The transaction's credits ran low: log the inode, begin another transaction, and go on at this block.
    More(LogicalBlock),
}

/// Moves every extent that starts at `from` or behind it `by` blocks towards the start of the file. The `by`
/// blocks in front of `from` are a hole. Goes on, after [`Shift::More`], with the block it names as `from`.
///
/// Changes one leaf and the nodes above it per step: works with [`crate::meta::credits::EXTENT`] credits and
/// asks for more as long as the transaction has room.
///
/// # Errors
/// - `EINVAL` if something is mapped in front of `from`, corrupt if the tree is damaged.
/// - Those of the device.
///
/// The tree is whole then.
pub async fn shift_left(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    from: LogicalBlock,
    by: u32,
) -> Result<Shift> {
    let mut from = from;
    while from <= LogicalBlock::MAX {
        let mut edit = Edit::find(info, transaction, inode, from).await?;
        let mut first = edit.leaf().at;
        while let Some(before) = first.checked_sub(1)
            && edit.extent(before)?.is_some_and(|extent| extent.logical >= from)
        {
            first = before;
        }
        let next = edit.leaf().range.end;
        let count = edit.leaf().count;
        if first < count {
            if !has_credits(transaction, edit.depth() as u32 + 2)? {
                return Ok(Shift::More(from));
            }
            let before = match first.checked_sub(1) {
                Some(before) => edit.extent(before)?,
                None => None,
            };
            let mut moved = moved(&edit, first..count, |block| block.checked_sub(by))?;
            if before.zip(moved.first()).is_some_and(|(before, first)| before.end() > first.logical) {
                return Err(occupied(&edit, from));
            }
            // If the way was cut open once and is closed again, two extents become one.
            match before.zip(moved.first()).and_then(|(before, first)| before.merged(first)) {
                Some(merged) => {
                    moved[0] = merged;
                    edit.replace(first - 1, count - first + 1, &moved).await?;
                }
                None => edit.replace(first, count - first, &moved).await?,
            }
        }
        // The next leaf has not moved: it starts where its key says.
        from = next;
    }
    Ok(Shift::Done)
}

/// Cuts the extent that reaches over `at` in two, so that [`shift_right`] can begin there. Nothing if none
/// does.
///
/// [`crate::meta::credits::EXTENT`] credits are enough.
///
/// # Errors
/// `ENOSPC` if a node is needed and there is no block for it: nothing was changed. Those of the device.
pub async fn split_at(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    at: LogicalBlock,
) -> Result<()> {
    let mut edit = Edit::find(info, transaction, inode, at).await?;
    let Some(position) = edit.leaf().at.checked_sub(1) else { return Ok(()) };
    let Some(extent) = edit.extent(position)? else { return Ok(()) };
    let parts = (extent.part(extent.logical, at), extent.part(at, extent.end()));
    if let (Some(front), Some(behind)) = parts {
        edit.replace(position, 1, &[front, behind]).await?;
    }
    Ok(())
}

/// Moves every extent that starts at `start` or behind it, and before `limit`, `by` blocks towards the end of
/// the file, the last ones first. No extent reaches over `start` ([`split_at`]). Begins with the end of all
/// files as `limit`, and goes on, after [`Shift::More`], with the block it names.
///
/// Credits as for [`shift_left`].
///
/// # Errors
/// - `EFBIG` if an extent would lie past the last block a file can have, corrupt if the tree is damaged.
/// - Those of the device.
///
/// The tree is whole then.
pub async fn shift_right(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    start: LogicalBlock,
    limit: LogicalBlock,
    by: u32,
) -> Result<Shift> {
    let mut limit = limit;
    while limit > start {
        let last = LogicalBlock(limit.0 - 1);
        let mut edit = Edit::find(info, transaction, inode, last).await?;
        let end = edit.leaf().at;
        let mut first = end;
        while let Some(before) = first.checked_sub(1)
            && edit.extent(before)?.is_some_and(|extent| extent.logical >= start)
        {
            first = before;
        }
        if first == end {
            break;
        }
        if !has_credits(transaction, edit.depth() as u32 + 2)? {
            return Ok(Shift::More(limit));
        }
        let lowest = edit.extent(first)?.map_or(start, |extent| extent.logical);
        let after = edit.extent(end)?;
        let moved = moved(&edit, first..end, |block| block.checked_add(by))?;
        if moved.last().zip(after).is_some_and(|(last, after)| last.end() > after.logical) {
            return Err(occupied(&edit, limit));
        }
        edit.replace(first, end - first, &moved).await?;
        limit = lowest;
    }
    Ok(Shift::Done)
}

/// The last extent of the file.
///
/// # Errors
/// As [`super::lookup`].
pub async fn last_extent(info: &SuperblockInfo, inode: &Inode) -> Result<Option<Extent>> {
    Ok(path::locate(info, inode, LogicalBlock::MAX).await?.before)
}

/// Extents `range` of the leaf, elsewhere.
fn moved(
    edit: &Edit<'_>,
    range: std::ops::Range<usize>,
    to: impl Fn(u32) -> Option<u32>,
) -> Result<Vec<Extent>> {
    let mut moved = Vec::with_capacity(range.len());
    for at in range {
        let Some(extent) = edit.extent(at)? else { break };
        let past = || {
            let what =
                format!("inode {}: moving blocks {}+{}", edit.inode.number, extent.logical, extent.len);
            Error::posix(Errno::EFBIG, what)
        };
        let logical = to(extent.logical.0).ok_or_else(past)?;
        logical.checked_add(extent.len).ok_or_else(past)?;
        moved.push(Extent { logical: LogicalBlock(logical), ..extent });
    }
    Ok(moved)
}

fn occupied(edit: &Edit<'_>, at: LogicalBlock) -> Error {
    let what = format!("inode {}: the blocks beside {at} are mapped", edit.inode.number);
    Error::posix(Errno::EINVAL, what)
}
