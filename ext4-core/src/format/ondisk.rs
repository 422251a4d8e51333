//! Sizes and offsets of every on-disk structure, checked at compile time: a field added in the wrong place,
//! or a compiler that pads, does not build.
//!
//! Source: kernel documentation, "Data Structures". Each structure's own module names its page.

use core::mem::{offset_of, size_of};

use super::directory::index::{RawCountLimit, RawIndexTail, RawKey, RawRootInfo};
use super::directory::{RawEntry, RawTail};
use super::extent::{RawExtent, RawExtentHeader, RawExtentIndex, RawExtentTail};
use super::group_descriptor::RawGroupDescriptor;
use super::inode::{RawInode, RawInodeExtra};
use super::orphan_file::RawOrphanTail;
use super::superblock::RawSuperblock;
use super::xattr::{RawHeader, RawXattrEntry};

macro_rules! layout {
    ($name:ty, $size:expr, { $($field:ident: $offset:expr),* $(,)? }) => {
        const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(offset_of!($name, $field) == $offset);)*
        };
    };
}

layout!(RawSuperblock, 1024, {
    s_inodes_count: 0x0,
    s_blocks_count_lo: 0x4,
    s_r_blocks_count_lo: 0x8,
    s_free_blocks_count_lo: 0xc,
    s_free_inodes_count: 0x10,
    s_first_data_block: 0x14,
    s_log_block_size: 0x18,
    s_log_cluster_size: 0x1c,
    s_blocks_per_group: 0x20,
    s_clusters_per_group: 0x24,
    s_inodes_per_group: 0x28,
    s_mtime: 0x2c,
    s_wtime: 0x30,
    s_mnt_count: 0x34,
    s_max_mnt_count: 0x36,
    s_magic: 0x38,
    s_state: 0x3a,
    s_errors: 0x3c,
    s_minor_rev_level: 0x3e,
    s_lastcheck: 0x40,
    s_checkinterval: 0x44,
    s_creator_os: 0x48,
    s_rev_level: 0x4c,
    s_def_resuid: 0x50,
    s_def_resgid: 0x52,
    s_first_ino: 0x54,
    s_inode_size: 0x58,
    s_block_group_nr: 0x5a,
    s_feature_compat: 0x5c,
    s_feature_incompat: 0x60,
    s_feature_ro_compat: 0x64,
    s_uuid: 0x68,
    s_volume_name: 0x78,
    s_last_mounted: 0x88,
    s_algorithm_usage_bitmap: 0xc8,
    s_prealloc_blocks: 0xcc,
    s_prealloc_dir_blocks: 0xcd,
    s_reserved_gdt_blocks: 0xce,
    s_journal_uuid: 0xd0,
    s_journal_inum: 0xe0,
    s_journal_dev: 0xe4,
    s_last_orphan: 0xe8,
    s_hash_seed: 0xec,
    s_def_hash_version: 0xfc,
    s_jnl_backup_type: 0xfd,
    s_desc_size: 0xfe,
    s_default_mount_opts: 0x100,
    s_first_meta_bg: 0x104,
    s_mkfs_time: 0x108,
    s_jnl_blocks: 0x10c,
    s_blocks_count_hi: 0x150,
    s_r_blocks_count_hi: 0x154,
    s_free_blocks_count_hi: 0x158,
    s_min_extra_isize: 0x15c,
    s_want_extra_isize: 0x15e,
    s_flags: 0x160,
    s_raid_stride: 0x164,
    s_mmp_interval: 0x166,
    s_mmp_block: 0x168,
    s_raid_stripe_width: 0x170,
    s_log_groups_per_flex: 0x174,
    s_checksum_type: 0x175,
    s_encryption_level: 0x176,
    s_reserved_pad: 0x177,
    s_kbytes_written: 0x178,
    s_snapshot_inum: 0x180,
    s_snapshot_id: 0x184,
    s_snapshot_r_blocks_count: 0x188,
    s_snapshot_list: 0x190,
    s_error_count: 0x194,
    s_first_error_time: 0x198,
    s_first_error_ino: 0x19c,
    s_first_error_block: 0x1a0,
    s_first_error_func: 0x1a8,
    s_first_error_line: 0x1c8,
    s_last_error_time: 0x1cc,
    s_last_error_ino: 0x1d0,
    s_last_error_line: 0x1d4,
    s_last_error_block: 0x1d8,
    s_last_error_func: 0x1e0,
    s_mount_opts: 0x200,
    s_usr_quota_inum: 0x240,
    s_grp_quota_inum: 0x244,
    s_overhead_blocks: 0x248,
    s_backup_bgs: 0x24c,
    s_encrypt_algos: 0x254,
    s_encrypt_pw_salt: 0x258,
    s_lpf_ino: 0x268,
    s_prj_quota_inum: 0x26c,
    s_checksum_seed: 0x270,
    s_wtime_hi: 0x274,
    s_mtime_hi: 0x275,
    s_mkfs_time_hi: 0x276,
    s_lastcheck_hi: 0x277,
    s_first_error_time_hi: 0x278,
    s_last_error_time_hi: 0x279,
    s_first_error_errcode: 0x27a,
    s_last_error_errcode: 0x27b,
    s_encoding: 0x27c,
    s_encoding_flags: 0x27e,
    s_orphan_file_inum: 0x280,
    s_def_resuid_hi: 0x284,
    s_def_resgid_hi: 0x286,
    s_reserved: 0x288,
    s_checksum: 0x3fc,
});

layout!(RawGroupDescriptor, 64, {
    bg_block_bitmap_lo: 0x0,
    bg_inode_bitmap_lo: 0x4,
    bg_inode_table_lo: 0x8,
    bg_free_blocks_count_lo: 0xc,
    bg_free_inodes_count_lo: 0xe,
    bg_used_dirs_count_lo: 0x10,
    bg_flags: 0x12,
    bg_exclude_bitmap_lo: 0x14,
    bg_block_bitmap_csum_lo: 0x18,
    bg_inode_bitmap_csum_lo: 0x1a,
    bg_itable_unused_lo: 0x1c,
    bg_checksum: 0x1e,
    bg_block_bitmap_hi: 0x20,
    bg_inode_bitmap_hi: 0x24,
    bg_inode_table_hi: 0x28,
    bg_free_blocks_count_hi: 0x2c,
    bg_free_inodes_count_hi: 0x2e,
    bg_used_dirs_count_hi: 0x30,
    bg_itable_unused_hi: 0x32,
    bg_exclude_bitmap_hi: 0x34,
    bg_block_bitmap_csum_hi: 0x38,
    bg_inode_bitmap_csum_hi: 0x3a,
    bg_reserved: 0x3c,
});

layout!(RawEntry, 8, { inode: 0, rec_len: 4, name_len: 6, file_type: 7 });
layout!(RawTail, 12, {
    det_reserved_zero1: 0,
    det_rec_len: 4,
    det_reserved_zero2: 6,
    det_reserved_ft: 7,
    det_checksum: 8,
});
layout!(RawRootInfo, 8, {
    reserved_zero: 0,
    hash_version: 4,
    info_length: 5,
    indirect_levels: 6,
    unused_flags: 7,
});
layout!(RawCountLimit, 4, { limit: 0, count: 2 });
layout!(RawKey, 8, { hash: 0, block: 4 });
layout!(RawIndexTail, 8, { dt_reserved: 0, dt_checksum: 4 });
layout!(RawInode, 128, {
    i_mode: 0x0,
    i_uid: 0x2,
    i_size_lo: 0x4,
    i_atime: 0x8,
    i_ctime: 0xc,
    i_mtime: 0x10,
    i_dtime: 0x14,
    i_gid: 0x18,
    i_links_count: 0x1a,
    i_blocks_lo: 0x1c,
    i_flags: 0x20,
    i_osd1: 0x24,
    i_block: 0x28,
    i_generation: 0x64,
    i_file_acl_lo: 0x68,
    i_size_high: 0x6c,
    i_obso_faddr: 0x70,
    l_i_blocks_high: 0x74,
    l_i_file_acl_high: 0x76,
    l_i_uid_high: 0x78,
    l_i_gid_high: 0x7a,
    l_i_checksum_lo: 0x7c,
    l_i_reserved: 0x7e,
});

// From byte 128 of the inode on.
layout!(RawInodeExtra, 32, {
    i_extra_isize: 0x0,
    i_checksum_hi: 0x2,
    i_ctime_extra: 0x4,
    i_mtime_extra: 0x8,
    i_atime_extra: 0xc,
    i_crtime: 0x10,
    i_crtime_extra: 0x14,
    i_version_hi: 0x18,
    i_projid: 0x1c,
});

layout!(RawExtentHeader, 12, {
    eh_magic: 0x0,
    eh_entries: 0x2,
    eh_max: 0x4,
    eh_depth: 0x6,
    eh_generation: 0x8,
});

layout!(RawExtent, 12, {
    ee_block: 0x0,
    ee_len: 0x4,
    ee_start_hi: 0x6,
    ee_start_lo: 0x8,
});

layout!(RawExtentIndex, 12, {
    ei_block: 0x0,
    ei_leaf_lo: 0x4,
    ei_leaf_hi: 0x8,
    ei_unused: 0xa,
});

layout!(RawExtentTail, 4, { et_checksum: 0x0 });

layout!(RawHeader, 32, {
    h_magic: 0,
    h_refcount: 4,
    h_blocks: 8,
    h_hash: 12,
    h_checksum: 16,
    h_reserved: 20,
});
layout!(RawXattrEntry, 16, {
    e_name_len: 0,
    e_name_index: 1,
    e_value_offs: 2,
    e_value_inum: 4,
    e_value_size: 8,
    e_hash: 12,
});

layout!(RawOrphanTail, 8, { ob_magic: 0, ob_checksum: 4 });
