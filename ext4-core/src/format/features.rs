//! Feature masks. Source: kernel documentation, "Super Block" (feature_compat, feature_incompat,
//! feature_ro_compat).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use bitflags::bitflags;

use crate::error::{Errno, Error, Result};

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
        /// Returns true if block numbers have 64 bits.
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

/// One of the three masks, in dumpe2fs's order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mask {
    Compat,
    Incompat,
    RoCompat,
}

/// The names that mke2fs and dumpe2fs use, with the bit of each; if a feature has two names, the one they
/// print comes first.
const NAMES: &[(Mask, u32, &str)] = &[
    (Mask::Compat, 0x1, "dir_prealloc"),
    (Mask::Compat, 0x2, "imagic_inodes"),
    (Mask::Compat, 0x4, "has_journal"),
    (Mask::Compat, 0x8, "ext_attr"),
    (Mask::Compat, 0x10, "resize_inode"),
    (Mask::Compat, 0x20, "dir_index"),
    (Mask::Compat, 0x40, "lazy_bg"),
    (Mask::Compat, 0x100, "snapshot_bitmap"),
    (Mask::Compat, 0x200, "sparse_super2"),
    (Mask::Compat, 0x400, "fast_commit"),
    (Mask::Compat, 0x800, "stable_inodes"),
    (Mask::Compat, 0x1000, "orphan_file"),
    (Mask::Incompat, 0x1, "compression"),
    (Mask::Incompat, 0x2, "filetype"),
    (Mask::Incompat, 0x4, "needs_recovery"),
    (Mask::Incompat, 0x8, "journal_dev"),
    (Mask::Incompat, 0x10, "meta_bg"),
    (Mask::Incompat, 0x40, "extent"),
    (Mask::Incompat, 0x40, "extents"),
    (Mask::Incompat, 0x80, "64bit"),
    (Mask::Incompat, 0x100, "mmp"),
    (Mask::Incompat, 0x200, "flex_bg"),
    (Mask::Incompat, 0x400, "ea_inode"),
    (Mask::Incompat, 0x1000, "dirdata"),
    (Mask::Incompat, 0x2000, "metadata_csum_seed"),
    (Mask::Incompat, 0x4000, "large_dir"),
    (Mask::Incompat, 0x8000, "inline_data"),
    (Mask::Incompat, 0x1_0000, "encrypt"),
    (Mask::Incompat, 0x2_0000, "casefold"),
    (Mask::RoCompat, 0x1, "sparse_super"),
    (Mask::RoCompat, 0x2, "large_file"),
    (Mask::RoCompat, 0x8, "huge_file"),
    (Mask::RoCompat, 0x10, "uninit_bg"),
    (Mask::RoCompat, 0x10, "uninit_groups"),
    (Mask::RoCompat, 0x20, "dir_nlink"),
    (Mask::RoCompat, 0x40, "extra_isize"),
    (Mask::RoCompat, 0x80, "has_snapshot"),
    (Mask::RoCompat, 0x100, "quota"),
    (Mask::RoCompat, 0x200, "bigalloc"),
    (Mask::RoCompat, 0x400, "metadata_csum"),
    (Mask::RoCompat, 0x800, "replica"),
    (Mask::RoCompat, 0x1000, "read-only"),
    (Mask::RoCompat, 0x2000, "project"),
    (Mask::RoCompat, 0x4000, "shared_blocks"),
    (Mask::RoCompat, 0x8000, "verity"),
    (Mask::RoCompat, 0x1_0000, "orphan_present"),
];

/// What may be set on a file system that this library reads.
const READABLE: Incompat = Incompat::FILETYPE
    .union(Incompat::RECOVER)
    .union(Incompat::META_BG)
    .union(Incompat::EXTENTS)
    .union(Incompat::BIT64)
    .union(Incompat::MMP)
    .union(Incompat::FLEX_BG)
    .union(Incompat::CSUM_SEED)
    .union(Incompat::LARGEDIR)
    .union(Incompat::INLINE_DATA);

/// What of [`READABLE`] must not be set on one that it writes. Multiple mount protection: nothing here renews
/// the heartbeat that keeps other hosts away.
const READABLE_ONLY: Incompat = Incompat::MMP;

/// What may be set on a file system that this library writes.
const WRITABLE: RoCompat = RoCompat::SPARSE_SUPER
    .union(RoCompat::LARGE_FILE)
    .union(RoCompat::HUGE_FILE)
    .union(RoCompat::GDT_CSUM)
    .union(RoCompat::DIR_NLINK)
    .union(RoCompat::EXTRA_ISIZE)
    .union(RoCompat::BIGALLOC)
    .union(RoCompat::METADATA_CSUM)
    .union(RoCompat::ORPHAN_PRESENT);

impl Features {
    fn mask(&self, mask: Mask) -> u32 {
        match mask {
            Mask::Compat => self.compat.bits(),
            Mask::Incompat => self.incompat.bits(),
            Mask::RoCompat => self.ro_compat.bits(),
        }
    }

    /// What a new file system has unless it is asked for something else: the defaults of mke2fs 1.47 (as
    /// released, where distributions leave out `orphan_file` and `metadata_csum_seed`).
    #[must_use]
    pub fn for_new_filesystem() -> Self {
        Self {
            compat: Compat::HAS_JOURNAL
                | Compat::EXT_ATTR
                | Compat::RESIZE_INODE
                | Compat::DIR_INDEX
                | Compat::ORPHAN_FILE,
            incompat: Incompat::FILETYPE
                | Incompat::EXTENTS
                | Incompat::BIT64
                | Incompat::FLEX_BG
                | Incompat::CSUM_SEED,
            ro_compat: RoCompat::SPARSE_SUPER
                | RoCompat::LARGE_FILE
                | RoCompat::HUGE_FILE
                | RoCompat::DIR_NLINK
                | RoCompat::EXTRA_ISIZE
                | RoCompat::METADATA_CSUM,
        }
    }

    /// The names of all features that are set, in dumpe2fs's order; one that has no name is `FEATURE_C<bit>`,
    /// `FEATURE_I<bit>` or `FEATURE_R<bit>`.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for (mask, letter) in [(Mask::Compat, 'C'), (Mask::Incompat, 'I'), (Mask::RoCompat, 'R')] {
            for bit in 0..32_u32 {
                let flag = 1_u32.wrapping_shl(bit);
                if self.mask(mask) & flag == 0 {
                    continue;
                }
                let known = NAMES.iter().find(|(of, value, _)| *of == mask && *value == flag);
                names.push(match known {
                    Some((_, _, name)) => String::from(*name),
                    None => format!("FEATURE_{letter}{bit}"),
                });
            }
        }
        names
    }

    /// Changes the features as mke2fs's `-O` says: names separated by commas or spaces, `^name` clears,
    /// `none` clears everything before it.
    ///
    /// # Errors
    /// `EINVAL` with the name that no feature has.
    pub fn apply(&mut self, list: &str) -> Result<()> {
        for word in list.split([',', ' ', '\t']).filter(|word| !word.is_empty()) {
            if word.eq_ignore_ascii_case("none") {
                *self = Self::default();
                continue;
            }
            let (name, clear) = match word.strip_prefix('^') {
                Some(name) => (name, true),
                None => (word, false),
            };
            let (mask, flag) = NAMES
                .iter()
                .find(|(_, _, known)| known.eq_ignore_ascii_case(name))
                .map(|(mask, flag, _)| (*mask, *flag))
                .or_else(|| Self::unnamed(name))
                .ok_or_else(|| Error::posix(Errno::EINVAL, format!("feature {name:?}: no such feature")))?;
            match mask {
                Mask::Compat => self.compat.set(Compat::from_bits_retain(flag), !clear),
                Mask::Incompat => self.incompat.set(Incompat::from_bits_retain(flag), !clear),
                Mask::RoCompat => self.ro_compat.set(RoCompat::from_bits_retain(flag), !clear),
            }
        }
        Ok(())
    }

    /// `FEATURE_I7` and the like.
    fn unnamed(name: &str) -> Option<(Mask, u32)> {
        let rest = name.strip_prefix("FEATURE_")?;
        let (mask, digits) = match (rest.strip_prefix('C'), rest.strip_prefix('I'), rest.strip_prefix('R')) {
            (Some(digits), _, _) => (Mask::Compat, digits),
            (_, Some(digits), _) => (Mask::Incompat, digits),
            (_, _, Some(digits)) => (Mask::RoCompat, digits),
            _ => return None,
        };
        Some((mask, 1_u32.checked_shl(digits.parse().ok()?)?))
    }

    /// Refuses, by name, what this library cannot read; and, unless `read_only`, what it cannot write.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the names.
    pub fn check_supported(&self, read_only: bool) -> Result<()> {
        let unreadable = Self { incompat: self.incompat.difference(READABLE), ..Self::default() };
        if unreadable != Self::default() {
            return Err(Error::Unsupported(format!("feature {}", unreadable.names().join(" "))));
        }
        let unwritable = Self {
            compat: Compat::empty(),
            incompat: self.incompat.intersection(READABLE_ONLY),
            ro_compat: self.ro_compat.difference(WRITABLE),
        };
        if !read_only && unwritable != Self::default() {
            let names = unwritable.names().join(" ");
            return Err(Error::Unsupported(format!("feature {names} (it can be mounted read-only)")));
        }
        Ok(())
    }

    /// Returns true if all metadata has a crc32c.
    #[must_use]
    pub fn metadata_csum(&self) -> bool {
        self.ro_compat.contains(RoCompat::METADATA_CSUM)
    }

    /// Returns true if group descriptors have a checksum (crc16 or crc32c) and groups may be uninitialised.
    #[must_use]
    pub fn group_checksums(&self) -> bool {
        self.ro_compat.intersects(RoCompat::METADATA_CSUM | RoCompat::GDT_CSUM)
    }

    /// Returns true if block numbers have 64 bits.
    #[must_use]
    pub fn bit64(&self) -> bool {
        self.incompat.contains(Incompat::BIT64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_lists_are_those_of_mke2fs() {
        let mut features = Features::default();
        features
            .apply(
                "has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize,\
                 sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr",
            )
            .unwrap();
        assert_eq!(
            features.names().join(" "),
            "has_journal ext_attr resize_inode dir_index filetype extent 64bit flex_bg sparse_super \
             large_file huge_file dir_nlink extra_isize metadata_csum"
        );
        features.check_supported(false).unwrap();
        features.apply("^has_journal ^64bit,FEATURE_I29").unwrap();
        assert!(!features.bit64() && !features.compat.contains(Compat::HAS_JOURNAL));
        let refusal = features.check_supported(true).unwrap_err().to_string();
        assert_eq!(refusal, "unsupported: feature FEATURE_I29");
        features.apply("none,bigalloc").unwrap();
        assert_eq!(features.names(), ["bigalloc"]);
        features.check_supported(false).unwrap();
        features.apply("none,quota").unwrap();
        features.check_supported(true).unwrap();
        assert!(features.check_supported(false).unwrap_err().to_string().contains("quota"));
        assert_eq!(features.apply("extends").unwrap_err().errno(), Errno::EINVAL);
    }
}
