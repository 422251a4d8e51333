//! Inodes and block maps that others wrote: the kernel's, on a loop device, and those of a collection of
//! images. What we read is what the kernel shows, what we write back is the same bytes, and nothing in a
//! damaged image does harm.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ext4_core::device::MemoryDevice;
use ext4_core::environment::FixedEnvironment;
use ext4_core::format::features::Incompat;
use ext4_core::format::inode::{FileType, Inode, InodeFlags};
use ext4_core::meta::extent_tree::{self, MappingState, Removal};
use ext4_core::meta::{DirectTransaction, SuperblockInfo, block_map, inode_table};
use ext4_core::{BlockNumber, Errno, InodeNumber, LogicalBlock, Result, Timestamp};
use ext4_test_support::corpus::packed_images;
use ext4_test_support::loop_device::KernelMount;
use ext4_test_support::tools::{assert_clean, mke2fs_content, run_if_there};

async fn open(content: Vec<u8>, read_only: bool) -> Result<(Arc<MemoryDevice>, Arc<SuperblockInfo>)> {
    let device = Arc::new(MemoryDevice::from_content(content));
    let environment = Arc::new(FixedEnvironment::new(Timestamp::default(), 7));
    let info = SuperblockInfo::load(Arc::clone(&device) as _, 16 << 20, environment, read_only).await?;
    Ok((device, info))
}

/// The bytes of an inode's slot on the device.
async fn slot(device: &MemoryDevice, info: &SuperblockInfo, number: InodeNumber) -> Vec<u8> {
    let (block, offset) = info.inode_location(number).await.unwrap();
    let start = usize::try_from(block.byte(info.block_size()).unwrap()).unwrap() + offset;
    device.content()[start..start + usize::from(info.inode_size())].to_vec()
}

/// Writes blocks of a file, each with its number, and gives them back in order.
fn write_blocks(path: &Path, block_size: u64, blocks: impl IntoIterator<Item = u64>) -> BTreeSet<u64> {
    let file = File::options().create(true).truncate(false).write(true).open(path).unwrap();
    let mut written = BTreeSet::new();
    for block in blocks {
        let content = block.to_le_bytes().repeat(usize::try_from(block_size / 8).unwrap());
        file.write_all_at(&content, block * block_size).unwrap();
        written.insert(block);
    }
    file.sync_all().unwrap();
    written
}

/// Every block the mapping says is written holds its number, and the written ones are exactly those.
async fn check_blocks(device: &MemoryDevice, info: &SuperblockInfo, inode: &Inode, expected: &BTreeSet<u64>) {
    let content = device.content();
    let mut found = BTreeSet::new();
    let mut at = LogicalBlock(0);
    let end = inode.size.div_ceil(u64::from(info.block_size().bytes()));
    while u64::from(at) < end {
        let mapping = block_map::lookup(info, inode, at).await.unwrap();
        assert_eq!(mapping.logical, at);
        if let MappingState::Written(first) = mapping.state {
            for n in 0..u64::from(mapping.len) {
                let start = usize::try_from(first.offset(n).byte(info.block_size()).unwrap()).unwrap();
                let value = u64::from_le_bytes(content[start..start + 8].try_into().unwrap());
                assert_eq!(value, u64::from(at) + n, "block {at}+{n}");
                found.insert(value);
            }
        }
        at = at.offset(mapping.len);
    }
    assert_eq!(&found, expected);
}

fn check_metadata(inode: &Inode, metadata: &Metadata) {
    let time = |seconds, nanoseconds| Timestamp { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap() };
    assert_eq!(u32::from(inode.mode), metadata.mode());
    assert_eq!((inode.uid, inode.gid), (metadata.uid(), metadata.gid()));
    assert_eq!(inode.size, metadata.size());
    assert_eq!(inode.sectors, metadata.blocks());
    assert_eq!(u64::from(inode.links_count), metadata.nlink());
    assert_eq!(inode.mtime, time(metadata.mtime(), metadata.mtime_nsec()));
    assert_eq!(inode.ctime, time(metadata.ctime(), metadata.ctime_nsec()));
    assert_eq!(inode.atime, time(metadata.atime(), metadata.atime_nsec()));
    if let (Some(crtime), Ok(created)) = (inode.crtime, metadata.created()) {
        let created = created.duration_since(UNIX_EPOCH).unwrap();
        assert_eq!(crtime.seconds.cast_unsigned(), created.as_secs());
        assert_eq!(crtime.nanoseconds, created.subsec_nanos());
    }
    if matches!(inode.file_type(), Some(FileType::CharacterDevice | FileType::BlockDevice)) {
        let (major, minor) = inode.device_number();
        assert_eq!(nix::sys::stat::makedev(u64::from(major), u64::from(minor)), metadata.rdev());
    }
}

const TIMES: &[(i64, u32)] = &[
    (-2_147_483_648, 0),
    (-1, 999_999_999),
    (0, 0),
    (0, 1),
    (2_147_483_647, 999_999_999),
    (2_147_483_648, 123_456_789),
    (4_294_967_296, 5),
    (15_032_385_535, 999_999_999),
];

fn set_times(path: &Path, (seconds, nanoseconds): (i64, u32)) {
    let whole = std::time::Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
    let time: SystemTime = time + std::time::Duration::from_nanos(u64::from(nanoseconds));
    let times = fs::FileTimes::new().set_accessed(time).set_modified(time);
    File::options().write(true).open(path).unwrap().set_times(times).unwrap();
}

#[tokio::test]
async fn what_the_kernel_wrote_is_read_and_written_back_byte_for_byte() {
    let layouts: &[&[&str]] = &[
        &["-b", "1024"],
        &["-b", "4096", "-I", "512", "-O", "metadata_csum_seed"],
        &["-b", "1024", "-I", "128", "-O", "^metadata_csum,uninit_bg"],
        &["-b", "2048", "-O", "^extents,^64bit,^metadata_csum"],
        &["-b", "1024", "-O", "^extents,^64bit,^huge_file"],
    ];
    for options in layouts {
        let Some(content) = mke2fs_content("64M", options) else { return };
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        fs::write(&image, content).unwrap();
        let Some(mounted) = KernelMount::if_possible(&image) else { return };
        let block_size: u64 = options[1].parse().unwrap();
        let mut files = Vec::new();
        // Direct, indirect, doubly and (with 1 KiB blocks) triply indirect, with holes, back to front in
        // places.
        let shape = (0..20_u64).chain((200..400).rev().step_by(2)).chain(5000..5010).chain([70_000, 300_000]);
        let blocks = write_blocks(&mounted.path("blocks"), block_size, shape);
        let dense = write_blocks(&mounted.path("dense"), block_size, 0..3000);
        for (n, time) in TIMES.iter().enumerate() {
            let path = mounted.path(format!("time{n}"));
            fs::write(&path, b"").unwrap();
            set_times(&path, *time);
            files.push(path);
        }
        let owned = mounted.path("owned");
        fs::write(&owned, b"x").unwrap();
        std::os::unix::fs::chown(&owned, Some(70_000), Some(4_000_000_000)).unwrap();
        std::os::unix::fs::symlink("short", mounted.path("fast")).unwrap();
        std::os::unix::fs::symlink("s".repeat(59), mounted.path("longest")).unwrap();
        std::os::unix::fs::symlink("s".repeat(60), mounted.path("slow")).unwrap();
        fs::create_dir(mounted.path("directory")).unwrap();
        fs::hard_link(&owned, mounted.path("link")).unwrap();
        for (name, device) in
            [("old", nix::sys::stat::makedev(8, 1)), ("new", nix::sys::stat::makedev(259, 70_000))]
        {
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o640);
            nix::sys::stat::mknod(&mounted.path(name), nix::sys::stat::SFlag::S_IFBLK, mode, device).unwrap();
        }
        for name in ["owned", "fast", "longest", "slow", "directory", "link", "old", "new", "blocks", "dense"]
        {
            files.push(mounted.path(name));
        }
        let metadata: Vec<Metadata> = files.iter().map(|path| path.symlink_metadata().unwrap()).collect();
        let number = |name: &str| {
            let ino = mounted.path(name).symlink_metadata().unwrap().ino();
            InodeNumber(u32::try_from(ino).unwrap())
        };
        let numbers = ["blocks", "dense", "fast", "longest", "slow"].map(number);
        drop(mounted);
        let (device, info) = open(fs::read(&image).unwrap(), false).await.unwrap();
        let layout = info.inode_layout();
        for (path, metadata) in files.iter().zip(&metadata) {
            println!("{options:?} {}", path.display());
            let number = InodeNumber(u32::try_from(metadata.ino()).unwrap());
            let inode = inode_table::read_inode(&info, number).await.unwrap();
            check_metadata(&inode, metadata);
        }
        let mut inodes = Vec::new();
        for number in numbers {
            inodes.push(inode_table::read_inode(&info, number).await.unwrap());
        }
        check_blocks(&device, &info, &inodes[0], &blocks).await;
        check_blocks(&device, &info, &inodes[1], &dense).await;
        assert!(inodes[2].is_fast_symlink(&layout) && inodes[3].is_fast_symlink(&layout));
        assert!(!inodes[4].is_fast_symlink(&layout));
        assert!(inodes[2].i_block.starts_with(b"short\0"));
        assert_eq!(inodes[0].uses_extents(), info.features().incompat.contains(Incompat::EXTENTS));
        every_inode_is_written_back_the_same(&device, &info).await;
        free_files(&device, &info, &mut inodes[..2], &blocks).await;
    }
}

/// Through memory and into the same slot: the same bytes.
async fn every_inode_is_written_back_the_same(device: &MemoryDevice, info: &SuperblockInfo) {
    let layout = info.inode_layout();
    let content = device.content();
    let mut compared = 0;
    for number in (1..=info.inodes_count()).map(InodeNumber) {
        let inode = inode_table::read_inode(info, number).await.unwrap();
        if inode.is_free() && inode.mode == 0 {
            continue;
        }
        let (block, offset) = info.inode_location(number).await.unwrap();
        let start = usize::try_from(block.byte(info.block_size()).unwrap()).unwrap() + offset;
        let before = &content[start..start + usize::from(info.inode_size())];
        let mut after = before.to_vec();
        inode.serialize(&mut after, &layout).unwrap();
        assert!(before == after, "inode {number}");
        compared += 1;
    }
    // The root, the journal, lost+found, and what the caller made.
    assert!(compared >= 4, "{compared} inodes");
}

/// Frees files piece by piece and whole; e2fsck agrees after each step.
async fn free_files(
    device: &MemoryDevice,
    info: &SuperblockInfo,
    inodes: &mut [Inode],
    blocks: &BTreeSet<u64>,
) {
    let transaction = DirectTransaction::new(Arc::clone(&info.cache));
    let last = LogicalBlock(u32::MAX - 1);
    let steps = [(15, 15), (12, 300), (250, 250), (5000, 80_000), (301, u32::MAX - 1), (0, u32::MAX - 1)];
    for (from, to) in steps {
        for inode in &mut *inodes {
            let (from, to) = (LogicalBlock(from), LogicalBlock(to));
            let done = block_map::remove(info, &transaction, inode, from, to).await.unwrap();
            assert_eq!(done, Removal::Done);
            inode_table::write_inode(info, &transaction, inode).await.unwrap();
        }
        info.store_free_counts(&transaction).await.unwrap();
        info.cache.write_dirty().await.unwrap();
        assert_clean(&device.content(), &format!("without {from}..={to}"));
        if from == 301 {
            let left = blocks.iter().copied().filter(|block| *block < 12).collect();
            check_blocks(device, info, &inodes[0], &left).await;
        }
    }
    for inode in inodes {
        assert_eq!(inode.sectors, 0);
        let mapping = block_map::lookup(info, inode, LogicalBlock(0)).await.unwrap();
        assert_eq!(mapping.state, MappingState::Hole);
        assert!(mapping.len > 11);
        let error = block_map::lookup(info, inode, LogicalBlock(u32::MAX)).await.unwrap_err();
        assert_eq!(error.errno(), Errno::EFBIG);
        assert!(block_map::lookup(info, inode, last).await.unwrap().state == MappingState::Hole);
    }
}

#[tokio::test]
async fn a_slot_that_was_never_used_is_a_free_inode_whatever_it_holds() {
    // Tables are not zeroed at all.
    let Some(content) = mke2fs_content("64M", &["-b", "1024", "-E", "lazy_itable_init=1"]) else { return };
    let (device, info) = open(content, false).await.unwrap();
    let number = InodeNumber(5000);
    let (block, offset) = info.inode_location(number).await.unwrap();
    let mut content = device.content();
    let start = usize::try_from(block.byte(info.block_size()).unwrap()).unwrap();
    content[start..start + 1024].fill(0x5a);
    let (device, info) = open(content, false).await.unwrap();
    let inode = inode_table::read_inode(&info, number).await.unwrap();
    assert!(inode.is_free() && inode.mode == 0);
    // The first inode that is written there leaves nothing of it in its slot.
    let transaction = DirectTransaction::new(Arc::clone(&info.cache));
    let inode = info.new_inode(number, 0o100_600, Timestamp::default());
    inode_table::write_inode(&info, &transaction, &inode).await.unwrap();
    info.cache.write_dirty().await.unwrap();
    let written = slot(&device, &info, number).await;
    assert_eq!(
        Inode::parse(&written, number, &info.inode_layout()).unwrap(),
        Inode { is_new: false, ..inode }
    );
    // Behind i_checksum_hi, which may be any number.
    assert!(!written[0x84..].contains(&0x5a));
    assert_eq!(offset % 256, 0);
    for number in [0, info.inodes_count() + 1, u32::MAX] {
        let error = inode_table::read_inode(&info, InodeNumber(number)).await.unwrap_err();
        assert!(error.is_corrupt(), "{error}");
    }
}

#[tokio::test]
async fn the_first_large_file_says_so_in_the_superblock() {
    let Some(content) = mke2fs_content("16M", &["-b", "1024", "-O", "^large_file,^has_journal"]) else {
        return;
    };
    let (device, info) = open(content, false).await.unwrap();
    let transaction = DirectTransaction::new(Arc::clone(&info.cache));
    let mut inode = info.new_inode(InodeNumber(12), 0o100_600, Timestamp::default());
    inode.size = 1 << 31;
    inode_table::write_inode(&info, &transaction, &inode).await.unwrap();
    info.cache.write_dirty().await.unwrap();
    let (_, again) = open(device.content(), false).await.unwrap();
    assert!(again.features().ro_compat.contains(ext4_core::format::features::RoCompat::LARGE_FILE));
}

/// Reads every inode and walks every mapping; how many inodes failed to be read.
async fn read_everything(info: &SuperblockInfo) -> u32 {
    let mut failed = 0;
    for number in (1..=info.inodes_count().min(20_000)).map(InodeNumber) {
        let Ok(inode) = inode_table::read_inode(info, number).await else {
            failed += 1;
            continue;
        };
        if inode.is_free() || inode.flags.contains(InodeFlags::INLINE_DATA) {
            continue;
        }
        let is_mapped = matches!(inode.file_type(), Some(FileType::Regular | FileType::Directory));
        if !is_mapped {
            continue;
        }
        let mut at = LogicalBlock(0);
        let mut steps = 0;
        while at <= LogicalBlock::MAX && steps < 10_000 {
            let Ok(mapping) = block_map::lookup(info, &inode, at).await else { break };
            assert!(mapping.logical == at && mapping.len > 0);
            if let MappingState::Written(first) | MappingState::Unwritten(first) = mapping.state {
                assert!(info.is_data_range(first, u64::from(mapping.len)));
            }
            at = at.offset(mapping.len);
            steps += 1;
        }
        if inode.uses_extents() {
            let _ = extent_tree::node_blocks(info, &inode).await;
        }
    }
    failed
}

/// Frees every file's blocks, in memory: whatever the image, it ends.
async fn free_everything(info: &SuperblockInfo) {
    let transaction = DirectTransaction::new(Arc::clone(&info.cache));
    for number in (1..=info.inodes_count().min(2000)).map(InodeNumber) {
        let Ok(mut inode) = inode_table::read_inode(info, number).await else { continue };
        let (first, last) = (LogicalBlock(0), LogicalBlock::MAX);
        let _ = block_map::remove(info, &transaction, &mut inode, first, last).await;
    }
}

#[tokio::test]
async fn images_of_the_collection_are_read_without_harm() {
    let Some(images) = packed_images() else { return };
    let (mut good, mut damaged, mut refused, mut too_large) = (0, 0, 0, 0);
    for image in &images {
        let content = image.content();
        if content.len() >= 1 << 28 {
            too_large += 1;
            continue;
        }
        let name = image.name();
        let expected = fs::read_to_string(image.expected("json")).unwrap();
        let flat: String = expected.split_whitespace().collect();
        let clean = flat.contains("\"rc\":[0,") && flat.contains("\"needs_recovery\":false");
        let Ok((_, info)) = open(content, true).await else {
            refused += 1;
            continue;
        };
        let failed = read_everything(&info).await;
        if clean {
            assert_eq!(failed, 0, "{name}");
            good += 1;
        } else {
            damaged += 1;
        }
        free_everything(&info).await;
    }
    println!("{good} good images, {damaged} others, {refused} refused, {too_large} too large");
    assert_eq!(good + damaged + refused + too_large, images.len());
    assert!(good > 20 && damaged > 50, "{good} good images, {damaged} others");
    assert!(too_large < 10, "{too_large} images are too large");
}

#[test]
fn debugfs_reads_what_serialize_wrote() {
    // A time past 2038 with nanoseconds, a huge owner and a project stay what they are for e2fsprogs.
    let Some(content) = mke2fs_content("16M", &["-b", "1024", "-O", "^has_journal"]) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let content = runtime.block_on(async {
        let (device, info) = open(content, false).await.unwrap();
        let transaction = DirectTransaction::new(Arc::clone(&info.cache));
        let mut inode = inode_table::read_inode(&info, InodeNumber::ROOT).await.unwrap();
        inode.uid = 70_000;
        inode.mtime = Timestamp { seconds: 5_000_000_000, nanoseconds: 123_456_789 };
        inode.generation = 0x1234_5678;
        inode.file_acl = BlockNumber(0);
        inode_table::write_inode(&info, &transaction, &inode).await.unwrap();
        info.cache.write_dirty().await.unwrap();
        device.content()
    });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    fs::write(&path, content).unwrap();
    let Some(text) = run_if_there(Command::new("debugfs").args(["-R", "stat <2>"]).arg(&path)) else {
        return;
    };
    assert!(text.contains("User: 70000"), "{text}");
    assert!(text.contains("Generation: 305419896"), "{text}");
    let extra = (123_456_789_u32 << 2) | 1;
    assert!(
        text.contains(&format!("mtime: 0x{:08x}:{extra:08x}", 5_000_000_000_u64 & 0xffff_ffff)),
        "{text}"
    );
}
