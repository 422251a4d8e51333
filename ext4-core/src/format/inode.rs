//! Inodes: the checked [`Inode`], its bytes in the inode table, and its checksum.
//!
//! ```text
//!   0         128       128 + extra_isize          inode_size
//!   ├─ fixed ──┼─ extra fields ─┼─ attributes in the inode ─┤
//! ```
//!
//! Source: kernel documentation, "Index Nodes" (Documentation/filesystems/ext4/inodes.rst).
//!
//! Invariants:
//! - Bytes of a slot that nothing here knows survive [`Inode::serialize`]: a later kernel's fields are not lost because
//!   we changed a time stamp.
//! - Serialising fails before it changes anything: a block count that does not fit never reaches the device cut short,
//!   where it would free the wrong number of blocks from a quota and make `e2fsck` "repair" a good file.
//! - A slot is taken for an inode only when its checksum covers number and generation, so a misdirected write of one
//!   inode over another is seen.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::features::{Features, Incompat, RoCompat};
use crate::checksum::crc32c;
use crate::error::{Errno, Error, Result};
use crate::types::{BlockNumber, BlockSize, InodeNumber, Timestamp};

/// Bytes of the part every inode has (kernel: `EXT4_GOOD_OLD_INODE_SIZE`).
pub const BASE_SIZE: u16 = 128;
/// Bytes of the extra fields that are known: up to and with i_projid.
pub const EXTRA_SIZE: u16 = 32;
/// Where the low half of the checksum lies.
const CHECKSUM_LO: usize = 0x7c;
/// Where the high half of the checksum lies.
const CHECKSUM_HI: usize = 0x82;
/// The earliest time that can be stored: 1901-12-13T20:45:52Z.
pub const TIME_MIN: i64 = i32::MIN as i64;
/// The latest time that can be stored with the extra field: 2446-05-10T22:38:55Z.
pub const TIME_MAX: i64 = (1 << 34) - 1 + TIME_MIN;
/// The latest time that can be stored without the extra field: 2038-01-19T03:14:07Z.
pub const TIME_MAX_BASE: i64 = i32::MAX as i64;
/// The longest target of a symlink that lies in the inode, plus one for the zero after it.
pub const FAST_SYMLINK_SIZE: u64 = 60;

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
    /// s_creator_os is Linux (0): only then are there checksums.
    pub linux: bool,
    /// s_creator_os is Hurd (1): version and the high half of the attribute block mean other things.
    pub hurd: bool,
}

impl InodeLayout {
    fn checksums(&self) -> bool {
        self.features.metadata_csum() && self.linux
    }
}

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
    /// From a mode; `None` where the top four bits are none of the seven.
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

    /// From the byte in a directory entry; `None` where it is 0 (unknown) or none of the seven.
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
    /// Creation; `None` where the inode is too small to hold it.
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
    /// What its slot held before is of no value: every byte of the slot is written, unknown ones as zeros.
    pub is_new: bool,
}

impl Inode {
    /// What it is; `None` where the mode has none of the seven types.
    #[must_use]
    pub fn file_type(&self) -> Option<FileType> {
        FileType::from_mode(self.mode)
    }

    /// True for a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.file_type() == Some(FileType::Directory)
    }

    /// An inode that was just allocated: mode and times set, everything else zero. `extra_isize` is the superblock's
    /// s_want_extra_isize (0 stands for 32); it is cut to what the inode holds.
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

    /// Reads an inode from the bytes of its slot in the table. A slot of zeros is a free inode.
    ///
    /// # Errors
    /// Corrupt: a wrong checksum, an extra size that does not fit, a size of 2^63 bytes and more.
    pub fn parse(bytes: &[u8], number: InodeNumber, layout: &InodeLayout) -> Result<Self> {
        let corrupt = |problem| Error::corrupt(format!("inode {number}"), problem);
        let bytes = bytes
            .get(..usize::from(layout.inode_size))
            .ok_or_else(|| corrupt(format!("{} bytes for an inode of {}", bytes.len(), layout.inode_size)))?;
        let (raw, rest) =
            RawInode::ref_from_prefix(bytes).map_err(|_| corrupt(format!("{} bytes", bytes.len())))?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(Self { is_new: false, ..Self::free(number, layout) });
        }
        let extra_isize = match rest.first_chunk() {
            Some(size) => u16::from_le_bytes(*size),
            None => 0,
        };
        let room = layout.inode_size.saturating_sub(BASE_SIZE);
        if extra_isize > room || !extra_isize.is_multiple_of(4) {
            return Err(corrupt(format!("extra size {extra_isize} is not a multiple of 4 up to {room}")));
        }
        if layout.checksums() {
            let found = stored_checksum(raw, rest, extra_isize);
            let expected = checksum(bytes, number, raw.i_generation.get(), extra_isize, layout);
            if found != expected {
                return Err(corrupt(format!("checksum {found:#x} is not {expected:#x}")));
            }
        }
        let mut extra = RawInodeExtra::new_zeroed();
        for (to, from) in extra.as_mut_bytes().iter_mut().zip(rest.iter().take(usize::from(extra_isize))) {
            *to = *from;
        }
        // Without extra fields the kernel keeps no attributes in the inode either.
        let xattr_area = match extra_isize {
            0 => Vec::new(),
            size => rest.get(usize::from(size)..).unwrap_or_default().to_vec(),
        };
        let mode = raw.i_mode.get();
        let flags = InodeFlags::from_bits_retain(raw.i_flags.get());
        let large = FileType::from_mode(mode) == Some(FileType::Regular)
            || layout.features.incompat.contains(Incompat::LARGEDIR);
        let size = join(raw.i_size_lo.get(), if large { raw.i_size_high.get() } else { 0 });
        if i64::try_from(size).is_err() {
            return Err(corrupt(format!("size {size:#x} is larger than any file")));
        }
        let time = |seconds: U32, nanoseconds: U32| decode_time(seconds.get(), nanoseconds.get());
        let acl_high = if layout.features.bit64() && !layout.hurd { raw.l_i_file_acl_high.get() } else { 0 };
        let projects = layout.features.ro_compat.contains(RoCompat::PROJECT);
        Ok(Self {
            number,
            mode,
            uid: join16(raw.i_uid, raw.l_i_uid_high),
            gid: join16(raw.i_gid, raw.l_i_gid_high),
            size,
            atime: time(raw.i_atime, extra.i_atime_extra),
            ctime: time(raw.i_ctime, extra.i_ctime_extra),
            mtime: time(raw.i_mtime, extra.i_mtime_extra),
            crtime: holds(extra_isize, FieldEnd::Crtime).then(|| time(extra.i_crtime, extra.i_crtime_extra)),
            dtime: raw.i_dtime.get(),
            links_count: raw.i_links_count.get(),
            sectors: decode_sectors(raw, flags, layout),
            flags,
            version: if layout.hurd { 0 } else { join(raw.i_osd1.get(), extra.i_version_hi.get()) },
            generation: raw.i_generation.get(),
            file_acl: BlockNumber(join(raw.i_file_acl_lo.get(), u32::from(acl_high))),
            project: if projects { extra.i_projid.get() } else { 0 },
            i_block: raw.i_block,
            extra_isize,
            xattr_area,
            is_new: false,
        })
    }

    /// Writes the inode into its slot, checksum and all. Bytes that nothing here knows stay as they are (unless the
    /// inode is new). Times out of range are clamped, as the kernel does.
    ///
    /// # Errors
    /// `EFBIG` where the block count cannot be stored; `EINVAL` for a slot or attributes of the wrong size. Nothing
    /// was written then.
    pub fn serialize(&self, slot: &mut [u8], layout: &InodeLayout) -> Result<()> {
        let invalid = |what: &str| Error::posix(Errno::EINVAL, format!("inode {}: {what}", self.number));
        let slot = slot.get_mut(..usize::from(layout.inode_size)).ok_or_else(|| invalid("slot too short"))?;
        let room = layout.inode_size.saturating_sub(BASE_SIZE);
        let Some(attributes) = room.checked_sub(self.extra_isize) else {
            return Err(invalid("the extra fields do not fit"));
        };
        if self.xattr_area.len() > usize::from(attributes) {
            return Err(invalid("the attributes do not fit"));
        }
        let (blocks, flags) = self.encode_sectors(layout)?;
        if self.is_new {
            slot.fill(0);
        }
        let (raw, rest) = RawInode::mut_from_prefix(slot).map_err(|_| invalid("slot too short"))?;
        let extended = holds(self.extra_isize, FieldEnd::Times);
        let (atime, atime_extra) = encode_time(self.atime, extended);
        let (ctime, ctime_extra) = encode_time(self.ctime, extended);
        let (mtime, mtime_extra) = encode_time(self.mtime, extended);
        raw.i_mode = self.mode.into();
        (raw.i_uid, raw.l_i_uid_high) = split16(self.uid);
        (raw.i_gid, raw.l_i_gid_high) = split16(self.gid);
        (raw.i_size_lo, raw.i_size_high) = split(self.size);
        raw.i_atime = atime;
        raw.i_ctime = ctime;
        raw.i_mtime = mtime;
        raw.i_dtime = self.dtime.into();
        raw.i_links_count = self.links_count.into();
        raw.i_flags = flags.bits().into();
        raw.i_generation = self.generation.into();
        raw.i_block = self.i_block;
        let (blocks_lo, blocks_high) = split(blocks);
        raw.i_blocks_lo = blocks_lo;
        raw.l_i_blocks_high = low16(blocks_high.get()).into();
        let (acl_lo, acl_high) = split(self.file_acl.0);
        raw.i_file_acl_lo = acl_lo;
        let (version_lo, version_hi) = split(self.version);
        if !layout.hurd {
            raw.l_i_file_acl_high = low16(acl_high.get()).into();
            raw.i_osd1 = version_lo;
        }
        let mut extra = RawInodeExtra::new_zeroed();
        let known = usize::from(self.extra_isize.min(EXTRA_SIZE));
        copy(extra.as_mut_bytes(), rest.get(..known).unwrap_or_default());
        extra.i_extra_isize = self.extra_isize.into();
        extra.i_atime_extra = atime_extra;
        extra.i_ctime_extra = ctime_extra;
        extra.i_mtime_extra = mtime_extra;
        if let Some(crtime) = self.crtime {
            (extra.i_crtime, extra.i_crtime_extra) =
                encode_time(crtime, holds(self.extra_isize, FieldEnd::CrtimeExtra));
        }
        if !layout.hurd {
            extra.i_version_hi = version_hi;
        }
        if layout.features.ro_compat.contains(RoCompat::PROJECT) {
            extra.i_projid = self.project.into();
        }
        copy(rest, extra.as_bytes().get(..known).unwrap_or_default());
        if self.extra_isize > 0
            && let Some(area) = rest.get_mut(usize::from(self.extra_isize)..)
        {
            copy(area, &self.xattr_area);
            area.get_mut(self.xattr_area.len()..).unwrap_or_default().fill(0);
        }
        if layout.checksums() {
            let sum = checksum(slot, self.number, self.generation, self.extra_isize, layout);
            store_checksum(slot, sum, self.extra_isize);
        }
        Ok(())
    }

    /// i_blocks in the unit it is stored in, and the flags with `HUGE_FILE` as that unit asks: sectors where 48 bits
    /// (32 without the feature) hold them, else file-system blocks. The kernel's `ext4_inode_blocks_set`.
    fn encode_sectors(&self, layout: &InodeLayout) -> Result<(u64, InodeFlags)> {
        let huge = layout.features.ro_compat.contains(RoCompat::HUGE_FILE);
        let limit = if huge { (1 << 48) - 1 } else { u64::from(u32::MAX) };
        let plain = self.flags.difference(InodeFlags::HUGE_FILE);
        if self.sectors <= limit {
            return Ok((self.sectors, plain));
        }
        let blocks = self.sectors.checked_div(layout.block_size.sectors()).unwrap_or(u64::MAX);
        if !huge || blocks > limit {
            return Err(Error::posix(
                Errno::EFBIG,
                format!("inode {}: {} sectors cannot be counted", self.number, self.sectors),
            ));
        }
        Ok((blocks, plain.union(InodeFlags::HUGE_FILE)))
    }

    /// True for an inode that is mapped by extents; false where it has indirect blocks, or nothing to map.
    #[must_use]
    pub fn uses_extents(&self) -> bool {
        self.flags.contains(InodeFlags::EXTENTS)
    }

    /// True for a symlink whose target lies in `i_block` (the kernel's `ext4_inode_is_fast_symlink`).
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

    /// True where the slot holds no file: it was never used, or its file was deleted. An orphan whose `dtime` links it
    /// to the next one looks the same; whoever walks the orphan list knows better.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.links_count == 0 && (self.mode == 0 || self.dtime != 0)
    }

    /// Major and minor number of a device node: the old 16-bit form in the first word, else the new one in the second.
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

    /// Sets major (12 bits) and minor (20 bits) of a device node, in the old form where both are below 256.
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
}

/// crc32c over the file system's seed, an inode's number and its generation (kernel: `i_csum_seed`).
#[must_use]
pub fn inode_seed(file_system_seed: u32, number: InodeNumber, generation: u32) -> u32 {
    crc32c(crc32c(file_system_seed, &number.0.to_le_bytes()), &generation.to_le_bytes())
}

/// Extra fields by where they end, counted from byte 128.
#[derive(Clone, Copy)]
enum FieldEnd {
    ChecksumHi = 4,
    Times = 16,
    Crtime = 20,
    CrtimeExtra = 24,
}

fn holds(extra_isize: u16, field: FieldEnd) -> bool {
    extra_isize >= field as u16
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | (u64::from(high) << 32)
}

fn split(value: u64) -> (U32, U32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (U32::from_bytes([a, b, c, d]), U32::from_bytes([e, f, g, h]))
}

fn join16(low: U16, high: U16) -> u32 {
    u32::from(low.get()) | (u32::from(high.get()) << 16)
}

fn split16(value: u32) -> (U16, U16) {
    let [a, b, c, d] = value.to_le_bytes();
    (U16::from_bytes([a, b]), U16::from_bytes([c, d]))
}

fn low16(value: u32) -> u16 {
    let [a, b, ..] = value.to_le_bytes();
    u16::from_le_bytes([a, b])
}

/// Copies as many bytes as both hold.
fn copy(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

fn decode_sectors(raw: &RawInode, flags: InodeFlags, layout: &InodeLayout) -> u64 {
    let low = raw.i_blocks_lo.get();
    if !layout.features.ro_compat.contains(RoCompat::HUGE_FILE) {
        return u64::from(low);
    }
    let count = join(low, u32::from(raw.l_i_blocks_high.get()));
    if flags.contains(InodeFlags::HUGE_FILE) {
        count.saturating_mul(layout.block_size.sectors())
    } else {
        count
    }
}

/// Seconds are 32 bits with sign; the extra field holds two more above them, which count 2^32 seconds each, and 30 bits
/// of nanoseconds. Source: kernel documentation, "Inode Timestamps".
fn decode_time(seconds: u32, extra: u32) -> Timestamp {
    let epoch = i64::from(extra & 3) << 32;
    Timestamp {
        seconds: i64::from(seconds.cast_signed()).saturating_add(epoch),
        nanoseconds: (extra >> 2).min(999_999_999),
    }
}

fn encode_time(time: Timestamp, extended: bool) -> (U32, U32) {
    let seconds = time.seconds.clamp(TIME_MIN, if extended { TIME_MAX } else { TIME_MAX_BASE });
    let (low, _) = split(seconds.cast_unsigned());
    let epoch = seconds.wrapping_sub(i64::from(low.get().cast_signed())) >> 32;
    let (epoch, _) = split(epoch.cast_unsigned() & 3);
    (low, ((time.nanoseconds << 2) | epoch.get()).into())
}

fn stored_checksum(raw: &RawInode, rest: &[u8], extra_isize: u16) -> u32 {
    let high = match RawInodeExtra::ref_from_prefix(rest) {
        Ok((extra, _)) if holds(extra_isize, FieldEnd::ChecksumHi) => extra.i_checksum_hi,
        _ => U16::ZERO,
    };
    join16(raw.l_i_checksum_lo, high)
}

fn store_checksum(slot: &mut [u8], sum: u32, extra_isize: u16) {
    let (low, high) = split16(sum);
    copy(slot.get_mut(CHECKSUM_LO..).unwrap_or_default(), low.as_bytes());
    if holds(extra_isize, FieldEnd::ChecksumHi) {
        copy(slot.get_mut(CHECKSUM_HI..).unwrap_or_default(), high.as_bytes());
    }
}

/// crc32c over the whole slot with its checksum fields taken as zeros; 16 bits of it where the inode has no place for
/// more.
fn checksum(
    slot: &[u8],
    number: InodeNumber,
    generation: u32,
    extra_isize: u16,
    layout: &InodeLayout,
) -> u32 {
    let part = |from: usize, to: usize| slot.get(from..to).unwrap_or_default();
    let base = usize::from(BASE_SIZE);
    let high = holds(extra_isize, FieldEnd::ChecksumHi);
    let mut sum = inode_seed(layout.checksum_seed, number, generation);
    sum = crc32c(sum, part(0, CHECKSUM_LO));
    sum = crc32c(sum, &[0; 2]);
    sum = crc32c(sum, part(CHECKSUM_LO.saturating_add(2), base));
    if slot.len() > base {
        sum = crc32c(sum, part(base, CHECKSUM_HI));
        let mut at = CHECKSUM_HI;
        if high {
            sum = crc32c(sum, &[0; 2]);
            at = at.saturating_add(2);
        }
        sum = crc32c(sum, part(at, slot.len()));
    }
    if high { sum } else { sum & 0xffff }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::features::Compat;

    fn layout(inode_size: u16) -> InodeLayout {
        InodeLayout {
            features: Features {
                compat: Compat::empty(),
                incompat: Incompat::EXTENTS | Incompat::BIT64,
                ro_compat: RoCompat::METADATA_CSUM | RoCompat::HUGE_FILE | RoCompat::LARGE_FILE,
            },
            inode_size,
            block_size: BlockSize::KIB_4,
            cluster_sectors: 8,
            checksum_seed: 0x1234_5678,
            linux: true,
            hurd: false,
        }
    }

    fn at(seconds: i64, nanoseconds: u32) -> Timestamp {
        Timestamp { seconds, nanoseconds }
    }

    fn through_a_slot(inode: &Inode, layout: &InodeLayout) -> Inode {
        let mut slot = vec![0xa5; usize::from(layout.inode_size)];
        inode.serialize(&mut slot, layout).expect("an inode that fits");
        Inode::parse(&slot, inode.number, layout).expect("what was just written")
    }

    #[test]
    fn times_keep_to_the_nanosecond_from_1901_to_2446() {
        // The table of kernel documentation, "Inode Timestamps": the first and last second of each epoch.
        for seconds in [
            TIME_MIN,
            -1,
            0,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x1_0000_0000,
            0x1_7fff_ffff,
            0x1_8000_0000,
            0x2_ffff_ffff,
            0x3_7fff_fffe,
            TIME_MAX,
        ] {
            for nanoseconds in [0, 1, 999_999_999] {
                let time = at(seconds, nanoseconds);
                let (low, extra) = encode_time(time, true);
                assert_eq!(decode_time(low.get(), extra.get()), time);
            }
        }
        assert_eq!(TIME_MAX, 15_032_385_535);
        assert_eq!(encode_time(at(-1, 0), true), (0xffff_ffff_u32.into(), 0.into()));
        assert_eq!(encode_time(at(0x8000_0000, 5), true), (0x8000_0000_u32.into(), ((5 << 2) | 1).into()));
    }

    #[test]
    fn times_out_of_range_are_clamped() {
        let seconds = |time, extended| {
            let (low, extra) = encode_time(at(time, 0), extended);
            decode_time(low.get(), if extended { extra.get() } else { 0 }).seconds
        };
        assert_eq!(seconds(i64::MIN, true), TIME_MIN);
        assert_eq!(seconds(i64::MAX, true), TIME_MAX);
        assert_eq!(seconds(i64::MAX, false), TIME_MAX_BASE);
        assert_eq!(seconds(-5, false), -5);
    }

    #[test]
    fn every_field_survives_a_slot() {
        for size in [128, 256, 1024] {
            let layout = layout(size);
            let mut inode = Inode::new(InodeNumber(12), 0o100_644, &layout, 32, at(1 << 32, 7));
            inode.uid = 0x1_2345;
            inode.gid = 0xffff_fffe;
            inode.size = 0x7fff_ffff_ffff;
            inode.sectors = 0x1234_5678_9abc;
            inode.links_count = 3;
            inode.file_acl = BlockNumber(0x8765_4321_0fed);
            inode.generation = 99;
            inode.version = if size == 128 { 7 } else { 7 << 32 };
            inode.i_block[59] = 1;
            if let Some(last) = inode.xattr_area.last_mut() {
                *last = 8;
            }
            if size == 128 {
                for time in [&mut inode.atime, &mut inode.ctime, &mut inode.mtime] {
                    *time = at(-9, 0);
                }
            }
            let back = through_a_slot(&inode, &layout);
            inode.is_new = false;
            assert_eq!(back, inode);
        }
    }

    #[test]
    fn unknown_bytes_of_a_slot_are_kept_and_those_of_a_new_inode_cleared() {
        let layout = layout(256);
        let mut inode = Inode::new(InodeNumber(12), 0o100_644, &layout, 48, at(5, 0));
        let mut slot = vec![0xff; 256];
        inode.serialize(&mut slot, &layout).expect("fits");
        assert_eq!(slot.get(160..176), Some([0; 16].as_slice()));
        slot.get_mut(160..176).expect("the extra fields that nobody knows").fill(0x77);
        inode.is_new = false;
        inode.serialize(&mut slot, &layout).expect("fits");
        assert_eq!(slot.get(160..176), Some([0x77; 16].as_slice()));
        let back = Inode::parse(&slot, inode.number, &layout).expect("checksum over unknown bytes as well");
        assert_eq!(back.extra_isize, 48);
    }

    #[test]
    fn block_counts_change_their_unit_as_in_the_kernel() {
        let mut layout = layout(256);
        let mut inode = Inode::new(InodeNumber(12), 0o100_644, &layout, 32, at(5, 0));
        inode.sectors = (1 << 48) + 8;
        let back = through_a_slot(&inode, &layout);
        assert!(back.flags.contains(InodeFlags::HUGE_FILE));
        assert_eq!(back.sectors, inode.sectors);
        inode.sectors = u64::from(u32::MAX) + 1;
        inode.flags |= InodeFlags::HUGE_FILE;
        let back = through_a_slot(&inode, &layout);
        assert!(!back.flags.contains(InodeFlags::HUGE_FILE));
        assert_eq!(back.sectors, inode.sectors);
        layout.features.ro_compat.remove(RoCompat::HUGE_FILE);
        let mut slot = [0xee; 256];
        let error = inode.serialize(&mut slot, &layout).expect_err("33 bits without huge_file");
        assert_eq!(error.errno(), Errno::EFBIG);
        assert_eq!(slot, [0xee; 256]);
    }

    fn flip(bytes: &mut [u8], at: usize) {
        *bytes.get_mut(at).expect("a byte of the slot") ^= 0x10;
    }

    #[test]
    fn a_flipped_bit_or_a_wrong_place_is_seen() {
        for size in [128, 256] {
            let layout = layout(size);
            let inode = Inode::new(InodeNumber(12), 0o100_644, &layout, 32, at(5, 0));
            let mut slot = vec![0; usize::from(size)];
            inode.serialize(&mut slot, &layout).expect("fits");
            assert!(Inode::parse(&slot, InodeNumber(13), &layout).expect_err("another inode's").is_corrupt());
            for byte in 0..slot.len() {
                flip(&mut slot, byte);
                assert!(Inode::parse(&slot, inode.number, &layout).expect_err("one bit").is_corrupt());
                flip(&mut slot, byte);
            }
        }
    }

    #[test]
    fn a_slot_of_zeros_is_a_free_inode() {
        let layout = layout(256);
        let inode = Inode::parse(&[0; 256], InodeNumber(12), &layout).expect("zeros");
        assert!(inode.is_free());
        assert!(Inode::parse(&[0; 100], InodeNumber(12), &layout).is_err());
    }

    #[test]
    fn device_numbers_use_the_old_form_where_they_can() {
        let mut inode = Inode::new(InodeNumber(12), 0o060_600, &layout(256), 32, at(5, 0));
        for (major, minor) in [(0, 0), (8, 1), (255, 255), (256, 0), (8, 256), (4095, 0xf_ffff)] {
            inode.set_device_number(major, minor);
            assert_eq!(inode.device_number(), (major, minor));
        }
        inode.set_device_number(8, 1);
        assert!(inode.i_block.starts_with(&[1, 8, 0, 0, 0, 0, 0, 0]));
        inode.set_device_number(259, 3);
        assert!(inode.i_block.starts_with(&[0, 0, 0, 0, 3, 3, 1, 0]));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..1100),
            bits in 7..11_u32,
            linux in proptest::prelude::any::<bool>(),
        ) {
            let layout = InodeLayout { linux, hurd: !linux, ..layout(1 << bits) };
            if let Ok(inode) = Inode::parse(&bytes, InodeNumber(12), &layout) {
                let mut slot = bytes;
                let _ = inode.serialize(&mut slot, &layout);
                let _ = (inode.device_number(), inode.is_fast_symlink(&layout), inode.is_free());
            }
        }
    }

    #[test]
    fn fast_symlinks_are_told_by_their_blocks() {
        let layout = layout(256);
        let mut inode = Inode::new(InodeNumber(12), 0o120_777, &layout, 32, at(5, 0));
        inode.size = 5;
        assert!(inode.is_fast_symlink(&layout));
        inode.sectors = 8;
        assert!(!inode.is_fast_symlink(&layout));
        inode.file_acl = BlockNumber(77);
        assert!(inode.is_fast_symlink(&layout));
        inode.sectors = 16;
        assert!(!inode.is_fast_symlink(&layout));
    }
}
