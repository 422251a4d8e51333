//! `ext4 journal create` and `remove`: the kernel mounts what they leave, writes, and ours goes on.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;

use ext4_test_support::loop_device::{KernelMount, LoopDevice};
use ext4_test_support::tools::{command, debugfs_write, have};
use support::{check, check_with_journal, ext4, have_kernel, inside, mke2fs, run, sync};

fn dumpe2fs(image: &Path) -> String {
    let mut command = command("dumpe2fs");
    command.arg("-h").arg(image);
    run(command).ok()
}

fn line<'a>(shown: &'a str, key: &str) -> Option<&'a str> {
    shown.lines().find_map(|line| line.strip_prefix(key)).map(|rest| rest.trim_start_matches(':').trim())
}

/// The kernel mounts it for writing, writes and syncs; e2fsck is content; ours reads it and writes more.
fn in_use(image: &Path, name: &str, options: &str) {
    {
        let mount = KernelMount::of_file(image, options);
        fs::write(mount.path(name), name).unwrap();
        sync(&mount.path(name));
    }
    check(image);
    assert_eq!(ext4(["cat", &inside(image, &format!("/{name}"))]).ok(), name);
    ext4(["mkdir", &inside(image, &format!("/{name}-ours"))]).ok();
    check(image);
}

#[test]
fn the_kernel_uses_the_journals_that_are_made_and_the_file_systems_without() {
    if !have_kernel() || !have(&["dumpe2fs"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    for (number, arguments) in
        [&["-O", "^has_journal"][..], &["-b", "1024", "-O", "^has_journal,^64bit,^metadata_csum"]]
            .iter()
            .enumerate()
    {
        let image = work.path().join(format!("disk{number}.img"));
        mke2fs(&image, 128 << 20, arguments);
        let path = image.to_str().unwrap();
        ext4(["journal", "create", path]).ok();
        check(&image);
        assert!(line(&dumpe2fs(&image), "Filesystem features").unwrap().contains("has_journal"));
        assert_eq!(line(&dumpe2fs(&image), "Journal backup"), Some("inode blocks"));
        in_use(&image, "added", "rw");
        ext4(["journal", "create", "--size", "16M", "--fast-commit-size", "1M", path]).ok();
        check(&image);
        assert_eq!(line(&dumpe2fs(&image), "Total journal size"), Some("17M"));
        in_use(&image, "resized", "rw");
        // In blocks of 1 KiB. (The kernel switches the journal's own feature on for as long as it is
        // mounted.)
        assert_eq!(line(&dumpe2fs(&image), "Fast commit length"), Some("1024"));
        assert!(line(&dumpe2fs(&image), "Filesystem features").unwrap().contains("fast_commit"));
        ext4(["journal", "remove", path]).ok();
        check(&image);
        assert!(!line(&dumpe2fs(&image), "Filesystem features").unwrap().contains("has_journal"));
        in_use(&image, "removed", "rw");
        ext4(["journal", "remove", path]).fails(1, &["no journal"]);
    }
}

#[test]
fn the_kernel_uses_a_journal_device_that_was_made() {
    if !have_kernel() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let (image, journal) = (work.path().join("disk.img"), work.path().join("journal.img"));
    mke2fs(&image, 64 << 20, &["-b", "4096"]);
    fs::write(&journal, vec![0xc0; 8 << 20]).unwrap();
    let (path, log) = (image.to_str().unwrap(), journal.to_str().unwrap());
    ext4(["journal", "create", "--external", log, path]).ok();
    {
        let device = LoopDevice::attach(&journal, &[]);
        let mount = KernelMount::of_file(&image, &format!("rw,journal_path={}", device.path().display()));
        fs::write(mount.path("kernel"), "kernel").unwrap();
    }
    assert_eq!(ext4(["--journal-device", log, "cat", &inside(&image, "/kernel")]).ok(), "kernel");
    ext4(["--journal-device", log, "mkdir", &inside(&image, "/ours")]).ok();
    check_with_journal(&image, &journal);
    ext4(["--journal-device", log, "journal", "remove", path]).ok();
    in_use(&image, "removed", "rw");
    // Free for the next.
    ext4(["journal", "create", "--external", log, path]).ok();
}

#[test]
fn what_is_refused_is_refused_by_name() {
    if !have(&["mkfs.ext4"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let (image, other) = (work.path().join("disk.img"), work.path().join("other.img"));
    mke2fs(&image, 32 << 20, &["-b", "4096"]);
    mke2fs(&other, 32 << 20, &[]);
    let (path, other) = (image.to_str().unwrap(), other.to_str().unwrap());
    let before = fs::read(&image).unwrap();
    ext4(["journal", "create", "--size", "1M", path]).fails(1, &["1024 to", "256 blocks"]);
    ext4(["journal", "create", "--size", "20M", path]).fails(1, &["more than half"]);
    ext4(["journal", "create", "--external", other, path])
        .fails(1, &["a file system is on the journal device"]);
    ext4(["journal", "create", "--external", other, "--size", "8M", path]).fails(2, &["--size"]);
    assert!(fs::read(&image).unwrap() == before);
}

/// What the superblock remembers of errors is shown as dumpe2fs shows it.
#[test]
fn the_error_state_is_shown() {
    if !have(&["mkfs.ext4", "debugfs", "dumpe2fs"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("disk.img");
    mke2fs(&image, 16 << 20, &[]);
    for (field, value) in [
        ("error_count", "3"),
        ("first_error_time", "@1700000000"),
        ("first_error_ino", "12"),
        ("first_error_block", "345"),
        ("first_error_func", "journal"),
        ("first_error_errcode", "2"),
        ("last_error_time", "@1700000009"),
        ("last_error_func", "lookup"),
        ("last_error_errcode", "5"),
        ("state", "3"),
    ] {
        debugfs_write(&image, &format!("set_super_value {field} {value}"));
    }
    let theirs = dumpe2fs(&image);
    let ours = ext4(["info", image.to_str().unwrap()]).ok();
    let lines = |text: &str| -> Vec<String> {
        let told = |line: &&str| line.contains("error") || line.contains("Error");
        text.lines().filter(told).map(str::to_owned).collect()
    };
    assert_eq!(lines(&ours), lines(&theirs));
    assert!(lines(&ours).len() >= 10, "{ours}");
    // Kept and said at a mount.
    let run = ext4(["-v", "ls", &inside(&image, "/")]);
    assert!(run.stderr.contains("error that the superblock remembers"), "{}", run.stderr);
    ext4(["mkdir", &inside(&image, "/d")]).ok();
    assert_eq!(line(&dumpe2fs(&image), "FS Error count"), Some("3"));
}
