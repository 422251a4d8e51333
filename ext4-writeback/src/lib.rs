//! The mounted file system.
#![forbid(unsafe_code)]

pub mod attributes;
mod error_policy;
pub mod file;
pub mod filesystem;
mod handle;
mod inode_cache;
mod inode_info;
pub mod options;
pub mod runtime;

pub use attributes::{Attributes, Credentials, SetAttributes, StatFs};
pub use ext4_core::{Error, Result};
pub use file::File;
pub use filesystem::Filesystem;
pub use options::MountOptions;
