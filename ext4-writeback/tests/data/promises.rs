//! Errors and sizes: what was promised is kept when the device fails and when a caller stops waiting.

use std::sync::Arc;
use std::time::Duration;

use super::common::*;
use ext4_core::device::simulated::FaultyDevice;
use ext4_core::device::{BlockDevice, MemoryDevice, Operation};
use ext4_core::meta::extent_tree::MappingState;
use ext4_core::{Errno, InodeNumber};
use ext4_writeback::{File, Filesystem, MountOptions, RenameFlags, SyncRange};

const ROOT: InodeNumber = InodeNumber::ROOT;

/// A file of 64 KiB on a device that can be told to fail, and the byte of the device at which its data
/// begins.
async fn one_file(options: MountOptions) -> (Arc<MemoryDevice>, Arc<FaultyDevice>, Filesystem, File, u64) {
    let memory = Arc::new(MemoryDevice::from_image(make_image(32, 4096, &[], 0xaa)));
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as Arc<dyn BlockDevice>));
    let fs = mount(Arc::clone(&faulty) as _, options).await;
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(1, 0, 65_536)).await.expect("writes");
    fs.sync().await.expect("syncs");
    let extents = file.extents().await.expect("maps");
    let MappingState::Written(block) = extents[0].state else { panic!("{extents:?}") };
    (memory, faulty, fs, file, block.0 * 4096)
}

/// The bytes of `file` that recovery after a power cut shows, with a device that has written all it was
/// given.
async fn after_a_crash(memory: &MemoryDevice) -> Vec<u8> {
    let (device, fs) = mount_image(memory.image(), options()).await;
    let file = open(&fs, "file").await;
    let bytes = content(&file).await;
    drop(file);
    finish(&device, fs).await;
    bytes
}

/// The last block ends at 62,000; its rest holds old data on the device, and cannot be zeroed there at first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_that_could_not_be_written_is_not_forgotten_by_a_truncation_behind_it() {
    if !have_e2fsprogs() {
        return;
    }
    for truncated in [130_000_u64, 100_000, 62_500] {
        let (memory, faulty, fs, file, data) = one_file(options()).await;
        file.set_len(62_000).await.expect("cuts");
        file.sync_all().await.expect("syncs");
        // What a crash could have left behind the end of the file.
        drop(file);
        fs.unmount().await.expect("unmounts");
        let mut image = memory.image();
        image.write(data + 62_000, &[0xbc; 3_536]);
        let memory = Arc::new(MemoryDevice::from_image(image));
        drop(faulty);
        let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as Arc<dyn BlockDevice>));
        let fs = mount(Arc::clone(&faulty) as _, options()).await;
        let file = open(&fs, "file").await;
        faulty.fail_range(Operation::Write, data + 61_440..data + 65_536);
        file.write_at(120_000, &pattern(1, 120_000, 15_000)).await.expect("the cache takes it");
        file.sync_all().await.expect_err("the tail was not zeroed");
        file.set_len(truncated).await.expect("cuts behind the tail");
        faulty.heal();
        file.sync_all().await.expect("nothing fails any more");
        let crashed = after_a_crash(&memory).await;
        assert!(!crashed.contains(&0xbc), "{truncated}: stale bytes in {} of a crash", crashed.len());
        assert_eq!(crashed.len() as u64, truncated, "what was synced is durable");
        drop(file);
        let image = finish(&memory, fs).await;
        let (device, fs) = mount_image(image, options()).await;
        let file = open(&fs, "file").await;
        let bytes = content(&file).await;
        assert!(
            bytes.len() as u64 == truncated && !bytes.contains(&0xbc),
            "{truncated}: after a clean unmount"
        );
        drop(file);
        finish(&device, fs).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncation_whose_last_block_cannot_be_read_changes_nothing() {
    if !have_e2fsprogs() {
        return;
    }
    let (memory, _, fs, file, data) = one_file(options()).await;
    drop(file);
    fs.unmount().await.expect("unmounts");
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as Arc<dyn BlockDevice>));
    let fs = mount(Arc::clone(&faulty) as _, options()).await;
    let file = open(&fs, "file").await;
    faulty.fail_range(Operation::Read, data + 28_672..data + 32_768);
    let error = file.set_len(30_000).await.expect_err("its block cannot be zeroed");
    assert_eq!(error.errno(), Errno::EIO, "{error}");
    assert_eq!(file.len(), 65_536, "the size stays");
    faulty.heal();
    assert_eq!(content(&file).await, pattern(1, 0, 65_536), "and the data");
    file.set_len(30_000).await.expect("cuts");
    file.set_len(65_536).await.expect("grows");
    let bytes = content(&file).await;
    assert!(bytes[30_000..].iter().all(|byte| *byte == 0), "what was cut off is not back");
    drop(file);
    finish(&memory, fs).await;
}

/// Data that cannot be written, in the background: the flusher has tried, and no caller was told.
async fn lost_in_the_background(name: &str) -> (Arc<MemoryDevice>, Arc<FaultyDevice>, Filesystem) {
    let awake = options().writeback_interval(Duration::from_millis(5)).dirty_expiry(Duration::from_millis(5));
    let (memory, faulty, fs, file, data) = one_file(awake).await;
    drop(file);
    let file = if name == "file" { open(&fs, name).await } else { create(&fs, name).await };
    fs.sync().await.expect("syncs");
    // Neither the journal nor the tables: all free blocks behind the file's data.
    faulty.fail_range(Operation::Write, data..data + (4 << 20));
    file.write_at(0, &pattern(2, 0, 8192)).await.expect("the cache takes it");
    drop(file);
    for _ in 0..1000 {
        if faulty.faults_met() > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(faulty.faults_met() > 0, "the flusher has tried");
    // Its completion is finished when the file is clean.
    tokio::time::sleep(Duration::from_millis(100)).await;
    faulty.heal();
    (memory, faulty, fs)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_in_the_background_is_told_to_the_next_opener_once() {
    if !have_e2fsprogs() {
        return;
    }
    let (memory, _faulty, fs) = lost_in_the_background("file").await;
    let file = open(&fs, "file").await;
    assert_eq!(file.sync_all().await.expect_err("the next opener is told").errno(), Errno::EIO);
    file.sync_all().await.expect("once");
    drop(file);
    open(&fs, "file").await.sync_all().await.expect("an opener was told");
    finish(&memory, fs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_in_the_background_is_told_to_sync_to_unmount_and_by_inode() {
    if !have_e2fsprogs() {
        return;
    }
    let (_memory, _faulty, fs) = lost_in_the_background("file").await;
    assert_eq!(fs.sync().await.expect_err("sync is told").errno(), Errno::EIO);
    fs.sync().await.expect("once");
    fs.unmount().await.expect("sync was told");

    let (_memory, _faulty, fs) = lost_in_the_background("file").await;
    assert_eq!(fs.unmount().await.expect_err("unmount is told").errno(), Errno::EIO);

    let (memory, _faulty, fs) = lost_in_the_background("file").await;
    let inode = fs.lookup(ROOT, b"file").await.expect("is there");
    assert_eq!(fs.fsync(inode).await.expect_err("the caller is told").errno(), Errno::EIO);
    fs.fsync(inode).await.expect("once");
    finish(&memory, fs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replacement_whose_data_is_lost_replaces_nothing() {
    if !have_e2fsprogs() {
        return;
    }
    let (memory, _faulty, fs) = lost_in_the_background("new").await;
    let error = fs.rename((ROOT, b"new"), (ROOT, b"file"), RenameFlags::default()).await;
    assert_eq!(error.expect_err("both copies would be gone").errno(), Errno::EIO);
    let file = open(&fs, "file").await;
    assert_eq!(content(&file).await, pattern(1, 0, 65_536), "the old copy is there");
    drop(file);
    finish(&memory, fs).await;
}

/// Without a flusher, callers complete what has been written: one that stops waiting must not take ioends
/// along.
#[tokio::test]
async fn a_wait_that_is_given_up_loses_no_ioend() {
    if !have_e2fsprogs() {
        return;
    }
    for polls in 0..40 {
        let memory = Arc::new(MemoryDevice::from_image(make_image(16, 4096, &["-J", "size=4"], 0)));
        let fs = mount(Arc::clone(&memory) as _, options().commit_interval(None)).await;
        let file = create(&fs, "file").await;
        for block in 0..8 {
            file.write_at(block * 8192, &pattern(1, block * 8192, 4096)).await.expect("writes");
        }
        {
            let flags = SyncRange::WRITE | SyncRange::WAIT_AFTER;
            let mut wait = Box::pin(file.sync_file_range(0, 0, flags));
            for _ in 0..polls {
                let waker = std::task::Waker::noop();
                if wait.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        tokio::time::timeout(Duration::from_secs(20), file.sync_all())
            .await
            .unwrap_or_else(|_| panic!("the fsync hangs after a wait dropped at poll {polls}"))
            .expect("syncs");
        drop(file);
        finish(&memory, fs).await;
    }
}
