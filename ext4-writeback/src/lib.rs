//! The mounted file system.
#![forbid(unsafe_code)]

mod attendance;
pub mod attributes;
mod completion;
mod copy_range;
pub mod counters;
mod discard;
mod error_policy;
mod extent_status;
mod fallocate;
pub mod fast_commit;
pub mod file;
pub mod filesystem;
mod flusher;
mod folio;
mod handle;
mod inode_cache;
mod inode_info;
mod ioend;
mod iomap;
mod lock_order;
pub mod namespace;
pub mod options;
mod page_cache;
pub mod path;
pub mod runtime;
mod trim;
mod truncate;
mod writeback;
mod xattr;

pub use attributes::{Attributes, Credentials, SetAttributes, StatFs};
pub use counters::Counters;
pub use ext4_core::meta::xattr::SetMode;
pub use ext4_core::{Error, Result};
pub use ext4_journal::FastCommitStatistics;
pub use fallocate::FallocateMode;
pub use fast_commit::{FastCommitReasons, Reason as FastCommitReason};
pub use file::File;
pub use filesystem::Filesystem;
pub use namespace::{NewInode, RenameFlags, Times};
pub use options::{MountOptions, OnError};
