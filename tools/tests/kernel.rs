//! The kernel's ext4 and ours on the same image: what one writes the other reads, and in turn.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::process::Command;

use ext4_test_support::loop_device::KernelMount;
use ext4_test_support::settings::long_tests;
use ext4_test_support::tools::{command, have};
use support::tree::{self, Ignore, assert_equal, assert_same};
use support::{check, copy_sparse, ext4, have_kernel, inside, mke2fs, run, sync};

const IGNORE: Ignore = Ignore { owners: false, lost_and_found: true };

/// Feature sets and block sizes that mkfs.ext4 makes and we support.
const KINDS: &[&[&str]] = &[
    &["-b", "1024"],
    &["-b", "4096"],
    &["-b", "2048", "-O", "^has_journal"],
    &["-b", "4096", "-O", "orphan_file,metadata_csum_seed"],
    &["-b", "1024", "-O", "^metadata_csum,uninit_bg"],
    &["-b", "4096", "-O", "^64bit,^flex_bg,^metadata_csum", "-I", "256"],
    &["-b", "4096", "-O", "^dir_index,^resize_inode"],
];

#[test]
fn what_the_kernel_wrote_is_unpacked_listed_and_read() {
    if !have_kernel() {
        return;
    }
    for kind in KINDS {
        let work = tempfile::tempdir().unwrap();
        let image = work.path().join("disk.img");
        mke2fs(&image, 256 << 20, kind);
        let before = {
            let mount = KernelMount::of_file(&image, "rw");
            tree::make(&mount.directory(), 11);
            tree::describe(&mount.directory(), IGNORE)
        };
        check(&image);
        let out = work.path().join("out");
        ext4(["unpack".as_ref(), image.as_os_str(), out.as_os_str()]).ok();
        assert_equal(&before, &tree::describe(&out, IGNORE));
        let listed = ext4(["ls", "-R", &inside(&image, "/wide")]).ok();
        assert_eq!(listed.lines().filter(|line| line.starts_with("a-name-that")).count(), 1500, "{kind:?}");
        let content = support::run({
            let mut command = support::program();
            command.args(["cat", &inside(&image, "/sizes/5242880")]);
            command
        });
        assert!(content.stdout == fs::read(out.join("sizes/5242880")).unwrap(), "{kind:?}");
        check(&image);
    }
}

#[test]
fn both_write_in_turn() {
    if !have_kernel() {
        return;
    }
    let (kinds, rounds) = if long_tests() { (KINDS.len(), 3) } else { (2, 2) };
    for kind in &KINDS[..kinds] {
        let work = tempfile::tempdir().unwrap();
        let image = work.path().join("disk.img");
        let source = work.path().join("in");
        fs::create_dir(&source).unwrap();
        tree::make(&source, 21);
        mke2fs(&image, 512 << 20, kind);
        for round in 0..rounds {
            // We: a tree into a directory of its own, a tree taken away, names moved.
            let ours = inside(&image, &format!("/ours-{round}"));
            ext4(["cp", "-a", source.to_str().unwrap(), &ours]).ok();
            check(&image);
            // The kernel: the same, from its side.
            let mount = KernelMount::of_file(&image, "rw");
            assert_same(&source, &mount.path(format!("ours-{round}")), IGNORE);
            let theirs = mount.path(format!("theirs-{round}"));
            let mut copy = Command::new("cp");
            copy.arg("-a").arg(mount.path(format!("ours-{round}"))).arg(&theirs);
            run(copy).ok();
            if round > 0 {
                fs::remove_dir_all(mount.path(format!("ours-{}", round - 1))).unwrap();
            }
            drop(mount);
            check(&image);
            let out = work.path().join(format!("out-{round}"));
            ext4(["cp", "-a", &inside(&image, &format!("/theirs-{round}")), out.to_str().unwrap()]).ok();
            assert_same(&source, &out, IGNORE);
            if round > 0 {
                ext4(["rm", "-r", &inside(&image, &format!("/theirs-{}", round - 1))]).ok();
            }
            ext4(["mv", &ours, &inside(&image, &format!("/ours-{round}-moved"))]).ok();
            ext4(["mv", &inside(&image, &format!("/ours-{round}-moved")), &ours]).ok();
            check(&image);
        }
    }
}

#[test]
fn info_says_what_dumpe2fs_says() {
    if !have(&["dumpe2fs", "mkfs.ext4"]) {
        return;
    }
    let more: &[&[&str]] = &[
        &["-L", "a label", "-M", "/mnt", "-m", "1", "-e", "remount-ro", "-E", "stride=16,stripe-width=64"],
        &["-O", "bigalloc"],
        &["-O", "inline_data"],
        &["-O", "quota,project,mmp"],
        &["-O", "^extents,^64bit,^metadata_csum,^flex_bg,^has_journal", "-I", "128"],
    ];
    let (mut compared, mut refused) = (0, 0);
    for kind in KINDS.iter().chain(more) {
        let work = tempfile::tempdir().unwrap();
        let image = work.path().join("disk.img");
        mke2fs(&image, 64 << 20, kind);
        let mut command = command("dumpe2fs");
        command.arg("-h").arg(&image);
        let expected = run(command).ok();
        // The block of multiple mount protection is no key of the header.
        let expected = expected.split("MMP_block:").next().unwrap_or_default();
        let found = ext4(["info".as_ref(), image.as_os_str()]);
        if kind.contains(&"bigalloc") || kind.contains(&"quota,project,mmp") {
            // Features that are not supported may be refused by name; if not, what is said must be right.
            if found.code == Some(1) {
                refused += 1;
                continue;
            }
        }
        let found = found.ok();
        let lines = |text: &str| text.lines().map(|line| line.trim_end().to_string()).collect::<Vec<_>>();
        let (expected, mut found) = (lines(expected.trim_end()), lines(found.trim_end()));
        // What dumpe2fs does not tell.
        let all = found.len();
        found.retain(|line| !line.starts_with("Inline data:"));
        assert_eq!(all - found.len(), usize::from(kind.contains(&"inline_data")), "{kind:?}");
        for (expected, found) in expected.iter().zip(&found) {
            assert_eq!(expected, found, "{kind:?}");
        }
        assert_eq!(expected.len(), found.len(), "{kind:?}");
        ext4(["info".as_ref(), "--json".as_ref(), image.as_os_str()]).ok();
        compared += 1;
    }
    assert!(refused <= 1, "{compared} compared, {refused} refused");
}

#[test]
fn an_unclean_image_is_recovered_also_by_a_command_that_only_reads() {
    if !have_kernel() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("disk.img");
    let dirty = work.path().join("dirty.img");
    mke2fs(&image, 64 << 20, &[]);
    {
        let mount = KernelMount::of_file(&image, "rw");
        fs::write(mount.path("file"), "synced before the crash").unwrap();
        sync(&mount.path("file"));
        // What is on the device at this moment is what a crash would leave.
        copy_sparse(&image, &dirty);
    }
    let before = fs::read(&dirty).unwrap();
    let text = ext4(["cat", &inside(&dirty, "/file")]).ok();
    assert_eq!(text, "synced before the crash");
    assert!(fs::read(&dirty).unwrap() == before, "a command that only reads changed the image");
    ext4(["mkdir", &inside(&dirty, "/recovered")]).ok();
    check(&dirty);
}
