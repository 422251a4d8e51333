//! Data that an inode holds itself (feature `inline_data`): 60 bytes in `i_block`, the rest in the attribute
//! `system.data` among the attributes in the inode.
//!
//! ```text
//!   byte of the data   0                60                 60 + length of the value
//!                      ├─ i_block ──────┼─ value of system.data ─┤
//! ```
//!
//! The attribute is there also if its value is empty: it says, with the flag, that `i_block` holds data and
//! no mapping. It is no attribute that a system call can name, and it never moves to the attribute block.
//!
//! Invariants:
//! - Flag and attribute come and go together, in one change of the inode in memory. Were one to be logged
//!   without the other, a crash would leave an inode whose data cannot be told from a mapping.
//! - The data is never longer than the inode has room for beside its other attributes; a caller that needs
//!   more moves it to a block first. No other attribute is moved out for it, as in the kernel.
//!
//! Source: kernel documentation, "Inline Data"; the room by what `ext4_get_max_inline_size` counts.

use super::{SuperblockInfo, extent_tree};
use crate::error::{Error, Result};
use crate::format::extent::Node;
use crate::format::features::Incompat;
use crate::format::inode::{FileType, Inode, InodeFlags};
use crate::format::xattr::{self, Attribute, Value};

/// Bytes of the data that lie in `i_block`.
pub const IN_BLOCK: usize = 60;
/// e_name_index of `system.`.
const SYSTEM: u8 = 7;
/// Bytes of an inode before its fixed extra fields.
const BASE: usize = 128;

/// Returns true if the inode holds its data itself.
#[must_use]
pub fn is_inline(inode: &Inode) -> bool {
    inode.flags.contains(InodeFlags::INLINE_DATA)
}

fn is_data(attribute: &Attribute<'_>) -> bool {
    attribute.prefix == SYSTEM && attribute.name == b"data"
}

fn corrupt(inode: &Inode, problem: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::corrupt(format!("inode {}: inline data", inode.number), problem.into())
}

/// The inode's attributes but for its data.
fn others<'a>(inode: &Inode, area: &'a [u8]) -> Result<Vec<Attribute<'a>>> {
    let mut attributes = Vec::new();
    for attribute in xattr::in_inode(area) {
        let attribute = attribute.map_err(|problem| corrupt(inode, problem))?;
        if matches!(attribute.value, Value::Inode(_)) {
            return Err(Error::Unsupported(format!(
                "ea_inode: changing the inline data of inode {}",
                inode.number
            )));
        }
        if !is_data(&attribute) {
            attributes.push(attribute);
        }
    }
    Ok(attributes)
}

/// Bytes behind the fixed fields.
fn area_len(info: &SuperblockInfo, inode: &Inode) -> usize {
    match inode.extra_isize {
        0 => 0,
        extra => usize::from(info.inode_size()).saturating_sub(BASE).saturating_sub(usize::from(extra)),
    }
}

/// All bytes the inode holds: at least 60, perhaps more than its size.
///
/// # Errors
/// Corrupt if the attribute is missing or damaged.
pub fn data(inode: &Inode) -> Result<Vec<u8>> {
    for attribute in xattr::in_inode(&inode.xattr_area) {
        let attribute = attribute.map_err(|problem| corrupt(inode, problem))?;
        if is_data(&attribute) {
            let Value::Here(value) = attribute.value else {
                return Err(corrupt(inode, "the attribute system.data is in another inode"));
            };
            return Ok([&inode.i_block, value].concat());
        }
    }
    Err(corrupt(inode, "the attribute system.data is missing"))
}

/// Where the bytes that `i_block` has no room for lie: the first one's place in the inode, and how many they
/// are. `None` if there are none.
///
/// # Errors
/// As [`data`].
pub fn rest(inode: &Inode) -> Result<Option<(usize, usize)>> {
    let value = data(inode)?.len() - IN_BLOCK;
    // The value is the one that `data` found: it lies in the area.
    let found = xattr::in_inode(&inode.xattr_area).flatten().find(is_data).map(|attribute| attribute.value);
    let Some(Value::Here(bytes)) = found else { return Ok(None) };
    let within = bytes.as_ptr().addr().wrapping_sub(inode.xattr_area.as_ptr().addr());
    let fixed = BASE + usize::from(inode.extra_isize);
    Ok((value > 0).then_some((fixed + within, value)))
}

/// How many bytes an inode without other attributes can hold; 0 if not even an empty `system.data` fits.
#[must_use]
pub fn most(inode_size: u16, extra_isize: u16) -> usize {
    let len = usize::from(inode_size).saturating_sub(BASE).saturating_sub(usize::from(extra_isize));
    let len = if extra_isize == 0 { 0 } else { len };
    room_beside(&[], len).map_or(0, |room| IN_BLOCK + room)
}

/// How many bytes the inode can hold beside its other attributes; 0 if not even an empty `system.data` fits.
///
/// # Errors
/// - Corrupt if what is read contradicts itself.
/// - Unsupported if attributes have values in inodes of their own.
pub fn capacity(info: &SuperblockInfo, inode: &Inode) -> Result<usize> {
    let attributes = others(inode, &inode.xattr_area)?;
    Ok(room_beside(&attributes, area_len(info, inode)).map_or(0, |room| IN_BLOCK + room))
}

fn room_beside(attributes: &[Attribute<'_>], len: usize) -> Option<usize> {
    let mut with_it = attributes.to_vec();
    with_it.push(data_attribute(&[]));
    let used = xattr::len_in_inode(&with_it);
    // Values lie at multiples of four bytes.
    len.checked_sub(used).map(|room| room & !3)
}

fn data_attribute(value: &[u8]) -> Attribute<'_> {
    Attribute { prefix: SYSTEM, name: b"data", value: Value::Here(value) }
}

/// Makes `bytes` the inode's data, in place of what it maps or holds: the caller has seen to it that it maps
/// nothing. Changes flags, `i_block` and `xattr_area`, not the size. Returns false, and changes nothing, if
/// they do not fit.
///
/// # Errors
/// As [`capacity`].
pub fn store(info: &SuperblockInfo, inode: &mut Inode, bytes: &[u8]) -> Result<bool> {
    let (head, rest) = bytes.split_at(bytes.len().min(IN_BLOCK));
    let area = {
        let mut attributes = others(inode, &inode.xattr_area)?;
        attributes.push(data_attribute(rest));
        xattr::inode_area(&attributes, area_len(info, inode))
    };
    let Some(area) = area else { return Ok(false) };
    inode.xattr_area = area;
    inode.i_block = [0; IN_BLOCK];
    inode.i_block[..head.len()].copy_from_slice(head);
    inode.flags.remove(InodeFlags::EXTENTS);
    inode.flags.insert(InodeFlags::INLINE_DATA);
    Ok(true)
}

/// Takes the data out of the inode: it maps nothing afterwards, by extents if the file system has them.
/// Changes flags, `i_block` and `xattr_area`.
///
/// # Errors
/// - As [`capacity`].
///
/// Nothing is changed then.
pub fn clear(info: &SuperblockInfo, inode: &mut Inode) -> Result<()> {
    let area = xattr::inode_area(&others(inode, &inode.xattr_area)?, area_len(info, inode));
    inode.xattr_area = area.ok_or_else(|| corrupt(inode, "the other attributes do not fit"))?;
    inode.i_block = [0; IN_BLOCK];
    inode.flags.remove(InodeFlags::INLINE_DATA);
    if info.features().incompat.contains(Incompat::EXTENTS) {
        extent_tree::initialize(inode);
    }
    Ok(())
}

/// Returns true if an inode that holds nothing could hold its data itself: the feature is on, it is a file or
/// directory of no bytes and no blocks.
#[must_use]
pub fn may_become_inline(info: &SuperblockInfo, inode: &Inode) -> bool {
    let maps_nothing = match inode.uses_extents() {
        true => Node::new(&inode.i_block).is_some_and(|root| root.depth() == 0 && root.entries().is_empty()),
        false => inode.i_block == [0; IN_BLOCK],
    };
    info.features().incompat.contains(Incompat::INLINE_DATA)
        && matches!(inode.file_type(), Some(FileType::Regular | FileType::Directory))
        && !is_inline(inode)
        && inode.size == 0
        && maps_nothing
        && !inode.flags.contains(InodeFlags::JOURNAL_DATA)
}
