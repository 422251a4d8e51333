//! Journal superblocks for a file system that makes, attaches or detaches a journal: nothing is opened and
//! nothing written here.
//!
//! Invariant: what comes out of [`attach_user`] and [`detach_user`] differs from what went in by the list of
//! users and the checksum alone: the position of the log is never touched.
//!
//! Source of the users' list: kernel documentation, "Journal (jbd2)", super block (s_nr_users, s_users); of
//! the place of an external log's superblock: e2fsprogs, `ext2fs_create_journal_superblock2`.

use ext4_core::{BlockSize, Errno, Error, Result};

use crate::format::Superblock;

/// The parameters of a new, empty jbd2 journal.
#[derive(Clone, Debug)]
pub struct NewJournal {
    /// The size of a log block.
    pub block_size: BlockSize,
    /// The number of its blocks, the superblock and the fast-commit area included. For a journal on a device
    /// of its own: the number of blocks of the device.
    pub blocks: u32,
    /// The number of blocks of the fast-commit area at its end; 0: jbd2's default once fast commits are used.
    pub fast_commit_blocks: u32,
    /// The journal's UUID: the file system's for a journal in an inode, its own for a device.
    pub uuid: [u8; 16],
    /// True if the journal lies on a device of its own.
    pub external: bool,
}

impl NewJournal {
    /// The journal superblock's block, as mke2fs writes it: version 2, no features. The features of a running
    /// journal are set when it first runs, as jbd2 does at the first mount.
    #[must_use]
    pub fn superblock(&self) -> Vec<u8> {
        let mut superblock = Superblock::new(self.block_size, self.blocks, self.uuid);
        superblock.set_fast_commit_blocks(self.fast_commit_blocks);
        if self.external {
            // Log blocks are counted from the start of the device.
            superblock.set_first(external_superblock_block(self.block_size).saturating_add(1));
            superblock.set_users(&[]);
        }
        superblock.to_block()
    }
}

/// The block of a journal device that holds the journal superblock: the one behind ext4's own superblock.
/// Source: the kernel's `ext4_get_journal_blkdev`.
#[must_use]
pub fn external_superblock_block(block_size: BlockSize) -> u32 {
    if block_size == BlockSize::KIB_1 { 2 } else { 1 }
}

/// Adds the file system with UUID `user` to the users of an external journal. `block`: the journal
/// superblock's block; `available`: the blocks that the device has for the journal. Returns the superblock's
/// new block.
///
/// # Errors
/// - Corrupt or unsupported: as [`crate::Journal::open`].
/// - `EBUSY`: another file system uses the journal (no kernel supports one journal for several file systems),
///   or the log is not empty.
pub fn attach_user(block: &[u8], block_size: BlockSize, available: u32, user: [u8; 16]) -> Result<Vec<u8>> {
    let mut superblock = Superblock::read(block, block_size, available)?;
    if superblock.start() != 0 {
        return Err(Error::posix(Errno::EBUSY, "journal: its log has to be recovered first"));
    }
    let users = superblock.user_list();
    if !users.is_empty() && users != [user] {
        return Err(Error::posix(Errno::EBUSY, "journal: another file system uses it"));
    }
    superblock.set_users(&[user]);
    Ok(superblock.to_block())
}

/// Takes the file system with UUID `user` off the users of an external journal. Arguments and result are
/// those of [`attach_user`].
///
/// # Errors
/// Corrupt or unsupported: as [`crate::Journal::open`].
pub fn detach_user(block: &[u8], block_size: BlockSize, available: u32, user: [u8; 16]) -> Result<Vec<u8>> {
    let mut superblock = Superblock::read(block, block_size, available)?;
    let users: Vec<[u8; 16]> = superblock.user_list().into_iter().filter(|uuid| *uuid != user).collect();
    superblock.set_users(&users);
    superblock.reset();
    Ok(superblock.to_block())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_come_and_go_and_nothing_else_changes() {
        let new = NewJournal {
            block_size: BlockSize::KIB_1,
            blocks: 2048,
            fast_commit_blocks: 0,
            uuid: [9; 16],
            external: true,
        };
        let empty = new.superblock();
        let read = |block: &[u8]| Superblock::read(block, BlockSize::KIB_1, 2048).unwrap();
        assert_eq!((read(&empty).first(), read(&empty).user_list()), (3, vec![]));
        let attached = attach_user(&empty, BlockSize::KIB_1, 2048, [1; 16]).unwrap();
        assert_eq!(read(&attached).user_list(), [[1; 16]]);
        assert_eq!(attach_user(&attached, BlockSize::KIB_1, 2048, [1; 16]).unwrap(), attached);
        let error = attach_user(&attached, BlockSize::KIB_1, 2048, [2; 16]).unwrap_err();
        assert_eq!(error.errno(), Errno::EBUSY);
        assert_eq!(detach_user(&attached, BlockSize::KIB_1, 2048, [1; 16]).unwrap(), empty);
    }
}
