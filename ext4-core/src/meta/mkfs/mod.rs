//! Making a file system, with the layout of mke2fs.
//!
//! | file | owns |
//! |---|---|
//! | `plan` | from a device's size and the options to the superblock's counts: mke2fs's arithmetic |
//! | `layout` | from the superblock to the places of bitmaps and inode tables, packed by flex groups |
//! | `write` | the order: old superblock away, tables, descriptors, the maker's parts, new superblock |
//! | `maker` | the file system being made: its groups, and the copies of superblock and descriptors |
//! | `inodes` | the inodes a new file system has: root, lost+found, journal, resize inode, orphan file |
//!
//! Invariants:
//! - The old primary superblock is destroyed first and the new one is written last, after a flush. A crash in
//!   between leaves a device that no program takes for a file system, instead of one whose half has no
//!   content.
//! - The same options, environment and device size give the same bytes, wherever the device's content was
//!   zeros.
//! - Only what must be written is: no bitmap of an uninitialised group, no inode table that `itable_unused`
//!   covers (unless the device makes zeros for nothing).
//!
//! Source of the arithmetic: e2fsprogs 1.47.0 (`ext2fs_initialize`, `mke2fs`, `mke2fs.conf`).

mod inodes;
mod layout;
mod maker;
mod plan;
mod write;

use std::sync::Arc;

use crate::device::BlockDevice;
use crate::environment::Environment;
use crate::error::{Errno, Error, Result};
use crate::format::features::{Compat, Features, Incompat, RoCompat};
use crate::types::BlockSize;
use plan::Plan;
pub use plan::{check_journal_blocks, default_journal_blocks};

/// What to make. `None`: what mke2fs would choose for the size.
#[derive(Clone, Debug, Default)]
pub struct MkfsOptions {
    /// Block size: 1, 2 or 4 KiB.
    pub block_size: Option<BlockSize>,
    /// With the feature bigalloc, bytes of a cluster: 16 blocks.
    pub cluster_size: Option<u32>,
    /// Size of the file system in blocks; the whole device.
    pub blocks_count: Option<u64>,
    /// Bytes of one inode: 256.
    pub inode_size: Option<u16>,
    /// Bytes of the device for each inode: 16,384 (4,096 below 512 MiB).
    pub bytes_per_inode: Option<u64>,
    /// Exact number of inodes.
    pub inodes_count: Option<u32>,
    /// Features: has_journal, ext_attr, resize_inode, dir_index, fast_commit, orphan_file, filetype, extents,
    /// 64bit, flex_bg, metadata_csum, metadata_csum_seed, sparse_super, large_file, huge_file, dir_nlink,
    /// extra_isize (and uninit_bg, meta_bg, inline_data, bigalloc). `extents` cannot be left out. `None`:
    /// [`default_features`].
    pub features: Option<Features>,
    /// Journal size in blocks; with `fast_commit` its area comes on top.
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
    /// True to leave out lost+found.
    pub no_lost_and_found: bool,
}

impl MkfsOptions {
    /// Blocks in one cluster, with blocks of `block_size`: 1 without bigalloc. At least 1, also if the
    /// options are not good.
    #[must_use]
    pub fn cluster_blocks(&self, block_size: BlockSize) -> u64 {
        let bigalloc = |features: Features| features.ro_compat.contains(RoCompat::BIGALLOC);
        if !self.features.is_some_and(bigalloc) {
            return 1;
        }
        let default = block_size.bytes().saturating_mul(plan::DEFAULT_CLUSTER_BLOCKS);
        u64::from((self.cluster_size.unwrap_or(default) / block_size.bytes()).max(1))
    }
}

/// Gives the image of a journal superblock for a log of so many blocks: (block size, blocks, those of them
/// that are for fast commits, file system UUID).
pub type JournalSuperblock<'a> = &'a (dyn Fn(BlockSize, u32, u32, [u8; 16]) -> Vec<u8> + Sync);

/// The features that mke2fs 1.47 gives an ext4 file system.
#[must_use]
pub fn default_features() -> Features {
    Features {
        compat: Compat::HAS_JOURNAL | Compat::EXT_ATTR | Compat::RESIZE_INODE | Compat::DIR_INDEX,
        incompat: Incompat::FILETYPE | Incompat::EXTENTS | Incompat::BIT64 | Incompat::FLEX_BG,
        ro_compat: RoCompat::SPARSE_SUPER
            | RoCompat::LARGE_FILE
            | RoCompat::HUGE_FILE
            | RoCompat::DIR_NLINK
            | RoCompat::EXTRA_ISIZE
            | RoCompat::METADATA_CSUM,
    }
}

/// Makes a file system on `device`; flushes at the end. The first blocks of the device become valid last.
///
/// # Errors
/// - `EINVAL` for options that contradict each other, `ENOSPC` for a device that is too small, unsupported
///   features by name.
/// - Those of the device.
pub async fn mkfs(
    device: Arc<dyn BlockDevice>,
    options: &MkfsOptions,
    environment: &dyn Environment,
    journal_superblock: JournalSuperblock<'_>,
) -> Result<()> {
    let plan = Plan::new(device.geometry(), options, environment)?;
    let layout = layout::Layout::new(&plan.superblock)?;
    let needed = inodes::clusters_needed(&plan, options);
    if layout.free_clusters() < needed {
        let unit = if plan.superblock.cluster_bits() == 0 { "blocks" } else { "clusters" };
        return Err(Error::posix(
            Errno::ENOSPC,
            format!("{} {unit} are left for {needed} of directories and journal", layout.free_clusters()),
        ));
    }
    write::write(device, options, &plan, &layout, environment, journal_superblock).await
}
