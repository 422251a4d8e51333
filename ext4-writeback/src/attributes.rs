//! What stat, setattr and statfs speak of.

use ext4_core::format::inode::{FileType, InodeFlags};
use ext4_core::{InodeNumber, Timestamp};

/// What stat tells about an inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// Its number.
    pub inode: InodeNumber,
    /// Its type.
    pub file_type: FileType,
    /// Type and permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes (i_size: what was written, also where it is not on the device yet).
    pub size: u64,
    /// Allocated and reserved, in 512-byte sectors.
    pub sectors: u64,
    /// Hard links.
    pub links: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation, where recorded.
    pub crtime: Option<Timestamp>,
    /// For device nodes: major and minor number.
    pub device: Option<(u32, u32)>,
    /// Flags.
    pub flags: InodeFlags,
    /// Generation.
    pub generation: u32,
}

/// What to change of an inode; `None` leaves it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttributes {
    /// Permission bits (the type bits are ignored).
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<Timestamp>,
    /// Last change of the content.
    pub mtime: Option<Timestamp>,
}

/// Who creates something, and with which permissions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Credentials {
    /// Owner.
    pub uid: u32,
    /// Group (a set-group-ID directory's own group wins).
    pub gid: u32,
    /// Permission bits.
    pub mode: u16,
}

/// What statfs tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatFs {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks in all, less the fixed metadata (the kernel's `minixdf` is off).
    pub blocks: u64,
    /// Free blocks.
    pub free_blocks: u64,
    /// Free blocks that are not kept for root.
    pub available_blocks: u64,
    /// Inodes.
    pub inodes: u64,
    /// Free inodes.
    pub free_inodes: u64,
}
