//! Files mapped by indirect blocks (ext2, ext3): what is different about writing to them.
//!
//! Their blocks cannot be unwritten, so delayed data of theirs is always published when it is on the device
//! ([`crate::iomap::preallocation`]), also without delayed allocation. What that mode promises is that a write which succeeded
//! will find its space; so where blocks would be allocated at once, the blocks of pointers that the write will need are
//! allocated before it, and its data blocks are promised. Only an array of zero pointers is on the device then, which is a
//! hole, as before.

use crate::inode::log::log_inode;
use std::ops::Range;
use std::sync::Arc;

use ext4_core::meta::{block_map, credits};
use ext4_core::{LogicalBlock, Result};

use crate::inode::InodeInfo;
use crate::volume::Volume;

/// Allocates the blocks of pointers for `blocks` where they are missing. The caller holds `rwlock` for writing, and no
/// folio.
///
/// # Errors
/// `ENOSPC`, `EFBIG`; those of the journal and of the device.
pub(crate) async fn prepare_pointers(
    volume: &Volume,
    inode: &Arc<InodeInfo>,
    blocks: Range<LogicalBlock>,
) -> Result<()> {
    let mut at = blocks.start;
    while at < blocks.end {
        let handle = volume.begin_tracked(credits::POINTERS + credits::INODE, "write").await?;
        let mut disk = inode.inode.write().await;
        let before = disk.sectors;
        let room = block_map::prepare(&volume.info, &handle, &mut disk, at).await?;
        if disk.sectors != before {
            log_inode(volume, &handle, inode, &disk, false).await?;
        }
        at = at.offset(room);
    }
    Ok(())
}

/// The largest size `inode` can have, in bytes.
pub(crate) async fn max_size(volume: &Volume, inode: &InodeInfo) -> u64 {
    let limit = max_size_with_extents(volume);
    if inode.is_indirect().await {
        return limit.min(block_map::max_blocks(&volume.info) << volume.info.block_size().bits());
    }
    limit
}

/// The largest size a file with extents can have: 2^32 - 1 blocks (kernel: `ext4_max_size`). For one file ask
/// [`crate::iomap::pointers::max_size`].
pub(crate) fn max_size_with_extents(volume: &Volume) -> u64 {
    u64::from(u32::MAX) << volume.info.block_size().bits()
}
