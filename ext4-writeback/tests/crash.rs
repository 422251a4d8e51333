//! Power cuts at every moment of a sequence of operations on names: what our own recovery and the kernel's
//! checker make of each. The device loses, tears and reorders whatever was not flushed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use ext4_core::device::simulated::{Cut, Image, RecordingDevice};
use ext4_core::device::{BlockDevice, MemoryDevice};
use ext4_core::format::features::Incompat;
use ext4_core::format::superblock::Superblock;
use ext4_core::{Errno, InodeNumber};
use ext4_test_support::tools::{Judged, have, mke2fs_image, run, said};
use ext4_writeback::{Credentials, Filesystem, MountOptions, RenameFlags};

const TOOLS: &[&str] = &["mkfs.ext4", "e2fsck"];
const ROOT: InodeNumber = InodeNumber::ROOT;

/// Mounts what a crash left, calls `look`, unmounts, and has e2fsck judge.
async fn recovered(image: &Image, context: &str, look: impl AsyncFnOnce(&Filesystem)) {
    let mounted = common::mount(image).await;
    look(&mounted.filesystem).await;
    mounted.unmount_clean(context).await;
}

/// Fails the test if e2fsck has anything to mend after its own replay of the journal, orphans excepted.
/// Returns true if there was a journal to replay.
fn assert_replayed_clean(image: &Image, context: &str) -> bool {
    let mut bytes = [0; 1024];
    image.read(1024, &mut bytes);
    if !Superblock::parse(&bytes).is_ok_and(|sb| sb.features.incompat.contains(Incompat::RECOVER)) {
        return false;
    }
    image.in_a_file(|path| {
        // After the replay only orphans may be left, which a mount deletes.
        for arguments in [&["-E", "journal_only", "-fy"][..], &["-fp"]] {
            let arguments = arguments.iter().map(AsRef::as_ref).chain([path.as_os_str()]);
            let output = run("e2fsck", arguments);
            assert!(output.status.code().is_some_and(|code| code <= 1), "{context}: {}", said(&output));
        }
    });
    true
}

/// Every cut of a recording, thinned out to `most`. There must be at least half as many.
async fn every_cut(device: &RecordingDevice, most: usize, mut look: impl AsyncFnMut(&Filesystem, &Cut<'_>)) {
    let recording = device.recording();
    let count = recording.cuts().count();
    assert!(count * 2 >= most, "{count} cuts, about {most} were expected");
    let mut replays = 0;
    for (number, cut) in recording.cuts().step_by(count.div_ceil(most)).enumerate() {
        let seed = number as u64;
        for (kind, image) in [("none", cut.with_none()), ("all", cut.with_all()), ("some", cut.variant(seed))]
        {
            let context = format!("cut at event {} of {count}, {kind} of the uncertain", cut.position());
            recovered(&image, &context, async |filesystem| look(filesystem, &cut).await).await;
            if number % 8 == 0 {
                replays += usize::from(assert_replayed_clean(&image, &context));
            }
        }
    }
    assert!(replays > 0, "e2fsck had no journal to replay");
}

async fn names(filesystem: &Filesystem, directory: InodeNumber) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut position = 0;
    loop {
        let entries = filesystem.readdir(directory, position, 100).await.unwrap();
        let Some(last) = entries.last() else { return names };
        position = last.next;
        names.extend(entries.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()));
    }
}

/// Operations on names become durable in their order: what is found after a cut is the state after some of
/// them, all of those that were synced among them.
#[tokio::test]
async fn names_are_durable_in_their_order() {
    if !have(TOOLS) {
        return;
    }
    for arguments in [&["-b", "1024"][..], &["-O", "orphan_file"], &["-O", "^metadata_csum,^64bit"]] {
        let device = Arc::new(RecordingDevice::new(mke2fs_image(arguments, "16M")));
        let options = MountOptions::new().commit_interval(None);
        let filesystem = Filesystem::mount(Arc::clone(&device) as _, options).await.unwrap();
        for number in 0..60_u32 {
            // Name `number` comes, name `number - 4` goes: one in each way there is.
            let (new, old) = (format!("n{number:03}"), format!("n{:03}", number.wrapping_sub(4)));
            let target = vec![b't'; 40 + number as usize];
            let owner = Credentials::default();
            let made = match number % 4 {
                0 => filesystem.mkdir(ROOT, new.as_bytes(), owner).await.map(drop),
                1 => filesystem.symlink(ROOT, new.as_bytes(), &target, owner).await.map(drop),
                _ => filesystem.create(ROOT, new.as_bytes(), owner).await.map(drop),
            };
            made.unwrap();
            if number >= 4 {
                match number % 4 {
                    0 => filesystem.rmdir(ROOT, old.as_bytes()).await.unwrap(),
                    _ => filesystem.unlink(ROOT, old.as_bytes()).await.unwrap(),
                }
            }
            if number % 7 == 6 {
                filesystem.fsync(ROOT).await.unwrap();
                device.mark(number.to_string());
            }
        }
        filesystem.unmount().await.unwrap();
        let mut compared = 0;
        every_cut(&device, 40, async |filesystem, cut| {
            let found: Vec<u32> = names(filesystem, ROOT)
                .await
                .iter()
                .filter_map(|name| name.strip_prefix('n')?.parse().ok())
                .collect();
            let Some((first, last)) = found.first().zip(found.last()) else {
                assert!(cut.marks().next().is_none(), "synced names are gone");
                return;
            };
            assert_eq!(found, (*first..=*last).collect::<Vec<_>>());
            assert!((4..=5).contains(&found.len()) || *first == 0, "{found:?}");
            let synced = cut.marks().filter_map(|mark| mark.parse::<u32>().ok()).max();
            assert!(synced.is_none_or(|synced| *last >= synced), "{found:?} after {synced:?} was synced");
            compared += usize::from(synced.is_some());
        })
        .await;
        assert!(compared > 30, "{compared} states behind a sync");
    }
}

/// A file that is renamed over another is there whole, whatever the moment: the old content or the new one.
#[tokio::test]
async fn replacing_a_file_by_renaming_is_all_or_nothing() {
    if !have(TOOLS) {
        return;
    }
    let device = Arc::new(RecordingDevice::new(mke2fs_image(&[], "16M")));
    let filesystem = Filesystem::mount(Arc::clone(&device) as _, MountOptions::default()).await.unwrap();
    filesystem.write("/config", vec![1; 9000]).await.unwrap();
    filesystem.sync().await.unwrap();
    device.mark("written");
    for version in 2..12_u8 {
        filesystem.write("/new", vec![version; 9000]).await.unwrap();
        filesystem.rename((ROOT, b"new"), (ROOT, b"config"), RenameFlags::default()).await.unwrap();
        if version % 3 == 0 {
            filesystem.sync().await.unwrap();
        }
    }
    filesystem.unmount().await.unwrap();
    let mut compared = 0;
    every_cut(&device, 50, async |filesystem, cut| {
        if cut.has_passed("written") {
            compared += 1;
            let content = filesystem.read("/config").await.unwrap();
            assert_eq!(content.len(), 9000);
            assert!(content[0] > 0 && content.iter().all(|byte| *byte == content[0]), "torn");
        }
    })
    .await;
    assert!(compared > 30, "{compared} states with the file");
}

/// Directories that move while the power goes: each is in one place.
#[tokio::test]
async fn a_moved_directory_is_in_one_place() {
    if !have(TOOLS) {
        return;
    }
    let device = Arc::new(RecordingDevice::new(mke2fs_image(&["-b", "1024"], "16M")));
    let filesystem = Filesystem::mount(Arc::clone(&device) as _, MountOptions::default()).await.unwrap();
    let owner = Credentials::default();
    let left = filesystem.mkdir(ROOT, b"left", owner).await.unwrap();
    let right = filesystem.mkdir(ROOT, b"right", owner).await.unwrap();
    let moved = filesystem.mkdir(left, b"moved", owner).await.unwrap();
    filesystem.create(moved, b"inside", owner).await.unwrap();
    filesystem.sync().await.unwrap();
    device.mark("made");
    for round in 0..12 {
        let (from, to) = if round % 2 == 0 { (left, right) } else { (right, left) };
        let flags = RenameFlags::default();
        filesystem.rename((from, b"moved"), (to, b"moved"), flags).await.unwrap();
        if round % 4 == 3 {
            filesystem.sync().await.unwrap();
        }
    }
    filesystem.unmount().await.unwrap();
    let mut compared = 0;
    every_cut(&device, 40, async |filesystem, cut| {
        if !cut.has_passed("made") {
            return;
        }
        compared += 1;
        let mut places = Vec::new();
        for directory in [left, right] {
            match filesystem.lookup(directory, b"moved").await {
                Ok(found) => {
                    assert_eq!(found, moved);
                    places.push(directory);
                }
                Err(error) => assert_eq!(error.errno(), Errno::ENOENT),
            }
        }
        assert_eq!(places.len(), 1);
        assert_eq!(filesystem.lookup(moved, b"..").await.unwrap(), places[0]);
        filesystem.lookup(moved, b"inside").await.unwrap();
    })
    .await;
    assert!(compared > 20, "{compared} states with the directory");
}

/// The power goes again while orphans are being deleted.
#[tokio::test]
async fn a_second_crash_during_recovery_does_no_harm() {
    if !have(TOOLS) {
        return;
    }
    for orphans in ["orphan_file", "^orphan_file"] {
        let mounted = common::mount(&mke2fs_image(&["-b", "1024", "-O", orphans], "32M")).await;
        let filesystem = mounted.filesystem.clone();
        let mut open = Vec::new();
        for number in 0..6 {
            let path = format!("/f{number}");
            filesystem.write(&path, vec![7; 300_000]).await.unwrap();
            open.push(filesystem.open_path(&path).await.unwrap());
            filesystem.unlink(ROOT, &path.as_bytes()[1..]).await.unwrap();
        }
        filesystem.sync().await.unwrap();
        let image = mounted.device.image();
        drop((open, filesystem, mounted));

        let device = Arc::new(RecordingDevice::around(
            Arc::new(MemoryDevice::from_image(image.clone())) as Arc<dyn BlockDevice>,
            image,
        ));
        let filesystem = Filesystem::mount(Arc::clone(&device) as _, MountOptions::default()).await.unwrap();
        let free = filesystem.statfs();
        filesystem.unmount().await.unwrap();
        every_cut(&device, 30, async |filesystem, _| {
            assert_eq!(filesystem.statfs().free_inodes, free.free_inodes);
            filesystem.sync().await.unwrap();
            assert_eq!(filesystem.statfs().free_blocks, free.free_blocks);
        })
        .await;
    }
}
