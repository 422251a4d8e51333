//! Orphans: inodes that were unlinked while open or are being truncated, on the list through the superblock or in
//! the orphan file.

use super::{SuperblockInfo, Transaction};
use crate::error::Result;
use crate::format::inode::Inode;
use crate::types::InodeNumber;

/// The orphans of a mounted file system.
#[derive(Debug)]
pub struct Orphans {}

impl Orphans {
    /// Reads the list and the orphan file. [`Orphans::pending`] says what a crash left behind.
    pub async fn load(_info: &SuperblockInfo) -> Result<Self> {
        todo!()
    }

    /// The inodes a crash left behind: to be deleted where they have no links, truncated to their size otherwise.
    pub fn pending(&self) -> Vec<InodeNumber> {
        todo!()
    }

    /// Adds `inode` (no-op where it is on already). May change `inode.dtime`; the caller logs the inode.
    pub async fn add(
        &self,
        _info: &SuperblockInfo,
        _transaction: &dyn Transaction,
        _inode: &mut Inode,
    ) -> Result<()> {
        todo!()
    }

    /// Takes `inode` off (no-op where it is not on). May change `inode.dtime`; the caller logs the inode.
    pub async fn remove(
        &self,
        _info: &SuperblockInfo,
        _transaction: &dyn Transaction,
        _inode: &mut Inode,
    ) -> Result<()> {
        todo!()
    }
}
