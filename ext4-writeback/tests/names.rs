//! Path lookup, inode attributes and limits, one behaviour at a time.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use ext4_core::format::inode::FileType;
use ext4_core::{Errno, InodeNumber, Timestamp};
use ext4_test_support::tools::{have, mke2fs_image};
use ext4_writeback::{
    Credentials, Filesystem, MountOptions, NewInode, RenameFlags, SetAttributes, SetMode, Times,
};

const TOOLS: &[&str] = &["mkfs.ext4", "e2fsck"];
const ROOT: InodeNumber = InodeNumber::ROOT;

fn owner(mode: u16) -> Credentials {
    Credentials { uid: 10, gid: 20, mode }
}

async fn errno<T>(result: impl Future<Output = Result<T, ext4_writeback::Error>>) -> Errno {
    match result.await {
        Ok(_) => panic!("it succeeded"),
        Err(error) => error.errno(),
    }
}

#[tokio::test]
async fn paths_are_followed_as_posix_says() {
    if !have(TOOLS) {
        return;
    }
    let mounted = common::mount(&mke2fs_image(&[], "16M")).await;
    let filesystem = &mounted.filesystem;
    let deep = filesystem.create_dir_all("/a/b/c").await.unwrap();
    assert_eq!(filesystem.create_dir_all("a/b/c/").await.unwrap(), deep);
    assert_eq!(filesystem.create_dir_all("/").await.unwrap(), ROOT);
    filesystem.write("/a/file", b"content").await.unwrap();
    assert_eq!(filesystem.read("a//b/../file").await.unwrap(), b"content");
    for (target, name) in [
        (&b"/a/b"[..], &b"absolute"[..]),
        (b"a/file", b"relative"),
        (b"nowhere", b"dangling"),
        (b"loop", b"loop"),
        (b"../a/../../a/b/", b"dots"),
    ] {
        filesystem.symlink(ROOT, name, target, owner(0o777)).await.unwrap();
    }
    let resolve = |path: &'static str| filesystem.resolve(path.as_bytes(), true);
    assert_eq!(resolve("/absolute/c").await.unwrap(), deep);
    assert_eq!(resolve("/dots/c/.").await.unwrap(), deep);
    assert_eq!(resolve("/../../a/b/c").await.unwrap(), deep);
    assert_eq!(filesystem.metadata("/relative").await.unwrap().size, 7);
    let link = filesystem.resolve(b"/relative", false).await.unwrap();
    assert_eq!(filesystem.attributes(link).await.unwrap().file_type, FileType::Symlink);
    // With a slash behind it the last one is followed all the same.
    assert_eq!(filesystem.resolve(b"/absolute/", false).await.unwrap(), resolve("/a/b").await.unwrap());
    assert_eq!(errno(resolve("/loop")).await, Errno::ELOOP);
    assert_eq!(errno(resolve("/dangling")).await, Errno::ENOENT);
    assert_eq!(errno(resolve("/a/file/")).await, Errno::ENOTDIR);
    assert_eq!(errno(resolve("/a/file/x")).await, Errno::ENOTDIR);
    assert_eq!(errno(resolve("")).await, Errno::ENOENT);
    let long: &'static str = Box::leak("x".repeat(256).into_boxed_str());
    assert_eq!(errno(resolve(long)).await, Errno::ENAMETOOLONG);
    assert_eq!(errno(filesystem.resolve_parent(b"//")).await, Errno::EBUSY);
    let (parent, name) = filesystem.resolve_parent(b"/absolute/new///").await.unwrap();
    assert_eq!((parent, name), (resolve("/a/b").await.unwrap(), &b"new"[..]));
    // Writing through a symlink changes what it leads to.
    filesystem.write("/relative", b"other").await.unwrap();
    assert_eq!(filesystem.read("/a/file").await.unwrap(), b"other");
    mounted.unmount_clean("paths").await;
}

#[tokio::test]
async fn forty_symlinks_are_followed_and_no_more() {
    if !have(TOOLS) {
        return;
    }
    let mounted = common::mount(&mke2fs_image(&[], "16M")).await;
    let filesystem = &mounted.filesystem;
    filesystem.write("/s0", b"the end").await.unwrap();
    for number in 1..=41 {
        let (name, target) = (format!("s{number}"), format!("s{}", number - 1));
        filesystem.symlink(ROOT, name.as_bytes(), target.as_bytes(), owner(0o777)).await.unwrap();
    }
    assert_eq!(filesystem.read("/s40").await.unwrap(), b"the end");
    assert_eq!(errno(filesystem.read("/s41")).await, Errno::ELOOP);
    mounted.unmount_clean("forty symlinks").await;
}

#[tokio::test]
async fn attributes_change_as_by_chmod_and_chown() {
    if !have(TOOLS) {
        return;
    }
    let mounted = common::mount(&mke2fs_image(&[], "16M")).await;
    let filesystem = &mounted.filesystem;
    let file = filesystem.create(ROOT, b"f", owner(0o6755)).await.unwrap();
    let mode = async || filesystem.attributes(file).await.unwrap().mode & 0o7777;
    assert_eq!(mode().await, 0o6755);
    let chown = SetAttributes::new().uid(4_000_000_000);
    filesystem.set_attributes(file, &chown).await.unwrap();
    assert_eq!(mode().await, 0o755, "a new owner takes the set-id bits");
    let both = SetAttributes::new().mode(0o4711).gid(70_000);
    filesystem.set_attributes(file, &both).await.unwrap();
    assert_eq!(mode().await, 0o4711);
    let attributes = filesystem.attributes(file).await.unwrap();
    assert_eq!((attributes.uid, attributes.gid), (4_000_000_000, 70_000));
    let size = SetAttributes::new().size(12_345);
    filesystem.set_attributes(file, &size).await.unwrap();
    assert_eq!(filesystem.attributes(file).await.unwrap().size, 12_345);
    assert_eq!(errno(filesystem.set_attributes(ROOT, &size)).await, Errno::EISDIR);
    mounted.unmount_clean("attributes").await;
}

/// What a tool that restores a tree does: content first, then the times; and those of directories at the end.
#[tokio::test]
async fn restored_times_stay_through_writeback_and_remounting() {
    if !have(TOOLS) {
        return;
    }
    for (arguments, whole_seconds) in [(&[][..], false), (&["-I", "128"][..], true)] {
        let image = mke2fs_image(arguments, "16M");
        let mounted = common::mount(&image).await;
        let filesystem = &mounted.filesystem;
        let directory = filesystem.mkdir(ROOT, b"d", owner(0o755)).await.unwrap();
        filesystem.write("/d/f", vec![1; 100_000]).await.unwrap();
        let file = filesystem.resolve(b"/d/f", true).await.unwrap();
        let at = |seconds, nanoseconds| Timestamp { seconds, nanoseconds };
        let times = Times {
            atime: at(-5, 1),
            mtime: at(1_000_000_000, 999_999_999),
            ctime: at(2_000_000_000, 123_456_789),
            crtime: Some(at(1_234_567_890, 5)),
        };
        filesystem.restore_times(file, &times).await.unwrap();
        filesystem.restore_times(directory, &times).await.unwrap();
        filesystem.sync().await.unwrap();
        let image = mounted.unmount_clean("times").await;
        let mounted = common::mount(&image).await;
        for inode in [directory, file] {
            let found = mounted.filesystem.attributes(inode).await.unwrap();
            if whole_seconds {
                assert_eq!((found.mtime, found.crtime), (at(1_000_000_000, 0), None));
            } else {
                assert_eq!((found.atime, found.mtime, found.ctime), (times.atime, times.mtime, times.ctime));
                assert_eq!(found.crtime, times.crtime);
            }
        }
        mounted.unmount_clean("times").await;
    }
}

#[tokio::test]
async fn names_and_targets_have_their_limits() {
    if !have(TOOLS) {
        return;
    }
    let mounted = common::mount(&mke2fs_image(&["-b", "1024"], "16M")).await;
    let filesystem = &mounted.filesystem;
    let create = |name: &'static [u8]| filesystem.create(ROOT, name, owner(0o644));
    assert_eq!(errno(create(b"")).await, Errno::ENOENT);
    assert_eq!(errno(create(b".")).await, Errno::EEXIST);
    assert_eq!(errno(create(b"..")).await, Errno::EEXIST);
    assert_eq!(errno(create(b"a/b")).await, Errno::EINVAL);
    assert_eq!(errno(create(b"a\0b")).await, Errno::EINVAL);
    assert_eq!(errno(create(&[b'x'; 256])).await, Errno::ENAMETOOLONG);
    create(&[b'x'; 255]).await.unwrap();
    assert_eq!(errno(filesystem.unlink(ROOT, b".")).await, Errno::EISDIR);
    assert_eq!(errno(filesystem.rmdir(ROOT, b"..")).await, Errno::EINVAL);
    let flags = RenameFlags::default();
    assert_eq!(errno(filesystem.rename((ROOT, b"."), (ROOT, b"y"), flags)).await, Errno::EBUSY);
    let symlink = |target: Vec<u8>| async move { filesystem.symlink(ROOT, b"s", &target, owner(0)).await };
    assert_eq!(errno(symlink(Vec::new())).await, Errno::ENOENT);
    assert_eq!(errno(symlink(vec![b't'; 1024])).await, Errno::ENAMETOOLONG);
    let link = symlink(vec![b't'; 1023]).await.unwrap();
    assert_eq!(filesystem.readlink(link).await.unwrap().len(), 1023);
    assert_eq!(errno(filesystem.readlink(ROOT)).await, Errno::EINVAL);
    assert_eq!(errno(filesystem.open(ROOT)).await, Errno::EISDIR);
    assert_eq!(errno(filesystem.open(link)).await, Errno::EINVAL);
    let beyond = InodeNumber(u32::MAX);
    assert_eq!(errno(filesystem.attributes(beyond)).await, Errno::EINVAL);
    assert_eq!(errno(filesystem.attributes(InodeNumber(1000))).await, Errno::ENOENT);
    let new = NewInode::new(FileType::BlockDevice, owner(0)).device((5000, 0));
    assert_eq!(errno(filesystem.create_with(ROOT, b"d", new)).await, Errno::EINVAL);
    mounted.unmount_clean("limits").await;
}

#[tokio::test]
async fn attributes_of_names_obey_their_modes() {
    if !have(TOOLS) {
        return;
    }
    let mounted = common::mount(&mke2fs_image(&[], "16M")).await;
    let filesystem = &mounted.filesystem;
    let set = |value: &'static [u8], mode| filesystem.setxattr(ROOT, b"user.a", value, mode);
    assert_eq!(errno(set(b"1", SetMode::Replace)).await, Errno::ENODATA);
    set(b"1", SetMode::Create).await.unwrap();
    assert_eq!(errno(set(b"2", SetMode::Create)).await, Errno::EEXIST);
    set(b"2", SetMode::Replace).await.unwrap();
    assert_eq!(filesystem.getxattr(ROOT, b"user.a").await.unwrap(), b"2");
    let unknown = filesystem.setxattr(ROOT, b"nothing.a", b"", SetMode::Any);
    assert_eq!(errno(unknown).await, Errno::EOPNOTSUPP);
    // More than fits beside what is there fails whole.
    let large = vec![7; 100_000];
    assert_eq!(errno(filesystem.setxattr(ROOT, b"user.b", &large, SetMode::Any)).await, Errno::ENOSPC);
    assert_eq!(filesystem.listxattr(ROOT).await.unwrap(), [b"user.a".to_vec()]);
    // Many attributes at once: more than go into one handle.
    let xattrs = (0..20).map(|number| (format!("user.n{number}").into_bytes(), vec![b'v'; 20])).collect();
    let new = NewInode::new(FileType::Regular, owner(0o644)).xattrs(xattrs);
    let file = filesystem.create_with(ROOT, b"f", new).await.unwrap();
    assert_eq!(filesystem.listxattr(file).await.unwrap().len(), 20);
    mounted.unmount_clean("attributes").await;
}

/// The number of free blocks and inodes, once everything that was freed has committed.
async fn free(filesystem: &Filesystem) -> (u64, u64) {
    filesystem.sync().await.unwrap();
    let statfs = filesystem.statfs();
    (statfs.free_blocks, statfs.free_inodes)
}

#[tokio::test]
async fn a_full_file_system_refuses_and_loses_nothing() {
    if !have(TOOLS) {
        return;
    }
    for arguments in [
        &["-b", "1024", "-m", "0", "-N", "3000"][..],
        &["-b", "1024", "-m", "0", "-N", "64"],
        &["-m", "0", "-O", "^has_journal", "-N", "1500"],
    ] {
        let image = mke2fs_image(arguments, "4M");
        let mounted = common::mount(&image).await;
        let filesystem = &mounted.filesystem;
        let top = filesystem.mkdir(ROOT, b"top", owner(0o755)).await.unwrap();
        let before = free(filesystem).await;
        let mut refused = 0;
        let mut made = Vec::new();
        for number in 0..4000_u32 {
            let name = format!("a name that takes some room {number}").into_bytes();
            let result = match number % 3 {
                0 => filesystem.mkdir(top, &name, owner(0o755)).await,
                1 => filesystem.symlink(top, &name, &[b't'; 500], owner(0o777)).await,
                _ => filesystem.create(top, &name, owner(0o644)).await,
            };
            match result {
                Ok(_) => made.push((name, number % 3 == 0)),
                Err(error) => {
                    assert_eq!(error.errno(), Errno::ENOSPC, "{error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 100, "{refused} of 4000 were refused");
        filesystem.sync().await.unwrap();
        common::mount(&mounted.device.image()).await.unmount_clean("full, after a crash").await;
        for (name, is_directory) in made {
            match is_directory {
                true => filesystem.rmdir(top, &name).await.unwrap(),
                false => filesystem.unlink(top, &name).await.unwrap(),
            }
        }
        filesystem.rmdir(ROOT, b"top").await.unwrap();
        let top = filesystem.mkdir(ROOT, b"top", owner(0o755)).await.unwrap();
        assert_eq!(free(filesystem).await, before, "after removing everything");
        filesystem.rmdir(ROOT, b"top").await.unwrap();
        assert_eq!(errno(filesystem.attributes(top)).await, Errno::ENOENT);
        mounted.unmount_clean("a full file system").await;
    }
}

/// More inodes than the cache keeps: each is read again as it was left.
#[tokio::test]
async fn inodes_come_and_go() {
    if !have(TOOLS) {
        return;
    }
    let image = mke2fs_image(&["-N", "8192"], "64M");
    // 64 inodes in memory.
    let options = MountOptions::new().cache(1 << 20).commit_interval(None);
    let mounted = common::mount_with(&image, options).await;
    let filesystem = &mounted.filesystem;
    let mut inodes = Vec::new();
    for number in 0..3000_u32 {
        let credentials = Credentials { uid: number, gid: 0, mode: 0o600 };
        let name = number.to_string().into_bytes();
        inodes.push(filesystem.create(ROOT, &name, credentials).await.unwrap());
    }
    for (number, inode) in inodes.iter().enumerate() {
        let changes = SetAttributes::new().gid(number as u32);
        filesystem.set_attributes(*inode, &changes).await.unwrap();
    }
    for (number, inode) in inodes.iter().enumerate() {
        let attributes = filesystem.attributes(*inode).await.unwrap();
        assert_eq!((attributes.uid, attributes.gid), (number as u32, number as u32));
    }
    // fsync of an inode that had left memory waits for what was done to it before.
    let changes = SetAttributes::new().mode(0o777);
    filesystem.set_attributes(inodes[0], &changes).await.unwrap();
    for inode in &inodes[1..500] {
        filesystem.attributes(*inode).await.unwrap();
    }
    filesystem.fsync(inodes[0]).await.unwrap();
    let crashed = common::mount(&mounted.device.image()).await;
    assert_eq!(crashed.filesystem.attributes(inodes[0]).await.unwrap().mode & 0o7777, 0o777);
    crashed.unmount_clean("crashed").await;
    mounted.unmount_clean("many inodes").await;
}

#[tokio::test]
async fn access_times_follow_relatime_where_asked_for() {
    if !have(TOOLS) {
        return;
    }
    let image = mke2fs_image(&[], "16M");
    for access_times in [false, true] {
        let options = MountOptions::new().access_times(access_times);
        let mounted = common::mount_with(&image, options).await;
        let filesystem = &mounted.filesystem;
        let old = Timestamp { seconds: 1_000_000_000, nanoseconds: 0 };
        let times = Times { atime: old, mtime: old, ctime: old, crtime: None };
        filesystem.restore_times(ROOT, &times).await.unwrap();
        filesystem.readdir(ROOT, 0, 10).await.unwrap();
        let atime = filesystem.attributes(ROOT).await.unwrap().atime;
        assert_eq!(atime > old, access_times);
        filesystem.readdir(ROOT, 0, 10).await.unwrap();
        assert_eq!(filesystem.attributes(ROOT).await.unwrap().atime, atime, "once a day at most");
        mounted.unmount_clean("access times").await;
    }
}

/// The same calls with the same clock make the same image, byte for byte.
#[tokio::test]
async fn images_are_reproducible() {
    if !have(TOOLS) {
        return;
    }
    let image = mke2fs_image(&[], "32M");
    let mut results = Vec::new();
    for _ in 0..2 {
        let now = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };
        let options = MountOptions::new()
            .commit_interval(None)
            .erase_journal(true)
            .environment(std::sync::Arc::new(ext4_core::environment::FixedEnvironment::new(now, 9)));
        let mounted = common::mount_with(&image, options).await;
        let filesystem = &mounted.filesystem;
        for number in 0..300_usize {
            let path = format!("/d{}/f{number}", number % 7);
            filesystem.create_dir_all(format!("/d{}", number % 7)).await.unwrap();
            filesystem.write(&path, vec![number as u8; number * 37]).await.unwrap();
        }
        results.push(mounted.unmount_clean("reproducible").await.to_vec());
    }
    assert!(results[0] == results[1], "two runs differ");
}
