//! The metadata plane: everything in an ext4 file system that is not file data, read and changed through a
//! [`BufferCache`] and a [`Transaction`].
//!
//! Every function that changes something takes `&dyn Transaction`; whether a journal stands behind it is none
//! of its business. Functions that work on one inode take the in-memory copy, `&mut Inode`, of which the
//! caller holds the lock (the kernel's `i_data_sem`); they change it, and the caller logs it with
//! [`inode_table::write_inode`] in the same transaction.
//!
//! Invariant: no block of metadata is changed except inside [`Buffer::modify`], which leaves it with a right
//! checksum.
//!
//! Invariant: a block is used as metadata only after [`BufferCache::read`] verified it: its magic, checksum,
//! bounds and place ([`block_kind`]). Were this wrong, one flipped bit could send a write to another file's
//! block.

pub mod block_allocator;
pub mod block_kind;
pub mod block_map;
pub mod buffer;
pub mod credits;
pub mod directory;
pub mod extent_tree;
pub mod free_runs;
pub mod inline_data;
pub mod inode_allocator;
pub mod inode_table;
pub mod journal_inode;
pub mod links;
pub mod mkfs;
pub mod orphan;
pub mod superblock_info;
pub mod symlink;
pub mod transaction;
pub mod xattr;

pub use block_allocator::FreedBlocks;
pub use block_kind::{BlockKind, Opaque, Owner, Verifier};
pub use buffer::{Buffer, BufferCache, Fetched};
pub use superblock_info::SuperblockInfo;
pub use transaction::{DirectTransaction, Transaction};
