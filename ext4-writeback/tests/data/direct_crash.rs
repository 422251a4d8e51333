//! Power cuts during direct writes. What lies on the device from before is 0xaa, and everything written is
//! odd.

use std::sync::Arc;

use super::common::*;
use super::crash::{STALE, blank, commits, quiet, record, recovered, with_planted_tail};
use super::cuts::at_every_cut;
use super::way::Way;
use ext4_core::InodeNumber;
use ext4_core::device::simulated::{Change, Event, RecordingDevice};
use ext4_core::device::{AlignedBuffer, BioFlags, BlockDevice, MemoryDevice};
use ext4_writeback::{File, Filesystem, OpenOptions, SyncMode, WriteFlags};

async fn open_direct(fs: &Filesystem, sync: SyncMode) -> File {
    let number = fs.lookup(InodeNumber::ROOT, b"file").await.expect("is there");
    let options = OpenOptions::new().direct(true).sync(sync).append(false);
    fs.open_with(number, options).await.expect("opens")
}

#[tokio::test]
async fn k_08_z_7_a_direct_write_past_an_unaligned_end_shows_zeros_before_it() {
    if !have_e2fsprogs() {
        return;
    }
    let (planted, _) = with_planted_tail(Way::Unwritten).await;
    // Past the block, next to it, and within it.
    for (offset, len) in [(8192_u64, 8192), (4096, 4096), (2560, 512), (2048, 6144)] {
        for seed in [1, 2] {
            let work = |_device: Arc<RecordingDevice>, fs: Filesystem| async move {
                let file = open_direct(&fs, SyncMode::None).await;
                let written = async {
                    file.write_at(offset, &pattern(7, offset, len)).await.expect("writes");
                    file.sync_data().await.expect("syncs");
                };
                tokio::select! {
                    () = commits(&fs) => {}
                    () = written => {}
                }
            };
            let recording = record(planted.clone(), Some(seed), quiet(), work).await;
            at_every_cut(&recording, 40, "file", |_, bytes| {
                let bytes = bytes.expect("it was there before");
                let end = offset as usize + len;
                assert!([2000, end].contains(&bytes.len()), "{} bytes", bytes.len());
                for (at, byte) in bytes.iter().enumerate() {
                    let own = pattern(7, at as u64, 1)[0];
                    let gap = (2000..offset as usize).contains(&at);
                    let expected = if gap { 0 } else { own };
                    assert_eq!(*byte, expected, "at {at} of {}, written at {offset}", bytes.len());
                }
            })
            .await;
        }
    }
}

#[tokio::test]
async fn g_3_g_11_direct_appends_show_their_data_or_the_size_before_them() {
    if !have_e2fsprogs() {
        return;
    }
    let mut random = fastrand::Rng::with_seed(8);
    let lengths: Vec<usize> = (0..24).map(|_| 512 * random.usize(1..40)).collect();
    for fast_commit in [false, true] {
        let lengths = &lengths;
        let work = |device: Arc<RecordingDevice>, fs: Filesystem| async move {
            drop(create(&fs, "file").await);
            let file = open_direct(&fs, SyncMode::None).await;
            let appends = async {
                let mut end = 0;
                for (i, len) in lengths.iter().enumerate() {
                    file.write_at(end, &pattern(3, end, *len)).await.expect("writes");
                    end += *len as u64;
                    if i % 3 != 0 {
                        file.sync_data().await.expect("syncs");
                        device.mark(format!("{end}"));
                    }
                }
            };
            tokio::select! {
                () = commits(&fs) => {}
                () = appends => {}
            }
        };
        let features: &[&str] =
            if fast_commit { &["-J", "size=4", "-O", "fast_commit"] } else { &["-J", "size=4"] };
        let image = make_image(16, 4096, features, STALE);
        let recording = record(image, Some(9), quiet(), work).await;
        let ends: Vec<u64> = lengths
            .iter()
            .scan(0, |end, len| {
                *end += *len as u64;
                Some(*end)
            })
            .collect();
        at_every_cut(&recording, 60, "file", |passed, bytes| {
            let durable = ends.iter().copied().filter(|end| passed(&end.to_string())).max().unwrap_or(0);
            let bytes = bytes.unwrap_or_default();
            assert!(bytes.len() as u64 >= durable, "{} bytes of {durable}", bytes.len());
            assert!(bytes == pattern(3, 0, bytes.len()), "a gap or something stale below {}", bytes.len());
            assert!(bytes.is_empty() || ends.contains(&(bytes.len() as u64)) || bytes.len() % 4096 == 0);
        })
        .await;
    }
}

#[tokio::test]
async fn g_1_direct_writes_into_holes_show_zeros_or_their_data() {
    if !have_e2fsprogs() {
        return;
    }
    for (seed, block_size) in [(21, 4096), (22, 1024)] {
        let work = |device: Arc<RecordingDevice>, fs: Filesystem| async move {
            let sparse = create(&fs, "file").await;
            sparse.set_len(400_000).await.expect("extends");
            sparse.sync_all().await.expect("syncs");
            device.mark("sparse");
            let file = Arc::new(open_direct(&fs, SyncMode::None).await);
            let writes = async {
                // Several at a time, into holes and over what was just written.
                for round in 0..3_u64 {
                    let mut tasks = tokio::task::JoinSet::new();
                    for i in 0..8_u64 {
                        let file = Arc::clone(&file);
                        let offset = (i * 49_152 + round * 8192) & !4095;
                        tasks.spawn(async move {
                            let data = AlignedBuffer::copied(&pattern(5, offset, 12_288)).expect("memory");
                            file.write_direct(offset, data).await.0.expect("writes");
                        });
                    }
                    while let Some(task) = tasks.join_next().await {
                        task.expect("no panic");
                    }
                    file.sync_data().await.expect("syncs");
                    device.mark(format!("round {round}"));
                }
            };
            tokio::select! {
                () = commits(&fs) => {}
                () = writes => {}
            }
        };
        let image = make_image(16, block_size, &["-J", "size=4"], STALE);
        let recording = record(image, Some(seed), quiet(), work).await;
        let written = |round: u64, at: u64| {
            (0..=round).any(|round| {
                (0..8).any(|i| {
                    let offset = (i * 49_152 + round * 8192) & !4095;
                    (offset..offset + 12_288).contains(&at)
                })
            })
        };
        at_every_cut(&recording, 50, "file", |passed, bytes| {
            let bytes = bytes.unwrap_or_default();
            let durable = (0..3).rev().find(|round| passed(&format!("round {round}")));
            assert!(!passed("sparse") || bytes.len() == 400_000);
            for (at, byte) in bytes.iter().enumerate() {
                let own = pattern(5, at as u64, 1)[0];
                assert!(*byte == 0 || *byte == own, "{byte:#x} at {at}");
                if durable.is_some_and(|round| written(round, at as u64)) {
                    assert_eq!(*byte, own, "lost at {at}");
                }
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_synchronous_direct_write_is_durable_when_it_returns() {
    if !have_e2fsprogs() {
        return;
    }
    for sync in [SyncMode::Data, SyncMode::All] {
        let work = |device: Arc<RecordingDevice>, fs: Filesystem| async move {
            drop(create(&fs, "file").await);
            let file = open_direct(&fs, sync).await;
            for i in 0..12_u64 {
                let offset = [i * 4096, (i / 2) * 4096][(i % 2) as usize];
                file.write_at(offset, &pattern(100 + i, offset, 4096)).await.expect("writes");
                device.mark(format!("{i}"));
            }
        };
        let recording = record(blank(Way::Unwritten), Some(4), quiet(), work).await;
        at_every_cut(&recording, 60, "file", |passed, bytes| {
            let bytes = bytes.unwrap_or_default();
            let Some(last) = (0..12).rev().find(|i: &u64| passed(&i.to_string())) else { return };
            let mut expected = vec![0_u8; bytes.len()];
            let mut allowed = expected.clone();
            for i in 0..=(last + 1).min(11) {
                let offset = [i * 4096, (i / 2) * 4096][(i % 2) as usize] as usize;
                if i <= last {
                    expected[offset..offset + 4096].copy_from_slice(&pattern(100 + i, offset as u64, 4096));
                    allowed.clone_from(&expected);
                } else if offset + 4096 <= allowed.len() {
                    allowed[offset..offset + 4096].copy_from_slice(&pattern(100 + i, offset as u64, 4096));
                }
            }
            let right =
                bytes.iter().zip(expected.iter().zip(&allowed)).all(|(byte, (a, b))| byte == a || byte == b);
            assert!(right, "not what had returned, after write {last}");
        })
        .await;
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_a_whole_write_behind() {
    if !have_e2fsprogs() {
        return;
    }
    let memory = Arc::new(MemoryDevice::from_image(make_image(16, 4096, &[], STALE)));
    let faulty = Arc::new(ext4_core::device::FaultyDevice::new(Arc::clone(&memory) as _));
    let fs = mount(Arc::clone(&faulty) as _, options().commit_interval(None)).await;
    drop(create(&fs, "file").await);
    let file = open_direct(&fs, SyncMode::None).await;
    faulty.reorder(1);
    {
        let write = file.write_direct(0, AlignedBuffer::copied(&pattern(1, 0, 65_536)).expect("memory"));
        tokio::pin!(write);
        // Until its I/O is held back.
        while faulty.held() == 0 {
            tokio::select! {
                biased;
                _ = &mut write => panic!("the device holds it back"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    // The writer has stopped waiting. A truncation waits for the write, and finds the file whole.
    let truncation = file.set_len(4096);
    let mut truncation = Box::pin(truncation);
    for _ in 0..50 {
        tokio::select! {
            biased;
            _ = &mut truncation => panic!("it did not wait for the write"),
            () = tokio::task::yield_now() => {}
        }
    }
    let driver = tokio::spawn({
        let faulty = Arc::clone(&faulty);
        async move { faulty.drive().await }
    });
    (&mut truncation).await.expect("truncates");
    drop(truncation);
    assert_eq!(content(&file).await, pattern(1, 0, 4096));
    drop(file);
    fs.unmount().await.expect("unmounts");
    driver.abort();
    assert_clean(&*memory, "after the unmount");
    recovered(memory.image(), "file", |bytes| assert_eq!(bytes, Some(pattern(1, 0, 4096)))).await;
}

/// An overwrite that is to be durable is, at every cut behind it, and the device is not flushed for it: its
/// bios carry FUA. If the device has no FUA of its own, or times are to be durable too, it is flushed
/// instead.
#[tokio::test]
async fn g_11_durable_direct_overwrites_need_no_flush() {
    if !have_e2fsprogs() {
        return;
    }
    const LEN: usize = 8192;
    let image = make_image(16, 4096, &["-J", "size=4"], STALE);
    for (sync, asked, own_fua) in [
        (SyncMode::Data, WriteFlags::empty(), true),
        (SyncMode::None, WriteFlags::DSYNC, true),
        (SyncMode::Data, WriteFlags::empty(), false),
        (SyncMode::All, WriteFlags::empty(), true),
    ] {
        let memory: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_image(image.clone()));
        let device = RecordingDevice::around(memory, image.clone());
        let device = Arc::new(if own_fua { device } else { device.without_fua() });
        let fs = mount(Arc::clone(&device) as _, quiet()).await;
        let file = create(&fs, "file").await;
        file.write_at(0, &pattern(0, 0, 16 * LEN)).await.expect("writes");
        file.sync_all().await.expect("syncs");
        drop(file);
        let file = open_direct(&fs, sync).await;
        let before = device.recording().events().len();
        for round in 1..8_u64 {
            let at = round * LEN as u64;
            let data = pattern(round, at, LEN);
            if round % 2 == 0 {
                file.write_at_with(at, &data, asked).await.expect("writes");
            } else {
                let data = AlignedBuffer::copied(&data).expect("memory");
                file.write_direct_with(at, data, asked).await.0.expect("writes");
            }
            device.mark(format!("{round}"));
        }
        let recording = device.recording();
        let (mut flushes, mut through, mut writes) = (0, 0, 0);
        for event in &recording.events()[before..] {
            let Event::Submitted { change, flags } = event else { continue };
            flushes += usize::from(*change == Change::Flush || flags.contains(BioFlags::PREFLUSH));
            let ours = |data: &[u8]| (1..8).any(|round| data == pattern(round, round * LEN as u64, LEN));
            if let Change::Write { data, .. } = change
                && ours(data)
            {
                writes += 1;
                through += usize::from(flags.contains(BioFlags::FUA));
            }
        }
        let what = format!("{sync:?}, {asked:?}, {own_fua}");
        assert_eq!(writes, 7, "{what}");
        if own_fua && sync != SyncMode::All {
            assert_eq!((flushes, through), (0, 7), "{what}");
        } else {
            assert!(flushes >= 7 && through == 0, "{what}: {flushes} flushes, {through} with FUA");
        }
        at_every_cut(&recording, 60, "file", |passed, bytes| {
            let done = (1..8_u64).rev().find(|round| passed(&round.to_string())).unwrap_or(0);
            for round in 1..=done {
                let at = round as usize * LEN;
                let bytes = bytes.expect("is there");
                assert!(bytes[at..at + LEN] == pattern(round, at as u64, LEN), "{what}: {round} of {done}");
            }
        })
        .await;
        drop(file);
        fs.unmount().await.expect("unmounts");
    }
}

/// The mapping of the data is not durable yet: FUA alone would not do.
#[tokio::test]
async fn g_11_a_durable_direct_overwrite_makes_its_blocks_durable_too() {
    if !have_e2fsprogs() {
        return;
    }
    for journal in [&["-J", "size=4"][..], &["-O", "^has_journal"]] {
        let image = make_image(16, 4096, journal, STALE);
        let recording = record(image, None, quiet(), |device, fs| async move {
            drop(create(&fs, "file").await);
            fs.sync().await.expect("syncs");
            let file = open_direct(&fs, SyncMode::None).await;
            // Allocated and extended, and not committed.
            let data = AlignedBuffer::copied(&pattern(1, 0, 8192)).expect("memory");
            file.write_direct(0, data).await.0.expect("writes");
            let data = AlignedBuffer::copied(&pattern(2, 0, 4096)).expect("memory");
            file.write_direct_with(0, data, WriteFlags::DSYNC).await.0.expect("overwrites");
            device.mark("durable");
        })
        .await;
        let durable = |cut: &ext4_core::device::simulated::Cut<'_>| cut.has_passed("durable");
        let mut seen = 0;
        for cut in recording.cuts().filter(durable) {
            // Without a journal there is no crash that e2fsck need not mend: only the bytes are looked at.
            let (_, fs) = mount_image(cut.with_none(), options()).await;
            let bytes = content(&open(&fs, "file").await).await;
            assert!(bytes.len() >= 4096 && bytes[..4096] == pattern(2, 0, 4096), "{journal:?}");
            seen += 1;
        }
        assert!(seen > 0);
    }
}
