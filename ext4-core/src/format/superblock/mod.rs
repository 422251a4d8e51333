//! The superblock: what the file system is, its size, its features, its state.
//!
//! [`Superblock`] holds every field in its widest form (64-bit counts, 40-bit times, 32-bit ids) and, unseen,
//! the 1,024 bytes it was read from, so that what this library does not know is written back as it was.
//!
//! Invariants of a [`Superblock`] that came from [`Superblock::parse`]:
//! - Its geometry agrees with itself: groups times inodes per group is the inode count, no group is larger
//!   than one bitmap block can say, no inode larger than a block. All arithmetic of the metadata plane rests
//!   on this; were it wrong, a bitmap or a table could reach over its neighbour's blocks.
//! - Its checksum was right if the file system has checksums.
//!
//! Source: kernel documentation, "Super Block".

mod check;
mod geometry;
pub mod journal_device;
mod raw;

use alloc::string::String;

use zerocopy::{FromZeros, IntoBytes};

use super::features::{Compat, Features, Incompat, RoCompat};
use crate::checksum::crc32c;
use crate::types::{BlockNumber, BlockSize, GroupNumber, InodeNumber};
pub use journal_device::JournalDevice;
pub use raw::RawSuperblock;

/// Where the primary superblock lies, in bytes from the start of the file system.
pub const SUPERBLOCK_OFFSET: u64 = 1024;
/// How long it is, in bytes.
pub const SUPERBLOCK_SIZE: usize = 1024;
/// `s_magic`.
pub const MAGIC: u16 = 0xef53;
/// `s_checksum_type`: crc32c, the only one there is.
pub const CHECKSUM_TYPE_CRC32C: u8 = 1;

/// `s_state`: unmounted cleanly.
pub const STATE_VALID: u16 = 1;
/// `s_state`: errors were found.
pub const STATE_ERROR: u16 = 2;
/// `s_state`: orphans are being recovered.
pub const STATE_ORPHANS: u16 = 4;
/// `s_state`: fast commits are being replayed.
pub const STATE_FC_REPLAY: u16 = 0x20;

/// `s_errors`: go on.
pub const ERRORS_CONTINUE: u16 = 1;
/// `s_errors`: become read-only.
pub const ERRORS_READ_ONLY: u16 = 2;
/// `s_errors`: panic.
pub const ERRORS_PANIC: u16 = 3;

/// `s_flags`: directory hashes were made with signed characters.
pub const FLAG_SIGNED_HASH: u32 = 1;
/// `s_flags`: directory hashes were made with unsigned characters.
pub const FLAG_UNSIGNED_HASH: u32 = 2;
/// `s_flags`: for testing development code.
pub const FLAG_TEST_FILESYSTEM: u32 = 4;

/// `s_default_mount_opts`: extended attributes of users.
pub const DEFAULT_MOUNT_USER_XATTR: u32 = 0x4;
/// `s_default_mount_opts`: POSIX access control lists.
pub const DEFAULT_MOUNT_ACL: u32 = 0x8;

/// Where an error struck: what the superblock remembers of the first and of the last one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ErrorRecord {
    /// Seconds since 1970; 0 for no error.
    pub time: i64,
    /// The inode concerned, or 0.
    pub inode: u32,
    /// The block concerned, or 0.
    pub block: u64,
    /// The function that found it, padded with NULs.
    pub function: [u8; 32],
    /// The line in its source.
    pub line: u32,
    /// The kind of error (kernel: `EXT4_ERR_*`).
    pub code: u8,
}

/// A checked superblock. Times are seconds since 1970 (40 bits on the device, never negative).
#[derive(Clone, Debug)]
pub struct Superblock {
    /// All inodes, used and free.
    pub inodes_count: u32,
    /// All blocks, used and free.
    pub blocks_count: u64,
    /// Blocks that only root may use.
    pub r_blocks_count: u64,
    /// Free blocks (clusters with bigalloc times their size); brought up to date at unmount.
    pub free_blocks_count: u64,
    /// Free inodes; brought up to date at unmount.
    pub free_inodes_count: u32,
    /// The block where group 0 begins: 1 with 1 KiB blocks, otherwise 0.
    pub first_data_block: u32,
    /// The block size.
    pub block_size: BlockSize,
    /// Base-two logarithm of a cluster's size in KiB; that of the block size without bigalloc.
    pub log_cluster_size: u32,
    /// Blocks of one group.
    pub blocks_per_group: u32,
    /// Clusters of one group; the blocks without bigalloc.
    pub clusters_per_group: u32,
    /// Inodes of one group.
    pub inodes_per_group: u32,
    /// Last mount.
    pub mtime: i64,
    /// Last write of the superblock.
    pub wtime: i64,
    /// Mounts since the last check.
    pub mnt_count: u16,
    /// Mounts after which a check is due; -1 (0xffff) or 0 for never.
    pub max_mnt_count: u16,
    /// [`STATE_VALID`], [`STATE_ERROR`] …
    pub state: u16,
    /// What to do when an error is found: [`ERRORS_CONTINUE`] …
    pub errors: u16,
    /// Minor revision.
    pub minor_rev_level: u16,
    /// Last check.
    pub lastcheck: i64,
    /// Seconds between checks; 0 for none.
    pub checkinterval: u32,
    /// The system that made it; 0 is Linux.
    pub creator_os: u32,
    /// Revision: 1; 0 has 128-byte inodes and no features.
    pub rev_level: u32,
    /// The user that may use reserved blocks.
    pub def_resuid: u32,
    /// The group that may use reserved blocks.
    pub def_resgid: u32,
    /// The first inode that is not reserved.
    pub first_ino: u32,
    /// Bytes of one inode.
    pub inode_size: u16,
    /// The group that holds this copy.
    pub block_group_nr: u16,
    /// The feature masks.
    pub features: Features,
    /// The file system's UUID.
    pub uuid: [u8; 16],
    /// The label, padded with NULs.
    pub volume_name: [u8; 16],
    /// Where it was last mounted, padded with NULs.
    pub last_mounted: [u8; 64],
    /// For compression; unused.
    pub algorithm_usage_bitmap: u32,
    /// Blocks to preallocate for files; unused.
    pub prealloc_blocks: u8,
    /// Blocks to preallocate for directories; unused.
    pub prealloc_dir_blocks: u8,
    /// Blocks kept behind the group descriptors of each copy, for growing.
    pub reserved_gdt_blocks: u16,
    /// The UUID of the journal's superblock, if the journal is another device.
    pub journal_uuid: [u8; 16],
    /// The journal's inode.
    pub journal_inum: u32,
    /// The journal's device number.
    pub journal_dev: u32,
    /// The first inode of the orphan list; 0 for none.
    pub last_orphan: u32,
    /// The seed of directory hashes.
    pub hash_seed: [u32; 4],
    /// The hash of directories made from now on.
    pub def_hash_version: u8,
    /// 1 if [`Superblock::jnl_blocks`] holds a copy of the journal's mapping.
    pub jnl_backup_type: u8,
    /// Bytes of a group descriptor: 32 without 64bit.
    pub desc_size: u16,
    /// Mount options that hold unless others are given.
    pub default_mount_opts: u32,
    /// The first meta block group.
    pub first_meta_bg: u32,
    /// When it was made.
    pub mkfs_time: i64,
    /// A copy of the journal inode's i_block (15 words) and size (high word, low word).
    pub jnl_blocks: [u32; 17],
    /// What every inode's extra fields hold at least, in bytes.
    pub min_extra_isize: u16,
    /// What new inodes' extra fields shall hold, in bytes.
    pub want_extra_isize: u16,
    /// [`FLAG_SIGNED_HASH`] …
    pub flags: u32,
    /// RAID stride in blocks.
    pub raid_stride: u16,
    /// Seconds between checks of multiple mount protection.
    pub mmp_interval: u16,
    /// The block of multiple mount protection.
    pub mmp_block: u64,
    /// RAID stripe width in blocks.
    pub raid_stripe_width: u32,
    /// Base-two logarithm of the groups in a flex group.
    pub log_groups_per_flex: u8,
    /// [`CHECKSUM_TYPE_CRC32C`].
    pub checksum_type: u8,
    /// Version of encryption.
    pub encryption_level: u8,
    /// KiB written over its life.
    pub kbytes_written: u64,
    /// Inode of the active snapshot.
    pub snapshot_inum: u32,
    /// Id of the active snapshot.
    pub snapshot_id: u32,
    /// Blocks reserved for the active snapshot.
    pub snapshot_r_blocks_count: u64,
    /// Head of the snapshot list.
    pub snapshot_list: u32,
    /// How many errors were found since the last check.
    pub error_count: u32,
    /// The first of them.
    pub first_error: ErrorRecord,
    /// The last of them.
    pub last_error: ErrorRecord,
    /// Mount options as text, padded with NULs.
    pub mount_opts: [u8; 64],
    /// The inode of the user quota.
    pub usr_quota_inum: u32,
    /// The inode of the group quota.
    pub grp_quota_inum: u32,
    /// Blocks (clusters) of fixed metadata and journal; 0: not known.
    pub overhead_blocks: u32,
    /// The two groups with copies under sparse_super2.
    pub backup_bgs: [u32; 2],
    /// Encryption algorithms in use.
    pub encrypt_algos: [u8; 4],
    /// Salt of encryption passwords.
    pub encrypt_pw_salt: [u8; 16],
    /// The inode of lost+found; 0: not known.
    pub lpf_ino: u32,
    /// The inode of the project quota.
    pub prj_quota_inum: u32,
    /// The seed of checksums under metadata_csum_seed.
    pub checksum_seed: u32,
    /// Encoding of file names under casefold.
    pub encoding: u16,
    /// Flags of the encoding.
    pub encoding_flags: u16,
    /// The inode of the orphan file.
    pub orphan_file_inum: u32,
    /// The bytes it was read from: what is not above is kept as it was.
    raw: RawSuperblock,
}

fn join(hi: u32, lo: u32) -> u64 {
    u64::from(hi) << 32 | u64::from(lo)
}

/// The low 32 bits.
#[allow(clippy::cast_possible_truncation, reason = "the high half is stored by `high`")]
fn low(value: u64) -> u32 {
    value as u32
}

/// The high 32 bits.
#[allow(clippy::cast_possible_truncation, reason = "the low half is stored by `low`")]
fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

fn time(hi: u8, lo: u32) -> i64 {
    i64::from(hi) << 32 | i64::from(lo)
}

/// A time as the device holds it; what is out of its range becomes the nearest that is not.
fn time_halves(seconds: i64) -> (u8, u32) {
    let seconds = u64::try_from(seconds).unwrap_or(0).min((1 << 40) - 1);
    (u8::try_from(high(seconds)).unwrap_or(u8::MAX), low(seconds))
}

impl Superblock {
    /// A superblock of nothing but zeros (and revision 1), for `mkfs` to fill in.
    #[must_use]
    pub fn blank(block_size: BlockSize) -> Self {
        let mut raw = RawSuperblock::new_zeroed();
        raw.s_rev_level.set(1);
        raw.s_magic.set(MAGIC);
        Self::from_raw(raw, block_size)
    }

    /// Spreads the fields out, unchecked.
    fn from_raw(raw: RawSuperblock, block_size: BlockSize) -> Self {
        let features = Features {
            compat: Compat::from_bits_retain(raw.s_feature_compat.get()),
            incompat: Incompat::from_bits_retain(raw.s_feature_incompat.get()),
            ro_compat: RoCompat::from_bits_retain(raw.s_feature_ro_compat.get()),
        };
        // Without 64bit the high halves mean nothing (e2fsprogs reads them so too).
        let wide = |hi: u32, lo: u32| if features.bit64() { join(hi, lo) } else { u64::from(lo) };
        let old = raw.s_rev_level.get() == 0;
        Self {
            inodes_count: raw.s_inodes_count.get(),
            blocks_count: wide(raw.s_blocks_count_hi.get(), raw.s_blocks_count_lo.get()),
            r_blocks_count: wide(raw.s_r_blocks_count_hi.get(), raw.s_r_blocks_count_lo.get()),
            free_blocks_count: wide(raw.s_free_blocks_count_hi.get(), raw.s_free_blocks_count_lo.get()),
            free_inodes_count: raw.s_free_inodes_count.get(),
            first_data_block: raw.s_first_data_block.get(),
            block_size,
            log_cluster_size: raw.s_log_cluster_size.get(),
            blocks_per_group: raw.s_blocks_per_group.get(),
            clusters_per_group: raw.s_clusters_per_group.get(),
            inodes_per_group: raw.s_inodes_per_group.get(),
            mtime: time(raw.s_mtime_hi, raw.s_mtime.get()),
            wtime: time(raw.s_wtime_hi, raw.s_wtime.get()),
            mnt_count: raw.s_mnt_count.get(),
            max_mnt_count: raw.s_max_mnt_count.get(),
            state: raw.s_state.get(),
            errors: raw.s_errors.get(),
            minor_rev_level: raw.s_minor_rev_level.get(),
            lastcheck: time(raw.s_lastcheck_hi, raw.s_lastcheck.get()),
            checkinterval: raw.s_checkinterval.get(),
            creator_os: raw.s_creator_os.get(),
            rev_level: raw.s_rev_level.get(),
            def_resuid: u32::from(raw.s_def_resuid_hi.get()) << 16 | u32::from(raw.s_def_resuid.get()),
            def_resgid: u32::from(raw.s_def_resgid_hi.get()) << 16 | u32::from(raw.s_def_resgid.get()),
            // Revision 0 does not have these two fields. Source: kernel documentation, "Super Block".
            first_ino: if old { 11 } else { raw.s_first_ino.get() },
            inode_size: if old { 128 } else { raw.s_inode_size.get() },
            block_group_nr: raw.s_block_group_nr.get(),
            features,
            uuid: raw.s_uuid,
            volume_name: raw.s_volume_name,
            last_mounted: raw.s_last_mounted,
            algorithm_usage_bitmap: raw.s_algorithm_usage_bitmap.get(),
            prealloc_blocks: raw.s_prealloc_blocks,
            prealloc_dir_blocks: raw.s_prealloc_dir_blocks,
            reserved_gdt_blocks: raw.s_reserved_gdt_blocks.get(),
            journal_uuid: raw.s_journal_uuid,
            journal_inum: raw.s_journal_inum.get(),
            journal_dev: raw.s_journal_dev.get(),
            last_orphan: raw.s_last_orphan.get(),
            hash_seed: raw.s_hash_seed.map(|word| word.get()),
            def_hash_version: raw.s_def_hash_version,
            jnl_backup_type: raw.s_jnl_backup_type,
            desc_size: if features.bit64() { raw.s_desc_size.get() } else { 32 },
            default_mount_opts: raw.s_default_mount_opts.get(),
            first_meta_bg: raw.s_first_meta_bg.get(),
            mkfs_time: time(raw.s_mkfs_time_hi, raw.s_mkfs_time.get()),
            jnl_blocks: raw.s_jnl_blocks.map(|word| word.get()),
            min_extra_isize: raw.s_min_extra_isize.get(),
            want_extra_isize: raw.s_want_extra_isize.get(),
            flags: raw.s_flags.get(),
            raid_stride: raw.s_raid_stride.get(),
            mmp_interval: raw.s_mmp_interval.get(),
            mmp_block: raw.s_mmp_block.get(),
            raid_stripe_width: raw.s_raid_stripe_width.get(),
            log_groups_per_flex: raw.s_log_groups_per_flex,
            checksum_type: raw.s_checksum_type,
            encryption_level: raw.s_encryption_level,
            kbytes_written: raw.s_kbytes_written.get(),
            snapshot_inum: raw.s_snapshot_inum.get(),
            snapshot_id: raw.s_snapshot_id.get(),
            snapshot_r_blocks_count: raw.s_snapshot_r_blocks_count.get(),
            snapshot_list: raw.s_snapshot_list.get(),
            error_count: raw.s_error_count.get(),
            first_error: ErrorRecord {
                time: time(raw.s_first_error_time_hi, raw.s_first_error_time.get()),
                inode: raw.s_first_error_ino.get(),
                block: raw.s_first_error_block.get(),
                function: raw.s_first_error_func,
                line: raw.s_first_error_line.get(),
                code: raw.s_first_error_errcode,
            },
            last_error: ErrorRecord {
                time: time(raw.s_last_error_time_hi, raw.s_last_error_time.get()),
                inode: raw.s_last_error_ino.get(),
                block: raw.s_last_error_block.get(),
                function: raw.s_last_error_func,
                line: raw.s_last_error_line.get(),
                code: raw.s_last_error_errcode,
            },
            mount_opts: raw.s_mount_opts,
            usr_quota_inum: raw.s_usr_quota_inum.get(),
            grp_quota_inum: raw.s_grp_quota_inum.get(),
            overhead_blocks: raw.s_overhead_blocks.get(),
            backup_bgs: raw.s_backup_bgs.map(|word| word.get()),
            encrypt_algos: raw.s_encrypt_algos,
            encrypt_pw_salt: raw.s_encrypt_pw_salt,
            lpf_ino: raw.s_lpf_ino.get(),
            prj_quota_inum: raw.s_prj_quota_inum.get(),
            checksum_seed: raw.s_checksum_seed.get(),
            encoding: raw.s_encoding.get(),
            encoding_flags: raw.s_encoding_flags.get(),
            orphan_file_inum: raw.s_orphan_file_inum.get(),
            raw,
        }
    }

    /// The superblock as it lies on the device, with its checksum if the file system has checksums.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SUPERBLOCK_SIZE] {
        let mut raw = self.raw;
        self.put(&mut raw);
        let mut bytes = [0; SUPERBLOCK_SIZE];
        if self.features.metadata_csum()
            && let Some(covered) = raw.as_bytes().get(..CHECKSUM_OFFSET)
        {
            raw.s_checksum.set(crc32c(!0, covered));
        }
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    fn put(&self, raw: &mut RawSuperblock) {
        let set_wide =
            |hi: &mut zerocopy::little_endian::U32, lo: &mut zerocopy::little_endian::U32, value| {
                lo.set(low(value));
                if self.features.bit64() {
                    hi.set(high(value));
                }
            };
        raw.s_inodes_count.set(self.inodes_count);
        set_wide(&mut raw.s_blocks_count_hi, &mut raw.s_blocks_count_lo, self.blocks_count);
        set_wide(&mut raw.s_r_blocks_count_hi, &mut raw.s_r_blocks_count_lo, self.r_blocks_count);
        set_wide(&mut raw.s_free_blocks_count_hi, &mut raw.s_free_blocks_count_lo, self.free_blocks_count);
        raw.s_free_inodes_count.set(self.free_inodes_count);
        raw.s_first_data_block.set(self.first_data_block);
        raw.s_log_block_size.set(self.block_size.bits().saturating_sub(10));
        raw.s_log_cluster_size.set(self.log_cluster_size);
        raw.s_blocks_per_group.set(self.blocks_per_group);
        raw.s_clusters_per_group.set(self.clusters_per_group);
        raw.s_inodes_per_group.set(self.inodes_per_group);
        let put_time = |seconds, hi: &mut u8, lo: &mut zerocopy::little_endian::U32| {
            let (high, low) = time_halves(seconds);
            *hi = high;
            lo.set(low);
        };
        put_time(self.mtime, &mut raw.s_mtime_hi, &mut raw.s_mtime);
        put_time(self.wtime, &mut raw.s_wtime_hi, &mut raw.s_wtime);
        put_time(self.lastcheck, &mut raw.s_lastcheck_hi, &mut raw.s_lastcheck);
        put_time(self.mkfs_time, &mut raw.s_mkfs_time_hi, &mut raw.s_mkfs_time);
        raw.s_mnt_count.set(self.mnt_count);
        raw.s_max_mnt_count.set(self.max_mnt_count);
        raw.s_state.set(self.state);
        raw.s_errors.set(self.errors);
        raw.s_minor_rev_level.set(self.minor_rev_level);
        raw.s_checkinterval.set(self.checkinterval);
        raw.s_creator_os.set(self.creator_os);
        raw.s_rev_level.set(self.rev_level);
        let halves = |value: u32| (u64::from(value) >> 16, u64::from(value) & 0xffff);
        let half = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
        let (hi, lo) = halves(self.def_resuid);
        raw.s_def_resuid.set(half(lo));
        raw.s_def_resuid_hi.set(half(hi));
        let (hi, lo) = halves(self.def_resgid);
        raw.s_def_resgid.set(half(lo));
        raw.s_def_resgid_hi.set(half(hi));
        if self.rev_level != 0 {
            raw.s_first_ino.set(self.first_ino);
            raw.s_inode_size.set(self.inode_size);
        }
        raw.s_block_group_nr.set(self.block_group_nr);
        raw.s_feature_compat.set(self.features.compat.bits());
        raw.s_feature_incompat.set(self.features.incompat.bits());
        raw.s_feature_ro_compat.set(self.features.ro_compat.bits());
        raw.s_uuid = self.uuid;
        raw.s_volume_name = self.volume_name;
        raw.s_last_mounted = self.last_mounted;
        raw.s_algorithm_usage_bitmap.set(self.algorithm_usage_bitmap);
        raw.s_prealloc_blocks = self.prealloc_blocks;
        raw.s_prealloc_dir_blocks = self.prealloc_dir_blocks;
        raw.s_reserved_gdt_blocks.set(self.reserved_gdt_blocks);
        raw.s_journal_uuid = self.journal_uuid;
        raw.s_journal_inum.set(self.journal_inum);
        raw.s_journal_dev.set(self.journal_dev);
        raw.s_last_orphan.set(self.last_orphan);
        raw.s_hash_seed = self.hash_seed.map(Into::into);
        raw.s_def_hash_version = self.def_hash_version;
        raw.s_jnl_backup_type = self.jnl_backup_type;
        if self.features.bit64() {
            raw.s_desc_size.set(self.desc_size);
        }
        raw.s_default_mount_opts.set(self.default_mount_opts);
        raw.s_first_meta_bg.set(self.first_meta_bg);
        raw.s_jnl_blocks = self.jnl_blocks.map(Into::into);
        raw.s_min_extra_isize.set(self.min_extra_isize);
        raw.s_want_extra_isize.set(self.want_extra_isize);
        raw.s_flags.set(self.flags);
        raw.s_raid_stride.set(self.raid_stride);
        raw.s_mmp_interval.set(self.mmp_interval);
        raw.s_mmp_block.set(self.mmp_block);
        raw.s_raid_stripe_width.set(self.raid_stripe_width);
        raw.s_log_groups_per_flex = self.log_groups_per_flex;
        raw.s_checksum_type = self.checksum_type;
        raw.s_encryption_level = self.encryption_level;
        raw.s_kbytes_written.set(self.kbytes_written);
        raw.s_snapshot_inum.set(self.snapshot_inum);
        raw.s_snapshot_id.set(self.snapshot_id);
        raw.s_snapshot_r_blocks_count.set(self.snapshot_r_blocks_count);
        raw.s_snapshot_list.set(self.snapshot_list);
        raw.s_error_count.set(self.error_count);
        let first = &self.first_error;
        put_time(first.time, &mut raw.s_first_error_time_hi, &mut raw.s_first_error_time);
        raw.s_first_error_ino.set(first.inode);
        raw.s_first_error_block.set(first.block);
        raw.s_first_error_func = first.function;
        raw.s_first_error_line.set(first.line);
        raw.s_first_error_errcode = first.code;
        let last = &self.last_error;
        put_time(last.time, &mut raw.s_last_error_time_hi, &mut raw.s_last_error_time);
        raw.s_last_error_ino.set(last.inode);
        raw.s_last_error_block.set(last.block);
        raw.s_last_error_func = last.function;
        raw.s_last_error_line.set(last.line);
        raw.s_last_error_errcode = last.code;
        raw.s_mount_opts = self.mount_opts;
        raw.s_usr_quota_inum.set(self.usr_quota_inum);
        raw.s_grp_quota_inum.set(self.grp_quota_inum);
        raw.s_overhead_blocks.set(self.overhead_blocks);
        raw.s_backup_bgs = self.backup_bgs.map(Into::into);
        raw.s_encrypt_algos = self.encrypt_algos;
        raw.s_encrypt_pw_salt = self.encrypt_pw_salt;
        raw.s_lpf_ino.set(self.lpf_ino);
        raw.s_prj_quota_inum.set(self.prj_quota_inum);
        raw.s_checksum_seed.set(self.checksum_seed);
        raw.s_encoding.set(self.encoding);
        raw.s_encoding_flags.set(self.encoding_flags);
        raw.s_orphan_file_inum.set(self.orphan_file_inum);
    }

    /// The checksum that was on the device when it was read.
    #[must_use]
    pub fn stored_checksum(&self) -> u32 {
        self.raw.s_checksum.get()
    }

    /// The seed of all checksums but the superblock's own: `s_checksum_seed`, or crc32c of the UUID.
    #[must_use]
    pub fn metadata_seed(&self) -> u32 {
        if self.features.incompat.contains(Incompat::CSUM_SEED) {
            self.checksum_seed
        } else {
            crc32c(!0, &self.uuid)
        }
    }

    /// The label up to its first NUL, as text.
    #[must_use]
    pub fn label(&self) -> String {
        let end = self.volume_name.iter().position(|byte| *byte == 0).unwrap_or(self.volume_name.len());
        String::from_utf8_lossy(self.volume_name.get(..end).unwrap_or_default()).into_owned()
    }
}

/// Where `s_checksum` lies: it covers what is before it.
const CHECKSUM_OFFSET: usize = 0x3fc;

#[cfg(test)]
mod tests {
    use super::*;

    /// A superblock like that of a file system of 64 MiB.
    fn example() -> Superblock {
        let mut superblock = Superblock::blank(BlockSize::KIB_4);
        superblock.features.apply("metadata_csum 64bit extent filetype sparse_super flex_bg").unwrap();
        superblock.blocks_count = 16384;
        superblock.blocks_per_group = 32768;
        superblock.clusters_per_group = 32768;
        superblock.log_cluster_size = 2;
        superblock.inodes_per_group = 4096;
        superblock.inodes_count = 4096;
        superblock.inode_size = 256;
        superblock.first_ino = 11;
        superblock.desc_size = 64;
        superblock.checksum_type = CHECKSUM_TYPE_CRC32C;
        superblock.mtime = 0x12_3456_789a;
        superblock.def_resuid = 70_000;
        superblock
    }

    #[test]
    fn bytes_that_are_not_known_survive() {
        let mut bytes = example().to_bytes();
        bytes[0x3f0] = 0x77;
        let sum = crc32c(!0, &bytes[..CHECKSUM_OFFSET]);
        bytes[CHECKSUM_OFFSET..].copy_from_slice(&sum.to_le_bytes());
        let superblock = Superblock::parse(&bytes).unwrap();
        assert_eq!(superblock.mtime, 0x12_3456_789a);
        assert_eq!(superblock.def_resuid, 70_000);
        assert_eq!(superblock.to_bytes(), bytes);
    }

    #[test]
    fn no_flipped_bit_panics_and_with_checksums_each_is_seen() {
        let good = example().to_bytes();
        Superblock::parse(&good).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            // The one bit that switches the checksum off leaves a valid superblock.
            if bit != 0x64 * 8 + 10 {
                assert!(Superblock::parse(&bytes).is_err(), "bit {bit}");
            }
        }
        let mut plain = example();
        plain.features.apply("^metadata_csum").unwrap();
        let good = plain.to_bytes();
        for bit in 0..good.len() * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(superblock) = Superblock::parse(&bytes) {
                for group in [0, 1, 9, superblock.groups_count().saturating_sub(1), u32::MAX] {
                    let group = GroupNumber(group);
                    let _ = superblock.base_blocks(group);
                    let _ = superblock.group_blocks(group);
                    let _ = superblock.descriptor_block(group.0);
                }
                assert_eq!(superblock.to_bytes(), bytes, "bit {bit}");
            }
        }
    }

    #[test]
    fn copies_lie_in_powers_of_three_five_and_seven() {
        let superblock = example();
        let with: Vec<u32> = (0..400).filter(|group| superblock.has_super(GroupNumber(*group))).collect();
        assert_eq!(with, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343]);
    }

    #[test]
    fn short_input_is_an_error() {
        let bytes = example().to_bytes();
        for len in 0..bytes.len() {
            assert!(Superblock::parse(&bytes[..len]).is_err());
        }
    }
}
