//! What is durable when an operation returns, and what only reaches the device: synchronous files and
//! directories, sync_file_range, lazytime.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use super::common::*;
use super::crash::{quiet, recovered};
use ext4_core::device::MemoryDevice;
use ext4_core::device::simulated::Image;
use ext4_core::environment::{BoxFuture, Environment, Runtime};
use ext4_core::{InodeNumber, Timestamp};
use ext4_test_support::tools::changed_by_debugfs;
use ext4_writeback::RenameFlags;
use ext4_writeback::{Credentials, Filesystem, OpenOptions, SetAttributes, SyncMode, SyncRange, WriteFlags};

fn image() -> Image {
    make_image(16, 4096, &["-J", "size=4"], 0xaa)
}

#[tokio::test]
async fn g_11_a_synchronous_write_is_durable_when_it_returns() {
    if !have_e2fsprogs() {
        return;
    }
    for (sync, flags) in [
        (SyncMode::Data, WriteFlags::empty()),
        (SyncMode::All, WriteFlags::empty()),
        (SyncMode::None, WriteFlags::DSYNC),
        (SyncMode::None, WriteFlags::SYNC),
    ] {
        let (device, fs) = mount_image(image(), quiet()).await;
        drop(create(&fs, "file").await);
        let number = fs.lookup(InodeNumber::ROOT, b"file").await.expect("is there");
        let file = fs.open_with(number, OpenOptions::new().sync(sync)).await.expect("opens");
        file.write_at_with(0, &pattern(1, 0, 10_000), flags).await.expect("writes");
        let expected = pattern(1, 0, 10_000);
        recovered(device.image(), "file", |bytes| assert_eq!(bytes.as_ref(), Some(&expected))).await;
        let slices = [IoSlice::new(&expected[..100]), IoSlice::new(&[]), IoSlice::new(&expected[100..5000])];
        assert_eq!(file.write_vectored_at_with(5000, &slices, flags).await.expect("writes"), 5000);
        let mut expected = expected.clone();
        expected.copy_within(0..5000, 5000);
        recovered(device.image(), "file", |bytes| assert_eq!(bytes.as_ref(), Some(&expected))).await;
        file.set_len(3000).await.expect("cuts");
        let len = if sync == SyncMode::None { 10_000 } else { 3000 };
        recovered(device.image(), "file", |bytes| assert_eq!(bytes.expect("is there").len(), len)).await;
        drop(file);
        finish(&device, fs).await;
    }
}

#[tokio::test]
async fn an_append_goes_to_the_end_whatever_its_offset_says() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(image(), options()).await;
    let file = Arc::new(create(&fs, "file").await);
    let number = fs.lookup(InodeNumber::ROOT, b"file").await.expect("is there");
    let options = OpenOptions::new().append(true);
    let log = Arc::new(fs.open_with(number, options).await.expect("opens"));
    let tasks: Vec<_> = (0..8_u8)
        .map(|i| {
            let (file, log) = (Arc::clone(&file), Arc::clone(&log));
            tokio::spawn(async move {
                for _ in 0..20 {
                    let (at, count) = file.append(&[i; 100]).await.expect("appends");
                    assert_eq!((at % 100, count), (0, 100));
                    assert_eq!(log.write_at(7, &[i; 100]).await.expect("appends"), 100);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    let bytes = content(&file).await;
    assert_eq!(bytes.len(), 8 * 20 * 2 * 100);
    assert!(bytes.chunks(100).all(|record| record.iter().all(|byte| *byte == record[0])));
    drop((file, log));
    finish(&device, fs).await;
}

/// Sets the flags of what lies at `path` in the image.
fn set_flags(image: &Image, path: &str, flags: u32) -> Image {
    changed_by_debugfs(image, &format!("set_inode_field {path} flags {flags:#x}"))
}

#[tokio::test]
async fn a_file_and_a_directory_with_the_flags_are_synchronous() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(image(), options()).await;
    drop(create(&fs, "file").await);
    let owner = Credentials { mode: 0o755, ..Credentials::default() };
    for name in ["dirsync", "sync"] {
        fs.mkdir(InodeNumber::ROOT, name.as_bytes(), owner).await.expect("makes");
    }
    let mut image = finish(&device, fs).await;
    for (path, flags) in [("/file", 0x8_0008), ("/dirsync", 0x9_0000), ("/sync", 0x8_0008)] {
        image = set_flags(&image, path, flags);
    }
    let (device, fs) = mount_image(image, quiet()).await;
    let file = open(&fs, "file").await;
    assert_eq!(file.options().sync, SyncMode::All);
    file.write_at(0, b"kept").await.expect("writes");
    recovered(device.image(), "file", |bytes| assert_eq!(bytes.as_deref(), Some(&b"kept"[..]))).await;
    let number = fs.lookup(InodeNumber::ROOT, b"file").await.expect("is there");
    let changes = SetAttributes::new().mode(0o600);
    fs.set_attributes(number, &changes).await.expect("changes");
    {
        let (_, crashed) = mount_image(device.image(), options()).await;
        assert_eq!(crashed.attributes(number).await.expect("stat").mode & 0o777, 0o600);
    }
    for name in ["dirsync", "sync"] {
        let directory = fs.lookup(InodeNumber::ROOT, name.as_bytes()).await.expect("is there");
        let there = async |name: &[u8]| {
            let (_, crashed) = mount_image(device.image(), options()).await;
            let found = crashed.lookup(directory, name).await.is_ok();
            drop(crashed);
            found
        };
        fs.create(directory, b"a", owner).await.expect("creates");
        assert!(there(b"a").await, "{name}");
        fs.link(number, directory, b"b").await.expect("links");
        assert!(there(b"b").await, "{name}");
        fs.mkdir(directory, b"c", owner).await.expect("makes");
        assert!(there(b"c").await, "{name}");
        fs.rename((directory, b"a"), (directory, b"d"), RenameFlags::default()).await.expect("renames");
        assert!(there(b"d").await && !there(b"a").await, "{name}");
        fs.unlink(directory, b"d").await.expect("unlinks");
        assert!(!there(b"d").await, "{name}");
        fs.rmdir(directory, b"c").await.expect("removes");
        assert!(!there(b"c").await, "{name}");
    }
    // And one without is not.
    drop(create(&fs, "other").await);
    recovered(device.image(), "other", |bytes| assert!(bytes.is_none())).await;
    drop(file);
    finish(&device, fs).await;
}

#[tokio::test]
async fn a_synced_range_is_on_the_device_without_a_flush_or_a_commit() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(image(), quiet()).await;
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(1, 0, 1 << 20)).await.expect("writes");
    file.sync_all().await.expect("syncs");
    let start = match file.extents().await.expect("maps")[0].state {
        ext4_core::meta::extent_tree::MappingState::Written(block) => block.0 * 4096,
        state => panic!("{state:?}"),
    };
    let statistics = fs.journal_statistics().expect("a journal");
    let on_device = |at: usize| {
        let mut bytes = vec![0; 4096];
        device.image().read(start + at as u64, &mut bytes);
        bytes
    };
    file.write_at(8192, &pattern(2, 8192, 4096)).await.expect("writes");
    assert_eq!(on_device(8192), pattern(1, 8192, 4096));
    file.sync_file_range(8192, 4096, SyncRange::WAIT_BEFORE).await.expect("waits for nothing");
    assert_eq!(on_device(8192), pattern(1, 8192, 4096), "nothing is started by waiting");
    file.sync_file_range(8192, 4096, SyncRange::all()).await.expect("writes");
    assert_eq!(on_device(8192), pattern(2, 8192, 4096));
    file.write_at(500_000, &pattern(3, 500_000, 4096)).await.expect("writes");
    file.sync_file_range(400_000, 0, SyncRange::WRITE | SyncRange::WAIT_AFTER).await.expect("writes");
    assert_eq!(on_device(500_000), pattern(3, 500_000, 4096));
    let now = fs.journal_statistics().expect("a journal");
    assert_eq!((now.transactions, now.flushes), (statistics.transactions, statistics.flushes));
    drop(file);
    finish(&device, fs).await;
}

#[tokio::test]
async fn a_failed_range_is_reported_once_to_the_caller_that_waits() {
    if !have_e2fsprogs() {
        return;
    }
    let memory = Arc::new(MemoryDevice::from_image(image()));
    let faulty = Arc::new(ext4_core::device::FaultyDevice::new(Arc::clone(&memory) as _));
    let fs = mount(Arc::clone(&faulty) as _, quiet()).await;
    let file = create(&fs, "file").await;
    file.write_at(0, &pattern(1, 0, 4096)).await.expect("writes");
    file.sync_all().await.expect("syncs");
    file.write_at(0, &pattern(2, 0, 4096)).await.expect("writes");
    faulty.fail_nth(ext4_core::device::Operation::Write, 0);
    file.sync_file_range(0, 0, SyncRange::WRITE).await.expect("is only started");
    let error = file.sync_file_range(0, 0, SyncRange::WAIT_AFTER).await.expect_err("the device failed");
    assert_eq!(error.errno(), ext4_core::Errno::EIO);
    file.sync_file_range(0, 0, SyncRange::all()).await.expect("was reported");
    file.sync_all().await.expect("was reported");
    drop(file);
    finish(&memory, fs).await;
}

/// A runtime whose time passes when every task sleeps.
struct Clock {
    started: tokio::time::Instant,
    handle: tokio::runtime::Handle,
}

impl Clock {
    fn new() -> Arc<Self> {
        Arc::new(Self { started: tokio::time::Instant::now(), handle: tokio::runtime::Handle::current() })
    }
}

impl Runtime for Clock {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        drop(self.handle.spawn(task));
    }
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Environment for Clock {
    fn now(&self) -> Timestamp {
        Timestamp { seconds: 1_700_000_000 + self.started.elapsed().as_secs() as i64, nanoseconds: 0 }
    }
    fn random(&self, bytes: &mut [u8]) {
        bytes.fill(7);
    }
}

/// mtime of the file and its first bytes, as a crash now would leave them.
async fn after_a_crash(device: &MemoryDevice) -> (i64, Vec<u8>) {
    let (_, fs) = mount_image(device.image(), options()).await;
    let file = open(&fs, "file").await;
    let seconds = file.metadata().await.expect("stat").mtime.seconds;
    let mut bytes = vec![0; 4];
    file.read_at(0, &mut bytes).await.expect("reads");
    (seconds, bytes)
}

async fn mount_lazy(lazytime: bool) -> (Arc<MemoryDevice>, Filesystem, i64) {
    let clock = Clock::new();
    let hour = Some(Duration::from_secs(600));
    let options = options()
        .lazytime(lazytime)
        .commit_interval(hour)
        .environment(Arc::clone(&clock) as _)
        .runtime(Some(clock));
    let (device, fs) = mount_image(image(), options).await;
    let file = create(&fs, "file").await;
    file.write_at(0, b"old!").await.expect("writes");
    file.sync_all().await.expect("syncs");
    let written = file.metadata().await.expect("stat").mtime.seconds;
    assert_eq!(after_a_crash(&device).await, (written, b"old!".to_vec()));
    tokio::time::sleep(Duration::from_secs(100)).await;
    file.write_at(0, b"new!").await.expect("writes");
    (device, fs, written)
}

#[tokio::test(start_paused = true)]
async fn lazytime_keeps_times_in_memory_for_a_day() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs, written) = mount_lazy(true).await;
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    assert_eq!(after_a_crash(&device).await, (written, b"new!".to_vec()), "the data, not the time");
    tokio::time::sleep(Duration::from_secs(22 * 3600)).await;
    assert_eq!(after_a_crash(&device).await.0, written + 100, "a day is over");
    finish(&device, fs).await;
    // Without the option.
    let (device, fs, written) = mount_lazy(false).await;
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    assert_eq!(after_a_crash(&device).await, (written + 100, b"new!".to_vec()));
    finish(&device, fs).await;
}

#[tokio::test(start_paused = true)]
async fn lazytime_writes_times_with_the_inode_and_when_asked() {
    if !have_e2fsprogs() {
        return;
    }
    for way in 0..5 {
        let (device, fs, written) = mount_lazy(true).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let file = open(&fs, "file").await;
        match way {
            0 => fs.sync().await.expect("syncs"),
            1 => file.sync_all().await.expect("syncs"),
            2 => {
                // Another change of the inode takes them along.
                let changes = SetAttributes::new().mode(0o600);
                let number = fs.lookup(InodeNumber::ROOT, b"file").await.expect("is there");
                fs.set_attributes(number, &changes).await.expect("changes");
                fs.fsync(InodeNumber::ROOT).await.expect("commits");
                tokio::time::sleep(Duration::from_secs(700)).await;
            }
            3 => file.sync_data().await.expect("syncs"),
            _ => {}
        }
        drop(file);
        let expected = if way == 3 { written } else { written + 100 };
        if way == 4 {
            let image = finish(&device, fs).await;
            assert_eq!(after_a_crash(&MemoryDevice::from_image(image)).await.0, expected);
            continue;
        }
        assert_eq!(after_a_crash(&device).await.0, expected, "way {way}");
        finish(&device, fs).await;
    }
}

#[tokio::test]
async fn times_that_wait_do_not_outlive_their_inode() {
    if !have_e2fsprogs() {
        return;
    }
    let options = quiet().lazytime(true).access_times(true);
    let (device, fs) = mount_image(image(), options).await;
    let owner = Credentials { mode: 0o755, ..Credentials::default() };
    let directory = fs.mkdir(InodeNumber::ROOT, b"directory", owner).await.expect("makes");
    fs.sync().await.expect("syncs");
    // atime is at most mtime: an access is noted, in memory.
    fs.readdir(directory, 0, 10).await.expect("reads");
    fs.rmdir(InodeNumber::ROOT, b"directory").await.expect("removes");
    let file = create(&fs, "file").await;
    let number = fs.lookup(InodeNumber::ROOT, b"file").await.expect("is there");
    assert_eq!(number, directory, "the number is used again");
    file.write_at(0, b"something").await.expect("writes");
    file.sync_all().await.expect("syncs");
    fs.sync().await.expect("syncs");
    drop(file);
    let image = finish(&device, fs).await;
    let (device, fs) = mount_image(image, quiet()).await;
    assert_eq!(content(&open(&fs, "file").await).await, b"something");
    finish(&device, fs).await;
}

#[tokio::test]
async fn a_read_is_noted_where_access_times_are_kept() {
    if !have_e2fsprogs() {
        return;
    }
    for lazytime in [false, true] {
        let clock = Clock::new();
        let options = quiet().lazytime(lazytime).access_times(true).environment(clock);
        let (device, fs) = mount_image(image(), options).await;
        let file = create(&fs, "file").await;
        file.write_at(0, b"something").await.expect("writes");
        file.sync_all().await.expect("syncs");
        let old = Some(Timestamp { seconds: 1_000_000, nanoseconds: 0 });
        let number = fs.lookup(InodeNumber::ROOT, b"file").await.expect("is there");
        let mut changes = SetAttributes::new();
        changes.atime = old;
        fs.set_attributes(number, &changes).await.expect("changes");
        assert_eq!(Some(file.metadata().await.expect("stat").atime), old);
        content(&file).await;
        assert!(file.metadata().await.expect("stat").atime.seconds >= 1_700_000_000);
        drop(file);
        let image = finish(&device, fs).await;
        let (device, fs) = mount_image(image, quiet()).await;
        assert!(fs.attributes(number).await.expect("stat").atime.seconds >= 1_700_000_000, "{lazytime}");
        finish(&device, fs).await;
    }
}
