//! Adding, removing and resizing a journal: what is there afterwards, and at whatever moment the power goes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use ext4_core::device::simulated::{Image, RecordingDevice};
use ext4_core::device::{BlockDevice, MemoryDevice};
use ext4_core::environment::SystemEnvironment;
use ext4_core::format::features::{Compat, Incompat};
use ext4_core::format::superblock::{STATE_VALID, Superblock};
use ext4_core::{Errno, InodeNumber};
use ext4_test_support::tools::{Judged, assert_clean, have, mke2fs_image, run, run_ok};
use ext4_writeback::{Credentials, Filesystem, MountOptions};
use ext4_writeback::{ExternalJournal, NewJournalOptions, create_journal, remove_journal};

const TOOLS: &[&str] = &["mkfs.ext4", "e2fsck", "debugfs", "dumpe2fs"];

fn superblock(image: &Image) -> Superblock {
    let mut bytes = [0; 1024];
    image.read(1024, &mut bytes);
    Superblock::parse(&bytes).unwrap()
}

fn has_journal(image: &Image) -> bool {
    superblock(image).features.compat.contains(Compat::HAS_JOURNAL)
}

async fn create(device: &Arc<dyn BlockDevice>, options: NewJournalOptions) -> ext4_core::Result<()> {
    create_journal(Arc::clone(device), None, &options, Arc::new(SystemEnvironment)).await
}

async fn remove(device: &Arc<dyn BlockDevice>, force: bool) -> ext4_core::Result<()> {
    remove_journal(Arc::clone(device), None, force, Arc::new(SystemEnvironment)).await
}

/// An image with a few files in it.
async fn filled(arguments: &[&str], size: &str) -> Image {
    let mounted = common::mount(&mke2fs_image(arguments, size)).await;
    mounted.filesystem.mkdir(InodeNumber::ROOT, b"d", Credentials::default()).await.unwrap();
    mounted.filesystem.write("/d/f", vec![5; 100_000]).await.unwrap();
    mounted.unmount_clean("filled").await
}

/// The journal works: something is committed, the power goes, it is recovered.
async fn assert_works(image: &Image, context: &str) {
    assert_clean(image, context);
    let mounted = common::mount(image).await;
    assert_eq!(mounted.filesystem.read("/d/f").await.unwrap(), vec![5; 100_000], "{context}");
    mounted.filesystem.mkdir(InodeNumber::ROOT, b"new", Credentials::default()).await.unwrap();
    mounted.filesystem.sync().await.unwrap();
    let crashed = mounted.crash();
    let mounted = common::mount(&crashed).await;
    mounted.filesystem.lookup(InodeNumber::ROOT, b"new").await.unwrap();
    mounted.unmount_clean(context).await;
}

fn journal_lines(image: &Image) -> Vec<String> {
    let shown = image.in_a_file(|path| run_ok("dumpe2fs", ["-h".as_ref(), path.as_os_str()]));
    // The size with its unit, and how many blocks.
    shown.lines().filter(|line| line.contains("ournal")).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_journal_is_added_resized_and_removed() {
    if !have(TOOLS) {
        return;
    }
    for arguments in [
        &["-b", "1024", "-O", "^has_journal"][..],
        &["-b", "4096", "-O", "^has_journal,^64bit,^metadata_csum"],
        &["-b", "4096", "-O", "orphan_file"],
        &["-b", "2048", "-O", "^has_journal,^resize_inode,meta_bg", "-g", "2048"],
    ] {
        let context = format!("{arguments:?}");
        let before = filled(arguments, "64M").await;
        let memory = Arc::new(MemoryDevice::from_image(before.clone()));
        let device = Arc::clone(&memory) as Arc<dyn BlockDevice>;
        let free = superblock(&before).free_blocks_count;

        create(&device, NewJournalOptions::default()).await.unwrap();
        let added = memory.image();
        assert!(has_journal(&added) && superblock(&added).state == STATE_VALID, "{context}");
        assert_works(&added, &format!("{context}: added")).await;

        let blocks = 2048;
        let options = NewJournalOptions::new().blocks(Some(blocks)).fast_commit_blocks(512);
        create(&device, options).await.unwrap();
        let resized = memory.image();
        assert!(superblock(&resized).features.compat.contains(Compat::FAST_COMMIT), "{context}");
        let lines = journal_lines(&resized);
        assert!(
            lines.iter().any(|line| line.starts_with("Total journal blocks:") && line.ends_with(" 2560")),
            "{lines:?}"
        );
        assert_clean(&resized, &format!("{context}: resized"));

        remove(&device, false).await.unwrap();
        let removed = memory.image();
        assert!(!has_journal(&removed) && superblock(&removed).jnl_blocks == [0; 17], "{context}");
        assert_clean(&removed, &format!("{context}: removed"));
        if !has_journal(&before) {
            assert_eq!(superblock(&removed).free_blocks_count, free, "{context}");
        }
        assert_eq!(remove(&device, false).await.unwrap_err().errno(), Errno::EINVAL);
        let mounted = common::mount(&removed).await;
        assert_eq!(mounted.filesystem.read("/d/f").await.unwrap(), vec![5; 100_000]);
        mounted.unmount_clean(&format!("{context}: without a journal")).await;

        // As large as mke2fs makes it, and in the same form.
        if arguments == ["-b", "1024", "-O", "^has_journal"] {
            let theirs = mke2fs_image(&["-b", "1024"], "64M");
            let size = |image: &Image| {
                let lines = journal_lines(image);
                lines.into_iter().filter(|line| line.starts_with("Total journal")).collect::<Vec<_>>()
            };
            assert_eq!(size(&added), size(&theirs));
        }
    }
}

/// At every moment of adding, resizing and removing, what the device may hold is a file system with all its
/// files: with the journal, or without one; if it is neither yet, `e2fsck -p` puts it right without a
/// question.
#[tokio::test]
async fn whatever_the_moment_of_a_crash_the_file_system_is_whole() {
    if !have(TOOLS) {
        return;
    }
    let bare = filled(&["-b", "1024", "-O", "^has_journal"], "16M").await;
    let with_journal = filled(&["-b", "1024"], "16M").await;
    let with_orphan_file = filled(&["-b", "1024", "-O", "orphan_file"], "16M").await;
    let small = NewJournalOptions::new().blocks(Some(1024));
    for (what, image) in [
        ("add", &bare),
        ("resize", &with_journal),
        ("remove", &with_journal),
        ("resize", &with_orphan_file),
        ("remove", &with_orphan_file),
    ] {
        let recorder = Arc::new(RecordingDevice::new(image.clone()));
        let device = Arc::clone(&recorder) as Arc<dyn BlockDevice>;
        match what {
            "remove" => remove(&device, false).await.unwrap(),
            _ => create(&device, small.clone()).await.unwrap(),
        }
        let recording = recorder.recording();
        let (mut clean, mut mended, mut torn) = (0, 0, 0);
        let cuts: Vec<_> = recording.cuts().collect();
        for (index, cut) in cuts.iter().enumerate() {
            let mut images = vec![cut.with_all(), cut.with_none()];
            images.extend((0..3).map(|seed| cut.variant(seed)));
            for image in images {
                let context = format!("{what}, cut {index} of {}", cuts.len());
                let mut bytes = [0; 1024];
                image.read(1024, &mut bytes);
                if Superblock::parse(&bytes).is_err() {
                    // Torn in the middle of its 1,024 bytes: every ext4 then needs a copy of it.
                    torn += 1;
                    continue;
                }
                let directory = tempfile::TempDir::new().unwrap();
                let path = directory.path().join("image");
                image.to_file(&path).unwrap();
                let path = path.to_str().unwrap();
                if superblock(&image).features.incompat.contains(Incompat::RECOVER) {
                    // The crash of a mounted file system: its orphan file is taken away while it has a
                    // journal.
                    let checked = run("e2fsck", ["-p", path]);
                    assert!(matches!(checked.status.code(), Some(0 | 1)), "{context}: {checked:?}");
                }
                if run("e2fsck", ["-fn", path]).status.success() {
                    clean += 1;
                } else {
                    // Not marked as valid, and journal-less: a checker sees to it, and asks nothing.
                    let found = superblock(&image);
                    assert!(!has_journal(&image) && found.state & STATE_VALID == 0, "{context}");
                    // Twice: of an orphan file without a journal the first run clears the inode, the second
                    // its bit.
                    for arguments in [["-p", path], ["-fp", path]] {
                        let checked = run("e2fsck", arguments);
                        assert!(matches!(checked.status.code(), Some(0 | 1)), "{context}: {checked:?}");
                    }
                    assert_clean(std::path::Path::new(path), &context);
                    mended += 1;
                }
                // Ours mounts what is there, mended or not.
                let mounted = common::mount(&image).await;
                assert_eq!(mounted.filesystem.read("/d/f").await.unwrap(), vec![5; 100_000], "{context}");
                mounted.filesystem.unmount().await.unwrap();
            }
        }
        let seen = format!(
            "{what}: {} cuts, {clean} images clean, {mended} mended by e2fsck -p, {torn} superblocks torn",
            cuts.len()
        );
        println!("{seen}");
        assert!(clean > 4 && torn * 2 < clean + mended, "{seen}");
    }
}

#[tokio::test]
async fn what_is_not_at_rest_is_left_alone() {
    if !have(TOOLS) {
        return;
    }
    let mounted = common::mount(&filled(&["-b", "1024"], "16M").await).await;
    mounted.filesystem.mkdir(InodeNumber::ROOT, b"new", Credentials::default()).await.unwrap();
    mounted.filesystem.sync().await.unwrap();
    let dirty = mounted.crash();
    let memory = Arc::new(MemoryDevice::from_image(dirty.clone()));
    let device = Arc::clone(&memory) as Arc<dyn BlockDevice>;
    for error in [
        remove(&device, false).await.unwrap_err(),
        create(&device, NewJournalOptions::default()).await.unwrap_err(),
    ] {
        assert_eq!(error.errno(), Errno::EBUSY);
        assert!(error.to_string().contains("journal has to be recovered"), "{error}");
    }
    for blocks in [1023, 9000] {
        let options = NewJournalOptions::new().blocks(Some(blocks)).force(true);
        assert_eq!(create(&device, options).await.unwrap_err().errno(), Errno::EINVAL);
    }
    assert!(memory.image().to_vec() == dirty.to_vec());
    // Thrown away: the state before the crash's transactions, whatever that is, without a journal.
    remove(&device, true).await.unwrap();
    assert!(!has_journal(&memory.image()));
    // A full file system keeps the journal it has.
    let mounted = common::mount(&filled(&["-b", "1024", "-m", "0", "-J", "size=1"], "16M").await).await;
    let room = mounted.filesystem.statfs().available_blocks;
    let len = usize::try_from((room - 400) * 1024).unwrap();
    mounted.filesystem.write("/all", vec![1; len]).await.unwrap();
    let full = mounted.unmount_clean("full").await;
    let memory = Arc::new(MemoryDevice::from_image(full.clone()));
    let options = NewJournalOptions::new().blocks(Some(4096));
    let error = create(&(Arc::clone(&memory) as _), options).await.unwrap_err();
    assert_eq!(error.errno(), Errno::ENOSPC);
    assert!(memory.image().to_vec() == full.to_vec());
}

#[tokio::test]
async fn a_device_becomes_the_journal_and_stops_being_it() {
    if !have(TOOLS) {
        return;
    }
    for block_size in ["1024", "4096"] {
        let before = filled(&["-b", block_size], "32M").await;
        let memory = Arc::new(MemoryDevice::from_image(before));
        let device = Arc::clone(&memory) as Arc<dyn BlockDevice>;
        let mut garbage = Image::zeroed(8 << 20);
        garbage.fill(0, 8 << 20, 0xc0);
        let log = Arc::new(MemoryDevice::from_image(garbage));
        let journal = Arc::clone(&log) as Arc<dyn BlockDevice>;
        let external = Some(ExternalJournal { device: Arc::clone(&journal), number: 0 });
        let options = NewJournalOptions::new().external(external.clone());
        create(&device, options.clone()).await.unwrap();
        assert!(superblock(&memory.image()).journal_inum == 0 && has_journal(&memory.image()));
        check_pair(&memory.image(), &log.image());

        let mount = MountOptions::new().journal_device(Some(Arc::clone(&journal)));
        let filesystem = Filesystem::mount(Arc::clone(&device), mount.clone()).await.unwrap();
        filesystem.mkdir(InodeNumber::ROOT, b"new", Credentials::default()).await.unwrap();
        filesystem.sync().await.unwrap();
        let (crashed, crashed_log) = (memory.image(), log.image());
        filesystem.unmount().await.unwrap();
        let again = Arc::new(MemoryDevice::from_image(crashed));
        let again_log = Arc::new(MemoryDevice::from_image(crashed_log));
        let recovering = mount.journal_device(Some(Arc::clone(&again_log) as _));
        let filesystem = Filesystem::mount(Arc::clone(&again) as _, recovering).await.unwrap();
        filesystem.lookup(InodeNumber::ROOT, b"new").await.unwrap();
        filesystem.unmount().await.unwrap();
        check_pair(&again.image(), &again_log.image());

        // In use: no other file system gets it.
        let other = Arc::new(MemoryDevice::from_image(filled(&["-b", block_size], "32M").await));
        let error = create(&(Arc::clone(&other) as _), options).await.unwrap_err();
        assert_eq!(error.errno(), Errno::EEXIST);
        // A file system is not written over.
        let target = Some(ExternalJournal { device: Arc::clone(&other) as _, number: 0 });
        let options = NewJournalOptions::new().external(target);
        assert_eq!(create(&device, options).await.unwrap_err().errno(), Errno::EEXIST);

        remove_journal(Arc::clone(&device), Some(journal), false, Arc::new(SystemEnvironment)).await.unwrap();
        assert_clean(&memory.image(), "detached");
        let options = NewJournalOptions::new().external(external);
        create(&(Arc::clone(&other) as _), options).await.unwrap();
        check_pair(&other.image(), &log.image());
    }
}

/// `e2fsck -fn -j` of a file system and its journal device.
fn check_pair(image: &Image, log: &Image) {
    let directory = tempfile::TempDir::new().unwrap();
    let (path, journal) = (directory.path().join("image"), directory.path().join("journal"));
    image.to_file(&path).unwrap();
    log.to_file(&journal).unwrap();
    let output = run("e2fsck", ["-fn", "-j", journal.to_str().unwrap(), path.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
}
