//! Power cuts at every moment: what a file shows after recovery.
//!
//! The device is full of 0xaa before mke2fs, and everything written is odd: a byte 0xaa in a file is another
//! file's.

use std::cell::Cell;
use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;

use super::common::*;
use super::cuts::{at_every_cut, seeds};
use super::way::Way;
use ext4_core::device::simulated::{FaultyDevice, Image, Recording, RecordingDevice};
use ext4_core::device::{Bio, BlockDevice, Geometry, MemoryDevice, Operation, Plug};
use ext4_writeback::{File, Filesystem, MountOptions};

pub const STALE: u8 = 0xaa;

/// No timers: what reaches the device is what the test asked for. (A commit interval of an hour: with none at
/// all the writers would write back themselves.)
pub fn quiet() -> MountOptions {
    let hour = std::time::Duration::from_secs(3600);
    options().commit_interval(Some(hour))
}

/// Runs `work` on a recorded device over `image`, which reorders what is in flight, and drops the file system
/// as a crash would.
pub async fn record<F: Future<Output = ()>>(
    image: Image,
    seed: Option<u64>,
    options: MountOptions,
    work: impl FnOnce(Arc<RecordingDevice>, Filesystem) -> F,
) -> Recording {
    record_failing(image, seed, options, |device, _, fs| work(device, fs)).await
}

/// [`record`] for work that makes the device fail.
pub async fn record_failing<F: Future<Output = ()>>(
    image: Image,
    seed: Option<u64>,
    options: MountOptions,
    work: impl FnOnce(Arc<RecordingDevice>, Arc<FaultyDevice>, Filesystem) -> F,
) -> Recording {
    let memory: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_image(image.clone()));
    let faulty = Arc::new(FaultyDevice::new(memory));
    if let Some(seed) = seed {
        faulty.reorder(seed);
    }
    let driver = tokio::spawn({
        let faulty = Arc::clone(&faulty);
        async move { faulty.drive().await }
    });
    let device = Arc::new(RecordingDevice::around(Arc::clone(&faulty) as _, image));
    let fs = mount(Arc::clone(&device) as _, options).await;
    work(Arc::clone(&device), faulty, fs).await;
    driver.abort();
    device.recording()
}

/// Commits all the time, as fsyncs of other tasks would: whatever is in the running transaction becomes
/// durable between the completions of the data.
pub async fn commits(fs: &Filesystem) {
    for i in 0.. {
        drop(create(fs, &format!("other{i}")).await);
        fs.fsync(ext4_core::InodeNumber::ROOT).await.expect("commits");
    }
}

/// Recovers `image` and hands its file to `check`; e2fsck judges what is left.
pub async fn recovered(image: Image, name: &str, check: impl FnOnce(Option<Vec<u8>>)) {
    let (device, fs) = mount_image(image, options()).await;
    match fs.lookup(ext4_core::InodeNumber::ROOT, name.as_bytes()).await {
        Ok(number) => {
            let file = fs.open(number).await.expect("opens");
            let bytes = content(&file).await;
            drop(file);
            check(Some(bytes));
        }
        Err(_) => check(None),
    }
    finish(&device, fs).await;
}

pub fn blank(way: Way) -> Image {
    way.image(16, 4096, &["-J", "size=4"], STALE)
}

#[tokio::test]
async fn g_3_g_11_appended_and_synced_data_is_there_without_a_gap() {
    appends_and_syncs(Way::Unwritten).await;
}

pub async fn appends_and_syncs(way: Way) {
    if !have_e2fsprogs() {
        return;
    }
    let mut random = fastrand::Rng::with_seed(3);
    let lengths: Vec<usize> = (0..25).map(|_| random.usize(1..20_000)).collect();
    let ends: Vec<usize> = lengths
        .iter()
        .scan(0, |end, len| {
            *end += len;
            Some(*end)
        })
        .collect();
    let work = {
        let (lengths, ends) = (lengths.clone(), ends.clone());
        |device: Arc<RecordingDevice>, fs: Filesystem| async move {
            let file = create(&fs, "file").await;
            file.sync_all().await.expect("syncs");
            for (i, (len, end)) in lengths.iter().zip(&ends).enumerate() {
                let start = end - len;
                file.write_at(start as u64, &pattern(3, start as u64, *len)).await.expect("writes");
                match i % 3 {
                    0 => file.sync_all().await.expect("syncs"),
                    1 => file.sync_data().await.expect("syncs"),
                    _ => {
                        file.start_writeback().await.expect("starts");
                        continue;
                    }
                }
                device.mark(format!("{end}"));
            }
        }
    };
    let recording = record(blank(way), Some(5), way.mounted(quiet()), work).await;
    at_every_cut(&recording, 60, "file", |passed, bytes| {
        let durable = ends.iter().copied().filter(|end| passed(&end.to_string())).max().unwrap_or(0);
        let bytes = bytes.unwrap_or_default();
        assert!(bytes.len() >= durable, "{} bytes of {durable}", bytes.len());
        assert!(bytes == pattern(3, 0, bytes.len()), "a gap or something stale below {}", bytes.len());
    })
    .await;
}

#[tokio::test]
async fn g_4_strict_the_size_moves_over_completed_data_only() {
    scattered_appends(Way::Unwritten).await;
}

pub async fn scattered_appends(way: Way) {
    if !have_e2fsprogs() {
        return;
    }
    for seed in seeds(&[31, 32, 33]) {
        let work = |_device: Arc<RecordingDevice>, fs: Filesystem| async move {
            let file = create(&fs, "file").await;
            // Every other block, so that each is an ioend.
            for i in 0..40 {
                file.write_at(i * 8192, &pattern(3, i * 8192, 4096)).await.expect("writes");
            }
            tokio::select! {
                () = commits(&fs) => {}
                result = file.sync_all() => result.expect("syncs"),
            }
            assert!(fs.counters().ioends >= 40, "{:?}", fs.counters());
            assert!(fs.counters().parked > 0, "{:?}", fs.counters());
        };
        let recording = record(blank(way), Some(seed), way.mounted(quiet()), work).await;
        at_every_cut(&recording, 60, "file", |_, bytes| {
            for (at, byte) in bytes.unwrap_or_default().iter().enumerate() {
                let expected = if (at / 4096).is_multiple_of(2) { pattern(3, at as u64, 1)[0] } else { 0 };
                assert_eq!(*byte, expected, "at {at}");
            }
        })
        .await;
    }
}

/// Holds writes to some bytes back until they are let go.
#[derive(Debug)]
pub struct Holding {
    inner: Arc<MemoryDevice>,
    range: std::ops::Range<u64>,
    held: std::sync::Mutex<Option<Vec<Bio>>>,
}

impl Holding {
    /// Over `inner`; writes that touch bytes `range` are held from now on.
    pub fn new(inner: Arc<MemoryDevice>, range: std::ops::Range<u64>) -> Self {
        Self { inner, range, held: std::sync::Mutex::new(Some(Vec::new())) }
    }

    /// Holds again, after a release.
    pub fn hold(&self) {
        self.held.lock().expect("no panic").get_or_insert_default();
    }

    /// How many writes it holds.
    pub fn holds(&self) -> usize {
        self.held.lock().expect("no panic").as_ref().map_or(0, Vec::len)
    }

    pub fn release(&self) {
        let held = self.held.lock().expect("no panic").take().unwrap_or_default();
        self.inner.submit(held);
    }
}

impl BlockDevice for Holding {
    fn geometry(&self) -> &Geometry {
        self.inner.geometry()
    }

    fn submit(&self, plug: Plug) {
        let mut held = self.held.lock().expect("no panic");
        let (mut now, mut later) = (Plug::new(), Plug::new());
        for bio in plug {
            let touches = bio.operation == Operation::Write
                && bio.offset < self.range.end
                && self.range.start < bio.offset + bio.len;
            if touches && held.is_some() { later.push(bio) } else { now.push(bio) }
        }
        if let Some(held) = held.as_mut() {
            held.extend(later);
        }
        drop(held);
        self.inner.submit(now);
    }
}

#[tokio::test]
async fn k_05_the_size_waits_for_the_zeroed_tail() {
    if !have_e2fsprogs() {
        return;
    }
    let (image, tail) = with_planted_tail(Way::Unwritten).await;
    let memory = Arc::new(MemoryDevice::from_image(image));
    let device = Arc::new(Holding::new(Arc::clone(&memory), tail..tail + 4096));
    let fs = mount(Arc::clone(&device) as _, quiet()).await;
    let file = open(&fs, "file").await;
    for at in [6000, 10_000, 20_000] {
        file.write_at(at, &pattern(7, at, 4000)).await.expect("writes");
        file.start_writeback().await.expect("starts");
        // The data is on the device, its conversion waits; others commit.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        drop(create(&fs, &format!("other{at}")).await);
        fs.fsync(ext4_core::InodeNumber::ROOT).await.expect("commits");
        recovered(memory.image(), "file", |bytes| assert_eq!(bytes.expect("is there").len(), 2000)).await;
    }
    assert!(fs.counters().parked > 0);
    device.release();
    file.sync_all().await.expect("syncs");
    recovered(memory.image(), "file", |bytes| {
        let bytes = bytes.expect("is there");
        assert_eq!(bytes.len(), 24_000);
        assert!(bytes[2000..6000].iter().all(|byte| *byte == 0));
    })
    .await;
    drop(file);
    finish(&memory, fs).await;
}

/// A file of 2,000 bytes in one block, with a pattern planted behind its end on the device; and the byte of
/// the device where the block lies.
pub async fn with_planted_tail(way: Way) -> (Image, u64) {
    let (device, fs) = mount_image(blank(way), way.mounted(quiet())).await;
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(7, 0, 2000)).await.expect("writes");
    file.sync_all().await.expect("syncs");
    let extents = file.extents().await.expect("maps");
    let ext4_core::meta::extent_tree::MappingState::Written(block) = extents[0].state else {
        panic!("{extents:?}");
    };
    drop(file);
    let mut image = finish(&device, fs).await;
    image.fill(block.0 * 4096 + 2000, 2096, STALE);
    (image, block.0 * 4096)
}

#[tokio::test]
async fn k_02_k_03_k_04_k_57_what_lies_behind_the_end_never_shows() {
    what_lies_behind_the_end(Way::Unwritten).await;
}

pub async fn what_lies_behind_the_end(way: Way) {
    if !have_e2fsprogs() {
        return;
    }
    let (planted, _) = with_planted_tail(way).await;
    for case in 0..6 {
        for seed in seeds(&[11, 12, 13]) {
            let work = |_device: Arc<RecordingDevice>, fs: Filesystem| async move {
                let file = open(&fs, "file").await;
                let write = |at: u64, len: usize| {
                    let file = &file;
                    async move { file.write_at(at, &pattern(7, at, len)).await.expect("writes") }
                };
                match case {
                    // A gap inside the block.
                    0 => drop(write(3000, 10).await),
                    // Gaps past it, written back in between.
                    1 => {
                        for at in [6000, 10_000, 14_000] {
                            write(at, 1).await;
                            file.start_writeback().await.expect("starts");
                        }
                    }
                    // Contiguous over the block's end.
                    2 => drop(write(2000, 6000).await),
                    3 => file.set_len(3000).await.expect("extends"),
                    4 => {
                        file.set_len(9000).await.expect("extends");
                        write(20_000, 100).await;
                    }
                    _ => {
                        file.set_len(1000).await.expect("cuts");
                        file.set_len(5000).await.expect("extends");
                        write(2000, 1).await;
                    }
                }
                file.start_writeback().await.expect("starts");
                write(30_000, 50).await;
                tokio::select! {
                    () = commits(&fs) => {}
                    result = file.sync_all() => result.expect("syncs"),
                }
            };
            let recording = record(planted.clone(), Some(seed), way.mounted(quiet()), work).await;
            at_every_cut(&recording, 40, "file", |_, bytes| {
                let bytes = bytes.expect("it was there before");
                for (at, byte) in bytes.iter().enumerate() {
                    let own = pattern(7, at as u64, 1)[0];
                    assert!(*byte == 0 || *byte == own, "case {case}: {byte:#x} at {at} of {}", bytes.len());
                    assert!(at >= 1000 || *byte == own, "case {case}: lost {at}");
                }
            })
            .await;
        }
    }
}

#[tokio::test]
async fn g_7_g_8_what_was_cut_off_never_comes_back() {
    what_was_cut_off(Way::Unwritten).await;
}

pub async fn what_was_cut_off(way: Way) {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(blank(way), way.mounted(quiet())).await;
    let file = create(&fs, "file").await;
    // Many extents, so that freeing takes several steps.
    for i in (0..400).rev() {
        file.write_at(i * 8192, &pattern(9, i * 8192, 4096)).await.expect("writes");
        if i % 20 == 0 {
            file.sync_all().await.expect("syncs");
        }
    }
    drop(file);
    let image = finish(&device, fs).await;
    let full = 399 * 8192 + 4096;
    for seed in seeds(&[1]) {
        let work = |_device: Arc<RecordingDevice>, fs: Filesystem| async move {
            let file = open(&fs, "file").await;
            let cutting = async {
                file.set_len(100_500).await.expect("cuts");
                file.set_len(full as u64).await.expect("extends");
                file.sync_all().await.expect("syncs");
                file.set_len(8192).await.expect("cuts");
                fs.sync().await.expect("syncs");
            };
            tokio::select! {
                () = commits(&fs) => {}
                () = cutting => {}
            }
        };
        let recording = record(image.clone(), Some(seed), way.mounted(quiet()), work).await;
        at_every_cut(&recording, 40, "file", |_, bytes| {
            let bytes = bytes.expect("it was there before");
            assert!([full as usize, 100_500, 8192].contains(&bytes.len()), "{}", bytes.len());
            let expected =
                |at: usize| if (at / 4096).is_multiple_of(2) { pattern(9, at as u64, 1)[0] } else { 0 };
            let tail = bytes.get(100_500..).unwrap_or_default();
            // The rest of the block of the cut is zeroed on the device before the new size is there, as in
            // the kernel.
            let block = tail.len().min(102_400 - 100_500);
            let cut = tail[block..].iter().all(|byte| *byte == 0);
            let whole = tail.iter().enumerate().skip(block).all(|(i, byte)| *byte == expected(100_500 + i));
            assert!(cut || whole, "part of what was cut off");
            assert!(
                tail[..block]
                    .iter()
                    .enumerate()
                    .all(|(i, byte)| *byte == 0 || *byte == expected(100_500 + i))
            );
            assert!(bytes.iter().take(100_500).enumerate().all(|(at, byte)| *byte == expected(at)));
        })
        .await;
    }
}

pub async fn random_workload(way: Way, seed: u64, delayed_allocation: bool) {
    println!("seed {seed}, {way:?}");
    let options = way.mounted(quiet().delayed_allocation(delayed_allocation));
    let mut history: Vec<HashSet<u8>> = vec![HashSet::from([0]); 300_000];
    let mut random = fastrand::Rng::with_seed(seed);
    // Chosen before, so that the check knows them.
    let steps: Vec<(u8, u64, usize)> =
        (0..80).map(|_| (random.u8(0..12), random.u64(0..200_000), random.usize(1..40_000))).collect();
    let mut synced: Vec<(String, Vec<u8>)> = Vec::new();
    let mut model: Vec<u8> = Vec::new();
    for (i, (kind, at, len)) in steps.iter().enumerate() {
        match kind {
            0..7 => {
                let start = if *kind < 3 { model.len().min(200_000) } else { *at as usize };
                let data = pattern(i as u64, start as u64, *len);
                model.resize(model.len().max(start + len), 0);
                model[start..start + len].copy_from_slice(&data);
                for (byte, seen) in data.iter().zip(&mut history[start..]) {
                    seen.insert(*byte);
                }
            }
            7 => model.resize(*at as usize, 0),
            8 | 9 => synced.push((format!("sync {i}"), model.clone())),
            _ => {}
        }
    }
    let work = {
        let steps = steps.clone();
        |device: Arc<RecordingDevice>, fs: Filesystem| async move {
            let file: File = create(&fs, "file").await;
            for (i, (kind, at, len)) in steps.iter().enumerate() {
                match kind {
                    0..7 => {
                        let start = if *kind < 3 { file.len().min(200_000) } else { *at };
                        let data = pattern(i as u64, start, *len);
                        file.write_at(start, &data).await.expect("writes");
                    }
                    7 => file.set_len(*at).await.expect("truncates"),
                    8 | 9 => {
                        file.sync_data().await.expect("syncs");
                        device.mark(format!("sync {i}"));
                    }
                    10 => file.start_writeback().await.expect("starts"),
                    // The commit of another caller's fsync.
                    _ => create(&fs, &format!("other{i}")).await.sync_all().await.expect("syncs"),
                }
                device.mark(format!("done {i}"));
            }
        }
    };
    let image = way.image(16, 1024, &["-J", "size=4"], STALE);
    let recording = record(image, Some(seed), options, work).await;
    let step_after = |name: &str| {
        let i: usize = name.trim_start_matches("sync ").parse().expect("a number");
        format!("done {}", i + 1)
    };
    let compared = Cell::new(0);
    at_every_cut(&recording, 60, "file", |passed, bytes| {
        let bytes = bytes.unwrap_or_default();
        for (at, byte) in bytes.iter().enumerate() {
            assert!(history[at].contains(byte), "{byte:#x} at {at} of {} was never written", bytes.len());
        }
        if let Some((name, model)) = synced.iter().rev().find(|(name, _)| passed(name))
            && !passed(&step_after(name))
            && steps.get(name[5..].parse::<usize>().expect("a number") + 1).is_none_or(|(kind, ..)| *kind > 7)
        {
            assert!(bytes == *model, "not what was synced at {name}");
            compared.set(compared.get() + 1);
        }
    })
    .await;
    println!("{} moments right behind a sync", compared.get());
}

#[tokio::test]
async fn g_1_every_byte_is_zero_or_was_written_there() {
    if !have_e2fsprogs() {
        return;
    }
    for seed in [21, 22] {
        random_workload(Way::Unwritten, seed, true).await;
    }
}

#[tokio::test]
async fn g_17_the_same_without_delayed_allocation() {
    if !have_e2fsprogs() {
        return;
    }
    random_workload(Way::Unwritten, 23, false).await;
}

/// Appends and overwrites, each made durable by a fast commit: after each cut a prefix of what was
/// written is there, and at least what had been synced.
pub async fn fast_commits(way: Way, seed: u64, without_fua: bool) {
    println!("seed {seed}, {way:?}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut steps, mut states): (Vec<(u64, usize)>, _) = (Vec::new(), vec![Vec::new()]);
    for i in 0..40 {
        let mut model: Vec<u8> = states[i].clone();
        // One hole, and no more extents than the inode holds.
        let at = if i == 0 { 20_000 } else { random.u64(model.len() as u64 / 2..=model.len() as u64) };
        let len = random.usize(1..9000);
        steps.push((at, len));
        let end = at as usize + len;
        model.resize(model.len().max(end), 0);
        model[at as usize..end].copy_from_slice(&pattern(i as u64, at, len));
        states.push(model);
    }
    let image = way.image(16, 1024, &["-J", "size=4", "-O", "fast_commit"], STALE);
    let device = RecordingDevice::new(image);
    let device = Arc::new(if without_fua { device.without_fua() } else { device });
    let fs = mount(Arc::clone(&device) as _, way.mounted(quiet())).await;
    let file = create(&fs, "file").await;
    fs.sync().await.expect("syncs");
    device.mark("made");
    for (i, (at, len)) in steps.iter().enumerate() {
        file.write_at(*at, &pattern(i as u64, *at, *len)).await.expect("writes");
        if i % 2 == 0 { file.sync_all().await } else { file.sync_data().await }.expect("syncs");
        device.mark(format!("sync {i}"));
    }
    let (statistics, reasons) = fs.fast_commit_statistics();
    assert!(statistics.commits > 20, "{statistics:?} {reasons:?}");
    drop((file, fs));
    let recording = device.recording();
    at_every_cut(&recording, 80, "file", |passed, bytes| {
        let synced = (0..steps.len()).rev().find(|i| passed(&format!("sync {i}"))).map_or(0, |i| i + 1);
        let Some(bytes) = bytes else { return assert!(!passed("made")) };
        // A write is in place of another while it is in flight: block by block it is the synced state or the
        // next.
        let (now, next) = (&states[synced], states.get(synced + 1).unwrap_or(&states[synced]));
        assert!(bytes.len() >= now.len(), "{} bytes of {}", bytes.len(), now.len());
        for (at, byte) in bytes.iter().enumerate() {
            let ok = now.get(at) == Some(byte) || next.get(at) == Some(byte);
            assert!(ok, "{byte:#x} at {at} of {} after {synced} writes", bytes.len());
        }
    })
    .await;
}

#[tokio::test]
async fn an_append_and_fsync_takes_two_flushes_at_most() {
    if !have_e2fsprogs() {
        return;
    }
    let work = |device: Arc<RecordingDevice>, fs: Filesystem| async move {
        let file = create(&fs, "file").await;
        file.sync_all().await.expect("syncs");
        let before = device.recording().flushes();
        for i in 0..10 {
            file.write_at(i * 4096, &pattern(1, 0, 4096)).await.expect("writes");
            file.sync_all().await.expect("syncs");
        }
        assert!(device.recording().flushes() - before <= 20, "{}", device.recording().flushes() - before);
    };
    record(blank(Way::Unwritten), None, quiet(), work).await;
}
