//! mkfs beside mke2fs: the same sizes and options must give the same header, and e2fsck must find nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use ext4_core::device::{BlockDevice, Geometry, MemoryDevice, Operation, Plug};
use ext4_core::environment::FixedEnvironment;
use ext4_core::format::superblock::Superblock;
use ext4_core::meta::SuperblockInfo;
use ext4_core::meta::mkfs::{MkfsOptions, default_features, mkfs};
use ext4_core::{BlockSize, Errno, Error, GroupNumber, Timestamp};
use ext4_test_support::loop_device::KernelMount;
use ext4_test_support::tools::{assert_clean, mke2fs_content, run_if_there};

/// A device over a sparse file.
#[derive(Debug)]
struct SparseFile {
    file: File,
    geometry: Geometry,
}

impl SparseFile {
    fn create(path: &Path, size: u64, cheap_zeroes: bool) -> Arc<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        file.set_len(size).unwrap();
        let geometry =
            Geometry { size, write_zeroes: cheap_zeroes, ..MemoryDevice::new(512).geometry().clone() };
        Arc::new(Self { file, geometry })
    }

    fn carry_out(&self, bio: &mut ext4_core::device::Bio) -> ext4_core::Result<()> {
        use nix::fcntl::{FallocateFlags, fallocate};
        bio.check(&self.geometry)?;
        let mut at = bio.offset;
        match bio.operation {
            Operation::Flush => {}
            Operation::Discard | Operation::WriteZeroes => {
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(&self.file, flags, bio.offset as i64, bio.len as i64)
                    .map_err(|errno| Error::io("punch", "a hole", errno))?;
            }
            Operation::Read => {
                for segment in &mut bio.segments {
                    segment.fill(|bytes| {
                        self.file.read_exact_at(bytes, at).unwrap();
                        at += bytes.len() as u64;
                    });
                }
            }
            Operation::Write => {
                for segment in &bio.segments {
                    segment.read(|bytes| {
                        self.file.write_all_at(bytes, at).unwrap();
                        at += bytes.len() as u64;
                    });
                }
            }
        }
        Ok(())
    }
}

impl BlockDevice for SparseFile {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&self, plug: Plug) {
        for mut bio in plug {
            let result = self.carry_out(&mut bio);
            bio.complete(result);
        }
    }
}

/// The superblock of an empty log. Source: kernel documentation, "Journal (jbd2)".
fn journal_superblock(block_size: BlockSize, blocks: u32, fast_commit: u32, uuid: [u8; 16]) -> Vec<u8> {
    let mut block = vec![0; block_size.len()];
    let fields: [(usize, u32); 8] = [
        (0, 0xc03b_3998),
        (4, 4),
        (0xc, block_size.bytes()),
        (0x10, blocks),
        (0x14, 1),
        (0x18, 1),
        (0x40, 1),
        (0x54, fast_commit),
    ];
    for (offset, value) in fields {
        block[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
    }
    block[0x30..0x40].copy_from_slice(&uuid);
    block
}

fn environment() -> FixedEnvironment {
    FixedEnvironment::new(Timestamp { seconds: 1_700_000_000, nanoseconds: 5 }, 11)
}

/// What dumpe2fs says, less what differs between any two file systems.
fn header(path: &Path) -> Option<Vec<String>> {
    let differs = [
        "Filesystem UUID",
        "Filesystem created",
        "Last mount time",
        "Last write time",
        "Last checked",
        "Directory Hash Seed",
        "Checksum:",
        "Checksum seed",
        "Journal checksum",
        "Lifetime writes",
    ];
    let text = run_if_there(Command::new("dumpe2fs").arg("-h").arg(path))?;
    Some(
        text.lines()
            .filter(|line| !line.is_empty() && !differs.iter().any(|key| line.starts_with(key)))
            .map(String::from)
            .collect(),
    )
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Makes both, compares them; our image goes to `check`.
async fn compare(size: u64, arguments: &[&str], options: MkfsOptions, cheap_zeroes: bool) {
    let what = format!("{size} bytes, {arguments:?}, {cheap_zeroes}");
    println!("{what}");
    let directory = tempfile::tempdir().unwrap();
    let theirs = directory.path().join("theirs");
    File::create(&theirs).unwrap().set_len(size).unwrap();
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4"]).args(arguments).arg(&theirs);
    if run_if_there(&mut command).is_none() {
        return;
    }
    let ours = directory.path().join("ours");
    let device = SparseFile::create(&ours, size, cheap_zeroes);
    mkfs(device.clone(), &options, &environment(), &journal_superblock).await.unwrap();
    let (mut expected, mut found) = (header(&theirs).unwrap(), header(&ours).unwrap());
    if arguments.iter().any(|argument| argument.contains("bigalloc")) {
        // mke2fs puts each bitmap of a lonely group into a cluster of its own; ours are packed, and need no
        // more.
        let free = |lines: &[String]| -> u64 {
            let line = lines.iter().find_map(|line| line.strip_prefix("Free blocks:"));
            line.unwrap().trim().parse().unwrap()
        };
        assert!(free(&found) >= free(&expected), "{what}: {} of {}", free(&found), free(&expected));
        for lines in [&mut expected, &mut found] {
            lines.retain(|line| !line.starts_with("Free blocks") && !line.starts_with("Overhead clusters"));
        }
    }
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!(found, expected, "{what}");
    }
    assert_eq!(found.len(), expected.len(), "{what}:\n{found:#?}\n{expected:#?}");
    assert_clean(&ours, &what);
    let info = SuperblockInfo::load(device, 1 << 20, Arc::new(environment()), false).await.unwrap();
    assert!(info.bad_groups().is_empty());
    check_copies(&ours, &info);
}

/// The copies of superblock and descriptors are those of the primary ones.
fn check_copies(path: &Path, info: &SuperblockInfo) {
    let file = File::open(path).unwrap();
    let read = |block: u64, count: usize| {
        let bytes = u64::from(info.block_size().bytes());
        let mut content = vec![0; count * bytes as usize];
        file.read_exact_at(&mut content, block * bytes).unwrap();
        content
    };
    let primary = info.superblock();
    let meta_bg = primary.features.names().contains(&String::from("meta_bg"));
    let table = if meta_bg { 0 } else { primary.descriptor_blocks() as usize };
    let expected = read(primary.descriptor_block(0).0, table);
    for group in (1..info.groups_count()).map(GroupNumber).filter(|group| info.has_super(*group)) {
        let first = info.group_first_block(group).0;
        let copy = Superblock::parse(&read(first, 1)).unwrap();
        assert_eq!((copy.uuid, copy.inodes_count), (primary.uuid, primary.inodes_count));
        assert_eq!(u32::from(copy.block_group_nr), group.0);
        assert!(read(first + 1, table) == expected, "the descriptors of group {group}");
    }
}

fn features(list: &str) -> MkfsOptions {
    let mut features = default_features();
    features.apply(list).unwrap();
    MkfsOptions { features: Some(features), ..MkfsOptions::default() }
}

#[tokio::test]
async fn every_size_has_the_header_of_mke2fs() {
    for size in [
        128 * KIB,
        MIB,
        2 * MIB,
        3 * MIB,
        5 * MIB + 123 * KIB,
        8 * MIB,
        8 * MIB + 300 * KIB,
        9 * MIB,
        64 * MIB,
        127 * MIB,
        129 * MIB + KIB,
        511 * MIB,
        512 * MIB,
        GIB + 4096,
        2 * GIB + 17 * MIB,
        3 * GIB,
        20 * GIB,
        100 * GIB,
    ] {
        compare(size, &[], MkfsOptions::default(), size % 2 == 0).await;
    }
}

#[tokio::test]
async fn every_block_size_has_the_header_of_mke2fs() {
    for (bytes, block_size) in
        [("1024", BlockSize::KIB_1), ("2048", BlockSize::KIB_2), ("4096", BlockSize::KIB_4)]
    {
        for size in [MIB, 16 * MIB, 130 * MIB, 600 * MIB, 5 * GIB] {
            let options = MkfsOptions { block_size: Some(block_size), ..MkfsOptions::default() };
            compare(size, &["-b", bytes], options, false).await;
        }
    }
}

#[tokio::test]
async fn every_feature_can_be_left_out() {
    for list in [
        "^has_journal",
        "^ext_attr",
        "^resize_inode",
        "^dir_index",
        "orphan_file",
        "fast_commit",
        "fast_commit,^has_journal",
        "metadata_csum_seed",
        "^filetype",
        "^64bit",
        "^flex_bg",
        "^metadata_csum",
        "^metadata_csum,uninit_bg",
        "^metadata_csum,uninit_bg,^flex_bg,^64bit",
        "^resize_inode,^sparse_super",
        "^large_file",
        "^huge_file",
        "^dir_nlink",
        "^extra_isize",
        "^resize_inode,meta_bg",
        "^has_journal,^resize_inode,^64bit,^flex_bg,^metadata_csum,^ext_attr,^dir_index",
        "orphan_file,metadata_csum_seed,^64bit",
    ] {
        for (size, cheap_zeroes) in [(40 * MIB, true), (700 * MIB, false)] {
            compare(size, &["-O", list], features(list), cheap_zeroes).await;
        }
    }
}

#[tokio::test]
async fn small_data_in_inodes_can_be_asked_for() {
    for list in
        ["inline_data", "inline_data,^has_journal,^ext_attr", "inline_data,orphan_file,^metadata_csum"]
    {
        for (size, cheap_zeroes) in [(40 * MIB, true), (700 * MIB, false)] {
            compare(size, &["-O", list], features(list), cheap_zeroes).await;
        }
    }
    let options = MkfsOptions { inode_size: Some(1024), ..features("inline_data") };
    compare(64 * MIB, &["-O", "inline_data", "-I", "1024"], options, false).await;
}

#[tokio::test]
async fn clusters_can_be_asked_for() {
    for list in [
        "bigalloc",
        "bigalloc,inline_data",
        "bigalloc,orphan_file,fast_commit",
        "bigalloc,^has_journal,^resize_inode",
        "bigalloc,^flex_bg",
        "bigalloc,^resize_inode,meta_bg",
        "bigalloc,^metadata_csum,uninit_bg",
        "bigalloc,^metadata_csum,^64bit",
    ] {
        for (size, cheap_zeroes) in [(64 * MIB, true), (700 * MIB, false), (3 * GIB + 5 * MIB, true)] {
            compare(size, &["-O", list], features(list), cheap_zeroes).await;
        }
    }
    for (bytes, block_size) in
        [("1024", BlockSize::KIB_1), ("2048", BlockSize::KIB_2), ("4096", BlockSize::KIB_4)]
    {
        for cluster in ["4096", "16384", "65536", "1048576"] {
            let options = MkfsOptions {
                block_size: Some(block_size),
                cluster_size: Some(cluster.parse().unwrap()),
                ..features("bigalloc")
            };
            let arguments = ["-O", "bigalloc", "-b", bytes, "-C", cluster];
            for size in [300 * MIB + 12 * KIB, 9 * GIB] {
                compare(size, &arguments, options.clone(), true).await;
            }
        }
    }
}

#[tokio::test]
async fn options_are_those_of_mke2fs() {
    let size = 200 * MIB;
    let options = MkfsOptions::default;
    compare(size, &["-N", "100000"], MkfsOptions { inodes_count: Some(100_000), ..options() }, true).await;
    compare(size, &["-N", "20"], MkfsOptions { inodes_count: Some(20), ..options() }, true).await;
    compare(size, &["-i", "1024"], MkfsOptions { bytes_per_inode: Some(1024), ..options() }, true).await;
    compare(size, &["-i", "1048576"], MkfsOptions { bytes_per_inode: Some(1 << 20), ..options() }, true)
        .await;
    compare(size, &["-I", "128"], MkfsOptions { inode_size: Some(128), ..options() }, true).await;
    compare(size, &["-I", "1024"], MkfsOptions { inode_size: Some(1024), ..options() }, true).await;
    compare(size, &["-m", "0"], MkfsOptions { reserved_percent: Some(0.0), ..options() }, true).await;
    compare(size, &["-m", "12.5"], MkfsOptions { reserved_percent: Some(12.5), ..options() }, true).await;
    compare(size, &["-J", "size=20"], MkfsOptions { journal_blocks: Some(20480), ..options() }, true).await;
    let fast = MkfsOptions { journal_blocks: Some(4096), ..features("fast_commit") };
    compare(size, &["-J", "size=4", "-O", "fast_commit"], fast, true).await;
    compare(
        size,
        &["-L", "a label", "-M", "/there"],
        MkfsOptions { label: b"a label".to_vec(), last_mounted: b"/there".to_vec(), ..options() },
        true,
    )
    .await;
    let owner = MkfsOptions { root_owner: (100_000, 5), ..options() };
    compare(size, &["-E", "root_owner=100000:5"], owner, true).await;
}

#[tokio::test]
async fn large_devices_stay_sparse() {
    use std::os::unix::fs::MetadataExt;
    // Files of these sizes need a host file system in memory: others are limited, or slow to remove them.
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else {
        return ext4_test_support::settings::skip("/dev/shm");
    };
    for (size, block_size) in [(2 * TIB, None), (5 * TIB, Some(BlockSize::KIB_1)), (20 * TIB, None)] {
        let path = directory.path().join("ours");
        let device = SparseFile::create(&path, size, true);
        let options = MkfsOptions { block_size, ..MkfsOptions::default() };
        let start = std::time::Instant::now();
        mkfs(device, &options, &environment(), &journal_superblock).await.unwrap();
        let used = std::fs::metadata(&path).unwrap().blocks() * 512;
        println!("{} TiB: {} MiB written in {:?}", size / TIB, used / MIB, start.elapsed());
        let found = header(&path);
        std::fs::remove_file(&path).unwrap();
        let theirs = directory.path().join("theirs");
        File::create(&theirs).unwrap().set_len(size).unwrap();
        let bytes = block_size.map_or(4096, BlockSize::bytes).to_string();
        let mut command = Command::new("mke2fs");
        if run_if_there(command.args(["-q", "-F", "-t", "ext4", "-b", &bytes]).arg(&theirs)).is_none() {
            return;
        }
        let expected = std::fs::metadata(&theirs).unwrap().blocks() * 512;
        assert_eq!(found, header(&theirs));
        assert!(used < expected * 3 / 2, "{used} bytes written where mke2fs writes {expected}");
        std::fs::remove_file(&theirs).unwrap();
    }
}

#[tokio::test]
async fn the_smallest_devices_hold_a_file_system() {
    let mut smallest = u64::MAX;
    for size in (1..=64).rev().map(|blocks| blocks * KIB) {
        let device = Arc::new(MemoryDevice::new(size));
        match mkfs(device.clone(), &MkfsOptions::default(), &environment(), &journal_superblock).await {
            Ok(()) => {
                assert_clean(&device.content(), &format!("{size} bytes"));
                smallest = size;
            }
            Err(error) => assert!(matches!(error.errno(), Errno::ENOSPC | Errno::EINVAL), "{size}: {error}"),
        }
    }
    assert!(smallest <= 64 * KIB, "nothing of up to 64 KiB");
}

#[tokio::test]
async fn the_same_options_give_the_same_bytes() {
    let make = async || {
        let device = Arc::new(MemoryDevice::new(40 * MIB));
        mkfs(device.clone(), &features("orphan_file"), &environment(), &journal_superblock).await.unwrap();
        device.content()
    };
    assert!(make().await == make().await);
}

#[tokio::test]
async fn what_cannot_be_made_is_refused() {
    let refuse = async |size: u64, options: MkfsOptions| {
        let device = Arc::new(MemoryDevice::new(size));
        let error = mkfs(device.clone(), &options, &environment(), &journal_superblock).await.unwrap_err();
        assert!(device.content().iter().all(|byte| *byte == 0), "{error}: something was written");
        error.errno()
    };
    let options = MkfsOptions::default;
    assert_eq!(refuse(8 * KIB, options()).await, Errno::ENOSPC);
    assert_eq!(refuse(512, options()).await, Errno::EINVAL);
    assert_eq!(refuse(MIB, MkfsOptions { blocks_count: Some(2000), ..options() }).await, Errno::EINVAL);
    assert_eq!(refuse(MIB, MkfsOptions { inode_size: Some(300), ..options() }).await, Errno::EINVAL);
    assert_eq!(refuse(MIB, MkfsOptions { label: vec![b'x'; 17], ..options() }).await, Errno::EINVAL);
    assert_eq!(refuse(MIB, MkfsOptions { inodes_count: Some(1 << 20), ..options() }).await, Errno::EINVAL);
    assert_eq!(refuse(MIB, features("encrypt")).await, Errno::EOPNOTSUPP);
    let clusters = |size| MkfsOptions { cluster_size: Some(size), ..features("bigalloc") };
    for size in [512, 3000, 1 << 29] {
        assert_eq!(refuse(MIB, clusters(size)).await, Errno::EINVAL);
    }
    assert_eq!(refuse(MIB, MkfsOptions { cluster_size: Some(16384), ..options() }).await, Errno::EINVAL);
    assert_eq!(refuse(MIB, clusters(1 << 20)).await, Errno::ENOSPC);
    let small = MkfsOptions { inode_size: Some(128), ..features("inline_data") };
    assert_eq!(refuse(MIB, small).await, Errno::EINVAL);
    assert_eq!(refuse(MIB, features("^extent")).await, Errno::EOPNOTSUPP);
    assert_eq!(refuse(MIB, features("orphan_file,^has_journal")).await, Errno::EINVAL);
    assert_eq!(refuse(MIB, features("metadata_csum_seed,^metadata_csum")).await, Errno::EINVAL);
    let block_size = Some(BlockSize::KIB_64);
    assert_eq!(refuse(MIB, MkfsOptions { block_size, ..options() }).await, Errno::EOPNOTSUPP);
}

fn fill(mounted: &KernelMount) {
    for number in 0..500 {
        let place = mounted.path(format!("{}", number % 20));
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join(number.to_string()), vec![1; number * 10]).unwrap();
    }
}

#[tokio::test]
async fn what_was_on_the_device_does_not_shine_through() {
    let Some(old) = mke2fs_content("48M", &["-b", "2048"]) else { return };
    for list in
        ["", "^metadata_csum,uninit_bg", "^metadata_csum", "orphan_file,^flex_bg", "bigalloc", "inline_data"]
    {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let device = SparseFile::create(&path, 48 * MIB, false);
        let mut noise = vec![0; 48 * MIB as usize];
        fastrand::Rng::with_seed(3).fill(&mut noise);
        device.file.write_all_at(&noise, 0).unwrap();
        device.file.write_all_at(&old[..MIB as usize], 0).unwrap();
        mkfs(device, &features(list), &environment(), &journal_superblock).await.unwrap();
        assert_clean(&path, list);
        let Some(mounted) = KernelMount::if_possible(&path) else { continue };
        fill(&mounted);
        drop(mounted);
        assert_clean(&path, &format!("{list} after the kernel"));
    }
}

#[tokio::test]
async fn the_kernel_mounts_and_fills_it() {
    for (size, list) in [
        (16 * MIB, ""),
        (64 * MIB, "orphan_file,metadata_csum_seed"),
        (600 * MIB, ""),
        (64 * MIB, "^metadata_csum,uninit_bg,^64bit"),
        (64 * MIB, "^flex_bg,^metadata_csum"),
        (64 * MIB, "^resize_inode,meta_bg"),
        (64 * MIB, "inline_data"),
        (64 * MIB, "bigalloc"),
        (600 * MIB, "bigalloc,orphan_file"),
        (64 * MIB, "bigalloc,inline_data"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let device = SparseFile::create(&path, size, false);
        mkfs(device, &features(list), &environment(), &journal_superblock).await.unwrap();
        let Some(mounted) = KernelMount::if_possible(&path) else { return };
        fill(&mounted);
        assert!(mounted.path("lost+found").is_dir());
        drop(mounted);
        assert_clean(&path, &format!("{size} {list} after the kernel"));
        let device = Arc::new(MemoryDevice::from_content(std::fs::read(&path).unwrap()));
        let info = SuperblockInfo::load(device, 1 << 20, Arc::new(environment()), false).await.unwrap();
        assert!(info.free_inodes_count() < info.inodes_count() - 520);
    }
}
