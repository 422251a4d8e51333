//! The mounted file system.
#![forbid(unsafe_code)]
#![deny(clippy::self_named_module_files)]

mod base;
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
pub use ext4_core::device::AlignedBuffer;
pub use ext4_core::meta::xattr::SetMode;
pub use ext4_core::{Error, InodeNumber, Result, Timestamp};
pub use ext4_journal::FastCommitStatistics;
pub use file::map::{MappedBytes, MappedFolio};
pub use file::options::{OpenOptions, ReadFlags, SyncMode, WriteFlags};
pub use file::sync_range::SyncRange;
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
pub use volume::fast_commit::reason::{FastCommitReasons, Reason as FastCommitReason};
