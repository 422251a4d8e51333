#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(clippy::self_named_module_files)]

mod base;
pub mod blocking;
mod cache;
mod file;
mod filesystem;
mod inode;
mod io;
mod iomap;
mod mount;
mod namespace;
mod path;
mod recovery;
#[cfg(test)]
mod testing;
mod volume;
mod writeback;

pub use base::counters::Counters;
pub use base::options::{Allocation, MountOptions, OnError};
pub use base::runtime::TokioRuntime;
pub use file::map::{MappedBytes, MappedBytesMut};
pub use file::options::{OpenOptions, ReadFlags, SyncMode, WriteFlags};
pub use file::sync_file_range::SyncRange;
pub use file::{File, SeekTarget};
pub use filesystem::Filesystem;
pub use filesystem::statfs::StatFs;
pub use io::fallocate::request::FallocateMode;
pub use io::inline_data::InlineExtent;
pub use mount::journal_change::{ExternalJournal, NewJournalOptions, create_journal, remove_journal};
pub use mount::journal_location::has_external_journal;
pub use mount::mkfs::mkfs;
pub use mount::unmounted_journal::{JournalReplay, inspect_journal, replay_journal};
pub use namespace::attributes::{Attributes, SetAttributes};
pub use namespace::new_inode::{Credentials, NewInode, Times};
pub use namespace::rename::RenameFlags;
pub use path::MAX_SYMLINKS;
pub use volume::fast_commit::reason::{FastCommitReasons, Reason as FastCommitReason};

// What the signatures above name, so that a user needs this crate and a backend.
pub use bytes::Bytes;
pub use ext4_core::device::{AlignedBuffer, BlockDevice, Geometry, MemoryDevice};
pub use ext4_core::environment::{Environment, Runtime, SystemEnvironment};
pub use ext4_core::format::inode::{FileType, InodeFlags};
pub use ext4_core::format::superblock::Superblock;
pub use ext4_core::meta::directory::DirectoryEntry;
pub use ext4_core::meta::extent_tree::{Mapping, MappingState};
pub use ext4_core::meta::mkfs::MkfsOptions;
pub use ext4_core::meta::xattr::SetMode;
pub use ext4_core::{
    BlockNumber, BlockSize, Corrupt, Errno, Error, InodeNumber, LogicalBlock, Result, Timestamp,
};
pub use ext4_journal::Inspection;
pub use ext4_journal::{
    Damage, FastCommitStatistics, Recovery, RecoveryReport, Statistics as JournalStatistics,
};
