//! TODO header.

use ext4_core::Result;
use ext4_core::meta::inline_data;

use crate::filesystem::FilesystemInner;
use crate::inode::InodeInfo;
use crate::io::inline_data::{I_BLOCK, bytes_of};

/// Data that an inode holds itself, as fiemap tells of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InlineExtent {
    /// The byte of the device at which it begins. Not aligned, and not all of it lies behind one another: 60 bytes do.
    pub physical: u64,
    /// How many bytes of the file it is (of a directory: of its entries).
    pub len: u64,
    /// The byte of the device at which byte 60 lies and all behind it, where there are so many.
    pub rest: Option<u64>,
}

pub(crate) async fn extent_of(fs: &FilesystemInner, inode: &InodeInfo) -> Result<Option<InlineExtent>> {
    let disk = inode.inode.read().await;
    if !inline_data::is_inline(&disk) {
        return Ok(None);
    }
    let len = bytes_of(&disk)?.len() as u64;
    let (block, offset) = fs.info.inode_location(inode.number).await?;
    let start = (block.0 << fs.info.block_size().bits()) + offset as u64;
    let rest = inline_data::rest(&disk)?.filter(|_| len > inline_data::IN_BLOCK as u64);
    Ok(Some(InlineExtent { physical: start + I_BLOCK, len, rest: rest.map(|(at, _)| start + at as u64) }))
}
