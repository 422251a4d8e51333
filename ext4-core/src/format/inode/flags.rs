//! i_flags, and the types of files.

use bitflags::bitflags;

bitflags! {
    /// i_flags. Source: kernel documentation, "Index Nodes".
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct InodeFlags: u32 {
        /// Secure deletion.
        const SECRM = 0x1;
        /// Undelete.
        const UNRM = 0x2;
        /// Compressed.
        const COMPR = 0x4;
        /// Synchronous writes.
        const SYNC = 0x8;
        /// Cannot be changed.
        const IMMUTABLE = 0x10;
        /// Can only be appended to.
        const APPEND = 0x20;
        /// Not for dump(1).
        const NODUMP = 0x40;
        /// No access times.
        const NOATIME = 0x80;
        /// Encrypted.
        const ENCRYPT = 0x800;
        /// A hashed directory (htree).
        const INDEX = 0x1000;
        /// Data goes through the journal.
        const JOURNAL_DATA = 0x4000;
        /// No tail merging.
        const NOTAIL = 0x8000;
        /// Directory entries are written synchronously.
        const DIRSYNC = 0x1_0000;
        /// Top of a directory hierarchy.
        const TOPDIR = 0x2_0000;
        /// i_blocks counts file-system blocks.
        const HUGE_FILE = 0x4_0000;
        /// Mapped by extents.
        const EXTENTS = 0x8_0000;
        /// Verity.
        const VERITY = 0x10_0000;
        /// Holds a large attribute value.
        const EA_INODE = 0x20_0000;
        /// Blocks past the end are allocated.
        const EOFBLOCKS = 0x40_0000;
        /// DAX.
        const DAX = 0x200_0000;
        /// Holds its data itself.
        const INLINE_DATA = 0x1000_0000;
        /// Children inherit the project.
        const PROJINHERIT = 0x2000_0000;
        /// A case-insensitive directory.
        const CASEFOLD = 0x4000_0000;
        const _ = !0;
    }
}

/// What an inode is; the values are those of the mode's top four bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u16)]
pub enum FileType {
    /// S_IFIFO
    Fifo = 0x1000,
    /// S_IFCHR
    CharacterDevice = 0x2000,
    /// S_IFDIR
    Directory = 0x4000,
    /// S_IFBLK
    BlockDevice = 0x6000,
    /// S_IFREG
    Regular = 0x8000,
    /// S_IFLNK
    Symlink = 0xa000,
    /// S_IFSOCK
    Socket = 0xc000,
}

impl FileType {
    /// From a mode; `None` if the top four bits are none of the seven.
    #[must_use]
    pub fn from_mode(mode: u16) -> Option<Self> {
        Some(match mode & 0xf000 {
            0x1000 => Self::Fifo,
            0x2000 => Self::CharacterDevice,
            0x4000 => Self::Directory,
            0x6000 => Self::BlockDevice,
            0x8000 => Self::Regular,
            0xa000 => Self::Symlink,
            0xc000 => Self::Socket,
            _ => return None,
        })
    }

    /// The bits in a mode.
    #[must_use]
    pub fn mode_bits(self) -> u16 {
        match self {
            Self::Fifo => 0x1000,
            Self::CharacterDevice => 0x2000,
            Self::Directory => 0x4000,
            Self::BlockDevice => 0x6000,
            Self::Regular => 0x8000,
            Self::Symlink => 0xa000,
            Self::Socket => 0xc000,
        }
    }

    /// The byte in a directory entry. Source: kernel documentation, "Directory Entries" (file_type).
    #[must_use]
    pub fn directory_byte(self) -> u8 {
        match self {
            Self::Regular => 1,
            Self::Directory => 2,
            Self::CharacterDevice => 3,
            Self::BlockDevice => 4,
            Self::Fifo => 5,
            Self::Socket => 6,
            Self::Symlink => 7,
        }
    }

    /// From the byte in a directory entry; `None` if it is 0 (unknown) or none of the seven.
    #[must_use]
    pub fn from_directory_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::CharacterDevice,
            4 => Self::BlockDevice,
            5 => Self::Fifo,
            6 => Self::Socket,
            7 => Self::Symlink,
            _ => return None,
        })
    }
}
