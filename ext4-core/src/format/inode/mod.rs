//! Inodes: the checked [`Inode`], its bytes in the inode table, and its checksum.
//!
//! | file | owns |
//! |---|---|
//! | `mod` | [`Inode`] and what its fields say |
//! | `flags` | i_flags, the types of files |
//! | `layout` | the raw structs, and what an inode's bytes depend on |
//! | `slot` | from the bytes of a slot to an [`Inode`] and back, times, block counts |
//! | `halves` | numbers in two halves |
//! | `checksum` | the checksum of a slot |
//!
//! ```text
//!   0         128       128 + extra_isize          inode_size
//!   ├─ fixed ──┼─ extra fields ─┼─ attributes in the inode ─┤
//! ```
//!
//! Source: kernel documentation, "Index Nodes" (Documentation/filesystems/ext4/inodes.rst).

mod checksum;
mod flags;
mod halves;
mod layout;
mod slot;
#[cfg(test)]
mod tests;

use alloc::vec;
use alloc::vec::Vec;

pub use checksum::inode_seed;
pub use flags::{FileType, InodeFlags};
pub use layout::{BASE_SIZE, EXTRA_SIZE, InodeLayout, RawInode, RawInodeExtra};
use layout::{FieldEnd, copy, holds};
pub use slot::{TIME_MAX, TIME_MAX_BASE, TIME_MIN};

use super::features::Incompat;
use crate::types::{BlockNumber, InodeNumber, Timestamp};

/// The longest target of a symlink that lies in the inode, plus one for the zero after it.
pub const FAST_SYMLINK_SIZE: u64 = 60;

/// One inode in memory, checked; every field in its widest form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inode {
    /// Its number.
    pub number: InodeNumber,
    /// Type and permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes, as on the device: i_disksize.
    pub size: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Creation; `None` if the inode is too small to hold it.
    pub crtime: Option<Timestamp>,
    /// Deletion time in seconds, or while on the orphan list the next orphan's number.
    pub dtime: u32,
    /// Hard links; 1 in a directory with too many subdirectories to count.
    pub links_count: u16,
    /// i_blocks in 512-byte sectors, whatever the unit on the device.
    pub sectors: u64,
    /// Flags.
    pub flags: InodeFlags,
    /// Version, for NFS.
    pub version: u64,
    /// Generation, for NFS and checksums.
    pub generation: u32,
    /// The block of extended attributes; 0 for none.
    pub file_acl: BlockNumber,
    /// Project.
    pub project: u32,
    /// The root of the extent tree or block map, a fast symlink's target, a device number, or inline data.
    pub i_block: [u8; 60],
    /// Bytes of fixed fields past the first 128; 0 in a 128-byte inode.
    pub extra_isize: u16,
    /// What follows the fixed fields up to the end of the inode: attributes in the inode, with their magic.
    pub xattr_area: Vec<u8>,
    /// True if what its slot held before is of no value: every byte of the slot is written, unknown ones as
    /// zeros.
    pub is_new: bool,
}

impl Inode {
    /// What it is; `None` if the mode has none of the seven types.
    #[must_use]
    pub fn file_type(&self) -> Option<FileType> {
        FileType::from_mode(self.mode)
    }

    /// Returns true if the inode is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.file_type() == Some(FileType::Directory)
    }

    /// An inode that was just allocated: mode and times set, everything else zero. `extra_isize` is the
    /// superblock's s_want_extra_isize (0 stands for 32); it is cut to what the inode holds.
    #[must_use]
    pub fn new(
        number: InodeNumber,
        mode: u16,
        layout: &InodeLayout,
        want_extra_isize: u16,
        now: Timestamp,
    ) -> Self {
        let room = layout.inode_size.saturating_sub(BASE_SIZE);
        let want = if want_extra_isize < 4 { EXTRA_SIZE } else { want_extra_isize & !3 };
        let extra_isize = want.min(room);
        Self {
            number,
            mode,
            uid: 0,
            gid: 0,
            size: 0,
            atime: now,
            ctime: now,
            mtime: now,
            crtime: holds(extra_isize, FieldEnd::Crtime).then_some(now),
            dtime: 0,
            links_count: 0,
            sectors: 0,
            flags: InodeFlags::empty(),
            version: 0,
            generation: 0,
            file_acl: BlockNumber(0),
            project: 0,
            i_block: [0; 60],
            extra_isize,
            xattr_area: vec![0; usize::from(room.saturating_sub(extra_isize))],
            is_new: true,
        }
    }

    /// An inode that was never used: every field zero.
    #[must_use]
    pub fn free(number: InodeNumber, layout: &InodeLayout) -> Self {
        let zero = Timestamp::default();
        Self { crtime: None, extra_isize: 0, xattr_area: Vec::new(), ..Self::new(number, 0, layout, 0, zero) }
    }

    /// Returns true for an inode that is mapped by extents; false if it has indirect blocks, or nothing to
    /// map.
    #[must_use]
    pub fn uses_extents(&self) -> bool {
        self.flags.contains(InodeFlags::EXTENTS)
    }

    /// Returns true for a symlink whose target lies in `i_block` (the kernel's `ext4_inode_is_fast_symlink`).
    #[must_use]
    pub fn is_fast_symlink(&self, layout: &InodeLayout) -> bool {
        if self.file_type() != Some(FileType::Symlink) || self.flags.contains(InodeFlags::INLINE_DATA) {
            return false;
        }
        if layout.features.incompat.contains(Incompat::EA_INODE) {
            // i_blocks may count value inodes there, so the kernel goes by the length.
            return self.size != 0 && self.size < FAST_SYMLINK_SIZE;
        }
        let attributes = if self.file_acl.0 == 0 { 0 } else { layout.cluster_sectors };
        self.sectors == attributes && self.size < FAST_SYMLINK_SIZE
    }

    /// Returns true if the slot holds no file: it was never used, or its file was deleted. An orphan whose
    /// `dtime` links it to the next one looks the same; a walk of the orphan list knows better.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.links_count == 0 && (self.mode == 0 || self.dtime != 0)
    }

    /// Major and minor number of a device node: the old 16-bit form in the first word, else the new one in
    /// the second.
    #[must_use]
    pub fn device_number(&self) -> (u32, u32) {
        let [old, new] = self.device_words();
        if old != 0 {
            return ((old >> 8) & 0xff, old & 0xff);
        }
        ((new & 0xf_ff00) >> 8, (new & 0xff) | ((new >> 12) & 0xf_ff00))
    }

    fn device_words(&self) -> [u32; 2] {
        let [a, b, c, d, e, f, g, h, ..] = self.i_block;
        [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
    }

    /// Sets major (12 bits) and minor (20 bits) of a device node, in the old form if both are below 256.
    pub fn set_device_number(&mut self, major: u32, minor: u32) {
        let (old, new) = if major < 256 && minor < 256 {
            ((major << 8) | minor, 0)
        } else {
            (0, (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12))
        };
        self.i_block = [0; 60];
        copy(&mut self.i_block, u64::from(old).to_le_bytes().get(..4).unwrap_or_default());
        copy(self.i_block.get_mut(4..).unwrap_or_default(), new.to_le_bytes().as_slice());
    }

    /// The seed of checksums of blocks that belong to this inode: crc32c over number and generation.
    #[must_use]
    pub fn checksum_seed(&self, file_system_seed: u32) -> u32 {
        inode_seed(file_system_seed, self.number, self.generation)
    }

    /// Makes mtime and ctime `now`: the content of the inode changed (data of a file, names of a directory).
    pub fn stamp_change(&mut self, now: Timestamp) {
        self.mtime = now;
        self.ctime = now;
    }
}
