//! G-19 with everything that can be done to several files and their names: what a replay of fast commits
//! shows is what full commits show.
//!
//! The same steps run on a file system with fast commits and on one without. A step ends with a sync: from
//! its return on, until the next step begins, recovery has to find exactly what was there, in both.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::common::*;
use super::crash::{STALE, quiet, record};
use super::cuts::judge;
use ext4_core::InodeNumber;
use ext4_core::device::AlignedBuffer;
use ext4_core::device::simulated::{Image, RecordingDevice};
use ext4_writeback::{Credentials, FallocateMode, File, Filesystem, RenameFlags};

const ROOT: InodeNumber = InodeNumber::ROOT;
const BLOCK: usize = 1024;
const STEPS: usize = 60;

/// Name → content.
type Files = BTreeMap<String, Vec<u8>>;

/// The steps, done to a file system and to arrays of bytes.
struct Steps<'a> {
    fs: &'a Filesystem,
    random: fastrand::Rng,
    files: Files,
    next: u64,
}

impl Steps<'_> {
    fn any(&mut self) -> String {
        let at = self.random.usize(0..self.files.len());
        self.files.keys().nth(at).expect("one of them").clone()
    }

    fn new_name(&mut self) -> String {
        self.next += 1;
        format!("file{}", self.next)
    }

    fn put(&mut self, name: &str, at: usize, data: &[u8]) {
        let bytes = self.files.get_mut(name).expect("is there");
        bytes.resize(bytes.len().max(at + data.len()), 0);
        bytes[at..at + data.len()].copy_from_slice(data);
    }

    async fn sync(&mut self, file: &File) {
        if self.random.bool() { file.sync_all().await } else { file.sync_data().await }.expect("syncs");
    }

    async fn fallocate(&mut self, name: &str, file: &File) {
        let len = self.files[name].len();
        let (at, count) = (self.random.usize(0..=len), self.random.usize(1..12_000));
        let (whole, blocks) = (at - at % BLOCK, count.next_multiple_of(BLOCK));
        let bytes = self.files.get_mut(name).expect("is there");
        let (mode, at, count) = match self.random.u8(0..6) {
            0 => (FallocateMode::PunchHole, at, count),
            1 => (FallocateMode::ZeroRange, at, count),
            2 => (FallocateMode::Allocate, at, count),
            3 => (FallocateMode::AllocateKeepSize, at, count),
            4 if whole + blocks < len => (FallocateMode::CollapseRange, whole, blocks),
            _ if whole < len => (FallocateMode::InsertRange, whole, blocks),
            _ => (FallocateMode::PunchHole, at, count),
        };
        let end = at + count;
        match mode {
            FallocateMode::PunchHole => bytes[at.min(len)..end.min(len)].fill(0),
            FallocateMode::ZeroRange => {
                bytes[at..end.min(len)].fill(0);
                bytes.resize(len.max(end), 0);
            }
            FallocateMode::Allocate => bytes.resize(len.max(end), 0),
            FallocateMode::CollapseRange => drop(bytes.drain(at..end)),
            FallocateMode::InsertRange => drop(bytes.splice(at..at, std::iter::repeat_n(0, count))),
            FallocateMode::AllocateKeepSize | FallocateMode::ZeroRangeKeepSize => {}
        }
        file.fallocate(mode, at as u64, count as u64).await.expect("changes");
    }

    /// One change, durable when it returns.
    async fn step(&mut self) {
        let kind = if self.files.len() < 3 { 0 } else { self.random.u8(0..20) };
        self.next += 1;
        let seed = self.next;
        let count = self.random.usize(1..9000);
        if kind < 2 {
            let name = self.new_name();
            let owner = Credentials { mode: 0o644, ..Credentials::default() };
            let number = self.fs.create(ROOT, name.as_bytes(), owner).await.expect("creates");
            let file = self.fs.open(number).await.expect("opens");
            self.files.insert(name.clone(), Vec::new());
            let data = pattern(seed, 0, count);
            self.put(&name, 0, &data);
            file.write_at(0, &data).await.expect("writes");
            file.sync_all().await.expect("syncs");
            return;
        }
        let name = self.any();
        let file = open(self.fs, &name).await;
        let len = self.files[&name].len();
        match kind {
            2..7 => {
                let at = if self.random.bool() { len } else { self.random.usize(0..len + 20_000) };
                let data = pattern(seed, at as u64, count);
                self.put(&name, at, &data);
                file.write_at(at as u64, &data).await.expect("writes");
            }
            7 => {
                let at = self.random.usize(0..=len) & !511;
                let data = pattern(seed, at as u64, count.next_multiple_of(512));
                self.put(&name, at, &data);
                let buffer = AlignedBuffer::copied(&data).expect("memory");
                file.write_direct(at as u64, buffer).await.0.expect("writes");
            }
            8 if len > 0 => {
                let at = self.random.usize(0..len);
                let mut mapped = file.map_write(at as u64, count).await.expect("maps");
                let data = pattern(seed, at as u64, mapped.len());
                mapped.copy_from_slice(&data);
                self.put(&name, at, &data);
                mapped.commit().await.expect("stores");
            }
            9..11 => {
                let size = self.random.usize(0..len + 5000);
                self.files.get_mut(&name).expect("is there").resize(size, 0);
                file.set_len(size as u64).await.expect("cuts");
            }
            11..15 => self.fallocate(&name, &file).await,
            15..17 => {
                let to = if self.random.bool() { self.any() } else { self.new_name() };
                let number = self.fs.lookup(ROOT, name.as_bytes()).await.expect("is there");
                if to != name {
                    let flags = RenameFlags::default();
                    let done = self.fs.rename((ROOT, name.as_bytes()), (ROOT, to.as_bytes()), flags).await;
                    done.expect("renames");
                    let bytes = self.files.remove(&name).expect("is there");
                    self.files.insert(to, bytes);
                }
                self.fs.fsync(number).await.expect("syncs");
                return;
            }
            17 => {
                let to = self.any();
                let source = open(self.fs, &to).await;
                if to != name {
                    let data = self.files[&to].clone();
                    self.put(&name, 0, &data);
                    let copied = file.copy_file_range(&source, 0, 0, data.len() as u64).await;
                    assert_eq!(copied.expect("copies"), data.len() as u64);
                }
            }
            _ => {
                drop(file);
                self.fs.unlink(ROOT, name.as_bytes()).await.expect("goes");
                self.files.remove(&name);
                self.fs.sync().await.expect("syncs");
                return;
            }
        }
        self.sync(&file).await;
    }
}

/// The files that recovery finds.
async fn found(image: Image) -> Files {
    let (device, fs) = mount_image(image, options()).await;
    let mut files = Files::new();
    for entry in fs.readdir(ROOT, 0, 1000).await.expect("reads") {
        let name = String::from_utf8(entry.name.to_vec()).expect("plain");
        if name.starts_with("file") {
            let bytes = content(&open(&fs, &name).await).await;
            files.insert(name, bytes);
        }
    }
    finish(&device, fs).await;
    files
}

/// `found` is `old`, or that with the step to `new` done, or done in part.
fn check(found: &Files, old: &Files, new: &Files, context: &str) {
    let names: BTreeSet<&String> = [found, old, new].into_iter().flatten().map(|(name, _)| name).collect();
    for name in names {
        let (there, before, after) = (found.get(name), old.get(name), new.get(name));
        if before == after {
            assert!(there == before, "{context}: {name} was not touched");
            continue;
        }
        let Some(there) = there else {
            assert!(before.is_none() || after.is_none(), "{context}: {name} is gone");
            continue;
        };
        let empty = Vec::new();
        let (before, after) = (before.unwrap_or(&empty), after.unwrap_or(&empty));
        let sizes = before.len().min(after.len())..=before.len().max(after.len());
        assert!(sizes.contains(&there.len()), "{context}: {name}: {} of {sizes:?}", there.len());
        for (at, byte) in there.iter().enumerate() {
            let (old, new) = (before.get(at), after.get(at));
            let right = [old, new].contains(&Some(byte)) || *byte == 0 && old != new;
            assert!(right, "{context}: {name}: {byte:#x} at {at} of {}", there.len());
        }
    }
}

/// Runs the steps of `seed` with a power cut at every moment. Returns the files after each step.
async fn run(features: &[&str], seed: u64) -> Vec<Files> {
    let image = make_image(16, BLOCK as u32, &[&["-J", "size=4"][..], features].concat(), STALE);
    let states = RefCell::new(Vec::new());
    let kept = &states;
    let work = |device: Arc<RecordingDevice>, fs: Filesystem| async move {
        // Inodes near the journal's are never in a fast commit.
        for i in 0..16 {
            drop(create(&fs, &format!("neighbour{i}")).await);
        }
        fs.sync().await.expect("syncs");
        let random = fastrand::Rng::with_seed(seed);
        let mut steps = Steps { fs: &fs, random, files: Files::new(), next: 0 };
        kept.borrow_mut().push(Files::new());
        for _ in 0..STEPS {
            device.mark("begin");
            steps.step().await;
            kept.borrow_mut().push(steps.files.clone());
            device.mark("done");
        }
        let (statistics, reasons) = fs.fast_commit_statistics();
        println!("{features:?}: {statistics:?} {reasons:?}");
        assert!(features.is_empty() || statistics.commits > STEPS as u64 / 4, "{statistics:?} {reasons:?}");
    };
    let recording = record(image, Some(seed), quiet(), work).await;
    let states = states.into_inner();
    judge(&recording, 80, found, |cut, found| {
        let done = cut.marks().filter(|mark| *mark == "done").count();
        let begun = cut.marks().last() == Some("begin");
        let new = if begun { &states[done + 1] } else { &states[done] };
        let context = format!("{features:?}, seed {seed}, event {}, {done} steps", cut.position());
        check(found, &states[done], new, &context);
    })
    .await;
    states
}

#[tokio::test]
async fn g_19_a_replay_of_everything_shows_what_full_commits_show() {
    if !have_e2fsprogs() {
        return;
    }
    for seed in 193..193 + if long_tests() { 6 } else { 2 } {
        let fast = run(&["-O", "fast_commit"], seed).await;
        let full = run(&[], seed).await;
        assert!(fast == full, "seed {seed}: the steps were others");
    }
}
