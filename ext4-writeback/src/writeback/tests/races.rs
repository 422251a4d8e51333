//! writepages races, rows K-20 and K-23 of the specification: a mapping that a pass looked up is stale when
//! it is used.
//!
//! A pass is a future here, and the test polls it to a chosen point. If it waits for a handle, it has looked
//! up the delayed extent once and not yet again under the inode's lock; if it waits for a folio, it has kept
//! the mapping of the folios before. A change that the test makes meanwhile happens exactly between the two.

use std::pin::pin;
use std::sync::Arc;

use ext4_core::device::MemoryDevice;
use ext4_core::meta::Transaction as _;
use ext4_core::meta::extent_tree::MappingState;
use ext4_core::{BlockSize, LogicalBlock};

use crate::base::options::{Allocation, MountOptions};
use crate::cache::extent_status::status::Status;
use crate::file::File;
use crate::filesystem::Filesystem;
use crate::io::fallocate::request::FallocateMode;
use crate::iomap::preallocation;
use crate::testing::{PAGE, finish, inner, mounted, mounted_with, poll_once, write_pages};
use crate::writeback::gather::Gather;
use crate::writeback::sync_inode::sync_inode_data;
use crate::writeback::writepages::{WritebackControl, writepages};

/// Polls a pass over `file`, all of which is delayed, until it has looked up page 0 and waits for a handle;
/// runs `meanwhile`; lets the pass end.
async fn between_the_two_lookups(fs: &Filesystem, file: &File, meanwhile: impl AsyncFnOnce()) {
    let journal = Arc::clone(inner(file).volume.journal.as_ref().expect("a journal"));
    // A commit that waits for this handle keeps new ones out.
    let held = inner(file).volume.begin_tracked(1, "test").await.expect("a handle");
    let transaction = held.id();
    let commit = tokio::spawn({
        let journal = Arc::clone(&journal);
        async move { journal.force_commit().await }
    });
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    let lock = file.inode.pages.pass.lock.lock().await;
    let mut gather = Gather::new(&inner(file).engine);
    let control = WritebackControl::start(0..u64::MAX);
    {
        let mut pass = pin!(writepages(&inner(file).engine, &file.inode, &mut gather, &control));
        assert!(poll_once(pass.as_mut()).is_pending(), "no handle is to be had");
        assert_eq!(fs.counters().allocations, 0, "nothing is allocated yet");
        drop(held);
        commit.await.expect("no panic").expect("commits");
        assert!(inner(file).volume.begin_tracked(1, "test").await.expect("a handle").id() != transaction);
        meanwhile().await;
        pass.await.expect("no error");
    }
    gather.submit();
    drop(lock);
    sync_inode_data(&inner(file).engine, &file.inode).await.expect("syncs");
}

/// The pages of `file` that have blocks.
async fn mapped_pages(file: &File) -> Vec<u64> {
    let extents = file.extents().await.expect("maps");
    let mapped = extents.iter().filter(|extent| matches!(extent.state, MappingState::Written(_)));
    mapped.flat_map(|extent| (0..extent.len).map(|n| u64::from(extent.logical.0 + n))).collect()
}

/// Each page of `file`, which is open after a remount, holds the byte that is expected.
async fn assert_pages(device: &Arc<MemoryDevice>, expected: &[u8]) {
    let options = MountOptions::default();
    let fs = Filesystem::mount(Arc::clone(device) as _, options).await.expect("mounts");
    let number = fs.lookup(ext4_core::InodeNumber::ROOT, b"file").await.expect("is there");
    let file = fs.open(number).await.expect("opens");
    assert_eq!(file.len(), expected.len() as u64 * PAGE);
    for (page, byte) in expected.iter().enumerate() {
        let mut bytes = [0xee; PAGE as usize];
        file.read_at(page as u64 * PAGE, &mut bytes).await.expect("reads");
        assert_eq!(bytes, [*byte; PAGE as usize], "page {page}");
    }
    drop(file);
    fs.unmount().await.expect("unmounts");
}

/// The file is truncated behind the locked folio, and written again behind a hole: blocks that were delayed
/// at the first lookup are a hole, delayed again, or unknown at the second.
#[tokio::test]
async fn k_20_blocks_are_allocated_for_what_is_delayed_at_the_second_lookup() {
    let (device, fs, file) = mounted(BlockSize::KIB_4).await;
    let free = fs.statfs().free_blocks;
    write_pages(&file, 0..16, 1).await;
    between_the_two_lookups(&fs, &file, async || {
        file.set_len(PAGE).await.expect("truncates");
        write_pages(&file, 8..10, 2).await;
    })
    .await;
    assert_eq!(mapped_pages(&file).await, [0, 8, 9], "nothing is allocated in the part that was cut off");
    assert_eq!(fs.counters().blocks_allocated, 3, "{:?}", fs.counters());
    assert_eq!(fs.statfs().free_blocks, free - 3);
    assert_eq!(inner(&file).volume.info.free_and_reserved_blocks().1, 0, "and nothing is reserved");
    finish(Arc::clone(&device), fs, file).await;
    assert_pages(&device, &[1, 0, 0, 0, 0, 0, 0, 0, 2, 2]).await;
}

/// fallocate holds no folio lock: it may allocate the delayed blocks between the two lookups.
#[tokio::test]
async fn k_20_blocks_that_were_allocated_between_the_two_lookups_are_used() {
    let (device, fs, file) = mounted(BlockSize::KIB_4).await;
    let free = fs.statfs().free_blocks;
    write_pages(&file, 0..16, 1).await;
    between_the_two_lookups(&fs, &file, async || {
        file.fallocate(FallocateMode::AllocateKeepSize, 0, 16 * PAGE).await.expect("allocates");
    })
    .await;
    assert_eq!(mapped_pages(&file).await, (0..16).collect::<Vec<_>>());
    assert_eq!(fs.counters().blocks_allocated, 16, "{:?}", fs.counters());
    assert_eq!(fs.statfs().free_blocks, free - 16);
    finish(Arc::clone(&device), fs, file).await;
    assert_pages(&device, &[1; 16]).await;
}

/// Publication picks blocks for what is delayed under the inode's lock, not for what was delayed at the first
/// lookup.
#[tokio::test]
async fn k_20_blocks_are_picked_for_what_is_delayed_at_the_second_lookup() {
    let options = MountOptions { allocation: Allocation::Publish, ..MountOptions::default() };
    let (device, fs, file) = mounted_with(BlockSize::KIB_4, options).await;
    let free = fs.statfs().free_blocks;
    write_pages(&file, 0..16, 1).await;
    let looked = file.inode.extent_status.lookup(LogicalBlock(0)).expect("known");
    assert_eq!((looked.status, looked.end), (Status::Delayed, LogicalBlock(16)));
    file.set_len(PAGE).await.expect("truncates");
    write_pages(&file, 8..10, 2).await;
    let folio = file.inode.pages.find(0).expect("cached").lock().await;
    let (inode, first) = (&file.inode, LogicalBlock(0));
    assert!(preallocation::pick(&inner(&file).volume, inode, first, looked.end.0).await.expect("picks"));
    drop(folio);
    assert!(
        file.inode.preallocation.find(first).is_some_and(|(_, end)| end == first + 1),
        "page 0 and no more"
    );
    for page in 1..10 {
        assert!(file.inode.preallocation.find(LogicalBlock(page)).is_none(), "page {page}");
    }
    sync_inode_data(&inner(&file).engine, &file.inode).await.expect("syncs");
    assert_eq!(mapped_pages(&file).await, [0, 8, 9]);
    assert_eq!(fs.statfs().free_blocks, free - 3);
    finish(Arc::clone(&device), fs, file).await;
    assert_pages(&device, &[1, 0, 0, 0, 0, 0, 0, 0, 2, 2]).await;
}

/// A hole is punched into blocks whose mapping the pass has kept, and written again before the pass comes
/// there.
#[tokio::test]
async fn k_23_a_mapping_that_changed_since_the_last_folio_is_looked_up_again() {
    for conversion in [false, true] {
        let (device, fs, file) = mounted(BlockSize::KIB_4).await;
        write_pages(&file, 0..16, 1).await;
        if conversion {
            // The kept mapping is of written blocks, not of unwritten ones.
            sync_inode_data(&inner(&file).engine, &file.inode).await.expect("syncs");
            write_pages(&file, 0..16, 3).await;
        }
        let first = if conversion { 3 } else { 1 };
        let held = file.inode.pages.find(5 * PAGE).expect("cached").try_lock().expect("free");
        let lock = file.inode.pages.pass.lock.lock().await;
        let mut gather = Gather::new(&inner(&file).engine);
        let control = WritebackControl::start(0..u64::MAX);
        {
            let mut pass = pin!(writepages(&inner(&file).engine, &file.inode, &mut gather, &control));
            assert!(poll_once(pass.as_mut()).is_pending(), "a folio is locked");
            assert_eq!(fs.counters().allocations, 1, "all of it has its blocks");
            file.fallocate(FallocateMode::PunchHole, 6 * PAGE, 4 * PAGE).await.expect("punches");
            write_pages(&file, 6..9, 2).await;
            drop(held);
            pass.await.expect("no error");
        }
        gather.submit();
        drop(lock);
        sync_inode_data(&inner(&file).engine, &file.inode).await.expect("syncs");
        let expected: Vec<u64> = (0..9).chain(10..16).collect();
        assert_eq!(mapped_pages(&file).await, expected);
        assert_eq!(fs.counters().blocks_allocated, 16 + 3, "{:?}", fs.counters());
        finish(Arc::clone(&device), fs, file).await;
        let bytes: Vec<u8> = (0..16)
            .map(|page| match page {
                6..9 => 2,
                9 => 0,
                _ => first,
            })
            .collect();
        assert_pages(&device, &bytes).await;
    }
}
