//! Resident memory stays within what `--cache` allows, however much is copied. One test in a binary of its
//! own: the host counts the peak of all children of a process.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use ext4_test_support::settings::long_tests;
use nix::sys::resource::{UsageWho, getrusage};
use support::{check, program, run};

/// Fills files with noise, 64 MiB each, `total` bytes in all.
fn noise(root: &std::path::Path, total: u64) {
    let mut random = fastrand::Rng::with_seed(1);
    let mut bytes = vec![0; 4 << 20];
    for number in 0..total / (64 << 20) {
        let file = File::create(root.join(format!("{number}"))).unwrap();
        for piece in 0..16_u64 {
            random.fill(&mut bytes[..4096]);
            file.write_all_at(&bytes, piece * (4 << 20)).unwrap();
        }
    }
    for number in 0..5000 {
        fs::write(root.join(format!("small-{number}")), b"small").unwrap();
    }
}

#[test]
fn packing_stays_within_its_memory() {
    let (total, cache, limit) =
        if long_tests() { (4_u64 << 30, "256M", 400) } else { (512 << 20, "32M", 176) };
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("in");
    fs::create_dir(&source).unwrap();
    noise(&source, total);
    let image = work.path().join("disk.img");
    let mut command = program();
    command.args(["--cache", cache, "pack"]).arg(&source).arg(&image);
    let summary = run(command).ok();
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss() / 1024;
    eprintln!("{summary}--cache {cache}: {peak} MiB resident at most");
    assert!(peak < limit, "{peak} MiB resident, {limit} allowed");
    check(&image);
}
