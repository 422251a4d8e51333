//! `pack` and `unpack`: every kind of tree goes in and comes out the same, judged by e2fsck and the kernel.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;
use std::time::Instant;

use ext4_test_support::loop_device::{KernelMount, LoopDevice};
use ext4_test_support::settings::{long_form_only, long_tests};
use ext4_test_support::tools::{debugfs, have, is_root};
use support::tree::{self, Ignore, assert_same};
use support::{check, ext4, have_kernel, inside, program, run};

fn ignore() -> Ignore {
    Ignore { owners: !is_root(), lost_and_found: true }
}

fn pack(arguments: &[&str], source: &Path, image: &Path) -> String {
    let mut command = program();
    command.arg("pack").args(arguments).arg(source).arg(image);
    run(command).ok()
}

#[test]
fn a_tree_of_everything_comes_back_the_same() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("in");
    fs::create_dir(&source).unwrap();
    tree::make(&source, 1);
    for block_size in ["1024", "2048", "4096"] {
        let image = work.path().join(format!("{block_size}.img"));
        pack(&["-b", block_size], &source, &image);
        check(&image);
        let out = work.path().join(format!("out{block_size}"));
        ext4(["unpack".as_ref(), image.as_os_str(), out.as_os_str()]).ok();
        check(&image);
        assert_same(&source, &out, ignore());
        let (before, after) = (tree::allocated(&source), tree::allocated(&out));
        assert!(after < before + before / 2 + (1 << 20), "holes are kept: {before} became {after}");
    }
}

#[test]
fn the_kernel_sees_the_same_tree() {
    if !have_kernel() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("in");
    fs::create_dir(&source).unwrap();
    tree::make(&source, 2);
    let before = tree::describe(&source, ignore());
    for block_size in ["1024", "4096"] {
        let image = work.path().join("disk.img");
        pack(&["-b", block_size], &source, &image);
        check(&image);
        let mount = KernelMount::of_file(&image, "ro");
        tree::assert_equal(&before, &tree::describe(&mount.directory(), ignore()));
    }
}

/// Data in inodes, clusters, and both: what goes in comes out the same, as we see it, as the kernel does, and
/// as it is after the kernel changed it.
#[test]
fn a_tree_goes_into_inodes_and_clusters() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("in");
    fs::create_dir(&source).unwrap();
    tree::make(&source, 7);
    let before = tree::describe(&source, ignore());
    for (number, arguments) in [
        &["-O", "inline_data"][..],
        &["-O", "inline_data", "-I", "512", "-b", "1024"],
        &["-O", "bigalloc"],
        &["-O", "bigalloc", "-b", "1024", "-C", "4096"],
        &["-O", "bigalloc,inline_data", "-C", "16K"],
    ]
    .iter()
    .enumerate()
    {
        let image = work.path().join("disk.img");
        pack(arguments, &source, &image);
        check(&image);
        let features = ext4(["info".as_ref(), image.as_os_str()]).ok();
        for feature in ["inline_data", "bigalloc"] {
            assert_eq!(features.contains(feature), arguments[1].contains(feature), "{arguments:?}");
        }
        let out = work.path().join(format!("out{number}"));
        ext4(["unpack".as_ref(), image.as_os_str(), out.as_os_str()]).ok();
        assert_same(&source, &out, ignore());
        if have_kernel() {
            let mount = KernelMount::of_file(&image, "rw");
            tree::assert_equal(&before, &tree::describe(&mount.directory(), ignore()));
            for size in [40, 150, 5000] {
                fs::write(mount.path(format!("kernel{size}")), vec![b'k'; size]).unwrap();
            }
            drop(mount);
            check(&image);
            for size in [40, 150, 5000] {
                let text = ext4(["cat", &inside(&image, &format!("/kernel{size}"))]).ok();
                assert_eq!(text, "k".repeat(size));
            }
        }
        ext4(["rm", "-r", &inside(&image, "/sizes")]).ok();
        check(&image);
    }
}

#[test]
fn a_block_device_is_packed_through_io_uring() {
    if !have_kernel() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("in");
    fs::create_dir(&source).unwrap();
    tree::make(&source, 3);
    let image = work.path().join("device");
    fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
    let device = LoopDevice::attach(&image, &[]);
    pack(&[], &source, device.path());
    check(device.path());
    let mut again = program();
    again.arg("pack").arg(&source).arg(device.path());
    run(again).fails(1, &["--force", "ext4"]);
    let out = work.path().join("out");
    ext4(["unpack".as_ref(), device.path().as_os_str(), out.as_os_str()]).ok();
    assert_same(&source, &out, ignore());
    drop(device);
    let mount = KernelMount::of_file(&image, "ro");
    assert_same(&source, &mount.directory(), ignore());
}

#[test]
fn a_partition_inside_a_disk_image_is_left_alone_around() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("in");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    let image = work.path().join("disk.img");
    let filler = vec![0xa5; 40 << 20];
    fs::write(&image, &filler).unwrap();
    pack(&["--offset", "4M", "--size", "32M", "--force"], &source, &image);
    let bytes = fs::read(&image).unwrap();
    assert!(bytes[..4 << 20] == filler[..4 << 20], "what is in front of the partition");
    assert!(bytes[36 << 20..] == filler[36 << 20..], "what is behind the partition");
    let text = ext4(["--offset", "4M", "cat", &inside(&image, "/file")]).ok();
    assert_eq!(text, "content");
    fs::write(&image, &bytes[4 << 20..36 << 20]).unwrap();
    check(&image);
}

#[test]
fn the_same_tree_makes_the_same_image() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("in");
    fs::create_dir(&source).unwrap();
    tree::make(&source, 4);
    let mut images = Vec::new();
    for number in 0..3 {
        let image = work.path().join(format!("{number}.img"));
        let mut command = program();
        command.env("SOURCE_DATE_EPOCH", "1700000000").env("TZ", "UTC");
        command.args(["pack", "-U", "0f0e0d0c-0b0a-4908-8706-050403020100"]);
        command.args(["-E", "hash_seed=00010203-0405-4607-8809-0a0b0c0d0e0f"]).arg(&source).arg(&image);
        run(command).ok();
        check(&image);
        images.push(image);
        // The access times change, which must not show.
        tree::describe(&source, ignore());
    }
    let first = fs::read(&images[0]).unwrap();
    for image in &images[1..] {
        let other = fs::read(image).unwrap();
        assert_eq!(first.len(), other.len());
        let differs = (0..first.len()).filter(|at| first[*at] != other[*at]).map(|at| at / 4096);
        let blocks: std::collections::BTreeSet<usize> = differs.collect();
        assert!(blocks.is_empty(), "blocks differ: {blocks:?}");
    }
    let stat = ext4(["stat", "--json", &inside(&images[0], "/times/2147483648")]).ok();
    assert!(stat.contains("\"mtime\": \"1700000000.000000000\""), "later times become the epoch: {stat}");
}

#[test]
fn forty_thousand_names_in_one_directory_are_packed_in_linear_time() {
    let work = tempfile::tempdir().unwrap();
    let mut seconds = Vec::new();
    for count in [10_000, 40_000] {
        let source = work.path().join(format!("in{count}"));
        fs::create_dir_all(source.join("directory")).unwrap();
        for number in 0..count {
            fs::write(source.join(format!("directory/name-{number}")), "").unwrap();
        }
        let image = work.path().join(format!("{count}.img"));
        let started = Instant::now();
        pack(&[], &source, &image);
        seconds.push(started.elapsed().as_secs_f64());
        check(&image);
        if have(&["debugfs"]) {
            let index = debugfs(&image, "htree_dump /directory");
            assert!(index.contains("Root node dump"), "the directory is hash-indexed: {index:.200}");
        }
        let names = ext4(["ls", &inside(&image, "/directory")]).ok();
        assert_eq!(names.lines().count(), count);
    }
    eprintln!("10,000 names in {:.2} s, 40,000 in {:.2} s", seconds[0], seconds[1]);
    assert!(seconds[1] < 8.0 * seconds[0] + 2.0, "{seconds:?}");
}

#[test]
fn many_small_files_fit_into_the_image_made_for_them() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("in");
    fs::create_dir(&source).unwrap();
    let count = if long_tests() { 100_000 } else { 20_000 };
    tree::small_files(&source, count);
    let image = work.path().join("disk.img");
    let started = Instant::now();
    let summary = pack(&[], &source, &image);
    eprintln!("{count} files in {:.2} s: {summary}", started.elapsed().as_secs_f64());
    check(&image);
    let out = work.path().join("out");
    ext4(["unpack".as_ref(), image.as_os_str(), out.as_os_str()]).ok();
    assert_same(&source, &out, ignore());
}

#[test]
fn a_system_tree_is_packed() {
    if !long_form_only() {
        return;
    }
    let source = Path::new("/usr/share");
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("disk.img");
    pack(&[], source, &image);
    check(&image);
    if have_kernel() {
        let mount = KernelMount::of_file(&image, "ro");
        assert_same(source, &mount.directory(), ignore());
    }
}

#[test]
fn everything_may_be_given_to_one_owner() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("in");
    fs::create_dir_all(source.join("below")).unwrap();
    fs::write(source.join("below/file"), "x").unwrap();
    let image = work.path().join("disk.img");
    pack(&["--owner", "12:34", "-L", "a label", "-N", "1000"], &source, &image);
    check(&image);
    for path in ["/", "/below", "/below/file"] {
        let stat = ext4(["stat", "--json", &inside(&image, path)]).ok();
        assert!(stat.contains("\"uid\": 12,") && stat.contains("\"gid\": 34,"), "{path}: {stat}");
    }
    let info = ext4(["info".as_ref(), image.as_os_str()]).ok();
    assert!(info.contains("Filesystem volume name:   a label\n"), "{info}");
}

#[test]
fn an_image_inside_its_own_source_is_left_out() {
    let work = tempfile::tempdir().unwrap();
    fs::write(work.path().join("file"), "x").unwrap();
    let image = work.path().join("disk.img");
    for _ in 0..2 {
        pack(&[], work.path(), &image);
        check(&image);
        let names = ext4(["ls", &inside(&image, "/")]).ok();
        assert_eq!(names, "file\nlost+found\n");
    }
}
