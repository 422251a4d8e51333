//! Mounting and unmounting: what the superblock says, what is refused and how, what a crash leaves to the
//! next mount.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use ext4_core::device::simulated::{FaultyDevice, Image};
use ext4_core::device::{BlockDevice, MemoryDevice, Operation};
use ext4_core::environment::FixedEnvironment;
use ext4_core::format::features::{Incompat, RoCompat};
use ext4_core::format::inode::FileType;
use ext4_core::format::superblock::{STATE_ERROR, STATE_VALID, Superblock};
use ext4_core::{Errno, InodeNumber, Timestamp};
use ext4_test_support::loop_device::KernelMount;
use ext4_test_support::tools::{can_mount, changed_by_debugfs, debugfs, have, mke2fs_image};
use ext4_writeback::{Credentials, Filesystem, MountOptions, NewInode};

const TOOLS: &[&str] = &["mkfs.ext4", "e2fsck", "debugfs"];

fn superblock(image: &Image) -> Superblock {
    let mut bytes = [0; 1024];
    image.read(1024, &mut bytes);
    Superblock::parse(&bytes).unwrap()
}

fn read_only() -> MountOptions {
    MountOptions::new().read_only(true)
}

/// Changes the superblock of an image as debugfs would (`set_super_value`).
fn with_super_value(image: &Image, field: &str, value: &str) -> Image {
    changed_by_debugfs(image, &format!("set_super_value {field} {value}"))
}

async fn mount_error(image: &Image, options: MountOptions) -> ext4_core::Error {
    let device = Arc::new(MemoryDevice::from_image(image.clone()));
    Filesystem::mount(device, options).await.unwrap_err()
}

#[tokio::test]
async fn the_superblock_tells_mounted_from_clean() {
    if !have(TOOLS) {
        return;
    }
    let image = mke2fs_image(&[], "32M");
    let before = superblock(&image);
    let now = Timestamp { seconds: 2_000_000_000, nanoseconds: 5 };
    let options = MountOptions::new()
        .environment(Arc::new(FixedEnvironment::new(now, 1)))
        .last_mounted(Some(b"/some/where".to_vec()));
    let mounted = common::mount_with(&image, options).await;
    let during = superblock(&mounted.device.image());
    assert!(during.features.incompat.contains(Incompat::RECOVER));
    assert_eq!(during.mnt_count, before.mnt_count + 1);
    assert_eq!(during.mtime, now.seconds);
    assert!(during.last_mounted.starts_with(b"/some/where\0"));
    mounted.filesystem.mkdir(InodeNumber::ROOT, b"d", Credentials::default()).await.unwrap();
    let image = mounted.unmount_clean("after unmounting").await;
    let after = superblock(&image);
    assert!(!after.features.incompat.contains(Incompat::RECOVER));
    assert!(!after.features.ro_compat.contains(RoCompat::ORPHAN_PRESENT));
    assert_eq!(after.state, STATE_VALID);
    assert_eq!(after.free_inodes_count, before.free_inodes_count - 1);
    assert_eq!(after.kbytes_written, before.kbytes_written);
}

#[tokio::test]
async fn without_a_journal_the_state_is_not_valid_while_mounted() {
    if !have(TOOLS) {
        return;
    }
    let image = mke2fs_image(&["-O", "^has_journal"], "16M");
    let mounted = common::mount(&image).await;
    assert_eq!(superblock(&mounted.device.image()).state & STATE_VALID, 0);
    let image = mounted.unmount_clean("after unmounting").await;
    assert_eq!(superblock(&image).state, STATE_VALID);
}

#[tokio::test]
async fn a_read_only_mount_of_a_clean_file_system_writes_nothing() {
    if !have(TOOLS) {
        return;
    }
    let image = mke2fs_image(&[], "32M");
    let mounted = common::mount_with(&image, read_only()).await;
    let filesystem = &mounted.filesystem;
    filesystem.readdir(InodeNumber::ROOT, 0, 10).await.unwrap();
    let error = filesystem.mkdir(InodeNumber::ROOT, b"d", Credentials::default()).await.unwrap_err();
    assert_eq!(error.errno(), Errno::EROFS);
    filesystem.sync().await.unwrap();
    let after = mounted.unmount_clean("read-only").await;
    assert!(after.to_vec() == image.to_vec());
}

/// An image with a committed directory `d` in its journal only.
async fn dirty_image() -> Image {
    let mounted = common::mount(&mke2fs_image(&[], "32M")).await;
    mounted.filesystem.mkdir(InodeNumber::ROOT, b"d", Credentials::default()).await.unwrap();
    mounted.filesystem.sync().await.unwrap();
    mounted.crash()
}

#[tokio::test]
async fn a_device_that_cannot_be_written_is_mounted_read_only_only() {
    if !have(TOOLS) {
        return;
    }
    let image = mke2fs_image(&[], "16M");
    let device = || {
        let device = MemoryDevice::from_image(image.clone());
        Arc::new(device.with_geometry(|geometry| geometry.read_only = true))
    };
    let error = Filesystem::mount(device(), MountOptions::default()).await.unwrap_err();
    assert_eq!(error.errno(), Errno::EROFS);
    Filesystem::mount(device(), read_only()).await.unwrap().unmount().await.unwrap();
}

#[tokio::test]
async fn what_is_not_known_is_refused_by_name() {
    if !have(TOOLS) {
        return;
    }
    let image = mke2fs_image(&[], "16M");
    let dirdata = with_super_value(&image, "feature_incompat", "0x12c2");
    let error = mount_error(&dirdata, read_only()).await;
    assert!(error.to_string().contains("dirdata"), "{error}");
    let verity = with_super_value(&image, "feature_ro_compat", "0x847b");
    let error = mount_error(&verity, MountOptions::default()).await;
    assert!(error.to_string().contains("verity"), "{error}");
    common::mount_with(&verity, read_only()).await.filesystem.unmount().await.unwrap();
    let zeros = Image::zeroed(16 << 20);
    assert!(mount_error(&zeros, MountOptions::default()).await.to_string().contains("superblock"));
    let short = Image::zeroed(512);
    mount_error(&short, MountOptions::default()).await;
}

#[tokio::test]
async fn a_journal_mapped_by_blocks_works() {
    if !have(TOOLS) {
        return;
    }
    let image = mke2fs_image(&["-b", "1024", "-O", "^extents,^64bit"], "32M");
    let mounted = common::mount(&image).await;
    mounted.filesystem.create(InodeNumber::ROOT, b"f", Credentials::default()).await.unwrap();
    mounted.filesystem.sync().await.unwrap();
    let crashed = mounted.crash();
    let mounted = common::mount(&crashed).await;
    mounted.filesystem.lookup(InodeNumber::ROOT, b"f").await.unwrap();
    mounted.unmount_clean("a journal mapped by blocks").await;
}

#[tokio::test]
async fn the_superblocks_copy_finds_the_journal_of_a_damaged_inode() {
    if !have(TOOLS) {
        return;
    }
    let mut image = dirty_image().await;
    let shown = debugfs(&image, "imap <8>");
    // "Inode 8 is part of block group 0\n\tlocated at block 37, offset 0x0700"
    let number = |after: &str| {
        let rest = &shown[shown.find(after).unwrap() + after.len()..];
        rest.split(|c: char| !c.is_ascii_hexdigit() && c != 'x').next().unwrap().to_owned()
    };
    let block: u64 = number("at block ").parse().unwrap();
    let offset = u64::from_str_radix(number("offset 0x").as_str(), 16).unwrap();
    let block_size = u64::from(superblock(&image).block_size.bytes());
    image.fill(block * block_size + offset, 128, 0xee);
    let mounted = common::mount(&image).await;
    mounted.filesystem.lookup(InodeNumber::ROOT, b"d").await.unwrap();
    // The log holds the inode table block only if something changed in it; the journal's own inode may stay
    // damaged.
    mounted.filesystem.unmount().await.unwrap();
}

#[tokio::test]
async fn unmounting_is_refused_while_files_are_open_and_final_afterwards() {
    if !have(TOOLS) {
        return;
    }
    let mounted = common::mount(&mke2fs_image(&[], "16M")).await;
    let filesystem = mounted.filesystem.clone();
    let inode = filesystem.create(InodeNumber::ROOT, b"f", Credentials::default()).await.unwrap();
    let file = filesystem.open(inode).await.unwrap();
    assert_eq!(filesystem.clone().unmount().await.unwrap_err().errno(), Errno::EBUSY);
    drop(file);
    mounted.unmount_clean("after closing").await;
    let error = filesystem.create(InodeNumber::ROOT, b"g", Credentials::default()).await.unwrap_err();
    assert_eq!(error.errno(), Errno::ENODEV);
    assert_eq!(filesystem.unmount().await.unwrap_err().errno(), Errno::ENODEV);
}

#[tokio::test]
async fn dropping_without_unmounting_lets_go_of_the_device() {
    if !have(TOOLS) {
        return;
    }
    let mounted = common::mount(&mke2fs_image(&[], "16M")).await;
    mounted.filesystem.create(InodeNumber::ROOT, b"f", Credentials::default()).await.unwrap();
    let device = Arc::downgrade(&mounted.device);
    drop(mounted);
    for _ in 0..200 {
        if device.strong_count() == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{} holders of the device are left", device.strong_count());
}

#[tokio::test]
async fn files_without_names_live_while_open_and_are_deleted_after_a_crash() {
    if !have(TOOLS) {
        return;
    }
    for arguments in [&["-O", "^orphan_file"][..], &["-O", "orphan_file"], &["-b", "1024", "-I", "128"]] {
        let image = mke2fs_image(arguments, "32M");
        let mounted = common::mount(&image).await;
        let filesystem = mounted.filesystem.clone();
        let root = InodeNumber::ROOT;
        let mut open = Vec::new();
        for number in 0..5 {
            let name = format!("f{number}").into_bytes();
            let inode = filesystem.create(root, &name, Credentials::default()).await.unwrap();
            open.push(filesystem.open(inode).await.unwrap());
            filesystem.unlink(root, &name).await.unwrap();
            assert_eq!(filesystem.attributes(inode).await.unwrap().links, 0);
            assert_eq!(filesystem.open(inode).await.unwrap_err().errno(), Errno::ENOENT);
            let error = filesystem.link(inode, root, b"again").await.unwrap_err();
            assert_eq!(error.errno(), Errno::ENOENT);
        }
        let free = filesystem.statfs().free_inodes;
        // Closing one deletes it.
        drop(open.remove(2));
        filesystem.sync().await.unwrap();
        assert_eq!(filesystem.statfs().free_inodes, free + 1);
        let crashed = mounted.device.image();
        drop(open);
        drop(filesystem);
        mounted.unmount_clean("closed before unmounting").await;

        let mounted = common::mount(&crashed).await;
        assert_eq!(mounted.filesystem.statfs().free_inodes, free + 5);
        mounted.unmount_clean("orphans of a crash").await;
        let mounted = common::mount_with(&crashed, read_only()).await;
        assert_eq!(mounted.filesystem.statfs().free_inodes, free + 5);
        assert!(mounted.device.image().to_vec() == crashed.to_vec());
    }
}

/// Damages the only block of the directory `d` of an image, made with `arguments`.
async fn damaged_directory(arguments: &[&str]) -> Image {
    let mounted = common::mount(&mke2fs_image(arguments, "16M")).await;
    let filesystem = &mounted.filesystem;
    let directory = filesystem.mkdir(InodeNumber::ROOT, b"d", Credentials::default()).await.unwrap();
    filesystem.create(directory, b"f", Credentials::default()).await.unwrap();
    let mut image = mounted.unmount_clean("before the damage").await;
    let block: u64 = debugfs(&image, "blocks /d")
        .lines()
        .find_map(|line| line.trim().parse().ok())
        .expect("debugfs names the block");
    let block_size = u64::from(superblock(&image).block_size.bytes());
    image.fill(block * block_size + 8, 8, 0x55);
    image
}

#[tokio::test]
async fn a_contradiction_is_kept_in_the_superblock_and_work_goes_on() {
    if !have(TOOLS) {
        return;
    }
    let image = damaged_directory(&["-e", "continue"]).await;
    let mounted = common::mount(&image).await;
    let filesystem = &mounted.filesystem;
    let directory = filesystem.lookup(InodeNumber::ROOT, b"d").await.unwrap();
    for _ in 0..2 {
        assert!(filesystem.lookup(directory, b"f").await.unwrap_err().is_corrupt());
    }
    filesystem.create(InodeNumber::ROOT, b"g", Credentials::default()).await.unwrap();
    mounted.filesystem.unmount().await.unwrap();
    let after = superblock(&mounted.device.image());
    assert_eq!(after.state, STATE_VALID | STATE_ERROR);
    assert_eq!(after.error_count, 2);
    assert_eq!(after.first_error.inode, directory.0);
    assert!(after.first_error.function.starts_with(b"lookup\0"));
    assert!(after.first_error.time > 0 && after.last_error.time >= after.first_error.time);
}

#[tokio::test]
async fn with_errors_remount_ro_nothing_is_written_after_a_contradiction() {
    if !have(TOOLS) {
        return;
    }
    let image = damaged_directory(&["-e", "remount-ro"]).await;
    let mounted = common::mount(&image).await;
    let filesystem = &mounted.filesystem;
    let directory = filesystem.lookup(InodeNumber::ROOT, b"d").await.unwrap();
    assert!(filesystem.lookup(directory, b"f").await.unwrap_err().is_corrupt());
    let error = filesystem.create(InodeNumber::ROOT, b"g", Credentials::default()).await.unwrap_err();
    assert_eq!(error.errno(), Errno::EROFS);
    filesystem.attributes(directory).await.unwrap();
    assert_eq!(superblock(&mounted.device.image()).state & STATE_ERROR, STATE_ERROR);
    mounted.filesystem.unmount().await.unwrap_err();
    let after = superblock(&mounted.device.image());
    assert_eq!((after.error_count, after.first_error.inode), (1, directory.0));
    assert!(after.features.incompat.contains(Incompat::RECOVER));
}

#[tokio::test]
async fn an_old_file_system_is_read_and_names_are_removed() {
    if !have(TOOLS) || !can_mount() {
        return;
    }
    // As ext3: block maps, no checksums, 128-byte inodes.
    let arguments = ["-b", "1024", "-I", "128", "-O", "^extents,^64bit,^metadata_csum,^flex_bg,^huge_file"];
    let kernel = KernelMount::of_image(&mke2fs_image(&arguments, "32M"));
    let root = kernel.directory();
    std::fs::create_dir(root.join("dir")).unwrap();
    for number in 0..300 {
        std::fs::write(root.join(format!("dir/file with a longer name {number}")), vec![7; number]).unwrap();
    }
    std::fs::write(root.join("large"), vec![9; 2 << 20]).unwrap();
    let target = "t".repeat(200);
    std::os::unix::fs::symlink(&target, root.join("slow")).unwrap();
    let image = kernel.unmount();
    let mounted = common::mount(&image).await;
    let filesystem = mounted.filesystem.clone();
    let slow = filesystem.resolve(b"/slow", false).await.unwrap();
    assert_eq!(filesystem.readlink(slow).await.unwrap(), target.as_bytes());
    let directory = filesystem.resolve(b"/dir", true).await.unwrap();
    for number in 0..300 {
        let name = format!("file with a longer name {number}").into_bytes();
        let inode = filesystem.lookup(directory, &name).await.unwrap();
        assert_eq!(filesystem.attributes(inode).await.unwrap().size, number);
        filesystem.unlink(directory, &name).await.unwrap();
    }
    filesystem.rmdir(InodeNumber::ROOT, b"dir").await.unwrap();
    filesystem.unlink(InodeNumber::ROOT, b"large").await.unwrap();
    filesystem.unlink(InodeNumber::ROOT, b"slow").await.unwrap();
    filesystem.create(InodeNumber::ROOT, b"empty", Credentials::default()).await.unwrap();
    filesystem.symlink(InodeNumber::ROOT, b"fast", b"x", Credentials::default()).await.unwrap();
    let fifo = NewInode::new(FileType::Fifo, Credentials::default());
    filesystem.create_with(InodeNumber::ROOT, b"fifo", fifo).await.unwrap();
    drop(filesystem);
    mounted.unmount_clean("an old file system").await;
}

#[tokio::test]
async fn a_device_is_not_touched_by_a_mount_that_fails() {
    if !have(TOOLS) {
        return;
    }
    let image = with_super_value(&mke2fs_image(&[], "16M"), "feature_incompat", "0x12c2");
    let device = Arc::new(MemoryDevice::from_image(image.clone()));
    Filesystem::mount(Arc::clone(&device) as Arc<dyn BlockDevice>, MountOptions::default())
        .await
        .unwrap_err();
    assert!(device.image().to_vec() == image.to_vec());
}

/// A device that refuses every write for a while: the journal stops, reads go on, and the next mount finds
/// all that was durable, and says that there was an error.
#[tokio::test]
async fn a_failing_device_stops_writing_and_the_next_mount_recovers() {
    if !have(TOOLS) {
        return;
    }
    let memory = Arc::new(MemoryDevice::from_image(mke2fs_image(&[], "32M")));
    let device = Arc::new(FaultyDevice::new(Arc::clone(&memory) as Arc<dyn BlockDevice>));
    let filesystem = Filesystem::mount(Arc::clone(&device) as Arc<dyn BlockDevice>, MountOptions::default())
        .await
        .unwrap();
    filesystem.write("/durable", vec![3; 20_000]).await.unwrap();
    filesystem.sync().await.unwrap();
    // All of the device but its superblock.
    device.fail_range(Operation::Write, 8192..32 << 20);
    filesystem.mkdir(InodeNumber::ROOT, b"lost", Credentials::default()).await.unwrap();
    filesystem.sync().await.unwrap_err();
    let error = filesystem.mkdir(InodeNumber::ROOT, b"late", Credentials::default()).await.unwrap_err();
    assert_eq!(error.errno(), Errno::EROFS, "{error}");
    assert_eq!(filesystem.read("/durable").await.unwrap(), vec![3; 20_000]);
    device.heal();
    filesystem.unmount().await.unwrap_err();

    let mounted = common::mount(&memory.image()).await;
    assert_eq!(mounted.filesystem.read("/durable").await.unwrap(), vec![3; 20_000]);
    let error = mounted.filesystem.lookup(InodeNumber::ROOT, b"lost").await.unwrap_err();
    assert_eq!(error.errno(), Errno::ENOENT);
    mounted.filesystem.create(InodeNumber::ROOT, b"again", Credentials::default()).await.unwrap();
    mounted.unmount_clean("after a failing device").await;
}
