//! Directories, linear and hashed.
//!
//! | file | owns |
//! |---|---|
//! | `blocks` | from a logical block of a directory to its verified buffer; appending a block |
//! | `linear` | walking all blocks, finding a place for a name block by block |
//! | `inline` | directories that lie in their inode |
//! | `htree` | from a name's hash to its leaf, through the index |
//! | `split` | making a hashed directory of a linear one, splitting leaves and nodes |
//! | `read` | listing |
//!
//! Names are compared byte by byte. The caller holds the lock of the directory (the kernel's `i_rwsem`): for
//! reading in [`lookup`], [`read`] and [`is_empty`], for writing in the others.
//!
//! Invariant: whatever a function has changed when it returns, with success or with an error such as
//! `ENOSPC`, is a consistent directory, provided the caller logs the inode in the same transaction *in both
//! cases*. (A directory that was made hashed before the device was full has its INDEX flag only in the
//! inode.)
//!
//! Invariant: an entry never moves to a lower position within its block, and to another block only towards
//! the end of the directory. Were this wrong, a reader that lists a directory in steps while others add to it
//! could miss a name that was there all the time.

mod blocks;
mod htree;
mod inline;
mod linear;
mod read;
mod split;

pub use read::{DirectoryEntry, is_empty, read};

use super::inline_data::is_inline;
use super::{Buffer, SuperblockInfo, Transaction};
use crate::error::{Errno, Error, Result};
use crate::format::directory::leaf::Found;
use crate::format::directory::{Layout, MAX_NAME_LEN};
use crate::format::features::{Compat, Incompat};
use crate::format::hash::{HashVersion, Hasher};
use crate::format::inode::{FileType, Inode, InodeFlags};
use crate::format::superblock::FLAG_UNSIGNED_HASH;
use crate::types::InodeNumber;

/// What every function here needs to know of a directory besides its inode.
#[derive(Clone, Copy)]
struct Directory<'a> {
    info: &'a SuperblockInfo,
    layout: Layout,
    /// True if the directory has an index that this file system uses.
    indexed: bool,
}

impl<'a> Directory<'a> {
    fn new(info: &'a SuperblockInfo, inode: &Inode) -> Result<Self> {
        if !inode.is_dir() {
            return Err(Error::posix(Errno::ENOTDIR, format!("inode {}", inode.number)));
        }
        let features = info.features();
        if inode.flags.intersects(InodeFlags::ENCRYPT | InodeFlags::CASEFOLD) {
            let context = format!("directory {}: encryption or case folding", inode.number);
            return Err(Error::Unsupported(context));
        }
        let indexed = inode.flags.contains(InodeFlags::INDEX) && features.compat.contains(Compat::DIR_INDEX);
        let layout =
            Layout::new(info.block_size(), features, info.checksum_seed(), info.inodes_count(), inode);
        Ok(Self { info, layout, indexed })
    }

    /// The hasher of a directory whose root says `version`.
    fn hasher(&self, version: HashVersion) -> Hasher {
        let superblock = &self.info.fixed;
        let unsigned = superblock.flags & FLAG_UNSIGNED_HASH != 0;
        Hasher::new(version.with_unsigned(unsigned), superblock.hash_seed)
    }
}

/// Where a name lies.
struct Located {
    buffer: Buffer,
    found: Found,
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > MAX_NAME_LEN {
        return Err(Error::posix(Errno::ENAMETOOLONG, format!("a name of {} bytes", name.len())));
    }
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return Err(Error::posix(Errno::EINVAL, format!("name {:?}", String::from_utf8_lossy(name))));
    }
    Ok(())
}

fn no_entry(inode: &Inode, name: &[u8]) -> Error {
    let name = String::from_utf8_lossy(name);
    Error::posix(Errno::ENOENT, format!("{name:?} in directory {}", inode.number))
}

/// Makes `directory`, a new inode with no blocks, a directory with `.` and `..`: one block, or none if it can
/// lie in its inode (`inline_data`). Makes it extent-mapped first if the file system has extents. Changes
/// size, sectors, flags and i_block, not links.
///
/// # Errors
/// - `ENOSPC` if there is no free space.
/// - Those of the device and of the transaction.
pub async fn initialize(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    directory: &mut Inode,
    parent: InodeNumber,
) -> Result<()> {
    if inline::initialize(info, directory, parent)? {
        return Ok(());
    }
    initialize_in_block(info, transaction, directory, parent).await
}

/// As [`initialize`], always with a block: the kernel takes a root directory without blocks for a corrupt
/// one.
///
/// # Errors
/// As [`initialize`].
pub async fn initialize_in_block(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    directory: &mut Inode,
    parent: InodeNumber,
) -> Result<()> {
    if info.features().incompat.contains(Incompat::EXTENTS) && !directory.flags.contains(InodeFlags::EXTENTS)
    {
        super::extent_tree::initialize(directory);
    }
    let this = Directory::new(info, directory)?;
    let number = directory.number.0;
    let (_, buffer) = this.append(transaction, directory, this.leaf_kind()).await?;
    let kind = FileType::Directory.directory_byte();
    let entries = [(b".".as_slice(), number, kind), (b"..".as_slice(), parent.0, kind)];
    this.write_leaf(transaction, &buffer, &entries)
}

/// Adds an empty block at the end of a directory that has no index: what `lost+found` is given beforehand, so
/// that a checker can put names there without allocating.
///
/// # Errors
/// - `ENOSPC`, `EINVAL` if the directory is hashed.
/// - Those of the device and of the transaction.
pub async fn preallocate_block(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    directory: &mut Inode,
) -> Result<()> {
    let this = Directory::new(info, directory)?;
    if is_inline(directory) {
        Box::pin(this.move_to_block(transaction, directory)).await?;
    }
    if directory.flags.contains(InodeFlags::INDEX) {
        return Err(Error::posix(Errno::EINVAL, format!("directory {} is hashed", directory.number)));
    }
    let (_, buffer) = this.append(transaction, directory, this.leaf_kind()).await?;
    this.write_leaf(transaction, &buffer, &[])
}

/// Finds a name. O(log n) in a hashed directory.
///
/// # Errors
/// - `ENAMETOOLONG`, `EINVAL` for what is no name.
/// - Corrupt if what is read contradicts itself.
/// - Those of the device.
pub async fn lookup(
    info: &SuperblockInfo,
    directory: &Inode,
    name: &[u8],
) -> Result<Option<(InodeNumber, Option<FileType>)>> {
    check_name(name)?;
    let this = Directory::new(info, directory)?;
    if is_inline(directory) {
        return Ok(this.locate_inline(directory, name)?.map(|found| (found.inode, found.file_type)));
    }
    let located = this.locate(directory, name).await?;
    Ok(located.map(|located| (InodeNumber(located.found.inode), located.found.file_type)))
}

/// Adds a name that is not there. A linear directory that outgrows one block becomes hashed (`dir_index`).
/// May grow the directory: changes size, sectors, flags, i_block of `directory`, not its times or links. The
/// caller logs the inode, *also when an error is returned*.
///
/// # Errors
/// - `ENAMETOOLONG`, `EINVAL` for what is no name.
/// - `ENOSPC`, also if the index is full.
/// - `EEXIST` if the name is found in passing (the caller looks it up first).
/// - Corrupt if what is read contradicts itself.
/// - Those of the device and of the transaction.
pub async fn add(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    directory: &mut Inode,
    name: &[u8],
    inode: InodeNumber,
    file_type: FileType,
) -> Result<()> {
    check_name(name)?;
    let entry = NewEntry { name, inode: inode.0, file_type };
    let this = Directory::new(info, directory)?;
    if is_inline(directory) {
        if this.add_inline(directory, &entry)? {
            return Ok(());
        }
        Box::pin(this.move_to_block(transaction, directory)).await?;
    }
    let may_index = if this.indexed {
        match this.add_hashed(transaction, directory, &entry).await? {
            htree::Probe::Done(()) => return Ok(()),
            // The kernel, too, gives up an index it cannot use, if no checksum says that it was meant so.
            htree::Probe::Unusable(problem) if this.layout.checksum_seed.is_some() => {
                return Err(this.corrupt(directory, 0, problem));
            }
            htree::Probe::Unusable(_) => false,
        }
    } else {
        info.features().compat.contains(Compat::DIR_INDEX)
    };
    if directory.flags.contains(InodeFlags::INDEX) {
        if this.layout.checksum_seed.is_some() {
            return Err(this.corrupt(directory, 0, "hashed, without the feature dir_index".into()));
        }
        directory.flags.remove(InodeFlags::INDEX);
    }
    let this = Directory { indexed: false, ..this };
    this.add_linear(transaction, directory, &entry, may_index).await
}

/// Removes a name and says which inode it named. The directory does not shrink. The caller logs the inode: an
/// inline directory's names lie in it.
///
/// # Errors
/// - `ENOENT` if it is not there.
/// - `EINVAL` for `.` and `..`.
/// - As [`lookup`].
/// - Those of the transaction.
pub async fn remove(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    directory: &mut Inode,
    name: &[u8],
) -> Result<InodeNumber> {
    check_name(name)?;
    if matches!(name, b"." | b"..") {
        return Err(Error::posix(Errno::EINVAL, format!("removing {:?}", String::from_utf8_lossy(name))));
    }
    let this = Directory::new(info, directory)?;
    if is_inline(directory) {
        return this.remove_inline(directory, name);
    }
    let located = this.locate(directory, name).await?.ok_or_else(|| no_entry(directory, name))?;
    located
        .buffer
        .modify(transaction, |block| this.layout.remove(block, &located.found))?
        .map_err(|problem| this.corrupt_block(directory, &located.buffer, problem))?;
    Ok(InodeNumber(located.found.inode))
}

/// Makes an existing name (also `..`) point to another inode. The caller logs the directory's inode as well:
/// the names of an inline one lie in it.
///
/// # Errors
/// - `ENOENT` if it is not there.
/// - As [`lookup`].
/// - Those of the transaction.
pub async fn replace(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    directory: &mut Inode,
    name: &[u8],
    inode: InodeNumber,
    file_type: FileType,
) -> Result<()> {
    check_name(name)?;
    let this = Directory::new(info, directory)?;
    if is_inline(directory) {
        return this.replace_inline(directory, name, inode, file_type);
    }
    let located = this.locate(directory, name).await?.ok_or_else(|| no_entry(directory, name))?;
    located.buffer.modify(transaction, |block| {
        this.layout.set_inode(block, located.found.offset, inode.0, file_type);
    })
}

/// What [`add`] adds.
struct NewEntry<'a> {
    name: &'a [u8],
    inode: u32,
    file_type: FileType,
}

impl Directory<'_> {
    /// Where `name` lies, through the index if there is one.
    async fn locate(&self, inode: &Inode, name: &[u8]) -> Result<Option<Located>> {
        if matches!(name, b"." | b"..") {
            return self.locate_in_first_block(inode, name).await;
        }
        if self.indexed {
            match self.locate_hashed(inode, name).await? {
                htree::Probe::Done(located) => return Ok(located),
                htree::Probe::Unusable(_) => {}
            }
        }
        self.locate_linear(inode, name).await
    }
}
