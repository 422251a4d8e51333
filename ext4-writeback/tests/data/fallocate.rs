//! fallocate, copy_file_range and FITRIM, one behaviour at a time.

use super::common::*;
use super::crash::{quiet, recovered};
use ext4_core::Errno;
use ext4_core::meta::extent_tree::MappingState;
use ext4_writeback::SeekTarget;
use ext4_writeback::{FallocateMode, File};
use ext4_writeback::{OpenOptions, SyncMode};

const BLOCK: u64 = 4096;

async fn fails(file: &File, mode: FallocateMode, offset: u64, len: u64, errno: Errno) {
    let error = file.fallocate(mode, offset, len).await.expect_err("must fail");
    assert_eq!(error.errno(), errno, "{mode:?} {offset}+{len}: {error}");
}

#[tokio::test]
async fn errors_are_those_of_the_kernel() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(16, 4096, &[], 0), options()).await;
    let file = create(&fs, "file").await;
    let data = pattern(1, 0, 10 * 4096 + 100);
    file.write_at(0, &data).await.expect("writes");
    let size = data.len() as u64;
    let limit = u64::from(u32::MAX) * BLOCK;
    for mode in [FallocateMode::Allocate, FallocateMode::PunchHole, FallocateMode::CollapseRange] {
        fails(&file, mode, 0, 0, Errno::EINVAL).await;
        fails(&file, mode, u64::MAX - 10, 100, Errno::EFBIG).await;
        fails(&file, mode, limit - BLOCK, 2 * BLOCK, Errno::EFBIG).await;
    }
    for mode in [FallocateMode::CollapseRange, FallocateMode::InsertRange] {
        fails(&file, mode, 1, BLOCK, Errno::EINVAL).await;
        fails(&file, mode, 0, 100, Errno::EINVAL).await;
    }
    fails(&file, FallocateMode::CollapseRange, 9 * BLOCK, 2 * BLOCK, Errno::EINVAL).await;
    fails(&file, FallocateMode::CollapseRange, 20 * BLOCK, BLOCK, Errno::EINVAL).await;
    fails(&file, FallocateMode::InsertRange, 11 * BLOCK, BLOCK, Errno::EINVAL).await;
    fails(&file, FallocateMode::InsertRange, 0, limit - BLOCK, Errno::EFBIG).await;
    // Blocks behind the end would be pushed over the end of all files.
    file.fallocate(FallocateMode::AllocateKeepSize, limit - BLOCK, BLOCK).await.expect("allocates");
    fails(&file, FallocateMode::InsertRange, 0, 2 * BLOCK, Errno::EINVAL).await;
    fails(&file, FallocateMode::Allocate, 0, 1 << 30, Errno::ENOSPC).await;
    assert!(content(&file).await.starts_with(&data), "nothing of it changed anything");
    assert!(file.len() >= size);
    drop(file);
    finish(&device, fs).await;
}

#[tokio::test]
async fn files_of_indirect_blocks_can_only_be_punched() {
    if !have_e2fsprogs() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let data = pattern(2, 0, 300_000);
    std::fs::write(directory.path().join("file"), &data).expect("writes");
    let from = directory.path().to_str().expect("a name");
    let image = make_image(16, 1024, &["-O", "^extent,^64bit", "-d", from], 0);
    let (device, fs) = mount_image(image, options()).await;
    let file = open(&fs, "file").await;
    for mode in [
        FallocateMode::Allocate,
        FallocateMode::AllocateKeepSize,
        FallocateMode::ZeroRange,
        FallocateMode::ZeroRangeKeepSize,
        FallocateMode::CollapseRange,
        FallocateMode::InsertRange,
    ] {
        fails(&file, mode, 0, 4096, Errno::EOPNOTSUPP).await;
    }
    let before = file.metadata().await.expect("stat").sectors;
    let mut expected = data;
    for (from, to) in [(500, 20_000), (100_000, 290_100), (299_000, 400_000)] {
        file.fallocate(FallocateMode::PunchHole, from, to - from).await.expect("punches");
        let end = (to as usize).min(expected.len());
        expected[from as usize..end].fill(0);
    }
    assert!(content(&file).await == expected);
    assert!(file.metadata().await.expect("stat").sectors < before - 400);
    drop(file);
    let image = finish(&device, fs).await;
    recovered(image, "file", |bytes| assert!(bytes.expect("is there") == expected)).await;
}

#[tokio::test]
async fn k_37_allocating_delayed_blocks_claims_nothing_twice() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(16, 4096, &[], 0), options()).await;
    let file = create(&fs, "file").await;
    let data = pattern(3, 0, 200 * 4096);
    file.write_at(0, &data).await.expect("writes");
    let reserved = fs.statfs().free_blocks;
    file.fallocate(FallocateMode::Allocate, 0, 200 * BLOCK).await.expect("allocates");
    assert_eq!(fs.statfs().free_blocks, reserved);
    assert_eq!(file.metadata().await.expect("stat").sectors, 1600);
    file.sync_all().await.expect("syncs");
    assert_eq!(fs.statfs().free_blocks, reserved);
    assert!(content(&file).await == data);
    // Half delayed, half a hole.
    file.write_at(300 * BLOCK, &data[..50 * 4096]).await.expect("writes");
    file.fallocate(FallocateMode::Allocate, 250 * BLOCK, 150 * BLOCK).await.expect("allocates");
    assert_eq!(fs.statfs().free_blocks, reserved - 150);
    file.set_len(0).await.expect("truncates");
    fs.sync().await.expect("syncs");
    assert_eq!(fs.statfs().free_blocks, reserved + 200);
    drop(file);
    finish(&device, fs).await;
}

/// Kinds of blocks, one letter each.
async fn kinds(file: &File) -> String {
    let mut kinds = String::new();
    for map in file.extents().await.expect("maps") {
        while (kinds.len() as u32) < map.logical.0 {
            kinds.push('.');
        }
        let kind = if matches!(map.state, MappingState::Unwritten(_)) { "u" } else { "w" };
        kinds.push_str(&kind.repeat(map.len as usize));
    }
    kinds
}

#[tokio::test]
async fn k_14_a_zeroed_part_of_a_dirty_folio_stays_unwritten() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(16, 1024, &[], 0xaa), quiet()).await;
    let file = create(&fs, "file").await;
    // One folio of eight blocks, dirty over unwritten blocks.
    file.fallocate(FallocateMode::Allocate, 0, 8192).await.expect("allocates");
    let mut expected = pattern(4, 0, 8192);
    file.write_at(0, &expected).await.expect("writes");
    file.fallocate(FallocateMode::ZeroRange, 2048, 3072).await.expect("zeroes");
    expected[2048..5120].fill(0);
    file.sync_all().await.expect("syncs");
    assert_eq!(kinds(&file).await, "wwuuuwww");
    assert!(content(&file).await == expected);
    drop(file);
    let image = finish(&device, fs).await;
    recovered(image, "file", |bytes| assert!(bytes.expect("is there") == expected)).await;
}

#[tokio::test]
async fn k_15_what_was_punched_out_of_a_dirty_folio_is_not_written_back() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(16, 1024, &[], 0xaa), quiet()).await;
    let file = create(&fs, "file").await;
    let free = fs.statfs().free_blocks;
    let mut expected = pattern(5, 0, 16_384);
    file.write_at(0, &expected).await.expect("writes");
    file.fallocate(FallocateMode::PunchHole, 3000, 4000).await.expect("punches");
    expected[3000..7000].fill(0);
    // Three whole blocks gave their reservation back.
    assert_eq!(free - fs.statfs().free_blocks, 13);
    file.set_len(9000).await.expect("cuts");
    expected.truncate(9000);
    file.sync_all().await.expect("nothing is missing below dirty data");
    assert_eq!(kinds(&file).await, "www...www");
    assert_eq!(file.seek(3072, SeekTarget::Data).await.expect("seeks"), Some(6144));
    assert!(content(&file).await == expected);
    drop(file);
    let image = finish(&device, fs).await;
    recovered(image, "file", |bytes| assert!(bytes.expect("is there") == expected)).await;
}

#[tokio::test]
async fn k_31_k_55_zeroing_does_not_make_a_file_longer_nor_write_behind_its_end() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(16, 4096, &[], 0xaa), quiet()).await;
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(6, 0, 3072)).await.expect("writes");
    file.sync_all().await.expect("syncs");
    file.set_len(1024).await.expect("cuts");
    assert_eq!(file.len(), 1024);
    file.sync_all().await.expect("syncs");
    for mode in [FallocateMode::PunchHole, FallocateMode::ZeroRangeKeepSize] {
        file.fallocate(mode, 500, 30_000).await.expect("zeroes");
        assert_eq!(file.len(), 1024);
    }
    let mut expected = pattern(6, 0, 1024);
    expected[500..].fill(0);
    assert!(content(&file).await == expected);
    let before = fs.counters();
    file.fallocate(FallocateMode::PunchHole, 100_000, 4096).await.expect("does nothing");
    file.sync_all().await.expect("syncs");
    assert!(fs.counters().ioends <= before.ioends + 1, "one block at most: {:?}", fs.counters());
    drop(file);
    let image = finish(&device, fs).await;
    recovered(image, "file", |bytes| assert!(bytes.expect("is there") == expected)).await;
}

#[tokio::test]
async fn k_32_k_45_edges_over_dirty_unwritten_blocks_are_zeros_then_and_after_a_sync() {
    if !have_e2fsprogs() {
        return;
    }
    for mode in [FallocateMode::PunchHole, FallocateMode::ZeroRange] {
        let (device, fs) = mount_image(make_image(16, 4096, &[], 0xaa), quiet()).await;
        let file = create(&fs, "file").await;
        file.fallocate(FallocateMode::Allocate, 0, 65_536).await.expect("allocates");
        let mut expected = pattern(7, 0, 65_536);
        file.write_at(0, &expected).await.expect("writes");
        let ioends = fs.counters().ioends;
        file.fallocate(mode, 100, 50).await.expect("zeroes");
        file.fallocate(mode, 20_000, 20_000).await.expect("zeroes");
        assert_eq!(fs.counters().ioends, ioends, "nothing had to be written for it");
        expected[100..150].fill(0);
        expected[20_000..40_000].fill(0);
        assert!(content(&file).await == expected);
        file.sync_all().await.expect("syncs");
        // Over written blocks, after a sync.
        file.fallocate(mode, 200, 50).await.expect("zeroes");
        expected[200..250].fill(0);
        file.sync_data().await.expect("syncs");
        recovered(device.image(), "file", |bytes| assert!(bytes.expect("is there") == expected)).await;
        drop(file);
        finish(&device, fs).await;
    }
}

#[tokio::test]
async fn k_45_a_synchronous_file_has_its_edges_zeroed_when_the_call_returns() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(16, 4096, &["-J", "size=4"], 0xaa), quiet()).await;
    let file = create(&fs, "file").await;
    let mut expected = pattern(13, 0, 40_000);
    file.write_at(0, &expected).await.expect("writes");
    file.sync_all().await.expect("syncs");
    let number = file.metadata().await.expect("stat").inode;
    drop(file);
    let synchronous = OpenOptions::new().sync(SyncMode::All);
    let file = fs.open_with(number, synchronous).await.expect("opens");
    for (mode, from, to) in [
        (FallocateMode::PunchHole, 100, 9000),
        (FallocateMode::ZeroRange, 20_000, 20_500),
        (FallocateMode::ZeroRange, 39_000, 50_000),
        (FallocateMode::InsertRange, 4096, 8192),
        (FallocateMode::CollapseRange, 0, 4096),
    ] {
        file.fallocate(mode, from as u64, (to - from) as u64).await.expect("no error");
        match mode {
            FallocateMode::CollapseRange => drop(expected.drain(from..to)),
            FallocateMode::InsertRange => drop(expected.splice(from..from, vec![0; to - from])),
            _ => {
                expected.resize(expected.len().max(to), 0);
                expected[from..to].fill(0);
            }
        }
        recovered(device.image(), "file", |bytes| assert!(bytes.expect("is there") == expected, "{mode:?}"))
            .await;
    }
    drop(file);
    finish(&device, fs).await;
}

#[tokio::test]
async fn k_48_when_space_ends_the_size_is_what_was_allocated() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(16, 4096, &[], 0), options()).await;
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(8, 0, 5000)).await.expect("writes");
    fails(&file, FallocateMode::Allocate, 3000, 1 << 30, Errno::ENOSPC).await;
    let size = file.len();
    assert!(size > 8 << 20 && size.is_multiple_of(4096), "{size}");
    let blocks = kinds(&file).await.len() as u64;
    assert_eq!(size, blocks * BLOCK, "no more and no less than is allocated");
    assert!(content(&file).await[5000..].iter().all(|byte| *byte == 0));
    fails(&file, FallocateMode::AllocateKeepSize, 0, 1 << 30, Errno::ENOSPC).await;
    assert_eq!(file.len(), size);
    drop(file);
    finish(&device, fs).await;
}

#[tokio::test]
async fn k_50_punching_data_that_would_have_brought_the_size_along_keeps_the_size() {
    if !have_e2fsprogs() {
        return;
    }
    for mode in [FallocateMode::PunchHole, FallocateMode::ZeroRangeKeepSize] {
        let (device, fs) = mount_image(make_image(16, 4096, &["-J", "size=4"], 0xaa), quiet()).await;
        let file = create(&fs, "file").await;
        file.write_at(0, &pattern(9, 0, 4096)).await.expect("writes");
        file.sync_all().await.expect("syncs");
        file.write_at(4096, &pattern(9, 4096, 12_288)).await.expect("writes");
        file.fallocate(mode, 4096, 12_288).await.expect("drops all of it");
        // The commit of another caller's fsync.
        create(&fs, "other").await.sync_all().await.expect("syncs");
        recovered(device.image(), "file", |bytes| {
            let bytes = bytes.expect("is there");
            assert_eq!(bytes.len(), 16_384);
            assert!(bytes[4096..].iter().all(|byte| *byte == 0));
        })
        .await;
        drop(file);
        finish(&device, fs).await;
    }
}

#[tokio::test]
async fn what_was_inserted_and_collapsed_again_is_one_extent() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(16, 4096, &[], 0xaa), options()).await;
    let file = create(&fs, "file").await;
    let data = pattern(10, 0, 100 * 4096 + 10);
    file.write_at(0, &data).await.expect("writes");
    file.fallocate(FallocateMode::InsertRange, 40 * BLOCK, 1000 * BLOCK).await.expect("inserts");
    assert_eq!(file.len(), data.len() as u64 + 1000 * BLOCK);
    assert_eq!(file.seek(40 * BLOCK, SeekTarget::Data).await.expect("seeks"), Some(1040 * BLOCK));
    assert_eq!(file.extents().await.expect("maps").len(), 2);
    file.fallocate(FallocateMode::CollapseRange, 40 * BLOCK, 1000 * BLOCK).await.expect("collapses");
    assert_eq!(file.extents().await.expect("maps").len(), 1);
    assert!(content(&file).await == data);
    drop(file);
    finish(&device, fs).await;
}

/// Punching, zeroing, allocating and shifting beside a stream of writebacks and syncs of the same file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k_22_k_33_ranges_change_while_others_write_back() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(32, 1024, &[], 0xaa), options()).await;
    let file = std::sync::Arc::new(create(&fs, "file").await);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let syncs = tokio::spawn({
        let (file, stop) = (std::sync::Arc::clone(&file), std::sync::Arc::clone(&stop));
        async move {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                file.start_writeback().await.expect("starts");
                file.extents().await.expect("maps");
                tokio::task::yield_now().await;
            }
        }
    });
    let mut random = fastrand::Rng::with_seed(33);
    let mut expected = vec![0; 400_000];
    file.set_len(400_000).await.expect("extends");
    for round in 0..400 {
        let (at, len) = (random.usize(0..300_000), random.usize(1..60_000));
        match random.u8(0..5) {
            0 | 1 => {
                let data = pattern(round, at as u64, len);
                file.write_at(at as u64, &data).await.expect("writes");
                expected[at..at + len].copy_from_slice(&data);
            }
            2 => {
                file.fallocate(FallocateMode::PunchHole, at as u64, len as u64).await.expect("punches");
                expected[at..at + len].fill(0);
            }
            3 => {
                file.fallocate(FallocateMode::ZeroRange, at as u64, len as u64).await.expect("zeroes");
                expected[at..at + len].fill(0);
            }
            _ => {
                let (at, len) = (at / 1024 * 1024, len.div_ceil(1024) * 1024);
                file.fallocate(FallocateMode::CollapseRange, at as u64, len as u64).await.expect("collapses");
                file.fallocate(FallocateMode::InsertRange, at as u64, len as u64).await.expect("inserts");
                expected[at..at + len].fill(0);
            }
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    syncs.await.expect("no panic");
    assert!(content(&file).await == expected);
    drop(file);
    let image = finish(&device, fs).await;
    recovered(image, "file", |bytes| assert!(bytes.expect("is there") == expected)).await;
}

#[tokio::test]
async fn a_copy_has_the_same_bytes_and_the_same_holes() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(32, 4096, &[], 0xaa), options()).await;
    let (source, target) = (create(&fs, "source").await, create(&fs, "target").await);
    source.write_at(5000, &pattern(11, 5000, 20_000)).await.expect("writes");
    source.write_at(3 << 20, &pattern(11, 3 << 20, 2_000_000)).await.expect("writes");
    source.set_len(8 << 20).await.expect("extends");
    let copied = target.copy_file_range(&source, 0, 0, u64::MAX).await.expect("copies");
    assert_eq!(copied, 8 << 20);
    let bytes = content(&source).await;
    assert!(content(&target).await == bytes);
    target.sync_all().await.expect("syncs");
    source.sync_all().await.expect("syncs");
    let sectors = async |file: &File| file.metadata().await.expect("stat").sectors;
    assert_eq!(sectors(&target).await, sectors(&source).await, "holes are holes");
    // A hole over data, at an odd place; the end of the source ends the copy.
    let mut expected = bytes.clone();
    let copied = target.copy_file_range(&source, 30_000, (3 << 20) + 777, 1_000_000).await.expect("copies");
    assert_eq!(copied, 1_000_000);
    expected[(3 << 20) + 777..(3 << 20) + 1_000_777].copy_from_slice(&bytes[30_000..1_030_000]);
    assert!(content(&target).await == expected);
    assert_eq!(target.copy_file_range(&source, (8 << 20) - 10, 0, 100).await.expect("copies"), 10);
    assert_eq!(target.copy_file_range(&source, 8 << 20, 0, 100).await.expect("copies"), 0);
    // Within one file.
    let overlap = target.copy_file_range(&target, 0, 100, 200).await.expect_err("overlaps");
    assert_eq!(overlap.errno(), Errno::EINVAL);
    // Past the page cache, at a place that is not aligned for it.
    let number = target.metadata().await.expect("stat").inode;
    let direct = OpenOptions::new().direct(true);
    let direct = fs.open_with(number, direct).await.expect("opens");
    direct.copy_file_range(&direct, 3 << 20, 10 << 20, 5000).await.expect("copies");
    drop(direct);
    let append = OpenOptions::new().append(true);
    let append = fs.open_with(number, append).await.expect("opens");
    let refused = append.copy_file_range(&source, 0, 0, 100).await.expect_err("must fail");
    assert_eq!(refused.errno(), Errno::EBADF);
    drop(append);
    expected[..10].copy_from_slice(&bytes[(8 << 20) - 10..]);
    expected.resize(10 << 20, 0);
    expected.extend_from_within(3 << 20..(3 << 20) + 5000);
    assert!(content(&target).await == expected);
    drop((source, target));
    let image = finish(&device, fs).await;
    recovered(image, "target", |bytes| assert!(bytes.expect("is there") == expected)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trimming_takes_free_blocks_only() {
    if !have_e2fsprogs() {
        return;
    }
    for (block_size, options) in [
        (1024, &[][..]),
        (1024, &["-O", "bigalloc", "-C", "16384"]),
        (4096, &["-O", "bigalloc", "-C", "65536"]),
    ] {
        trimming(block_size, options).await;
    }
}

async fn trimming(block_size: u32, features: &[&str]) {
    let (device, fs) = mount_image(make_image(64, block_size, features, 0xaa), quiet()).await;
    let kept = create(&fs, "kept").await;
    let data = pattern(12, 0, 3_000_000);
    kept.write_at(0, &data).await.expect("writes");
    let gone = create(&fs, "gone").await;
    gone.write_at(0, &data).await.expect("writes");
    fs.sync().await.expect("syncs");
    drop(gone);
    fs.unlink(ext4_core::InodeNumber::ROOT, b"gone").await.expect("unlinks");
    let free = fs.statfs().free_blocks;
    // The unlinking is not committed: a crash brings the file back.
    let trimmed = fs.trim(0..u64::MAX, 0).await.expect("trims");
    recovered(device.image(), "gone", |bytes| assert!(bytes.expect("is there again") == data)).await;
    assert!(trimmed > 40 << 20 && trimmed <= free * u64::from(block_size), "{trimmed} of {free} blocks");
    fs.sync().await.expect("syncs");
    let more = fs.trim(0..u64::MAX, 0).await.expect("trims");
    assert!(more >= trimmed + 2_900_000, "{more}");
    assert_eq!(more, fs.statfs().free_blocks * u64::from(block_size), "all that is free");
    assert_eq!(fs.trim(0..u64::MAX, 8 << 20).await.expect("trims") % u64::from(block_size), 0);
    assert!(fs.trim(1 << 20..2 << 20, 0).await.expect("trims") <= 1 << 20);
    for (range, least) in [(1 << 40..1 << 41, 0), (0..100, 0), (0..u64::MAX, 1 << 40)] {
        assert_eq!(fs.trim(range, least).await.expect_err("must fail").errno(), Errno::EINVAL);
    }
    // While others allocate.
    let busy = async {
        for i in 0..60 {
            let file = create(&fs, &format!("new{i}")).await;
            file.write_at(0, &pattern(i, 0, 400_000)).await.expect("writes");
            file.sync_all().await.expect("syncs");
        }
    };
    let trims = async {
        loop {
            fs.trim(0..u64::MAX, 0).await.expect("trims");
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = busy => {}
        () = trims => {}
    }
    // One may have been dropped half way: it goes on to its end.
    fs.trim(0..u64::MAX, 0).await.expect("trims");
    assert!(content(&kept).await == data);
    drop(kept);
    let image = finish(&device, fs).await;
    let (device, fs) = mount_image(image, options().read_only(true)).await;
    for i in 0..60 {
        assert!(content(&open(&fs, &format!("new{i}")).await).await == pattern(i, 0, 400_000), "new{i}");
    }
    assert_eq!(fs.trim(0..u64::MAX, 0).await.expect_err("read-only").errno(), Errno::EROFS);
    finish(&device, fs).await;
}

/// With bigalloc only whole clusters are discarded: none that a file has one block of, and none that the
/// range to be trimmed has only a part of.
#[tokio::test]
async fn trimming_takes_whole_clusters_only() {
    if !have_e2fsprogs() {
        return;
    }
    const CLUSTER: u64 = 65_536;
    for block_size in [1024_u64, 4096] {
        let features = ["-J", "size=4", "-O", "bigalloc", "-C", "65536"];
        let image = make_image(32, block_size as u32, &features, 0xaa);
        let (device, fs) = mount_image(image, quiet()).await;
        // A block somewhere in each cluster; the blocks around it belong to no other extent.
        let file = create(&fs, "sparse").await;
        for cluster in 0..40_u64 {
            let at = cluster * CLUSTER + cluster % 13 * block_size;
            file.write_at(at, &pattern(7, at, block_size as usize)).await.expect("writes");
        }
        file.sync_all().await.expect("syncs");
        let used: Vec<u64> = file
            .extents()
            .await
            .expect("extents")
            .iter()
            .filter_map(|mapping| match mapping.state {
                MappingState::Written(block) => Some(block.0 * block_size / CLUSTER),
                _ => None,
            })
            .collect();
        assert_eq!(used.len(), 40);
        let discarded = |from: u64, to: u64| {
            let mut bytes = vec![0; (to - from) as usize];
            device.image().read(from, &mut bytes);
            bytes.iter().all(|byte| *byte == 0)
        };
        // A free cluster between two that are free, near the end, where nothing was written yet.
        let middle = (24 << 20) / CLUSTER * CLUSTER;
        let part = fs.trim(middle + 1..middle + 2 * CLUSTER + block_size, 0).await.expect("trims");
        assert_eq!(part, CLUSTER, "one whole cluster lies in the range");
        assert!(!discarded(middle, middle + CLUSTER), "the range has only a part of it");
        assert!(discarded(middle + CLUSTER, middle + 2 * CLUSTER));
        assert!(!discarded(middle + 2 * CLUSTER, middle + 3 * CLUSTER), "the range has only a part of it");
        assert_eq!(fs.trim(middle + 1..middle + CLUSTER, 0).await.expect("trims"), 0);
        assert_eq!(fs.trim(middle..middle + CLUSTER, CLUSTER + 1).await.expect("trims"), 0);
        assert_eq!(fs.trim(middle..middle + CLUSTER, CLUSTER).await.expect("trims"), CLUSTER);

        let all = fs.trim(0..u64::MAX, 0).await.expect("trims");
        assert_eq!(all, fs.statfs().free_blocks * block_size);
        for cluster in used {
            assert!(!discarded(cluster * CLUSTER, (cluster + 1) * CLUSTER), "cluster {cluster} is in use");
        }
        for cluster in 0..40_u64 {
            let at = cluster * CLUSTER + cluster % 13 * block_size;
            let mut bytes = vec![0; block_size as usize];
            file.read_at(at, &mut bytes).await.expect("reads");
            assert!(bytes == pattern(7, at, block_size as usize), "cluster {cluster}");
        }
        drop(file);
        finish(&device, fs).await;
    }
}

/// Zeroing every other block of many files makes extents that need nodes: more than the margin for them. What
/// was freed and waits for its commit is committed then, as in every other allocation that finds no space.
#[tokio::test]
async fn k_44_zeroing_finds_blocks_that_wait_for_a_commit() {
    if !have_e2fsprogs() {
        return;
    }
    const FILES: u64 = 220;
    let image = make_image(8, 1024, &["-m", "0", "-N", "512", "-J", "size=2"], 0xaa);
    let (device, fs) = mount_image(image, quiet()).await;
    let doomed = create(&fs, "doomed").await;
    doomed.write_at(0, &pattern(1, 0, 300 << 10)).await.expect("writes");
    doomed.sync_all().await.expect("syncs");
    drop(doomed);
    let mut files = Vec::new();
    for i in 0..FILES {
        let file = create(&fs, &format!("file{i}")).await;
        file.write_at(0, &pattern(i, 0, 10 << 10)).await.expect("writes");
        files.push(file);
    }
    fs.sync().await.expect("syncs");
    let filler = create(&fs, "filler").await;
    fails(&filler, FallocateMode::AllocateKeepSize, 0, 1 << 30, Errno::ENOSPC).await;
    fs.sync().await.expect("syncs");
    fs.unlink(ext4_core::InodeNumber::ROOT, b"doomed").await.expect("unlinks");
    for file in &files {
        for block in [1, 3, 5, 7] {
            file.fallocate(FallocateMode::ZeroRange, block << 10, 1024).await.expect("there is space");
        }
    }
    drop(filler);
    for (i, file) in (0..).zip(&files) {
        let mut expected = pattern(i, 0, 10 << 10);
        for block in [1, 3, 5, 7] {
            expected[block << 10..(block + 1) << 10].fill(0);
        }
        assert!(content(file).await == expected, "file {i}");
    }
    drop(files);
    finish(&device, fs).await;
}
