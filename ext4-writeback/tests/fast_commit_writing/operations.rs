//! Fast commits operation by operation: which are fast, which are full, and what is found after a crash.

use ext4_core::InodeNumber;
use ext4_core::format::inode::FileType;
use ext4_test_support::counted::at_least;
use ext4_test_support::tools::{can_mount, have, mke2fs_image};
use ext4_writeback::{
    Credentials, FallocateMode, FastCommitReason, Filesystem, RenameFlags, SetAttributes, SetMode,
};

use crate::{common, judge, quiet};

const ROOT: InodeNumber = InodeNumber::ROOT;

fn owner() -> Credentials {
    Credentials { uid: 3, gid: 4, mode: 0o644 }
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 3 + seed * 7) as u8 | 1).collect()
}

/// A tree to work on, committed in full.
async fn prepare(filesystem: &Filesystem) {
    // Inodes beside the journal's have a rule of their own.
    for number in 0..24 {
        filesystem.create(ROOT, format!("first{number}").as_bytes(), owner()).await.unwrap();
    }
    let directory = filesystem.mkdir(ROOT, b"dir", owner()).await.unwrap();
    for (number, len) in [100, 4096, 20_000, 300_000].into_iter().enumerate() {
        filesystem.write(&format!("/dir/file{number}"), pattern(len, number)).await.unwrap();
        filesystem.write(&format!("/top{number}"), pattern(len, number)).await.unwrap();
    }
    let twice = filesystem.resolve(b"/dir/file2", true).await.unwrap();
    filesystem.link(twice, directory, b"again").await.unwrap();
    // With holes, in pieces.
    let sparse = filesystem.create(directory, b"sparse", owner()).await.unwrap();
    let file = filesystem.open(sparse).await.unwrap();
    for at in 0..3 {
        file.write_at(at * 100_000, &pattern(5000, 9)).await.unwrap();
    }
    filesystem.symlink(ROOT, b"link", b"dir/file1", owner()).await.unwrap();
    filesystem.sync().await.unwrap();
}

/// Does the operation of that name; returns the inode that is synced.
async fn perform(filesystem: &Filesystem, operation: &str) -> InodeNumber {
    let find = async |path: &str| filesystem.resolve(path.as_bytes(), true).await.unwrap();
    let open = async |path: &str| filesystem.open(find(path).await).await.unwrap();
    let directory = find("/dir").await;
    let flags = RenameFlags::default();
    match operation {
        "append" => {
            let file = open("/dir/file1").await;
            file.write_at(4096, &pattern(10_000, 1)).await.unwrap();
            find("/dir/file1").await
        }
        "punch"
        | "zero"
        | "zero past the end"
        | "allocate"
        | "allocate past the end"
        | "collapse"
        | "insert" => {
            let (path, mode, offset, len) = match operation {
                "punch" => ("/dir/file3", FallocateMode::PunchHole, 10_000, 100_000),
                "zero" => ("/dir/file3", FallocateMode::ZeroRange, 10_000, 100_000),
                "zero past the end" => ("/dir/file3", FallocateMode::ZeroRange, 250_000, 100_000),
                "allocate" => ("/dir/sparse", FallocateMode::Allocate, 50_000, 10_000),
                "allocate past the end" => ("/dir/file0", FallocateMode::Allocate, 1000, 500_000),
                "collapse" => ("/dir/file3", FallocateMode::CollapseRange, 8192, 65_536),
                _ => ("/dir/file3", FallocateMode::InsertRange, 8192, 65_536),
            };
            open(path).await.fallocate(mode, offset, len).await.unwrap();
            find(path).await
        }
        "append across many blocks" => {
            let file = open("/dir/file0").await;
            file.write_at(100, &pattern(3_000_000, 1)).await.unwrap();
            find("/dir/file0").await
        }
        "overwrite" => {
            let file = open("/dir/file3").await;
            file.write_at(5000, &pattern(50_000, 2)).await.unwrap();
            find("/dir/file3").await
        }
        "write into a hole" => {
            let file = open("/dir/sparse").await;
            file.write_at(50_000, &pattern(9000, 3)).await.unwrap();
            find("/dir/sparse").await
        }
        "write far behind the end" => {
            let file = open("/dir/file0").await;
            file.write_at(1 << 20, &pattern(70, 3)).await.unwrap();
            find("/dir/file0").await
        }
        "truncate down" => {
            open("/dir/file3").await.set_len(12_345).await.unwrap();
            find("/dir/file3").await
        }
        "truncate to nothing" => {
            open("/dir/file3").await.set_len(0).await.unwrap();
            find("/dir/file3").await
        }
        "truncate up" => {
            open("/dir/file2").await.set_len(1 << 20).await.unwrap();
            find("/dir/file2").await
        }
        "truncate and write again" => {
            let file = open("/dir/file3").await;
            file.set_len(5000).await.unwrap();
            file.write_at(20_000, &pattern(30_000, 5)).await.unwrap();
            find("/dir/file3").await
        }
        "create" => filesystem.create(directory, b"new", owner()).await.unwrap(),
        "create with content" => {
            filesystem.write("/dir/new", pattern(100_000, 6)).await.unwrap();
            find("/dir/new").await
        }
        "create many" => {
            for number in 0..30 {
                let name = format!("/dir/new file number {number}");
                filesystem.write(&name, pattern(number * 500, number)).await.unwrap();
                open(&name).await.start_writeback().await.unwrap();
            }
            for number in 0..30 {
                filesystem.fsync(find(&format!("/dir/new file number {number}")).await).await.unwrap();
            }
            find("/dir/new file number 3").await
        }
        "link" => {
            let file = find("/dir/file1").await;
            filesystem.link(file, ROOT, b"linked").await.unwrap();
            file
        }
        "create and link" => {
            filesystem.write("/dir/new", pattern(7000, 6)).await.unwrap();
            let file = find("/dir/new").await;
            filesystem.link(file, ROOT, b"linked").await.unwrap();
            filesystem.link(file, directory, b"linked too").await.unwrap();
            filesystem.unlink(directory, b"new").await.unwrap();
            file
        }
        "unlink one of two names" => {
            filesystem.unlink(directory, b"again").await.unwrap();
            find("/dir/file2").await
        }
        "unlink the last name" => {
            filesystem.unlink(directory, b"file3").await.unwrap();
            let file = open("/dir/file1").await;
            file.write_at(0, b"changed").await.unwrap();
            find("/dir/file1").await
        }
        "create and unlink" => {
            filesystem.write("/dir/temporary", pattern(30_000, 8)).await.unwrap();
            filesystem.unlink(directory, b"temporary").await.unwrap();
            filesystem.write("/dir/kept", pattern(100, 8)).await.unwrap();
            find("/dir/kept").await
        }
        "rename in a directory" => {
            filesystem.rename((directory, b"file1"), (directory, b"renamed"), flags).await.unwrap();
            find("/dir/renamed").await
        }
        "rename to another directory" => {
            filesystem.rename((directory, b"file1"), (ROOT, b"renamed"), flags).await.unwrap();
            find("/renamed").await
        }
        "rename a new file over one of two names" => {
            filesystem.write("/dir/new", pattern(9000, 4)).await.unwrap();
            filesystem.rename((directory, b"new"), (directory, b"again"), flags).await.unwrap();
            find("/dir/again").await
        }
        "rename over the last name" => {
            filesystem.write("/dir/new", pattern(9000, 4)).await.unwrap();
            filesystem.rename((directory, b"new"), (directory, b"file1"), flags).await.unwrap();
            find("/dir/file1").await
        }
        "attributes" => {
            let file = find("/dir/file1").await;
            let time = ext4_core::Timestamp { seconds: 1_234_567_890, nanoseconds: 5 };
            let changes = SetAttributes::new().mode(0o600).uid(100_000).gid(5).mtime(time).atime(time);
            filesystem.set_attributes(file, &changes).await.unwrap();
            file
        }
        "several files" => {
            for number in 0..4 {
                let file = open(&format!("/top{number}")).await;
                file.write_at(2000, &pattern(40_000, number)).await.unwrap();
                file.sync_all().await.unwrap();
            }
            find("/top3").await
        }
        "pieces with holes between" => {
            let file = open("/dir/file0").await;
            for piece in 1..13 {
                file.write_at(piece * 50_000, &pattern(3000, 2)).await.unwrap();
            }
            find("/dir/file0").await
        }
        "attributes of a file in many pieces" => {
            let file = open("/dir/file0").await;
            for piece in 1..13 {
                file.write_at(piece * 50_000, &pattern(3000, 2)).await.unwrap();
            }
            filesystem.sync().await.unwrap();
            file.write_at(10, &pattern(50, 7)).await.unwrap();
            find("/dir/file0").await
        }
        "appends to several files in turn" => {
            for round in 0..20_u64 {
                for number in 0..4 {
                    let file = open(&format!("/top{number}")).await;
                    file.write_at(300_000 + round * 4096, &pattern(4096, number)).await.unwrap();
                    file.sync_all().await.unwrap();
                }
            }
            find("/top3").await
        }
        "full after fast" => {
            let file = open("/top1").await;
            file.write_at(5000, &pattern(5000, 1)).await.unwrap();
            file.sync_all().await.unwrap();
            filesystem.sync().await.unwrap();
            find("/top1").await
        }
        "fast after full, in turn" => {
            let file = open("/top1").await;
            for round in 0..6_u64 {
                file.write_at(round * 5000, &pattern(5000, 1)).await.unwrap();
                file.sync_all().await.unwrap();
                if round % 2 == 1 {
                    filesystem.sync().await.unwrap();
                }
            }
            file.write_at(77, &pattern(50, 1)).await.unwrap();
            find("/top1").await
        }
        "attribute" => {
            let file = find("/dir/file1").await;
            filesystem.setxattr(file, b"user.colour", b"green", SetMode::Any).await.unwrap();
            file
        }
        "exchange" => {
            let exchange = RenameFlags { exchange: true, no_replace: false };
            filesystem.rename((directory, b"file1"), (directory, b"file2"), exchange).await.unwrap();
            find("/dir/file1").await
        }
        "rename of a directory" => {
            filesystem.rename((ROOT, b"dir"), (ROOT, b"moved"), flags).await.unwrap();
            open("/moved/file1").await.write_at(0, b"changed").await.unwrap();
            find("/moved/file1").await
        }
        "mkdir" => {
            filesystem.mkdir(ROOT, b"made", owner()).await.unwrap();
            filesystem.write("/made/inside", pattern(50, 1)).await.unwrap();
            find("/made/inside").await
        }
        "symlink" => {
            filesystem.symlink(directory, b"symlink", b"file1", owner()).await.unwrap();
            filesystem.write("/dir/new", pattern(50, 1)).await.unwrap();
            find("/dir/new").await
        }
        "pipe" => {
            filesystem.mknod(directory, b"pipe", FileType::Fifo, (0, 0), owner()).await.unwrap();
            filesystem.write("/dir/new", pattern(50, 1)).await.unwrap();
            find("/dir/new").await
        }
        "growth of a directory" => {
            for number in 0..100 {
                let name = format!("{number}: a name of such a length that soon a block is full {:0>100}", 1);
                filesystem.create(directory, name.as_bytes(), owner()).await.unwrap();
            }
            open("/dir/file1").await.write_at(0, b"changed").await.unwrap();
            find("/dir/file1").await
        }
        "an inode number used again" => {
            // Its last name goes in one transaction, the inode itself in the next: the file was open.
            let held = open("/dir/file3").await;
            filesystem.unlink(directory, b"file3").await.unwrap();
            filesystem.sync().await.unwrap();
            drop(held);
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            for number in 0..20 {
                filesystem.create(directory, format!("reuse{number}").as_bytes(), owner()).await.unwrap();
            }
            find("/dir/reuse0").await
        }
        _ => panic!("{operation}"),
    }
}

/// Operations that fsync makes durable by a fast commit, and those that it does not, with the reason.
const OPERATIONS: &[(&str, Option<FastCommitReason>)] = &[
    ("append", None),
    ("append across many blocks", None),
    ("overwrite", None),
    ("write into a hole", None),
    ("write far behind the end", None),
    ("punch", None),
    ("zero", None),
    ("zero past the end", None),
    ("allocate", None),
    ("allocate past the end", None),
    ("collapse", Some(FastCommitReason::FallocRange)),
    ("insert", Some(FastCommitReason::FallocRange)),
    ("truncate down", None),
    ("truncate to nothing", None),
    ("truncate up", None),
    ("truncate and write again", None),
    ("create", None),
    ("create with content", None),
    ("create many", None),
    ("link", None),
    ("create and link", None),
    ("unlink one of two names", None),
    ("create and unlink", None),
    ("rename in a directory", None),
    ("rename to another directory", None),
    ("rename a new file over one of two names", None),
    ("attributes", None),
    ("several files", None),
    ("appends to several files in turn", None),
    ("fast after full, in turn", None),
    ("full after fast", None),
    ("attributes of a file in many pieces", None),
    ("pieces with holes between", Some(FastCommitReason::ExtentNodes)),
    ("unlink the last name", Some(FastCommitReason::LastLink)),
    ("rename over the last name", Some(FastCommitReason::LastLink)),
    ("attribute", Some(FastCommitReason::Xattr)),
    ("exchange", Some(FastCommitReason::CrossRename)),
    ("rename of a directory", Some(FastCommitReason::RenameDirectory)),
    ("mkdir", Some(FastCommitReason::Directory)),
    ("symlink", Some(FastCommitReason::SpecialFile)),
    ("pipe", Some(FastCommitReason::SpecialFile)),
    ("growth of a directory", Some(FastCommitReason::DirectoryGrowth)),
    ("an inode number used again", Some(FastCommitReason::InodeReuse)),
];

const KINDS: &[(&str, &[&str])] = &[
    ("4k", &["-O", "fast_commit", "-b", "4096"]),
    ("1k", &["-O", "fast_commit,orphan_file", "-b", "1024"]),
    ("old", &["-O", "fast_commit,^metadata_csum,^64bit", "-b", "2048", "-I", "128"]),
];

async fn one_by_one(arguments: &[&str], kind: &str) {
    if !have(&["mkfs.ext4", "e2fsck", "getfattr"]) || !can_mount() {
        return;
    }
    let blank = mke2fs_image(arguments, "64M");
    // One of them alone: EXT4_OPERATION=part-of-its-name.
    let filter = std::env::var("EXT4_OPERATION").ok();
    let wanted = |operation: &str| filter.as_ref().is_none_or(|filter| operation.contains(filter.as_str()));
    let operations = OPERATIONS.iter().filter(|(operation, _)| wanted(operation));
    for (operation, reason) in at_least(1, "operations", operations) {
        let context = format!("{operation}, {kind}");
        println!("{context}");
        let mounted = common::mount_with(&blank, quiet()).await;
        let filesystem = &mounted.filesystem;
        prepare(filesystem).await;
        let (before, _) = filesystem.fast_commit_statistics();
        let inode = perform(filesystem, operation).await;
        filesystem.fsync(inode).await.unwrap();
        let (after, reasons) = filesystem.fast_commit_statistics();
        let counted = reasons.counts().into_iter().filter(|(_, count)| *count > 0).collect::<Vec<_>>();
        match reason {
            None => assert!(after.commits > before.commits, "{context}: {after:?}, {counted:?}"),
            Some(reason) => {
                assert_eq!(after.commits, before.commits, "{context}");
                let found = counted.iter().any(|(found, _)| found == reason);
                assert!(found && after.ineligible > before.ineligible, "{context}: {after:?}, {counted:?}");
            }
        }
        let expected = judge::live(filesystem).await;
        let crashed = mounted.crash();
        judge::assert_recovered(&crashed, &expected, &context).await;
    }
}

#[tokio::test]
async fn what_fsync_returned_for_is_replayed_by_all_three_4k() {
    one_by_one(KINDS[0].1, KINDS[0].0).await;
}

#[tokio::test]
async fn what_fsync_returned_for_is_replayed_by_all_three_1k() {
    one_by_one(KINDS[1].1, KINDS[1].0).await;
}

#[tokio::test]
async fn what_fsync_returned_for_is_replayed_by_all_three_old() {
    one_by_one(KINDS[2].1, KINDS[2].0).await;
}
