//! TODO header.

use ext4_core::format::inode::{Inode, InodeFlags};
use ext4_core::{Errno, Error, Result};

use crate::namespace::NAME_MAX;

/// Checks that `name` can be made or removed; `dots` is the errno for `.` and `..`.
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

/// Fails with `EPERM` where names may not be added to `directory`.
pub(crate) fn check_may_add(directory: &Inode) -> Result<()> {
    if directory.flags.contains(InodeFlags::IMMUTABLE) {
        return Err(Error::posix(Errno::EPERM, format!("directory {} is immutable", directory.number)));
    }
    Ok(())
}

/// Fails with `EPERM` where `inode`'s name may not be taken out of a directory with `directory` flags.
pub(crate) fn check_may_remove(directory: InodeFlags, inode: &Inode) -> Result<()> {
    if (directory | inode.flags).intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND) {
        let context = format!("inode {} or its directory is immutable or append-only", inode.number);
        return Err(Error::posix(Errno::EPERM, context));
    }
    Ok(())
}
