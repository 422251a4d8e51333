//! File systems whose journal lies on another device: what the kernel left is recovered to what the kernel
//! would see, what ours leaves the kernel mounts; and images of others that may only be read.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ext4_test_support::corpus::{corpus, make_kernel_images};
use ext4_test_support::loop_device::{KernelMount, LoopDevice};
use ext4_test_support::tools::{command, is_root};
use support::{
    check, check_with_journal, copy_sparse, ext4, have_kernel, inside, mke2fs, program, run, sync,
};

/// A kernel mount of `image` with its journal on `journal`.
struct WithJournal {
    mount: KernelMount,
    _journal: LoopDevice,
}

impl WithJournal {
    fn new(image: &Path, journal: &Path, options: &str) -> Self {
        let journal = LoopDevice::attach(journal, &[]);
        let options = format!("{options},journal_path={}", journal.path().display());
        Self { mount: KernelMount::of_file(image, &options), _journal: journal }
    }

    fn path(&self) -> PathBuf {
        self.mount.directory()
    }
}

fn copied(from: &Path, directory: &Path) -> PathBuf {
    let to = directory.join(from.file_name().unwrap());
    copy_sparse(from, &to);
    to
}

/// Fails the test if `manifest.py --diff` prints anything: what differs.
fn assert_same_manifest(recorded: &Path, found: &Path, ignored: &str, context: &str) {
    let mut diff = command("python3");
    let tool = corpus().unwrap().join("manifest.py");
    diff.arg(tool).arg("--diff").arg(recorded).arg(found).args(["--ignore", ignored]);
    let run = run(diff);
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(run.code == Some(0) && text.trim().is_empty(), "{context}: {text}{}", run.stderr);
}

fn manifest(top: &Path, into: &Path) {
    let mut script = command("python3");
    script.arg(corpus().unwrap().join("manifest.py")).arg(top);
    fs::write(into, run(script).ok()).unwrap();
}

#[test]
fn what_the_kernel_left_is_recovered_to_what_the_kernel_sees() {
    let work = tempfile::tempdir().unwrap();
    for seed in [1, 2] {
        let made = work.path().join(seed.to_string());
        if !make_kernel_images(&made, "^ext-journal", seed) {
            return;
        }
        for name in ["ext-journal", "ext-journal-1k", "ext-journal-dirty"] {
            let context = format!("{name}, seed {seed}");
            let place = tempfile::tempdir_in(work.path()).unwrap();
            let image = copied(&made.join(format!("{name}.img")), place.path());
            let journal = copied(&made.join(format!("{name}.jnl")), place.path());
            let recorded = made.join(format!("{name}.jsonl.gz"));
            let (before, log) = (fs::read(&image).unwrap(), fs::read(&journal).unwrap());
            let with_journal = ["--journal-device", journal.to_str().unwrap()];

            // Only reading: the recovered tree, and nothing changes.
            let tree = place.path().join("tree");
            let arguments = [with_journal[0], with_journal[1], "unpack"];
            ext4(arguments.iter().map(AsRef::as_ref).chain([image.as_os_str(), tree.as_os_str()])).ok();
            let found = place.path().join("found");
            manifest(&tree, &found);
            // What the file system of the test's directory has of its own.
            let ignored = "atime,ctime,crtime,ino,blocks,extents,flags,gen,size";
            assert_same_manifest(&recorded, &found, ignored, &format!("{context}, read only"));
            assert!(fs::read(&image).unwrap() == before && fs::read(&journal).unwrap() == log, "{context}");

            // Changed by ours, seen by the kernel.
            let target = inside(&image, "/ours");
            ext4([with_journal[0], with_journal[1], "mkdir", &target]).ok();
            check_with_journal(&image, &journal);
            ext4([with_journal[0], with_journal[1], "rm", "-r", &target]).ok();
            check_with_journal(&image, &journal);
            let kernel = WithJournal::new(&image, &journal, "ro");
            manifest(&kernel.path(), &found);
            // Ours made and removed a directory in the root.
            assert_same_manifest(&recorded, &found, "atime,ctime,mtime,gen", &context);
        }
    }
}

#[test]
fn the_kernel_goes_on_with_what_ours_left_and_ours_with_what_the_kernel_left() {
    if !have_kernel() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    for block_size in ["1024", "4096"] {
        let (image, journal) = (work.path().join("disk.img"), work.path().join("journal.img"));
        let _ = (fs::remove_file(&image), fs::remove_file(&journal));
        mke2fs(&journal, 8 << 20, &["-b", block_size, "-O", "journal_dev"]);
        {
            let device = LoopDevice::attach(&journal, &[]);
            let place = format!("device={}", device.path().display());
            mke2fs(&image, 64 << 20, &["-b", block_size, "-J", &place]);
        }
        let with = ["--journal-device", journal.to_str().unwrap()];
        ext4([with[0], with[1], "mkdir", &inside(&image, "/ours")]).ok();
        check_with_journal(&image, &journal);
        // Dirty: what was on both devices while the kernel had it mounted.
        let dirty = work.path().join("dirty");
        let _ = fs::create_dir(&dirty);
        let (image_copy, journal_copy) = {
            let kernel = WithJournal::new(&image, &journal, "rw");
            assert!(kernel.path().join("ours").is_dir());
            fs::write(kernel.path().join("ours/kernels"), "synced").unwrap();
            sync(&kernel.path().join("ours/kernels"));
            (copied(&image, &dirty), copied(&journal, &dirty))
        };
        let copy = ["--journal-device", journal_copy.to_str().unwrap()];
        assert_eq!(ext4([copy[0], copy[1], "cat", &inside(&image_copy, "/ours/kernels")]).ok(), "synced");
        ext4([copy[0], copy[1], "mkdir", &inside(&image_copy, "/more")]).ok();
        check_with_journal(&image_copy, &journal_copy);
        let kernel = WithJournal::new(&image_copy, &journal_copy, "rw");
        assert_eq!(fs::read(kernel.path().join("ours/kernels")).unwrap(), b"synced");
        assert!(kernel.path().join("more").is_dir());
    }
}

#[test]
fn the_wrong_journal_device_is_refused_by_its_uuid_and_a_missing_one_by_the_one_wanted() {
    if !have_kernel() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let file = |name: &str| work.path().join(name);
    let (image, journal, other) = (file("disk.img"), file("journal.img"), file("other.img"));
    const UUID: &str = "11111111-2222-4333-8444-555555555555";
    const OTHER: &str = "99999999-2222-4333-8444-555555555555";
    mke2fs(&journal, 8 << 20, &["-b", "4096", "-O", "journal_dev", "-U", UUID]);
    mke2fs(&other, 8 << 20, &["-b", "4096", "-O", "journal_dev", "-U", OTHER]);
    {
        let device = LoopDevice::attach(&journal, &[]);
        mke2fs(&image, 64 << 20, &["-b", "4096", "-J", &format!("device={}", device.path().display())]);
    }
    let target = inside(&image, "/d");
    let before = fs::read(&image).unwrap();
    ext4(["mkdir", &target]).fails(1, &["journal_dev", UUID, "not given"]);
    let with = |device: &Path| ["--journal-device".to_owned(), device.to_str().unwrap().to_owned()];
    let made = |device: &Path| ext4(with(device).iter().map(String::as_str).chain(["mkdir", &target]));
    made(&other).fails(1, &["journal device", UUID, OTHER]);
    let plain = file("plain.img");
    mke2fs(&plain, 16 << 20, &[]);
    made(&plain).fails(1, &["journal device", "file system"]);
    // A clean one is read without: its journal holds nothing.
    ext4(["ls", &inside(&image, "/")]).ok();
    assert!(fs::read(&image).unwrap() == before);
    // The journal of another file system: its list of users names that.
    let mut log = fs::read(&journal).unwrap();
    log[4096 + 0x100] ^= 1;
    fs::write(&other, &log).unwrap();
    made(&other).fails(1, &["journal device", "it is the journal of file system"]);
    made(&journal).ok();
    check_with_journal(&image, &journal);
}

#[test]
fn an_image_that_may_only_be_read_is_read_recovered() {
    if !have_kernel() || !is_root() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (image, dirty) = (work.path().join("disk.img"), work.path().join("copy"));
    fs::create_dir(&dirty).unwrap();
    mke2fs(&image, 64 << 20, &[]);
    let dirty = {
        let mount = KernelMount::of_file(&image, "rw");
        fs::write(mount.path("file"), "synced").unwrap();
        sync(&mount.path("file"));
        copied(&image, &dirty)
    };
    // Owned by another user, which may read it and nothing else, and reads it.
    const OTHER_USER: u32 = 65534;
    std::os::unix::fs::chown(&dirty, Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    fs::set_permissions(&dirty, fs::Permissions::from_mode(0o400)).unwrap();
    let binary = work.path().join("ext4");
    fs::copy(program().get_program(), &binary).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let digest = |path: &Path| sha256(&fs::read(path).unwrap());
    let before = digest(&dirty);
    let as_other_user = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command.args(arguments).uid(OTHER_USER).gid(OTHER_USER);
        run(command)
    };
    let target = inside(&dirty, "/file");
    assert_eq!(as_other_user(&["cat", &target]).ok(), "synced");
    // Through each way to read a file.
    assert_eq!(as_other_user(&["--backend", "file", "cat", &target]).ok(), "synced");
    as_other_user(&["--noload", "cat", &target]).fails(1, &["/file"]);
    as_other_user(&["mkdir", &inside(&dirty, "/d")]).fails(1, &["Permission denied"]);
    ext4(["--noload", "mkdir", &inside(&dirty, "/d")]).fails(1, &["noload"]);
    assert_eq!(digest(&dirty), before);
    fs::set_permissions(&dirty, fs::Permissions::from_mode(0o600)).unwrap();
    ext4(["mkdir", &inside(&dirty, "/d")]).ok();
    check(&dirty);
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).to_vec()
}
