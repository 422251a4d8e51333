//! The raw structs of an inode, and what its bytes depend on besides the inode.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::format::features::Features;
use crate::types::BlockSize;

/// Bytes of the part every inode has (kernel: `EXT4_GOOD_OLD_INODE_SIZE`).
pub const BASE_SIZE: u16 = 128;
/// Bytes of the extra fields that are known: up to and with i_projid.
pub const EXTRA_SIZE: u16 = 32;

/// The first 128 bytes of an inode on the device.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are those of the kernel documentation")]
pub struct RawInode {
    pub i_mode: U16,
    pub i_uid: U16,
    pub i_size_lo: U32,
    pub i_atime: U32,
    pub i_ctime: U32,
    pub i_mtime: U32,
    pub i_dtime: U32,
    pub i_gid: U16,
    pub i_links_count: U16,
    pub i_blocks_lo: U32,
    pub i_flags: U32,
    /// Linux: the low half of the version; Hurd: the translator's block.
    pub i_osd1: U32,
    pub i_block: [u8; 60],
    pub i_generation: U32,
    pub i_file_acl_lo: U32,
    pub i_size_high: U32,
    pub i_obso_faddr: U32,
    /// Hurd: reserved.
    pub l_i_blocks_high: U16,
    /// Hurd: the mode's high half.
    pub l_i_file_acl_high: U16,
    pub l_i_uid_high: U16,
    pub l_i_gid_high: U16,
    /// Hurd: the author, with the next field.
    pub l_i_checksum_lo: U16,
    pub l_i_reserved: U16,
}

/// The extra fields, of which an inode holds the first `i_extra_isize` bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are those of the kernel documentation")]
pub struct RawInodeExtra {
    pub i_extra_isize: U16,
    pub i_checksum_hi: U16,
    pub i_ctime_extra: U32,
    pub i_mtime_extra: U32,
    pub i_atime_extra: U32,
    pub i_crtime: U32,
    pub i_crtime_extra: U32,
    pub i_version_hi: U32,
    pub i_projid: U32,
}

/// What an inode's bytes depend on besides the inode: facts of the superblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InodeLayout {
    /// The feature masks.
    pub features: Features,
    /// Bytes of one inode in the table: 128 or a larger power of two up to the block size.
    pub inode_size: u16,
    /// The unit of block counts of huge files.
    pub block_size: BlockSize,
    /// The 512-byte sectors an attribute block takes: those of a block, or of a cluster with bigalloc.
    pub cluster_sectors: u64,
    /// The seed of all metadata checksums.
    pub checksum_seed: u32,
    /// True if s_creator_os is Linux (0): only then are there checksums.
    pub linux: bool,
    /// True if s_creator_os is Hurd (1): version and the high half of the attribute block mean other things.
    pub hurd: bool,
}

impl InodeLayout {
    pub(super) fn checksums(&self) -> bool {
        self.features.metadata_csum() && self.linux
    }
}

/// Extra fields by where they end, counted from byte 128.
#[derive(Clone, Copy)]
pub(super) enum FieldEnd {
    ChecksumHi = 4,
    Times = 16,
    Crtime = 20,
    CrtimeExtra = 24,
}

pub(super) fn holds(extra_isize: u16, field: FieldEnd) -> bool {
    extra_isize >= field as u16
}

/// Copies as many bytes as both hold.
pub(super) fn copy(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}
