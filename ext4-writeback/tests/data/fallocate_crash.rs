//! Fallocate and power cuts: what a file shows when one falls at any moment of it.
//!
//! The file ends in the middle of a block, and behind its end the device holds 0xaa there.

use super::common::*;
use super::crash::{commits, quiet, record};
use super::cuts::{at_every_cut, seeds};
use ext4_core::device::simulated::{Image, Recording};
use ext4_writeback::FallocateMode;

const BLOCK: usize = 1024;
const SIZE: usize = 40 * BLOCK + 300;
const STALE: u8 = 0xaa;

/// A file of [`SIZE`] bytes, written in three parts with something between them on the device; garbage behind
/// its end.
async fn base() -> Image {
    let image = make_image(8, BLOCK as u32, &["-J", "size=1"], STALE);
    let (device, fs) = mount_image(image, quiet()).await;
    let (file, other) = (create(&fs, "file").await, create(&fs, "other").await);
    let data = pattern(1, 0, SIZE);
    for (from, to) in [(0, 10 * BLOCK), (10 * BLOCK, 25 * BLOCK), (25 * BLOCK, SIZE)] {
        file.write_at(from as u64, &data[from..to]).await.expect("writes");
        file.sync_all().await.expect("syncs");
        other.write_at(from as u64, &[3; 5000]).await.expect("writes");
        other.sync_all().await.expect("syncs");
    }
    let extents = file.extents().await.expect("maps");
    let last = extents.last().expect("some");
    let ext4_core::meta::extent_tree::MappingState::Written(block) = last.state else {
        panic!("{extents:?}");
    };
    let tail = (block.0 + u64::from(last.len) - 1) * BLOCK as u64;
    drop((file, other));
    let mut image = finish(&device, fs).await;
    image.fill(tail + 300, BLOCK as u64 - 300, STALE);
    image
}

/// Runs one call of fallocate beside commits of other tasks, then an append far behind, then a sync.
async fn cut(mode: FallocateMode, offset: u64, len: u64, seed: u64, dirty: bool) -> Recording {
    record(base().await, Some(seed), quiet(), |device, fs| async move {
        let file = open(&fs, "file").await;
        if dirty {
            // In the middle of the range and behind it; the same bytes again.
            for at in [12_000, 30_000] {
                file.write_at(at, &pattern(1, at, 3000)).await.expect("writes");
            }
        }
        tokio::select! {
            () = commits(&fs) => {}
            result = async {
                file.fallocate(mode, offset, len).await?;
                file.start_writeback().await?;
                file.sync_all().await
            } => result.expect("no error"),
        }
        device.mark("done");
    })
    .await
}

/// What the file may be after the cut: each byte is that of `before` or that of `after`, if those differ,
/// only as `mixed` allows; and the size is one of theirs, or one in between.
fn check(mode: FallocateMode, passed: bool, bytes: &[u8], before: &[u8], after: &[u8], mixed: bool) {
    let whole = |expected: &[u8]| bytes == expected;
    if passed {
        assert!(whole(after), "{mode:?}: not what was synced");
        return;
    }
    if !mixed {
        assert!(whole(before) || whole(after), "{mode:?}: {} bytes, neither before nor after", bytes.len());
        return;
    }
    let sizes = before.len().min(after.len())..=before.len().max(after.len());
    assert!(sizes.contains(&bytes.len()), "{mode:?}: {} bytes", bytes.len());
    for (at, byte) in bytes.iter().enumerate() {
        let either = [before, after].map(|expected| expected.get(at).copied().unwrap_or(0));
        assert!(either.contains(byte), "{mode:?}: {byte:#x} at {at} of {}", bytes.len());
    }
}

async fn at_each_cut(mode: FallocateMode, offset: u64, len: u64, mixed: bool) {
    let before = pattern(1, 0, SIZE);
    let mut after = before.clone();
    let (from, to) = (offset as usize, (offset + len) as usize);
    match mode {
        FallocateMode::CollapseRange => drop(after.drain(from..to)),
        FallocateMode::InsertRange => drop(after.splice(from..from, std::iter::repeat_n(0, to - from))),
        FallocateMode::PunchHole | FallocateMode::ZeroRangeKeepSize => {
            let to = to.min(SIZE);
            after[from.min(to)..to].fill(0);
        }
        FallocateMode::ZeroRange => {
            after[from.min(SIZE)..to.min(SIZE)].fill(0);
            after.resize(to.max(SIZE), 0);
        }
        FallocateMode::Allocate => after.resize(to.max(SIZE), 0),
        FallocateMode::AllocateKeepSize => {}
    }
    for seed in seeds(&[1, 2]) {
        let dirty = seed % 2 == 0;
        let recording = cut(mode, offset, len, seed, dirty).await;
        at_every_cut(&recording, 40, "file", |passed, bytes| {
            check(mode, passed("done"), bytes.expect("it was there before"), &before, &after, mixed);
        })
        .await;
    }
}

#[tokio::test]
async fn g_10_g_16_a_punched_block_is_old_or_zero() {
    if !have_e2fsprogs() {
        return;
    }
    at_each_cut(FallocateMode::PunchHole, 5000, 25_000, true).await;
    at_each_cut(FallocateMode::PunchHole, 20_000, 100_000, true).await;
}

#[tokio::test]
async fn g_10_g_16_a_zeroed_block_is_old_or_zero() {
    if !have_e2fsprogs() {
        return;
    }
    at_each_cut(FallocateMode::ZeroRangeKeepSize, 5000, 25_000, true).await;
}

#[tokio::test]
async fn g_6_k_03_k_46_allocating_and_zeroing_past_the_end_show_zeros_there() {
    if !have_e2fsprogs() {
        return;
    }
    for mode in [FallocateMode::Allocate, FallocateMode::ZeroRange] {
        // From inside, from inside the last block, from behind it.
        at_each_cut(mode, 30_000, 40_000, true).await;
        at_each_cut(mode, SIZE as u64 + 100, 200, true).await;
        at_each_cut(mode, 60_000, 10_000, true).await;
    }
}

/// A file that grows by an allocation in many runs is as long, after a crash, as what it has blocks for: none
/// lies behind its size.
#[tokio::test]
async fn g_16_an_allocation_leaves_no_blocks_behind_the_size() {
    if !have_e2fsprogs() {
        return;
    }
    const OLD: u64 = 4 * BLOCK as u64;
    const END: u64 = 1200 * BLOCK as u64;
    const NEIGHBOURS: usize = 400;
    for mode in [FallocateMode::Allocate, FallocateMode::ZeroRange] {
        // Free space in pieces: others' files with gaps between them, and no room behind them. Groups are
        // small: to read the bitmap of each gives the commits time.
        let image = make_image(8, BLOCK as u32, &["-J", "size=1", "-g", "256"], STALE);
        let (device, fs) = mount_image(image, quiet()).await;
        let file = create(&fs, "file").await;
        file.write_at(0, &pattern(1, 0, OLD as usize)).await.expect("writes");
        for i in 0..NEIGHBOURS {
            let other = create(&fs, &format!("neighbour{i}")).await;
            other.fallocate(FallocateMode::Allocate, 0, 8 * BLOCK as u64).await.expect("allocates");
        }
        let filler = create(&fs, "filler").await;
        filler.fallocate(FallocateMode::AllocateKeepSize, 0, 1 << 30).await.expect_err("no more space");
        for i in (0..NEIGHBOURS).step_by(2) {
            let name = format!("neighbour{i}");
            fs.unlink(ext4_core::InodeNumber::ROOT, name.as_bytes()).await.expect("unlinks");
        }
        filler.fallocate(FallocateMode::PunchHole, 0, 40 << 10).await.expect("punches");
        fs.sync().await.expect("syncs");
        drop((file, filler));
        let image = finish(&device, fs).await;
        let recording = record(image, Some(5), quiet(), |_, fs| async move {
            let file = open(&fs, "file").await;
            tokio::select! {
                () = commits(&fs) => {}
                result = async {
                    file.fallocate(mode, 0, END).await?;
                    file.sync_all().await
                } => result.expect("no error"),
            }
        })
        .await;
        let mut between = std::collections::BTreeSet::new();
        for cut in recording.cuts() {
            let (device, fs) = mount_image(cut.with_all(), options()).await;
            let file = open(&fs, "file").await;
            let size = file.len();
            let extents = file.extents().await.expect("maps");
            let end = extents.iter().map(|map| u64::from(map.logical.0) + u64::from(map.len)).max();
            assert_eq!(end.unwrap_or(0) * BLOCK as u64, size, "{mode:?}: blocks behind the size, or none");
            assert!((OLD..=END).contains(&size), "{mode:?}: {size} bytes");
            between.insert(size);
            drop(file);
            finish(&device, fs).await;
        }
        assert!(between.contains(&OLD) && between.contains(&END), "{mode:?}: {between:?}");
        assert!(between.len() > 2, "{mode:?}: it is seen half way: {between:?}");
    }
}

/// The tree of the file is in its inode: one transaction has all of it.
#[tokio::test]
async fn k_51_g_16_collapse_and_insert_are_whole_or_not_at_all() {
    if !have_e2fsprogs() {
        return;
    }
    at_each_cut(FallocateMode::CollapseRange, 5 * BLOCK as u64, 17 * BLOCK as u64, false).await;
    at_each_cut(FallocateMode::InsertRange, 5 * BLOCK as u64, 17 * BLOCK as u64, false).await;
}

/// A size that waits for the zeros of the last block, when the blocks move.
#[tokio::test]
async fn k_51_a_pending_tail_is_settled_before_blocks_move() {
    if !have_e2fsprogs() {
        return;
    }
    for mode in [FallocateMode::CollapseRange, FallocateMode::InsertRange] {
        let recording = record(base().await, Some(3), quiet(), |_, fs| async move {
            let file = open(&fs, "file").await;
            file.write_at(60_000, &pattern(1, 60_000, 3000)).await.expect("writes");
            file.set_len(70_000).await.expect("extends");
            tokio::select! {
                () = commits(&fs) => {}
                result = async {
                    file.fallocate(mode, 2 * BLOCK as u64, 3 * BLOCK as u64).await?;
                    file.sync_all().await
                } => result.expect("no error"),
            }
        })
        .await;
        let shown = |at: usize| {
            if at < SIZE || (60_000..63_000).contains(&at) { pattern(1, at as u64, 1)[0] } else { 0 }
        };
        at_every_cut(&recording, 40, "file", |_, bytes| {
            for (at, byte) in bytes.expect("is there").iter().enumerate() {
                let moved = match mode {
                    FallocateMode::CollapseRange if at >= 2 * BLOCK => shown(at + 3 * BLOCK),
                    FallocateMode::InsertRange if at >= 5 * BLOCK => shown(at - 3 * BLOCK),
                    FallocateMode::InsertRange if at >= 2 * BLOCK => 0,
                    _ => shown(at),
                };
                assert!([shown(at), moved].contains(byte), "{mode:?}: {byte:#x} at {at}");
            }
        })
        .await;
    }
}
