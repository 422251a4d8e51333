//! Errors of the device and contradictions on it: what stops, what is recorded, what the next mount finds.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::ops::Range;
use std::sync::Arc;

use ext4_core::device::simulated::{Change, Event, Fault, FaultyDevice, Image, RecordingDevice, Trigger};
use ext4_core::device::{BlockDevice, MemoryDevice, Operation};
use ext4_core::format::features::Incompat;
use ext4_core::format::superblock::{STATE_ERROR, Superblock};
use ext4_core::{Errno, InodeNumber};
use ext4_test_support::tools::{assert_clean, debugfs, have, mke2fs_image};
use ext4_writeback::{Credentials, FallocateMode, Filesystem, MountOptions, OnError, SetAttributes};

const TOOLS: &[&str] = &["mkfs.ext4", "e2fsck", "debugfs"];
const ROOT: InodeNumber = InodeNumber::ROOT;

fn superblock(image: &Image) -> Superblock {
    let mut bytes = [0; 1024];
    image.read(1024, &mut bytes);
    Superblock::parse(&bytes).unwrap()
}

/// The bytes of an image that are its journal's, which is one run.
fn log_range(image: &Image) -> Range<u64> {
    let size = u64::from(superblock(image).block_size.bytes());
    let blocks: Vec<u64> =
        debugfs(image, "blocks <8>").split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let (first, last) = (blocks[0], blocks[blocks.len() - 1]);
    assert_eq!(last - first + 1, blocks.len() as u64, "the journal is one run");
    first * size..(last + 1) * size
}

/// Mount options without timers, so that the number of writes is the same each time.
fn quiet() -> MountOptions {
    MountOptions::new().commit_interval(None)
}

/// A device that fails on purpose under one that records.
struct Rig {
    memory: Arc<MemoryDevice>,
    faulty: Arc<FaultyDevice>,
    recording: Arc<RecordingDevice>,
    filesystem: Filesystem,
}

async fn rig(image: &Image, options: MountOptions) -> Rig {
    // Sectors of 1 KiB: a superblock is written whole or not at all.
    let memory = MemoryDevice::from_image(image.clone());
    let memory = Arc::new(memory.with_geometry(|geometry| {
        geometry.logical_block_size = 1024;
        geometry.discard = true;
    }));
    let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as Arc<dyn BlockDevice>));
    let inner = Arc::clone(&faulty) as Arc<dyn BlockDevice>;
    let recording = Arc::new(RecordingDevice::around(inner, image.clone()));
    let device = Arc::clone(&recording) as Arc<dyn BlockDevice>;
    let filesystem = Filesystem::mount(device, options).await.unwrap();
    Rig { memory, faulty, recording, filesystem }
}

impl Rig {
    async fn mkdir(&self, name: &str) -> ext4_core::Result<InodeNumber> {
        self.filesystem.mkdir(ROOT, name.as_bytes(), Credentials::default()).await
    }

    /// After the first bio that failed nothing goes to the log but its superblock, and that once.
    fn assert_log_is_left_alone(&self, log: &Range<u64>, block_size: u64, context: &str) {
        let recording = self.recording.recording();
        let failed = |event: &Event| matches!(event, Event::Completed { success: false, .. });
        let first = recording.events().iter().position(failed).expect("a bio has failed");
        let mut superblocks = 0;
        for event in &recording.events()[first..] {
            let Event::Submitted { change: Change::Write { offset, data }, .. } = event else { continue };
            if *offset < log.end && log.start < offset + data.len() as u64 {
                assert_eq!(
                    (*offset, data.len() as u64),
                    (log.start, block_size),
                    "{context}: a write to the log"
                );
                superblocks += 1;
            }
        }
        assert!(superblocks <= 1, "{context}: the journal superblock was written {superblocks} times");
    }
}

/// Whatever write or flush fails, and however: fsync says so each time, what it had made durable is there
/// after recovery, the file system is clean, and says what happened.
#[tokio::test]
async fn each_write_and_flush_that_fails_stops_everything_and_loses_nothing_that_was_durable() {
    if !have(TOOLS) {
        return;
    }
    let image = mke2fs_image(&["-b", "1024", "-J", "size=1"], "16M");
    let log = log_range(&image);
    let faults = [
        (Operation::Write, Fault::Fail(Errno::EIO)),
        (Operation::Write, Fault::Torn),
        (Operation::Write, Fault::FailAfterwards),
        (Operation::Flush, Fault::Fail(Errno::EIO)),
    ];
    for (operation, fault) in faults {
        let mut met = 0;
        for skip in 0..200 {
            let context = format!("{operation:?} number {skip}: {fault:?}");
            let rig = rig(&image, quiet()).await;
            rig.mkdir("durable").await.unwrap();
            rig.filesystem.sync().await.unwrap();
            rig.faulty.inject(Trigger::Nth { operation: Some(operation), skip }, fault);
            let mut promised = vec!["durable".to_owned()];
            let mut stopped = false;
            for number in 0..4 {
                let name = format!("d{number}");
                if rig.mkdir(&name).await.is_err() {
                    stopped = true;
                    break;
                }
                if rig.filesystem.sync().await.is_err() {
                    // A flush alone that fails does not stop the journal: the next may succeed.
                    stopped = rig.filesystem.fsync(ROOT).await.is_err();
                    break;
                }
                promised.push(name);
            }
            if stopped {
                for _ in 0..3 {
                    rig.filesystem.fsync(ROOT).await.expect_err(&context);
                    rig.filesystem.sync().await.expect_err(&context);
                }
                let error = rig.mkdir("late").await.expect_err(&context);
                assert_eq!(error.errno(), Errno::EROFS, "{context}: {error}");
                rig.filesystem.lookup(ROOT, b"durable").await.unwrap();
            }
            let unmounted = rig.filesystem.clone().unmount().await;
            assert!(!stopped || unmounted.is_err(), "{context}");
            if rig.faulty.faults_met() == 0 {
                // There are no more writes than that.
                break;
            }
            met += 1;
            if operation == Operation::Write || stopped {
                rig.assert_log_is_left_alone(&log, 1024, &context);
            }
            let crashed = rig.memory.image();
            if stopped {
                let found = superblock(&crashed);
                assert_eq!(found.state & STATE_ERROR, STATE_ERROR, "{context}");
                assert_eq!((found.error_count, found.first_error.code), (1, 2), "{context}");
                assert!(found.first_error.function.starts_with(b"journal\0"), "{context}");
                assert!(found.features.incompat.contains(Incompat::RECOVER), "{context}");
            }
            drop(rig);
            let mounted = common::mount(&crashed).await;
            for name in &promised {
                mounted.filesystem.lookup(ROOT, name.as_bytes()).await.expect(&context);
            }
            let found = mounted.filesystem.superblock();
            assert_eq!(found.state & STATE_ERROR != 0, stopped || found.error_count > 0, "{context}");
            assert!(!stopped || found.error_count == 1, "{context}: the record survives recovery");
            mounted.filesystem.unmount().await.unwrap();
            let mut recovered = mounted.device.image();
            clear_errors(&mut recovered);
            assert_clean(&recovered, &context);
        }
        assert!(met >= 5, "{operation:?}: only {met} were met");
        eprintln!("{operation:?} {fault:?}: {met} failures");
    }
}

/// Takes the error out of the superblock, which e2fsck would find: that it is recorded was looked at before.
fn clear_errors(image: &mut Image) {
    let mut superblock = superblock(image);
    superblock.state &= !STATE_ERROR;
    superblock.error_count = 0;
    superblock.first_error = Default::default();
    superblock.last_error = Default::default();
    image.write(1024, &superblock.to_bytes());
}

#[tokio::test]
async fn a_failed_data_write_stops_the_journal_only_if_asked() {
    if !have(TOOLS) {
        return;
    }
    let image = mke2fs_image(&["-b", "1024"], "16M");
    let log = log_range(&image);
    for aborts in [false, true] {
        let rig = rig(&image, quiet().data_error_aborts(aborts)).await;
        let inode = rig.filesystem.create(ROOT, b"f", Credentials::default()).await.unwrap();
        let file = rig.filesystem.open(inode).await.unwrap();
        file.write_at(0, &[1; 50_000]).await.unwrap();
        // The data goes first.
        rig.faulty.fail_nth(Operation::Write, 0);
        file.sync_all().await.unwrap_err();
        drop(file);
        assert_eq!(rig.faulty.faults_met(), 1);
        assert_eq!(rig.mkdir("d").await.is_err(), aborts);
        assert_eq!(rig.filesystem.fsync(ROOT).await.is_err(), aborts);
        assert_eq!(rig.filesystem.fsync(ROOT).await.is_err(), aborts);
        assert_eq!(rig.filesystem.clone().unmount().await.is_err(), aborts);
        if aborts {
            rig.assert_log_is_left_alone(&log, 1024, "data_err=abort");
        }
        let image = rig.memory.image();
        let found = superblock(&image);
        assert_eq!(found.error_count, u32::from(aborts));
        let mounted = common::mount(&image).await;
        mounted.filesystem.unmount().await.unwrap();
        let mut image = mounted.device.image();
        clear_errors(&mut image);
        assert_clean(&image, "after a failed data write");
    }
}

/// The only block of the directory `d` in bytes, and the image.
async fn directory() -> (Image, Range<u64>) {
    let mounted = common::mount(&mke2fs_image(&["-b", "1024"], "16M")).await;
    let directory = mounted.filesystem.mkdir(ROOT, b"d", Credentials::default()).await.unwrap();
    mounted.filesystem.create(directory, b"f", Credentials::default()).await.unwrap();
    mounted.filesystem.write("/kept", vec![4; 5000]).await.unwrap();
    let image = mounted.unmount_clean("before the damage").await;
    let blocks = debugfs(&image, "blocks /d");
    let block: u64 = blocks.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    (image, block * 1024..(block + 1) * 1024)
}

#[tokio::test]
async fn metadata_that_cannot_be_read_is_recorded_and_data_that_cannot_is_not() {
    if !have(TOOLS) {
        return;
    }
    let (image, block) = directory().await;
    let rig = rig(&image, quiet().errors(Some(OnError::Continue))).await;
    let directory = rig.filesystem.lookup(ROOT, b"d").await.unwrap();
    rig.faulty.fail_range(Operation::Read, block);
    assert_eq!(rig.filesystem.lookup(directory, b"f").await.unwrap_err().errno(), Errno::EIO);
    rig.faulty.heal();
    rig.faulty.fail_range(Operation::Read, 0..16 << 20);
    assert_eq!(rig.filesystem.read("/kept").await.unwrap_err().errno(), Errno::EIO);
    rig.faulty.heal();
    rig.mkdir("goes on").await.unwrap();
    rig.filesystem.clone().unmount().await.unwrap();
    let mut image = rig.memory.image();
    let found = superblock(&image);
    assert_eq!((found.error_count, found.first_error.code, found.first_error.inode), (1, 2, directory.0));
    assert!(found.first_error.function.starts_with(b"lookup\0"));
    clear_errors(&mut image);
    assert_clean(&image, "after a read error");
}

#[tokio::test]
async fn errors_panic_poisons_the_file_system_and_not_the_process() {
    if !have(TOOLS) {
        return;
    }
    let (mut image, block) = directory().await;
    image.fill(block.start + 8, 8, 0x55);
    let rig = rig(&image, quiet().errors(Some(OnError::Panic))).await;
    let filesystem = &rig.filesystem;
    let directory = filesystem.lookup(ROOT, b"d").await.unwrap();
    let file = filesystem.open(filesystem.resolve(b"/kept", false).await.unwrap()).await.unwrap();
    assert!(filesystem.lookup(directory, b"f").await.unwrap_err().is_corrupt());
    let mut buffer = [0; 10];
    let errors = [
        filesystem.lookup(ROOT, b"kept").await.unwrap_err(),
        filesystem.readdir(ROOT, 0, 10).await.unwrap_err(),
        filesystem.attributes(ROOT).await.unwrap_err(),
        filesystem.read("/kept").await.unwrap_err(),
        filesystem.sync().await.unwrap_err(),
        filesystem.fsync(ROOT).await.unwrap_err(),
        rig.mkdir("late").await.unwrap_err(),
        file.read_at(0, &mut buffer).await.map(drop).unwrap_err(),
        file.write_at(0, &buffer).await.map(drop).unwrap_err(),
        file.sync_all().await.unwrap_err(),
        file.extents().await.map(drop).unwrap_err(),
        file.set_len(0).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.errno(), Errno::EIO, "{error}");
    }
    let error = filesystem.lookup(ROOT, b"kept").await.unwrap_err();
    assert!(error.to_string().contains("errors=panic"), "{error}");
    drop(file);
    rig.filesystem.clone().unmount().await.unwrap_err();
    let found = superblock(&rig.memory.image());
    assert_eq!((found.error_count, found.first_error.code, found.first_error.inode), (1, 5, directory.0));
    assert_eq!(found.state & STATE_ERROR, STATE_ERROR);
}

/// The mount option goes before the superblock, and a journal that stops poisons too.
#[tokio::test]
async fn a_journal_that_stops_poisons_where_errors_is_panic() {
    if !have(TOOLS) {
        return;
    }
    let image = mke2fs_image(&["-b", "1024", "-e", "panic"], "16M");
    for (errors, poisoned) in [(None, true), (Some(OnError::Continue), false)] {
        let rig = rig(&image, quiet().errors(errors)).await;
        rig.mkdir("d").await.unwrap();
        rig.faulty.fail_nth(Operation::Write, 0);
        rig.filesystem.sync().await.unwrap_err();
        assert_eq!(rig.filesystem.lookup(ROOT, b"d").await.is_err(), poisoned);
        rig.mkdir("e").await.unwrap_err();
        rig.filesystem.clone().unmount().await.unwrap_err();
        assert_eq!(superblock(&rig.memory.image()).error_count, 1);
    }
}

#[tokio::test]
async fn without_a_journal_a_contradiction_stops_what_it_is_to_stop() {
    if !have(TOOLS) {
        return;
    }
    let mounted = common::mount(&mke2fs_image(&["-O", "^has_journal", "-b", "1024"], "16M")).await;
    let directory = mounted.filesystem.mkdir(ROOT, b"d", Credentials::default()).await.unwrap();
    mounted.filesystem.create(directory, b"f", Credentials::default()).await.unwrap();
    let mut image = mounted.unmount_clean("before the damage").await;
    let blocks = debugfs(&image, "blocks /d");
    let block: u64 = blocks.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    image.fill(block * 1024 + 8, 8, 0x55);
    let rig = rig(&image, quiet().errors(Some(OnError::RemountReadOnly))).await;
    assert!(rig.filesystem.lookup(directory, b"f").await.unwrap_err().is_corrupt());
    assert_eq!(rig.mkdir("late").await.unwrap_err().errno(), Errno::EROFS);
    rig.filesystem.lookup(ROOT, b"d").await.unwrap();
    rig.filesystem.clone().unmount().await.unwrap_err();
    let found = superblock(&rig.memory.image());
    assert_eq!((found.error_count, found.first_error.code, found.first_error.inode), (1, 5, directory.0));
}

fn continues() -> MountOptions {
    quiet().errors(Some(OnError::Continue))
}

/// An image whose file `f` has 20 blocks of 1 KiB, the last eight behind an indirect block, and the bytes of
/// that block.
async fn file_with_indirect_block() -> (Image, Range<u64>) {
    let mounted = common::mount(&mke2fs_image(&["-b", "1024", "-O", "^extents,^64bit"], "16M")).await;
    mounted.filesystem.write("/f", vec![4; 20 << 10]).await.unwrap();
    let image = mounted.unmount_clean("before the damage").await;
    let listed = debugfs(&image, "stat /f");
    let (_, indirect) = listed.split_once("(IND):").expect("there is an indirect block");
    let block: u64 = indirect.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
    (image, block << 10..(block + 1) << 10)
}

/// Unmounts, and returns the findings that the superblock has: how many, the first one's code and its
/// function.
async fn findings(rig: Rig) -> (u32, u8, String) {
    rig.faulty.heal();
    rig.filesystem.clone().unmount().await.unwrap();
    let found = superblock(&rig.memory.image());
    let function = found.first_error.function.split(|byte| *byte == 0).next().unwrap();
    (found.error_count, found.first_error.code, String::from_utf8_lossy(function).into_owned())
}

/// Operations that are not named after reading read data, too: the block that a new end or a hole leaves a
/// part of.
#[tokio::test]
async fn a_failed_read_of_data_is_no_finding_in_whatever_operation() {
    if !have(TOOLS) {
        return;
    }
    let mounted = common::mount(&mke2fs_image(&["-b", "1024"], "16M")).await;
    mounted.filesystem.write("/f", vec![4; 20 << 10]).await.unwrap();
    let image = mounted.unmount_clean("before").await;
    let blocks: Vec<u64> =
        debugfs(&image, "blocks /f").split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert_eq!(blocks.len(), 20, "data blocks only: {blocks:?}");
    let rig = rig(&image, continues()).await;
    let inode = rig.filesystem.resolve(b"/f", false).await.unwrap();
    let file = rig.filesystem.open(inode).await.unwrap();
    for block in blocks {
        rig.faulty.fail_range(Operation::Read, block << 10..(block + 1) << 10);
    }
    let size = SetAttributes::new().size(5000);
    let failed = [
        rig.filesystem.set_attributes(inode, &size).await,
        file.set_len(5000).await,
        file.fallocate(FallocateMode::PunchHole, 100, 200).await,
        file.fallocate(FallocateMode::ZeroRange, 100, 5000).await,
        file.write_at(100, &[1]).await.map(drop),
        file.read_at(0, &mut [0; 10]).await.map(drop),
    ];
    for (number, result) in failed.into_iter().enumerate() {
        assert_eq!(result.unwrap_err().errno(), Errno::EIO, "operation {number}");
    }
    drop(file);
    assert_eq!(findings(rig).await.0, 0);
}

#[tokio::test]
async fn metadata_that_cannot_be_read_is_a_finding_in_read_and_fsync_too() {
    if !have(TOOLS) {
        return;
    }
    let (image, indirect) = file_with_indirect_block().await;
    let rig_of_read = rig(&image, continues()).await;
    rig_of_read.faulty.fail_range(Operation::Read, indirect.clone());
    assert_eq!(rig_of_read.filesystem.read("/f").await.unwrap_err().errno(), Errno::EIO);
    assert_eq!(findings(rig_of_read).await, (1, 2, "read".to_owned()));

    // fsync of an inode that is not in memory reads its block of the inode table: far behind those that mount
    // reads.
    let mounted = common::mount(&mke2fs_image(&["-b", "1024"], "16M")).await;
    let mut last = ROOT;
    for number in 0..500 {
        let name = format!("f{number}");
        last = mounted.filesystem.create(ROOT, name.as_bytes(), Credentials::default()).await.unwrap();
    }
    let image = mounted.unmount_clean("before").await;
    let rig_of_fsync = rig(&image, continues()).await;
    rig_of_fsync.faulty.fail_range(Operation::Read, 0..16 << 20);
    assert_eq!(rig_of_fsync.filesystem.fsync(last).await.unwrap_err().errno(), Errno::EIO);
    assert_eq!(findings(rig_of_fsync).await, (1, 2, "fsync".to_owned()));
}

#[tokio::test]
async fn metadata_that_contradicts_itself_is_a_finding_in_read_too() {
    if !have(TOOLS) {
        return;
    }
    let (mut image, indirect) = file_with_indirect_block().await;
    image.fill(indirect.start, 1024, 0xfe);
    let rig = rig(&image, continues()).await;
    assert!(rig.filesystem.read("/f").await.unwrap_err().is_corrupt());
    assert_eq!(findings(rig).await, (1, 5, "read".to_owned()));
}

#[tokio::test]
async fn a_failed_discard_and_a_failed_flush_are_no_findings() {
    if !have(TOOLS) {
        return;
    }
    let rig = rig(&mke2fs_image(&["-b", "1024"], "16M"), continues()).await;
    rig.faulty.fail_nth(Operation::Discard, 0);
    assert_eq!(rig.filesystem.trim(0..u64::MAX, 0).await.unwrap_err().errno(), Errno::EIO);
    // Nothing is left to be committed: fsync only flushes.
    rig.filesystem.sync().await.unwrap();
    rig.faulty.fail_nth(Operation::Flush, 0);
    assert_eq!(rig.filesystem.fsync(ROOT).await.unwrap_err().errno(), Errno::EIO);
    assert_eq!(rig.faulty.faults_met(), 2);
    assert_eq!(findings(rig).await.0, 0);
}
