//! Making a file system, with the layout of mke2fs.

use std::sync::Arc;

use crate::device::BlockDevice;
use crate::environment::Environment;
use crate::error::Result;
use crate::format::features::Features;
use crate::types::BlockSize;

/// What to make. `None`: what mke2fs would choose for the size.
#[derive(Clone, Debug, Default)]
pub struct MkfsOptions {
    /// Block size.
    pub block_size: Option<BlockSize>,
    /// Size of the file system in blocks; the whole device.
    pub blocks_count: Option<u64>,
    /// Bytes of one inode: 256.
    pub inode_size: Option<u16>,
    /// Bytes of the device for each inode: 16,384 (4,096 below 512 MiB).
    pub bytes_per_inode: Option<u64>,
    /// Exact number of inodes.
    pub inodes_count: Option<u32>,
    /// Features: has_journal, ext_attr, resize_inode, dir_index, orphan_file, filetype, extents, 64bit, flex_bg,
    /// metadata_csum, metadata_csum_seed, sparse_super, large_file, huge_file, dir_nlink, extra_isize.
    pub features: Option<Features>,
    /// Journal size in blocks.
    pub journal_blocks: Option<u32>,
    /// Percentage of blocks kept for root: 5.
    pub reserved_percent: Option<f64>,
    /// Volume label, up to 16 bytes.
    pub label: Vec<u8>,
    /// UUID.
    pub uuid: Option<[u8; 16]>,
    /// Seed of directory hashes.
    pub hash_seed: Option<[u8; 16]>,
    /// Where it was last mounted, up to 64 bytes.
    pub last_mounted: Vec<u8>,
    /// Owner of the root directory.
    pub root_owner: (u32, u32),
    /// Leave out lost+found.
    pub no_lost_and_found: bool,
}

/// Gives the image of a journal superblock for a log of so many blocks: (block size, blocks, file system UUID).
pub type JournalSuperblock<'a> = &'a (dyn Fn(BlockSize, u32, [u8; 16]) -> Vec<u8> + Sync);

/// Makes a file system on `device`; flushes at the end. The first blocks of the device become valid last.
pub async fn mkfs(
    _device: Arc<dyn BlockDevice>,
    _options: &MkfsOptions,
    _environment: &dyn Environment,
    _journal_superblock: JournalSuperblock<'_>,
) -> Result<()> {
    todo!()
}
