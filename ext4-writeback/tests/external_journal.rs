//! A journal on a device of its own: the power goes on both devices at the same moment, whatever each had not
//! flushed is lost or torn, and nothing that had been synced is.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use ext4_core::device::simulated::{Image, RecordingDevice};
use ext4_core::device::{Bio, BlockDevice, Completion, Geometry, MemoryDevice, Operation, Plug};
use ext4_core::environment::SystemEnvironment;
use ext4_core::{Errno, InodeNumber};
use ext4_test_support::tools::{have, mke2fs_image, run};
use ext4_writeback::{Allocation, Credentials, Filesystem, MountOptions};
use ext4_writeback::{ExternalJournal, NewJournalOptions, create_journal};
use parking_lot::Mutex;

const TOOLS: &[&str] = &["mkfs.ext4", "e2fsck", "debugfs"];
const ROOT: InodeNumber = InodeNumber::ROOT;

/// The common clock of two recorded devices: at each moment how many events each had.
#[derive(Debug, Default)]
struct Clock {
    events: [usize; 2],
    moments: Vec<[usize; 2]>,
    /// How many moments there had been when a sync returned.
    promises: Vec<(usize, String)>,
}

/// A recorded device on a common clock. Right only if one thread runs everything.
#[derive(Debug)]
struct Timed {
    recording: Arc<RecordingDevice>,
    clock: Arc<Mutex<Clock>>,
    index: usize,
}

fn tick(clock: &Mutex<Clock>, index: usize, events: usize) {
    let mut clock = clock.lock();
    clock.events[index] += events;
    let now = clock.events;
    clock.moments.push(now);
}

impl BlockDevice for Timed {
    fn geometry(&self) -> &Geometry {
        self.recording.geometry()
    }

    fn submit(&self, plug: Plug) {
        let recorded = plug.iter().filter(|bio| bio.operation != Operation::Read).count();
        if recorded > 0 {
            tick(&self.clock, self.index, recorded);
        }
        let timed = |mut bio: Bio| {
            if bio.operation == Operation::Read {
                return bio;
            }
            let (clock, index, end_io) = (Arc::clone(&self.clock), self.index, bio.end_io);
            bio.end_io = Box::new(move |completion: Completion| {
                tick(&clock, index, 1);
                end_io(completion);
            });
            bio
        };
        self.recording.submit(plug.into_iter().map(timed).collect());
    }
}

/// A file system and its journal device, both in memory.
async fn pair(arguments: &[&str], journal: u64) -> (Image, Image) {
    let memory = Arc::new(MemoryDevice::from_image(mke2fs_image(arguments, "16M")));
    let log = Arc::new(MemoryDevice::new(journal));
    let options =
        NewJournalOptions::new().external(Some(ExternalJournal { device: Arc::clone(&log) as _, number: 0 }));
    create_journal(Arc::clone(&memory) as _, None, &options, Arc::new(SystemEnvironment)).await.unwrap();
    (memory.image(), log.image())
}

async fn mount(image: &Image, log: &Image, read_only: bool) -> ([Arc<MemoryDevice>; 2], Filesystem) {
    let devices = [image, log].map(|image| Arc::new(MemoryDevice::from_image(image.clone())));
    let journal_device = Some(Arc::clone(&devices[1]) as _);
    let options = MountOptions::new().journal_device(journal_device).read_only(read_only);
    let filesystem = Filesystem::mount(Arc::clone(&devices[0]) as _, options).await.unwrap();
    (devices, filesystem)
}

fn e2fsck(arguments: &[&str], image: &Image, log: &Image, accepted: &[i32], context: &str) {
    let directory = tempfile::TempDir::new().unwrap();
    let (path, journal) = (directory.path().join("image"), directory.path().join("journal"));
    image.to_file(&path).unwrap();
    log.to_file(&journal).unwrap();
    let mut all = arguments.to_vec();
    all.extend(["-j", journal.to_str().unwrap(), path.to_str().unwrap()]);
    let output = run("e2fsck", &all);
    assert!(output.status.code().is_some_and(|code| accepted.contains(&code)), "{context}: {output:?}");
}

#[tokio::test]
async fn a_power_cut_on_both_devices_loses_nothing_that_was_synced() {
    power_cuts(Allocation::Unwritten).await;
}

/// The data is flushed before the transaction that maps it is valid on the journal device.
#[tokio::test]
async fn a_power_cut_shows_no_published_block_without_its_data() {
    power_cuts(Allocation::Publish).await;
}

async fn power_cuts(allocation: Allocation) {
    if !have(TOOLS) {
        return;
    }
    // As small as a journal may be, so that it wraps around and is checkpointed.
    let (image, log) = pair(&["-b", "1024"], 1027 << 10).await;
    let recordings = [&image, &log].map(|image| Arc::new(RecordingDevice::new(image.clone())));
    let clock = Arc::new(Mutex::new(Clock::default()));
    let timed = |index: usize| -> Arc<dyn BlockDevice> {
        let (recording, clock) = (Arc::clone(&recordings[index]), Arc::clone(&clock));
        Arc::new(Timed { recording, clock, index })
    };
    let options =
        MountOptions::new().journal_device(Some(timed(1))).commit_interval(None).allocation(allocation);
    let filesystem = Filesystem::mount(timed(0), options).await.unwrap();
    for number in 0..60_u8 {
        let name = format!("/f{number}");
        filesystem.write(&name, vec![number + 1; 2000 + usize::from(number) * 300]).await.unwrap();
        for other in 0..30 {
            let name = format!("d{number}-{other}").into_bytes();
            filesystem.mkdir(ROOT, &name, Credentials::default()).await.unwrap();
        }
        filesystem.sync().await.unwrap();
        let mut clock = clock.lock();
        let moment = clock.moments.len();
        clock.promises.push((moment, name));
    }
    filesystem.unmount().await.unwrap();
    let clock = Arc::into_inner(clock).map(Mutex::into_inner);
    let clock = clock.expect("the devices are let go of");
    let recordings = recordings.map(|recording| recording.recording());
    for (recording, events) in recordings.iter().zip(clock.events) {
        assert_eq!(recording.events().len(), events, "the clock counts what is recorded");
    }
    assert!(recordings[1].flushes() > 60);

    let step = (clock.moments.len() / 120).max(1);
    let (mut images, mut torn, mut promises) = (0, 0, 0);
    for (moment, position) in clock.moments.iter().enumerate().step_by(step) {
        let cuts = [0, 1].map(|index| recordings[index].cut_at(position[index]));
        let seed = moment as u64;
        for kind in 0..3 {
            let [image, log] = [0, 1].map(|index| match kind {
                0 => cuts[index].with_none(),
                1 => cuts[index].variant(seed + index as u64),
                // Each device loses a part of its own.
                _ if (moment + index) % 2 == 0 => cuts[index].with_all(),
                _ => cuts[index].with_none(),
            });
            let context = format!("moment {moment} of {}, kind {kind}", clock.moments.len());
            let mut bytes = [0; 1024];
            image.read(1024, &mut bytes);
            if ext4_core::format::superblock::Superblock::parse(&bytes).is_err() {
                // Torn in the middle of its 1,024 bytes: every ext4 then needs a copy of it.
                torn += 1;
                continue;
            }
            // Only read, then recovered in place.
            let (devices, filesystem) = mount(&image, &log, true).await;
            promises += check(&filesystem, &clock, moment, &context).await;
            filesystem.unmount().await.unwrap();
            assert!(devices[0].image() == image && devices[1].image() == log, "{context}");
            let (devices, filesystem) = mount(&image, &log, false).await;
            check(&filesystem, &clock, moment, &context).await;
            filesystem.unmount().await.unwrap();
            e2fsck(&["-fn"], &devices[0].image(), &devices[1].image(), &[0], &context);
            if moment % 7 == 0 {
                e2fsck(&["-fy"], &image, &log, &[0, 1], &context);
            }
            images += 1;
        }
    }
    println!("{} moments, {images} pairs of images, {torn} torn, {promises} files", clock.moments.len());
    assert!(images > 200 && promises > 10 * images, "{images} pairs of images, {promises} files");
}

/// Fails the test unless what was synced before `moment` is there, whole; what was not may be there in part,
/// without a gap. Returns how many synced files there were.
async fn check(filesystem: &Filesystem, clock: &Clock, moment: usize, context: &str) -> usize {
    let mut checked = 0;
    for (number, (promised, name)) in (0_u8..).zip(&clock.promises) {
        if *promised > moment {
            if let Ok(found) = filesystem.read(name).await {
                assert!(found.iter().all(|byte| *byte == number + 1), "{context}: {name}");
            }
            break;
        }
        let found = filesystem.read(name).await.unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(found, vec![number + 1; 2000 + usize::from(number) * 300], "{context}: {name}");
        let directory = format!("/d{number}-29").into_bytes();
        filesystem.resolve(&directory, false).await.expect(context);
        checked += 1;
    }
    checked
}

#[tokio::test]
async fn a_journal_device_is_asked_for_by_its_uuid_and_must_be_the_right_one() {
    if !have(TOOLS) {
        return;
    }
    let (image, log) = pair(&["-b", "1024"], 2 << 20).await;
    let (_, others) = pair(&["-b", "1024"], 2 << 20).await;
    let device = |image: &Image| Arc::new(MemoryDevice::from_image(image.clone())) as Arc<dyn BlockDevice>;
    let attempt = async |journal: Option<Arc<dyn BlockDevice>>| {
        let options = MountOptions::new().journal_device(journal);
        Filesystem::mount(device(&image), options).await
    };
    let error = attempt(None).await.unwrap_err();
    assert_eq!(error.errno(), Errno::ENXIO);
    assert!(error.to_string().contains("journal_dev"), "{error}");
    let error = attempt(Some(device(&others))).await.unwrap_err();
    assert!(error.to_string().contains("UUID"), "{error}");
    let error = attempt(Some(device(&image))).await.unwrap_err();
    assert!(error.to_string().contains("file system"), "{error}");
    let error = attempt(Some(device(&Image::zeroed(512)))).await.unwrap_err();
    assert!(error.is_corrupt(), "{error}");
    let read_only = MemoryDevice::from_image(log.clone()).with_geometry(|geometry| geometry.read_only = true);
    assert_eq!(attempt(Some(Arc::new(read_only))).await.unwrap_err().errno(), Errno::EROFS);
    // Every bit of both its superblocks: the right journal, or refused.
    for bit in (0..1024 * 8).step_by(13) {
        for block in [1024, 2048] {
            let mut damaged = log.clone();
            let mut byte = [0];
            damaged.read(block + bit / 8, &mut byte);
            byte[0] ^= 1 << (bit % 8);
            damaged.write(block + bit / 8, &byte);
            if let Ok(filesystem) = attempt(Some(device(&damaged))).await {
                filesystem.unmount().await.unwrap();
            }
        }
    }
    attempt(Some(device(&log))).await.unwrap().unmount().await.unwrap();
}
