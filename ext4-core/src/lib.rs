//! The foundation of ext4 in user space: the on-disk format, block devices, and the metadata of a file
//! system.
//!
//! This crate reads and writes what an ext4 file system consists of, except for file data and the journal:
//! superblock, group descriptors, bitmaps, inodes, extent trees, directories, extended attributes, orphans;
//! and it makes new file systems. It needs no kernel mount and no root. `ext4-journal` adds jbd2 on top of
//! it, and `ext4-writeback` a mounted file system with a page cache, which is what most users want.
//!
//! ```text
//!     ext4-writeback: files, page cache, name space          ext4-journal: jbd2
//!   ──────────┬──────────────────────────────────────────────────┬────────────────
//!             │ functions over &SuperblockInfo, &mut Inode       │ implements Transaction
//!             ▼                                                  ▼
//!   meta      extent trees ─ directories ─ allocators ─ xattrs ─ orphans ─ mkfs
//!             │        Verifier on the way in, BlockKind::seal on the way out
//!             ▼
//!             buffer cache: one Buffer for each metadata block, its image copied on write
//!             │                                                ▲
//!             │ Bio, Bio, … (a plug)                           │ parsed and verified by
//!             ▼                                                │
//!   device    BlockDevice::submit ─► EndIo, once for each      format: bytes ◄─► checked types, without I/O
//! ```
//!
//! | module | owns | never does |
//! |---|---|---|
//! | [`mod@format`] | every on-disk structure, raw and checked | I/O |
//! | [`device`] | bios, the trait [`device::BlockDevice`], geometry, I/O memory, simulated devices | ext4 |
//! | [`meta`] | the metadata plane, over a [`meta::Transaction`] | journaling, scheduling, file data |
//! | [`environment`] | the clock, random numbers and tasks, all injected: a simulation replaces them | ext4 |
//!
//! [`types`], [`error`], [`checksum`] and [`run_map`] are shared by all of them.
//!
//! # Example
//!
//! A file system in memory, and a look into its root directory. `examples/own_block_device.rs` does the same
//! on a device that is written there.
//!
//! ```
//! use std::sync::Arc;
//!
//! use ext4_core::InodeNumber;
//! use ext4_core::device::MemoryDevice;
//! use ext4_core::environment::SystemEnvironment;
//! use ext4_core::format::features::Compat;
//! use ext4_core::format::inode::FileType;
//! use ext4_core::meta::mkfs::{MkfsOptions, default_features, mkfs};
//! use ext4_core::meta::{SuperblockInfo, directory, inode_table};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> ext4_core::Result<()> {
//! let device = Arc::new(MemoryDevice::new(16 << 20));
//! // Without a journal, whose superblock another crate would give.
//! let mut features = default_features();
//! features.compat.remove(Compat::HAS_JOURNAL);
//! let options = MkfsOptions { features: Some(features), ..MkfsOptions::default() };
//! mkfs(device.clone(), &options, &SystemEnvironment, &|_, _, _, _| Vec::new()).await?;
//!
//! let read_only = true;
//! let info = SuperblockInfo::load(device, 1 << 20, Arc::new(SystemEnvironment), read_only).await?;
//! let root = inode_table::read_inode(&info, InodeNumber::ROOT).await?;
//! let (lost_and_found, kind) = directory::lookup(&info, &root, b"lost+found").await?.expect("mkfs made it");
//! assert_eq!((lost_and_found, kind), (InodeNumber(11), Some(FileType::Directory)));
//! # Ok(())
//! # }
//! ```
//!
//! # Errors
//!
//! Everything that fails returns [`Error`], which has an errno ([`Error::errno`]) and says what was read or
//! asked. What a device holds never causes a panic: sizes and counts are checked before they are used.
//!
//! # Async
//!
//! Functions that may wait for a device are `async` and need no particular executor: they wait for
//! completions that the device calls. Tasks and timers go through [`environment::Runtime`]; only the suite
//! for devices ([`device::conformance`]) needs tokio's own.
#![deny(unsafe_code, clippy::self_named_module_files)]

extern crate alloc;

pub mod checksum;
pub mod device;
pub mod environment;
pub mod error;
pub mod format;
pub mod meta;
pub mod run_map;
pub mod types;
pub mod wait;

pub use error::{Corrupt, Errno, Error, IoPurpose, Result};
pub use types::{BlockNumber, BlockSize, GroupNumber, InodeNumber, LogicalBlock, Timestamp, TransactionId};
