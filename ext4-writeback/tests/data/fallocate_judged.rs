//! fallocate, judged from outside: the kernel reads what it made; and a move that takes several transactions
//! is cut in all of them.

use std::sync::Arc;

use super::common::*;
use super::crash::{STALE, quiet, record};
use super::cuts::at_every_cut;
use ext4_core::device::simulated::RecordingDevice;
use ext4_test_support::loop_device::KernelMount;
use ext4_test_support::tools::{can_mount, have, run_ok};
use ext4_writeback::FallocateMode::*;
use ext4_writeback::Filesystem;

/// More leaves than a transaction of this journal has blocks: several transactions. What a cut between them
/// shows is as `fallocate::shift` says.
#[tokio::test]
async fn g_16_a_move_in_several_transactions_is_clean_at_every_cut() {
    if !have_e2fsprogs() {
        return;
    }
    const EXTENTS: u64 = 30_000;
    let image = make_image(48, 1024, &["-J", "size=1"], 0);
    let (device, fs) = mount_image(image, quiet()).await;
    let file = create(&fs, "file").await;
    let piece = |i: u64| pattern(i, 0, 1024);
    for i in 0..EXTENTS {
        file.write_at(2048 * i, &piece(i)).await.expect("writes");
    }
    drop(file);
    let image = finish(&device, fs).await;
    let size = 2048 * (EXTENTS - 1) + 1024;
    for (mode, offset, len) in [(CollapseRange, 2048, 20_480), (InsertRange, 2048, 20_480)] {
        let new = if mode == CollapseRange { size - len } else { size + len };
        let work = |device: Arc<RecordingDevice>, fs: Filesystem| async move {
            let file = open(&fs, "file").await;
            file.fallocate(mode, offset, len).await.expect("moves");
            file.sync_all().await.expect("syncs");
            device.mark("done");
        };
        let recording = record(image.clone(), None, quiet(), work).await;
        let between = std::cell::Cell::new(0);
        at_every_cut(&recording, 16, "file", |passed, bytes| {
            let bytes = bytes.expect("it was there before");
            // Half way the piece in front of the end is where it was or where it goes, and the second one is
            // not.
            let lies = |i: u64, at: u64| bytes.get(at as usize..at as usize + 1024) == Some(&piece(i)[..]);
            let last = EXTENTS - 1;
            let half = match mode {
                CollapseRange => !lies(1, 2048) && lies(last, 2048 * last) && !lies(last, 2048 * last - len),
                _ => lies(1, 2048) && lies(last, 2048 * last + len),
            };
            between.set(between.get() + u32::from(half));
            assert!([size, new].contains(&(bytes.len() as u64)), "{mode:?}: {} bytes", bytes.len());
            assert_eq!(bytes[..1024], piece(0));
            if passed("done") {
                assert_eq!(bytes.len() as u64, new);
                for i in 11..EXTENTS {
                    let at = if mode == CollapseRange { 2048 * i - len } else { 2048 * i + len } as usize;
                    assert_eq!(bytes[at..at + 1024], piece(i), "piece {i}");
                }
            }
        })
        .await;
        assert!(between.get() > 0, "{mode:?}: one transaction was enough");
    }
}

#[tokio::test]
async fn the_kernel_reads_what_fallocate_made() {
    if !have(&["mkfs.ext4", "e2fsck", "filefrag"]) || !can_mount() {
        return;
    }
    for block_size in [1024, 4096] {
        let (device, fs) = mount_image(make_image(32, block_size, &[], STALE), options()).await;
        let mut expected = Vec::new();
        for (i, mode) in
            [Allocate, AllocateKeepSize, PunchHole, ZeroRange, ZeroRangeKeepSize, CollapseRange, InsertRange]
                .into_iter()
                .enumerate()
        {
            let file = create(&fs, &format!("file{i}")).await;
            file.write_at(0, &pattern(i as u64, 0, 90_000)).await.expect("writes");
            file.fallocate(mode, 8192, 12_288).await.expect("changes");
            file.fallocate(AllocateKeepSize, 80_000, 50_000).await.expect("allocates behind the end");
            let extents = file.extents().await.expect("maps").len();
            expected.push((content(&file).await, file.len(), extents));
        }
        let image = finish(&device, fs).await;
        let kernel = KernelMount::of_image(&image);
        for (i, (bytes, size, extents)) in expected.iter().enumerate() {
            let path = kernel.directory().join(format!("file{i}"));
            assert!(std::fs::read(&path).expect("reads") == *bytes, "file {i}");
            assert_eq!(std::fs::metadata(&path).expect("is there").len(), *size);
            let said = run_ok("filefrag", ["-v", path.to_str().expect("a path")]);
            let theirs = said.lines().filter(|line| line.contains("..") && line.contains(':')).count();
            assert_eq!(theirs, *extents, "{said}");
        }
        drop(kernel);
    }
}
