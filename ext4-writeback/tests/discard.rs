//! Discard of freed blocks: after the commit, before they are used again, and never of what is in use.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use ext4_core::device::simulated::{Change, Event, FaultyDevice, Image, RecordingDevice};
use ext4_core::device::{BlockDevice, MemoryDevice, Operation};
use ext4_core::{Errno, InodeNumber};
use ext4_test_support::tools::{assert_clean, have, mke2fs_image};
use ext4_writeback::{Filesystem, MountOptions};

const TOOLS: &[&str] = &["mkfs.ext4", "e2fsck", "debugfs"];

fn discarding() -> MountOptions {
    MountOptions::new().discard(true)
}

/// The content of file `number` of `round`: no byte is 0, which is what a discarded block holds here, or
/// 0xdb.
fn content(round: usize, number: usize) -> Vec<u8> {
    let byte = 1 + u8::try_from((round * 17 + number) % 100).unwrap();
    vec![byte; 3000 + number * 700]
}

fn name(round: usize, number: usize) -> String {
    format!("/f{round}-{number}")
}

/// Files come and go on a file system that is nearly full, so that blocks are used again and again.
async fn churn(filesystem: &Filesystem, mark: impl Fn(String)) {
    const FILES: usize = 12;
    for round in 0..6 {
        if round > 0 {
            mark(format!("unlinking {}", round - 1));
            for number in 0..FILES {
                filesystem.unlink(InodeNumber::ROOT, &name(round - 1, number).as_bytes()[1..]).await.unwrap();
            }
            // What was freed is not discarded before it is committed, however long that takes.
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        for number in 0..FILES {
            filesystem.write(&name(round, number), content(round, number)).await.unwrap();
        }
        filesystem.sync().await.unwrap();
        mark(format!("synced {round}"));
        // The discards of this commit begin.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// Every file that is there holds what was written to it: whole, if its round was synced. Those of
/// `complete`, which was synced and no unlink had begun for, are there.
async fn check(image: &Image, synced: Option<usize>, complete: Option<usize>, context: &str) {
    let mounted = common::mount(image).await;
    for round in 0..6 {
        for number in 0..12 {
            match mounted.filesystem.read(&name(round, number)).await {
                Ok(found) => {
                    let expected = content(round, number);
                    // A file that was not synced may be short, or end in what was not written yet: never in
                    // others' bytes.
                    let unsynced = synced.is_none_or(|synced| synced < round)
                        && found
                            .iter()
                            .zip(&expected)
                            .all(|(found, expected)| found == expected || *found == 0);
                    assert!(found == expected || unsynced, "{context}: {}", name(round, number));
                }
                Err(error) => {
                    assert_eq!(error.errno(), Errno::ENOENT, "{context}");
                    assert!(complete != Some(round), "{context}: {} is gone", name(round, number));
                }
            }
        }
    }
    mounted.unmount_clean(context).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_moment_of_a_crash_nothing_committed_was_discarded() {
    if !have(TOOLS) {
        return;
    }
    let base = mke2fs_image(&["-b", "1024", "-N", "64", "-J", "size=1"], "4M");
    let device = Arc::new(RecordingDevice::new(base.clone()));
    let filesystem = Filesystem::mount(Arc::clone(&device) as _, discarding()).await.unwrap();
    churn(&filesystem, |moment| device.mark(moment)).await;
    for number in 0..12 {
        assert_eq!(filesystem.read(&name(5, number)).await.unwrap(), content(5, number));
    }
    filesystem.unmount().await.unwrap();
    let recording = device.recording();
    let discard = |event: &Event| matches!(event, Event::Submitted { change: Change::Discard { .. }, .. });
    let places: Vec<usize> =
        (0..recording.events().len()).filter(|place| discard(&recording.events()[*place])).collect();
    let discards = places.len();
    // Sixty files were deleted; neighbours are joined.
    assert!((5..60).contains(&discards), "{discards} discards");
    let cuts: Vec<_> = recording.cuts().collect();
    let step = (cuts.len() / 150).max(1);
    let mut seen = 0;
    for (index, cut) in cuts.iter().enumerate() {
        let near = places.iter().any(|place| (*place..*place + 3).contains(&cut.position()));
        if index % step != 0 && !near {
            continue;
        }
        let synced = (0..6).rev().find(|round| cut.has_passed(&format!("synced {round}")));
        let complete = synced.filter(|round| !cut.has_passed(&format!("unlinking {round}")));
        for (kind, image) in
            [("all", cut.with_all()), ("none", cut.with_none()), ("some", cut.variant(index as u64))]
        {
            let context = format!("cut {index}, {kind}");
            check(&image, synced, complete, &context).await;
            seen += 1;
        }
    }
    eprintln!("{discards} discards, {seen} images");
    assert!(seen > 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn freed_blocks_can_be_used_again_though_the_discard_fails() {
    if !have(TOOLS) {
        return;
    }
    let base = mke2fs_image(&["-b", "1024", "-N", "64", "-J", "size=1", "-m", "0"], "4M");
    let memory = Arc::new(MemoryDevice::from_image(base));
    let device = Arc::new(FaultyDevice::new(Arc::clone(&memory) as Arc<dyn BlockDevice>));
    device.fail_range(Operation::Discard, 0..4 << 20);
    let filesystem = Filesystem::mount(Arc::clone(&device) as _, discarding()).await.unwrap();
    let size = (filesystem.statfs().available_blocks as usize - 200) * 1024;
    // Each takes nearly everything: without the blocks of the one before there is no room.
    for round in 0..4 {
        filesystem.write("/all", vec![round + 1; size]).await.unwrap();
        filesystem.sync().await.unwrap();
        assert_eq!(filesystem.read("/all").await.unwrap(), vec![round + 1; size]);
        filesystem.unlink(InodeNumber::ROOT, b"all").await.unwrap();
    }
    filesystem.unmount().await.unwrap();
    assert!(device.faults_met() > 0);
    assert_clean(&memory.image(), "after discards that failed");
}

#[tokio::test]
async fn discard_is_refused_without_a_journal_and_left_out_where_the_device_has_none() {
    if !have(TOOLS) {
        return;
    }
    let image = mke2fs_image(&["-O", "^has_journal"], "16M");
    let device = Arc::new(MemoryDevice::from_image(image.clone()));
    let error = Filesystem::mount(Arc::clone(&device) as _, discarding()).await.unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
    assert!(error.to_string().contains("discard"), "{error}");
    assert!(device.image().to_vec() == image.to_vec());

    let image = mke2fs_image(&[], "16M");
    let inner = MemoryDevice::from_image(image.clone()).with_geometry(|geometry| geometry.discard = false);
    let device = Arc::new(RecordingDevice::around(Arc::new(inner), image));
    let filesystem = Filesystem::mount(Arc::clone(&device) as _, discarding()).await.unwrap();
    filesystem.write("/f", vec![1; 100_000]).await.unwrap();
    filesystem.sync().await.unwrap();
    filesystem.unlink(InodeNumber::ROOT, b"f").await.unwrap();
    filesystem.unmount().await.unwrap();
    let recording = device.recording();
    let discard = |event: &&Event| matches!(event, Event::Submitted { change: Change::Discard { .. }, .. });
    assert_eq!(recording.events().iter().filter(discard).count(), 0);
}
