//! The foundation of a user-space ext4.
//!
//! | room | owns | never does |
//! |---|---|---|
//! | [`mod@format`] | every on-disk structure, raw and checked | I/O |
//! | [`device`] | bios, the [`device::BlockDevice`] trait, geometry, the folio memory pool, simulated devices | ext4 |
//! | [`meta`] | the metadata plane: buffer cache, extent trees, directories, inode table, allocators, xattrs, orphans, `mkfs` | journaling, scheduling, file data |
//!
//! Beside them stand the words everybody uses: [`types`], [`error`], [`checksum`] and [`environment`]
//! (time, randomness, tasks: what a simulation replaces).
#![deny(unsafe_code)]

extern crate alloc;

pub mod checksum;
pub mod device;
pub mod environment;
pub mod error;
pub mod format;
pub mod meta;
pub mod types;

pub use error::{Corrupt, Errno, Error, IoPurpose, Result};
pub use types::{BlockNumber, BlockSize, GroupNumber, InodeNumber, LogicalBlock, Timestamp, TransactionId};
