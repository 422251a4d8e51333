//! TODO header.

pub(crate) mod coherence;
pub(crate) mod complete;
pub(crate) mod read;
pub(crate) mod transfer;
pub(crate) mod write;

use ext4_core::format::inode::InodeFlags;
use ext4_core::{Errno, Error, Result};

use crate::inode::InodeInfo;
use crate::writeback::Engine;

/// The unit of direct I/O: the device's logical block, as in the kernel.
fn unit(engine: &Engine) -> u64 {
    u64::from(engine.volume.info.device().geometry().logical_block_size)
}

/// True where the file's data lies in its inode: only the page cache can get at it.
pub(crate) async fn is_inline(inode: &InodeInfo) -> bool {
    inode.inode.read().await.flags.contains(InodeFlags::INLINE_DATA)
}

/// `EINVAL` where a transfer is not made of whole logical blocks of the device.
pub(crate) fn check_aligned(engine: &Engine, inode: &InodeInfo, offset: u64, len: usize) -> Result<()> {
    let unit = unit(engine);
    if offset.is_multiple_of(unit) && (len as u64).is_multiple_of(unit) {
        return Ok(());
    }
    Err(Error::posix(
        Errno::EINVAL,
        format!(
            "direct I/O of {len} bytes at byte {offset} of inode {}: offset and length must be multiples of {unit}",
            inode.number
        ),
    ))
}
