//! The name space (the kernel's `namei.c`): operations that look up, create, rename or remove directory
//! entries, and those on attributes.
//!
//! Locks: an operation on a directory entry takes the `rwlock` of the directory, for writing if it changes
//! the directory; then the `rwlock` of the inode that the entry points to, if its link count changes. So
//! locks are taken from the root downwards. A rename from one directory into another holds the file system's
//! rename mutex, so that no directory moves while it finds out which of the two lies above the other: the
//! upper one is locked first, or the one with the smaller number if neither lies above. No other operation
//! locks two directories of which neither is the parent of the other, so no cycle can form. (The kernel's
//! rules: Documentation/filesystems/directory-locking.rst.)
//!
//! Invariant: each operation is one handle with credits for its worst case, so that a crash shows it done or
//! not done. Deleting an inode that lost its last link follows in handles of its own; until then it is an
//! orphan.

pub(crate) mod attributes;
pub(crate) mod create;
pub(crate) mod link;
pub(crate) mod lookup;
pub(crate) mod names;
pub(crate) mod new_inode;
pub(crate) mod remove;
pub(crate) mod rename;
pub(crate) mod symlink;
pub(crate) mod xattr;

/// The longest name of a directory entry, in bytes (`EXT4_NAME_LEN`).
pub const NAME_MAX: usize = 255;
