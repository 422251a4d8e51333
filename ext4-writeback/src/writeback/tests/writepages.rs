//! writepages passes over one inode, step by step: a pass is a future, and the test polls it to a chosen
//! point.

use std::pin::pin;

use ext4_core::BlockSize;

use crate::file::File;
use crate::testing::{PAGE, finish, inner, mounted, poll_once, write_pages};
use crate::writeback::gather::Gather;
use crate::writeback::sync_inode::{start_inode_range, sync_inode_data, sync_inode_range};
use crate::writeback::writepages::{Mode, WritebackControl, writepages};

/// The dirty pages among the first `count` of `file`.
fn dirty_pages(file: &File, count: u64) -> Vec<u64> {
    (0..count).filter(|page| file.inode.pages.is_block_dirty(page * PAGE)).collect()
}

/// Runs one pass and submits it; the writeback of its folios may still run.
async fn pass(file: &File, control: WritebackControl) -> u64 {
    let _lock = file.inode.pages.pass.lock.lock().await;
    let mut gather = Gather::new(&inner(file).engine);
    let written =
        writepages(&inner(file).engine, &file.inode, &mut gather, &control).await.expect("no error");
    gather.submit();
    written
}

#[tokio::test]
async fn k_39_a_range_of_small_folios_is_one_allocation_and_one_ioend() {
    let (device, fs, file) = mounted(BlockSize::KIB_4).await;
    write_pages(&file, 0..512, 1).await;
    sync_inode_range(&inner(&file).engine, &file.inode, 0..1 << 20, false).await.expect("syncs");
    let counters = fs.counters();
    assert_eq!(
        (counters.allocations, counters.blocks_allocated, counters.ioends),
        (1, 256, 1),
        "{counters:?}"
    );
    assert_eq!(dirty_pages(&file, 512), (256..512).collect::<Vec<_>>());
    assert_eq!(file.inode.completion.disk_size(), 1 << 20);
    finish(device, fs, file).await;
}

#[tokio::test]
async fn eight_mebibytes_of_delayed_blocks_are_one_allocation() {
    for (block_size, expected) in [(BlockSize::KIB_4, 1), (BlockSize::KIB_2, 2), (BlockSize::KIB_1, 4)] {
        let (device, fs, file) = mounted(block_size).await;
        for at in 0..8192_u64 {
            file.write_at(at * 1024, &[7; 1024]).await.expect("writes");
        }
        sync_inode_data(&inner(&file).engine, &file.inode).await.expect("syncs");
        let counters = fs.counters();
        assert_eq!(counters.blocks_allocated, (8 << 20) / u64::from(block_size.bytes()));
        // 2,048 blocks at a time, fewer at the end of a group.
        assert!((expected..=expected + 2).contains(&counters.allocations), "{block_size:?}: {counters:?}");
        if block_size == BlockSize::KIB_4 {
            assert_eq!((counters.allocations, counters.conversions), (1, 1), "{counters:?}");
        }
        finish(device, fs, file).await;
    }
}

#[tokio::test]
async fn k_40_no_more_blocks_are_asked_for_than_are_delayed_or_within_the_range() {
    let (device, fs, file) = mounted(BlockSize::KIB_4).await;
    // Delayed runs of two blocks with holes between them: a range without an end does not fill the holes.
    for run in (0..64).rev() {
        write_pages(&file, 4 * run..4 * run + 2, 1).await;
    }
    sync_inode_data(&inner(&file).engine, &file.inode).await.expect("syncs");
    let counters = fs.counters();
    assert_eq!((counters.allocations, counters.blocks_allocated), (64, 128), "{counters:?}");
    // One page of a long delayed run: the rest stays delayed.
    write_pages(&file, 1000..1256, 2).await;
    file.set_len(8 << 20).await.expect("extends");
    sync_inode_data(&inner(&file).engine, &file.inode).await.expect("syncs");
    write_pages(&file, 1500..1600, 3).await;
    let before = fs.counters();
    sync_inode_range(&inner(&file).engine, &file.inode, 1500 * PAGE..1501 * PAGE, false)
        .await
        .expect("syncs");
    let after = fs.counters();
    assert_eq!(after.blocks_allocated - before.blocks_allocated, 1, "{after:?}");
    assert_eq!(file.inode.extent_status.delayed_blocks(), 99);
    finish(device, fs, file).await;
}

#[tokio::test]
async fn a_range_within_i_disksize_leaves_the_rest_alone() {
    let (device, fs, file) = mounted(BlockSize::KIB_4).await;
    write_pages(&file, 0..64, 1).await;
    sync_inode_data(&inner(&file).engine, &file.inode).await.expect("syncs");
    write_pages(&file, 0..64, 2).await;
    sync_inode_range(&inner(&file).engine, &file.inode, 10 * PAGE + 5..12 * PAGE + 1, false)
        .await
        .expect("syncs");
    let expected: Vec<_> = (0..64).filter(|page| !(10..=12).contains(page)).collect();
    assert_eq!(dirty_pages(&file, 64), expected);
    start_inode_range(&inner(&file).engine, &file.inode, 20 * PAGE..22 * PAGE).await.expect("starts");
    assert_eq!(dirty_pages(&file, 64).len(), 59);
    finish(device, fs, file).await;
}

#[tokio::test]
async fn k_57_a_range_past_i_disksize_begins_at_i_disksize() {
    let (device, fs, file) = mounted(BlockSize::KIB_4).await;
    write_pages(&file, 0..64, 1).await;
    sync_inode_range(&inner(&file).engine, &file.inode, 40 * PAGE..41 * PAGE, false).await.expect("syncs");
    assert_eq!(dirty_pages(&file, 64), (41..64).collect::<Vec<_>>());
    assert_eq!(file.inode.completion.disk_size(), 41 * PAGE);
    // From the block that i_disksize (unaligned) ends in, and no further back.
    file.set_len(41 * PAGE - 1000).await.expect("truncates");
    sync_inode_data(&inner(&file).engine, &file.inode).await.expect("syncs");
    file.write_at(0, b"elsewhere").await.expect("writes");
    file.write_at(41 * PAGE - 1000, &[3; 9000]).await.expect("appends");
    sync_inode_range(&inner(&file).engine, &file.inode, 42 * PAGE..43 * PAGE, false).await.expect("syncs");
    assert_eq!(dirty_pages(&file, 64), [0]);
    assert_eq!(file.inode.completion.disk_size(), 41 * PAGE - 1000 + 9000);
    finish(device, fs, file).await;
}

#[tokio::test]
async fn a_sync_pass_takes_what_was_dirty_when_it_began() {
    let (device, fs, file) = mounted(BlockSize::KIB_4).await;
    write_pages(&file, 0..64, 1).await;
    sync_inode_data(&inner(&file).engine, &file.inode).await.expect("syncs");
    write_pages(&file, 0..8, 2).await;
    write_pages(&file, 30..32, 2).await;
    let held = file.inode.pages.find(4 * PAGE).expect("cached").try_lock().expect("free");
    let lock = file.inode.pages.pass.lock.lock().await;
    let mut gather = Gather::new(&inner(&file).engine);
    let control = WritebackControl::sync(0..u64::MAX);
    {
        let mut pass = pin!(writepages(&inner(&file).engine, &file.inode, &mut gather, &control));
        assert!(poll_once(pass.as_mut()).is_pending(), "a folio is locked");
        // Before and behind the position of the pass, and a folio again that the pass has yet to visit.
        write_pages(&file, 0..1, 3).await;
        write_pages(&file, 10..20, 3).await;
        write_pages(&file, 31..32, 3).await;
        drop(held);
        assert_eq!(pass.await.expect("no error"), 10 * PAGE);
    }
    gather.submit();
    drop(lock);
    let expected: Vec<_> = (0..1).chain(10..20).collect();
    assert_eq!(dirty_pages(&file, 64), expected);
    finish(device, fs, file).await;
}

#[tokio::test]
async fn a_pass_ends_if_the_file_was_truncated_while_it_ran() {
    let (device, fs, file) = mounted(BlockSize::KIB_4).await;
    write_pages(&file, 0..64, 1).await;
    let held = file.inode.pages.find(8 * PAGE).expect("cached").try_lock().expect("free");
    let lock = file.inode.pages.pass.lock.lock().await;
    let mut gather = Gather::new(&inner(&file).engine);
    let control = WritebackControl::start(0..u64::MAX);
    {
        let mut pass = pin!(writepages(&inner(&file).engine, &file.inode, &mut gather, &control));
        assert!(poll_once(pass.as_mut()).is_pending(), "a folio is locked");
        drop(held);
        file.set_len(0).await.expect("truncates");
        write_pages(&file, 0..64, 2).await;
        pass.await.expect("no error");
    }
    gather.submit();
    drop(lock);
    crate::writeback::completion::wait::wait_for_range(&inner(&file).engine, &file.inode, &(0..u64::MAX))
        .await;
    // If the pass had gone on from page 8, i_disksize would cover pages that are only in memory.
    assert_eq!(file.inode.completion.disk_size(), 0);
    assert_eq!(dirty_pages(&file, 64).len(), 64);
    finish(device, fs, file).await;
}

#[tokio::test]
async fn turns_begin_where_the_last_one_stopped() {
    let (device, fs, file) = mounted(BlockSize::KIB_4).await;
    write_pages(&file, 0..8, 1).await;
    sync_inode_data(&inner(&file).engine, &file.inode).await.expect("syncs");
    write_pages(&file, 0..8, 2).await;
    let turn = || WritebackControl::turn(3 * PAGE);
    assert_eq!(pass(&file, turn()).await, 3 * PAGE);
    assert_eq!(dirty_pages(&file, 8), [3, 4, 5, 6, 7]);
    write_pages(&file, 0..1, 3).await;
    assert_eq!(pass(&file, turn()).await, 3 * PAGE);
    assert_eq!(dirty_pages(&file, 8), [0, 6, 7]);
    // A turn does not wrap around.
    assert_eq!(pass(&file, turn()).await, 2 * PAGE);
    assert_eq!(dirty_pages(&file, 8), [0]);
    sync_inode_data(&inner(&file).engine, &file.inode).await.expect("syncs");
    write_pages(&file, 0..1, 4).await;
    assert_eq!(pass(&file, turn()).await, PAGE);
    // Data behind i_disksize is written in order, wherever the last turn stopped.
    write_pages(&file, 6..8, 5).await;
    assert_eq!(pass(&file, WritebackControl::turn(PAGE)).await, PAGE);
    assert_eq!(dirty_pages(&file, 8), [7]);
    file.set_len(2 * PAGE).await.expect("truncates");
    write_pages(&file, 2..8, 6).await;
    assert_eq!(pass(&file, turn()).await, 3 * PAGE);
    assert_eq!(dirty_pages(&file, 8), [5, 6, 7]);
    finish(device, fs, file).await;
}

#[tokio::test]
async fn a_folio_under_writeback_is_skipped_only_within_i_disksize() {
    let (device, fs, file) = mounted(BlockSize::KIB_4).await;
    write_pages(&file, 0..8, 1).await;
    sync_inode_data(&inner(&file).engine, &file.inode).await.expect("syncs");
    write_pages(&file, 0..12, 2).await;
    let busy = |page: u64| {
        let folio = file.inode.pages.find(page * PAGE).expect("cached").try_lock().expect("free");
        // Under writeback as during its I/O, and dirty again.
        let dirty = folio.start_writeback();
        folio.set_dirty(0..1);
        assert!(dirty.contains(0..1));
        std::sync::Arc::clone(&folio)
    };
    let (within, behind) = (busy(3), busy(9));
    pass(&file, WritebackControl::start(0..u64::MAX)).await;
    assert_eq!(dirty_pages(&file, 12), [3, 9, 10, 11]);
    for folio in [within, behind] {
        assert!(folio.finish_piece());
    }
    assert_eq!(WritebackControl::start(0..1).mode, Mode::Background);
    finish(device, fs, file).await;
}

#[tokio::test]
async fn k_55_a_folio_past_the_end_of_the_file_is_not_written() {
    let (device, fs, file) = mounted(BlockSize::KIB_4).await;
    write_pages(&file, 0..4, 1).await;
    sync_inode_data(&inner(&file).engine, &file.inode).await.expect("syncs");
    write_pages(&file, 2..4, 2).await;
    let before = fs.counters();
    {
        // A truncation that has set i_size and not yet dropped its folios.
        let lock = file.inode.pages.pass.lock.lock().await;
        let held = file.inode.pages.find(2 * PAGE).expect("cached").try_lock().expect("free");
        let mut gather = Gather::new(&inner(&file).engine);
        let control = WritebackControl::sync(0..u64::MAX);
        {
            let mut pass = pin!(writepages(&inner(&file).engine, &file.inode, &mut gather, &control));
            assert!(poll_once(pass.as_mut()).is_pending());
            let mut truncation = pin!(file.set_len(PAGE));
            let _ = poll_once(truncation.as_mut());
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert_eq!(file.len(), PAGE);
            drop(held);
            pass.await.expect("no error");
            truncation.await.expect("truncates");
        }
        gather.submit();
        drop(lock);
    }
    let after = fs.counters();
    assert_eq!((after.ioends, after.bytes), (before.ioends, before.bytes));
    assert_eq!(file.inode.completion.disk_size(), PAGE);
    finish(device, fs, file).await;
}
