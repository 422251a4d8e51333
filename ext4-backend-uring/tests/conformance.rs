//! The suite that every backend runs, through io_uring: on files with and without O_DIRECT, on loop devices
//! of both block sizes, with one thread and with many, with a queue that is always full.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ext4_backend_uring::{UringDevice, UringOptions};
use ext4_core::Errno;
use ext4_core::device::BlockDevice;
use ext4_core::device::conformance::{self, MIN_SIZE};
use ext4_test_support::loop_device::LoopDevice;
use ext4_test_support::tools::can_mount;

/// A loop device of `size` bytes in sectors of `sector` bytes, and the directory of the file below it; `None`
/// if the test is to be skipped.
fn loop_device(size: u64, sector: u32) -> Option<(LoopDevice, tempfile::TempDir)> {
    if !can_mount() {
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = image(directory.path(), size);
    let device = LoopDevice::attach(&file, &["--direct-io=on", &format!("--sector-size={sector}")]);
    Some((device, directory))
}

fn image(directory: &Path, size: u64) -> PathBuf {
    let path = directory.join("disk.img");
    std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    path
}

async fn run(path: &Path, queue_depth: u32, offset: u64) {
    conformance::run(|read_only| {
        let options = UringOptions { read_only, queue_depth, offset, busy_poll: None };
        // A completion may still be dropping the device opened before.
        for _ in 0..100 {
            match UringDevice::open(path, &options) {
                Ok(device) => return Arc::new(device) as Arc<dyn BlockDevice>,
                Err(error) if error.errno() == Errno::EBUSY => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("{} stays busy", path.display());
    })
    .await;
}

#[tokio::test]
async fn a_file_conforms_on_one_thread() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    run(&image(directory.path(), MIN_SIZE + (1 << 20)), 0, 1 << 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_in_memory_conforms_with_a_full_queue() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    run(&image(directory.path(), MIN_SIZE), 2, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_device_conforms() {
    for sector in [512, 4096] {
        let Some((device, _directory)) = loop_device(MIN_SIZE, sector) else { return };
        run(device.path(), 0, 0).await;
    }
}

#[tokio::test]
async fn a_block_device_has_one_user() {
    let Some((device, _directory)) = loop_device(MIN_SIZE, 512) else { return };
    let options = UringOptions::default();
    let first = UringDevice::open(device.path(), &options).unwrap();
    let geometry = first.geometry();
    assert_eq!((geometry.size, geometry.logical_block_size), (MIN_SIZE, 512));
    let error = UringDevice::open(device.path(), &options).unwrap_err();
    assert_eq!(error.errno(), Errno::EBUSY);
    assert!(error.to_string().contains("is mounted or in use"), "{error}");
    drop(first);
    UringDevice::open(device.path(), &options).unwrap();
}

#[test]
fn without_a_runtime_there_is_an_error_and_no_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(directory.path(), MIN_SIZE);
    assert!(UringDevice::open(&path, &UringOptions::default()).unwrap_err().to_string().contains("runtime"));
}

/// For a machine with a disk to spare, whose content is written over:
/// `EXT4_TEST_DEVICE=/dev/nvme0n1 cargo test -p ext4-backend-uring -- --ignored`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes over the device that EXT4_TEST_DEVICE names"]
async fn a_given_device_conforms() {
    let path = std::env::var_os("EXT4_TEST_DEVICE").expect("EXT4_TEST_DEVICE names a device");
    run(Path::new(&path), 0, 0).await;
    run(Path::new(&path), 3, 1 << 20).await;
}
