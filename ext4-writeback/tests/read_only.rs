//! Read-only mounts: a file system that needs recovery is shown recovered, and not a byte of its device
//! changes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use ext4_core::device::simulated::Image;
use ext4_core::device::{BlockDevice, MemoryDevice, RecordingDevice};
use ext4_core::format::superblock::STATE_ERROR;
use ext4_core::{Errno, InodeNumber};
use ext4_test_support::tools::{debugfs, have, mke2fs_image};
use ext4_writeback::{Credentials, Filesystem, MountOptions};

const TOOLS: &[&str] = &["mkfs.ext4", "e2fsck", "debugfs"];

fn read_only() -> MountOptions {
    MountOptions::new().read_only(true)
}

/// An image whose journal holds the directory `d`, the file `kept` and the deletion of `open`, which was open
/// when the power went; and how many inodes are free once that is finished.
async fn dirty_image(arguments: &[&str]) -> (Image, u64) {
    let mounted = common::mount(&mke2fs_image(arguments, "32M")).await;
    let filesystem = mounted.filesystem.clone();
    let root = InodeNumber::ROOT;
    filesystem.mkdir(root, b"d", Credentials::default()).await.unwrap();
    filesystem.write("/kept", vec![7; 30_000]).await.unwrap();
    let free = filesystem.statfs().free_inodes;
    filesystem.write("/open", vec![8; 300_000]).await.unwrap();
    let inode = filesystem.resolve(b"/open", false).await.unwrap();
    let file = filesystem.open(inode).await.unwrap();
    filesystem.sync().await.unwrap();
    filesystem.unlink(root, b"open").await.unwrap();
    filesystem.sync().await.unwrap();
    let image = mounted.device.image();
    drop((file, filesystem, mounted));
    (image, free)
}

/// A device that can only be read and tells if anything was written to it.
fn recorded(image: &Image, read_only: bool) -> Arc<RecordingDevice> {
    let inner = MemoryDevice::from_image(image.clone()).with_geometry(|geometry| {
        geometry.read_only = read_only;
    });
    Arc::new(RecordingDevice::around(Arc::new(inner), image.clone()))
}

async fn mount(device: &Arc<RecordingDevice>, options: MountOptions) -> ext4_core::Result<Filesystem> {
    Filesystem::mount(Arc::clone(device) as Arc<dyn BlockDevice>, options).await
}

fn assert_untouched(device: &RecordingDevice) {
    assert!(device.recording().events().is_empty(), "a device that is only read was written or flushed");
}

#[tokio::test]
async fn a_dirty_file_system_is_shown_recovered_and_its_device_is_not_touched() {
    if !have(TOOLS) {
        return;
    }
    for arguments in [&["-b", "4096"][..], &["-b", "1024", "-O", "^orphan_file,^metadata_csum"]] {
        let (image, free) = dirty_image(arguments).await;
        for device_read_only in [true, false] {
            let device = recorded(&image, device_read_only);
            let filesystem = mount(&device, read_only()).await.unwrap();
            filesystem.lookup(InodeNumber::ROOT, b"d").await.unwrap();
            assert_eq!(filesystem.read("/kept").await.unwrap(), vec![7; 30_000]);
            assert_eq!(filesystem.statfs().free_inodes, free, "the orphan is deleted");
            let error = filesystem.mkdir(InodeNumber::ROOT, b"e", Credentials::default()).await.unwrap_err();
            assert_eq!(error.errno(), Errno::EROFS);
            filesystem.sync().await.unwrap();
            filesystem.unmount().await.unwrap();
            assert_untouched(&device);
        }
        // What it looked at is still there for a mount that writes.
        let mounted = common::mount(&image).await;
        assert_eq!(mounted.filesystem.statfs().free_inodes, free);
        mounted.unmount_clean("after it was read").await;
    }
}

#[tokio::test]
async fn a_clean_file_system_is_read_straight() {
    if !have(TOOLS) {
        return;
    }
    let device = recorded(&mke2fs_image(&[], "32M"), false);
    let filesystem = mount(&device, read_only()).await.unwrap();
    filesystem.readdir(InodeNumber::ROOT, 0, 10).await.unwrap();
    filesystem.unmount().await.unwrap();
    assert_untouched(&device);
}

#[tokio::test]
async fn noload_reads_the_file_system_as_it_lies() {
    if !have(TOOLS) {
        return;
    }
    let (image, _) = dirty_image(&[]).await;
    let device = recorded(&image, true);
    let options = read_only().noload(true);
    let filesystem = mount(&device, options).await.unwrap();
    let error = filesystem.lookup(InodeNumber::ROOT, b"d").await.unwrap_err();
    assert_eq!(error.errno(), Errno::ENOENT, "it is in the journal only");
    filesystem.unmount().await.unwrap();
    assert_untouched(&device);
}

#[tokio::test]
async fn noload_is_for_reading_only() {
    if !have(TOOLS) {
        return;
    }
    let device = recorded(&mke2fs_image(&[], "16M"), false);
    let options = MountOptions::new().noload(true);
    let error = mount(&device, options).await.unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
    assert!(error.to_string().contains("noload"), "{error}");
    assert_untouched(&device);
}

#[tokio::test]
async fn a_recovery_that_does_not_fit_in_memory_fails_and_says_why() {
    if !have(TOOLS) {
        return;
    }
    let (image, _) = dirty_image(&[]).await;
    let device = recorded(&image, true);
    let options = read_only().overlay_limit(8192);
    let error = mount(&device, options).await.unwrap_err();
    assert_eq!(error.errno(), Errno::ENOSPC);
    assert!(error.to_string().contains("overlay"), "{error}");
    assert_untouched(&device);
}

#[tokio::test]
async fn without_a_journal_orphans_are_finished_in_memory_too() {
    if !have(TOOLS) {
        return;
    }
    let mounted = common::mount(&mke2fs_image(&["-O", "^has_journal"], "16M")).await;
    let filesystem = mounted.filesystem.clone();
    let free = filesystem.statfs().free_inodes;
    filesystem.write("/open", vec![8; 300_000]).await.unwrap();
    let inode = filesystem.resolve(b"/open", false).await.unwrap();
    let file = filesystem.open(inode).await.unwrap();
    filesystem.unlink(InodeNumber::ROOT, b"open").await.unwrap();
    filesystem.sync().await.unwrap();
    let image = mounted.device.image();
    drop((file, filesystem, mounted));
    let device = recorded(&image, true);
    let filesystem = mount(&device, read_only()).await.unwrap();
    assert_eq!(filesystem.statfs().free_inodes, free);
    filesystem.unmount().await.unwrap();
    assert_untouched(&device);
}

#[tokio::test]
async fn the_error_state_is_shown_and_kept() {
    if !have(TOOLS) {
        return;
    }
    let (mut image, _) = dirty_image(&[]).await;
    // s_errno of the journal superblock: jbd2 was stopped by an I/O error.
    let block: u64 =
        debugfs(&image, "blocks <8>").split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    let mut superblock = vec![0; 1024];
    image.read(block * 1024, &mut superblock);
    superblock[0x20..0x24].copy_from_slice(&(-5_i32).to_be_bytes());
    superblock[0xfc..0x100].fill(0);
    let checksum = ext4_core::checksum::crc32c(!0, &superblock);
    superblock[0xfc..0x100].copy_from_slice(&checksum.to_be_bytes());
    image.write(block * 1024, &superblock);
    let device = recorded(&image, true);
    let filesystem = mount(&device, read_only()).await.unwrap();
    assert_eq!(filesystem.superblock().state & STATE_ERROR, STATE_ERROR);
    filesystem.unmount().await.unwrap();
    assert_untouched(&device);
    let mounted = common::mount(&image).await;
    assert_eq!(mounted.filesystem.superblock().state & STATE_ERROR, STATE_ERROR);
    mounted.filesystem.unmount().await.unwrap();
}
