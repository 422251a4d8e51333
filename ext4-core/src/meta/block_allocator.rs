//! Block allocation.

use super::{SuperblockInfo, Transaction};
use crate::error::Result;
use crate::types::{BlockNumber, InodeNumber};

/// What an allocation asks for.
#[derive(Clone, Copy, Debug)]
pub struct AllocationRequest {
    /// Where it would best lie; `None`: near the inode's group.
    pub goal: Option<BlockNumber>,
    /// For whom (its group is the default goal).
    pub inode: InodeNumber,
    /// How many blocks are wanted; at least one.
    pub len: u32,
    /// The blocks were promised with [`SuperblockInfo::reserve_blocks`]: as many as are allocated are taken from the
    /// promise.
    pub reserved: bool,
    /// For metadata: may use what is reserved for root and splits.
    pub metadata: bool,
}

/// Allocates one contiguous run of 1 to `len` blocks, the longest near the goal. Does not touch any inode.
///
/// # Errors
/// `ENOSPC`; those of the device and the transaction.
pub async fn allocate_blocks(
    _info: &SuperblockInfo,
    _transaction: &dyn Transaction,
    _request: &AllocationRequest,
) -> Result<(BlockNumber, u32)> {
    todo!()
}

/// Frees `count` blocks. They are handed out again only after the transaction has committed. `metadata`: each is
/// forgotten and revoked ([`super::BufferCache::forget`]). Does not touch any inode.
///
/// # Errors
/// Corrupt where a block was free already or is fixed metadata; those of the device and the transaction.
pub async fn free_blocks(
    _info: &SuperblockInfo,
    _transaction: &dyn Transaction,
    _first: BlockNumber,
    _count: u64,
    _metadata: bool,
) -> Result<()> {
    todo!()
}
