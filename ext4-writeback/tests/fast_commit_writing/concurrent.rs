//! Fast commits of many callers of fsync at once, and what an fsync costs.

use std::sync::Arc;

use ext4_core::InodeNumber;
use ext4_core::device::simulated::{Event, FaultyDevice, Image, RecordingDevice};
use ext4_core::device::{BioFlags, MemoryDevice};
use ext4_test_support::tools::{can_mount, debugfs, have, mke2fs_image};
use ext4_writeback::{Credentials, FastCommitStatistics, Filesystem};

use crate::{judge, quiet};

/// Appends by so many tasks, each to a file of its own, each append with its fsync.
async fn append(filesystem: &Filesystem, tasks: usize, appends: u64) {
    let mut running = Vec::new();
    for task in 0..tasks {
        let filesystem = filesystem.clone();
        running.push(tokio::spawn(async move {
            let path = format!("/dir/file{task}");
            let inode = filesystem.resolve(path.as_bytes(), true).await.unwrap();
            let file = filesystem.open(inode).await.unwrap();
            for number in 0..appends {
                file.write_at(number * 4096, &[task as u8 + 1; 4096]).await.unwrap();
                file.sync_all().await.unwrap();
            }
        }));
    }
    for task in running {
        task.await.unwrap();
    }
}

async fn prepare(filesystem: &Filesystem, tasks: usize) {
    for number in 0..24 {
        let name = format!("first{number}");
        filesystem.create(InodeNumber::ROOT, name.as_bytes(), Credentials::default()).await.unwrap();
    }
    filesystem.mkdir(InodeNumber::ROOT, b"dir", Credentials::default()).await.unwrap();
    for task in 0..tasks {
        filesystem.write(&format!("/dir/file{task}"), Vec::new()).await.unwrap();
    }
    filesystem.sync().await.unwrap();
}

fn blank() -> Image {
    mke2fs_image(&["-O", "fast_commit", "-b", "4096"], "256M")
}

/// 16 tasks that write and fsync on a device that takes its time, as one does: what the fast commits were,
/// and how many transactions were committed in full.
async fn at_once(overwrite: bool) -> (FastCommitStatistics, u64) {
    let (tasks, writes) = (16, 25);
    let memory = Arc::new(MemoryDevice::from_image(blank()));
    let device = Arc::new(FaultyDevice::new(Arc::clone(&memory) as _));
    device.reorder(7);
    let driver = tokio::spawn({
        let device = Arc::clone(&device);
        async move { device.drive().await }
    });
    let filesystem = Filesystem::mount(device, quiet()).await.unwrap();
    prepare(&filesystem, tasks).await;
    if overwrite {
        append(&filesystem, tasks, writes).await;
        filesystem.sync().await.unwrap();
    }
    let (fast, _) = filesystem.fast_commit_statistics();
    let before = filesystem.journal_statistics().unwrap().transactions;
    append(&filesystem, tasks, writes).await;
    let full = filesystem.journal_statistics().unwrap().transactions - before;
    let (after, reasons) = filesystem.fast_commit_statistics();
    println!("overwrite {overwrite}: {after:?}, {reasons:?}, {full} full commits");
    let expected = judge::live(&filesystem).await;
    drop(filesystem);
    driver.abort();
    judge::assert_recovered(&memory.image(), &expected, "16 tasks").await;
    let fast = FastCommitStatistics {
        commits: after.commits - fast.commits,
        served: after.served - fast.served,
        ..FastCommitStatistics::default()
    };
    (fast, full)
}

/// Callers that ask for an fsync while a fast commit is being written share the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_callers_of_fsync_share_fast_commits() {
    if !have(&["mkfs.ext4", "e2fsck", "getfattr"]) || !can_mount() {
        return;
    }
    let (fast, full) = at_once(true).await;
    assert!(fast.served > 16 * 25 / 2, "{fast:?}");
    assert!(fast.commits * 2 < fast.served, "they were not shared: {fast:?}");
    assert!(full < 16 * 25 / 8, "{full} full commits");
    // Appends in turn leave the files in many pieces: such files need full commits, which are shared as well.
    let (fast, full) = at_once(false).await;
    // On a busy machine fewer callers meet.
    assert!((fast.commits + full) * 4 < 3 * 16 * 25, "{fast:?} and {full} full commits");
}

/// The I/O that reached the device between two marks: (flushes, bytes written into the journal).
fn cost(device: &RecordingDevice, journal: &[std::ops::Range<u64>]) -> (u64, u64) {
    let recording = device.recording();
    let start = recording.position_of("start").unwrap();
    let end = recording.position_of("end").unwrap();
    let (mut flushes, mut bytes) = (0, 0);
    for event in &recording.events()[start..end] {
        let Event::Submitted { change, flags } = event else { continue };
        match change {
            ext4_core::device::simulated::Change::Write { offset, data } => {
                flushes += u64::from(flags.contains(BioFlags::PREFLUSH));
                if journal.iter().any(|range| range.contains(offset)) {
                    bytes += data.len() as u64;
                }
            }
            ext4_core::device::simulated::Change::Flush => flushes += 1,
            _ => {}
        }
    }
    (flushes, bytes)
}

/// The bytes of the device where the journal lies.
fn journal_ranges(image: &Image) -> Vec<std::ops::Range<u64>> {
    let said = debugfs(image, "ex <8>");
    let numbers =
        |line: &str| line.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<u64>>();
    let leaves = said.lines().filter(|line| line.trim_start().starts_with("0/")).map(numbers);
    leaves
        .filter_map(|line| Some(line.get(line.len().checked_sub(3)?..)?.to_vec()))
        .map(|line| line[0] * 4096..(line[1] + 1) * 4096)
        .collect()
}

/// An append with its fsync costs one flush and one block of the journal; without fast commits it costs one
/// flush and a descriptor, the images and a commit block.
#[tokio::test]
async fn an_append_and_its_fsync_cost_one_flush_and_one_block() {
    if !have(&["mkfs.ext4", "debugfs"]) {
        return;
    }
    let image = blank();
    let journal = journal_ranges(&image);
    assert!(!journal.is_empty());
    let appends = 50;
    let mut costs = Vec::new();
    for fast_commit in [true, false] {
        let memory = Arc::new(MemoryDevice::from_image(image.clone()));
        let device = Arc::new(RecordingDevice::around(memory, image.clone()));
        let options = quiet().fast_commit(fast_commit);
        let filesystem = Filesystem::mount(Arc::clone(&device) as _, options).await.unwrap();
        prepare(&filesystem, 1).await;
        append(&filesystem, 1, 1).await;
        device.mark("start");
        append(&filesystem, 1, appends).await;
        device.mark("end");
        let (flushes, bytes) = cost(&device, &journal);
        println!(
            "fast commits {fast_commit}: {:.2} flushes and {} journal bytes per append and fsync",
            flushes as f64 / appends as f64,
            bytes / appends
        );
        costs.push((flushes, bytes));
    }
    let [(fast_flushes, fast_bytes), (full_flushes, full_bytes)] = costs[..] else { panic!() };
    assert!(fast_flushes <= appends, "{fast_flushes} flushes");
    assert!(full_flushes <= appends, "{full_flushes} flushes");
    assert!(fast_bytes <= 4096 * appends + 4096, "{fast_bytes} bytes");
    assert!(full_bytes > 4 * fast_bytes, "{full_bytes} bytes");
}
