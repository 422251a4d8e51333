//! Many tasks at once, and devices that fail.

use std::sync::Arc;
use std::time::Duration;

use super::common::*;
use super::way::Way;
use ext4_core::device::simulated::FaultyDevice;
use ext4_core::device::{BlockDevice, MemoryDevice, Operation};
use ext4_core::meta::extent_tree::MappingState;
use ext4_core::{Errno, InodeNumber};
use ext4_writeback::{Filesystem, MountOptions};

async fn hammer(fs: Filesystem, names: Vec<String>, seed: u64, steps: usize, allowed: &'static [Errno]) {
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..steps {
        let name = &names[random.usize(0..names.len())];
        let Ok(number) = fs.lookup(InodeNumber::ROOT, name.as_bytes()).await else { continue };
        let Ok(file) = fs.open(number).await else { continue };
        let offset = random.u64(0..2 << 20);
        let len = random.usize(1..60_000);
        let result = match random.u8(0..20) {
            0..8 => file.write_at(offset, &pattern(seed, offset, len)).await.map(drop),
            8..11 => file.write_at(file.len().min(4 << 20), &pattern(seed, offset, len)).await.map(drop),
            11..15 => {
                let mut bytes = vec![0; len];
                file.read_at(offset, &mut bytes).await.map(|count| {
                    assert!(bytes[..count].iter().all(|byte| byte & 1 == 1 || *byte == 0));
                })
            }
            15 => file.set_len(offset).await,
            16 => {
                // Somebody who stops waiting.
                let _ =
                    tokio::time::timeout(Duration::from_micros(random.u64(0..300)), file.sync_all()).await;
                Ok(())
            }
            17 => {
                let data = pattern(seed, offset, len);
                let write = file.write_at(offset, &data);
                let _ = tokio::time::timeout(Duration::from_micros(random.u64(0..50)), write).await;
                Ok(())
            }
            18 => file.sync_data().await,
            _ => file.start_writeback().await,
        };
        if let Err(error) = result {
            assert!(allowed.contains(&error.errno()), "{error}");
        }
    }
}

pub async fn stress(way: Way, mib: u64, options: MountOptions, faults: bool, allowed: &'static [Errno]) {
    let image = way.image(mib, 1024, &["-m", "0"], 0xaa);
    let options = way.mounted(options);
    let memory = Arc::new(MemoryDevice::from_image(image));
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as Arc<dyn BlockDevice>));
    faulty.reorder(99);
    let driver = tokio::spawn({
        let faulty = Arc::clone(&faulty);
        async move { faulty.drive().await }
    });
    let fs = mount(Arc::clone(&faulty) as _, options).await;
    let names: Vec<String> = (0..16).map(|i| format!("file{i}")).collect();
    for name in &names {
        drop(create(&fs, name).await);
    }
    if faults {
        // Where the files' data will be, and nothing of the journal: a region in the middle of the device.
        faulty.fail_range(Operation::Write, (mib << 20) / 2..(mib << 20) / 2 + (256 << 10));
    }
    let tasks: Vec<_> =
        (0..64).map(|i| tokio::spawn(hammer(fs.clone(), names.clone(), i, 60, allowed))).collect();
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(120), task).await.expect("no deadlock").expect("no panic");
    }
    faulty.heal();
    // Operations whose caller stopped waiting still hold files.
    let _ = tokio::time::timeout(Duration::from_secs(60), fs.sync()).await.expect("no deadlock");
    tokio::time::timeout(Duration::from_secs(60), fs.unmount())
        .await
        .expect("no deadlock")
        .expect("unmounts");
    driver.abort();
    assert_clean(&memory.image());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_tasks_on_sixteen_files() {
    if !have_tools() {
        return;
    }
    stress(Way::Unwritten, 64, MountOptions { cache: 16 << 20, ..options() }, false, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_tasks_on_a_full_device() {
    if !have_tools() {
        return;
    }
    stress(Way::Unwritten, 16, MountOptions { cache: 16 << 20, ..options() }, false, &[Errno::ENOSPC]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_tasks_and_bad_sectors() {
    if !have_tools() {
        return;
    }
    // Many rounds: what was parked was forgotten once in 160 of them where two looked at an inode's ioends at a time.
    for round in 0..if long_tests() { 400 } else { 8 } {
        println!("round {round}");
        stress(Way::Unwritten, 64, MountOptions { cache: 16 << 20, ..options() }, true, &[Errno::EIO]).await;
    }
}

/// A file of 64 KiB on a device that can be told to fail, and the byte of the device where its data lies.
async fn one_file(options: MountOptions) -> (Arc<MemoryDevice>, Arc<FaultyDevice>, Filesystem, u64) {
    let memory = Arc::new(MemoryDevice::from_image(make_image(32, 4096, &[], 0xaa)));
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as Arc<dyn BlockDevice>));
    let fs = mount(Arc::clone(&faulty) as _, options).await;
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(1, 0, 65_536)).await.expect("writes");
    file.sync_all().await.expect("syncs");
    let extents = file.extents().await.expect("maps");
    let MappingState::Written(block) = extents[0].state else { panic!("{extents:?}") };
    drop(file);
    (memory, faulty, fs, block.0 * 4096)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g_13_a_failed_overwrite_is_reported_once_to_each() {
    if !have_tools() {
        return;
    }
    let (memory, faulty, fs, data) = one_file(options()).await;
    let (first, second) = (open(&fs, "file").await, open(&fs, "file").await);
    faulty.fail_range(Operation::Write, data..data + 4096);
    first.write_at(0, &pattern(2, 0, 8192)).await.expect("the cache takes it");
    assert_eq!(first.sync_data().await.expect_err("not written").errno(), Errno::EIO);
    faulty.heal();
    first.sync_data().await.expect("once");
    assert_eq!(second.sync_all().await.expect_err("not told yet").errno(), Errno::EIO);
    second.sync_all().await.expect("once");
    open(&fs, "file").await.sync_all().await.expect("later openers are not told");
    drop((first, second));
    finish(&memory, fs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g_13_a_failed_append_leaves_the_old_size() {
    if !have_tools() {
        return;
    }
    let (memory, faulty, fs, data) = one_file(options()).await;
    let file = open(&fs, "file").await;
    faulty.fail_range(Operation::Write, data + 65_536..data + (1 << 20));
    file.write_at(65_536, &pattern(1, 65_536, 65_536)).await.expect("the cache takes it");
    assert_eq!(file.sync_all().await.expect_err("not written").errno(), Errno::EIO);
    drop(file);
    faulty.heal();
    let image = finish(&memory, fs).await;
    let (device, fs) = mount_image(image, options()).await;
    let file = open(&fs, "file").await;
    let bytes = content(&file).await;
    assert_eq!(bytes[..65_536], pattern(1, 0, 65_536));
    assert!(bytes[65_536..].iter().all(|byte| *byte == 0), "zeros at most");
    drop(file);
    finish(&device, fs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g_14_k_26_data_err_abort_stops_the_journal_on_a_failed_overwrite() {
    if !have_tools() {
        return;
    }
    let (memory, faulty, fs, data) = one_file(MountOptions { data_error_aborts: true, ..options() }).await;
    let file = open(&fs, "file").await;
    faulty.fail_range(Operation::Write, data..data + 4096);
    file.write_at(0, &pattern(2, 0, 100)).await.expect("the cache takes it");
    file.sync_all().await.expect_err("not written");
    file.write_at(0, b"more").await.expect_err("nothing is written any more");
    let mut bytes = [0; 100];
    assert_eq!(file.read_at(0, &mut bytes).await.expect("reads go on"), 100);
    drop(file);
    assert!(fs.unmount().await.is_err());
    drop(memory);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k_29_a_failed_tail_keeps_the_size_on_the_device() {
    if !have_tools() {
        return;
    }
    let (memory, faulty, fs, data) = one_file(options()).await;
    let file = open(&fs, "file").await;
    file.set_len(62_000).await.expect("cuts");
    file.sync_all().await.expect("syncs");
    // The block that holds byte 62,000 cannot be written; what is appended past it can.
    faulty.fail_range(Operation::Write, data + 61_440..data + 65_536);
    file.write_at(100_000, &pattern(1, 100_000, 5000)).await.expect("the cache takes it");
    file.sync_all().await.expect_err("the tail was not zeroed");
    drop(file);
    let image = memory.image();
    let (device, crashed) = mount_image(image, options()).await;
    assert_eq!(open(&crashed, "file").await.len(), 62_000);
    finish(&device, crashed).await;
    faulty.heal();
    let file = open(&fs, "file").await;
    file.write_at(62_000, &pattern(1, 62_000, 10_000)).await.expect("writes");
    file.sync_all().await.expect("the tail is there");
    drop(file);
    finish(&memory, fs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_error_is_reported_and_goes_away() {
    if !have_tools() {
        return;
    }
    let (memory, faulty, fs, data) = one_file(options()).await;
    fs.unmount().await.expect("unmounts");
    let fs = mount(Arc::clone(&faulty) as _, options()).await;
    let file = open(&fs, "file").await;
    faulty.fail_range(Operation::Read, data..data + 4096);
    let mut bytes = vec![0; 65_536];
    assert_eq!(file.read_at(0, &mut bytes).await.expect_err("bad sector").errno(), Errno::EIO);
    file.write_at(10, b"x").await.expect_err("part of a block that cannot be read");
    faulty.heal();
    assert_eq!(file.read_at(0, &mut bytes).await.expect("reads"), 65_536);
    assert_eq!(bytes, pattern(1, 0, 65_536));
    drop(file);
    finish(&memory, fs).await;
}
