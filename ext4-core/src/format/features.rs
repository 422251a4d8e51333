//! Feature masks. Source: kernel documentation, "Super Block" (feature_compat, feature_incompat, feature_ro_compat).

use bitflags::bitflags;

bitflags! {
    /// Features that a kernel may ignore.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct Compat: u32 {
        /// Directory preallocation.
        const DIR_PREALLOC = 0x1;
        /// "Imagic inodes".
        const IMAGIC_INODES = 0x2;
        /// Has a journal.
        const HAS_JOURNAL = 0x4;
        /// Extended attributes.
        const EXT_ATTR = 0x8;
        /// Reserved blocks for growing the group descriptor table.
        const RESIZE_INODE = 0x10;
        /// Hashed directory indices.
        const DIR_INDEX = 0x20;
        /// Two superblock backups at places the superblock names.
        const SPARSE_SUPER2 = 0x200;
        /// Fast commits.
        const FAST_COMMIT = 0x400;
        /// Inode numbers and UUID will not change.
        const STABLE_INODES = 0x800;
        /// Orphans are kept in a file.
        const ORPHAN_FILE = 0x1000;
        const _ = !0;
    }
}

bitflags! {
    /// Features without which nothing may be read.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct Incompat: u32 {
        /// Compression.
        const COMPRESSION = 0x1;
        /// Directory entries carry the file type.
        const FILETYPE = 0x2;
        /// The journal has to be replayed.
        const RECOVER = 0x4;
        /// This is a journal device.
        const JOURNAL_DEV = 0x8;
        /// Meta block groups.
        const META_BG = 0x10;
        /// Files are mapped by extents.
        const EXTENTS = 0x40;
        /// 64-bit block numbers.
        const BIT64 = 0x80;
        /// Multiple mount protection.
        const MMP = 0x100;
        /// Flexible block groups.
        const FLEX_BG = 0x200;
        /// Large attribute values in inodes.
        const EA_INODE = 0x400;
        /// Data in directory entries.
        const DIRDATA = 0x1000;
        /// The checksum seed is in the superblock.
        const CSUM_SEED = 0x2000;
        /// Directories over 2 GiB or with a three-level index.
        const LARGEDIR = 0x4000;
        /// Data in inodes.
        const INLINE_DATA = 0x8000;
        /// Encrypted inodes.
        const ENCRYPT = 0x1_0000;
        /// Case-insensitive directories.
        const CASEFOLD = 0x2_0000;
        const _ = !0;
    }
}

bitflags! {
    /// Features without which nothing may be written.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct RoCompat: u32 {
        /// Superblock backups in few groups only.
        const SPARSE_SUPER = 0x1;
        /// Files over 2 GiB.
        const LARGE_FILE = 0x2;
        /// Never used.
        const BTREE_DIR = 0x4;
        /// Block counts of files in units of blocks.
        const HUGE_FILE = 0x8;
        /// Group descriptors have checksums and uninitialised parts: `uninit_bg`.
        const GDT_CSUM = 0x10;
        /// Directories with more than 65,000 subdirectories.
        const DIR_NLINK = 0x20;
        /// Inodes larger than 128 bytes with a guaranteed extra size.
        const EXTRA_ISIZE = 0x40;
        /// Has a snapshot.
        const HAS_SNAPSHOT = 0x80;
        /// Quota in hidden inodes.
        const QUOTA = 0x100;
        /// Allocation in clusters of blocks.
        const BIGALLOC = 0x200;
        /// Checksums on all metadata.
        const METADATA_CSUM = 0x400;
        /// Replicas.
        const REPLICA = 0x800;
        /// Must not be written.
        const READONLY = 0x1000;
        /// Project quota.
        const PROJECT = 0x2000;
        /// Blocks shared between files; read-only.
        const SHARED_BLOCKS = 0x4000;
        /// Verity inodes.
        const VERITY = 0x8000;
        /// The orphan file may hold entries.
        const ORPHAN_PRESENT = 0x1_0000;
        const _ = !0;
    }
}

/// The three feature masks of a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Features {
    /// May be ignored.
    pub compat: Compat,
    /// Must be known to read.
    pub incompat: Incompat,
    /// Must be known to write.
    pub ro_compat: RoCompat,
}

impl Features {
    /// crc32c on all metadata.
    #[must_use]
    pub fn metadata_csum(&self) -> bool {
        self.ro_compat.contains(RoCompat::METADATA_CSUM)
    }

    /// Group descriptors carry a checksum (crc16 or crc32c) and may be uninitialised.
    #[must_use]
    pub fn group_checksums(&self) -> bool {
        self.ro_compat.intersects(RoCompat::METADATA_CSUM | RoCompat::GDT_CSUM)
    }

    /// 64-bit block numbers.
    #[must_use]
    pub fn bit64(&self) -> bool {
        self.incompat.contains(Incompat::BIT64)
    }
}
