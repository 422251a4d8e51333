//! The kernel's ext4 as the judge: what we wrote, as it reads it; what it wrote, as we do; and both in turn.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/tree.rs"]
mod tree;

use ext4_core::device::simulated::Image;
use ext4_core::format::inode::FileType;
use ext4_core::{InodeNumber, Timestamp};
use ext4_test_support::loop_device::KernelMount;
use ext4_test_support::tools::{assert_clean, can_mount, have, mke2fs_image, run, run_ok};
use ext4_writeback::{Credentials, FallocateMode, Filesystem, NewInode, RenameFlags, SetMode, Times};

const TOOLS: &[&str] = &["mkfs.ext4", "e2fsck", "getfattr", "setfattr"];
const ROOT: InodeNumber = InodeNumber::ROOT;

fn able() -> bool {
    have(TOOLS) && can_mount()
}

/// The kinds of file systems that every test here goes through.
const KINDS: &[(&str, &[&str])] = &[
    ("default", &[]),
    ("1 KiB", &["-b", "1024"]),
    ("2 KiB, orphan file", &["-b", "2048", "-O", "orphan_file"]),
    ("no journal", &["-O", "^has_journal"]),
    ("crc16", &["-O", "^metadata_csum,uninit_bg"]),
    ("32 bit, small inodes", &["-b", "1024", "-I", "128", "-O", "^64bit,^metadata_csum,^flex_bg"]),
    ("clusters of 16", &["-b", "1024", "-O", "bigalloc", "-C", "16384"]),
    ("clusters of 16, meta_bg", &["-b", "1024", "-O", "bigalloc,meta_bg,^resize_inode", "-C", "16384"]),
    ("clusters of 4", &["-O", "bigalloc", "-C", "16384"]),
    ("inline data", &["-O", "inline_data"]),
    ("inline data, 1 KiB, large inodes", &["-b", "1024", "-O", "inline_data", "-I", "1024"]),
    ("checksum seed", &["-O", "metadata_csum_seed"]),
];

fn at(seconds: i64, nanoseconds: u32) -> Timestamp {
    Timestamp { seconds, nanoseconds }
}

/// Some of everything. `round` makes names that differ from one call to the next.
async fn fill(filesystem: &Filesystem, round: u32) {
    let owner = |mode| Credentials { uid: 1000 + round, gid: 70_000 + round, mode };
    let top = filesystem.mkdir(ROOT, format!("ours{round}").as_bytes(), owner(0o755)).await.unwrap();
    for (number, len) in [0, 1, 59, 1023, 4096, 5000, 70_000, 1_500_000].into_iter().enumerate() {
        let path = format!("/ours{round}/file{number}");
        let content: Vec<u8> = (0..len).map(|at: u32| (at / 7 + round) as u8).collect();
        filesystem.write(&path, content).await.unwrap();
    }
    let sparse = filesystem.create(top, b"sparse", owner(0o600)).await.unwrap();
    let file = filesystem.open(sparse).await.unwrap();
    file.write_at(1 << 20, b"far out").await.unwrap();
    drop(file);
    for len in [1, 59, 60, 61, 800] {
        let name = format!("link{len}").into_bytes();
        filesystem.symlink(top, &name, &vec![b'l'; len], owner(0o777)).await.unwrap();
    }
    for (name, file_type, device) in [
        ("fifo", FileType::Fifo, (0, 0)),
        ("socket", FileType::Socket, (0, 0)),
        ("old device", FileType::BlockDevice, (8, 1)),
        ("new device", FileType::CharacterDevice, (300, 70_000)),
    ] {
        filesystem.mknod(top, name.as_bytes(), file_type, device, owner(0o640)).await.unwrap();
    }
    let times = Times {
        atime: at(1_000_000_001, 111_111_111),
        mtime: at(1_500_000_002, 222_222_222),
        ctime: at(1_600_000_003, 333_333_333),
        crtime: Some(at(1_400_000_004, 444_444_444)),
    };
    let new = NewInode::new(FileType::Regular, owner(0o4711))
        .times(Some(times))
        .xattrs(vec![(b"user.first".to_vec(), b"1".to_vec()), (b"user.second".to_vec(), vec![b'v'; 200])]);
    let whole = filesystem.create_with(top, b"with everything", new).await.unwrap();
    filesystem.link(whole, top, b"another name").await.unwrap();
    filesystem.setxattr(top, b"trusted.note", b"a directory", SetMode::Create).await.unwrap();
    let many = filesystem.mkdir(top, b"many", owner(0o2775)).await.unwrap();
    for number in 0..700 {
        let name = format!("a name of some length {number}").into_bytes();
        filesystem.create(many, &name, owner(0o644)).await.unwrap();
    }
    for number in (0..700).step_by(3) {
        let name = format!("a name of some length {number}").into_bytes();
        filesystem.unlink(many, &name).await.unwrap();
    }
    let deep = filesystem.create_dir_all(format!("/ours{round}/a/b/c/d")).await.unwrap();
    filesystem.rename((top, b"many"), (deep, b"moved"), RenameFlags::default()).await.unwrap();
    let flags = RenameFlags { exchange: true, no_replace: false };
    filesystem.rename((top, b"file3"), (deep, b"moved"), flags).await.unwrap();
    let times = Times { crtime: None, ..times };
    filesystem.restore_times(top, &times).await.unwrap();
}

/// Sets an attribute through the kernel.
fn set_xattr(path: &std::path::Path, name: &str, value: &[u8]) {
    let value = String::from_utf8(value.to_vec()).unwrap();
    run_ok("setfattr", ["-n", name, "-v", &value, path.to_str().unwrap()]);
}

/// Makes a special file through the kernel.
fn make_node(path: &std::path::Path, file_type: &str, device: &[&str]) {
    let mut arguments = vec![path.to_str().unwrap(), file_type];
    arguments.extend(device);
    run_ok("mknod", &arguments);
}

/// [`fill`] through the kernel.
fn fill_by_kernel(root: &std::path::Path, round: u32) {
    let top = root.join(format!("theirs{round}"));
    std::fs::create_dir(&top).unwrap();
    for (number, len) in [0_usize, 1, 4095, 4097, 200_000, 3_000_000].into_iter().enumerate() {
        let content: Vec<u8> = (0..len).map(|at| (at / 5 + number) as u8).collect();
        std::fs::write(top.join(format!("file{number}")), content).unwrap();
    }
    for len in [5, 59, 60, 500] {
        std::os::unix::fs::symlink("t".repeat(len), top.join(format!("link{len}"))).unwrap();
    }
    std::fs::hard_link(top.join("file2"), top.join("another name")).unwrap();
    let many = top.join("many");
    std::fs::create_dir(&many).unwrap();
    for number in 0..900 {
        std::fs::write(many.join(format!("their name of some length {number}")), b"x").unwrap();
    }
    for number in (0..900).step_by(4) {
        std::fs::remove_file(many.join(format!("their name of some length {number}"))).unwrap();
    }
    let file = std::fs::File::create(top.join("sparse")).unwrap();
    file.set_len(5 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"far out", 3 << 20).unwrap();
    set_xattr(&top.join("file1"), "user.colour", b"green");
    set_xattr(&top.join("file1"), "user.long", &[b'l'; 600]);
    make_node(&top.join("device"), "b", &["300", "70000"]);
    make_node(&top.join("pipe"), "p", &[]);
}

/// Fails the test unless both sides see the same in `image`.
async fn assert_agreed(image: &Image, context: &str) {
    let kernel = KernelMount::of_image(image);
    let theirs = tree::of_directory(&kernel.directory());
    drop(kernel);
    let mounted = common::mount(image).await;
    let ours = tree::of_filesystem(&mounted.filesystem).await;
    tree::assert_same(&ours, &theirs, context);
    mounted.unmount_clean(context).await;
}

#[tokio::test]
async fn what_we_wrote_the_kernel_reads() {
    if !able() {
        return;
    }
    for (name, arguments) in KINDS {
        let mounted = common::mount(&mke2fs_image(arguments, "64M")).await;
        fill(&mounted.filesystem, 1).await;
        let image = mounted.unmount_clean(name).await;
        assert_agreed(&image, name).await;
    }
}

#[tokio::test]
async fn what_the_kernel_wrote_we_read() {
    if !able() {
        return;
    }
    for (name, arguments) in KINDS {
        let kernel = KernelMount::of_image(&mke2fs_image(arguments, "64M"));
        fill_by_kernel(&kernel.directory(), 1);
        let image = kernel.unmount();
        assert_agreed(&image, name).await;
    }
}

#[tokio::test]
async fn an_image_that_both_wrote_in_turn() {
    if !able() {
        return;
    }
    for (name, arguments) in &KINDS[..3] {
        let mut image = mke2fs_image(arguments, "96M");
        for round in 0..3 {
            let mounted = common::mount(&image).await;
            fill(&mounted.filesystem, round).await;
            if round > 0 {
                // Something of the kernel's goes, something of ours is changed.
                let filesystem = &mounted.filesystem;
                let theirs = format!("/theirs{}/many", round - 1);
                let directory = filesystem.resolve(theirs.as_bytes(), true).await.unwrap();
                for number in (1..900).step_by(4) {
                    let name = format!("their name of some length {number}").into_bytes();
                    filesystem.unlink(directory, &name).await.unwrap();
                }
            }
            image = mounted.unmount_clean(&format!("{name}, round {round}, ours")).await;
            let kernel = KernelMount::of_image(&image);
            fill_by_kernel(&kernel.directory(), round);
            for entry in std::fs::read_dir(kernel.directory().join(format!("ours{round}"))).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    std::fs::remove_file(path).unwrap();
                }
            }
            image = kernel.unmount();
            assert_clean(&image, &format!("{name}, round {round}, the kernel's"));
        }
        assert_agreed(&image, name).await;
    }
}

/// The same calls on the same image, ours and the kernel's: both fail or neither does, and the files are the
/// same; what ours left the kernel reads, and the other way round.
#[tokio::test]
async fn fallocate_does_what_the_kernel_does() {
    if !able() || !have(&["fallocate"]) {
        return;
    }
    let modes = [
        (FallocateMode::Allocate, ""),
        (FallocateMode::AllocateKeepSize, "-n"),
        (FallocateMode::PunchHole, "-p"),
        (FallocateMode::ZeroRange, "-z"),
        (FallocateMode::CollapseRange, "-c"),
        (FallocateMode::InsertRange, "-i"),
    ];
    for (seed, (name, arguments)) in KINDS.iter().enumerate() {
        let image = mke2fs_image(arguments, "64M");
        let kernel = KernelMount::of_image(&image);
        let mounted = common::mount(&image).await;
        let filesystem = &mounted.filesystem;
        let mut random = fastrand::Rng::with_seed(seed as u64);
        let mut files = Vec::new();
        for number in 0..4 {
            let file = format!("file{number}");
            let content: Vec<u8> = (0..random.usize(1..400_000)).map(|at| (at / 3) as u8 | 1).collect();
            let path = kernel.directory().join(&file);
            std::fs::write(&path, &content).unwrap();
            filesystem.write(&format!("/{file}"), content).await.unwrap();
            let ours = filesystem.open_path(format!("/{file}")).await.unwrap();
            for _ in 0..25 {
                let (mode, flag) = modes[random.usize(0..modes.len())];
                let (mut offset, mut len) = (random.u64(0..450_000), random.u64(1..100_000));
                if random.u8(0..4) > 0 {
                    (offset, len) = (offset & !4095, len.next_multiple_of(4096));
                }
                let call = format!("{name}: {mode:?} {offset}+{len} of {} bytes", ours.len());
                let (at, count) = (offset.to_string(), len.to_string());
                let mut call_arguments = vec!["-o", &at, "-l", &count, path.to_str().unwrap()];
                if !flag.is_empty() {
                    call_arguments.insert(0, flag);
                }
                let theirs = run("fallocate", &call_arguments).status.success();
                let found = ours.fallocate(mode, offset, len).await;
                assert_eq!(found.is_ok(), theirs, "{call}: {found:?}");
                assert_eq!(ours.len(), std::fs::metadata(&path).unwrap().len(), "{call}");
                if random.u8(0..4) == 0 {
                    let data = vec![random.u8(1..); random.usize(1..20_000)];
                    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                    std::os::unix::fs::FileExt::write_all_at(&file, &data, offset).unwrap();
                    ours.write_at(offset, &data).await.unwrap();
                }
            }
            let mut bytes = vec![0; ours.len() as usize];
            ours.read_at(0, &mut bytes).await.unwrap();
            assert!(bytes == std::fs::read(&path).unwrap(), "{name}: {file}");
            files.push((file, bytes));
        }
        let (ours, theirs) = (mounted.unmount_clean(name).await, kernel.unmount());
        let kernel = KernelMount::of_image(&ours);
        let mounted = common::mount(&theirs).await;
        for (file, bytes) in files {
            assert!(std::fs::read(kernel.directory().join(&file)).unwrap() == bytes, "{name}: our {file}");
            assert!(
                mounted.filesystem.read(format!("/{file}")).await.unwrap() == bytes,
                "{name}: their {file}"
            );
        }
        assert_clean(&kernel.unmount(), name);
        mounted.unmount_clean(name).await;
    }
}

/// A crash of ours, recovered by the kernel.
#[tokio::test]
async fn the_kernel_recovers_what_we_left() {
    if !able() {
        return;
    }
    for (name, arguments) in KINDS {
        if arguments.contains(&"^has_journal") {
            continue;
        }
        let mounted = common::mount(&mke2fs_image(arguments, "64M")).await;
        fill(&mounted.filesystem, 1).await;
        let unlinked = mounted.filesystem.open_path("/ours1/file5").await.unwrap();
        let top = mounted.filesystem.resolve(b"/ours1", true).await.unwrap();
        mounted.filesystem.unlink(top, b"file5").await.unwrap();
        mounted.filesystem.sync().await.unwrap();
        let before = tree::of_filesystem(&mounted.filesystem).await;
        let crashed = mounted.device.image();
        drop((unlinked, mounted));
        let kernel = KernelMount::of_image(&crashed);
        let theirs = tree::of_directory(&kernel.directory());
        let image = kernel.unmount();
        tree::assert_same(&before, &theirs, name);
        assert_clean(&image, name);
    }
}
