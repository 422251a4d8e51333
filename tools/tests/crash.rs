//! The process is killed while it copies a tree into an image: recovery by the kernel and by us brings back a
//! clean file system in which every file that was reported durable is whole.
//!
//! The kill takes the process away at any system call. All that the process had written stays in the image
//! file, as after a crash of the program (power cuts, after which the device has lost what it had not
//! flushed, are simulated in `ext4-writeback/tests`). The moments follow from a seed that is printed; `SEED`
//! repeats them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use ext4_test_support::loop_device::KernelMount;
use ext4_test_support::settings::{long_tests, seed_or};
use support::{check, ext4, have_kernel, inside, mke2fs, program};
use support::{copy_sparse, tree};

/// A tree large enough that copying it with an fsync for each file takes a while.
fn source(root: &Path, random: &mut fastrand::Rng) {
    for directory in 0..8 {
        let directory = root.join(format!("directory-{directory}"));
        fs::create_dir_all(&directory).unwrap();
        for number in 0..40 {
            let size = match number % 8 {
                0 => random.usize(500_000..2_000_000),
                1..=3 => random.usize(4_000..100_000),
                _ => random.usize(0..5_000),
            };
            tree::file(&directory.join(format!("file-{number}")), size, random);
        }
    }
}

/// Copies the tree into the image and kills the copy after `delay`; gives the files that were reported
/// durable.
fn killed_copy(source: &Path, image: &Path, delay: Duration, cache: &str) -> Vec<String> {
    let mut command = program();
    command.args(["--cache", cache, "cp", "-r", "--report-durable"]);
    command.arg(source).arg(inside(image, "/tree")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let output = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(output).lines().map_while(Result::ok);
        lines.filter_map(|line| line.strip_prefix("durable ").map(String::from)).collect::<Vec<_>>()
    });
    std::thread::sleep(delay);
    let _ = child.kill();
    let status = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&status.stderr);
    assert!(text.is_empty(), "the copy failed by itself: {text}");
    let mut durable = reader.join().unwrap();
    // The pipe may have been cut in the middle of a line.
    durable.retain(|path| Path::new(path).is_file());
    durable
}

#[track_caller]
fn assert_whole(source: &Path, durable: &[String], copy: &Path) {
    for path in durable {
        let name = Path::new(path).strip_prefix(source).unwrap();
        let (left, right) = (fs::read(path).unwrap(), fs::read(copy.join(name)));
        assert!(
            right.is_ok_and(|right| left == right),
            "{} was reported durable and is not whole",
            name.display()
        );
    }
}

#[test]
fn a_killed_copy_leaves_what_it_reported() {
    if !have_kernel() {
        return;
    }
    let mut random = fastrand::Rng::with_seed(seed_or(fastrand::u64(..)));
    let work = tempfile::tempdir().unwrap();
    let source_tree = work.path().join("in");
    fs::create_dir(&source_tree).unwrap();
    source(&source_tree, &mut random);
    let moments = if long_tests() { 20 } else { 4 };
    for block_size in ["1024", "4096"] {
        let fresh = work.path().join("fresh.img");
        mke2fs(&fresh, 256 << 20, &["-b", block_size]);
        // How long a copy takes here and now: moments after its end would show nothing.
        let whole = work.path().join("whole.img");
        copy_sparse(&fresh, &whole);
        let started = Instant::now();
        ext4(["cp", "-r", "--sync", source_tree.to_str().unwrap(), &inside(&whole, "/tree")]).ok();
        let most = u64::try_from(started.elapsed().as_micros()).unwrap();
        for moment in 0..moments {
            let image = work.path().join("disk.img");
            copy_sparse(&fresh, &image);
            let delay = Duration::from_micros(random.u64(2_000..most.max(3_000)));
            let durable = killed_copy(&source_tree, &image, delay, ["256M", "16M"][moment % 2]);
            eprintln!("{block_size}-byte blocks, killed after {delay:?}: {} files durable", durable.len());

            let theirs = work.path().join("theirs.img");
            copy_sparse(&image, &theirs);
            {
                let mount = KernelMount::of_file(&theirs, "rw");
                assert_whole(&source_tree, &durable, &mount.path("tree"));
            }
            check(&theirs);

            // Our recovery: any command that mounts.
            ext4(["df".as_ref(), image.as_os_str()]).ok();
            check(&image);
            let out = work.path().join("out");
            if !durable.is_empty() {
                ext4(["cp", "-r", &inside(&image, "/tree"), out.to_str().unwrap()]).ok();
                assert_whole(&source_tree, &durable, &out);
                fs::remove_dir_all(&out).unwrap();
            }
            // And the file system goes on: the whole copy works on top of what was left.
            ext4(["cp", "-r", &format!("{}/.", source_tree.display()), &inside(&image, "/")]).ok();
            check(&image);
        }
    }
}
