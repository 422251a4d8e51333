//! Direct I/O: transfers between an aligned buffer of the caller and the device, past the page cache
//! (O_DIRECT; kernel: `iomap_dio_rw`).
//!
//! Invariants:
//! - Page cache over the range is written back before the transfer, and invalidated around a write
//!   (`coherence.rs`).
//! - A write into unwritten blocks or behind i_size is converted, and moves both sizes, after its I/O has
//!   ended (`complete.rs`).
//! - A write that cannot be done in place (inline data, holes of a file of indirect blocks, part of an
//!   unwritten block) goes through the page cache and is written back before it returns.
//!
//! Locks: `rwlock`, shared for reads and for overwrites within i_size, for writing otherwise.

pub(crate) mod coherence;
pub(crate) mod complete;
pub(crate) mod read;
pub(crate) mod transfer;
pub(crate) mod write;

use ext4_core::format::inode::InodeFlags;
use ext4_core::{Errno, Error, Result};

use crate::inode::InodeInfo;
use crate::writeback::Engine;

/// The unit of direct I/O in bytes: the device's logical block, as in the kernel.
fn unit(engine: &Engine) -> u64 {
    u64::from(engine.volume.info.device().geometry().logical_block_size)
}

/// Returns true if the file has inline data, which only buffered I/O reaches.
pub(crate) async fn is_inline(inode: &InodeInfo) -> bool {
    inode.on_disk.read().await.flags.contains(InodeFlags::INLINE_DATA)
}

/// Checks that a transfer of `len` bytes at byte `offset` is made of whole logical blocks of the device.
///
/// # Errors
/// `EINVAL`: it is not.
pub(crate) fn check_aligned(engine: &Engine, inode: &InodeInfo, offset: u64, len: usize) -> Result<()> {
    let unit = unit(engine);
    if offset.is_multiple_of(unit) && (len as u64).is_multiple_of(unit) {
        return Ok(());
    }
    Err(Error::posix(
        Errno::EINVAL,
        format!(
            "direct I/O of {len} bytes at byte {offset} of inode {}: offset and length must be multiples of \
             {unit}",
            inode.number
        ),
    ))
}
