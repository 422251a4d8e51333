//! Images with a log to replay, which others made: after our recovery the tree is the one that the references
//! saw, and e2fsck finds nothing.
//!
//! - Of e2fsprogs' test images, those with a journal: what the kernel showed after its replay, or refused;
//!   after a salvage what e2fsck's replay left.
//! - Images that the kernel left in mid-flight, or whose log debugfs wrote: `make_kernel_corpus.sh` makes
//!   them with root and loop devices. A few small ones here; `EXT4_LONG_TESTS=1`: all of them, with two
//!   seeds; `EXT4_KERNEL_CORPUS` names directories that hold them already, separated by colons.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/manifest.rs"]
mod manifest;

use std::path::Path;
use std::sync::Arc;

use ext4_core::device::MemoryDevice;
use ext4_core::device::simulated::Image;
use ext4_journal::Recovery;
use ext4_test_support::corpus::{
    corpus, e2fsprogs_image, images_named, kernel_images, make_kernel_images, packed_images,
};
use ext4_test_support::settings::long_tests;
use ext4_test_support::tools::{assert_clean, have};
use ext4_writeback::{Filesystem, MountOptions};
use ext4_writeback::{JournalReplay, replay_journal};
use manifest::Manifest;
use sha2::Digest;

/// The facts of a file that debugfs keeps when it copies the file out.
const PLAIN_KEYS: [&str; 6] = ["type", "mode", "uid", "gid", "size", "sha256"];

fn image_of(corpus: &Path, name: &str) -> Image {
    Image::from(&e2fsprogs_image(corpus, name).content()[..])
}

fn options() -> MountOptions {
    MountOptions::new().cache(16 << 20)
}

/// The tree after recovery, from a mount that recovers in memory: the device is not changed.
async fn tree(image: &Image) -> ext4_writeback::Result<Manifest> {
    let device = Arc::new(MemoryDevice::from_image(image.clone()));
    let read_only = options().read_only(true);
    let filesystem = Filesystem::mount(Arc::clone(&device) as _, read_only).await?;
    let tree = manifest::of_filesystem(&filesystem).await;
    filesystem.unmount().await?;
    assert!(device.image() == *image, "reading wrote something");
    Ok(tree)
}

async fn replay(image: &Image, mode: Recovery) -> (ext4_writeback::Result<JournalReplay>, Image) {
    let device = Arc::new(MemoryDevice::from_image(image.clone()));
    let result = replay_journal(Arc::clone(&device) as _, &options(), mode).await;
    (result, device.image())
}

/// The image after a mount for writing and an unmount.
async fn mounted_once(image: Image) -> Image {
    let device = Arc::new(MemoryDevice::from_image(image));
    let filesystem = Filesystem::mount(Arc::clone(&device) as _, options()).await.unwrap();
    filesystem.unmount().await.unwrap();
    device.image()
}

/// Fails the test if the trees differ; if `keys` are given, in one of those.
fn assert_same(ours: &Manifest, theirs: &Manifest, keys: Option<&[&str]>, what: &str) {
    let ignored =
        |_: &str, _: &_, key: &str| keys.is_some_and(|keys| !key.is_empty() && !keys.contains(&key));
    let differences = manifest::differences(ours, theirs, ignored);
    let shown = differences.iter().take(8).cloned().collect::<Vec<_>>().join("\n");
    assert!(differences.is_empty(), "{what}: {} differences\n{shown}", differences.len());
}

#[tokio::test]
async fn images_of_e2fsprogs_recover_to_the_recorded_tree() {
    let Some(corpus) = corpus().filter(|_| have(&["gzip", "bzip2", "e2fsck"])) else { return };
    let expected = |name: &str, suffix: &str| {
        manifest::read(&corpus.join(format!("e2fsprogs/expected/{name}.{suffix}.jsonl.gz")))
    };
    for (name, clean) in [
        ("f_clear_orphan_file", true),
        ("f_jnl_32bit", true),
        ("j_corrupt_revoke_csum", true),
        // Its log holds zeroed bitmaps.
        ("j_recover_csum2_64bit", false),
    ] {
        let image = image_of(&corpus, name);
        let ours = tree(&image).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_same(&ours, &expected(name, "kernel"), None, name);
        let (result, replayed) = replay(&image, Recovery::NORMAL).await;
        let result = result.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(result.report.transactions > 0 && !result.error_recorded, "{name}: {result:?}");
        let (again, twice) = replay(&replayed, Recovery::NORMAL).await;
        assert_eq!(again.unwrap().report.transactions, 0, "{name}");
        assert!(twice == replayed, "{name}: a second replay changed something");
        if clean {
            assert_clean(&mounted_once(replayed).await, name);
        }
    }
    // What the kernel refuses; e2fsck replays what is good.
    for name in ["j_corrupt_commit_csum", "j_corrupt_descr_csum", "j_corrupt_journal_block"] {
        let image = image_of(&corpus, name);
        let refusal = tree(&image).await.err().unwrap_or_else(|| panic!("{name} is recovered"));
        assert!(refusal.is_corrupt(), "{name}: {refusal}");
        let (refused, same) = replay(&image, Recovery::NORMAL).await;
        assert!(refused.is_err() && same == image, "{name}: a refused log was changed");
        let (salvaged, image) = replay(&image, Recovery::SALVAGE).await;
        let salvaged = salvaged.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(salvaged.error_recorded && !salvaged.report.findings.is_empty(), "{name}: {salvaged:?}");
        let ours = tree(&image).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_same(&ours, &expected(name, "jonly"), Some(&PLAIN_KEYS), name);
        // The error state is there for a check to see, and survives a mount.
        let device = Arc::new(MemoryDevice::from_image(mounted_once(image).await));
        let filesystem = Filesystem::mount(device, options()).await.unwrap();
        assert!(filesystem.superblock().state & ext4_core::format::superblock::STATE_ERROR != 0, "{name}");
    }
    // The kernel refuses its journal's inode; e2fsck takes the superblock's copy of it, and so do we.
    let mut ours = tree(&image_of(&corpus, "f_journal")).await.unwrap();
    // e2fsck goes on to move the journal from a visible file to its reserved inode.
    assert!(ours.remove("journal").is_some());
    assert_same(&ours, &expected("f_journal", "jonly"), Some(&PLAIN_KEYS), "f_journal");
    let image = image_of(&corpus, "j_corrupt_sb_csum");
    for mode in [Recovery::NORMAL, Recovery::SALVAGE] {
        let (result, same) = replay(&image, mode).await;
        let error = result.expect_err("a journal superblock with a wrong checksum is used");
        assert!(error.is_corrupt() && same == image, "{error}");
    }
}

/// What debugfs_journal in make_kernel_corpus.sh makes of the 1,200 blocks of /target.
fn target(variant: &str, size: usize) -> Vec<u8> {
    let mut blocks: Vec<Vec<u8>> = (0..1200).map(|index| filled(index, b'a', size)).collect();
    let mut write = |first: usize, count: usize, letter: u8| {
        for index in 0..count {
            let mut block = filled(index, letter, size);
            if variant == "escape" && index % 2 == 0 {
                block[..4].copy_from_slice(&[0xc0, 0x3b, 0x39, 0x98]);
            }
            blocks[first + index] = block;
        }
    };
    match variant {
        "short" => write(5, 20, b'b'),
        "long" => (1..4).for_each(|round| write(round * 150, 700, b'0' + round as u8)),
        "revoke" => {
            // 100..299 are revoked, 0..9 too; what was not written again stays as it was.
            write(0, 400, b'1');
            for index in (0..10).chain(100..300) {
                blocks[index] = filled(index, b'a', size);
            }
            let mut again = |first: usize, count: usize, letter: u8| {
                for index in 0..count {
                    blocks[first + index] = filled(index, letter, size);
                }
            };
            again(200, 50, b'3');
            again(20, 10, b'4');
        }
        "uncommitted" => write(0, 100, b'1'),
        "escape" => write(30, 60, b'1'),
        other => panic!("no recipe {other}"),
    }
    blocks.concat()
}

fn filled(index: usize, letter: u8, size: usize) -> Vec<u8> {
    let mut block = vec![letter; size];
    block[..8].copy_from_slice(format!("{index:08}").as_bytes());
    block
}

#[tokio::test]
async fn images_that_the_kernel_left_in_mid_flight_recover_to_its_tree() {
    if !have(&["gzip", "e2fsck", "mkfs.ext4"]) {
        return;
    }
    let names = if long_tests() {
        "^(dirty-|dj-)"
    } else {
        "^(dirty-bigalloc|dirty-csum-v1|dirty-wrap-1k|dirty-orphan-1k|dj-revoke-v2-64|dj-escape-v0-32)$"
    };
    let seeds: &[u64] = if long_tests() { &[1, 2] } else { &[1] };
    let work = tempfile::tempdir().unwrap();
    let Some(directories) = kernel_images(work.path(), names, seeds) else { return };
    let images = images_named(&directories, &["dirty-", "dj-"]);
    assert!(images.len() >= 6, "{images:?}");
    let mut failures = Vec::new();
    for path in images {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let what = path.display().to_string();
        let checking = tokio::spawn(async move { check_kernel_image(&path, &name).await });
        match checking.await {
            Ok(()) => println!("{what}: as the kernel's"),
            Err(panic) => failures.push(format!("{what}: {panic}")),
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}

async fn check_kernel_image(path: &Path, name: &str) {
    let image = Image::from_file(path).unwrap();
    let theirs = manifest::read(&path.with_extension("jsonl.gz"));
    let mut ours = tree(&image).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    if let Some(variant) = name.strip_prefix("dj-") {
        let (variant, _) = variant.split_once('-').unwrap();
        let facts = &ours["target"];
        let size = usize::try_from(facts["size"].as_u64().unwrap()).unwrap() / 1200;
        assert_eq!(
            facts["sha256"],
            format!("{:x}", sha2::Sha256::digest(target(variant, size))),
            "{name}: /target"
        );
    }
    assert_same(&ours, &theirs, None, name);
    ours.clear();
    let (result, replayed) = replay(&image, Recovery::NORMAL).await;
    let result = result.unwrap_or_else(|error| panic!("{name}: {error}"));
    // These two were cut off when their log had just been emptied.
    let empty = matches!(name, "dirty-idle" | "dirty-meta-default");
    assert!(result.report.transactions > 0 || empty, "{name}: {result:?}");
    assert!(result.report.findings.is_empty() && !result.error_recorded, "{name}: {result:?}");
    // Orphans are left for the next mount.
    if result.orphans == 0 {
        assert_clean(&replayed, name);
    }
    assert_clean(&mounted_once(replayed).await, name);
}

/// Whatever the log of a damaged image says, both ways of recovery end, without a panic; a refusal writes
/// nothing.
#[tokio::test]
async fn damaged_images_of_others_are_replayed_or_refused() {
    let Some(images) = packed_images() else { return };
    let (mut replays, mut refusals, mut too_large) = (0, 0, 0);
    for packed in &images {
        let (name, content) = (packed.name(), packed.content());
        if !(64 << 10..128 << 20).contains(&content.len()) {
            too_large += 1;
            continue;
        }
        let image = Image::from(&content[..content.len() & !511]);
        for mode in [Recovery::NORMAL, Recovery::SALVAGE] {
            let (checked, same) = replay(&image, mode.checking()).await;
            assert!(same == image, "{name}: a check wrote something");
            let (result, after) = replay(&image, mode).await;
            match result {
                Ok(replay) => {
                    assert_eq!(checked.unwrap().report, replay.report, "{name}");
                    replays += 1;
                }
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    refusals += 1;
                    if checked.is_err() && mode == Recovery::NORMAL {
                        assert!(after == image, "{name}: {error}: a refused log was changed");
                    }
                }
            }
        }
    }
    assert_eq!(replays + refusals, 2 * (images.len() - too_large));
    assert!(too_large < 20, "{too_large} of {} images are too small or too large", images.len());
    assert!(replays > 40 && refusals > 20, "{replays} replays, {refusals} refusals");
}

/// Files, directories and symlinks around what an inode holds, as the kernel left them.
#[tokio::test]
async fn images_with_inline_data_show_the_kernels_tree() {
    if !have(&["gzip", "e2fsck"]) {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    if !make_kernel_images(work.path(), "^(inline-256|inline-1k|inline-1k-1024|dirty-inline)$", 1) {
        return;
    }
    for name in ["inline-256", "inline-1k", "inline-1k-1024"] {
        let path = work.path().join(format!("{name}.img"));
        let image = Image::from_file(&path).unwrap();
        let theirs = manifest::read(&path.with_extension("jsonl.gz"));
        assert_same(&tree(&image).await.unwrap(), &theirs, None, name);
        assert_clean(&mounted_once(image).await, name);
    }
    check_kernel_image(&work.path().join("dirty-inline.img"), "dirty-inline").await;
}
