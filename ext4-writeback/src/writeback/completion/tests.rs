//! The tail gate if the tail block never gets to the device, and when the memory of a clean folio becomes
//! free.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Wake, Waker};

use ext4_core::device::simulated::FaultyDevice;
use ext4_core::device::{BlockDevice, MemoryDevice, Operation, PoolMemory};
use ext4_core::meta::extent_tree::MappingState;
use ext4_core::{BlockSize, Errno, InodeNumber};

use crate::base::options::MountOptions;
use crate::cache::folio::Folio;
use crate::file::File;
use crate::filesystem::Filesystem;
use crate::testing::{PAGE, assert_clean, blocks, inner, mounted, write_pages};

async fn open(device: Arc<dyn BlockDevice>) -> (Filesystem, File) {
    let fs = Filesystem::mount(device, MountOptions::default()).await.expect("mounts");
    let number = fs.lookup(InodeNumber::ROOT, b"file").await.expect("is there");
    let file = fs.open(number).await.expect("opens");
    (fs, file)
}

/// The mapping of the tail block has been reclaimed, and the device fails to read it once, when the zeros
/// behind i_disksize are written back. The zeros are in no ioend then; data behind them can be mapped and is
/// written.
#[tokio::test]
async fn k_29_a_tail_that_cannot_be_mapped_keeps_i_disksize() {
    const TAIL: u64 = 16;
    const SIZE: u64 = TAIL * PAGE + 2000;
    let (device, fs, file) = mounted(BlockSize::KIB_4).await;
    // More extents than the inode has room for.
    for page in 0..TAIL / 2 {
        file.write_at(2 * page * PAGE, &[1; PAGE as usize]).await.expect("writes");
    }
    file.write_at(TAIL * PAGE, &[1; 2000]).await.expect("writes");
    file.sync_all().await.expect("syncs");
    let extents = file.extents().await.expect("maps");
    let MappingState::Written(last) = extents.last().expect("some").state else { panic!("{extents:?}") };
    drop(file);
    fs.unmount().await.expect("unmounts");
    let mut image = device.image();
    image.fill(last.0 * PAGE + 2000, PAGE - 2000, 0xaa);
    let memory = Arc::new(MemoryDevice::from_image(image));
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as Arc<dyn BlockDevice>));
    let (fs, file) = open(Arc::clone(&faulty) as _).await;

    file.write_at(20 * PAGE, &[2; PAGE as usize]).await.expect("writes");
    // As reclaim of the extent status tree would.
    file.inode.extent_status.remove(blocks(TAIL as u32..TAIL as u32 + 1));
    inner(&file).volume.info.cache.clear();
    faulty.fail_nth(Operation::Read, 0);
    assert_eq!(file.sync_all().await.expect_err("the zeros are lost").errno(), Errno::EIO);
    assert_eq!(faulty.faults_met(), 1);
    assert_eq!(file.inode.completion.disk_size(), SIZE, "what is behind it must not show");
    let (crashed, there) = open(Arc::new(MemoryDevice::from_image(memory.image()))).await;
    assert_eq!(there.len(), SIZE);
    drop(there);
    crashed.unmount().await.expect("unmounts");

    // Written again, the tail block lets i_disksize move.
    file.write_at(SIZE, &[3; 100]).await.expect("writes");
    file.sync_all().await.expect("syncs");
    assert_eq!(file.inode.completion.disk_size(), 21 * PAGE);
    drop(file);
    fs.unmount().await.expect("unmounts");
    assert_clean(&memory);
    let (fs, file) = open(Arc::clone(&memory) as _).await;
    let mut bytes = vec![0xee; PAGE as usize];
    file.read_at(TAIL * PAGE, &mut bytes).await.expect("reads");
    assert_eq!(bytes, [&[1; 2000][..], &[3; 100], &[0; 1996]].concat());
    drop(file);
    fs.unmount().await.expect("unmounts");
}

/// The tail block is changed while an append behind it, in another folio, is in flight. The tail block was
/// filled up with zeros when it was written, so i_disksize follows the append and does not wait for the
/// change, whose writeback no caller has asked for.
#[tokio::test]
async fn k_57_a_tail_that_is_dirty_again_after_its_zeros_does_not_close_the_gate() {
    let (device, fs, file) = mounted(BlockSize::KIB_4).await;
    drop(file);
    fs.unmount().await.expect("unmounts");
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&device) as Arc<dyn BlockDevice>));
    let (fs, file) = open(Arc::clone(&faulty) as _).await;
    // Brings bitmaps and other metadata into the buffer cache.
    let owner = crate::namespace::new_inode::Credentials {
        mode: 0o644,
        ..crate::namespace::new_inode::Credentials::default()
    };
    let other = fs.create(InodeNumber::ROOT, b"other", owner).await.expect("creates");
    let other = fs.open(other).await.expect("opens");
    other.write_at(0, &[9; 5000]).await.expect("writes");
    other.sync_all().await.expect("syncs");
    let before = fs.counters().conversions;

    faulty.reorder(1);
    file.write_at(0, &[1; 100]).await.expect("writes");
    file.start_writeback().await.expect("starts");
    assert_eq!(faulty.held(), 1);
    // The I/O has ended, and no worker has run to convert the block: the gap makes no more blocks dirty.
    assert!(faulty.release_one());
    file.write_at(6000, &[2; 4000]).await.expect("writes");
    while fs.counters().conversions == before {
        tokio::task::yield_now().await;
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(file.inode.completion.disk_size(), 100);
    file.start_writeback().await.expect("starts");
    assert_eq!(faulty.held(), 1, "what is appended");
    file.write_at(50, &[3; 10]).await.expect("writes");
    assert!(file.inode.pages.is_block_dirty(0));
    assert!(faulty.release_one());
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(file.inode.completion.disk_size(), 10_000, "the size waits for nothing");
    assert_eq!(faulty.held(), 0, "and nothing is written that no caller asked for");
    assert!(file.inode.pages.is_block_dirty(0));
    let driver = tokio::spawn(async move { faulty.drive().await });
    drop((file, other));
    fs.unmount().await.expect("unmounts");
    driver.abort();
    assert_clean(&device);
}

/// How many references a folio and its memory had when a waiter was woken; and whether it was woken.
struct Watch {
    folio: Weak<Folio>,
    memory: Weak<PoolMemory>,
    seen: [AtomicUsize; 2],
}

impl Wake for Watch {
    fn wake(self: Arc<Self>) {
        self.seen[0].store(self.folio.strong_count(), Ordering::SeqCst);
        self.seen[1].store(self.memory.strong_count(), Ordering::SeqCst);
    }
}

/// A task that waits for memory is woken when a folio became clean, and reclaims it. If the rest of the
/// folio's ioend, or of its bio, still held it, no memory would become free, and folios in use would be
/// reclaimed next.
#[tokio::test]
async fn only_the_page_cache_holds_a_folio_that_became_clean() {
    let (device, fs, file) = mounted(BlockSize::KIB_4).await;
    write_pages(&file, 0..4, 1).await;
    file.sync_all().await.expect("syncs");
    // An overwrite: finished in the device's completion context.
    write_pages(&file, 0..4, 2).await;
    let folio = file.inode.pages.find(0).expect("is in memory");
    let watch = Arc::new(Watch {
        folio: Arc::downgrade(&folio),
        memory: Arc::downgrade(&folio.memory()),
        seen: Default::default(),
    });
    drop(folio);
    let before = [watch.folio.strong_count(), watch.memory.strong_count()];
    {
        let mut progress = pin!(inner(&file).engine.dirty.progress.notified());
        let waker = Waker::from(Arc::clone(&watch));
        assert!(progress.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        file.start_writeback().await.expect("starts");
    }
    assert_eq!(watch.seen.each_ref().map(|seen| seen.load(Ordering::SeqCst)), before);
    drop(file);
    fs.unmount().await.expect("unmounts");
    assert_clean(&device);
}
