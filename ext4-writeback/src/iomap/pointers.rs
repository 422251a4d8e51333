//! Files mapped by indirect blocks (ext2, ext3): how writing to them differs, and the largest size of a file.
//!
//! The blocks of such a file cannot be unwritten, so its delayed data is always published when it is on the
//! device ([`crate::iomap::preallocation`]), also without delayed allocation. A mount without delayed
//! allocation guarantees that a write which succeeded finds its space. So if blocks would be allocated at
//! once, the indirect blocks that the write needs are allocated before it, and its data blocks are reserved.
//! The device then has new arrays of zero pointers only, which are a hole, as before.

use std::ops::Range;
use std::sync::Arc;

use ext4_core::meta::{block_map, credits};
use ext4_core::{LogicalBlock, Result};

use crate::inode::InodeInfo;
use crate::inode::log::log_inode;
use crate::volume::Volume;

/// Allocates the indirect blocks that are missing for `blocks` of the file. The caller holds `rwlock` for
/// writing, and no folio lock.
///
/// # Errors
/// - `ENOSPC`: there is no free block.
/// - `EFBIG`: a block lies behind what indirect blocks can map.
/// - Those of the journal and of the device.
pub(crate) async fn prepare_pointers(
    volume: &Volume,
    inode: &Arc<InodeInfo>,
    blocks: Range<LogicalBlock>,
) -> Result<()> {
    let mut at = blocks.start;
    while at < blocks.end {
        let handle = volume.begin_tracked(credits::POINTERS + credits::INODE, "write").await?;
        let mut disk = inode.on_disk.write().await;
        let before = disk.sectors;
        let room = block_map::prepare(&volume.info, &handle, &mut disk, at).await?;
        if disk.sectors != before {
            log_inode(volume, &handle, inode, &disk, false).await?;
        }
        at = at.offset(room);
    }
    Ok(())
}

/// The largest i_size of `inode`, in bytes (kernel: `s_maxbytes`, `s_bitmap_maxbytes`).
pub(crate) async fn max_size(volume: &Volume, inode: &InodeInfo) -> u64 {
    let limit = max_size_with_extents(volume);
    if inode.is_indirect().await {
        return limit.min(block_map::max_blocks(&volume.info) << volume.info.block_size().bits());
    }
    limit
}

/// The largest i_size of a file with extents, in bytes: 2^32 - 1 blocks (kernel: `ext4_max_size`).
/// [`max_size`] is for one file of any kind.
pub(crate) fn max_size_with_extents(volume: &Volume) -> u64 {
    u64::from(u32::MAX) << volume.info.block_size().bits()
}
