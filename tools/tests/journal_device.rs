//! External journals: what the kernel left is recovered to what the kernel would see, and the kernel mounts
//! what our program leaves; and images that the user may only read.

#![allow(clippy::unwrap_used, reason = "what fails here is a failed test")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Loop, Mount, check, ext4, have, have_kernel, inside, is_root, mke2fs, program, run, system};

/// A kernel mount of `image` with its journal on `journal`.
struct WithJournal {
    mount: Mount,
    _journal: Loop,
}

impl WithJournal {
    fn new(image: &Path, journal: &Path, options: &str) -> Self {
        let journal = Loop::attach(journal, &[]);
        let options = format!("{options},journal_path={}", journal.device.display());
        Self { mount: Mount::new(image, &options), _journal: journal }
    }

    fn path(&self) -> &Path {
        &self.mount.directory
    }
}

fn e2fsck(image: &Path, journal: &Path) {
    let mut command = system("e2fsck");
    command.arg("-fn").arg("-j").arg(journal).arg(image);
    let run = run(command);
    let text = String::from_utf8_lossy(&run.stdout);
    assert_eq!(run.code, Some(0), "e2fsck -fn -j {}:\n{text}{}", image.display(), run.stderr);
}

fn copied(from: &Path, directory: &Path) -> PathBuf {
    let to = directory.join(from.file_name().unwrap());
    let mut copy = Command::new("cp");
    copy.arg("--sparse=always").arg(from).arg(&to);
    run(copy).ok();
    to
}

fn corpus(script: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus").join(script);
    (path.exists() && have("python3")).then_some(path)
}

/// `manifest.py --diff`, which prints what differs.
fn assert_same_manifest(recorded: &Path, found: &Path, ignored: &str, context: &str) {
    let mut diff = Command::new("python3");
    let tool = corpus("manifest.py").unwrap();
    diff.arg(tool).arg("--diff").arg(recorded).arg(found).args(["--ignore", ignored]);
    let run = run(diff);
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(run.code == Some(0) && text.trim().is_empty(), "{context}: {text}{}", run.stderr);
}

fn manifest(top: &Path, into: &Path) {
    let mut command = Command::new("python3");
    command.arg(corpus("manifest.py").unwrap()).arg(top);
    fs::write(into, run(command).ok()).unwrap();
}

#[test]
fn what_the_kernel_left_is_recovered_to_what_the_kernel_sees() {
    if !have_kernel() {
        return;
    }
    let Some(script) = corpus("make_kernel_corpus.sh") else { return };
    let work = tempfile::tempdir().unwrap();
    for seed in ["1", "2"] {
        let made = work.path().join(seed);
        let mut command = system("bash");
        command.arg(&script).arg(&made).arg("^ext-journal").env("SEED", seed);
        run(command).ok();
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
            e2fsck(&image, &journal);
            ext4([with_journal[0], with_journal[1], "rm", "-r", &target]).ok();
            e2fsck(&image, &journal);
            let kernel = WithJournal::new(&image, &journal, "ro");
            manifest(kernel.path(), &found);
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
            let device = Loop::attach(&journal, &[]);
            let place = format!("device={}", device.device.display());
            mke2fs(&image, 64 << 20, &["-b", block_size, "-J", &place]);
        }
        let with = ["--journal-device", journal.to_str().unwrap()];
        ext4([with[0], with[1], "mkdir", &inside(&image, "/ours")]).ok();
        e2fsck(&image, &journal);
        // Dirty: what was on both devices while the kernel had it mounted.
        let dirty = work.path().join("dirty");
        let _ = fs::create_dir(&dirty);
        let (image_copy, journal_copy) = {
            let kernel = WithJournal::new(&image, &journal, "rw");
            assert!(kernel.path().join("ours").is_dir());
            fs::write(kernel.path().join("ours/kernels"), "synced").unwrap();
            let mut sync = Command::new("sync");
            sync.arg(kernel.path().join("ours/kernels"));
            run(sync).ok();
            (copied(&image, &dirty), copied(&journal, &dirty))
        };
        let copy = ["--journal-device", journal_copy.to_str().unwrap()];
        assert_eq!(ext4([copy[0], copy[1], "cat", &inside(&image_copy, "/ours/kernels")]).ok(), "synced");
        ext4([copy[0], copy[1], "mkdir", &inside(&image_copy, "/more")]).ok();
        e2fsck(&image_copy, &journal_copy);
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
        let device = Loop::attach(&journal, &[]);
        mke2fs(&image, 64 << 20, &["-b", "4096", "-J", &format!("device={}", device.device.display())]);
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
    e2fsck(&image, &journal);
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
        let mount = Mount::new(&image, "rw");
        fs::write(mount.directory.join("file"), "synced").unwrap();
        let mut sync = Command::new("sync");
        sync.arg(mount.directory.join("file"));
        run(sync).ok();
        copied(&image, &dirty)
    };
    // An owner without privilege may read the image, and does; writing is refused.
    const UNPRIVILEGED: u32 = 65534;
    std::os::unix::fs::chown(&dirty, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
    fs::set_permissions(&dirty, fs::Permissions::from_mode(0o400)).unwrap();
    let binary = work.path().join("ext4");
    fs::copy(program().get_program(), &binary).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let digest = |path: &Path| sha256(&fs::read(path).unwrap());
    let before = digest(&dirty);
    let unprivileged = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command.args(arguments).uid(UNPRIVILEGED).gid(UNPRIVILEGED);
        run(command)
    };
    let target = inside(&dirty, "/file");
    assert_eq!(unprivileged(&["cat", &target]).ok(), "synced");
    // Through each backend for a file.
    assert_eq!(unprivileged(&["--backend", "file", "cat", &target]).ok(), "synced");
    unprivileged(&["--noload", "cat", &target]).fails(1, &["/file"]);
    unprivileged(&["mkdir", &inside(&dirty, "/d")]).fails(1, &["Permission denied"]);
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
