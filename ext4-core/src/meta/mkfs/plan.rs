//! From a device's size and the options to the superblock's counts: mke2fs's arithmetic.

use super::{MkfsOptions, default_features};
use crate::checksum::crc32c;
use crate::device::Geometry;
use crate::environment::Environment;
use crate::error::{Errno, Error, Result};
use crate::format::features::{Compat, Features, Incompat, RoCompat};
use crate::format::superblock::{
    CHECKSUM_TYPE_CRC32C, DEFAULT_MOUNT_ACL, DEFAULT_MOUNT_USER_XATTR, ERRORS_CONTINUE, FLAG_SIGNED_HASH,
    STATE_VALID, Superblock,
};
use crate::types::{BlockSize, GroupNumber};

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
/// A page of a kernel's memory.
const PAGE: u64 = 4096;
/// With bigalloc, blocks in a cluster unless told otherwise. Source: mke2fs(8), `-C`.
pub(super) const DEFAULT_CLUSTER_BLOCKS: u32 = 16;
/// Source: mke2fs(8), `-C`.
const MOST_CLUSTER_BYTES: u32 = 256 << 20;
/// A bitmap has at most so many bits. Source: e2fsprogs, `EXT2_MAX_CLUSTERS_PER_GROUP`.
const MOST_CLUSTERS_PER_GROUP: u32 = (1 << 16) - 8;
/// Source: mke2fs.conf, `flex_bg_size` 16.
const LOG_GROUPS_PER_FLEX: u8 = 4;
/// The bytes of an inode's fields past the first 128 that are known (`struct ext2_inode_large`).
const EXTRA_ISIZE: u16 = 32;
/// `s_def_hash_version`: half MD4.
const HASH_HALF_MD4: u8 = 1;
/// Limits of a journal in blocks. Source: mke2fs(8), `-J size`.
const JOURNAL_BLOCKS: std::ops::RangeInclusive<u32> = 1024..=10_240_000;
/// The area for fast commits is this part of the default journal, whatever size the journal is given. Source:
/// e2fsprogs 1.47, `EXT2_JOURNAL_TO_FC_BLKS_RATIO`.
const JOURNAL_TO_FAST_COMMIT_BLOCKS: u32 = 64;

/// What can be made.
const MAKEABLE: Features = Features {
    compat: Compat::HAS_JOURNAL
        .union(Compat::EXT_ATTR)
        .union(Compat::RESIZE_INODE)
        .union(Compat::DIR_INDEX)
        .union(Compat::FAST_COMMIT)
        .union(Compat::ORPHAN_FILE),
    incompat: Incompat::FILETYPE
        .union(Incompat::EXTENTS)
        .union(Incompat::META_BG)
        .union(Incompat::BIT64)
        .union(Incompat::FLEX_BG)
        .union(Incompat::INLINE_DATA)
        .union(Incompat::CSUM_SEED),
    ro_compat: RoCompat::SPARSE_SUPER
        .union(RoCompat::LARGE_FILE)
        .union(RoCompat::HUGE_FILE)
        .union(RoCompat::GDT_CSUM)
        .union(RoCompat::DIR_NLINK)
        .union(RoCompat::EXTRA_ISIZE)
        .union(RoCompat::BIGALLOC)
        .union(RoCompat::METADATA_CSUM),
};

/// What is going to be made.
#[derive(Debug)]
pub(super) struct Plan {
    /// Everything that does not depend on what inodes get.
    pub superblock: Superblock,
    /// Blocks of the journal, its area for fast commits included; 0 for none.
    pub journal_blocks: u32,
    /// Blocks of that area; 0 for none.
    pub fast_commit_blocks: u32,
    /// Blocks of the orphan file; 0 for none.
    pub orphan_file_blocks: u32,
}

fn invalid(context: impl Into<String>) -> Error {
    Error::posix(Errno::EINVAL, context)
}

/// What mke2fs.conf says of devices of this size: block size and bytes per inode.
fn usage(size: u64) -> (BlockSize, u64) {
    if size < 3 * MIB {
        (BlockSize::KIB_1, 8192)
    } else if size < 512 * MIB {
        (BlockSize::KIB_1, 4096)
    } else if size < 4 * TIB {
        (BlockSize::KIB_4, 16384)
    } else if size < 16 * TIB {
        (BlockSize::KIB_4, 32768)
    } else {
        (BlockSize::KIB_4, 65536)
    }
}

/// A journal's size in blocks for a file system of so many. Source: e2fsprogs, `ext2fs_default_journal_size`.
#[must_use]
pub fn default_journal_blocks(blocks: u64) -> u32 {
    const KI: u64 = 1024;
    match blocks {
        0..2048 => 0,
        blocks if blocks < 32 * KI => 1024,
        blocks if blocks < 256 * KI => 4096,
        blocks if blocks < 512 * KI => 8192,
        blocks if blocks < 4096 * KI => 16384,
        blocks if blocks < 8192 * KI => 32768,
        blocks if blocks < 16384 * KI => 65536,
        blocks if blocks < 32768 * KI => 131_072,
        _ => 262_144,
    }
}

/// An orphan file's size in blocks. Source: e2fsprogs, `ext2fs_default_orphan_file_blocks`.
fn default_orphan_file_blocks(blocks: u64) -> u32 {
    match blocks {
        0..0x2_0000 => 32,
        // Below 512: it fits.
        0x2_0000..0x20_0000 => (blocks / 4096) as u32,
        _ => 512,
    }
}

impl Plan {
    pub fn new(geometry: &Geometry, options: &MkfsOptions, environment: &dyn Environment) -> Result<Self> {
        let size = match (options.blocks_count, options.block_size) {
            (Some(blocks), Some(block_size)) => blocks.saturating_mul(u64::from(block_size.bytes())),
            _ => geometry.size,
        };
        let (default_block_size, default_ratio) = usage(size);
        let block_size = block_size(geometry, options, default_block_size)?;
        let available = geometry.size >> block_size.bits();
        // Whole pages of memory, as mke2fs has it.
        let per_page = (PAGE / u64::from(block_size.bytes())).max(1);
        let blocks = options.blocks_count.unwrap_or(available / per_page * per_page);
        if blocks > available {
            return Err(invalid(format!("{blocks} blocks do not fit on a device of {available}")));
        }
        let features = features(options, blocks)?;
        let mut superblock = Superblock::blank(block_size);
        superblock.features = features;
        superblock.blocks_count = blocks;
        let cluster_size = cluster_size(options, block_size, features)?;
        superblock.log_cluster_size = cluster_size.ilog2() - 10;
        // Clusters are counted from block 0, before which nothing can lie.
        superblock.first_data_block = u32::from(superblock.log_cluster_size == 0);
        size_groups(&mut superblock);
        // A cluster that the end cuts off is none.
        superblock.blocks_count =
            superblock.blocks_count >> superblock.cluster_bits() << superblock.cluster_bits();
        let blocks = superblock.blocks_count;
        superblock.first_ino = 11;
        superblock.inode_size = inode_size(options, block_size, features)?;
        superblock.desc_size = if features.bit64() { 64 } else { 32 };
        if features.incompat.contains(Incompat::FLEX_BG) {
            superblock.log_groups_per_flex = LOG_GROUPS_PER_FLEX;
        }
        let default_ratio = default_ratio.max(u64::from(cluster_size));
        let inodes = wanted_inodes(options, blocks, block_size, default_ratio, superblock.inode_size)?;
        let percent = options.reserved_percent.unwrap_or(5.0);
        if !(0.0..=50.0).contains(&percent) {
            return Err(invalid(format!("{percent}% reserved blocks are not within 0 to 50")));
        }
        superblock.r_blocks_count = (percent * blocks as f64 / 100.0) as u64;
        count_groups(&mut superblock, inodes)?;
        let blocks = superblock.blocks_count;
        superblock.r_blocks_count = superblock.r_blocks_count.min(blocks / 2);
        let mut journal_blocks = journal_blocks(options, &mut superblock)?;
        let fast_commit = superblock.features.compat.contains(Compat::FAST_COMMIT) && journal_blocks > 0;
        let fast_commit_blocks =
            if fast_commit { default_journal_blocks(blocks) / JOURNAL_TO_FAST_COMMIT_BLOCKS } else { 0 };
        journal_blocks += fast_commit_blocks;
        let orphan_file = superblock.features.compat.contains(Compat::ORPHAN_FILE);
        let orphan_file_blocks = if orphan_file { default_orphan_file_blocks(blocks) } else { 0 };
        describe(&mut superblock, options, environment)?;
        Ok(Self { superblock, journal_blocks, fast_commit_blocks, orphan_file_blocks })
    }
}

fn block_size(geometry: &Geometry, options: &MkfsOptions, default: BlockSize) -> Result<BlockSize> {
    let sector = geometry.logical_block_size;
    let block_size = match options.block_size {
        Some(block_size) => block_size,
        None => BlockSize::new(default.bytes().max(sector)).unwrap_or(default),
    };
    if block_size.bytes() < sector {
        return Err(invalid(format!(
            "blocks of {} bytes are smaller than the device's sectors of {sector}",
            block_size.bytes()
        )));
    }
    if block_size > BlockSize::KIB_4 {
        return Err(Error::Unsupported(format!("making blocks of {} bytes", block_size.bytes())));
    }
    Ok(block_size)
}

fn features(options: &MkfsOptions, blocks: u64) -> Result<Features> {
    let mut features = options.features.unwrap_or_else(default_features);
    let other = Features {
        compat: features.compat.difference(MAKEABLE.compat),
        incompat: features.incompat.difference(MAKEABLE.incompat),
        ro_compat: features.ro_compat.difference(MAKEABLE.ro_compat),
    };
    if other != Features::default() {
        return Err(Error::Unsupported(format!("making feature {}", other.names().join(" "))));
    }
    let has = |incompat| features.incompat.contains(incompat);
    let has_compat = |compat| features.compat.contains(compat);
    if !has(Incompat::EXTENTS) {
        return Err(Error::Unsupported("making a file system without feature extent".into()));
    }
    if has(Incompat::CSUM_SEED) && !features.metadata_csum() {
        return Err(invalid("metadata_csum_seed needs metadata_csum"));
    }
    if has_compat(Compat::RESIZE_INODE) && has(Incompat::META_BG) {
        return Err(invalid("resize_inode and meta_bg exclude each other"));
    }
    if has_compat(Compat::RESIZE_INODE) && !features.ro_compat.contains(RoCompat::SPARSE_SUPER) {
        return Err(invalid("resize_inode needs sparse_super"));
    }
    if options.cluster_size.is_some() && !features.ro_compat.contains(RoCompat::BIGALLOC) {
        return Err(invalid("a cluster size needs bigalloc"));
    }
    if has_compat(Compat::ORPHAN_FILE) && !has_compat(Compat::HAS_JOURNAL) {
        return Err(invalid("orphan_file needs has_journal"));
    }
    if blocks > u64::from(u32::MAX) {
        if !features.bit64() {
            return Err(invalid(format!("{blocks} blocks need 64bit")));
        }
        // The resize inode is mapped with 32-bit block numbers.
        features.compat.remove(Compat::RESIZE_INODE);
    }
    if features.metadata_csum() {
        features.ro_compat.remove(RoCompat::GDT_CSUM);
    }
    Ok(features)
}

/// Bytes of a cluster; of a block without bigalloc.
fn cluster_size(options: &MkfsOptions, block_size: BlockSize, features: Features) -> Result<u32> {
    if !features.ro_compat.contains(RoCompat::BIGALLOC) {
        return Ok(block_size.bytes());
    }
    let size = options.cluster_size.unwrap_or(block_size.bytes() * DEFAULT_CLUSTER_BLOCKS);
    if !size.is_power_of_two() || size < block_size.bytes() || size > MOST_CLUSTER_BYTES {
        return Err(invalid(format!(
            "a cluster of {size} bytes is no power of two from the block size, {}, to {MOST_CLUSTER_BYTES}",
            block_size.bytes()
        )));
    }
    Ok(size)
}

/// As many blocks in a group as its bitmap has bits; clusters with bigalloc. Source: e2fsprogs,
/// `ext2fs_initialize`.
fn size_groups(superblock: &mut Superblock) {
    let bits = superblock.block_size.bytes() * 8;
    superblock.blocks_per_group = bits;
    if superblock.features.ro_compat.contains(RoCompat::BIGALLOC) {
        // The blocks of a group are counted in 32 bits.
        let wide = superblock.log_cluster_size + 15 >= 32;
        let clusters = if wide { bits - 8 } else { bits }.min(MOST_CLUSTERS_PER_GROUP);
        superblock.clusters_per_group = clusters;
        superblock.blocks_per_group = clusters << superblock.cluster_bits();
    }
}

fn inode_size(options: &MkfsOptions, block_size: BlockSize, features: Features) -> Result<u16> {
    let size = options.inode_size.unwrap_or(256);
    if size < 128 || !size.is_power_of_two() || u32::from(size) > block_size.bytes() {
        return Err(invalid(format!("inode size {size} is no power of two from 128 to the block size")));
    }
    if features.incompat.contains(Incompat::INLINE_DATA) && size == 128 {
        return Err(invalid("inodes of 128 bytes are too small for inline_data"));
    }
    Ok(size)
}

/// How many inodes there shall be at least.
fn wanted_inodes(
    options: &MkfsOptions,
    blocks: u64,
    block_size: BlockSize,
    default_ratio: u64,
    inode_size: u16,
) -> Result<u32> {
    let bytes = blocks.saturating_mul(u64::from(block_size.bytes()));
    let wanted = match (options.inodes_count, options.bytes_per_inode) {
        (Some(count), _) => u64::from(count),
        (None, Some(ratio)) if !(1024..=67_108_864).contains(&ratio) => {
            return Err(invalid(format!("{ratio} bytes per inode are not within 1024 to 67108864")));
        }
        (None, Some(ratio)) => bytes / ratio,
        (None, None) => bytes / default_ratio.max(u64::from(block_size.bytes())),
    };
    if wanted.saturating_mul(u64::from(inode_size)) >= bytes {
        return Err(invalid(format!("{wanted} inodes of {inode_size} bytes are too many for {bytes} bytes")));
    }
    Ok(u32::try_from(wanted).unwrap_or(u32::MAX))
}

/// Fills in groups and inodes per group, the reserved descriptor blocks, and the block count without a last
/// group that is too small. Source: e2fsprogs, `ext2fs_initialize`.
fn count_groups(superblock: &mut Superblock, wanted_inodes: u32) -> Result<()> {
    let small = || Error::posix(Errno::ENOSPC, "the device is too small for a file system");
    let many = || invalid("too many inodes for the size");
    let asked_for = superblock.blocks_count;
    let percent = 100.0 * superblock.r_blocks_count as f64 / asked_for.max(1) as f64;
    let wanted_inodes = wanted_inodes.max(superblock.first_ino + 1);
    let bits = superblock.block_size.bytes() * 8;
    loop {
        if superblock.blocks_count <= u64::from(superblock.first_data_block) {
            return Err(small());
        }
        let bigalloc = superblock.features.ro_compat.contains(RoCompat::BIGALLOC);
        if !bigalloc {
            superblock.clusters_per_group = superblock.blocks_per_group;
        }
        // Below 2^48 blocks in groups of at least 248.
        let groups = superblock.blocks_count - u64::from(superblock.first_data_block);
        let groups = u32::try_from(groups.div_ceil(u64::from(superblock.blocks_per_group)))
            .map_err(|_| invalid("too many block groups"))?;
        let per_group = wanted_inodes.div_ceil(groups);
        if per_group > bits {
            // More than a bitmap's worth of inodes in each group: make the groups smaller, so that there are
            // more.
            if bigalloc || superblock.blocks_per_group < 256 {
                return Err(many());
            }
            superblock.blocks_per_group -= 8;
            superblock.blocks_count = asked_for;
            continue;
        }
        set_inodes(superblock, groups, per_group)?;
        superblock.reserved_gdt_blocks = reserved_gdt_blocks(superblock);
        if u64::from(superblock.reserved_gdt_blocks) + superblock.descriptor_blocks()
            > u64::from(superblock.blocks_per_group) * 3 / 4
        {
            superblock.features.incompat.insert(Incompat::META_BG);
            superblock.features.compat.remove(Compat::RESIZE_INODE);
            superblock.reserved_gdt_blocks = 0;
        }
        let table = u64::from(superblock.inode_table_blocks());
        let largest = superblock.base_blocks(GroupNumber(0)).max(superblock.base_blocks(GroupNumber(1)));
        if largest + 2 + table > u64::from(superblock.blocks_per_group) {
            return Err(many());
        }
        let last = GroupNumber(groups - 1);
        let overhead = superblock.base_blocks(last) + 2 + table;
        let left = u64::from(superblock.group_blocks(last));
        if left == u64::from(superblock.blocks_per_group) {
            return Ok(());
        }
        if groups == 1 {
            return if left < overhead { Err(small()) } else { Ok(()) };
        }
        if left >= overhead + 50 {
            return Ok(());
        }
        // The last group would hold hardly more than its own metadata. Root's share shrinks with it.
        superblock.blocks_count -= left;
        superblock.r_blocks_count = (percent * superblock.blocks_count as f64 / 100.0) as u64;
    }
}

/// Sets `inodes_per_group` to at least `per_group`, so that the table's blocks are full and the bitmap's
/// bytes are.
fn set_inodes(superblock: &mut Superblock, groups: u32, per_group: u32) -> Result<()> {
    let per_block = superblock.inodes_per_block();
    // The descriptors' counts have 16 bits in the smallest format: EXT2_MAX_INODES_PER_GROUP.
    let mut wanted = per_group.min((1 << 16) - per_block);
    loop {
        let filled = wanted.div_ceil(per_block) * per_block;
        let inodes = (filled.max(8)) & !7;
        if let Some(count) = inodes.checked_mul(groups) {
            if count <= superblock.first_ino {
                // Rounding down left fewer than the reserved inodes and one (mke2fs fails here).
                wanted += 8;
                continue;
            }
            superblock.inodes_per_group = inodes;
            superblock.inodes_count = count;
            return Ok(());
        }
        wanted =
            wanted.checked_sub(1).filter(|wanted| *wanted > 0).ok_or_else(|| invalid("too many groups"))?;
    }
}

/// Blocks to keep behind the descriptors so that the file system can grow to 1,024 times its size.
/// Source: e2fsprogs, `calc_reserved_gdt_blocks`.
fn reserved_gdt_blocks(superblock: &Superblock) -> u16 {
    if !superblock.features.compat.contains(Compat::RESIZE_INODE) {
        return 0;
    }
    let most = superblock.blocks_count.saturating_mul(1024).min(u64::from(u32::MAX));
    let groups =
        (most - u64::from(superblock.first_data_block)).div_ceil(u64::from(superblock.blocks_per_group));
    let blocks = groups.div_ceil(u64::from(superblock.descriptors_per_block()));
    let reserved = blocks.saturating_sub(superblock.descriptor_blocks());
    let pointers = u64::from(superblock.block_size.bytes() / 4);
    // At most a block's pointers: 1,024.
    reserved.min(pointers) as u16
}

/// Checks that a journal of so many blocks, in a file system of so many, is one that jbd2 uses.
///
/// # Errors
/// `EINVAL`.
pub fn check_journal_blocks(journal: u32, filesystem: u64) -> Result<()> {
    if !JOURNAL_BLOCKS.contains(&journal) {
        let (least, most) = (JOURNAL_BLOCKS.start(), JOURNAL_BLOCKS.end());
        return Err(invalid(format!("a journal of {journal} blocks is not within {least} to {most}")));
    }
    if u64::from(journal) > filesystem / 2 {
        return Err(invalid(format!("a journal of {journal} blocks is more than half the file system")));
    }
    Ok(())
}

fn journal_blocks(options: &MkfsOptions, superblock: &mut Superblock) -> Result<u32> {
    if !superblock.features.compat.contains(Compat::HAS_JOURNAL) {
        return match options.journal_blocks {
            Some(_) => Err(invalid("a journal size without has_journal")),
            None => Ok(0),
        };
    }
    let default = default_journal_blocks(superblock.blocks_count);
    match options.journal_blocks {
        Some(blocks) => check_journal_blocks(blocks, superblock.blocks_count).map(|()| blocks),
        None => {
            if default == 0 {
                tracing::warn!("the file system is too small for a journal");
                superblock.features.compat.remove(Compat::HAS_JOURNAL | Compat::ORPHAN_FILE);
            }
            Ok(default)
        }
    }
}

/// What a superblock says besides its geometry.
fn describe(superblock: &mut Superblock, options: &MkfsOptions, environment: &dyn Environment) -> Result<()> {
    let random_uuid = || {
        let mut bytes = [0; 16];
        environment.random(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid().into_bytes()
    };
    superblock.uuid = options.uuid.unwrap_or_else(random_uuid);
    let seed = options.hash_seed.unwrap_or_else(random_uuid);
    for (word, bytes) in superblock.hash_seed.iter_mut().zip(seed.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    if superblock.features.incompat.contains(Incompat::CSUM_SEED) {
        superblock.checksum_seed = crc32c(!0, &superblock.uuid);
    }
    if superblock.features.metadata_csum() {
        superblock.checksum_type = CHECKSUM_TYPE_CRC32C;
    }
    let copy = |to: &mut [u8], from: &[u8], what: &str| match to.get_mut(..from.len()) {
        Some(to) => {
            to.copy_from_slice(from);
            Ok(())
        }
        None => Err(invalid(format!("a {what} of {} bytes is longer than {}", from.len(), to.len()))),
    };
    copy(&mut superblock.volume_name, &options.label, "label")?;
    copy(&mut superblock.last_mounted, &options.last_mounted, "last mount point")?;
    let now = environment.now().seconds;
    superblock.mkfs_time = now;
    superblock.wtime = now;
    superblock.lastcheck = now;
    superblock.max_mnt_count = u16::MAX;
    superblock.state = STATE_VALID;
    superblock.errors = ERRORS_CONTINUE;
    superblock.def_hash_version = HASH_HALF_MD4;
    superblock.flags = FLAG_SIGNED_HASH;
    superblock.default_mount_opts = DEFAULT_MOUNT_USER_XATTR | DEFAULT_MOUNT_ACL;
    superblock.kbytes_written = 1;
    if superblock.inode_size > 128 {
        superblock.min_extra_isize = EXTRA_ISIZE;
        superblock.want_extra_isize = EXTRA_ISIZE;
    }
    Ok(())
}
