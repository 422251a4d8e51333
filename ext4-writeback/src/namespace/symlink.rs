//! Symlinks and readlink(2): a short target lies in the inode (a fast symlink), a longer one in one block.
//!
//! Source: kernel documentation, "The Contents of inode.i_block" (symbolic links): a target of less than 60
//! bytes is in i_block. The block of a longer target is metadata as in the kernel: it is journaled, and ends
//! in a NUL that the size does not count.

use ext4_core::format::features::Incompat;
use ext4_core::format::inode::{FileType, Inode, InodeLayout};
use ext4_core::meta::block_allocator::{AllocationRequest, allocate_blocks};
use ext4_core::meta::extent_tree::MappingState;
use ext4_core::meta::{SuperblockInfo, block_map, extent_tree, inline_data, symlink};
use ext4_core::{Errno, Error, InodeNumber, LogicalBlock, Result};

use crate::filesystem::{Filesystem, FilesystemInner};
use crate::namespace::new_inode::NewInode;
use crate::volume::handle::Handle;

/// Targets of this many bytes and more need a block.
const FAST_LIMIT: usize = 60;

/// The longest target (`PATH_MAX` with its NUL).
const PATH_MAX: usize = 4096;

/// Checks the target of a new symlink.
///
/// # Errors
/// - `ENOENT`: it is empty.
/// - `EINVAL`: there is a NUL in it.
/// - `ENAMETOOLONG`: it does not fit into a block, or has more than 4095 bytes.
pub(crate) fn check_target(fs: &FilesystemInner, new: &NewInode) -> Result<()> {
    if new.file_type != FileType::Symlink {
        return Ok(());
    }
    let len = new.target.len();
    if len == 0 || new.target.contains(&0) {
        return Err(Error::posix(if len == 0 { Errno::ENOENT } else { Errno::EINVAL }, "symlink target"));
    }
    if len >= PATH_MAX.min(fs.volume.info.block_size().len()) {
        return Err(Error::posix(Errno::ENAMETOOLONG, format!("symlink target of {len} bytes")));
    }
    Ok(())
}

/// Gives the new symlink `inode` its target, which [`check_target`] has accepted.
pub(crate) async fn store_target(
    info: &SuperblockInfo,
    handle: &Handle,
    inode: &mut Inode,
    target: &[u8],
) -> Result<()> {
    inode.size = target.len() as u64;
    if target.len() < FAST_LIMIT {
        inode.i_block[..target.len()].copy_from_slice(target);
        return Ok(());
    }
    let request =
        AllocationRequest { goal: None, inode: inode.number, len: 1, reserved: false, metadata: false };
    let block = if info.features().incompat.contains(Incompat::EXTENTS) {
        extent_tree::initialize(inode);
        let new = extent_tree::allocate(info, handle, inode, LogicalBlock(0), &request).await?;
        extent_tree::insert(info, handle, inode, LogicalBlock(0), new.physical, 1, false).await?;
        new.physical
    } else {
        let (block, _) = allocate_blocks(info, handle, &request).await?;
        block_map::insert(info, handle, inode, LogicalBlock(0), block, 1).await?;
        block
    };
    symlink::write_target(info, handle, inode.number, block, target)
}

/// The target of the symlink `inode`.
///
/// # Errors
/// - `EINVAL`: it is no symlink.
/// - `EIO`, `EUCLEAN`: the device, or what it holds.
pub(crate) async fn target(info: &SuperblockInfo, layout: &InodeLayout, inode: &Inode) -> Result<Vec<u8>> {
    if inode.file_type() != Some(FileType::Symlink) {
        return Err(Error::posix(Errno::EINVAL, format!("inode {} is no symlink", inode.number)));
    }
    let wrong = |problem: String| Error::corrupt(format!("inode {}: symlink", inode.number), problem);
    if inline_data::is_inline(inode) {
        let data = inline_data::data(inode)?;
        let target = usize::try_from(inode.size).ok().filter(|len| *len > 0).and_then(|len| data.get(..len));
        let target =
            target.ok_or_else(|| wrong(format!("size {} is not 1 to {}", inode.size, data.len())))?;
        return Ok(target.to_vec());
    }
    let fast = inode.is_fast_symlink(layout);
    let limit = if fast { FAST_LIMIT } else { PATH_MAX.min(info.block_size().len()) };
    let len = usize::try_from(inode.size).ok().filter(|len| (1..limit).contains(len));
    let len = len.ok_or_else(|| wrong(format!("size {} is not 1 to {}", inode.size, limit - 1)))?;
    if fast {
        return Ok(inode.i_block[..len].to_vec());
    }
    let block = match block_map::lookup(info, inode, LogicalBlock(0)).await?.state {
        MappingState::Written(block) => block,
        state => return Err(wrong(format!("its block is {state:?}"))),
    };
    symlink::read_target(info, inode.number, block, len).await
}

impl Filesystem {
    /// readlink(2): the target of a symlink.
    ///
    /// # Errors
    /// - `EINVAL`: the inode is no symlink.
    /// - `ENOENT`: the inode is free.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn readlink(&self, inode: InodeNumber) -> Result<Vec<u8>> {
        self.observe("readlink", inode, async {
            let inode = self.inner.inode(inode).await?;
            let target = {
                let raw = inode.on_disk.read().await;
                inode.check_alive()?;
                target(&self.inner.volume.info, &self.inner.volume.inode_layout, &raw).await?
            };
            self.touch_atime(&inode).await?;
            Ok(target)
        })
        .await
    }
}
