//! The allocators on file systems that mke2fs made: against a model, to the last block, and judged by e2fsck.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ext4_core::device::{BioFlags, BlockDevice as _, MemoryDevice, Segment};
use ext4_core::environment::FixedEnvironment;
use ext4_core::format::group_descriptor::GroupFlags;
use ext4_core::meta::block_allocator::picked::{pick_blocks, return_picked, use_picked};
use ext4_core::meta::block_allocator::{self, AllocationRequest, allocate_blocks, free_blocks};
use ext4_core::meta::inode_allocator::{self, allocate_inode, free_inode};
use ext4_core::meta::transaction::OnCommit;
use ext4_core::meta::{Buffer, DirectTransaction, SuperblockInfo, Transaction};
use ext4_core::{BlockNumber, Errno, GroupNumber, InodeNumber, Result, Timestamp, TransactionId};
use ext4_test_support::tools::{assert_clean, mke2fs_content};

async fn open(device: &Arc<MemoryDevice>) -> (Arc<SuperblockInfo>, DirectTransaction) {
    let environment =
        Arc::new(FixedEnvironment::new(Timestamp { seconds: 1_700_000_000, nanoseconds: 0 }, 7));
    // So little that bitmaps have to be let go of and read again.
    let info = SuperblockInfo::load(Arc::clone(device) as _, 256 << 10, environment, false).await.unwrap();
    let transaction = DirectTransaction::new(Arc::clone(&info.cache));
    (info, transaction)
}

async fn close(info: &SuperblockInfo) {
    info.write_superblock(&mut |_| {}).await.unwrap();
}

fn request(len: u32) -> AllocationRequest {
    AllocationRequest { goal: None, inode: InodeNumber(12), len, reserved: false, metadata: false }
}

const LAYOUTS: &[(&str, &[&str])] = &[
    ("16M", &["-b", "1024"]),
    ("64M", &["-b", "1024", "-O", "metadata_csum_seed,orphan_file"]),
    ("40M", &["-b", "4096"]),
    ("300M", &["-b", "4096", "-g", "4096"]),
    ("64M", &["-b", "1024", "-O", "^metadata_csum,uninit_bg", "-g", "2048"]),
    ("64M", &["-b", "2048", "-O", "^flex_bg,^64bit,^metadata_csum"]),
    ("64M", &["-b", "1024", "-O", "^resize_inode,meta_bg", "-g", "1024"]),
    ("32M", &["-O", "none,sparse_super,filetype", "-I", "128"]),
];

#[tokio::test]
async fn random_allocation_and_freeing_keeps_every_layout_clean() {
    for (size, options) in LAYOUTS {
        let Some(content) = mke2fs_content(size, options) else { return };
        let device = Arc::new(MemoryDevice::from_content(content));
        let (info, transaction) = open(&device).await;
        assert!(info.bad_groups().is_empty());
        let (free_before, _) = info.free_and_reserved_blocks();
        let mut random = fastrand::Rng::with_seed(42);
        let mut owned: BTreeMap<u64, u64> = BTreeMap::new();
        for _ in 0..3000 {
            if random.u8(..) < 150 {
                let len = 1 << random.u32(0..12);
                let goal = random.bool().then(|| BlockNumber(random.u64(0..info.blocks_count())));
                let metadata = random.bool();
                match allocate_blocks(
                    &info,
                    &transaction,
                    &AllocationRequest { goal, metadata, ..request(len) },
                )
                .await
                {
                    Ok((first, count)) => {
                        assert!(count >= 1 && count <= len);
                        let end = first.0 + u64::from(count);
                        assert!(info.is_data_range(first, u64::from(count)));
                        let before = owned.range(..end).next_back();
                        assert!(before.is_none_or(|(start, len)| start + len <= first.0), "given out twice");
                        owned.insert(first.0, u64::from(count));
                    }
                    Err(error) => assert_eq!(error.errno(), Errno::ENOSPC),
                }
            } else if !owned.is_empty() {
                let index = random.usize(..owned.len());
                let (first, count) = owned.iter().nth(index).map(|(a, b)| (*a, *b)).unwrap();
                owned.remove(&first);
                let keep = random.u64(0..count);
                free_blocks(&info, &transaction, BlockNumber(first + keep), count - keep, random.bool())
                    .await
                    .unwrap();
                if keep > 0 {
                    owned.insert(first, keep);
                }
            }
            let used: u64 = owned.values().sum();
            assert_eq!(info.free_and_reserved_blocks(), (free_before - used, 0));
        }
        // A second look at the device sees the same.
        close(&info).await;
        let (again, transaction) = open(&device).await;
        assert_eq!(again.free_and_reserved_blocks(), info.free_and_reserved_blocks());
        for (first, count) in owned {
            free_blocks(&again, &transaction, BlockNumber(first), count, false).await.unwrap();
        }
        assert!(free_blocks(&again, &transaction, BlockNumber(0), 1, false).await.unwrap_err().is_corrupt());
        assert_eq!(again.free_and_reserved_blocks().0, free_before);
        close(&again).await;
        assert_clean(&device.content(), &format!("{size} {options:?}"));
    }
}

/// What a replay says is used becomes used, wherever it lies, once; the counts follow in every layout.
#[tokio::test]
async fn what_is_marked_as_used_is_used_and_counted() {
    for (size, options) in LAYOUTS {
        let Some(content) = mke2fs_content(size, options) else { return };
        let context = format!("{size} {options:?}");
        let device = Arc::new(MemoryDevice::from_content(content));
        let (info, transaction) = open(&device).await;
        let (free_blocks_before, _) = info.free_and_reserved_blocks();
        let free_inodes_before = info.free_inodes_count();
        let mut random = fastrand::Rng::with_seed(3);
        let mut owned: BTreeSet<u64> = BTreeSet::new();
        let (mut marked, mut refused_ranges) = (0, 0);
        for _ in 0..200 {
            let first = random.u64(0..info.blocks_count());
            let count = random.u64(1..5000).min(info.blocks_count() - first);
            if !info.is_data_range(BlockNumber(first), count) {
                let refused =
                    block_allocator::mark_used(&info, &transaction, BlockNumber(first), count).await;
                assert!(refused.unwrap_err().is_corrupt(), "{context}");
                refused_ranges += 1;
                continue;
            }
            let found =
                block_allocator::mark_used(&info, &transaction, BlockNumber(first), count).await.unwrap();
            let found: Vec<u64> = found.into_iter().flatten().collect();
            assert!(found.iter().all(|block| owned.insert(*block)), "{context}: marked twice");
            marked += 1;
            assert_eq!(info.free_and_reserved_blocks().0 + owned.len() as u64, free_blocks_before);
        }
        assert!(marked > 20 && refused_ranges > 0, "{context}: {marked} marked, {refused_ranges} refused");
        let mut inodes = Vec::new();
        for _ in 0..40 {
            let inode = InodeNumber(random.u32(12..=info.inodes_count()));
            if inode_allocator::is_used(&info, inode).await.unwrap() {
                let again = inode_allocator::mark_used(&info, &transaction, inode, false).await;
                assert!(again.unwrap_err().is_corrupt());
                continue;
            }
            inode_allocator::mark_used(&info, &transaction, inode, true).await.unwrap();
            assert!(inode_allocator::is_used(&info, inode).await.unwrap());
            inodes.push(inode);
        }
        assert!(inodes.len() > 20, "{context}: {} inodes", inodes.len());
        assert_eq!(info.free_inodes_count() as usize + inodes.len(), free_inodes_before as usize);
        for inode in inodes {
            free_inode(&info, &transaction, inode, true).await.unwrap();
        }
        for block in owned {
            free_blocks(&info, &transaction, BlockNumber(block), 1, false).await.unwrap();
        }
        close(&info).await;
        assert_clean(&device.content(), &context);
    }
}

#[tokio::test]
async fn space_ends_exactly_and_root_keeps_its_share() {
    let Some(content) = mke2fs_content("24M", &["-b", "1024"]) else { return };
    let device = Arc::new(MemoryDevice::from_content(content));
    let (info, transaction) = open(&device).await;
    let free = info.free_and_reserved_blocks().0;
    let kept = info.superblock().r_blocks_count + info.blocks_count() / 50;
    let mut runs = Vec::new();
    let fill = async |info: &SuperblockInfo, metadata, runs: &mut Vec<(BlockNumber, u32)>| {
        let mut total = 0;
        loop {
            match allocate_blocks(info, &transaction, &AllocationRequest { metadata, ..request(700) }).await {
                Ok((first, len)) => {
                    runs.push((first, len));
                    total += u64::from(len);
                }
                Err(error) => {
                    assert_eq!(error.errno(), Errno::ENOSPC);
                    return total;
                }
            }
        }
    };
    info.reserve_blocks(free - kept).unwrap();
    assert_eq!(info.reserve_blocks(1).unwrap_err().errno(), Errno::ENOSPC);
    assert_eq!(fill(&info, false, &mut runs).await, 0);
    info.release_reserved_blocks(free - kept);
    assert_eq!(fill(&info, false, &mut runs).await, free - kept);
    info.allow_root_blocks(true);
    assert_eq!(fill(&info, false, &mut runs).await, info.superblock().r_blocks_count);
    assert_eq!(fill(&info, true, &mut runs).await, info.blocks_count() / 50);
    assert_eq!(info.free_and_reserved_blocks(), (0, 0));
    for (first, len) in runs {
        free_blocks(&info, &transaction, first, u64::from(len), false).await.unwrap();
    }
    close(&info).await;
    assert_clean(&device.content(), "after being full");
}

/// A transaction that commits when it is told to.
struct Deferred {
    direct: DirectTransaction,
    callbacks: std::sync::Mutex<Vec<OnCommit>>,
}

#[async_trait::async_trait]
impl Transaction for Deferred {
    fn id(&self) -> TransactionId {
        TransactionId(1)
    }
    fn get_write_access(&self, buffer: &Buffer) -> Result<()> {
        self.direct.get_write_access(buffer)
    }
    fn get_create_access(&self, buffer: &Buffer) -> Result<()> {
        self.direct.get_create_access(buffer)
    }
    fn dirty_metadata(&self, buffer: &Buffer) -> Result<()> {
        self.direct.dirty_metadata(buffer)
    }
    fn forget(&self, block: BlockNumber, buffer: Option<&Buffer>) -> Result<()> {
        self.direct.forget(block, buffer)
    }
    fn credits(&self) -> u32 {
        u32::MAX
    }
    fn extend(&self, _credits: u32) -> Result<bool> {
        Ok(true)
    }
    fn on_commit(&self, callback: OnCommit) {
        self.callbacks.lock().unwrap().push(callback);
    }
}

#[tokio::test]
async fn freed_blocks_come_back_when_their_transaction_has_committed() {
    let Some(content) = mke2fs_content("16M", &["-b", "1024"]) else { return };
    let device = Arc::new(MemoryDevice::from_content(content));
    let (info, direct) = open(&device).await;
    let transaction = Deferred { direct, callbacks: std::sync::Mutex::default() };
    let mut runs = Vec::new();
    let all = AllocationRequest { metadata: true, ..request(1000) };
    while let Ok(run) = allocate_blocks(&info, &transaction, &all).await {
        runs.push(run);
    }
    let (first, len) = runs[3];
    free_blocks(&info, &transaction, first, u64::from(len), false).await.unwrap();
    assert_eq!(info.free_and_reserved_blocks().0, u64::from(len));
    assert_eq!(info.blocks_awaiting_commit(), u64::from(len));
    assert_eq!(allocate_blocks(&info, &transaction, &all).await.unwrap_err().errno(), Errno::ENOSPC);
    assert!(free_blocks(&info, &transaction, first, 1, false).await.unwrap_err().is_corrupt());
    for callback in std::mem::take(&mut *transaction.callbacks.lock().unwrap()) {
        callback();
    }
    assert_eq!(info.blocks_awaiting_commit(), 0);
    assert_eq!(allocate_blocks(&info, &transaction, &all).await.unwrap(), (first, len));
}

/// Picked blocks belong to their picker alone and nothing on the device says so; used ones are like allocated
/// ones, returned ones like free ones; what waits for its commit is not picked.
#[tokio::test]
async fn picked_blocks_are_kept_in_memory_only() {
    for (size, options) in LAYOUTS {
        let Some(content) = mke2fs_content(size, options) else { return };
        let device = Arc::new(MemoryDevice::from_content(content));
        let (info, direct) = open(&device).await;
        let transaction = Deferred { direct, callbacks: std::sync::Mutex::default() };
        let (free, _) = info.free_and_reserved_blocks();
        let request = |len| AllocationRequest { reserved: true, ..request(len) };
        let below = BlockNumber(info.blocks_count() / 2);
        let mut random = fastrand::Rng::with_seed(5);
        let (mut used, mut reserved, mut allocated) = (0, 0, 0);
        let [mut picked, mut owned, mut waiting]: [Vec<(u64, u32)>; 3] = Default::default();
        let disjoint = |runs: &[(u64, u32)], (first, len): (u64, u32)| {
            runs.iter()
                .all(|(other, count)| *other >= first + u64::from(len) || first >= other + u64::from(*count))
        };
        for _ in 0..600 {
            let len = random.u32(1..200);
            match random.u8(0..8) {
                0..3 => {
                    if info.reserve_blocks(u64::from(len)).is_err() {
                        continue;
                    }
                    let limited = random.bool();
                    let limit = if limited { below } else { BlockNumber(u64::MAX) };
                    let found = pick_blocks(&info, &request(len), limit).await;
                    let got = found.as_ref().map_or(0, |(_, got)| *got);
                    info.release_reserved_blocks(u64::from(len - got));
                    let Ok((first, got)) = found else { continue };
                    let run = (first.0, got);
                    assert!(!limited || first.offset(u64::from(got)) <= below, "{options:?}");
                    for runs in [&picked, &owned, &waiting] {
                        assert!(disjoint(runs, run), "{options:?}: {run:?} is another's");
                    }
                    picked.push(run);
                    reserved += 1;
                }
                3 | 4 if !picked.is_empty() => {
                    let (first, got) = picked.swap_remove(random.usize(..picked.len()));
                    use_picked(&info, &transaction, BlockNumber(first), got).await.unwrap();
                    used += 1;
                    owned.push((first, got));
                }
                5 if !picked.is_empty() => {
                    let (first, got) = picked.swap_remove(random.usize(..picked.len()));
                    return_picked(&info, BlockNumber(first), got);
                    info.release_reserved_blocks(u64::from(got));
                }
                6 if !owned.is_empty() => {
                    let (first, got) = owned.swap_remove(random.usize(..owned.len()));
                    free_blocks(&info, &transaction, BlockNumber(first), u64::from(got), false)
                        .await
                        .unwrap();
                    waiting.push((first, got));
                }
                7 if random.u8(0..4) == 0 => {
                    for callback in std::mem::take(&mut *transaction.callbacks.lock().unwrap()) {
                        callback();
                    }
                    waiting.clear();
                }
                _ => {
                    let Ok((first, got)) = allocate_blocks(&info, &transaction, &self::request(len)).await
                    else {
                        continue;
                    };
                    for runs in [&picked, &owned, &waiting] {
                        assert!(disjoint(runs, (first.0, got)), "{options:?}: {first} is another's");
                    }
                    owned.push((first.0, got));
                    allocated += 1;
                }
            }
            let sum = |runs: &[(u64, u32)]| runs.iter().map(|(_, len)| u64::from(*len)).sum::<u64>();
            assert_eq!(info.free_and_reserved_blocks(), (free - sum(&owned), sum(&picked)), "{options:?}");
        }
        assert!(used > 20, "{options:?}: {used} runs used");
        assert!(reserved > 50 && allocated > 50, "{options:?}: {reserved} picked, {allocated} allocated");
        for callback in std::mem::take(&mut *transaction.callbacks.lock().unwrap()) {
            callback();
        }
        // Whatever is picked still, the device does not know.
        for (first, len) in owned {
            free_blocks(&info, &transaction.direct, BlockNumber(first), u64::from(len), false).await.unwrap();
        }
        close(&info).await;
        assert_eq!(info.free_and_reserved_blocks().0, free);
        assert_clean(&device.content(), &format!("{options:?}"));
    }
}

#[tokio::test]
async fn small_requests_in_turn_lie_behind_each_other() {
    let Some(content) = mke2fs_content("64M", &["-b", "4096"]) else { return };
    let device = Arc::new(MemoryDevice::from_content(content));
    let (info, transaction) = open(&device).await;
    let mut end = None;
    for inode in 12..512 {
        let (first, len) = allocate_blocks(
            &info,
            &transaction,
            &AllocationRequest { inode: InodeNumber(inode), ..request(2) },
        )
        .await
        .unwrap();
        assert_eq!(len, 2);
        assert!(end.is_none_or(|end| end == first), "{first} does not follow {end:?}");
        end = Some(first.offset(2));
    }
}

#[tokio::test]
async fn writers_that_append_in_turn_keep_out_of_each_other_s_way() {
    let Some(content) = mke2fs_content("300M", &["-b", "4096"]) else { return };
    let device = Arc::new(MemoryDevice::from_content(content));
    let (info, transaction) = open(&device).await;
    let mut ends: [Option<BlockNumber>; 4] = [None; 4];
    let mut pieces = 0;
    for _ in 0..400 {
        for end in &mut ends {
            let request = AllocationRequest { goal: *end, ..request(1) };
            let (first, len) = allocate_blocks(&info, &transaction, &request).await.unwrap();
            assert_eq!(len, 1);
            pieces += u32::from(*end != Some(first));
            *end = Some(first.offset(1));
        }
    }
    assert!(pieces <= 8, "{pieces} pieces of 4 files of 400 blocks");
}

#[tokio::test]
async fn a_long_request_finds_the_long_run() {
    let Some(content) = mke2fs_content("512M", &["-b", "4096"]) else { return };
    let device = Arc::new(MemoryDevice::from_content(content));
    let (info, transaction) = open(&device).await;
    info.allow_root_blocks(true);
    // Everything in use but for single blocks, and in the last group one run.
    let mut runs = Vec::new();
    while let Ok(run) =
        allocate_blocks(&info, &transaction, &AllocationRequest { metadata: true, ..request(32768) }).await
    {
        runs.push(run);
    }
    for (first, len) in &runs {
        for block in (0..u64::from(*len)).step_by(7) {
            free_blocks(&info, &transaction, first.offset(block), 1, false).await.unwrap();
        }
    }
    let long = runs.iter().max_by_key(|(first, len)| (*len >= 6000, *first)).unwrap().0;
    for block in 1000..4000 {
        let block = long.offset(block);
        let _ = free_blocks(&info, &transaction, block, 1, false).await;
    }
    let (first, len) = allocate_blocks(&info, &transaction, &request(32768)).await.unwrap();
    assert!(len >= 2048 && first >= long, "{first}+{len}");
}

#[tokio::test]
async fn inodes_are_spread_used_up_and_freed() {
    for (size, options) in LAYOUTS {
        let Some(content) = mke2fs_content(size, options) else { return };
        let device = Arc::new(MemoryDevice::from_content(content));
        let (info, transaction) = open(&device).await;
        let free = info.free_inodes_count();
        let mut seen = BTreeSet::new();
        let mut groups = BTreeSet::new();
        for index in 0..free {
            let directory = index % 10 == 0;
            let parent = if index % 20 == 0 { InodeNumber::ROOT } else { InodeNumber(12) };
            let inode = allocate_inode(&info, &transaction, parent, directory).await.unwrap();
            assert!(inode.0 >= 11 && inode.0 <= info.inodes_count());
            assert!(seen.insert((inode, directory)), "{inode} given out twice");
            if directory {
                groups.insert(info.group_of_inode(inode));
            }
        }
        assert!(groups.len() > 1 || info.groups_count() == 1, "{size} {options:?}: all in one group");
        let full = allocate_inode(&info, &transaction, InodeNumber::ROOT, true).await.unwrap_err();
        assert_eq!(full.errno(), Errno::ENOSPC);
        for group in 0..info.groups_count() {
            let descriptor = info.group_descriptor(GroupNumber(group)).unwrap();
            assert_eq!((descriptor.free_inodes_count, descriptor.itable_unused), (0, 0));
            assert!(!descriptor.flags.intersects(GroupFlags::INODE_UNINIT | GroupFlags::BLOCK_UNINIT));
        }
        for (inode, directory) in seen {
            free_inode(&info, &transaction, inode, directory).await.unwrap();
            assert!(free_inode(&info, &transaction, inode, directory).await.unwrap_err().is_corrupt());
        }
        assert!(free_inode(&info, &transaction, InodeNumber(2), true).await.unwrap_err().is_corrupt());
        assert_eq!(info.free_inodes_count(), free);
        close(&info).await;
        // Tables that were counted as unused now count as used: they must hold zeros, which on this device
        // they do.
        assert_clean(&device.content(), &format!("{size} {options:?}"));
    }
}

#[tokio::test]
async fn a_group_with_a_wrong_bitmap_is_passed_by() {
    let Some(mut content) = mke2fs_content("64M", &["-b", "1024", "-g", "2048"]) else { return };
    let device = Arc::new(MemoryDevice::from_content(content.clone()));
    let (info, _) = open(&device).await;
    let bitmap = info.group_descriptor(GroupNumber(0)).unwrap().block_bitmap;
    content[bitmap.0 as usize * 1024 + 100] ^= 0x10;
    let device = Arc::new(MemoryDevice::from_content(content));
    let (info, transaction) = open(&device).await;
    let goal = Some(BlockNumber(1000));
    let (first, _) =
        allocate_blocks(&info, &transaction, &AllocationRequest { goal, ..request(9) }).await.unwrap();
    assert_ne!(info.group_of_block(first), GroupNumber(0));
    assert_eq!(info.bad_groups().len(), 1);
    assert!(info.bad_groups()[0].1.to_string().contains("checksum"));
}

#[tokio::test]
async fn a_group_with_a_wrong_inode_bitmap_is_passed_by() {
    let Some(mut content) = mke2fs_content("64M", &["-b", "1024", "-g", "2048"]) else { return };
    let device = Arc::new(MemoryDevice::from_content(content.clone()));
    let (info, _) = open(&device).await;
    let bitmap = info.group_descriptor(GroupNumber(0)).unwrap().inode_bitmap;
    content[bitmap.0 as usize * 1024 + 5] ^= 0x10;
    let device = Arc::new(MemoryDevice::from_content(content));
    let (info, transaction) = open(&device).await;
    let inode = allocate_inode(&info, &transaction, InodeNumber::ROOT, false).await.unwrap();
    assert_ne!(info.group_of_inode(inode), GroupNumber(0));
    assert_eq!(info.bad_groups().len(), 1);
    assert!(info.bad_groups()[0].1.to_string().contains("inode bitmap of group 0: checksum"));
}

/// Byte 4 of the descriptor of group 1, in a file system with blocks of 1 KiB: the place of its inode bitmap.
const OF_DESCRIPTOR_1: usize = 2048 + 64 + 4;

#[tokio::test]
async fn a_descriptor_that_is_damaged_after_the_mount_is_found_before_its_block_is_written() {
    for features in ["metadata_csum", "^metadata_csum,^uninit_bg"] {
        let options = &["-b", "1024", "-g", "2048", "-O", features];
        let Some(content) = mke2fs_content("64M", options) else { return };
        let device = Arc::new(MemoryDevice::from_content(content));
        let (info, transaction) = open(&device).await;
        let mut table = device.read_at(2048, 1024).await.unwrap();
        table[OF_DESCRIPTOR_1 - 2048] ^= 1;
        device.write_at(2048, vec![Segment::Owned(table)], BioFlags::empty()).await.unwrap();
        let goal = Some(BlockNumber(1000));
        let error = allocate_blocks(&info, &transaction, &AllocationRequest { goal, ..request(9) }).await;
        let error = error.unwrap_err();
        assert!(error.is_corrupt() && error.to_string().contains("group 1"), "{features}: {error}");
    }
}

#[tokio::test]
async fn a_bad_descriptor_takes_only_its_own_group_out_of_use() {
    let Some(mut content) = mke2fs_content("64M", &["-b", "1024", "-g", "2048"]) else { return };
    content[OF_DESCRIPTOR_1] ^= 1;
    let device = Arc::new(MemoryDevice::from_content(content));
    let environment = Arc::new(FixedEnvironment::new(Timestamp::default(), 7));
    let info = SuperblockInfo::load(device, 256 << 10, environment, true).await.unwrap();
    assert_eq!(info.bad_groups().len(), 1);
    let transaction = DirectTransaction::new(Arc::clone(&info.cache));
    for (goal, group) in [(1000, 0), (2048 * 2 + 1000, 2)] {
        let wanted = AllocationRequest { goal: Some(BlockNumber(goal)), ..request(9) };
        let (first, _) = allocate_blocks(&info, &transaction, &wanted).await.unwrap();
        assert_eq!(info.group_of_block(first), GroupNumber(group));
    }
    let inode = allocate_inode(&info, &transaction, InodeNumber::ROOT, false).await.unwrap();
    assert_ne!(info.group_of_inode(inode), GroupNumber(1));
}

#[tokio::test]
async fn one_flipped_bit_in_superblock_or_descriptors_never_panics() {
    let Some(content) = mke2fs_content("1M", &["-b", "1024", "-O", "^metadata_csum,^uninit_bg", "-g", "256"])
    else {
        return;
    };
    // The superblock as far as it says something of the geometry, and four descriptors of 64 bytes behind it.
    let (mut opened, mut refused) = (0, 0);
    for bit in (1024 * 8..(1024 + 0x180) * 8).chain(2048 * 8..(2048 + 4 * 64) * 8) {
        let mut content = content.clone();
        content[bit / 8] ^= 1 << (bit % 8);
        let device = Arc::new(MemoryDevice::from_content(content));
        let environment = Arc::new(FixedEnvironment::new(Timestamp::default(), 7));
        let Ok(info) = SuperblockInfo::load(device, 1 << 20, environment, false).await else {
            refused += 1;
            continue;
        };
        opened += 1;
        let transaction = DirectTransaction::new(Arc::clone(&info.cache));
        for goal in (0..4).map(|group| BlockNumber(group * 256 + 200)) {
            let wanted = AllocationRequest { goal: Some(goal), ..request(5) };
            let _ = allocate_blocks(&info, &transaction, &wanted).await;
        }
        let _ = allocate_inode(&info, &transaction, InodeNumber::ROOT, true).await;
    }
    println!("{opened} opened, {refused} refused");
    assert!(opened > 1000 && refused > 100, "{opened} opened, {refused} refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_allocate_side_by_side_to_the_last_block() {
    let Some(content) = mke2fs_content("64M", &["-b", "1024", "-g", "4096"]) else { return };
    let device = Arc::new(MemoryDevice::from_content(content));
    let (info, _) = open(&device).await;
    info.allow_root_blocks(true);
    let (blocks, inodes) = (info.free_and_reserved_blocks().0, info.free_inodes_count());
    let tasks: Vec<_> = (0..4_u32)
        .map(|task| {
            let info = Arc::clone(&info);
            tokio::spawn(async move {
                let transaction = DirectTransaction::new(Arc::clone(&info.cache));
                let mut runs = Vec::new();
                let mut numbers = Vec::new();
                let inode = InodeNumber(12 + task * 5000);
                loop {
                    let wanted = AllocationRequest { inode, metadata: true, ..request(37 + task) };
                    let run = allocate_blocks(&info, &transaction, &wanted).await;
                    let number = allocate_inode(&info, &transaction, InodeNumber::ROOT, task == 0).await;
                    let ended = run.is_err() && number.is_err();
                    runs.extend(run);
                    numbers.extend(number);
                    if ended {
                        return (runs, numbers, task == 0);
                    }
                }
            })
        })
        .collect();
    let mut owned = BTreeSet::new();
    let mut numbers = Vec::new();
    for task in tasks {
        let (runs, found, directories) = task.await.unwrap();
        for (first, len) in runs {
            assert!((first.0..first.0 + u64::from(len)).all(|block| owned.insert(block)));
        }
        numbers.extend(found.into_iter().map(|number| (number, directories)));
    }
    assert_eq!((owned.len() as u64, numbers.len() as u32), (blocks, inodes));
    let transaction = DirectTransaction::new(Arc::clone(&info.cache));
    for block in owned {
        free_blocks(&info, &transaction, BlockNumber(block), 1, false).await.unwrap();
    }
    for (number, directory) in numbers {
        free_inode(&info, &transaction, number, directory).await.unwrap();
    }
    close(&info).await;
    assert_clean(&device.content(), "side by side");
}
