//! Rows K-nn of `docs/data-path.md` that belong to no one feature: buffered I/O in situations in which the
//! kernel's iomap path had bugs, or reviewers feared some.

use std::sync::Arc;
use std::time::Duration;

use super::common::*;
use super::crash::{Holding, STALE, blank, commits, quiet, record, recovered, with_planted_tail};
use super::cuts::at_every_cut;
use super::way::Way;
use ext4_core::device::simulated::{FaultyDevice, RecordingDevice};
use ext4_core::device::{BlockDevice, Geometry, MemoryDevice, Operation, Plug};
use ext4_core::{Errno, InodeNumber};
use ext4_writeback::{FallocateMode, Filesystem};

/// A test that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn k_09_appends_with_gaps_of_a_few_bytes_wait_for_no_device() {
    if !have_e2fsprogs() {
        return;
    }
    let (planted, _) = with_planted_tail(Way::Unwritten).await;
    let memory = Arc::new(MemoryDevice::from_image(planted));
    let fs = mount(Arc::clone(&memory) as _, quiet()).await;
    let file = open(&fs, "file").await;
    let mut expected = content(&file).await;
    let before = fs.counters();
    for _ in 0..3000 {
        let at = expected.len() as u64 + 5;
        file.write_at(at, &pattern(7, at, 3)).await.expect("writes");
        expected.resize(at as usize, 0);
        expected.extend(pattern(7, at, 3));
    }
    let after = fs.counters();
    assert_eq!((after.ioends, after.bios), (before.ioends, before.bios), "nothing was written yet");
    assert!(after.read_bios <= before.read_bios + 1, "only the block of the old end is read");
    assert!(content(&file).await == expected);
    file.sync_all().await.expect("syncs");
    assert!(fs.counters().ioends - before.ioends <= 3, "{:?}", fs.counters());
    drop(file);
    let image = finish(&memory, fs).await;
    recovered(image, "file", |bytes| assert!(bytes.expect("is there") == expected)).await;
}

/// A file of 2,000 bytes in blocks of 1 KiB, on a device that holds back what is written to its last block.
async fn held_tail() -> (Arc<MemoryDevice>, Arc<Holding>, Filesystem) {
    let (device, fs) = mount_image(make_image(16, 1024, &["-J", "size=4"], STALE), quiet()).await;
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(7, 0, 2000)).await.expect("writes");
    file.sync_all().await.expect("syncs");
    let extents = file.extents().await.expect("maps");
    let ext4_core::meta::extent_tree::MappingState::Written(block) = extents[0].state else {
        panic!("{extents:?}");
    };
    drop(file);
    let memory = Arc::new(MemoryDevice::from_image(finish(&device, fs).await));
    let tail = (block.0 + 1) * 1024;
    let holding = Arc::new(Holding::new(Arc::clone(&memory), tail..tail + 1024));
    let fs = mount(Arc::clone(&holding) as _, quiet()).await;
    (memory, holding, fs)
}

#[tokio::test]
async fn k_10_a_commit_does_not_wait_for_a_folio_whose_tail_is_on_its_way() {
    if !have_e2fsprogs() {
        return;
    }
    let (memory, holding, fs) = held_tail().await;
    let file = Arc::new(open(&fs, "file").await);
    // The tail is zeroed and on its way; so is the last block of the same folio.
    file.write_at(3500, &pattern(7, 3500, 500)).await.expect("writes");
    file.start_writeback().await.expect("starts");
    // The hole between them is filled, and has to be flushed: that waits for the folio.
    let syncing = tokio::spawn({
        let file = Arc::clone(&file);
        async move {
            file.write_at(2048, &pattern(7, 2048, 1024)).await?;
            file.sync_all().await
        }
    });
    for i in 0..5 {
        tokio::task::yield_now().await;
        drop(create(&fs, &format!("other{i}")).await);
        let commit = fs.fsync(InodeNumber::ROOT);
        tokio::time::timeout(PATIENCE, commit).await.expect("no deadlock").expect("commits");
    }
    assert!(!syncing.is_finished(), "the tail is not on the device");
    recovered(memory.image(), "file", |bytes| assert_eq!(bytes.expect("is there").len(), 2000)).await;
    holding.release();
    let synced = tokio::time::timeout(PATIENCE, syncing).await.expect("no deadlock");
    synced.expect("no panic").expect("syncs");
    let mut expected = pattern(7, 0, 4000);
    expected[2000..2048].fill(0);
    expected[3072..3500].fill(0);
    assert!(content(&file).await == expected);
    drop(file);
    let image = finish(&memory, fs).await;
    recovered(image, "file", |bytes| assert!(bytes.expect("is there") == expected)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k_11_k_12_writeback_completions_and_commits_in_a_small_journal_do_not_wait_in_a_circle() {
    if !have_e2fsprogs() {
        return;
    }
    // A quarter of 1,024 blocks is the most that a transaction holds: handles wait for commits all the time.
    let image = make_image(32, 1024, &["-J", "size=1"], STALE);
    let (device, fs) = mount_image(image, quiet().cache(4 << 20)).await;
    let mut tasks = Vec::new();
    for i in 0..6_u64 {
        let fs = fs.clone();
        tasks.push(tokio::spawn(async move {
            let file = create(&fs, &format!("file{i}")).await;
            let mut random = fastrand::Rng::with_seed(i);
            for _ in 0..150 {
                let at = random.u64(0..1000) * 2048;
                file.write_at(at, &pattern(i, at, 1024)).await.expect("writes");
                match random.u8(0..8) {
                    0 => file.sync_all().await.expect("syncs"),
                    1..4 => file.start_writeback().await.expect("starts"),
                    4 => file.set_len(random.u64(0..2 << 20)).await.expect("truncates"),
                    _ => {}
                }
            }
        }));
    }
    let all = async {
        for task in tasks {
            task.await.expect("no panic");
        }
    };
    tokio::time::timeout(PATIENCE, async {
        tokio::select! {
            () = commits(&fs) => {}
            () = all => {}
        }
    })
    .await
    .expect("no deadlock");
    finish(&device, fs).await;
}

/// Polls `future` so many times, then drops it.
async fn poll_at_most<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let (mut future, mut left) = (Box::pin(future), polls);
    std::future::poll_fn(move |context| match future.as_mut().poll(context) {
        std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
        std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(None),
        std::task::Poll::Pending => {
            left -= 1;
            context.waker().wake_by_ref();
            std::task::Poll::Pending
        }
    })
    .await
}

/// The kernel's short copies come from faults in the caller's memory, of which there are none here; a caller
/// that goes away in the middle of a write is what remains.
#[tokio::test]
async fn k_16_k_18_k_19_a_write_cut_short_leaves_no_reservation_without_data() {
    if !have_e2fsprogs() {
        return;
    }
    let memory = Arc::new(MemoryDevice::from_image(make_image(32, 1024, &["-m", "0"], STALE)));
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as Arc<dyn BlockDevice>));
    let fs = mount(Arc::clone(&faulty) as _, quiet()).await;
    let free = fs.statfs().free_blocks;
    let file = create(&fs, "file").await;
    // Written blocks and holes in turn, so that edges are read and the rest is delayed.
    for i in 0..40 {
        file.write_at(i * 30_000, &pattern(1, i * 30_000, 3000)).await.expect("writes");
    }
    file.sync_all().await.expect("syncs");
    drop(file);
    fs.unmount().await.expect("unmounts");
    let fs = mount(Arc::clone(&faulty) as _, quiet()).await;
    let file = open(&fs, "file").await;
    faulty.reorder(16);
    let drive = tokio::spawn({
        let faulty = Arc::clone(&faulty);
        async move { faulty.drive().await }
    });
    let mut dropped = 0;
    for i in 0..39_u64 {
        let at = i * 30_000 + 1500;
        let data = pattern(2, at, 30_000);
        if poll_at_most(i as usize % 4, file.write_at(at, &data)).await.is_none() {
            dropped += 1;
        }
    }
    assert!(dropped > 10, "{dropped} were cut short");
    file.sync_all().await.expect("syncs");
    let sectors = file.metadata().await.expect("stat").sectors;
    // What is not free is the file's: nothing is reserved any more.
    assert_eq!(free - fs.statfs().free_blocks, sectors / 2);
    let size = file.len() as usize;
    for (at, byte) in content(&file).await.iter().enumerate() {
        let own = [pattern(1, at as u64, 1)[0], pattern(2, at as u64, 1)[0], 0];
        assert!(own.contains(byte), "{byte:#x} at {at} of {size}");
    }
    file.set_len(0).await.expect("cuts");
    drop(file);
    fs.sync().await.expect("syncs");
    assert_eq!(fs.statfs().free_blocks, free);
    finish(&memory, fs).await;
    drive.abort();
}

#[tokio::test]
async fn k_17_a_write_that_fails_past_the_end_leaves_nothing_there() {
    if !have_e2fsprogs() {
        return;
    }
    let (planted, tail) = with_planted_tail(Way::Unwritten).await;
    let memory = Arc::new(MemoryDevice::from_image(planted));
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as Arc<dyn BlockDevice>));
    let fs = mount(Arc::clone(&faulty) as _, quiet()).await;
    let file = open(&fs, "file").await;
    let free = fs.statfs().free_blocks;
    // The block that the end lies in cannot be read, so it cannot be zeroed.
    faulty.fail_range(Operation::Read, tail..tail + 4096);
    let error = file.write_at(9000, &pattern(7, 9000, 20_000)).await.expect_err("the gap is not known");
    assert_eq!(error.errno(), Errno::EIO);
    assert_eq!((file.len(), fs.statfs().free_blocks), (2000, free));
    faulty.heal();
    // Neither data nor a reservation was left behind the end.
    file.set_len(40_000).await.expect("extends");
    let bytes = content(&file).await;
    assert!(bytes[..2000] == pattern(7, 0, 2000) && bytes[2000..].iter().all(|byte| *byte == 0));
    file.sync_all().await.expect("syncs");
    assert_eq!(fs.statfs().free_blocks, free);
    drop(file);
    finish(&memory, fs).await;
}

/// Carries out what it is given on a thread of its own, which knows no runtime.
#[derive(Debug)]
struct Interrupting(Arc<MemoryDevice>);

impl BlockDevice for Interrupting {
    fn geometry(&self) -> &Geometry {
        self.0.geometry()
    }

    fn submit(&self, plug: Plug) {
        let inner = Arc::clone(&self.0);
        std::thread::spawn(move || inner.submit(plug));
    }
}

#[tokio::test]
async fn k_27_completions_run_where_nothing_can_wait() {
    if !have_e2fsprogs() {
        return;
    }
    // Waiting for a lock or spawning outside a runtime would panic on the device's thread, and the file never
    // be there.
    let memory = Arc::new(MemoryDevice::from_image(blank(Way::Unwritten)));
    let fs = mount(Arc::new(Interrupting(Arc::clone(&memory))), quiet()).await;
    let file = create(&fs, "file").await;
    for i in 0..200_u64 {
        file.write_at(i * 4096, &pattern(27, i * 4096, 4096)).await.expect("writes");
        if i % 7 == 0 {
            file.start_writeback().await.expect("starts");
        }
        if i % 50 == 49 {
            tokio::time::timeout(PATIENCE, file.sync_all()).await.expect("it ends").expect("syncs");
        }
    }
    assert!(content(&file).await == pattern(27, 0, 200 * 4096));
    drop(file);
    finish(&memory, fs).await;
}

#[tokio::test]
async fn k_35_what_is_freed_but_not_committed_can_be_had_after_a_commit() {
    if !have_e2fsprogs() {
        return;
    }
    for delayed_allocation in [true, false] {
        let image = make_image(16, 4096, &["-m", "0", "-J", "size=4"], STALE);
        let (device, fs) = mount_image(image, quiet().delayed_allocation(delayed_allocation)).await;
        let all = fs.statfs().free_blocks * 4096 / 10 * 9;
        let old = create(&fs, "old").await;
        old.write_at(0, &pattern(1, 0, all as usize)).await.expect("writes");
        old.sync_all().await.expect("syncs");
        drop(old);
        fs.unlink(InodeNumber::ROOT, b"old").await.expect("goes");
        let commits = fs.journal_statistics().expect("a journal").transactions;
        let new = create(&fs, "file").await;
        new.write_at(0, &pattern(2, 0, all as usize)).await.expect("there is room");
        new.sync_data().await.expect("there are blocks");
        assert!(fs.journal_statistics().expect("a journal").transactions > commits);
        assert!(content(&new).await == pattern(2, 0, all as usize));
        drop(new);
        finish(&device, fs).await;
    }
}

#[tokio::test]
async fn k_41_a_long_allocation_of_which_a_part_was_written() {
    if !have_e2fsprogs() {
        return;
    }
    let blocks = 2048;
    let image = make_image(16, 1024, &["-J", "size=1"], STALE);
    let work = |_: Arc<RecordingDevice>, fs: Filesystem| async move {
        let file = create(&fs, "file").await;
        file.write_at(0, &pattern(41, 0, blocks * 1024)).await.expect("writes");
        tokio::select! {
            () = commits(&fs) => {}
            result = file.sync_all() => result.expect("syncs"),
        }
        assert!(fs.counters().allocations <= 3, "{:?}", fs.counters());
    };
    let recording = record(image, Some(41), quiet(), work).await;
    at_every_cut(&recording, 25, "file", |_, bytes| {
        let bytes = bytes.unwrap_or_default();
        assert!(bytes == pattern(41, 0, bytes.len()), "zeros or something stale below {}", bytes.len());
    })
    .await;
}

#[tokio::test]
async fn k_43_what_is_cut_off_while_its_ioends_wait_does_not_come_back() {
    if !have_e2fsprogs() {
        return;
    }
    let (memory, holding, fs) = held_tail().await;
    let file = Arc::new(open(&fs, "file").await);
    for at in [6000, 10_000, 14_000] {
        file.write_at(at, &pattern(7, at, 100)).await.expect("writes");
        file.start_writeback().await.expect("starts");
    }
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    assert!(fs.counters().parked > 0, "they wait for the tail: {:?}", fs.counters());
    let cutting = tokio::spawn({
        let file = Arc::clone(&file);
        async move { file.set_len(6050).await }
    });
    for i in 0..5 {
        tokio::task::yield_now().await;
        drop(create(&fs, &format!("other{i}")).await);
        fs.fsync(InodeNumber::ROOT).await.expect("commits");
        recovered(memory.image(), "file", |bytes| assert_eq!(bytes.expect("is there").len(), 2000)).await;
    }
    holding.release();
    let cut = tokio::time::timeout(PATIENCE, cutting).await.expect("no deadlock").expect("no panic");
    cut.expect("cuts");
    let mut expected = pattern(7, 0, 6050);
    expected[2000..6000].fill(0);
    assert_eq!(file.len(), 6050);
    fs.sync().await.expect("syncs");
    recovered(memory.image(), "file", |bytes| assert!(bytes.expect("is there") == expected)).await;
    assert!(content(&file).await == expected);
    drop(file);
    finish(&memory, fs).await;
}

#[tokio::test]
async fn k_44_conversions_that_split_extents_find_blocks_on_a_full_device() {
    if !have_e2fsprogs() {
        return;
    }
    let image = make_image(16, 1024, &["-m", "0", "-J", "size=1"], STALE);
    let (device, fs) = mount_image(image, quiet()).await;
    let file = create(&fs, "file").await;
    file.fallocate(FallocateMode::Allocate, 0, 4 << 20).await.expect("there is room");
    file.sync_all().await.expect("syncs");
    // Everything else that is free goes to another file.
    let filler = create(&fs, "filler").await;
    let mut end = 0;
    for len in [1 << 20, 64 << 10, 1024] {
        while let Ok(count) = filler.write_at(end, &pattern(3, end, len)).await {
            end += count as u64;
            if count < len {
                break;
            }
        }
    }
    filler.sync_all().await.expect("what was taken is written");
    // Every other block: each conversion makes extents, and their nodes need blocks.
    for i in 0..2048_u64 {
        file.write_at(i * 2048, &pattern(44, i * 2048, 1024)).await.expect("the blocks are there");
    }
    file.sync_all().await.expect("the margin for nodes is used");
    for (at, byte) in content(&file).await.iter().enumerate() {
        let written = (at / 1024).is_multiple_of(2);
        assert_eq!(*byte, if written { pattern(44, at as u64, 1)[0] } else { 0 }, "at {at}");
    }
    drop((file, filler));
    finish(&device, fs).await;
}
