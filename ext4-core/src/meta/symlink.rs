//! The block of a slow symlink: a target that does not fit in its inode.
//!
//! The block is metadata, here as in the kernel: it goes through the journal. It holds the target and a NUL
//! behind it, which i_size does not count. It has no checksum.
//!
//! Source: kernel documentation, "The Contents of inode.i_block", "Symbolic Links".

use super::{BlockKind, SuperblockInfo, Transaction, Verifier};
use crate::error::{Error, Result};
use crate::types::{BlockNumber, InodeNumber};

/// Puts `target` (bytes without a NUL, fewer than a block) into `block`, which was just allocated for symlink
/// `inode`.
///
/// # Errors
/// - `ENOMEM` if the host has no memory.
/// - Those of the transaction.
pub fn write_target(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: InodeNumber,
    block: BlockNumber,
    target: &[u8],
) -> Result<()> {
    let len = target.len().min(info.block_size().len());
    let buffer = info.cache.create(transaction, block, BlockKind::Symlink { inode, len })?;
    buffer.modify(transaction, |bytes| bytes[..len].copy_from_slice(&target[..len]))
}

/// The target of symlink `inode`: the first `len` bytes of `block`.
///
/// # Errors
/// - Corrupt if the block is shorter than `len`, or there is a NUL in the target.
/// - Those of the device.
pub async fn read_target(
    info: &SuperblockInfo,
    inode: InodeNumber,
    block: BlockNumber,
    len: usize,
) -> Result<Vec<u8>> {
    let buffer = info.cache.read(block, &TargetVerifier { inode, len }).await?;
    Ok(buffer.read(|bytes| bytes[..len].to_vec()))
}

struct TargetVerifier {
    inode: InodeNumber,
    len: usize,
}

impl Verifier for TargetVerifier {
    fn kind(&self) -> BlockKind {
        BlockKind::Symlink { inode: self.inode, len: self.len }
    }

    fn verify(&self, block: BlockNumber, bytes: &[u8]) -> Result<()> {
        let wrong =
            |problem| Error::corrupt(format!("inode {}: symlink, block {block}", self.inode), problem);
        let target = bytes
            .get(..self.len)
            .ok_or_else(|| wrong(format!("{} bytes have no target of {}", bytes.len(), self.len)))?;
        match target.iter().position(|byte| *byte == 0) {
            Some(at) => Err(wrong(format!("byte {at} of a target of {} is NUL", self.len))),
            None => Ok(()),
        }
    }
}
