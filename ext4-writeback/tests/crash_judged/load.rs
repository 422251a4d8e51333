//! Work on a file system while a device records it, and what that work was promised.
//!
//! The work is one task's: every operation on names, files and attributes, with an fsync or a sync now and
//! then. A second task commits at moments of its own, so that transactions end in the middle of the first
//! one's operations. All of it runs on the simulated scheduler over a device that reorders what is in flight:
//! one seed is one recording.
//!
//! A promise is what a call that returned made durable: the whole tree (sync) or one file (fsync), as it was
//! shown at that moment. It holds for every path that no later operation has begun to touch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ext4_core::InodeNumber;
use ext4_core::device::simulated::{Cut, FaultyDevice, Image, Recording, RecordingDevice};
use ext4_core::device::{BlockDevice, MemoryDevice};
use ext4_core::environment::Simulation;
use ext4_writeback::{Credentials, File, Filesystem, MountOptions, RenameFlags, SetAttributes, SetMode};

use crate::tree::{Facts, Tree, of_filesystem};

/// The directory of the second task, which is promised nothing.
const OTHERS: &[u8] = b"others";

/// What a sync or an fsync made durable.
#[derive(Clone)]
enum Promise {
    Everything(Tree),
    OneFile(Vec<u8>, Facts),
}

/// What was promised and touched, by the number of the operation.
#[derive(Default)]
pub struct Promises {
    promises: Vec<(usize, Promise)>,
    touched: Vec<Vec<Vec<u8>>>,
}

impl Promises {
    /// Fails the test if `tree`, found after a power cut at `cut`, does not hold what had been promised
    /// before. Returns how many paths were compared.
    pub fn check(&self, cut: &Moment, tree: &Tree, context: &str) -> usize {
        let mut compared = 0;
        let touched_since = |path: &[u8], since: usize| {
            self.touched[since..cut.begun.max(since)].iter().flatten().any(|touched| {
                path == &touched[..]
                    || path.strip_prefix(&touched[..]).is_some_and(|rest| rest.starts_with(b"/"))
            })
        };
        let show = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        for (at, promise) in &self.promises[..cut.promised] {
            match promise {
                Promise::Everything(promised) => {
                    for path in promised.keys().chain(tree.keys()) {
                        if path.starts_with(OTHERS) || touched_since(path, *at) {
                            continue;
                        }
                        compared += 1;
                        let (found, promised) = (tree.get(path), promised.get(path));
                        assert_eq!(
                            found.map(durable),
                            promised.map(durable),
                            "{context}: {} is not as operation {at} synced it",
                            show(path)
                        );
                    }
                }
                Promise::OneFile(path, promised) if !touched_since(path, *at) => {
                    compared += 1;
                    assert_eq!(
                        tree.get(path).map(durable),
                        Some(durable(promised)),
                        "{context}: {} is not as operation {at} fsynced it",
                        show(path)
                    );
                }
                Promise::OneFile(..) => {}
            }
        }
        compared
    }
}

/// Those of a path's facts that no other operation changes: a directory's size and links follow its entries,
/// a file's links its other names, and a size in blocks includes what is allocated past the end.
fn durable(facts: &Facts) -> Facts {
    let directory = facts.mode & 0o170_000 == 0o040_000;
    let size = if directory { 0 } else { facts.size };
    Facts { links: 0, size, sectors: 0, mtime: (0, 0), ctime: (0, 0), ..facts.clone() }
}

/// How far the work had come when the power went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    pub position: usize,
    begun: usize,
    promised: usize,
}

impl Moment {
    pub fn of(cut: &Cut<'_>) -> Self {
        let (mut begun, mut promised) = (0, 0);
        for mark in cut.marks() {
            match mark {
                "operation" => begun += 1,
                _ => promised += 1,
            }
        }
        Self { position: cut.position(), begun, promised }
    }
}

/// Does `operations` operations on `image` as `seed` decides; the file system is left as a crash would.
pub fn record(image: Image, seed: u64, operations: usize) -> (Recording, Promises) {
    let world = Simulation::new(seed);
    let memory: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_image(image.clone()));
    let faulty = Arc::new(FaultyDevice::new(memory));
    faulty.reorder(seed);
    drop(world.spawn("the device", {
        let faulty = Arc::clone(&faulty);
        async move { faulty.drive().await }
    }));
    let device = RecordingDevice::around(faulty, image);
    // If FUA is a flush, commits go another way.
    let device = Arc::new(if seed.is_multiple_of(2) { device } else { device.without_fua() });
    let options = MountOptions::new().runtime(Some(world.runtime())).environment(world.environment());
    let (recorder, runtime) = (Arc::clone(&device), world.runtime());
    let others = world.clone();
    let promises = world
        .run(async move {
            let filesystem = Filesystem::mount(Arc::clone(&recorder) as _, options).await.unwrap();
            let directory = filesystem.mkdir(InodeNumber::ROOT, OTHERS, owner()).await.unwrap();
            let other = filesystem.clone();
            drop(others.spawn("commits", async move {
                let mut random = fastrand::Rng::with_seed(!seed);
                for number in 0_u64.. {
                    let name = format!("o{}", number % 20);
                    let _ = other.unlink(directory, name.as_bytes()).await;
                    other.create(directory, name.as_bytes(), owner()).await.unwrap();
                    other.fsync(directory).await.unwrap();
                    runtime.sleep(Duration::from_millis(random.u64(1..4000))).await;
                }
            }));
            let mut work = Work::new(filesystem, recorder, seed);
            for _ in 0..operations {
                work.operation().await;
            }
            work.promises
        })
        .unwrap();
    drop(world);
    (device.recording(), promises)
}

fn owner() -> Credentials {
    Credentials { uid: 1000, gid: 100, mode: 0o640 }
}

struct Work {
    filesystem: Filesystem,
    device: Arc<RecordingDevice>,
    random: fastrand::Rng,
    /// Paths with their inodes: names of files, symlinks left out.
    files: BTreeMap<String, InodeNumber>,
    symlinks: BTreeSet<String>,
    directories: BTreeMap<String, InodeNumber>,
    /// Files that are deleted and still open: orphans.
    open: Vec<File>,
    next: u32,
    promises: Promises,
}

impl Work {
    fn new(filesystem: Filesystem, device: Arc<RecordingDevice>, seed: u64) -> Self {
        Self {
            filesystem,
            device,
            random: fastrand::Rng::with_seed(seed),
            files: BTreeMap::new(),
            symlinks: BTreeSet::new(),
            directories: BTreeMap::from([(String::new(), InodeNumber::ROOT)]),
            open: Vec::new(),
            next: 0,
            promises: Promises::default(),
        }
    }

    /// The next operation touches `paths`, those of the same inode with them.
    fn begin(&mut self, paths: &[&str]) {
        let inodes: Vec<_> = paths.iter().filter_map(|path| self.files.get(*path)).collect();
        let others = self.files.iter().filter(|(_, inode)| inodes.contains(inode));
        let touched = paths.iter().copied().chain(others.map(|(path, _)| path.as_str()));
        let touched = touched.map(|path| path.as_bytes().to_vec()).collect();
        self.promises.touched.push(touched);
        self.device.mark("operation");
    }

    fn promised(&mut self, promise: Promise) {
        self.promises.promises.push((self.promises.touched.len(), promise));
        self.device.mark("promise");
    }

    fn directory(&mut self) -> (String, InodeNumber) {
        let number = self.random.usize(..self.directories.len());
        let (path, inode) = self.directories.iter().nth(number).unwrap();
        (path.clone(), *inode)
    }

    fn file(&mut self) -> Option<(String, InodeNumber)> {
        let number = self.random.usize(..self.files.len().max(1));
        self.files.iter().nth(number).map(|(path, inode)| (path.clone(), *inode))
    }

    /// A name that is not there yet: the directory and the path.
    fn new_name(&mut self) -> (InodeNumber, String, String) {
        let (path, directory) = self.directory();
        self.next += 1;
        // Some are long, so that directories grow.
        let name =
            format!("n{:0width$}", self.next, width = if self.next.is_multiple_of(3) { 90 } else { 3 });
        let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
        (directory, name, path)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let start = self.random.u8(1..);
        (0..len).map(|at| start.wrapping_add((at / 7) as u8) | 1).collect()
    }

    /// The directory of `path`, and its name there.
    fn parent(&self, path: &str) -> (InodeNumber, Vec<u8>) {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        (self.directories[directory], name.as_bytes().to_vec())
    }

    async fn operation(&mut self) {
        match self.random.u32(..100) {
            0..16 => self.create().await,
            16..34 => self.write().await,
            34..46 => self.append_and_sync().await,
            46..53 => self.truncate().await,
            53..63 => self.rename().await,
            63..71 => self.unlink().await,
            71..77 => self.mkdir().await,
            77..80 => self.rmdir().await,
            80..84 => self.link().await,
            84..87 => self.symlink().await,
            87..94 => self.attributes().await,
            94..96 => self.open.clear(),
            _ => {
                self.filesystem.sync().await.unwrap();
                let tree = of_filesystem(&self.filesystem).await;
                self.promised(Promise::Everything(tree));
            }
        }
    }

    async fn create(&mut self) {
        let (directory, name, path) = self.new_name();
        self.begin(&[&path]);
        let inode = self.filesystem.create(directory, name.as_bytes(), owner()).await.unwrap();
        self.files.insert(path.clone(), inode);
        if self.random.bool() {
            let len = self.random.usize(1..12_000);
            self.write_to(inode, 0, len).await;
        }
    }

    async fn write_to(&mut self, inode: InodeNumber, offset: u64, len: usize) {
        let bytes = self.bytes(len);
        let file = self.filesystem.open(inode).await.unwrap();
        file.write_at(offset, &bytes).await.unwrap();
    }

    /// A write over existing bytes, over the end, or behind a hole.
    async fn write(&mut self) {
        let Some((path, inode)) = self.file() else { return };
        self.begin(&[&path]);
        let size = self.filesystem.attributes(inode).await.unwrap().size;
        let offset = self.random.u64(..=size.min(60_000) + 9000);
        let len = self.random.usize(1..20_000);
        self.write_to(inode, offset, len).await;
    }

    async fn append_and_sync(&mut self) {
        let Some((path, inode)) = self.file() else { return };
        self.begin(&[&path]);
        let size = self.filesystem.attributes(inode).await.unwrap().size;
        let len = self.random.usize(1..6000);
        self.write_to(inode, size.min(200_000), len).await;
        let file = self.filesystem.open(inode).await.unwrap();
        file.sync_all().await.unwrap();
        drop(file);
        let mut tree = of_filesystem(&self.filesystem).await;
        let facts = tree.remove(path.as_bytes()).unwrap();
        self.promised(Promise::OneFile(path.into_bytes(), facts));
    }

    async fn truncate(&mut self) {
        let Some((path, inode)) = self.file() else { return };
        self.begin(&[&path]);
        let size = self.filesystem.attributes(inode).await.unwrap().size;
        let size = self.random.u64(..=size + size / 4);
        let file = self.filesystem.open(inode).await.unwrap();
        file.set_len(size).await.unwrap();
    }

    /// A rename to a new name, over another file, of a directory, or of two that swap.
    async fn rename(&mut self) {
        let kind = self.random.u32(..5);
        if kind == 0 {
            let (path, _) = self.directory();
            let (to_directory, name, to) = self.new_name();
            let below = to.starts_with(&format!("{path}/"));
            if path.is_empty() || below {
                return;
            }
            self.begin(&[&path, &to]);
            let (from, from_name) = self.parent(&path);
            let to_place = (to_directory, name.as_bytes());
            self.filesystem.rename((from, &from_name), to_place, RenameFlags::default()).await.unwrap();
            self.moved_below(&path, &to);
            return;
        }
        let Some((path, inode)) = self.file() else { return };
        let (from, from_name) = self.parent(&path);
        match self.file() {
            Some((other, other_inode)) if kind < 3 && other_inode != inode => {
                self.begin(&[&path, &other]);
                let flags = RenameFlags { exchange: kind == 2, ..RenameFlags::default() };
                let (to, to_name) = self.parent(&other);
                self.filesystem.rename((from, &from_name), (to, &to_name), flags).await.unwrap();
                self.files.insert(other, inode);
                if kind == 2 {
                    self.files.insert(path, other_inode);
                } else {
                    self.files.remove(&path);
                }
            }
            _ => {
                let (to, name, new) = self.new_name();
                self.begin(&[&path, &new]);
                let flags = RenameFlags::default();
                self.filesystem.rename((from, &from_name), (to, name.as_bytes()), flags).await.unwrap();
                self.files.remove(&path);
                self.files.insert(new, inode);
            }
        }
    }

    /// A directory goes to another place, and what is in it with it.
    fn moved_below(&mut self, from: &str, to: &str) {
        let prefix = format!("{from}/");
        let place = |path: &String| match path.strip_prefix(&prefix) {
            Some(rest) => format!("{to}/{rest}"),
            None if path == from => to.to_owned(),
            None => path.clone(),
        };
        self.files = self.files.iter().map(|(path, inode)| (place(path), *inode)).collect();
        self.directories = self.directories.iter().map(|(path, inode)| (place(path), *inode)).collect();
        self.symlinks = self.symlinks.iter().map(place).collect();
    }

    /// An unlink; some of the files are open at that time.
    async fn unlink(&mut self) {
        let symlink = self.symlinks.first().cloned().filter(|_| self.random.u32(..4) == 0);
        if let Some(path) = symlink {
            self.begin(&[&path]);
            let (directory, name) = self.parent(&path);
            self.filesystem.unlink(directory, &name).await.unwrap();
            self.symlinks.remove(&path);
            return;
        }
        let Some((path, inode)) = self.file() else { return };
        self.begin(&[&path]);
        if self.random.bool() {
            self.open.push(self.filesystem.open(inode).await.unwrap());
        }
        let (directory, name) = self.parent(&path);
        self.filesystem.unlink(directory, &name).await.unwrap();
        self.files.remove(&path);
    }

    async fn mkdir(&mut self) {
        let (directory, name, path) = self.new_name();
        self.begin(&[&path]);
        let inode = self.filesystem.mkdir(directory, name.as_bytes(), owner()).await.unwrap();
        self.directories.insert(path, inode);
    }

    async fn rmdir(&mut self) {
        let (path, _) = self.directory();
        let prefix = format!("{path}/");
        let mut names = self.files.keys().chain(self.symlinks.iter()).chain(self.directories.keys());
        if path.is_empty() || names.any(|name| name.starts_with(&prefix)) {
            return;
        }
        self.begin(&[&path]);
        let (directory, name) = self.parent(&path);
        self.filesystem.rmdir(directory, &name).await.unwrap();
        self.directories.remove(&path);
    }

    async fn link(&mut self) {
        let Some((path, inode)) = self.file() else { return };
        let (directory, name, new) = self.new_name();
        self.begin(&[&path, &new]);
        self.filesystem.link(inode, directory, name.as_bytes()).await.unwrap();
        self.files.insert(new, inode);
    }

    async fn symlink(&mut self) {
        let (directory, name, path) = self.new_name();
        self.begin(&[&path]);
        let target = vec![b't'; self.random.usize(1..200)];
        self.filesystem.symlink(directory, name.as_bytes(), &target, owner()).await.unwrap();
        self.symlinks.insert(path);
    }

    /// Extended attributes in the inode and outside of it, and modes.
    async fn attributes(&mut self) {
        let Some((path, inode)) = self.file() else { return };
        self.begin(&[&path]);
        let name = format!("user.n{}", self.random.u32(..4));
        match self.random.u32(..4) {
            0 => {
                let changes = SetAttributes::new().mode(self.random.u16(..0o1000));
                self.filesystem.set_attributes(inode, &changes).await.unwrap();
            }
            1 => {
                // It may not be there.
                let _ = self.filesystem.removexattr(inode, name.as_bytes()).await;
            }
            _ => {
                let len = self.random.usize(1..300);
                let value = self.bytes(len);
                self.filesystem.setxattr(inode, name.as_bytes(), &value, SetMode::Any).await.unwrap();
            }
        }
    }
}
