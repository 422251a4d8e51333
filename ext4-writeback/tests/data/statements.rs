//! The crash statements G-n of `docs/data-path.md`, one workload made for each, checked at power cuts all
//! over it with seeded losses of what was not flushed.
//!
//! `crash.rs` shows G-1, G-3, G-4, G-7, G-8, G-11 and G-17, `failures_crash.rs` G-13 to G-15. Each test here
//! shows G-16 too: `e2fsck -fn` finds nothing after recovery and unmount.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use super::common::*;
use super::crash::{STALE, blank, commits, quiet, record, with_planted_tail};
use super::cuts::{at_every_cut, judge, sampled, seeds};
use super::way::Way;
use ext4_core::device::simulated::{FaultyDevice, Image, RecordingDevice};
use ext4_core::device::{BlockDevice, MemoryDevice, Operation};
use ext4_core::meta::extent_tree::{Mapping, MappingState};
use ext4_core::{Errno, InodeNumber};

use ext4_writeback::{Filesystem, RenameFlags};

/// Mounts `image` and returns the mapping of its file, its size, and the device as it is then.
async fn mapped(image: Image, name: &str) -> Option<(Vec<Mapping>, u64, Image)> {
    let (device, fs) = mount_image(image, options()).await;
    let found = match fs.lookup(InodeNumber::ROOT, name.as_bytes()).await {
        Ok(number) => {
            let file = fs.open(number).await.expect("opens");
            Some((file.extents().await.expect("maps"), file.len()))
        }
        Err(_) => None,
    };
    let image = finish(&device, fs).await;
    found.map(|(extents, size)| (extents, size, image))
}

#[tokio::test]
async fn g_2_a_block_is_written_only_when_its_data_is_there() {
    written_blocks_have_data(Way::Unwritten).await;
}

pub async fn written_blocks_have_data(way: Way) {
    if !have_e2fsprogs() {
        return;
    }
    for (seed, delayed_allocation) in [(41, true), (42, true), (43, false)] {
        let work = |_: Arc<RecordingDevice>, fs: Filesystem| async move {
            let file = create(&fs, "file").await;
            let mut random = fastrand::Rng::with_seed(seed);
            let writing = async {
                for _ in 0..30 {
                    let at = random.u64(0..100) * 4096;
                    let len = 4096 * random.usize(1..6);
                    file.write_at(at, &pattern(4, at, len)).await.expect("writes");
                    match random.u8(0..3) {
                        0 => file.start_writeback().await.expect("starts"),
                        1 => file.sync_data().await.expect("syncs"),
                        _ => {}
                    }
                }
            };
            tokio::select! {
                () = commits(&fs) => {}
                () = writing => {}
            }
        };
        let options = quiet().delayed_allocation(delayed_allocation);
        let options = way.mounted(options);
        let recording = record(blank(way), Some(seed), options, work).await;
        let mut written = 0;
        let look = async |image: Image| mapped(image, "file").await;
        judge(&recording, 60, look, |_, found| {
            let Some((extents, size, image)) = found else { return };
            for extent in extents {
                let MappingState::Written(block) = extent.state else { continue };
                let from = u64::from(extent.logical.0) * 4096;
                assert!(from < *size, "a written block behind the end of {size} bytes: {extent:?}");
                let mut bytes = vec![0; extent.len as usize * 4096];
                image.read(block.0 * 4096, &mut bytes);
                assert!(bytes == pattern(4, from, bytes.len()), "seed {seed}: {extent:?} has no data");
                written += extent.len;
            }
        })
        .await;
        assert!(written > 100, "the checks saw {written} blocks");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g_5_k_42_the_size_never_ends_in_the_padding_of_a_block() {
    no_padding(Way::Unwritten).await;
}

pub async fn no_padding(way: Way) {
    if !have_e2fsprogs() {
        return;
    }
    for seed in seeds(&[51, 52]) {
        let mut random = fastrand::Rng::with_seed(seed);
        let lengths: Vec<usize> = (0..60).map(|_| random.usize(1..1500)).collect();
        let mut ends: HashSet<usize> = HashSet::from([0]);
        ends.extend(lengths.iter().scan(0, |end, len| {
            *end += len;
            Some(*end)
        }));
        let work = |_: Arc<RecordingDevice>, fs: Filesystem| async move {
            let file = create(&fs, "file").await;
            let appending = async {
                for len in &lengths {
                    let at = file.len();
                    file.write_at(at, &pattern(5, at, *len)).await.expect("writes");
                    // The next append comes when the block has got to the device, and perhaps before its size
                    // has.
                    file.start_writeback().await.expect("starts");
                }
                file.sync_all().await.expect("syncs");
            };
            tokio::select! {
                () = commits(&fs) => {}
                () = appending => {}
            }
        };
        let recording = record(blank(way), Some(seed), way.mounted(quiet()), work).await;
        at_every_cut(&recording, 80, "file", |_, bytes| {
            let bytes = bytes.unwrap_or_default();
            // Padding is zeros, which the pattern does not have. An append over two folios may show the first
            // alone.
            let ended = ends.contains(&bytes.len()) || bytes.len().is_multiple_of(4096);
            assert!(ended, "seed {seed}: no append ended at {}", bytes.len());
            assert!(bytes == pattern(5, 0, bytes.len()), "seed {seed}: padding below {}", bytes.len());
        })
        .await;
    }
}

#[tokio::test]
async fn g_6_a_gap_is_zero_whatever_lay_behind_the_end() {
    gaps_are_zero(Way::Unwritten).await;
}

pub async fn gaps_are_zero(way: Way) {
    if !have_e2fsprogs() {
        return;
    }
    let (planted, _) = with_planted_tail(way).await;
    for seed in seeds(&[61, 62, 63]) {
        let at = [2500_u64, 4096, 9000][(seed % 10 - 1) as usize];
        let work = |_: Arc<RecordingDevice>, fs: Filesystem| async move {
            let file = open(&fs, "file").await;
            file.write_at(at, &pattern(7, at, 3000)).await.expect("writes");
            tokio::select! {
                () = commits(&fs) => {}
                result = file.sync_all() => result.expect("syncs"),
            }
        };
        let recording = record(planted.clone(), Some(seed), way.mounted(quiet()), work).await;
        at_every_cut(&recording, 60, "file", |_, bytes| {
            let bytes = bytes.expect("it was there before");
            assert!(bytes[..2000] == pattern(7, 0, 2000));
            let gap = &bytes[2000..bytes.len().clamp(2000, at as usize)];
            assert!(gap.iter().all(|byte| *byte == 0), "something in the gap of {} bytes", bytes.len());
        })
        .await;
    }
}

#[tokio::test]
async fn g_9_extending_without_data_shows_the_old_size_or_the_new() {
    if !have_e2fsprogs() {
        return;
    }
    let (planted, _) = with_planted_tail(Way::Unwritten).await;
    for seed in seeds(&[91, 92, 93]) {
        let sizes = [vec![3000_u64], vec![4096, 100_000], vec![70_000, 2000, 5000]];
        let sizes = sizes[(seed % 10 - 1) as usize].clone();
        let mut allowed: HashSet<u64> = sizes.iter().copied().collect();
        allowed.insert(2000);
        let work = |_: Arc<RecordingDevice>, fs: Filesystem| async move {
            let file = open(&fs, "file").await;
            let changing = async {
                for size in &sizes {
                    file.set_len(*size).await.expect("extends");
                    file.start_writeback().await.expect("starts");
                    tokio::task::yield_now().await;
                }
                file.sync_all().await.expect("syncs");
            };
            tokio::select! {
                () = commits(&fs) => {}
                () = changing => {}
            }
        };
        let recording = record(planted.clone(), Some(seed), quiet(), work).await;
        at_every_cut(&recording, 60, "file", |_, bytes| {
            let bytes = bytes.expect("it was there before");
            assert!(allowed.contains(&(bytes.len() as u64)), "seed {seed}: {} bytes", bytes.len());
            assert!(bytes[..2000] == pattern(7, 0, 2000));
            assert!(bytes[2000..].iter().all(|byte| *byte == 0));
        })
        .await;
    }
}

#[tokio::test]
async fn g_12_fsync_of_one_file_leaves_another_as_it_was_or_newer() {
    other_files(Way::Unwritten).await;
}

pub async fn other_files(way: Way) {
    if !have_e2fsprogs() {
        return;
    }
    let work = |device: Arc<RecordingDevice>, fs: Filesystem| async move {
        let (synced, other) = (create(&fs, "synced").await, create(&fs, "other").await);
        for i in 0..20_u64 {
            other.write_at(i * 5000, &pattern(12, i * 5000, 5000)).await.expect("writes");
            if i % 3 == 0 {
                other.start_writeback().await.expect("starts");
            }
            synced.write_at(i * 3000, &pattern(13, i * 3000, 3000)).await.expect("writes");
            synced.sync_all().await.expect("syncs");
            device.mark(format!("synced {i}"));
        }
    };
    let recording = record(blank(way), Some(121), way.mounted(quiet()), work).await;
    at_every_cut(&recording, 50, "other", |_, bytes| {
        let bytes = bytes.unwrap_or_default();
        assert!(bytes == pattern(12, 0, bytes.len()), "stale, or a gap, below {}", bytes.len());
    })
    .await;
    at_every_cut(&recording, 50, "synced", |passed, bytes| {
        let bytes = bytes.unwrap_or_default();
        let durable = (0..20).rev().find(|i| passed(&format!("synced {i}"))).map_or(0, |i| (i + 1) * 3000);
        assert!(bytes.len() >= durable && bytes == pattern(13, 0, bytes.len()));
    })
    .await;
}

#[tokio::test]
async fn g_15_data_without_blocks_is_lost_loudly_and_nothing_else() {
    if !have_e2fsprogs() {
        return;
    }
    // Without checksums of groups no bitmap is known without reading it.
    let image = make_image(64, 1024, &["-m", "0", "-O", "^metadata_csum,^uninit_bg"], STALE);
    let memory = Arc::new(MemoryDevice::from_image(image));
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as Arc<dyn BlockDevice>));
    let fs = mount(Arc::clone(&faulty) as _, options()).await;
    let before = fs.statfs();
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(15, 0, 300_000)).await.expect("the cache takes it");
    assert!(fs.statfs().free_blocks < before.free_blocks, "space is reserved");
    // Every block bitmap that is not in memory yet is out of reach.
    faulty.fail_range(Operation::Read, 0..64 << 20);
    let error = file.sync_all().await.expect_err("there are no blocks");
    // A group whose bitmap cannot be read has no room.
    assert_eq!(error.errno(), Errno::ENOSPC, "{error}");
    faulty.heal();
    file.sync_all().await.expect("told once");
    drop(file);
    fs.unlink(InodeNumber::ROOT, b"file").await.expect("goes");
    // The groups are out of use until the next mount.
    let (device, fs) = mount_image(finish(&memory, fs).await, options()).await;
    assert_eq!(fs.statfs().free_blocks, before.free_blocks);
    finish(&device, fs).await;
}

#[tokio::test]
async fn g_18_an_overwrite_shows_each_sector_old_or_new_and_changes_no_metadata() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(blank(Way::Unwritten), quiet()).await;
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(18, 0, 200_000)).await.expect("writes");
    file.sync_all().await.expect("syncs");
    let extents = file.extents().await.expect("maps");
    drop(file);
    let image = finish(&device, fs).await;
    for seed in seeds(&[181, 182]) {
        let commit = seed % 2 == 0;
        let work = |device: Arc<RecordingDevice>, fs: Filesystem| async move {
            let file = open(&fs, "file").await;
            let before = fs.counters();
            for i in 0..30_u64 {
                let at = (i * 7919 * 13) % 190_000;
                file.write_at(at, &pattern(19, at, 5000)).await.expect("writes");
                file.start_writeback().await.expect("starts");
                tokio::task::yield_now().await;
            }
            if commit {
                file.sync_data().await.expect("syncs");
                device.mark("synced");
                let after = fs.counters();
                assert_eq!(after.completion_handles, before.completion_handles, "no handle for an overwrite");
                assert_eq!((after.allocations, after.conversions), (before.allocations, before.conversions));
                assert_eq!(fs.journal_statistics().expect("a journal").log_blocks, 0, "nothing was logged");
            }
        };
        let recording = record(image.clone(), Some(seed), quiet(), work).await;
        at_every_cut(&recording, 60, "file", |_, bytes| {
            let bytes = bytes.expect("it was there before");
            assert_eq!(bytes.len(), 200_000);
            let (old, new) = (pattern(18, 0, 200_000), pattern(19, 0, 200_000));
            // A sector holds the old bytes, the new ones, or of each if one write ends in it.
            for (at, byte) in bytes.iter().enumerate() {
                assert!(*byte == old[at] || *byte == new[at], "neither old nor new at {at}");
            }
        })
        .await;
        let all = recording.cuts().last().expect("a cut").with_all();
        assert_eq!(mapped(all, "file").await.expect("is there").0, extents, "the mapping is as it was");
    }
}

#[tokio::test]
async fn g_19_a_replay_of_fast_commits_shows_what_a_full_commit_would() {
    if !have_e2fsprogs() {
        return;
    }
    let image = make_image(16, 4096, &["-J", "size=4", "-O", "fast_commit"], STALE);
    for seed in [191, 192] {
        let mut random = fastrand::Rng::with_seed(seed);
        // Appends, gaps, overwrites, cuts; each synced.
        let steps: Vec<(u8, u64, usize)> =
            (0..60).map(|_| (random.u8(0..5), random.u64(0..150_000), random.usize(1..9000))).collect();
        let mut states: Vec<Vec<u8>> = vec![Vec::new()];
        for (kind, at, len) in &steps {
            let mut bytes = states.last().cloned().unwrap_or_default();
            let start = if *kind < 2 { bytes.len() } else { *at as usize };
            if *kind == 4 {
                bytes.resize(*at as usize, 0);
            } else {
                bytes.resize(bytes.len().max(start + len), 0);
                bytes[start..start + len].copy_from_slice(&pattern(states.len() as u64, start as u64, *len));
            }
            states.push(bytes);
        }
        let work = {
            let steps = steps.clone();
            |device: Arc<RecordingDevice>, fs: Filesystem| async move {
                // Inodes near the journal's are never in a fast commit.
                for i in 0..8 {
                    drop(create(&fs, &format!("neighbour{i}")).await);
                }
                let file = create(&fs, "file").await;
                file.sync_all().await.expect("syncs");
                for (i, (kind, at, len)) in steps.iter().enumerate() {
                    if *kind == 4 {
                        file.set_len(*at).await.expect("truncates");
                    } else {
                        let start = if *kind < 2 { file.len() } else { *at };
                        file.write_at(start, &pattern(i as u64 + 1, start, *len)).await.expect("writes");
                    }
                    file.sync_all().await.expect("syncs");
                    device.mark(format!("state {}", i + 1));
                }
                let statistics = fs.journal_statistics().expect("a journal").fast_commits;
                assert!(statistics.commits > 20, "{statistics:?}");
            }
        };
        let recording = record(image.clone(), Some(seed), quiet(), work).await;
        at_every_cut(&recording, 80, "file", |passed, bytes| {
            let bytes = bytes.unwrap_or_default();
            let synced = (1..states.len()).rev().find(|i| passed(&format!("state {i}"))).unwrap_or(0);
            // The next operation may be there, in part.
            let next = states.get(synced + 1).unwrap_or(&states[synced]);
            let (old, sizes) = (&states[synced], [states[synced].len(), next.len()]);
            let between = sizes.iter().min().copied().unwrap_or(0)..=sizes.iter().max().copied().unwrap_or(0);
            assert!(between.contains(&bytes.len()), "{} of {sizes:?}", bytes.len());
            for (at, byte) in bytes.iter().enumerate() {
                let allowed = [old.get(at), next.get(at), Some(&0)];
                let kept = at < old.len() && at < next.len() && old[at] == next[at];
                let wanted = if kept { *byte == old[at] } else { allowed.contains(&Some(byte)) };
                assert!(wanted, "seed {seed}: {byte:#x} at {at} of {} after {synced}", bytes.len());
            }
        })
        .await;
    }
}

#[tokio::test]
async fn g_20_a_file_renamed_over_another_has_its_data() {
    if !have_e2fsprogs() {
        return;
    }
    let work = |device: Arc<RecordingDevice>, fs: Filesystem| async move {
        let old = create(&fs, "config").await;
        old.write_at(0, &pattern(20, 0, 9000)).await.expect("writes");
        old.sync_all().await.expect("syncs");
        device.mark("old");
        drop(old);
        let new = create(&fs, "config.new").await;
        new.write_at(0, &pattern(21, 0, 30_000)).await.expect("writes");
        drop(new);
        let root = InodeNumber::ROOT;
        fs.rename((root, b"config.new"), (root, b"config"), RenameFlags::default()).await.expect("renames");
        // The rename is committed by another task, and the power goes.
        fs.fsync(root).await.expect("commits");
        device.mark("renamed");
        fs.sync().await.expect("syncs");
    };
    let recording = record(blank(Way::Unwritten), Some(201), quiet(), work).await;
    let seen = RefCell::new(HashSet::new());
    // So few that the short form takes them all too.
    at_every_cut(&recording, usize::MAX, "config", |passed, bytes| {
        let bytes = bytes.unwrap_or_default();
        let whole = match bytes.len() {
            0 => true,
            9000 => bytes == pattern(20, 0, 9000),
            30_000 => bytes == pattern(21, 0, 30_000),
            _ => false,
        };
        // Before the first fsync there may be nothing, or an empty file.
        assert!(whole && !(bytes.is_empty() && passed("old")), "{} bytes", bytes.len());
        assert!(!passed("renamed") || bytes.len() == 30_000, "{} bytes", bytes.len());
        seen.borrow_mut().insert(bytes.len());
    })
    .await;
    assert!(seen.borrow().contains(&30_000), "the new file was never seen");
}

#[tokio::test]
async fn g_20_a_file_cut_to_nothing_and_written_again_goes_to_the_device_when_it_is_closed() {
    if !have_e2fsprogs() {
        return;
    }
    let work = |device: Arc<RecordingDevice>, fs: Filesystem| async move {
        let file = create(&fs, "config").await;
        file.write_at(0, &pattern(20, 0, 9000)).await.expect("writes");
        file.sync_all().await.expect("syncs");
        device.mark("old");
        file.set_len(0).await.expect("cuts");
        file.write_at(0, &pattern(21, 0, 30_000)).await.expect("writes");
        let before = fs.counters().conversions;
        drop(file);
        // No caller asks for it.
        for _ in 0..100_000 {
            if fs.counters().conversions > before {
                break;
            }
            tokio::task::yield_now().await;
        }
        // The commit of another caller's fsync; the conversion's handle has ended, or its transaction waits
        // for it.
        drop(create(&fs, "other").await);
        fs.fsync(InodeNumber::ROOT).await.expect("commits");
        device.mark("closed and committed");
    };
    let recording = record(blank(Way::Unwritten), Some(202), quiet(), work).await;
    let seen = RefCell::new(HashSet::new());
    at_every_cut(&recording, usize::MAX, "config", |passed, bytes| {
        let bytes = bytes.unwrap_or_default();
        let old = bytes == pattern(20, 0, 9000);
        // A folio's data may be there before the next one's.
        let new = bytes == pattern(21, 0, bytes.len());
        assert!(old || new, "{} bytes", bytes.len());
        let committed = passed("closed and committed");
        assert!(!committed || bytes.len() == 30_000, "{} bytes after the commit", bytes.len());
        seen.borrow_mut().insert(bytes.len());
    })
    .await;
    assert!(seen.borrow().contains(&30_000), "the new file was never seen");
}

/// The file of `g_8`: of many extents, so that freeing takes several steps.
async fn with_many_extents() -> Image {
    let (device, fs) = mount_image(make_image(16, 1024, &["-J", "size=1"], STALE), quiet()).await;
    let file = create(&fs, "file").await;
    // Written from the end on, so that neighbours do not lie side by side.
    for i in (0..1500).rev() {
        file.write_at(i * 2048, &pattern(9, i * 2048, 1024)).await.expect("writes");
        if i % 50 == 0 {
            file.sync_all().await.expect("syncs");
        }
    }
    drop(file);
    finish(&device, fs).await
}

#[tokio::test]
async fn g_8_a_second_crash_while_a_truncation_is_finished_loses_nothing() {
    if !have_e2fsprogs() {
        return;
    }
    let full = 1499 * 2048 + 1024;
    let check = |_: &dyn Fn(&str) -> bool, bytes: Option<&[u8]>| {
        let bytes = bytes.expect("it was there before");
        assert!([full, 5000].contains(&bytes.len()), "{} bytes", bytes.len());
        for (at, byte) in bytes.iter().enumerate() {
            // The rest of the block that is cut is zeroed in place, as the kernel does it: a crash may show
            // that before it shows the new size.
            if (5000..5120).contains(&at) && *byte == 0 {
                continue;
            }
            let written = (at / 1024).is_multiple_of(2);
            assert_eq!(*byte, if written { pattern(9, at as u64, 1)[0] } else { 0 }, "at {at}");
        }
    };
    let work = |device: Arc<RecordingDevice>, fs: Filesystem| async move {
        let file = open(&fs, "file").await;
        device.mark("mounted");
        tokio::select! {
            () = commits(&fs) => {}
            result = file.set_len(5000) => result.expect("cuts"),
        }
        device.mark("cut");
        fs.sync().await.expect("syncs");
    };
    let recording = record(with_many_extents().await, Some(81), quiet(), work).await;
    at_every_cut(&recording, 20, "file", check).await;
    let mounted = recording.cuts().position(|cut| cut.has_passed("mounted")).expect("is there");
    let under_way = recording.cuts().count() - mounted;
    let mut second = 0;
    // Each second crash is one of many: not every pair.
    for number in sampled(under_way, if long_tests() { 20 } else { 6 }) {
        let first = recording.cuts().nth(mounted + number).expect("is there");
        // Mounting recovers, and the power goes while it does.
        let idle = |_: Arc<RecordingDevice>, fs: Filesystem| async move { fs.sync().await.expect("syncs") };
        let recovery = record(first.variant(1), Some(82), quiet(), idle).await;
        second += recovery.cuts().count();
        at_every_cut(&recovery, 8, "file", check).await;
    }
    assert!(second > 20, "{second} second crashes");
}
