//! Checks of a directory entry before it is added or removed: the name, and the flags that forbid it.

use ext4_core::format::inode::{Inode, InodeFlags};
use ext4_core::{Errno, Error, Result};

use crate::namespace::NAME_MAX;

/// Checks that an entry `name` can be added or removed.
///
/// # Errors
/// - `dots`: the name is `.` or `..`.
/// - `ENOENT`: it is empty.
/// - `ENAMETOOLONG`: it is longer than 255 bytes.
/// - `EINVAL`: there is a slash or NUL in it.
pub(crate) fn check_name(name: &[u8], dots: Errno) -> Result<()> {
    let fail = |errno| Err(Error::posix(errno, format!("name {:?}", String::from_utf8_lossy(name))));
    match name {
        b"" => fail(Errno::ENOENT),
        b"." | b".." => fail(dots),
        _ if name.len() > NAME_MAX => fail(Errno::ENAMETOOLONG),
        _ if name.iter().any(|byte| matches!(byte, b'/' | 0)) => fail(Errno::EINVAL),
        _ => Ok(()),
    }
}

/// Checks that entries may be added to `directory`.
///
/// # Errors
/// `EPERM`: it is immutable.
pub(crate) fn check_may_add(directory: &Inode) -> Result<()> {
    if directory.flags.contains(InodeFlags::IMMUTABLE) {
        return Err(Error::posix(Errno::EPERM, format!("directory {} is immutable", directory.number)));
    }
    Ok(())
}

/// Checks that an entry that points to `inode` may be removed from a directory with the flags `directory`.
///
/// # Errors
/// `EPERM`: one of the two is immutable or append-only.
pub(crate) fn check_may_remove(directory: InodeFlags, inode: &Inode) -> Result<()> {
    if (directory | inode.flags).intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND) {
        let context = format!("inode {} or its directory is immutable or append-only", inode.number);
        return Err(Error::posix(Errno::EPERM, context));
    }
    Ok(())
}
