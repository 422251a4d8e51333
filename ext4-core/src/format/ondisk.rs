//! Sizes and offsets of every on-disk structure, checked at compile time: a field added in the wrong place, or a
//! compiler that pads, does not build.
//!
//! Source: kernel documentation, "Data Structures". Each structure's own module names its page.

use core::mem::{offset_of, size_of};

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
