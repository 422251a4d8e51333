//! The attributes of a new inode: type, owner, mode, inherited flags, device number, times.

use ext4_core::format::inode::{FileType, Inode, InodeFlags};
use ext4_core::{Errno, Error, Result, Timestamp};

use crate::base::options::setters;

/// Owner and permission bits of a new inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Credentials {
    /// Owner.
    pub uid: u32,
    /// Group; in a set-group-ID directory the directory's group is taken.
    pub gid: u32,
    /// Permission bits.
    pub mode: u16,
}

/// All times of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Times {
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation; `None` leaves it as it is. An inode of 128 bytes has no room for it.
    pub crtime: Option<Timestamp>,
}

/// An inode to be created, with all its attributes: for [`crate::filesystem::Filesystem::create_with`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct NewInode {
    /// The type.
    pub file_type: FileType,
    /// Owner and permission bits.
    pub credentials: Credentials,
    /// For device nodes: major and minor number.
    pub device: (u32, u32),
    /// For symlinks: the target.
    pub target: Vec<u8>,
    /// The times; `None` for the present.
    pub times: Option<Times>,
    /// The extended attributes: full names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// True if the inode inherits its directory's default access control list, as by the system calls. A tool
    /// that restores a tree sets the list that each file had, and leaves this false.
    pub inherit_acl: bool,
}

impl NewInode {
    /// An inode of `file_type` without extended attributes and with the present time.
    #[must_use]
    pub fn new(file_type: FileType, credentials: Credentials) -> Self {
        Self {
            file_type,
            credentials,
            device: (0, 0),
            target: Vec::new(),
            times: None,
            xattrs: Vec::new(),
            inherit_acl: false,
        }
    }
}

setters! {
    NewInode:
    device: (u32, u32),
    target: Vec<u8>,
    times: Option<Times>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    inherit_acl: bool,
}

/// The set-group-ID bit.
const S_ISGID: u16 = 0o2000;

/// Mode and group of a new inode in the directory `parent`: a set-group-ID directory hands on its group, and
/// to directories the bit as well.
pub(crate) fn mode_and_group(new: &NewInode, parent: &Inode) -> (u16, u32) {
    let mut mode = new.file_type.mode_bits() | (new.credentials.mode & 0o7777);
    if parent.mode & S_ISGID == 0 {
        return (mode, new.credentials.gid);
    }
    if new.file_type == FileType::Directory {
        mode |= S_ISGID;
    }
    (mode, parent.gid)
}

/// i_flags of a new inode in a directory with the flags `parent`. Source: kernel documentation, "Index Nodes"
/// (i_flags): which flags are inherited, and by which types.
pub(crate) fn inherited_flags(parent: InodeFlags, file_type: FileType) -> InodeFlags {
    /// `EXT4_NOCOMPR_FL` ("do not compress"): the kernel keeps and inherits it, and never looks at it.
    const NOCOMPR: InodeFlags = InodeFlags::from_bits_retain(0x400);
    let inherited = InodeFlags::SECRM
        | InodeFlags::UNRM
        | InodeFlags::COMPR
        | InodeFlags::SYNC
        | InodeFlags::NODUMP
        | InodeFlags::NOATIME
        | NOCOMPR
        | InodeFlags::JOURNAL_DATA
        | InodeFlags::NOTAIL
        | InodeFlags::DIRSYNC
        | InodeFlags::DAX
        | InodeFlags::PROJINHERIT
        | InodeFlags::CASEFOLD;
    let flags = parent & inherited;
    match file_type {
        FileType::Directory => flags,
        FileType::Regular => flags - (InodeFlags::DIRSYNC | InodeFlags::PROJINHERIT | InodeFlags::CASEFOLD),
        _ => flags & (InodeFlags::NODUMP | InodeFlags::NOATIME),
    }
}

/// Checks that a device number fits: 12 bits for major, 20 bits for minor.
///
/// # Errors
/// `EINVAL`: it does not.
pub(crate) fn check_device((major, minor): (u32, u32)) -> Result<()> {
    if major < 1 << 12 && minor < 1 << 20 {
        return Ok(());
    }
    Err(Error::posix(Errno::EINVAL, format!("device number {major}:{minor}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::test_inode;

    #[test]
    fn a_set_group_id_directory_hands_on_its_group() {
        let mut parent = test_inode(12, 0o42755);
        parent.gid = 77;
        let credentials = Credentials { uid: 5, gid: 6, mode: 0o644 };
        let file = NewInode::new(FileType::Regular, credentials);
        assert_eq!(mode_and_group(&file, &parent), (0o100644, 77));
        let directory = NewInode::new(FileType::Directory, credentials);
        assert_eq!(mode_and_group(&directory, &parent), (0o42644, 77));
        parent.mode = 0o40755;
        assert_eq!(mode_and_group(&directory, &parent), (0o40644, 6));
    }

    #[test]
    fn an_index_is_not_inherited_and_special_files_inherit_little() {
        let parent = InodeFlags::INDEX | InodeFlags::EXTENTS | InodeFlags::NOATIME | InodeFlags::DIRSYNC;
        assert_eq!(inherited_flags(parent, FileType::Directory), InodeFlags::NOATIME | InodeFlags::DIRSYNC);
        assert_eq!(inherited_flags(parent, FileType::Regular), InodeFlags::NOATIME);
        assert_eq!(inherited_flags(parent | InodeFlags::SYNC, FileType::Fifo), InodeFlags::NOATIME);
    }
}
