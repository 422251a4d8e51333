//! Buffered reads and writes, delayed allocation and truncation, one behaviour at a time.

use super::common::*;
use ext4_core::Errno;
use ext4_test_support::tools::changed_by_debugfs;
use ext4_writeback::SeekTarget;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_is_read_now_and_after_a_remount() {
    if !have_e2fsprogs() {
        return;
    }
    for block_size in [1024, 2048, 4096] {
        let (device, fs) = mount_image(make_image(64, block_size, &[], 0), options()).await;
        let file = create(&fs, "file").await;
        let data = pattern(1, 0, 5_000_001);
        assert_eq!(file.write_at(0, &data).await.expect("writes"), data.len());
        assert_eq!(content(&file).await, data);
        let sectors = file.metadata().await.expect("stat").sectors;
        assert!(sectors * 512 >= data.len() as u64, "delayed blocks count: {sectors}");
        drop(file);
        let image = finish(&device, fs).await;
        let (device, fs) = mount_image(image, options()).await;
        let file = open(&fs, "file").await;
        assert_eq!(content(&file).await, data);
        drop(file);
        finish(&device, fs).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k_39_a_long_delayed_run_is_one_allocation_and_few_ioends() {
    if !have_e2fsprogs() {
        return;
    }
    // Memory enough that the flusher does not begin before all of it is there.
    let options = options().cache(96 << 20);
    let (device, fs) = mount_image(make_image(128, 4096, &[], 0), options).await;
    let file = create(&fs, "file").await;
    // Small sequential writes.
    let data = pattern(2, 0, 8 << 20);
    for (i, chunk) in data.chunks(4096).enumerate() {
        file.write_at(i as u64 * 4096, chunk).await.expect("writes");
    }
    file.sync_all().await.expect("syncs");
    let counters = fs.counters();
    assert_eq!(counters.blocks_allocated, 2048);
    assert!(counters.allocations <= 2, "{counters:?}");
    assert!(counters.ioends <= 4, "{counters:?}");
    assert!(counters.conversions <= 4, "{counters:?}");
    // Overwriting takes no handle, no allocation, no conversion.
    file.write_at(0, &data[..1 << 20]).await.expect("writes");
    file.sync_data().await.expect("syncs");
    let again = fs.counters();
    assert_eq!(again.allocations, counters.allocations);
    assert_eq!(again.conversions, counters.conversions);
    assert_eq!(again.completion_handles, counters.completion_handles);
    assert_eq!(content(&file).await, data);
    drop(file);
    finish(&device, fs).await;
}

#[tokio::test]
async fn holes_are_found_and_read_as_zeros() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(64, 4096, &[], 0xaa), options()).await;
    let file = create(&fs, "file").await;
    file.write_at(1 << 20, b"data").await.expect("writes");
    file.set_len(3 << 20).await.expect("extends");
    for _ in 0..2 {
        assert_eq!(file.seek(0, SeekTarget::Data).await.expect("seeks"), Some(1 << 20));
        assert_eq!(file.seek(0, SeekTarget::Hole).await.expect("seeks"), Some(0));
        assert_eq!(file.seek(1 << 20, SeekTarget::Hole).await.expect("seeks"), Some((1 << 20) + 4096));
        assert_eq!(file.seek(2 << 20, SeekTarget::Data).await.expect("seeks"), None);
        assert_eq!(
            file.seek(3 << 20, SeekTarget::Data).await.expect_err("past the end").errno(),
            Errno::ENXIO
        );
        let bytes = content(&file).await;
        assert!(bytes[..1 << 20].iter().all(|byte| *byte == 0));
        assert_eq!(&bytes[1 << 20..(1 << 20) + 5], b"data\0");
        assert!(bytes[(1 << 20) + 4..].iter().all(|byte| *byte == 0));
        file.sync_all().await.expect("syncs");
    }
    let extents = file.extents().await.expect("maps");
    assert_eq!(extents.len(), 1);
    assert_eq!((extents[0].logical.0, extents[0].len), (256, 1));
    drop(file);
    finish(&device, fs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_within_the_cache() {
    if !have_e2fsprogs() {
        return;
    }
    let options = options().cache(8 << 20);
    let (device, fs) = mount_image(make_image(128, 4096, &[], 0), options).await;
    let file = create(&fs, "file").await;
    let data = pattern(3, 0, 1 << 20);
    for i in 0..64 {
        file.write_at(i << 20, &data).await.expect("writes");
    }
    let mut bytes = vec![0; 1 << 20];
    for i in 0..64 {
        assert_eq!(file.read_at(i << 20, &mut bytes).await.expect("reads"), 1 << 20);
        assert_eq!(bytes, data);
    }
    assert!(fs.counters().reclaimed_folios > 0);
    drop(file);
    finish(&device, fs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k_36_a_full_device_says_so_and_stays_whole() {
    if !have_e2fsprogs() {
        return;
    }
    for delayed_allocation in [true, false] {
        let options = options().delayed_allocation(delayed_allocation);
        let (device, fs) = mount_image(make_image(16, 4096, &["-m", "0"], 0), options).await;
        let file = create(&fs, "file").await;
        let data = pattern(4, 0, 1 << 20);
        let mut written = 0;
        let error = loop {
            match file.write_at(written, &data).await {
                Ok(count) => written += count as u64,
                Err(error) => break error,
            }
        };
        assert_eq!(error.errno(), Errno::ENOSPC);
        assert!(written > 4 << 20, "{written}");
        file.sync_all().await.expect("what was taken is written");
        let bytes = content(&file).await;
        assert_eq!(bytes.len() as u64, written);
        assert!(bytes.chunks(1 << 20).all(|chunk| chunk == &data[..chunk.len()]));
        // What is freed can be used again at once.
        file.set_len(0).await.expect("truncates");
        file.write_at(0, &data).await.expect("writes again");
        file.sync_all().await.expect("syncs");
        drop(file);
        finish(&device, fs).await;
    }
}

#[tokio::test]
async fn k_31_truncation_to_the_middle_of_a_block() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(64, 4096, &[], 0), options()).await;
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(5, 0, 3000)).await.expect("writes");
    file.sync_all().await.expect("syncs");
    file.set_len(1000).await.expect("truncates");
    assert_eq!(file.len(), 1000);
    file.set_len(8000).await.expect("extends");
    let bytes = content(&file).await;
    assert_eq!(bytes[..1000], pattern(5, 0, 1000));
    assert!(bytes[1000..].iter().all(|byte| *byte == 0));
    drop(file);
    let image = finish(&device, fs).await;
    let (device, fs) = mount_image(image, options()).await;
    let file = open(&fs, "file").await;
    let bytes = content(&file).await;
    assert_eq!(bytes[..1000], pattern(5, 0, 1000));
    assert!(bytes[1000..].iter().all(|byte| *byte == 0));
    drop(file);
    finish(&device, fs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_files_share_handles() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(64, 4096, &["-N", "4096"], 0), options()).await;
    for i in 0..2000 {
        let file = create(&fs, &format!("file{i}")).await;
        file.write_at(0, &pattern(i, 0, 1000)).await.expect("writes");
    }
    fs.sync().await.expect("syncs");
    let counters = fs.counters();
    assert_eq!(counters.conversions, 2000);
    assert!(counters.completion_handles < 1000, "{counters:?}");
    for i in (0..2000).step_by(97) {
        let file = open(&fs, &format!("file{i}")).await;
        assert_eq!(content(&file).await, pattern(i, 0, 1000));
    }
    finish(&device, fs).await;
}

#[tokio::test]
async fn a_file_of_indirect_blocks_is_read_filled_extended_and_cut() {
    if !have_e2fsprogs() {
        return;
    }
    let image = make_image(32, 1024, &["-O", "^extent,^64bit"], 0);
    let host = tempfile::NamedTempFile::new().expect("a temporary file");
    // Behind the double indirect block's start, with a hole.
    let mut data = pattern(6, 0, 700_000);
    data[100 * 1024..150 * 1024].fill(0);
    std::fs::write(host.path(), &data).expect("room");
    let image = changed_by_debugfs(&image, &format!("write {} file", host.path().display()));
    let (device, fs) = mount_image(image, options()).await;
    let file = open(&fs, "file").await;
    assert!(content(&file).await == data);
    file.write_at(200_000, &pattern(8, 200_000, 5000)).await.expect("overwrites");
    data[200_000..205_000].copy_from_slice(&pattern(8, 200_000, 5000));
    // Into the hole, and past the end.
    for (at, len) in [(120 * 1024, 2000), (700_000, 50_000)] {
        file.write_at(at, &pattern(8, at, len)).await.expect("writes");
        data.resize(data.len().max(at as usize + len), 0);
        data[at as usize..at as usize + len].copy_from_slice(&pattern(8, at, len));
    }
    file.sync_all().await.expect("syncs");
    assert!(content(&file).await == data);
    file.set_len(300_001).await.expect("cuts");
    data.truncate(300_001);
    assert!(content(&file).await == data);
    drop(file);
    let image = finish(&device, fs).await;
    let (device, fs) = mount_image(image, options()).await;
    let file = open(&fs, "file").await;
    assert!(content(&file).await == data);
    file.set_len(0).await.expect("cuts");
    drop(file);
    finish(&device, fs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequential_reads_are_read_ahead_in_large_bios() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(64, 4096, &[], 0), options()).await;
    let file = create(&fs, "file").await;
    let data = pattern(9, 0, 8 << 20);
    file.write_at(0, &data).await.expect("writes");
    drop(file);
    let image = finish(&device, fs).await;
    let (device, fs) = mount_image(image, options()).await;
    let file = open(&fs, "file").await;
    let mut bytes = vec![0; 4096];
    for at in (0..data.len()).step_by(4096) {
        file.read_at(at as u64, &mut bytes).await.expect("reads");
        assert!(bytes == data[at..at + 4096]);
    }
    assert!(fs.counters().read_bios < 20, "{:?}", fs.counters());
    drop(file);
    finish(&device, fs).await;
}
