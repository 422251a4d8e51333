//! Failed writes, `data_err=abort` and a full device (statements G-13 to G-15), with a power cut at every
//! moment.
//!
//! A write that failed may have reached the device in part or as a whole: the states after the cut include
//! both.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use super::common::*;
use super::crash::{STALE, blank, commits, quiet, record_failing};
use super::cuts::{at_every_cut, judge};
use super::way::Way;
use ext4_core::device::Operation;
use ext4_core::device::simulated::{FaultyDevice, Image, RecordingDevice};
use ext4_core::meta::extent_tree::MappingState;
use ext4_core::{Errno, InodeNumber};
use ext4_writeback::{File, Filesystem};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 16;

/// A file of [`BLOCKS`] blocks, and the byte of the device where they lie.
async fn one_file(way: Way) -> (Image, u64) {
    let (device, fs) = mount_image(blank(way), way.mounted(quiet())).await;
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(1, 0, (BLOCKS * BLOCK) as usize)).await.expect("writes");
    file.sync_all().await.expect("syncs");
    let extents = file.extents().await.expect("maps");
    let MappingState::Written(block) = extents[0].state else { panic!("{extents:?}") };
    drop(file);
    (finish(&device, fs).await, block.0 * BLOCK)
}

/// Every other block behind those that are there, and not the next one.
fn appended() -> impl DoubleEndedIterator<Item = u64> {
    (0..BLOCKS).map(|i| BLOCKS + 1 + 2 * i)
}

async fn append(file: &File) {
    for block in appended() {
        let at = block * BLOCK;
        file.write_at(at, &pattern(1, at, BLOCK as usize)).await.expect("the cache takes it");
    }
}

/// The bytes of the device that those blocks will get.
async fn appended_places(way: Way, image: Image) -> Vec<u64> {
    let (device, fs) = mount_image(image, way.mounted(quiet())).await;
    let file = open(&fs, "file").await;
    append(&file).await;
    file.sync_all().await.expect("syncs");
    let extents = file.extents().await.expect("maps");
    let places = extents.iter().filter(|extent| u64::from(extent.logical.0) >= BLOCKS);
    let places = places.filter_map(|extent| match extent.state {
        MappingState::Written(block) => Some(block.0 * BLOCK),
        _ => None,
    });
    let places: Vec<u64> = places.collect();
    assert_eq!(places.len() as u64, BLOCKS, "{extents:?}");
    drop(file);
    finish(&device, fs).await;
    places
}

/// Overwrites and scattered appends, of which some meet bad sectors.
#[tokio::test]
async fn g_13_what_could_not_be_written_is_old_or_zero_at_every_cut() {
    if !have_e2fsprogs() {
        return;
    }
    for (way, seed) in [(Way::Unwritten, 131), (Way::Publish, 132), (Way::Indirect, 133)] {
        let (image, data) = one_file(way).await;
        let places = appended_places(way, image.clone()).await;
        let lost = RefCell::new(HashSet::new());
        let lost_to = &lost;
        let work = |device: Arc<RecordingDevice>, faulty: Arc<FaultyDevice>, fs: Filesystem| async move {
            let file = open(&fs, "file").await;
            // Two of the blocks that are there, and what will follow them.
            faulty.fail_range(Operation::Write, data + 3 * BLOCK..data + 5 * BLOCK);
            let changing = async {
                for block in [1, 3, 7] {
                    let at = block * BLOCK;
                    file.write_at(at, &pattern(2, at, BLOCK as usize)).await.expect("the cache takes it");
                }
                assert_eq!(file.sync_all().await.expect_err("bad sectors").errno(), Errno::EIO);
                file.sync_all().await.expect("told once");
                for place in &places[5..8] {
                    faulty.fail_range(Operation::Write, *place..place + BLOCK);
                }
                append(&file).await;
                let met = faulty.faults_met();
                assert_eq!(file.sync_all().await.expect_err("bad sectors").errno(), Errno::EIO);
                assert!(faulty.faults_met() > met);
                faulty.heal();
                file.sync_all().await.expect("told once");
                device.mark("synced");
                let written: HashSet<u64> = file
                    .extents()
                    .await
                    .expect("maps")
                    .iter()
                    .filter(|extent| matches!(extent.state, MappingState::Written(_)))
                    .flat_map(|extent| (0..extent.len).map(|n| u64::from(extent.logical.0 + n)))
                    .collect();
                lost_to.borrow_mut().extend(appended().filter(|block| !written.contains(block)));
            };
            tokio::select! {
                () = commits(&fs) => {}
                () = changing => {}
            }
        };
        let recording = record_failing(image, Some(seed), way.mounted(quiet()), work).await;
        let lost = lost.into_inner();
        assert!(!lost.is_empty() && (lost.len() as u64) < BLOCKS, "{way:?}: {lost:?}");
        at_every_cut(&recording, 60, "file", |passed, bytes| {
            let bytes = bytes.expect("it was there before");
            assert!(bytes.len() as u64 >= BLOCKS * BLOCK, "{way:?}: {} bytes", bytes.len());
            if passed("synced") {
                let last = appended().rfind(|block| !lost.contains(block));
                assert!(bytes.len() as u64 > last.expect("not all are lost") * BLOCK);
            }
            for (at, byte) in bytes.iter().enumerate() {
                let (block, at) = (at as u64 / BLOCK, at as u64);
                let own = pattern(1, at, 1)[0];
                let right = if block < BLOCKS {
                    let new = [1, 3, 7].contains(&block) && *byte == pattern(2, at, 1)[0];
                    let synced = passed("synced") && [1, 7].contains(&block);
                    new || *byte == own && !synced
                } else if lost.contains(&block) || (block - BLOCKS).is_multiple_of(2) {
                    *byte == 0
                } else {
                    *byte == own || *byte == 0 && !passed("synced")
                };
                assert!(right, "{way:?}: {byte:#x} at {at} of {}, lost: {lost:?}", bytes.len());
            }
        })
        .await;
    }
}

/// With `data_err=abort` nothing that was not committed before the failure ever is.
#[tokio::test]
async fn g_14_after_a_failed_write_no_transaction_commits_at_any_cut() {
    if !have_e2fsprogs() {
        return;
    }
    for (seed, append) in [(141, false), (142, true)] {
        let (image, data) = one_file(Way::Unwritten).await;
        let work = |device: Arc<RecordingDevice>, faulty: Arc<FaultyDevice>, fs: Filesystem| async move {
            let file = open(&fs, "file").await;
            drop(create(&fs, "before").await);
            fs.sync().await.expect("syncs");
            device.mark("before");
            drop(create(&fs, "uncommitted").await);
            faulty.fail_range(Operation::Write, data..data + BLOCK);
            faulty.fail_range(Operation::Write, data + BLOCKS * BLOCK..data + 4 * BLOCKS * BLOCK);
            let at = if append { BLOCKS * BLOCK } else { 0 };
            file.write_at(at, &pattern(2, at, 2 * BLOCK as usize)).await.expect("the cache takes it");
            file.sync_all().await.expect_err("bad sectors");
            faulty.heal();
            let owner = ext4_writeback::Credentials { mode: 0o644, ..Default::default() };
            fs.create(InodeNumber::ROOT, b"later", owner).await.expect_err("nothing is written any more");
            let _ = fs.sync().await;
            let _ = fs.unmount().await;
        };
        let aborting = quiet().data_error_aborts(true);
        let recording = record_failing(image, Some(seed), aborting, work).await;
        let look = async |image: Image| {
            let (device, fs) = mount_image(image, options()).await;
            let mut there = Vec::new();
            for name in ["before", "uncommitted", "later"] {
                there.push(fs.lookup(InodeNumber::ROOT, name.as_bytes()).await.is_ok());
            }
            let bytes = content(&open(&fs, "file").await).await;
            finish(&device, fs).await;
            (there, bytes)
        };
        judge(&recording, 60, look, |cut, (there, bytes)| {
            assert!(there[0] || !cut.has_passed("before"));
            assert_eq!(there[1..], [false, false], "seed {seed}: committed after the failure");
            assert_eq!(bytes.len() as u64, BLOCKS * BLOCK, "the size of what failed");
            for (at, byte) in bytes.iter().enumerate() {
                let new = !append && at < 2 * BLOCK as usize && *byte == pattern(2, at as u64, 1)[0];
                assert!(new || *byte == pattern(1, at as u64, 1)[0], "seed {seed}: {byte:#x} at {at}");
            }
        })
        .await;
    }
}

/// Delayed data for which writeback finds no blocks: it is gone, and everything else is as it would be.
#[tokio::test]
async fn g_15_data_without_blocks_is_gone_and_nothing_else_at_every_cut() {
    if !have_e2fsprogs() {
        return;
    }
    // Without checksums of groups no bitmap is known without reading it.
    let features =
        &["-m", "0", "-J", "size=1", "-g", "1024", "-O", "^metadata_csum,^uninit_bg,^resize_inode"];
    let work = |device: Arc<RecordingDevice>, faulty: Arc<FaultyDevice>, fs: Filesystem| async move {
        let other = create(&fs, "other").await;
        other.write_at(0, &pattern(16, 0, 50_000)).await.expect("writes");
        other.sync_all().await.expect("syncs");
        device.mark("other");
        let file = create(&fs, "file").await;
        fs.sync().await.expect("syncs");
        file.write_at(0, &pattern(15, 0, 4_000_000)).await.expect("the cache takes it");
        // What has blocks already goes on.
        other.write_at(10_000, &pattern(17, 10_000, 9000)).await.expect("writes");
        // Every bitmap that is not in memory yet is out of reach.
        faulty.fail_range(Operation::Read, 0..16 << 20);
        let failing = async {
            assert_eq!(file.sync_all().await.expect_err("there are no blocks").errno(), Errno::ENOSPC);
            other.sync_all().await.expect("it has its blocks");
        };
        tokio::select! {
            () = commits(&fs) => {}
            () = failing => {}
        }
        device.mark("failed");
        faulty.heal();
        file.sync_all().await.expect("told once");
        fs.sync().await.expect("syncs");
    };
    let image = make_image(16, 1024, features, STALE);
    let recording = record_failing(image, Some(151), quiet(), work).await;
    let look = async |image: Image| {
        let (device, fs) = mount_image(image, options()).await;
        let mut found = Vec::new();
        for name in ["other", "file"] {
            found.push(match fs.lookup(InodeNumber::ROOT, name.as_bytes()).await {
                Ok(_) => content(&open(&fs, name).await).await,
                Err(_) => Vec::new(),
            });
        }
        finish(&device, fs).await;
        found
    };
    let partly = RefCell::new(false);
    judge(&recording, 60, look, |cut, found| {
        let (other, file) = (&found[0], &found[1]);
        assert!(other.len() == 50_000 || !cut.has_passed("other"));
        for (at, byte) in other.iter().enumerate() {
            let new = (10_000..19_000).contains(&at) && *byte == pattern(17, at as u64, 1)[0];
            let old = *byte == pattern(16, at as u64, 1)[0];
            assert!(new || old && !((10_000..19_000).contains(&at) && cut.has_passed("failed")), "at {at}");
        }
        for (at, byte) in file.iter().enumerate() {
            assert!(*byte == 0 || *byte == pattern(15, at as u64, 1)[0], "{byte:#x} at {at}");
        }
        *partly.borrow_mut() |= file.len() < 4_000_000;
    })
    .await;
    assert!(partly.into_inner(), "all of it was written");
}
