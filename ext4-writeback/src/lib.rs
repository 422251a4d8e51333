//! The mounted file system.
#![forbid(unsafe_code)]

mod attendance;
pub mod attributes;
mod completion;
pub mod counters;
mod discard;
mod error_policy;
mod extent_status;
pub mod fast_commit;
pub mod file;
pub mod filesystem;
mod flusher;
mod folio;
mod handle;
mod indirect;
mod inline_data;
mod inode_cache;
mod inode_info;
mod ioend;
mod iomap;
mod lock_order;
pub mod namespace;
pub mod options;
mod page_cache;
pub mod path;
mod preallocation;
pub mod runtime;
mod truncate;
mod writeback;
mod xattr;

pub use attributes::{Attributes, Credentials, SetAttributes, StatFs};
pub use counters::Counters;
pub use ext4_core::meta::xattr::SetMode;
pub use ext4_core::{Error, Result};
pub use ext4_journal::FastCommitStatistics;
pub use fast_commit::{FastCommitReasons, Reason as FastCommitReason};
pub use file::File;
pub use filesystem::Filesystem;
pub use inline_data::InlineExtent;
pub use namespace::{NewInode, RenameFlags, Times};
pub use options::{Allocation, MountOptions, OnError};
