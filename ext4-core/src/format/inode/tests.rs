//! Tests of the inode and its slot.

use alloc::vec;

use super::slot::{decode_time, encode_time};
use super::*;
use crate::error::Errno;
use crate::format::features::{Compat, Features, RoCompat};
use crate::types::BlockSize;

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
    slot.get_mut(160..176).expect("the extra fields that are not known").fill(0x77);
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
