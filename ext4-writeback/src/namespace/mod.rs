//! The name space: every operation that looks up, makes or removes names.
//!
//! Locks. An operation on a name holds the `rwlock` of the directory, for writing where it changes it; then that of
//! the inode the name belongs to, where its link count changes. So locks are taken from the root downwards. A rename
//! from one directory into another holds the file system's rename mutex, so that no directory moves while it finds out
//! which of the two lies above the other: that one is locked first, and where neither does, the one with the smaller
//! number. Nobody else locks two directories that do not hold each other, so no cycle can form. (The kernel's
//! rules: Documentation/filesystems/directory-locking.rst.)
//!
//! Invariant: each operation is one handle with credits for its worst case, so that a crash shows it done or not done.
//! Deleting an inode that lost its last link follows in handles of its own; until then it is an orphan.

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

/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;
