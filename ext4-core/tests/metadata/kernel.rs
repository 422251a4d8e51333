//! The kernel's ext4 as the other side: what it wrote is read here, what was written here it reads. These
//! need root and loop devices; they are skipped if those are not there, except in CI.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use ext4_core::InodeNumber;
use ext4_core::format::inode::{FileType, Inode, InodeFlags};
use ext4_core::meta::directory::{lookup, read, remove};
use ext4_core::meta::xattr::{SetMode, get, list, set};

use crate::fixture::Fixture;
use ext4_test_support::loop_device::KernelMount;
use ext4_test_support::tools::{assert_clean, mke2fs_content, run_if_there};

fn image_file(content: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    file
}

/// A name with bytes below and over 127, different for each `i`.
fn name(i: u32) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(u64::from(i));
    let mut name = format!("{i}-").into_bytes();
    name.extend((0..random.usize(0..60)).map(|_| random.u8(1..)).map(|b| if b == b'/' { b'+' } else { b }));
    name
}

async fn all_names(
    fixture: &Fixture,
    directory: &Inode,
) -> BTreeMap<Vec<u8>, (InodeNumber, Option<FileType>)> {
    let (mut position, mut names) = (0, BTreeMap::new());
    loop {
        let entries = read(&fixture.info, directory, position, 500).await.unwrap();
        let Some(last) = entries.last() else { return names };
        position = last.next;
        for entry in entries {
            assert!(names.insert(entry.name, (entry.inode, entry.file_type)).is_none(), "once each");
        }
    }
}

fn os(name: &[u8]) -> &std::ffi::OsStr {
    std::ffi::OsStr::from_bytes(name)
}

const LAYOUTS: &[(&str, &[&str])] = &[
    ("64M", &["-b", "1024"]),
    ("64M", &["-b", "4096"]),
    ("64M", &["-b", "1024", "-O", "^metadata_csum,uninit_bg"]),
    ("64M", &["-b", "1024", "-O", "^dir_index"]),
    ("64M", &["-b", "1024", "-O", "^extents,^64bit"]),
    ("64M", &["-b", "1024", "-O", "none,sparse_super,filetype", "-I", "128"]),
];

#[tokio::test]
async fn directories_that_the_kernel_made_are_read_and_changed() {
    for (size, options) in LAYOUTS {
        let Some(content) = mke2fs_content(size, options) else { return };
        let file = image_file(&content);
        let count = 3000_u32;
        let mut expected = BTreeMap::new();
        {
            let Some(mounted) = KernelMount::if_possible(file.path()) else { return };
            let directory = mounted.path("names");
            std::fs::create_dir(&directory).unwrap();
            let target = directory.join("target");
            std::fs::write(&target, b"").unwrap();
            for i in 0..count {
                std::fs::hard_link(&target, directory.join(os(&name(i)))).unwrap();
            }
            for i in (0..count).step_by(3) {
                std::fs::remove_file(directory.join(os(&name(i)))).unwrap();
            }
            std::os::unix::fs::symlink("x", directory.join("link")).unwrap();
            for entry in std::fs::read_dir(&directory).unwrap() {
                let entry = entry.unwrap();
                let number = InodeNumber(u32::try_from(entry.metadata().unwrap().ino()).unwrap());
                expected.insert(entry.file_name().as_bytes().to_vec(), number);
            }
        }
        let fixture = Fixture::open(std::fs::read(file.path()).unwrap()).await;
        let (info, transaction) = (&fixture.info, &fixture.transaction);
        let root = fixture.read_inode(InodeNumber::ROOT).await;
        let (number, _) = lookup(info, &root, b"names").await.unwrap().unwrap();
        let mut directory = fixture.read_inode(number).await;
        assert_eq!(
            directory.flags.contains(InodeFlags::INDEX),
            size == &"64M" && !options.iter().any(|o| o.contains("^dir_index") || o.contains("none"))
        );
        let mut found = all_names(&fixture, &directory).await;
        assert_eq!(found.remove(b".".as_slice()).unwrap().0, number);
        assert_eq!(found.remove(b"..".as_slice()).unwrap().0, InodeNumber::ROOT);
        assert_eq!(found[b"link".as_slice()].1, Some(FileType::Symlink));
        let found: BTreeMap<_, _> = found.into_iter().map(|(name, (inode, _))| (name, inode)).collect();
        assert!(found == expected, "{options:?}");
        for i in 0..count {
            let there = lookup(info, &directory, &name(i)).await.unwrap();
            assert_eq!(there.map(|(inode, _)| inode), expected.get(&name(i)).copied(), "{options:?}: {i}");
        }

        // Both write in turn: names go and come here, then the kernel looks.
        let (number, _) = lookup(info, &directory, b"target").await.unwrap().unwrap();
        let mut target = fixture.read_inode(number).await;
        for i in (1..count).step_by(3) {
            remove(info, transaction, &mut directory, &name(i)).await.unwrap();
            expected.remove(&name(i));
            target.links_count -= 1;
        }
        for i in 0..count / 2 {
            fixture.add(&mut directory, &name(10_000 + i), &target).await;
            expected.insert(name(10_000 + i), number);
            target.links_count += 1;
        }
        fixture.write_inode(&directory).await;
        fixture.write_inode(&target).await;
        let file = image_file(&fixture.check(&format!("{options:?}, both wrote")).await);
        {
            let Some(mounted) = KernelMount::if_possible(file.path()) else { return };
            let directory = mounted.path("names");
            let names: BTreeSet<_> = std::fs::read_dir(&directory)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
                .collect();
            assert!(names == expected.keys().cloned().collect());
            for name in expected.keys() {
                assert!(
                    directory.join(os(name)).symlink_metadata().is_ok(),
                    "the kernel finds each by its hash"
                );
            }
            for i in 0..500 {
                std::fs::hard_link(directory.join("target"), directory.join(os(&name(20_000 + i)))).unwrap();
            }
        }
        assert_clean(file.path(), &format!("{options:?}, the kernel wrote last"));
    }
}

#[tokio::test]
async fn attributes_go_both_ways() {
    for options in [&["-b", "1024"][..], &["-b", "4096", "-I", "128"]] {
        let Some(content) = mke2fs_content("16M", options) else { return };
        let file = image_file(&content);
        let long = "x".repeat(600);
        {
            let Some(mounted) = KernelMount::if_possible(file.path()) else { return };
            for name in ["one", "two"] {
                let path = mounted.path(name);
                std::fs::write(&path, b"").unwrap();
                let tool = |tool: &str, arguments: &[&str]| {
                    run_if_there(Command::new(tool).args(arguments).arg(&path))
                };
                let done = tool("setfattr", &["-n", "user.short", "-v", "value"])
                    .and_then(|_| tool("setfattr", &["-n", "user.long", "-v", &long]))
                    .and_then(|_| tool("setfattr", &["-n", "trusted.empty"]))
                    .and_then(|_| tool("setfacl", &["-m", "u:1000:rw,g:50:r,m::rw"]));
                if done.is_none() {
                    return;
                }
            }
            let directory = mounted.path("directory");
            std::fs::create_dir(&directory).unwrap();
            run_if_there(Command::new("setfacl").args(["-d", "-m", "u:7:rwx"]).arg(&directory));
        }
        let fixture = Fixture::open(std::fs::read(file.path()).unwrap()).await;
        let (info, transaction) = (&fixture.info, &fixture.transaction);
        let root = fixture.read_inode(InodeNumber::ROOT).await;
        let mut inodes = Vec::new();
        for name in [b"one".as_slice(), b"two", b"directory"] {
            let (number, _) = lookup(info, &root, name).await.unwrap().unwrap();
            inodes.push(fixture.read_inode(number).await);
        }
        for inode in &inodes[..2] {
            assert_eq!(get(info, inode, b"user.short").await.unwrap().unwrap(), b"value");
            assert_eq!(get(info, inode, b"user.long").await.unwrap().unwrap(), long.as_bytes());
            assert_eq!(get(info, inode, b"trusted.empty").await.unwrap().unwrap(), b"");
            let mut names = list(info, inode).await.unwrap();
            names.sort_unstable();
            let expected = ["system.posix_acl_access", "trusted.empty", "user.long", "user.short"];
            assert_eq!(names, expected.map(str::as_bytes));
        }
        let default = get(info, &inodes[2], b"system.posix_acl_default").await.unwrap().unwrap();
        assert!(default.len() > 4);

        // The kernel shares equal blocks: a change here must leave the other file's alone.
        let acl = get(info, &inodes[0], b"system.posix_acl_access").await.unwrap().unwrap();
        set(info, transaction, &mut inodes[0], b"user.long", Some(b"short"), SetMode::Replace).await.unwrap();
        set(info, transaction, &mut inodes[0], b"user.new", Some(long.as_bytes()), SetMode::Create)
            .await
            .unwrap();
        set(info, transaction, &mut inodes[2], b"system.posix_acl_access", Some(&acl), SetMode::Any)
            .await
            .unwrap();
        for inode in &inodes {
            fixture.write_inode(inode).await;
        }
        let file = image_file(&fixture.check(&format!("{options:?}, both wrote attributes")).await);
        let Some(mounted) = KernelMount::if_possible(file.path()) else { return };
        let shown = |path: &str, key: &str| {
            run_if_there(Command::new("getfattr").args(["--only-values", "-n", key]).arg(mounted.path(path)))
                .unwrap()
        };
        assert_eq!(shown("one", "user.long"), "short");
        assert_eq!(shown("one", "user.new"), long);
        assert_eq!(shown("two", "user.long"), long);
        let list =
            run_if_there(Command::new("getfacl").args(["-cn"]).arg(mounted.path("directory"))).unwrap();
        assert!(list.contains("user:1000:rw-") && list.contains("default:user:7:rwx"), "{list}");
    }
}
