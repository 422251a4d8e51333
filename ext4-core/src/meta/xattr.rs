//! Extended attributes, in the inode and in a block.
//!
//! An attribute is set in the inode if it fits, else in the block; it is in one of the two only. The block
//! may be shared with other inodes (the kernel shares equal blocks): it is changed in place only by its last
//! owner, others make a copy and leave.
//!
//! Invariant: whether a shared block has other owners is decided inside the change of its count, under the
//! buffer's lock: two inodes that leave at once cannot both take the other for its last owner, and neither
//! leaks nor frees twice.
//!
//! Invariant: the part that can fail for want of space (the block) is done before the inode's own part
//! changes.
//!
//! POSIX access control lists are attributes with a form of their own on the device; see
//! [`crate::format::xattr::acl`].

use super::block_allocator::{AllocationRequest, allocate_blocks, free_blocks};
use super::{BlockKind, Buffer, SuperblockInfo, Transaction, Verifier};
use crate::device::BlockImage;
use crate::error::{Errno, Error, Result};
use crate::format::features::Compat;
use crate::format::inode::{FileType, Inode};
use crate::format::xattr::acl::Acl;
use crate::format::xattr::{self as format, Attribute, Attributes, Prefix, Value};
use crate::types::BlockNumber;

/// Bytes of an inode that every file system has; attributes and the extra fields lie behind them.
const GOOD_OLD_INODE_SIZE: usize = 128;
/// The longest name, prefix included.
const MAX_NAME_LEN: usize = 255;

/// What to do when the attribute is there or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetMode {
    /// Create or replace.
    Any,
    /// `EEXIST` if it is there.
    Create,
    /// `ENODATA` if it is not there.
    Replace,
}

/// The value of the attribute `name` (full name with its prefix: `user.colour`); `None` if it is not there.
/// POSIX ACLs (`system.posix_acl_access`) are returned in the form of the system call, as the kernel does.
///
/// # Errors
/// - `EOPNOTSUPP` for an unknown prefix and for values in inodes of their own (feature ea_inode).
/// - `ERANGE`, `EINVAL` for what is no name.
/// - Corrupt if what is read contradicts itself.
/// - Those of the device.
pub async fn get(info: &SuperblockInfo, inode: &Inode, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let (prefix, rest) = split_name(name)?;
    if let Some(attribute) = find(format::in_inode(&inode.xattr_area), prefix, rest, inode, "in the inode")? {
        return value_of(inode, prefix, &attribute).map(Some);
    }
    let Some(buffer) = read_block(info, inode).await? else { return Ok(None) };
    let image = buffer.image();
    match find(format::in_block(&image), prefix, rest, inode, "in its block")? {
        Some(attribute) => value_of(inode, prefix, &attribute).map(Some),
        None => Ok(None),
    }
}

/// All names, with their prefixes; those with a prefix that no system call can name are left out.
///
/// # Errors
/// - Corrupt if what is read contradicts itself.
/// - Those of the device.
pub async fn list(info: &SuperblockInfo, inode: &Inode) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    let mut collect = |attributes: Attributes<'_>, place| -> Result<()> {
        for attribute in attributes {
            let attribute = attribute.map_err(|problem| corrupt(inode, place, problem))?;
            if let Some(prefix) = Prefix::from_byte(attribute.prefix) {
                names.push([prefix.text(), attribute.name].concat());
            }
        }
        Ok(())
    };
    collect(format::in_inode(&inode.xattr_area), "in the inode")?;
    if let Some(buffer) = read_block(info, inode).await? {
        collect(format::in_block(&buffer.image()), "in its block")?;
    }
    Ok(names)
}

/// Sets (`Some`) or removes (`None`) an attribute; in the inode if it fits, else in the block. Changes
/// `xattr_area`, `file_acl`, `sectors` of `inode`.
///
/// An access control list (`system.posix_acl_access`, in the form of the system call) also changes the
/// permission bits of `mode`; if these say all of it, no attribute is kept, and an empty list removes the
/// attribute.
///
/// # Errors
/// `ENODATA`, `EEXIST`, `ERANGE` (name too long), `EOPNOTSUPP` (prefix), `EINVAL` (no name, a broken list),
/// `EACCES` (a default list on what is no directory), `ENOSPC` (no room, also for a value larger than a
/// block).
pub async fn set(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    name: &[u8],
    value: Option<&[u8]>,
    mode: SetMode,
) -> Result<()> {
    let (prefix, rest) = split_name(name)?;
    let Some(given) = value.filter(|_| prefix.is_acl()) else {
        return set_raw(info, transaction, inode, (prefix, rest), value, mode).await;
    };
    let broken = |problem: format::Problem| Error::posix(Errno::EINVAL, problem.into_owned());
    let acl = Acl::from_call(given).map_err(broken)?;
    match (prefix, inode.file_type()) {
        (_, Some(FileType::Symlink)) => {
            return Err(Error::posix(Errno::EOPNOTSUPP, "an access control list of a symlink"));
        }
        (Prefix::DefaultAcl, kind) if kind != Some(FileType::Directory) && acl.is_some() => {
            return Err(Error::posix(Errno::EACCES, "a default access control list of what is no directory"));
        }
        _ => {}
    }
    let (kept, permissions) = match &acl {
        Some(acl) if prefix == Prefix::AccessAcl => {
            let (permissions, complete) = acl.mode();
            ((!complete).then(|| acl.to_disk()), Some(permissions))
        }
        Some(acl) => (Some(acl.to_disk()), None),
        None => (None, None),
    };
    let result = set_raw(info, transaction, inode, (prefix, rest), kept.as_deref(), mode).await;
    match result {
        // Nothing to keep and nothing to remove.
        Err(error) if kept.is_none() && mode == SetMode::Any && error.errno() == Errno::ENODATA => {}
        other => other?,
    }
    if let Some(permissions) = permissions {
        inode.mode = (inode.mode & !0o777) | permissions;
    }
    Ok(())
}

/// Gives up the attribute block of an inode that is being deleted: `file_acl` is 0 afterwards, `sectors`
/// less.
///
/// # Errors
/// - Corrupt if what is read contradicts itself.
/// - Those of the device and of the transaction.
pub async fn release_block(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
) -> Result<()> {
    let Some(buffer) = read_block(info, inode).await? else { return Ok(()) };
    leave(info, transaction, &buffer).await?;
    inode.file_acl = BlockNumber(0);
    inode.sectors = inode.sectors.saturating_sub(info.cluster_sectors());
    Ok(())
}

fn corrupt(inode: &Inode, place: &str, problem: format::Problem) -> Error {
    Error::corrupt(format!("inode {}: extended attributes {place}", inode.number), problem)
}

fn split_name(name: &[u8]) -> Result<(Prefix, &[u8])> {
    let text = || format!("attribute {:?}", String::from_utf8_lossy(name));
    if name.is_empty() || name.len() > MAX_NAME_LEN {
        return Err(Error::posix(Errno::ERANGE, text()));
    }
    let (prefix, rest) = Prefix::split(name).ok_or_else(|| Error::posix(Errno::EOPNOTSUPP, text()))?;
    if (rest.is_empty() && !prefix.is_acl()) || rest.contains(&0) {
        return Err(Error::posix(Errno::EINVAL, text()));
    }
    Ok((prefix, rest))
}

fn find<'a>(
    attributes: Attributes<'a>,
    prefix: Prefix,
    name: &[u8],
    inode: &Inode,
    place: &str,
) -> Result<Option<Attribute<'a>>> {
    for attribute in attributes {
        let attribute = attribute.map_err(|problem| corrupt(inode, place, problem))?;
        if attribute.is(prefix, name) {
            return Ok(Some(attribute));
        }
    }
    Ok(None)
}

fn value_of(inode: &Inode, prefix: Prefix, attribute: &Attribute<'_>) -> Result<Vec<u8>> {
    match attribute.value {
        Value::Here(value) if prefix.is_acl() => {
            let acl =
                Acl::from_disk(value).map_err(|problem| corrupt(inode, "access control list", problem))?;
            Ok(acl.to_call())
        }
        Value::Here(value) => Ok(value.to_vec()),
        Value::Inode(holder) => Err(Error::Unsupported(format!(
            "ea_inode: an attribute of inode {} whose value is in inode {holder}",
            inode.number
        ))),
    }
}

/// The attribute block of an inode, if it has one.
async fn read_block(info: &SuperblockInfo, inode: &Inode) -> Result<Option<Buffer>> {
    let block = inode.file_acl;
    if block.0 == 0 {
        return Ok(None);
    }
    if !info.is_data_range(block, 1) {
        return Err(corrupt(inode, "in its block", format!("block {block} cannot hold them").into()));
    }
    info.cache.read(block, &AttributesVerifier { seed: info.metadata_seed() }).await.map(Some)
}

/// The verifier of a block of attributes. Inodes share such blocks, so none of them is part of it; its own
/// place is.
struct AttributesVerifier {
    seed: Option<u32>,
}

impl Verifier for AttributesVerifier {
    fn kind(&self) -> BlockKind {
        BlockKind::ExtendedAttributes { seed: self.seed }
    }

    fn verify(&self, block: BlockNumber, bytes: &[u8]) -> Result<()> {
        format::verify_block(bytes, block, self.seed)
            .map_err(|problem| Error::corrupt(format!("block {block}: extended attributes"), problem))
    }
}

/// Bytes behind the fixed fields of an inode; none if it does not say how many fixed fields it has.
fn inode_room(info: &SuperblockInfo, inode: &Inode) -> usize {
    if inode.extra_isize == 0 {
        return 0;
    }
    usize::from(info.inode_size())
        .saturating_sub(GOOD_OLD_INODE_SIZE)
        .saturating_sub(usize::from(inode.extra_isize))
}

/// Attributes of one place, one of which is to change.
struct Place<'a> {
    attributes: Vec<Attribute<'a>>,
    /// Where in them the one that changes is.
    found: Option<usize>,
}

impl<'a> Place<'a> {
    fn new(
        attributes: Attributes<'a>,
        inode: &Inode,
        place: &str,
        prefix: Prefix,
        name: &[u8],
    ) -> Result<Self> {
        let attributes =
            attributes.collect::<Result<Vec<_>, _>>().map_err(|problem| corrupt(inode, place, problem))?;
        if attributes.iter().any(|attribute| matches!(attribute.value, Value::Inode(_))) {
            return Err(Error::Unsupported(format!(
                "ea_inode: changing attributes of inode {}",
                inode.number
            )));
        }
        let found = attributes.iter().position(|attribute| attribute.is(prefix, name));
        Ok(Self { attributes, found })
    }

    fn put(&mut self, attribute: Attribute<'a>) {
        match self.found {
            Some(at) => self.attributes[at] = attribute,
            None => self.attributes.push(attribute),
        }
    }

    /// Takes the attribute out; `false` if it was not there.
    fn take(&mut self) -> bool {
        self.found.take().map(|at| self.attributes.remove(at)).is_some()
    }
}

/// Sets or removes an attribute in its form on the device.
async fn set_raw(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    (prefix, name): (Prefix, &[u8]),
    value: Option<&[u8]>,
    mode: SetMode,
) -> Result<()> {
    let area = std::mem::take(&mut inode.xattr_area);
    let result = set_with_area(info, transaction, inode, &area, (prefix, name), value, mode).await;
    let (result, area) = match result {
        Ok(Some(changed)) => (Ok(()), changed),
        Ok(None) => (Ok(()), area),
        Err(error) => (Err(error), area),
    };
    inode.xattr_area = area;
    result
}

/// As [`set_raw`], with the inode's own attributes apart; returns them if they change.
async fn set_with_area(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    area: &[u8],
    (prefix, name): (Prefix, &[u8]),
    value: Option<&[u8]>,
    mode: SetMode,
) -> Result<Option<Vec<u8>>> {
    let mut own = Place::new(format::in_inode(area), inode, "in the inode", prefix, name)?;
    let buffer = read_block(info, inode).await?;
    let image: Option<BlockImage> = buffer.as_ref().map(Buffer::image);
    let attributes = format::in_block(image.as_deref().unwrap_or_default());
    let mut block = match image {
        Some(_) => Place::new(attributes, inode, "in its block", prefix, name)?,
        None => Place { attributes: Vec::new(), found: None },
    };
    let there = own.found.is_some() || block.found.is_some();
    let text = || format!("attribute {:?} of inode {}", String::from_utf8_lossy(name), inode.number);
    match mode {
        SetMode::Create if there => return Err(Error::posix(Errno::EEXIST, text())),
        SetMode::Replace if !there => return Err(Error::posix(Errno::ENODATA, text())),
        _ if value.is_none() && !there => return Err(Error::posix(Errno::ENODATA, text())),
        _ => {}
    }

    let room = inode_room(info, inode);
    let Some(value) = value else {
        if block.take() {
            write_block(info, transaction, inode, buffer.as_ref(), &block.attributes).await?;
        }
        return Ok(if own.take() { format::inode_area(&own.attributes, room) } else { None });
    };
    let attribute = Attribute { prefix: prefix.byte(), name, value: Value::Here(value) };
    let mut with_it = Place { attributes: own.attributes.clone(), found: own.found };
    with_it.put(attribute);
    if let Some(changed) = format::inode_area(&with_it.attributes, room) {
        if block.take() {
            write_block(info, transaction, inode, buffer.as_ref(), &block.attributes).await?;
        }
        return Ok(Some(changed));
    }
    block.put(attribute);
    if !format::fit_in_block(&block.attributes, info.block_size().len()) {
        return Err(Error::posix(Errno::ENOSPC, text()));
    }
    write_block(info, transaction, inode, buffer.as_ref(), &block.attributes).await?;
    Ok(if own.take() { format::inode_area(&own.attributes, room) } else { None })
}

/// Gives an inode a block with these attributes, which fit, in place of `old`: changes that one if no other
/// inode shares it; takes it away if there are no attributes.
async fn write_block(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    old: Option<&Buffer>,
    attributes: &[Attribute<'_>],
) -> Result<()> {
    let fill = |bytes: &mut [u8]| format::fill_block(bytes, attributes, 1);
    let failed = |problem: format::Problem| corrupt(inode, "in a block", problem);
    if attributes.is_empty() {
        return release_block(info, transaction, inode).await;
    }
    if let Some(old) = old
        && old.read(format::references) == 1
    {
        return old.modify(transaction, fill)?.map_err(failed);
    }
    let request =
        AllocationRequest { goal: None, inode: inode.number, len: 1, reserved: false, metadata: false };
    let (block, _) = allocate_blocks(info, transaction, &request).await?;
    let kind = BlockKind::ExtendedAttributes { seed: info.metadata_seed() };
    let new = info.cache.create(transaction, block, kind)?;
    new.modify(transaction, fill)?.map_err(failed)?;
    if let Some(old) = old {
        leave(info, transaction, old).await?;
    } else {
        inode.sectors += info.cluster_sectors();
    }
    inode.file_acl = block;
    announce(info, transaction).await
}

/// One owner less: frees the block if it was the last.
async fn leave(info: &SuperblockInfo, transaction: &dyn Transaction, buffer: &Buffer) -> Result<()> {
    let last = buffer.read(format::references) <= 1
        || buffer.modify(transaction, |bytes| {
            let references = format::references(bytes);
            if references > 1 {
                format::set_references(bytes, references - 1);
            }
            references <= 1
        })?;
    if last {
        free_blocks(info, transaction, buffer.block(), 1, true).await?;
    }
    Ok(())
}

/// The superblock says that there are attribute blocks.
async fn announce(info: &SuperblockInfo, transaction: &dyn Transaction) -> Result<()> {
    if info.features().compat.contains(Compat::EXT_ATTR)
        || info.superblock().features.compat.contains(Compat::EXT_ATTR)
    {
        return Ok(());
    }
    info.modify_superblock(transaction, &mut |superblock| superblock.features.compat.insert(Compat::EXT_ATTR))
        .await
}
