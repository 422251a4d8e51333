//! Three recoveries of one image, and whether they agree.
//!
//! | recovery             | how                                                                     |
//! |----------------------|-------------------------------------------------------------------------|
//! | ours                 | mounted on a device in memory, shown, unmounted                         |
//! | `e2fsck -fy`         | on a copy; then shown by us, read-only                                  |
//! | the kernel           | mounted on a loop device over a copy, shown by its own system calls     |
//!
//! They agree on every path, and of each on type, mode, owner, links, size, inode, attributes, content. Not
//! compared: times (each finishes a truncation with a stamp of its own clock) and sizes in blocks (each is
//! free to keep or give back what is allocated past a file's end). A superblock of which one sector was
//! written without the other is refused by ours and by the kernel: they are to agree in that, and such states
//! are counted apart. What ours and `e2fsck -fy` leave must be clean for `e2fsck -fn`; images that have been
//! found clean are not asked about again. `e2fsck -fy` may replay the journal and finish orphans, and has
//! nothing else to mend. But for one case: a commit block of which only the first sector was written, over a
//! block that held something else, counts for the kernel of today and for ours, and not for e2fsck 1.47,
//! which then does not replay the transaction and clears orphans as errors. Both are right, as no caller had
//! been told that the transaction is durable. Such states are compared with the kernel alone, and counted.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ext4_core::device::MemoryDevice;
use ext4_core::device::simulated::{DistinctStates, Image};
use ext4_core::environment::Simulation;
use ext4_core::format::superblock::Superblock;
use ext4_test_support::loop_device::LoopDevice;
use ext4_test_support::tools::{assert_clean, run, run_ok};
use ext4_writeback::{Filesystem, MountOptions, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use crate::tree::{Facts, Tree, of_directory, of_filesystem};

/// Counts of what was judged, over all judges.
#[derive(Default, Debug)]
pub struct Judged {
    pub ours: AtomicUsize,
    pub by_kernel: AtomicUsize,
    pub by_e2fsck: AtomicUsize,
    /// Runs of `e2fsck -fn`: as many different images as were left by the recoveries.
    pub checked_clean: AtomicUsize,
    /// States that ours and the kernel refuse alike.
    pub torn_superblocks: AtomicUsize,
    /// States with a torn commit block that e2fsck does not count.
    pub torn_commits: AtomicUsize,
    /// Paths that were found as a sync or an fsync had made them durable.
    pub durable_paths: AtomicUsize,
}

/// Recovers images; each judge has files and a loop device of its own.
pub struct Judge<'a> {
    // Detached before the file below it goes with the directory.
    loop_device: Option<LoopDevice>,
    directory: TempDir,
    /// The size that the loop device knows of.
    loop_size: u64,
    clean: HashSet<u64>,
    states: DistinctStates,
    judged: &'a Judged,
}

impl<'a> Judge<'a> {
    /// A judge with its files in memory, if the host has a file system for that, and with a loop device if
    /// `kernel`.
    pub fn new(kernel: bool, judged: &'a Judged) -> Self {
        let memory = PathBuf::from("/dev/shm");
        let directory = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap();
        std::fs::create_dir(directory.path().join("mounted")).unwrap();
        let mut judge = Self {
            directory,
            loop_device: None,
            loop_size: 0,
            clean: HashSet::new(),
            states: DistinctStates::new(),
            judged,
        };
        if kernel {
            // Each image sets its own size.
            Image::zeroed(1 << 20).to_file(&judge.path("kernel")).unwrap();
            let file = judge.path("kernel");
            judge.loop_device = Some(LoopDevice::attach(&file, &[]));
        }
        judge
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Recovers `image` in every way and compares; what was found. `None` if the superblock is torn: we and
    /// the kernel refuse it.
    pub fn judge(&mut self, image: &Image, context: &str) -> Option<Tree> {
        if has_torn_superblock(image) {
            self.assert_refused(image, context);
            return None;
        }
        let (ours, left) = show(image, false, context);
        self.judged.ours.fetch_add(1, Ordering::Relaxed);
        self.assert_clean(&left, context);
        let (theirs, left) = self.e2fsck(image, context);
        match theirs {
            Some(theirs) => {
                assert_same(&ours, &theirs, &format!("{context}: e2fsck"));
                self.judged.by_e2fsck.fetch_add(1, Ordering::Relaxed);
            }
            None => {
                self.judged.torn_commits.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.assert_clean(&left, &format!("{context}: after e2fsck -fy"));
        if let Some(theirs) = self.kernel(image, context) {
            assert_same(&ours, &theirs, &format!("{context}: the kernel"));
            self.judged.by_kernel.fetch_add(1, Ordering::Relaxed);
        }
        Some(ours)
    }

    fn assert_refused(&mut self, image: &Image, context: &str) {
        let error = try_show(image, false, context).expect_err(context);
        assert!(error.to_string().contains("superblock: checksum"), "{context}: {error}");
        if let Some(mounted) = self.mount(image) {
            assert!(mounted.is_err(), "{context}: the kernel mounts a torn superblock");
        }
        self.judged.torn_superblocks.fetch_add(1, Ordering::Relaxed);
    }

    /// Fails the test if `e2fsck -fn` finds anything in an image that it was not asked about before.
    fn assert_clean(&mut self, image: &Image, context: &str) {
        let fingerprint = self.states.fingerprint(image);
        if self.clean.insert(fingerprint) {
            let path = self.path("clean");
            image.to_file(&path).unwrap();
            assert_clean(&path, context);
            self.judged.checked_clean.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What `e2fsck -fy` leaves, and the tree in it; `None` for the tree if it does not count a torn commit
    /// block.
    fn e2fsck(&self, image: &Image, context: &str) -> (Option<Tree>, Image) {
        let path = self.path("e2fsck");
        image.to_file(&path).unwrap();
        let output = run("e2fsck", ["-fy", path.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.code().is_some_and(|code| code <= 1), "{context}: {said}");
        let left = || Image::from_file(&path).unwrap();
        let all = format!("{said}{}", String::from_utf8_lossy(&output.stderr));
        if all.contains("was corrupt, replay was aborted") {
            return (None, left());
        }
        // The superblock's own sums of what is free are not journaled each time: every mount adds them up
        // anew. A mounted file system says that there may be orphans, as the kernel's does, also when there
        // are none.
        let expected = [
            "Free blocks count wrong (",
            "Free inodes count wrong (",
            "Feature orphan_present is set but orphan file is clean.",
        ];
        // When it has finished the orphans of an orphan file, it finds that file still naming them.
        let orphans = said.lines().any(|line| line.contains("orphaned inode"));
        let finished =
            |line: &str| orphans && line.starts_with("Orphan file (") && line.ends_with("is not clean.");
        let mended: Vec<&str> = said
            .lines()
            .zip(said.lines().skip(1))
            .filter(|(before, line)| {
                !finished(before)
                    && line.contains("? yes")
                    && !expected.iter().any(|expected| before.starts_with(expected))
            })
            .map(|(before, _)| before)
            .collect();
        assert!(mended.is_empty(), "{context}: more than a replay: {mended:?}\n{said}");
        let left = left();
        let (tree, _) = show(&left, true, context);
        (Some(tree), left)
    }

    /// Lets the kernel mount `image`; `None` without one.
    fn mount(&mut self, image: &Image) -> Option<nix::Result<()>> {
        let device = self.loop_device.as_ref()?.path();
        // The same file under the device: what the kernel knew of it went when it was unmounted.
        image.to_file(&self.path("kernel")).unwrap();
        if self.loop_size != image.len() {
            run_ok("losetup", ["-c".as_ref(), device.as_os_str()]);
            self.loop_size = image.len();
        }
        let point = self.path("mounted");
        Some(mount(Some(device), &point, Some("ext4"), MsFlags::MS_NOATIME, Some("noinit_itable")))
    }

    fn kernel(&mut self, image: &Image, context: &str) -> Option<Tree> {
        self.mount(image)?.unwrap_or_else(|error| panic!("{context}: the kernel does not mount it: {error}"));
        let point = self.path("mounted");
        let tree = std::panic::catch_unwind(|| of_directory(&point));
        // Another test's child may have inherited a file for the moment before it runs its program.
        let unmounted = (0..100).any(|_| {
            let done = umount2(&point, MntFlags::empty()).is_ok();
            if !done {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            done
        });
        assert!(unmounted, "{} is busy", point.display());
        Some(tree.unwrap_or_else(|_| panic!("{context}: the kernel cannot read it")))
    }
}

impl Drop for Judge<'_> {
    fn drop(&mut self) {
        let _ = umount2(&self.path("mounted"), MntFlags::MNT_DETACH);
    }
}

/// The superblock is no block of a transaction when it is written at mount and unmount, and has two sectors:
/// if a device writes one of them without the other, ext4 has no answer but its checksum.
fn has_torn_superblock(image: &Image) -> bool {
    let mut bytes = [0; 1024];
    image.read(1024, &mut bytes);
    Superblock::parse(&bytes).is_err()
}

/// Mounts, shows, unmounts: what was seen, and what is left on the device.
fn show(image: &Image, read_only: bool, context: &str) -> (Tree, Image) {
    try_show(image, read_only, context).unwrap_or_else(|error| panic!("{context}: {error}"))
}

fn try_show(image: &Image, read_only: bool, context: &str) -> Result<(Tree, Image)> {
    let world = Simulation::new(1);
    let device = Arc::new(MemoryDevice::from_image(image.clone()));
    let options = MountOptions::new()
        .read_only(read_only)
        .cache(8 << 20)
        .runtime(Some(world.runtime()))
        .environment(world.environment());
    let mounted = Arc::clone(&device);
    let work = async move {
        let filesystem = Filesystem::mount(mounted, options).await?;
        let tree = of_filesystem(&filesystem).await;
        filesystem.unmount().await?;
        Ok::<Tree, ext4_core::Error>(tree)
    };
    let tree = world.run(work).unwrap_or_else(|stuck| panic!("{context}: {stuck}"))?;
    Ok((tree, device.image()))
}

fn comparable(facts: &Facts) -> Facts {
    Facts { sectors: 0, mtime: (0, 0), ctime: (0, 0), ..facts.clone() }
}

fn assert_same(ours: &Tree, theirs: &Tree, context: &str) {
    if ours.len() == theirs.len()
        && ours
            .iter()
            .zip(theirs)
            .all(|(left, right)| left.0 == right.0 && comparable(left.1) == comparable(right.1))
    {
        return;
    }
    let mut differences = Vec::new();
    for path in ours.keys().chain(theirs.keys()) {
        let (ours, theirs) = (ours.get(path).map(comparable), theirs.get(path).map(comparable));
        if ours != theirs {
            let path = String::from_utf8_lossy(path);
            differences.push(format!("{path}\n  ours   {ours:?}\n  theirs {theirs:?}"));
        }
    }
    differences.dedup();
    panic!("{context}: {} differ\n{}", differences.len(), differences[..differences.len().min(5)].join("\n"));
}
