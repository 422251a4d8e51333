//! Concurrent readers, writers and syncs on one mounted file system, on devices that fail and on full ones.

use std::sync::Arc;

use super::common::*;
use super::mix::{Mix, Scale, Watch};
use super::way::Way;
use ext4_core::Errno;
use ext4_core::device::simulated::FaultyDevice;
use ext4_core::device::{BlockDevice, MemoryDevice, Operation};
use ext4_core::meta::extent_tree::MappingState;
use ext4_test_support::settings::seeds;
use ext4_writeback::{Filesystem, MountOptions};

/// The trouble that a stress meets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Nothing.
    None,
    /// A device with less room than is asked for.
    Full,
    /// Writes to a region of the device fail.
    BadSectors,
    /// Both.
    FullAndBad,
}

impl Trouble {
    fn is_full(self) -> bool {
        matches!(self, Self::Full | Self::FullAndBad)
    }

    fn is_bad(self) -> bool {
        matches!(self, Self::BadSectors | Self::FullAndBad)
    }

    /// Errors that it explains. A block of metadata among bad sectors stops the journal.
    pub fn explains(self, error: &ext4_writeback::Error) -> bool {
        self.is_full() && error.errno() == Errno::ENOSPC
            || self.is_bad() && [Errno::EIO, Errno::EROFS].contains(&error.errno())
    }
}

/// 64 tasks on 16 files, each with a [`Mix`] that follows from `seed`; the interleaving is the machine's.
pub async fn stress(way: Way, options: MountOptions, trouble: Trouble, seed: u64) {
    let mib = if trouble.is_full() { 16 } else { 64 };
    let image = way.image(mib, 1024, &["-m", "0"], 0xaa);
    let memory = Arc::new(MemoryDevice::from_image(image));
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as Arc<dyn BlockDevice>));
    faulty.reorder(seed);
    let driver = tokio::spawn({
        let faulty = Arc::clone(&faulty);
        async move { faulty.drive().await }
    });
    let fs = mount(Arc::clone(&faulty) as _, way.mounted(options)).await;
    let names: Arc<Vec<String>> = Arc::new((0..16).map(|i| format!("file{i}")).collect());
    for name in names.iter() {
        drop(create(&fs, name).await);
    }
    if trouble.is_bad() {
        // Where the files' data will be, and nothing of the journal: a region in the middle of the device.
        faulty.fail_range(Operation::Write, (mib << 20) / 2..(mib << 20) / 2 + (256 << 10));
    }
    let (watch, stuck) = Watch::begin();
    let hammer = |task: usize| {
        let mut mix = Mix {
            fs: fs.clone(),
            names: Arc::clone(&names),
            scale: Scale { span: 3 << 19, most: 60_000, block_size: 1024 },
            seed: seed ^ (task as u64) << 32,
            random: fastrand::Rng::with_seed(seed ^ (task as u64) << 32),
            runtime: None,
        };
        let watch = Arc::clone(&watch);
        async move {
            for _ in 0..60 {
                if let Err(error) = mix.step(|what| watch.note(task, what)).await {
                    assert!(trouble.explains(&error), "task {task}: {error}");
                }
            }
            watch.note_end(task);
        }
    };
    let tasks: Vec<_> = (0..64).map(|task| tokio::spawn(hammer(task))).collect();
    let all = async {
        for task in tasks {
            task.await.expect("no panic");
        }
        faulty.heal();
        // Operations whose caller stopped waiting still hold files.
        watch.note(64, "sync".into());
        let _ = fs.sync().await;
        watch.note(64, "unmount".into());
        fs.unmount().await
    };
    let unmounted = tokio::select! {
        said = stuck => panic!("{said:?}"),
        unmounted = all => unmounted,
    };
    if let Err(error) = unmounted {
        assert!(trouble.is_bad(), "unmounts: {error}");
        // The journal stopped: the device is well again, and what had been committed is recovered.
        let (device, fs) = mount_image(memory.image(), self::options()).await;
        finish(&device, fs).await;
    } else {
        assert_clean(&*memory, "after the unmount");
    }
    driver.abort();
}

fn little_memory() -> MountOptions {
    options().cache(16 << 20)
}

/// One round for each seed: `short` of them, `long` in the long form.
pub async fn rounds(way: Way, trouble: Trouble, short: u64, long: u64) {
    if !have_e2fsprogs() {
        return;
    }
    for seed in seeds(1..=short, 1..=long) {
        println!("{way:?}, {trouble:?}: SEED={seed}");
        stress(way, little_memory(), trouble, seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_tasks_on_sixteen_files() {
    rounds(Way::Unwritten, Trouble::None, 2, 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_tasks_on_a_full_device() {
    rounds(Way::Unwritten, Trouble::Full, 2, 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_tasks_and_bad_sectors() {
    // Many rounds: what was parked was forgotten once in 160 of them when two workers looked at an inode's
    // ioends at a time.
    rounds(Way::Unwritten, Trouble::BadSectors, 6, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_tasks_and_bad_sectors_on_a_full_device() {
    rounds(Way::Unwritten, Trouble::FullAndBad, 2, 60).await;
}

/// A file of 64 KiB on a device that can be told to fail, and the byte of the device where its data lies.
async fn one_file(options: MountOptions) -> (Arc<MemoryDevice>, Arc<FaultyDevice>, Filesystem, u64) {
    let memory = Arc::new(MemoryDevice::from_image(make_image(32, 4096, &[], 0xaa)));
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as Arc<dyn BlockDevice>));
    let fs = mount(Arc::clone(&faulty) as _, options).await;
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(1, 0, 65_536)).await.expect("writes");
    file.sync_all().await.expect("syncs");
    let extents = file.extents().await.expect("maps");
    let MappingState::Written(block) = extents[0].state else { panic!("{extents:?}") };
    drop(file);
    (memory, faulty, fs, block.0 * 4096)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g_13_a_failed_overwrite_is_reported_once_to_each() {
    if !have_e2fsprogs() {
        return;
    }
    let (memory, faulty, fs, data) = one_file(options()).await;
    let (first, second) = (open(&fs, "file").await, open(&fs, "file").await);
    faulty.fail_range(Operation::Write, data..data + 4096);
    first.write_at(0, &pattern(2, 0, 8192)).await.expect("the cache takes it");
    assert_eq!(first.sync_data().await.expect_err("not written").errno(), Errno::EIO);
    faulty.heal();
    first.sync_data().await.expect("once");
    assert_eq!(second.sync_all().await.expect_err("not told yet").errno(), Errno::EIO);
    second.sync_all().await.expect("once");
    open(&fs, "file").await.sync_all().await.expect("later openers are not told");
    drop((first, second));
    finish(&memory, fs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g_13_a_failed_append_leaves_the_old_size() {
    if !have_e2fsprogs() {
        return;
    }
    let (memory, faulty, fs, data) = one_file(options()).await;
    let file = open(&fs, "file").await;
    faulty.fail_range(Operation::Write, data + 65_536..data + (1 << 20));
    file.write_at(65_536, &pattern(1, 65_536, 65_536)).await.expect("the cache takes it");
    assert_eq!(file.sync_all().await.expect_err("not written").errno(), Errno::EIO);
    drop(file);
    faulty.heal();
    let image = finish(&memory, fs).await;
    let (device, fs) = mount_image(image, options()).await;
    let file = open(&fs, "file").await;
    let bytes = content(&file).await;
    assert_eq!(bytes[..65_536], pattern(1, 0, 65_536));
    assert!(bytes[65_536..].iter().all(|byte| *byte == 0), "zeros at most");
    drop(file);
    finish(&device, fs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g_14_k_26_data_err_abort_stops_the_journal_on_a_failed_overwrite() {
    if !have_e2fsprogs() {
        return;
    }
    let (memory, faulty, fs, data) = one_file(options().data_error_aborts(true)).await;
    let file = open(&fs, "file").await;
    faulty.fail_range(Operation::Write, data..data + 4096);
    file.write_at(0, &pattern(2, 0, 100)).await.expect("the cache takes it");
    file.sync_all().await.expect_err("not written");
    file.write_at(0, b"more").await.expect_err("nothing is written any more");
    let mut bytes = [0; 100];
    assert_eq!(file.read_at(0, &mut bytes).await.expect("reads go on"), 100);
    drop(file);
    assert!(fs.unmount().await.is_err());
    drop(memory);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k_29_a_failed_tail_keeps_the_size_on_the_device() {
    if !have_e2fsprogs() {
        return;
    }
    let (memory, faulty, fs, data) = one_file(options()).await;
    let file = open(&fs, "file").await;
    file.set_len(62_000).await.expect("cuts");
    file.sync_all().await.expect("syncs");
    // The block that holds byte 62,000 cannot be written; what is appended past it can.
    faulty.fail_range(Operation::Write, data + 61_440..data + 65_536);
    file.write_at(100_000, &pattern(1, 100_000, 5000)).await.expect("the cache takes it");
    file.sync_all().await.expect_err("the tail was not zeroed");
    drop(file);
    let image = memory.image();
    let (device, crashed) = mount_image(image, options()).await;
    assert_eq!(open(&crashed, "file").await.len(), 62_000);
    finish(&device, crashed).await;
    faulty.heal();
    let file = open(&fs, "file").await;
    file.write_at(62_000, &pattern(1, 62_000, 10_000)).await.expect("writes");
    file.sync_all().await.expect("the tail is there");
    drop(file);
    finish(&memory, fs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_error_is_reported_and_goes_away() {
    if !have_e2fsprogs() {
        return;
    }
    let (memory, faulty, fs, data) = one_file(options()).await;
    fs.unmount().await.expect("unmounts");
    let fs = mount(Arc::clone(&faulty) as _, options()).await;
    let file = open(&fs, "file").await;
    faulty.fail_range(Operation::Read, data..data + 4096);
    let mut bytes = vec![0; 65_536];
    assert_eq!(file.read_at(0, &mut bytes).await.expect_err("bad sector").errno(), Errno::EIO);
    file.write_at(10, b"x").await.expect_err("part of a block that cannot be read");
    faulty.heal();
    assert_eq!(file.read_at(0, &mut bytes).await.expect("reads"), 65_536);
    assert_eq!(bytes, pattern(1, 0, 65_536));
    drop(file);
    finish(&memory, fs).await;
}
