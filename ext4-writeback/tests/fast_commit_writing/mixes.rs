//! Random operations, cut at every write: what a fast commit says stands beside what full commits said before
//! it, in every order and torn in every way, and all that replay it agree.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ext4_core::InodeNumber;
use ext4_core::device::simulated::{Image, RecordingDevice};
use ext4_test_support::settings::long_tests;
use ext4_test_support::tools::{can_mount, have, mke2fs_image};
use ext4_writeback::{Credentials, Filesystem, RenameFlags, SetAttributes};

use crate::tree::Tree;
use crate::{judge, quiet};

const ROOT: InodeNumber = InodeNumber::ROOT;

/// The tree that must be found after a sync has returned and before any other operation has begun.
struct Expectation {
    tree: Tree,
    /// Inodes with data that was written and not synced.
    dirty: BTreeSet<u64>,
}

struct Mix<'a> {
    filesystem: &'a Filesystem,
    random: fastrand::Rng,
    directories: Vec<InodeNumber>,
    /// (directory, name) → inode: regular files.
    files: BTreeMap<(usize, String), InodeNumber>,
    dirty: BTreeSet<u64>,
    next_name: u32,
}

impl<'a> Mix<'a> {
    async fn new(filesystem: &'a Filesystem, seed: u64) -> Self {
        let mut mix = Mix {
            filesystem,
            random: fastrand::Rng::with_seed(seed),
            directories: Vec::new(),
            files: BTreeMap::new(),
            dirty: BTreeSet::new(),
            next_name: 0,
        };
        // Inodes beside the journal's have a rule of their own: these stay what they are.
        for number in 0..30 {
            filesystem.create(ROOT, format!("first{number}").as_bytes(), owner()).await.unwrap();
        }
        for name in [b"one", b"two"] {
            mix.directories.push(filesystem.mkdir(ROOT, name, owner()).await.unwrap());
        }
        for _ in 0..8 {
            let inode = mix.create().await;
            mix.write(inode).await;
        }
        filesystem.sync().await.unwrap();
        mix.dirty.clear();
        mix
    }

    fn new_name(&mut self) -> (usize, String) {
        self.next_name += 1;
        (self.random.usize(0..2), format!("file{}", self.next_name))
    }

    fn any_file(&mut self) -> ((usize, String), InodeNumber) {
        let at = self.random.usize(0..self.files.len());
        let (name, inode) = self.files.iter().nth(at).unwrap();
        (name.clone(), *inode)
    }

    async fn create(&mut self) -> InodeNumber {
        let name = self.new_name();
        let directory = self.directories[name.0];
        let inode = self.filesystem.create(directory, name.1.as_bytes(), owner()).await.unwrap();
        self.files.insert(name, inode);
        inode
    }

    async fn write(&mut self, inode: InodeNumber) {
        let file = self.filesystem.open(inode).await.unwrap();
        let at = match self.random.u8(0..4) {
            0 => self.random.u64(0..=file.len()),
            1 => file.len() + self.random.u64(0..40_000),
            _ => file.len(),
        };
        let byte = self.random.u8(1..);
        let len = if self.random.u8(0..8) == 0 { 200_000 } else { self.random.usize(1..9000) };
        file.write_at(at, &vec![byte; len]).await.unwrap();
        self.dirty.insert(u64::from(inode.0));
    }

    /// One operation; the inode that it changed, if that can be synced.
    async fn step(&mut self) -> Option<InodeNumber> {
        let filesystem = self.filesystem;
        let kind = if self.files.len() < 4 { 0 } else { self.random.u8(0..40) };
        match kind {
            0..4 => {
                let inode = self.create().await;
                if self.random.bool() {
                    self.write(inode).await;
                }
                Some(inode)
            }
            4..22 => {
                let (_, inode) = self.any_file();
                self.write(inode).await;
                Some(inode)
            }
            22..26 => {
                let (_, inode) = self.any_file();
                let file = filesystem.open(inode).await.unwrap();
                let size = self.random.u64(0..=file.len() + 5000);
                file.set_len(size).await.unwrap();
                self.dirty.insert(u64::from(inode.0));
                Some(inode)
            }
            26..29 => {
                let (_, inode) = self.any_file();
                let name = self.new_name();
                filesystem.link(inode, self.directories[name.0], name.1.as_bytes()).await.unwrap();
                self.files.insert(name, inode);
                Some(inode)
            }
            29..32 => {
                let (name, inode) = self.any_file();
                filesystem.unlink(self.directories[name.0], name.1.as_bytes()).await.unwrap();
                self.files.remove(&name);
                self.files.values().any(|other| *other == inode).then_some(inode)
            }
            32..35 => {
                let (from, inode) = self.any_file();
                let to = if self.random.bool() { self.new_name() } else { self.any_file().0 };
                let (old, new) = (self.directories[from.0], self.directories[to.0]);
                let flags = RenameFlags::default();
                let done = filesystem.rename((old, from.1.as_bytes()), (new, to.1.as_bytes()), flags).await;
                done.unwrap();
                if self.files.get(&to) != Some(&inode) {
                    self.files.remove(&from);
                    self.files.insert(to, inode);
                }
                Some(inode)
            }
            35..38 => {
                let (_, inode) = self.any_file();
                let changes = SetAttributes::new().mode(self.random.u16(0..0o1000));
                filesystem.set_attributes(inode, &changes).await.unwrap();
                Some(inode)
            }
            38 => {
                let name = format!("directory{}", self.next_name);
                self.next_name += 1;
                filesystem.mkdir(self.directories[0], name.as_bytes(), owner()).await.unwrap();
                None
            }
            _ => {
                filesystem.sync().await.unwrap();
                self.dirty.clear();
                None
            }
        }
    }
}

fn owner() -> Credentials {
    Credentials { uid: 3, gid: 4, mode: 0o644 }
}

/// Everything that was synced is there, and nothing that was removed.
fn assert_expected(found: &Tree, expected: &Expectation, context: &str) {
    let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(&expected.tree), "{context}");
    for (path, facts) in &expected.tree {
        let there = &found[path];
        let name = String::from_utf8_lossy(path);
        assert_eq!((there.inode, there.links), (facts.inode, facts.links), "{context}: {name}");
        assert_eq!((there.mode, there.owner), (facts.mode, facts.owner), "{context}: {name}");
        if !expected.dirty.contains(&facts.inode) {
            assert_eq!(there, facts, "{context}: {name}");
        }
    }
}

async fn run(arguments: &[&str], seed: u64, steps: u32, most_cuts: usize) {
    let device = RecordingDevice::new(mke2fs_image(arguments, "48M"));
    // Fast commits are written another way if FUA is a flush behind the write.
    let device = Arc::new(if seed.is_multiple_of(2) { device.without_fua() } else { device });
    let filesystem = Filesystem::mount(Arc::clone(&device) as _, quiet()).await.unwrap();
    let mut mix = Mix::new(&filesystem, seed).await;
    device.mark("prepared");
    let mut expectations = BTreeMap::new();
    for step in 0..steps {
        device.mark(format!("begin {step}"));
        let Some(inode) = mix.step().await else { continue };
        if mix.random.u8(0..3) > 0 {
            filesystem.fsync(inode).await.unwrap();
            mix.dirty.remove(&u64::from(inode.0));
            device.mark(format!("synced {step}"));
            let expectation = Expectation { tree: judge::live(&filesystem).await, dirty: mix.dirty.clone() };
            expectations.insert(step, expectation);
        }
    }
    let (fast, reasons) = filesystem.fast_commit_statistics();
    println!("{arguments:?}, seed {seed}: {fast:?}");
    for (reason, count) in reasons.counts().iter().filter(|(_, count)| *count > 0) {
        println!("  {count} {}", reason.words());
    }
    assert!(fast.commits > u64::from(steps) / 8, "{fast:?}");
    drop(filesystem);
    let recording = device.recording();
    let prepared = recording.position_of("prepared").unwrap();
    let cuts: Vec<_> = recording.cuts().filter(|cut| cut.position() > prepared).collect();
    let (mut tried, mut given_up, mut compared) = (0, 0, 0);
    for (number, cut) in cuts.iter().enumerate().step_by(cuts.len().div_ceil(most_cuts)) {
        let image: Image = match number % 3 {
            0 => cut.with_all(),
            1 => cut.with_none(),
            _ => cut.variant(number as u64),
        };
        let context = format!("{arguments:?}, seed {seed}, cut at event {}", cut.position());
        let last = cut.marks().last().unwrap_or_default().to_owned();
        let (found, all) = judge::assert_agreed(&image, &context).await;
        tried += 1;
        given_up += usize::from(!all);
        let synced = last.strip_prefix("synced ").and_then(|step| step.parse::<u32>().ok());
        if let Some(expected) = synced.and_then(|step| expectations.get(&step)) {
            assert_expected(&found, expected, &format!("{context}, after {last}"));
            compared += 1;
        }
    }
    println!(
        "  {tried} cuts, {given_up} of them between a full commit and the end of its fast commits, \
         {compared} right behind a sync"
    );
    assert!(tried >= most_cuts / 2 && compared > 0, "{tried} cuts, {compared} right behind a sync");
    assert!(given_up * 5 < tried, "e2fsck gave {given_up} of {tried} up");
}

async fn seeds(arguments: &[&str], first: u64) {
    if !have(&["mkfs.ext4", "e2fsck", "getfattr"]) || !can_mount() {
        return;
    }
    let (count, steps, cuts) = if long_tests() { (10, 150, 400) } else { (2, 80, 40) };
    for seed in first..first + count {
        run(arguments, seed, steps, cuts).await;
    }
}

#[tokio::test]
async fn all_agree_after_every_cut_through_random_operations_4k() {
    seeds(&["-O", "fast_commit", "-b", "4096"], 100).await;
}

#[tokio::test]
async fn all_agree_after_every_cut_through_random_operations_1k() {
    seeds(&["-O", "fast_commit,orphan_file", "-b", "1024"], 200).await;
}
