//! Direct I/O, beside cached I/O on the same file.

use std::sync::Arc;
use std::time::Duration;

use super::common::*;
use ext4_core::device::simulated::{DelayedDevice, FaultyDevice};
use ext4_core::device::{AlignedBuffer, BlockDevice, MemoryDevice, Operation};
use ext4_core::{Errno, InodeNumber};
use ext4_test_support::settings::seed_or;
use ext4_test_support::tools::changed_by_debugfs;
use ext4_writeback::SeekTarget;
use ext4_writeback::TokioRuntime;
use ext4_writeback::{
    FallocateMode, File, Filesystem, MountOptions, OpenOptions, ReadFlags, SyncRange, WriteFlags,
};

async fn open_direct(fs: &Filesystem, name: &str) -> File {
    let number = fs.lookup(InodeNumber::ROOT, name.as_bytes()).await.expect("is there");
    let options = OpenOptions::new().direct(true);
    fs.open_with(number, options).await.expect("opens")
}

fn aligned(seed: u64, offset: u64, len: usize) -> AlignedBuffer {
    AlignedBuffer::copied(&pattern(seed, offset, len)).expect("memory")
}

#[tokio::test]
async fn what_goes_past_the_cache_and_through_it_is_one_file() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(32, 4096, &[], 0xaa), options()).await;
    let cached = create(&fs, "file").await;
    let direct = open_direct(&fs, "file").await;
    assert_eq!(direct.direct_alignment(), 512);
    // Written through the cache, read past it.
    cached.write_at(0, &pattern(1, 0, 100_000)).await.expect("writes");
    let mut bytes = vec![0; 102_400];
    assert_eq!(direct.read_at(0, &mut bytes).await.expect("reads"), 100_000);
    assert!(bytes[..100_000] == pattern(1, 0, 100_000));
    assert!(bytes[100_000..].iter().all(|byte| *byte == 0), "nothing of what lies behind the end");
    // Overwritten past the cache, which has it.
    assert_eq!(content(&cached).await, pattern(1, 0, 100_000));
    assert_eq!(direct.write_at(8192, &pattern(2, 8192, 4096)).await.expect("writes"), 4096);
    assert_eq!(direct.write_at(20_480, &pattern(2, 20_480, 512)).await.expect("writes"), 512);
    let mut expected = pattern(1, 0, 100_000);
    expected[8192..12_288].copy_from_slice(&pattern(2, 8192, 4096));
    expected[20_480..20_992].copy_from_slice(&pattern(2, 20_480, 512));
    assert!(content(&cached).await == expected);
    // Dirty in the cache, overwritten in part past it.
    cached.write_at(40_000, &pattern(3, 40_000, 10_000)).await.expect("writes");
    expected[40_000..50_000].copy_from_slice(&pattern(3, 40_000, 10_000));
    let (result, buffer) = direct.write_direct(45_056, aligned(4, 45_056, 1024)).await;
    assert_eq!(result.expect("writes"), 1024);
    assert!(buffer[..] == pattern(4, 45_056, 1024)[..], "the memory is the caller's again");
    expected[45_056..46_080].copy_from_slice(&pattern(4, 45_056, 1024));
    assert!(content(&cached).await == expected);
    // Past the end, with a gap, then at the end.
    direct.write_at(110_592, &pattern(5, 110_592, 8192)).await.expect("writes");
    expected.resize(110_592, 0);
    expected.extend(pattern(5, 110_592, 8192));
    assert_eq!(direct.append(&pattern(6, 0, 512)).await.expect("appends"), (118_784, 512));
    expected.extend(pattern(6, 0, 512));
    assert!(content(&cached).await == expected);
    let counters = fs.counters();
    assert_eq!(counters.direct_writes, 5);
    assert_eq!(counters.direct_fallbacks, 1, "only the part of a block that held nothing");
    drop((cached, direct));
    let image = finish(&device, fs).await;
    let (device, fs) = mount_image(image, options()).await;
    let file = open(&fs, "file").await;
    assert!(content(&file).await == expected);
    drop(file);
    finish(&device, fs).await;
}

#[tokio::test]
async fn what_is_not_aligned_is_refused_with_what_it_should_be() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(16, 4096, &[], 0), options()).await;
    drop(create(&fs, "file").await);
    let file = open_direct(&fs, "file").await;
    for (offset, len) in [(1, 512), (512, 100), (511, 1)] {
        let error = file.write_at(offset, &vec![1; len]).await.expect_err("is not aligned");
        assert_eq!(error.errno(), Errno::EINVAL);
        assert!(error.to_string().contains("multiples of 512"), "{error}");
        let error = file.read_at(offset, &mut vec![1; len]).await.expect_err("is not aligned");
        assert_eq!(error.errno(), Errno::EINVAL);
    }
    assert_eq!(file.len(), 0);
    // An append to an unaligned end cannot be aligned either.
    let cached = open(&fs, "file").await;
    cached.write_at(0, b"abc").await.expect("writes");
    assert_eq!(file.append(&[1; 512]).await.expect_err("is not aligned").errno(), Errno::EINVAL);
    drop((file, cached));
    finish(&device, fs).await;
}

#[tokio::test]
async fn overwrites_take_no_handle_and_go_beside_each_other() {
    if !have_e2fsprogs() {
        return;
    }
    let memory = Arc::new(MemoryDevice::from_image(make_image(32, 4096, &[], 0)));
    let runtime = Arc::new(TokioRuntime::current().expect("inside tokio"));
    let slow = DelayedDevice::new(Arc::clone(&memory) as _, runtime, Duration::from_millis(1), 1);
    let fs = mount(Arc::new(slow), options()).await;
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(1, 0, 1 << 20)).await.expect("writes");
    file.sync_all().await.expect("syncs");
    let handles = fs.journal_statistics().expect("a journal").handles;
    let file = Arc::new(open_direct(&fs, "file").await);
    let writes: Vec<_> = (0..64_u64)
        .map(|i| {
            let file = Arc::clone(&file);
            tokio::spawn(async move {
                let offset = i * 16_384;
                file.write_direct(offset, aligned(2, offset, 16_384)).await.0.expect("writes")
            })
        })
        .collect();
    for write in writes {
        assert_eq!(write.await.expect("no panic"), 16_384);
    }
    assert_eq!(fs.journal_statistics().expect("a journal").handles, handles, "a handle for an overwrite");
    let (result, buffer) = file.read_direct(0, AlignedBuffer::zeroed(1 << 20).expect("memory")).await;
    assert_eq!(result.expect("reads"), 1 << 20);
    assert!(buffer[..] == pattern(2, 0, 1 << 20)[..]);
    drop(file);
    drop(fs);
}

/// The kernel goes through the page cache for a hole of such a file: its blocks cannot be unwritten.
#[tokio::test]
async fn a_file_of_indirect_blocks_is_overwritten_directly_and_filled_through_the_cache() {
    if !have_e2fsprogs() {
        return;
    }
    let image = make_image(32, 1024, &["-O", "^extent,^64bit"], 0xaa);
    let host = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut data = pattern(6, 0, 700_416);
    data[100 * 1024..150 * 1024].fill(0);
    std::fs::write(host.path(), &data).expect("room");
    let image = changed_by_debugfs(&image, &format!("write {} file", host.path().display()));
    let (device, fs) = mount_image(image, options()).await;
    let (cached, direct) = (open(&fs, "file").await, open_direct(&fs, "file").await);
    for (at, len) in [(0, 4096), (204_800, 51_200), (600_064, 512)] {
        direct.write_at(at as u64, &pattern(8, at as u64, len)).await.expect("overwrites");
        data[at..at + len].copy_from_slice(&pattern(8, at as u64, len));
    }
    assert_eq!(fs.counters().direct_fallbacks, 0);
    match direct.write_at(120 * 1024, &pattern(9, 0, 2048)).await {
        Ok(_) => data[120 * 1024..122 * 1024].copy_from_slice(&pattern(9, 0, 2048)),
        Err(error) => assert_eq!(error.errno(), Errno::EOPNOTSUPP),
    }
    assert_eq!(fs.counters().direct_fallbacks, 1);
    let mut bytes = vec![0; 700_416];
    direct.read_at(0, &mut bytes).await.expect("reads");
    assert!(bytes == data && content(&cached).await == data);
    drop((cached, direct));
    finish(&device, fs).await;
}

#[tokio::test]
async fn nowait_takes_what_is_there_and_nothing_else() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(16, 4096, &[], 0), options()).await;
    let file = create(&fs, "file").await;
    let direct = open_direct(&fs, "file").await;
    let error = file.write_at_with(0, b"abc", WriteFlags::NOWAIT).await.expect_err("refused");
    assert_eq!(error.errno(), Errno::EOPNOTSUPP);
    let nowait = |offset| direct.write_direct_with(offset, aligned(2, 0, 4096), WriteFlags::NOWAIT);
    assert_eq!(nowait(0).await.0.expect_err("extends").errno(), Errno::EAGAIN);
    file.write_at(0, &pattern(1, 0, 16_384)).await.expect("writes");
    assert_eq!(nowait(0).await.0.expect_err("dirty").errno(), Errno::EAGAIN);
    file.sync_all().await.expect("syncs");
    assert_eq!(nowait(0).await.0.expect("writes"), 4096);
    let mut bytes = [0; 100];
    let error =
        file.read_at_with(0, &mut bytes, ext4_writeback::ReadFlags::NOWAIT).await.expect_err("not cached");
    assert_eq!(error.errno(), Errno::EAGAIN);
    file.read_at(0, &mut bytes).await.expect("reads");
    assert_eq!(
        file.read_at_with(0, &mut bytes, ext4_writeback::ReadFlags::NOWAIT).await.expect("cached"),
        100
    );
    assert!(bytes[..] == pattern(2, 0, 100)[..]);
    drop((file, direct));
    finish(&device, fs).await;
}

#[tokio::test]
async fn g_13_a_direct_write_that_fails_changes_neither_mapping_nor_size() {
    if !have_e2fsprogs() {
        return;
    }
    let memory = Arc::new(MemoryDevice::from_image(make_image(16, 4096, &[], 0xaa)));
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as Arc<dyn BlockDevice>));
    let fs = mount(Arc::clone(&faulty) as _, options()).await;
    let cached = create(&fs, "file").await;
    let file = open_direct(&fs, "file").await;
    file.write_at(0, &pattern(1, 0, 8192)).await.expect("writes");
    cached.sync_all().await.expect("syncs");
    let free = fs.statfs().free_blocks;
    // Appending.
    faulty.fail_nth(Operation::Write, 0);
    let (result, buffer) = file.write_direct(8192, aligned(2, 8192, 16_384)).await;
    assert_eq!(result.expect_err("the device fails").errno(), Errno::EIO);
    assert_eq!(buffer.len(), 16_384, "the memory comes back");
    assert_eq!(file.len(), 8192);
    fs.sync().await.expect("syncs");
    assert_eq!(fs.statfs().free_blocks, free, "what was allocated is free again");
    // Into a hole.
    cached.set_len(65_536).await.expect("extends");
    faulty.fail_nth(Operation::Write, 0);
    assert!(file.write_at(32_768, &pattern(2, 0, 4096)).await.is_err());
    let mut expected = pattern(1, 0, 8192);
    expected.resize(65_536, 0);
    assert!(content(&cached).await == expected);
    // Over data: old or new, sector by sector.
    faulty.fail_nth(Operation::Write, 0);
    assert!(file.write_at(4096, &pattern(2, 0, 4096)).await.is_err());
    assert!(content(&cached).await == expected);
    cached.sync_all().await.expect("a direct write's error was its caller's");
    faulty.fail_nth(Operation::Read, 0);
    assert_eq!(file.read_at(0, &mut [0; 512]).await.expect_err("the device fails").errno(), Errno::EIO);
    drop((file, cached));
    fs.unmount().await.expect("unmounts");
    assert_clean(&*memory, "after the unmount");
}

/// Random writes and reads of both kinds, truncations and syncs, against an array of bytes.
async fn mix(seed: u64, block_size: u32, steps: usize, options: MountOptions) {
    println!("seed {seed}, blocks of {block_size}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (device, fs) = mount_image(make_image(32, block_size, &[], 0xaa), options).await;
    let cached = create(&fs, "file").await;
    let direct = open_direct(&fs, "file").await;
    let mut model: Vec<u8> = Vec::new();
    let max = 1 << 20;
    for step in 0..steps {
        let any = random.usize(0..max);
        let unit = [512, 1024, 4096][random.usize(0..3)];
        let near = [any, model.len(), model.len() + random.usize(0..9000), any % 30_000][random.usize(0..4)];
        let offset = near.min(max);
        let len = [random.usize(1..5000), random.usize(1..100_000)][random.usize(0..2)];
        let (direct_offset, direct_len) = (offset / unit * unit, len.div_ceil(unit) * unit);
        match random.u8(0..100) {
            0..25 => {
                let data = pattern(step as u64, direct_offset as u64, direct_len);
                let count = direct.write_at(direct_offset as u64, &data).await.expect("writes");
                assert_eq!(count, direct_len);
                model.resize(model.len().max(direct_offset + direct_len), 0);
                model[direct_offset..direct_offset + direct_len].copy_from_slice(&data);
            }
            25..50 => {
                let data = pattern(step as u64, offset as u64, len);
                cached.write_at(offset as u64, &data).await.expect("writes");
                model.resize(model.len().max(offset + len), 0);
                model[offset..offset + len].copy_from_slice(&data);
            }
            50..70 => {
                let mut bytes = vec![0xee; direct_len];
                let count = direct.read_at(direct_offset as u64, &mut bytes).await.expect("reads");
                let start = direct_offset.min(model.len());
                let end = (start + direct_len).min(model.len());
                assert_eq!(count, end - start);
                assert!(
                    bytes[..count] == model[start..end],
                    "direct read at {direct_offset}+{count}, step {step}"
                );
            }
            70..85 => {
                let mut bytes = vec![0xee; len];
                let count = cached.read_at(offset as u64, &mut bytes).await.expect("reads");
                let start = offset.min(model.len());
                assert!(
                    bytes[..count] == model[start..start + count],
                    "read at {offset}+{count}, step {step}"
                );
            }
            85..92 => {
                cached.set_len(offset as u64).await.expect("truncates");
                model.resize(offset, 0);
            }
            92..96 => cached.sync_data().await.expect("syncs"),
            _ => cached.start_writeback().await.expect("starts"),
        }
        assert_eq!(cached.len(), model.len() as u64, "step {step}");
    }
    assert!(content(&cached).await == model);
    assert!(fs.counters().direct_fallbacks > 0 || block_size == 1024, "{:?}", fs.counters());
    drop((cached, direct));
    let image = finish(&device, fs).await;
    let (device, fs) = mount_image(image, super::common::options()).await;
    let file = open(&fs, "file").await;
    assert!(content(&file).await == model, "after a remount");
    drop(file);
    finish(&device, fs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn direct_and_cached_io_agree_with_an_array_of_bytes() {
    if !have_e2fsprogs() {
        return;
    }
    for block_size in [1024, 2048, 4096] {
        mix(seed_or(4711), block_size, 1200, options()).await;
        mix(seed_or(4711), block_size, 600, options().delayed_allocation(false)).await;
    }
}

#[tokio::test]
async fn what_a_cached_reader_found_during_a_direct_write_does_not_stay() {
    if !have_e2fsprogs() {
        return;
    }
    let mut old = 0;
    for seed in 0..12 {
        for allocated in [true, false] {
            let memory = Arc::new(MemoryDevice::from_image(make_image(16, 4096, &[], 0)));
            let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as _));
            let fs = mount(Arc::clone(&faulty) as _, options()).await;
            let cached = Arc::new(create(&fs, "file").await);
            cached.set_len(8192).await.expect("extends");
            let direct = open_direct(&fs, "file").await;
            if allocated {
                direct.write_at(0, &pattern(1, 0, 8192)).await.expect("writes");
            }
            fs.sync().await.expect("syncs");
            faulty.reorder(seed);
            let write = direct.write_direct(0, aligned(2, 0, 4096));
            tokio::pin!(write);
            while faulty.held() == 0 {
                tokio::select! {
                    biased;
                    _ = &mut write => panic!("the device holds it back"),
                    () = tokio::task::yield_now() => {}
                }
            }
            let reader = tokio::spawn({
                let cached = Arc::clone(&cached);
                async move {
                    let mut bytes = vec![0; 8192];
                    cached.read_at(0, &mut bytes).await.expect("reads");
                    bytes
                }
            });
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            tokio::select! {
                () = faulty.drive() => {}
                (result, _) = &mut write => drop(result.expect("writes")),
            }
            let during = tokio::select! {
                () = faulty.drive() => unreachable!("it never ends"),
                bytes = reader => bytes.expect("no panic"),
            };
            old += usize::from(during[..4096] != pattern(2, 0, 4096)[..]);
            tokio::select! {
                () = faulty.drive() => {}
                bytes = content(&cached) => assert!(bytes[..4096] == pattern(2, 0, 4096)[..], "seed {seed}"),
            }
        }
    }
    assert!(old > 3, "the test needs readers that come first: {old}");
}

/// The value of all bytes of a block: odd, as all patterns are, and the same for every writer.
fn value(block: u64) -> u8 {
    (block as u8).wrapping_mul(2) | 1
}

/// Many tasks at one file: direct and cached writes, stores, reads, truncations, syncs, and a device that
/// fails now and then. Each block is written whole, in one value that tells its place: none may show two, or
/// another's.
async fn crowd(seed: u64, block_size: u64) {
    const BLOCK: u64 = 4096;
    const BLOCKS: u64 = 128;
    println!("seed {seed}, blocks of {block_size}");
    let image = make_image(32, block_size as u32, &[], 0xaa);
    let memory = Arc::new(MemoryDevice::from_image(image));
    let runtime: Arc<dyn ext4_core::environment::Runtime> =
        Arc::new(TokioRuntime::current().expect("inside tokio"));
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as _));
    let slow = DelayedDevice::new(Arc::clone(&faulty) as _, runtime, Duration::from_micros(300), seed);
    let fs = mount(Arc::new(slow), options()).await;
    let cached = Arc::new(create(&fs, "file").await);
    let direct = Arc::new(open_direct(&fs, "file").await);
    let check = move |block: u64, bytes: &[u8]| {
        for bytes in bytes.chunks(block_size as usize) {
            let one = bytes.iter().all(|byte| *byte == bytes[0]);
            assert!(one && (bytes[0] == 0 || bytes[0] == value(block)), "{:#x} in block {block}", bytes[0]);
        }
    };
    let tasks: Vec<_> = (0..12_u64)
        .map(|task| {
            let (fs, cached, direct) = (fs.clone(), Arc::clone(&cached), Arc::clone(&direct));
            let faulty = Arc::clone(&faulty);
            tokio::spawn(async move {
                let mut random = fastrand::Rng::with_seed(seed * 100 + task);
                for step in 0..150 {
                    let block = random.u64(0..BLOCKS);
                    let (at, data) = (block * BLOCK, vec![value(block); BLOCK as usize]);
                    match (task % 6, random.u8(0..20)) {
                        // Late: one that meets the journal ends all writing.
                        (0 | 1, 0) if step > 120 => faulty.fail_nth(Operation::Write, random.u64(0..3)),
                        (0 | 1, _) => {
                            let count = random.u64(1..8).min(BLOCKS - block);
                            let data: Vec<u8> = (block..block + count)
                                .flat_map(|block| vec![value(block); BLOCK as usize])
                                .collect();
                            // A fault may have met it, or what was to be written back before it.
                            let _ = direct.write_at(at, &data).await;
                        }
                        (2, _) => drop(cached.write_at(at, &data).await),
                        (3, 0..15) => {
                            let mut bytes = vec![0xee; BLOCK as usize];
                            let file = if random.bool() { &cached } else { &direct };
                            if file.read_at(at, &mut bytes).await.is_ok_and(|count| count as u64 == BLOCK) {
                                check(block, &bytes);
                            }
                        }
                        (3, _) => {
                            if let Ok(view) = cached.map_read(at, BLOCK as usize).await
                                && view.len() as u64 == BLOCK
                            {
                                check(block, &view);
                                tokio::task::yield_now().await;
                                check(block, &view);
                            }
                        }
                        (4, 0..12) => {
                            if let Ok(mut map) = cached.map_write(at, BLOCK as usize).await {
                                map.fill(value(block));
                                let _ = map.commit().await;
                            }
                        }
                        (4, _) => drop(cached.sync_data().await),
                        (_, 0..6) => drop(cached.set_len(at).await),
                        (_, 6..10) => drop(fs.sync().await),
                        _ => drop(cached.sync_file_range(at, 10 * BLOCK, SyncRange::all()).await),
                    }
                    if fs.create(InodeNumber::ROOT, b"file", Default::default()).await.is_ok() {
                        panic!("it is there");
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    faulty.heal();
    drop((cached, direct));
    if fs.sync().await.is_ok() {
        fs.unmount().await.expect("unmounts");
    } else {
        // A fault met the journal.
        drop(fs);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (device, fs) = mount_image(memory.image(), options()).await;
    let bytes = content(&open(&fs, "file").await).await;
    for (block, bytes) in bytes.chunks(BLOCK as usize).enumerate() {
        check(block as u64, bytes);
    }
    finish(&device, fs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crowd_at_one_file_ends_clean() {
    if !have_e2fsprogs() {
        return;
    }
    for (i, block_size) in [1024, 4096, 4096].into_iter().enumerate() {
        let run = crowd(seed_or(4711) + i as u64, block_size);
        tokio::time::timeout(Duration::from_secs(120), run).await.expect("a deadlock");
    }
}

#[tokio::test]
async fn k_54_a_mapping_of_no_blocks_is_an_error_and_no_loop() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(16, 4096, &[], 0), options()).await;
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(1, 0, 16_384)).await.expect("writes");
    drop(file);
    let image = finish(&device, fs).await;
    // ee_len of the only extent, which lies in the inode.
    let image = changed_by_debugfs(&image, "set_inode_field file block[4] 0");
    let (_, fs) = mount_image(image, options()).await;
    let (cached, direct) = (open(&fs, "file").await, open_direct(&fs, "file").await);
    let everything = async {
        assert_eq!(direct.read_at(0, &mut [0; 4096]).await.expect_err("read").errno(), Errno::EUCLEAN);
        assert_eq!(cached.read_at(0, &mut [0; 4096]).await.expect_err("read").errno(), Errno::EUCLEAN);
        assert!(direct.write_at(0, &[1; 4096]).await.is_err());
        let _ = cached.write_at(0, &[1; 4096]).await;
        let _ = cached.sync_all().await;
        let _ = cached.map_write(0, 100).await;
    };
    tokio::time::timeout(Duration::from_secs(20), everything).await.expect("it loops");
}

/// Holes, unwritten blocks and what is in memory are given without waiting; what only the device has is not.
#[tokio::test]
async fn direct_nowait_reads_give_what_needs_no_io() {
    if !have_e2fsprogs() {
        return;
    }
    let image = make_image(16, 4096, &["-O", "inline_data"], 0xaa);
    let (device, fs) = mount_image(image, options()).await;
    let file = create(&fs, "file").await;
    let direct = open_direct(&fs, "file").await;
    let now = |offset: u64, len: usize| {
        let direct = &direct;
        async move {
            let mut bytes = vec![0xee; len];
            let count = direct.read_at_with(offset, &mut bytes, ReadFlags::NOWAIT).await?;
            bytes.truncate(count);
            Ok::<_, ext4_core::Error>(bytes)
        }
    };
    let would_wait = async |offset| now(offset, 4096).await.expect_err("would wait").errno();
    // In the inode.
    file.write_at(0, &pattern(1, 0, 50)).await.expect("writes");
    assert_eq!(now(0, 512).await.expect("is there"), pattern(1, 0, 50));
    // Written, a hole, unwritten, dirty; the end in the middle of a block.
    file.write_at(0, &pattern(1, 0, 8192)).await.expect("writes");
    file.set_len(100_000).await.expect("extends");
    file.fallocate(FallocateMode::AllocateKeepSize, 40_960, 8192).await.expect("allocates");
    file.sync_all().await.expect("syncs");
    direct.write_at(0, &pattern(2, 0, 8192)).await.expect("drops the folios");
    // All of it is known after the first lookup.
    file.extents().await.expect("maps");
    file.read_at(12_288, &mut [0; 1]).await.expect("reads");
    file.seek(0, SeekTarget::Hole).await.expect("seeks");
    file.seek(36_864, SeekTarget::Data).await.expect("seeks");
    file.seek(49_152, SeekTarget::Data).await.expect("seeks");
    file.write_at(61_440, &pattern(3, 61_440, 4096)).await.expect("dirties");
    assert_eq!(would_wait(0).await, Errno::EAGAIN);
    assert_eq!(would_wait(4096).await, Errno::EAGAIN);
    assert_eq!(now(8192, 4096).await.expect("a hole"), [0; 4096]);
    // Above unwritten blocks, which stay what they are until it is written.
    file.write_at(45_056, &pattern(4, 45_056, 4096)).await.expect("dirties");
    let mut expected = vec![0; 100_000];
    expected[45_056..49_152].copy_from_slice(&pattern(4, 45_056, 4096));
    expected[..8192].copy_from_slice(&pattern(2, 0, 8192));
    expected[61_440..65_536].copy_from_slice(&pattern(3, 61_440, 4096));
    assert!(now(8192, 102_400 - 8192).await.expect("all the rest") == expected[8192..]);
    assert!(now(61_440, 4096).await.expect("dirty") == expected[61_440..65_536]);
    assert!(now(99_840, 512).await.expect("the end") == [0; 160]);
    assert_eq!(now(102_400, 512).await.expect("behind the end"), b"");
    assert_eq!(now(100, 512).await.expect_err("not aligned").errno(), Errno::EINVAL);
    // In memory, clean.
    file.read_at(0, &mut [0; 100]).await.expect("reads");
    assert!(now(0, 4096).await.expect("cached") == expected[..4096]);
    drop((file, direct));
    finish(&device, fs).await;
}
