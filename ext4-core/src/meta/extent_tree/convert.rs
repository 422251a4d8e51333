//! Unwritten extents become written when their data is on the device, and written ones unwritten when a range
//! is zeroed.
//!
//! ```text
//!   before   [ unwritten                    ]        [ written ][ unwritten           ]
//!   range          [=========]                                  [=========]
//!   after    [unwr.][ written ][  unwritten ]        [ written            ][unwritten ]
//! ```

use super::edit::{Edit, collapse, has_credits, replace_credits};
use super::{Removal, check_range};
use crate::error::{Errno, Error, Result};
use crate::format::extent::{Extent, MAX_UNWRITTEN_LEN};
use crate::format::inode::Inode;
use crate::meta::{SuperblockInfo, Transaction};
use crate::types::LogicalBlock;

/// What a conversion makes of extents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conversion {
    /// Their data is on the device.
    ToWritten,
    /// They are to read as zeros.
    ToUnwritten,
}

/// Makes the unwritten blocks among `logical..logical + len` written; splits and merges. Holes are left
/// alone; written ones are fine.
///
/// [`crate::meta::credits::EXTENT`] credits are enough for a range that is one piece on the device: it lies
/// in few extents, of which only the two at its ends can need a split. For other ranges there is
/// [`convert_step`].
///
/// # Errors
/// - `ENOSPC` if a split needs a node and there is no block for it: that extent, and those behind it, are as
///   they were. Those before it are converted, and the inode must be logged as after a success.
/// - `ENOSPC` too if the range has so many pieces that the transaction has no room for them.
pub async fn convert_to_written(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    logical: LogicalBlock,
    len: u32,
) -> Result<()> {
    convert(info, transaction, inode, logical, len, Conversion::ToWritten).await
}

/// Makes the written blocks among `logical..logical + len` unwritten: they read as zeros, and stay allocated.
///
/// # Errors
/// As [`convert_to_written`].
pub async fn convert_to_unwritten(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    logical: LogicalBlock,
    len: u32,
) -> Result<()> {
    convert(info, transaction, inode, logical, len, Conversion::ToUnwritten).await
}

async fn convert(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    logical: LogicalBlock,
    len: u32,
    conversion: Conversion,
) -> Result<()> {
    match convert_step(info, transaction, inode, logical, len, conversion).await? {
        Removal::Done => Ok(()),
        Removal::More => Err(Error::posix(
            Errno::ENOSPC,
            format!("inode {}: converting blocks {logical}+{len}: no room in the journal", inode.number),
        )),
    }
}

/// Converts blocks of `logical..logical + len` from the front on, as far as the transaction's credits reach:
/// a call with the same range goes on where this one stopped.
///
/// # Errors
/// As [`convert_to_written`], but for the room in the transaction.
pub async fn convert_step(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    logical: LogicalBlock,
    len: u32,
    conversion: Conversion,
) -> Result<Removal> {
    check_range(inode, logical, len)?;
    let unwritten = conversion == Conversion::ToUnwritten;
    let end = logical.offset(len);
    let mut from = logical;
    let mut shrunk = false;
    while from < end {
        let mut edit = Edit::find(info, transaction, inode, from).await?;
        let covering = match edit.leaf().at.checked_sub(1) {
            Some(at) => edit.extent(at)?.filter(|extent| extent.end() > from).map(|extent| (at, extent)),
            None => None,
        };
        let Some((at, extent)) = covering else {
            let next = edit.extent(edit.leaf().at)?;
            from = next.map_or(edit.leaf().range.end, |next| next.logical);
            continue;
        };
        let Some(part) = extent.part(from, end).filter(|_| extent.unwritten != unwritten) else {
            from = extent.end();
            continue;
        };
        let replacement = Replacement::new(&edit, at, &extent, &part, unwritten)?;
        let grows = replacement.new.len() > replacement.removed;
        let credits = if grows { replace_credits(edit.depth()) } else { edit.depth() as u32 + 2 };
        if !has_credits(transaction, credits)? {
            return Ok(Removal::More);
        }
        shrunk |= replacement.new.len() < replacement.removed;
        edit.replace(replacement.first, replacement.removed, &replacement.new).await?;
        from = part.end();
    }
    if shrunk {
        collapse(info, transaction, inode).await?;
    }
    Ok(Removal::Done)
}

/// Which extents of a leaf are replaced by which.
struct Replacement {
    first: usize,
    removed: usize,
    new: Vec<Extent>,
}

impl Replacement {
    /// `part` of `extent`, the leaf's number `at`, changes its state. What is left of the extent stays; the
    /// part joins the neighbours that it can.
    fn new(edit: &Edit<'_>, at: usize, extent: &Extent, part: &Extent, unwritten: bool) -> Result<Self> {
        let left = extent.part(extent.logical, part.logical);
        let right = extent.part(part.end(), extent.end());
        let mut middle = Extent { unwritten, ..*part };
        let (mut first, mut removed) = (at, 1);
        if left.is_none()
            && let Some(before) = at.checked_sub(1)
            && let Some(merged) = edit.extent(before)?.and_then(|before| before.merged(&middle))
        {
            middle = merged;
            first = before;
            removed += 1;
        }
        if right.is_none()
            && let Some(merged) = edit.extent(at + 1)?.and_then(|after| middle.merged(&after))
        {
            middle = merged;
            removed += 1;
        }
        let mut new = Vec::with_capacity(4);
        new.extend(left);
        // A written extent can be one block longer than an unwritten one.
        let limit = if unwritten { middle.logical.offset(MAX_UNWRITTEN_LEN) } else { middle.end() };
        new.extend(middle.part(middle.logical, limit));
        new.extend(middle.part(limit, middle.end()));
        new.extend(right);
        Ok(Self { first, removed, new })
    }
}
