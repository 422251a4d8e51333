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

mod create;
mod link;
mod lookup;
mod new_inode;
mod remove;
mod rename;
mod symlink;

use ext4_core::format::inode::{Inode, InodeFlags};
use ext4_core::{Errno, Error, Result};

pub(crate) use ext4_core::meta::links::{self, add_subdirectory, names_changed, remove_subdirectory};
pub use new_inode::{NewInode, Times};
pub use rename::RenameFlags;
pub(crate) use symlink::target as symlink_target;

/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;

/// Checks that `name` can be made or removed; `dots` is the errno for `.` and `..`.
fn check_name(name: &[u8], dots: Errno) -> Result<()> {
    let fail = |errno| Err(Error::posix(errno, format!("name {:?}", String::from_utf8_lossy(name))));
    match name {
        b"" => fail(Errno::ENOENT),
        b"." | b".." => fail(dots),
        _ if name.len() > NAME_MAX => fail(Errno::ENAMETOOLONG),
        _ if name.iter().any(|byte| matches!(byte, b'/' | 0)) => fail(Errno::EINVAL),
        _ => Ok(()),
    }
}

/// Fails with `EPERM` where names may not be added to `directory`.
fn check_may_add(directory: &Inode) -> Result<()> {
    if directory.flags.contains(InodeFlags::IMMUTABLE) {
        return Err(Error::posix(Errno::EPERM, format!("directory {} is immutable", directory.number)));
    }
    Ok(())
}

/// Fails with `EPERM` where `inode`'s name may not be taken out of a directory with `directory` flags.
fn check_may_remove(directory: InodeFlags, inode: &Inode) -> Result<()> {
    if (directory | inode.flags).intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND) {
        let context = format!("inode {} or its directory is immutable or append-only", inode.number);
        return Err(Error::posix(Errno::EPERM, context));
    }
    Ok(())
}
