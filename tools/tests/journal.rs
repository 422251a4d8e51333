//! `ext4 journal`: the log without a mount, judged by debugfs, e2fsck and what the program itself says
//! afterwards.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ext4_test_support::tools::{command, debugfs, debugfs_write, have_e2fsprogs};
use serde_json::Value;
use support::{Run, check, ext4, inside, mke2fs, program, run};

/// An image whose log holds three transactions over the 100 blocks of /target, written by debugfs: blocks
/// 0..30 full of '1', 10..40 of '2', a revoke of 0..5 in the third, which writes 20..50 full of '3'.
fn dirty(work: &Path) -> PathBuf {
    let image = work.join("disk.img");
    mke2fs(&image, 24 << 20, &["-b", "1024", "-J", "size=4", "-O", "64bit,metadata_csum"]);
    fs::write(work.join("target"), vec![b'a'; 100 << 10]).unwrap();
    debugfs_write(&image, &format!("write {} target", work.join("target").display()));
    let blocks: Vec<String> =
        debugfs(&image, "blocks /target").split_whitespace().map(str::to_owned).collect();
    let list = |first: usize, count: usize| blocks[first..first + count].join(",");
    let mut script = String::new();
    for (number, first) in [(1, 0), (2, 10), (3, 20)] {
        let new = work.join(format!("new{number}"));
        fs::write(&new, vec![b'0' + number; 30 << 10]).unwrap();
        script += "jo -c -v 3\n";
        if number == 3 {
            script += &format!("jw -r {}\njc\njo -c -v 3\n", list(0, 5));
        }
        script += &format!("jw -b {} {}\njc\n", list(first, 30), new.display());
    }
    fs::write(work.join("script"), script).unwrap();
    let mut command = command("debugfs");
    command.arg("-w").arg("-f").arg(work.join("script")).arg(&image);
    run(command).ok();
    image
}

fn journal(arguments: &[&str], image: &Path) -> Run {
    let mut command = program();
    command.arg("journal").args(arguments).arg(image).env("TZ", "UTC");
    run(command)
}

fn json(arguments: &[&str], image: &Path) -> Value {
    serde_json::from_str(&journal(arguments, image).ok()).unwrap()
}

fn target(image: &Path) -> Vec<u8> {
    let content = ext4(["--noload", "cat", &inside(image, "/target")]).stdout;
    assert_eq!(content.len(), 100 << 10);
    content.chunks(1024).map(|block| block[1023]).collect()
}

fn replayed() -> Vec<u8> {
    let mut expected = vec![b'a'; 100];
    expected[5..20].fill(b'1');
    expected[10..40].fill(b'2');
    expected[20..50].fill(b'3');
    expected
}

/// The byte in the image of a log block.
fn place(image: &Path, log_block: u64) -> u64 {
    let blocks = debugfs(image, "blocks <8>");
    let blocks: Vec<u64> = blocks.split_whitespace().map(|block| block.parse().unwrap()).collect();
    blocks[usize::try_from(log_block).unwrap()] * 1024
}

fn flip(image: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(image).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn every_part_explains_itself() {
    for command in ["dump", "stat", "replay"] {
        let text = ext4(["journal", command, "--help"]).ok();
        assert!(text.contains("Examples:\n  ext4 journal "), "{command}: {text}");
    }
    ext4(["journal"]).fails(2, &[]);
    ext4(["journal", "mend", "disk.img"]).fails(2, &[]);
    ext4(["journal", "replay", "--salvage"]).fails(2, &[]);
}

#[test]
fn a_log_is_counted_shown_and_replayed() {
    if !have_e2fsprogs() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let image = dirty(work.path());
    let before = fs::read(&image).unwrap();

    let numbers = json(&["stat", "--json"], &image);
    for (key, value) in [("transactions", 4), ("images", 90), ("blocks", 4096), ("start", 1), ("errno", 0)] {
        assert_eq!(numbers[key], value, "{key} in {numbers}");
    }
    assert_eq!(numbers["needs_recovery"], true);
    let used = numbers["used_blocks"].as_u64().unwrap();
    assert_eq!(used + numbers["free_blocks"].as_u64().unwrap(), numbers["ring_blocks"].as_u64().unwrap());
    let text = journal(&["stat"], &image).ok();
    for line in ["Transactions:         4\n", "Needs recovery:       yes\n", "Errno:                0\n"] {
        assert!(text.contains(line), "{line:?} in {text}");
    }

    let dump = json(&["dump", "--json"], &image);
    let blocks = dump["blocks"].as_array().unwrap();
    let kinds: Vec<_> = blocks.iter().map(|block| block["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        ["descriptor", "commit", "descriptor", "commit", "revoke", "commit", "descriptor", "commit"]
    );
    assert_eq!(blocks[0]["tags"].as_array().unwrap().len(), 30);
    assert_eq!(blocks[0]["tags"][0]["revoked"], true);
    assert_eq!(blocks[0]["tags"][9]["revoked"], false);
    assert_eq!(blocks[0]["tags"][9]["checksum"]["ok"], true);
    assert_eq!(blocks[4]["revoked"].as_array().unwrap().len(), 5);
    // The same blocks as debugfs sees.
    let text = journal(&["dump"], &image).ok();
    let logdump = debugfs(&image, "logdump -a");
    let theirs = logdump.lines().filter(|line| line.contains("logged at journal block"));
    let theirs: Vec<_> = theirs
        .map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            format!("  block {}: image of block {}", words[7], words[2])
        })
        .collect();
    assert_eq!(theirs.len(), 90);
    for line in theirs {
        assert!(text.contains(&line), "{line:?} in {text}");
    }

    let said = journal(&["replay", "--check"], &image).ok();
    assert!(said.starts_with("Would replay 4 transactions: 85 blocks, 5 more were revoked\n"), "{said}");
    assert!(fs::read(&image).unwrap() == before, "nothing is written so far");
    assert_eq!(target(&image), vec![b'a'; 100]);

    let outcome = json(&["replay", "--json"], &image);
    for (key, value) in [("transactions", 4), ("blocks", 85), ("revoked", 5), ("orphans", 0)] {
        assert_eq!(outcome[key], value, "{key} in {outcome}");
    }
    assert_eq!(outcome["error_recorded"], false);
    assert_eq!(target(&image), replayed());
    check(&image);
    assert!(!debugfs(&image, "stats").contains("needs_recovery"), "RECOVER is gone");
    assert_eq!(journal(&["replay"], &image).ok(), "The log is empty: nothing to replay\n");
    // What was replayed lies there still.
    assert_eq!(json(&["dump", "--json"], &image)["blocks"], Value::Array(Vec::new()));
    let old = json(&["dump", "--json", "--all"], &image);
    let old = old["blocks"].as_array().unwrap();
    assert!(old.len() >= 8 && old.iter().all(|block| block["part"] == "old"), "{old:?}");
}

#[test]
fn a_damaged_log_is_refused_and_salvaged_when_asked() {
    if !have_e2fsprogs() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let intact = dirty(work.path());
    let dump = json(&["dump", "--json"], &intact);
    let second = &dump["blocks"][2];
    let id = second["transaction"].as_u64().unwrap();
    let image_block = second["tags"][5]["log_block"].as_u64().unwrap();
    let fs_block = second["tags"][5]["block"].as_u64().unwrap();
    let descriptor = second["block"].as_u64().unwrap();
    for (what, block, name) in [
        ("image", image_block, format!("image of block {fs_block} of transaction {id}")),
        ("descriptor", descriptor, format!("descriptor of transaction {id}")),
    ] {
        let image = work.path().join(format!("{what}.img"));
        fs::copy(&intact, &image).unwrap();
        flip(&image, place(&image, block) + 900);
        let before = fs::read(&image).unwrap();
        journal(&["replay"], &image).fails(1, &[&name, "disk.img".replace("disk", what).as_str()]);
        journal(&["replay", "--check"], &image).fails(1, &[&name]);
        ext4(["mkdir", &inside(&image, "/x")]).fails(1, &[&name]);
        let said = journal(&["replay", "--check", "--salvage"], &image);
        assert!(String::from_utf8_lossy(&said.stdout).contains(&name), "{said:?}");
        said.fails(3, &["e2fsck -f"]);
        let said = journal(&["dump"], &image).ok();
        assert!(said.contains("is wrong (it should be"), "{said}");
        assert!(fs::read(&image).unwrap() == before, "nothing is written so far");

        let salvaged = journal(&["replay", "--salvage", "--json"], &image);
        let outcome: Value = serde_json::from_slice(&salvaged.stdout).unwrap();
        salvaged.fails(3, &["1 damaged places", "e2fsck -f"]);
        assert_eq!(outcome["error_recorded"], true);
        assert_eq!(outcome["findings"][0]["log_block"], block);
        let mut expected = replayed();
        if what == "image" {
            // The older image of that block is replayed.
            expected[15] = b'1';
        } else {
            // The first transaction alone; what revokes a part of it comes behind the damage.
            expected = vec![b'a'; 100];
            expected[..30].fill(b'1');
        }
        assert_eq!(target(&image), expected, "{what}");
        assert!(debugfs(&image, "stats").contains("with errors"), "a check has to follow");
        let mut command = command("e2fsck");
        command.arg("-fy").arg(&image);
        run(command);
        check(&image);
        assert_eq!(json(&["stat", "--json"], &image)["errno"], 0);
    }
}

#[test]
fn what_has_no_journal_or_none_that_is_one_is_said_in_one_line() {
    if !have_e2fsprogs() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let without = work.path().join("without.img");
    mke2fs(&without, 8 << 20, &["-O", "^has_journal"]);
    let broken = work.path().join("broken.img");
    mke2fs(&broken, 24 << 20, &["-b", "1024", "-J", "size=4"]);
    flip(&broken, place(&broken, 0));
    let noise = work.path().join("noise.img");
    fs::write(&noise, (0..1 << 20).map(|_| fastrand::u8(..)).collect::<Vec<_>>()).unwrap();
    for command in ["stat", "dump", "replay"] {
        journal(&[command], &without).fails(1, &["without.img", "no journal"]);
        journal(&[command], &broken).fails(1, &["broken.img", "journal superblock: magic"]);
        journal(&[command], &noise).fails(1, &["noise.img"]);
        journal(&[command], &work.path().join("missing.img")).fails(1, &["missing.img"]);
    }
}

#[test]
fn an_empty_log_is_said_to_be_empty() {
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("disk.img");
    ext4(["mkfs".as_ref(), image.as_os_str(), "32M".as_ref()]).ok();
    ext4(["cp", "/etc/passwd", &inside(&image, "/file")]).ok();
    let numbers = json(&["stat", "--json"], &image);
    assert_eq!((&numbers["needs_recovery"], &numbers["transactions"]), (&false.into(), &0.into()));
    let said = journal(&["dump"], &image).ok();
    assert!(said.contains("The log is empty"), "{said}");
    let before = fs::read(&image).unwrap();
    assert_eq!(journal(&["replay"], &image).ok(), "The log is empty: nothing to replay\n");
    assert!(fs::read(&image).unwrap() == before, "nothing to do is nothing done");
}
