//! Fast commits: what the kernel and e2fsprogs left is replayed, tags follow their rules, and a damaged or
//! hostile area does no harm.
//!
//! Images: those of the corpus; those of the kernel are made on the spot (root and loop devices), three of
//! them, or with EXT4_LONG_TESTS=1 all with two seeds; or they lie in the directories that EXT4_KERNEL_CORPUS
//! names.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/manifest.rs"]
mod manifest;

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use ext4_core::device::simulated::{Image, RecordingDevice};
use ext4_core::device::{BlockDevice, MemoryDevice};
use ext4_core::format::extent::Extent;
use ext4_core::format::superblock::Superblock;
use ext4_core::{BlockNumber, BlockSize, InodeNumber, LogicalBlock, TransactionId};
use ext4_journal::{FastCommitEncoder, FastCommitEntry, FastCommitTag, FastCommitTags};
use ext4_test_support::corpus::{corpus, e2fsprogs_image, images_named, kernel_images};
use ext4_test_support::loop_device::KernelMount;
use ext4_test_support::settings::long_tests;
use ext4_test_support::tools::{Judged, assert_clean, can_mount, have, run};
use ext4_writeback::{Filesystem, MountOptions, Result};
use manifest::Manifest;

/// Mounts `image`: the tree, and the image after the unmount.
async fn recovered(image: &Image) -> Result<(Manifest, Image)> {
    let device = Arc::new(MemoryDevice::from_image(image.clone()));
    let options = MountOptions::new().cache(8 << 20);
    let filesystem = Filesystem::mount(Arc::clone(&device) as _, options).await?;
    let tree = manifest::of_filesystem(&filesystem).await;
    filesystem.unmount().await.unwrap();
    Ok((tree, device.image()))
}

/// The differences, but for the times of directories, which no tag has, and for what was never synced.
fn differences(ours: &Manifest, theirs: &Manifest) -> Vec<String> {
    let tail = theirs.contains_key("tail") && !ours.contains_key("tail");
    manifest::differences(ours, theirs, |path, facts, key| {
        let is_directory = facts.get("type").is_some_and(|kind| kind == "dir");
        is_directory && matches!(key, "mtime" | "ctime")
            || tail && (path == "tail" || path.starts_with("tail/") || (path == "." && key == "nlink"))
    })
}

fn assert_same(ours: &Manifest, theirs: &Manifest, context: &str) {
    let found = differences(ours, theirs);
    assert!(found.is_empty(), "{context}: {} differences\n{}", found.len(), found.join("\n"));
}

/// The tree as it was live just before the kernel was cut off.
#[tokio::test]
async fn fast_commits_of_the_kernel_give_the_tree_before_the_cut() {
    let (names, seeds): (_, &[u64]) =
        if long_tests() { ("^fc-", &[1, 2]) } else { ("^fc-(tail|1k|orphan|inline)$", &[1]) };
    let work = tempfile::TempDir::new().unwrap();
    let Some(directories) = kernel_images(work.path(), names, seeds) else { return };
    let images = images_named(&directories, &["fc-"]);
    assert!(images.len() >= 4, "{images:?}");
    for path in images {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let image = Image::from_file(&path).unwrap();
        let (ours, after) = recovered(&image).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        // Most of what the random one did was never synced: there the kernel's own replay says what to
        // expect.
        let reference = if name == "fc-random" { "jsonl.gz" } else { "before.jsonl.gz" };
        assert_same(&ours, &manifest::read(&path.with_extension(reference)), &name);
        assert_clean(&after, &name);
        println!("{name}: {} paths as expected, clean", ours.len());
    }
}

/// The image of e2fsprogs with fast commits: blocks of 1 KiB, the log of 1,040 blocks ends with an area of
/// 16, of transaction 6.
struct Small {
    image: Image,
    expected: Manifest,
}

const AREA: u64 = 1091 * 1024;
const AREA_BLOCKS: usize = 15;
const ID: TransactionId = TransactionId(6);
/// In it: a directory, a file of 257 blocks in it, and a free inode.
const DIRECTORY: InodeNumber = InodeNumber(12);
const FILE: InodeNumber = InodeNumber(13);
const FREE: InodeNumber = InodeNumber(20);

impl Small {
    fn load() -> Option<Self> {
        let packed = e2fsprogs_image(&corpus()?, "j_recover_fast_commit");
        if !have(&["gzip", "e2fsck"]) {
            return None;
        }
        let image = Image::from(&packed.content()[..]);
        let expected = manifest::read(&packed.expected("kernel.jsonl.gz"));
        Some(Self { image, expected })
    }

    /// The image with these fast commits instead of its own.
    fn with(&self, commits: &[Vec<FastCommitTag>]) -> Image {
        let mut image = self.image.clone();
        image.fill(AREA, AREA_BLOCKS as u64 * 1024, 0);
        let mut offset = 0;
        for commit in commits {
            let mut encoder = FastCommitEncoder::new(BlockSize::KIB_1, ID, offset);
            commit.iter().for_each(|tag| encoder.push(tag).unwrap());
            for block in encoder.finish() {
                assert!((offset as usize) < AREA_BLOCKS, "the area is full");
                image.write(AREA + u64::from(offset) * 1024, &block);
                offset += 1;
            }
        }
        image
    }

    /// The image with its own fast commit and these behind it.
    fn followed_by(&self, mut commits: Vec<Vec<FastCommitTag>>) -> Image {
        let mut block = [0; 1024];
        self.image.read(AREA, &mut block);
        let own = FastCommitTags::new(&block).map(|tag| tag.unwrap().1);
        let changes = |tag: &FastCommitTag| {
            !matches!(
                tag,
                FastCommitTag::Head { .. } | FastCommitTag::Pad { .. } | FastCommitTag::Tail { .. }
            )
        };
        commits.insert(0, own.filter(changes).collect());
        self.with(&commits)
    }
}

fn entry(inode: InodeNumber, name: &str) -> FastCommitEntry {
    FastCommitEntry { parent: DIRECTORY, inode, name: name.as_bytes().into() }
}

fn add(inode: InodeNumber, logical: u32, len: u32, physical: u64) -> FastCommitTag {
    let (logical, physical) = (LogicalBlock(logical), BlockNumber(physical));
    let extent = Extent { logical, len, physical, unwritten: false }.to_entry();
    FastCommitTag::AddRange { inode, extent }
}

fn del(inode: InodeNumber, logical: u32, len: u32) -> FastCommitTag {
    FastCommitTag::DelRange { inode, logical: LogicalBlock(logical), len }
}

/// A new inode, mapped by extents.
fn image(inode: InodeNumber, mode: u16, size: u32, links: u16, generation: u32) -> FastCommitTag {
    let mut bytes = vec![0; 128];
    bytes[..2].copy_from_slice(&mode.to_le_bytes());
    bytes[4..8].copy_from_slice(&size.to_le_bytes());
    bytes[26..28].copy_from_slice(&links.to_le_bytes());
    bytes[32..36].copy_from_slice(&0x8_0000_u32.to_le_bytes());
    bytes[100..104].copy_from_slice(&generation.to_le_bytes());
    FastCommitTag::Inode { inode, image: bytes.into() }
}

const REGULAR: u16 = 0o100_644;

#[tokio::test]
async fn the_fast_commit_of_e2fsprogs_gives_what_the_kernel_gave() {
    let Some(small) = Small::load() else { return };
    let (ours, after) = recovered(&small.image).await.unwrap();
    assert_same(&ours, &small.expected, "j_recover_fast_commit");
    assert_clean(&after, "j_recover_fast_commit");
    let again = small.followed_by(Vec::new());
    assert_same(&recovered(&again).await.unwrap().0, &ours, "the same tags, laid out here");
}

/// All that recovery writes is recorded. Whatever of it a power cut leaves, the next mount comes to the same
/// tree, and e2fsck and the kernel accept what lies there.
#[tokio::test]
async fn a_crash_at_any_write_of_the_replay_leads_to_the_same_tree() {
    let Some(small) = Small::load() else { return };
    let image = small.followed_by(vec![
        vec![
            image(FREE, REGULAR, 3 << 10, 1, 77),
            add(FREE, 0, 3, 1950),
            FastCommitTag::Create(entry(FREE, "made")),
            del(FILE, 2, 100),
            // As the kernel, whose replay counts a file's blocks when it sees its image.
            image(FREE, REGULAR, 3 << 10, 1, 77),
        ],
        vec![
            FastCommitTag::Link(entry(FREE, "linked")),
            FastCommitTag::Unlink(entry(FREE, "made")),
            image(InodeNumber(21), 0o40_755, 1024, 2, 78),
            FastCommitTag::Create(entry(InodeNumber(21), "directory")),
            image(FREE, REGULAR, 3 << 10, 1, 77),
        ],
    ]);
    let (expected, _) = recovered(&image).await.unwrap();
    assert_eq!(expected["a/linked"]["blocks"], 6);
    assert_eq!(expected["a"]["nlink"], 3);
    let device = Arc::new(RecordingDevice::new(image));
    let filesystem = Filesystem::mount(Arc::clone(&device) as _, MountOptions::default()).await.unwrap();
    drop(filesystem);
    let recording = device.recording();
    let count = recording.cuts().count();
    let kernel = can_mount();
    let (mut torn, mut by_kernel) = (0, 0);
    for (number, cut) in recording.cuts().enumerate() {
        let seeds = if long_tests() { 8 } else { 2 };
        let some = (0..seeds).map(|seed| cut.variant(seed + 100 * number as u64));
        for (kind, left) in [cut.with_none(), cut.with_all()].into_iter().chain(some).enumerate() {
            let context = format!("cut {number} of {count}, {kind}");
            let mut superblock = [0; 1024];
            left.read(1024, &mut superblock);
            if Superblock::parse(&superblock).is_err() {
                // Two sectors with one checksum, written in place by a mount: ext4 takes them for one.
                torn += 1;
                continue;
            }
            if number % 4 == 1 && kind < 3 && kernel {
                let mounted = KernelMount::of_image(&left);
                let found = std::fs::metadata(mounted.path("a/linked")).unwrap();
                assert_eq!((found.len(), found.blocks(), found.nlink()), (3 << 10, 6, 1), "{context}");
                mounted.unmount();
                by_kernel += 1;
            }
            let (ours, after) = recovered(&left).await.unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_same(&ours, &expected, &context);
            if number % 4 == 0 {
                assert_clean(&after, &context);
            }
        }
    }
    println!("{count} cuts, {} writes, {torn} torn superblocks", recording.writes());
    assert!(count > 10 && torn < count, "{count} cuts, {torn} torn superblocks");
    assert!(!kernel || by_kernel > 3, "the kernel saw {by_kernel} states");
}

/// A bit that is wrong drops its fast commit, or was of no account.
#[tokio::test]
async fn a_flipped_bit_in_the_area_drops_the_fast_commit() {
    let Some(small) = Small::load() else { return };
    let (full, _) = recovered(&small.image).await.unwrap();
    let (dropped, _) = recovered(&small.with(&[])).await.unwrap();
    assert!(!differences(&full, &dropped).is_empty());
    let mut block = [0; 1024];
    small.image.read(AREA, &mut block);
    // Up to and with the checksum.
    let used = FastCommitTags::new(&block).last().unwrap().unwrap().0.end + 4;
    let step = if long_tests() { 1 } else { 23 };
    for bit in (0..1024 * 8).step_by(step) {
        let mut image = small.image.clone();
        image.write(AREA + bit as u64 / 8, &[block[bit / 8] ^ 1 << (bit % 8)]);
        let (ours, _) = recovered(&image).await.unwrap_or_else(|error| panic!("bit {bit}: {error}"));
        let expected = if bit < used * 8 { &dropped } else { &full };
        assert_same(&ours, expected, &format!("bit {bit}"));
    }
}

/// A name, fast commits, and the facts of paths after their replay: (path, key, value); no facts: as if they
/// were not there.
type Case = (&'static str, Vec<Vec<FastCommitTag>>, &'static [(&'static str, &'static str, u64)]);

/// The rules of tags, each with the tree that it must lead to. All of it is e2fsck-clean.
#[tokio::test]
async fn tags_follow_their_rules() {
    let Some(small) = Small::load() else { return };
    let (base, _) = recovered(&small.followed_by(Vec::new())).await.unwrap();
    let second = InodeNumber(21);
    let create = |inode, name| FastCommitTag::Create(entry(inode, name));
    let cases: Vec<Case> = vec![
        (
            "a file without a name gets one later; its ranges come before its image",
            vec![
                vec![add(FREE, 0, 2, 1950), image(FREE, REGULAR, 2048, 0, 5)],
                vec![FastCommitTag::Link(entry(FREE, "named")), image(FREE, REGULAR, 2048, 1, 5)],
            ],
            &[("a/named", "blocks", 4), ("a/named", "nlink", 1)],
        ),
        (
            "one that gets none is gone",
            vec![vec![add(FREE, 0, 2, 1950), image(FREE, REGULAR, 2048, 0, 5)]],
            &[],
        ),
        (
            "a number that is used again gets nothing of its first life",
            vec![
                vec![image(FREE, REGULAR, 1024, 1, 5), add(FREE, 0, 1, 1950), create(FREE, "first")],
                vec![
                    FastCommitTag::Unlink(entry(FREE, "first")),
                    image(FREE, REGULAR, 5 << 10, 1, 6),
                    add(FREE, 4, 1, 1951),
                    create(FREE, "second"),
                ],
            ],
            &[("a/second", "blocks", 2), ("a/second", "gen", 6)],
        ),
        (
            "a file is renamed over another",
            vec![vec![
                image(FREE, REGULAR, 1024, 1, 5),
                add(FREE, 0, 1, 1950),
                create(FREE, "new name"),
                FastCommitTag::Unlink(entry(FILE, "data")),
                FastCommitTag::Link(entry(FREE, "data")),
                FastCommitTag::Unlink(entry(FREE, "new name")),
                image(FREE, REGULAR, 1024, 1, 5),
            ]],
            &[("a/data", "ino", 20), ("a/data", "blocks", 2), ("a/data", "nlink", 1)],
        ),
        (
            "two files exchange a block, and the new owner's tag comes first",
            vec![
                vec![image(FREE, REGULAR, 1024, 1, 5), add(FREE, 0, 1, 1950), create(FREE, "one")],
                vec![image(second, REGULAR, 1024, 1, 5), add(second, 0, 1, 1951), create(second, "two")],
                vec![add(FREE, 0, 1, 1951), add(second, 0, 1, 1950)],
            ],
            &[("a/one", "blocks", 2), ("a/two", "blocks", 2)],
        ),
        (
            "names in a directory that came and went",
            vec![vec![
                image(FREE, REGULAR, 0, 1, 5),
                FastCommitTag::Create(FastCommitEntry { parent: second, ..entry(FREE, "gone") }),
                FastCommitTag::Link(entry(FREE, "kept")),
                FastCommitTag::Unlink(FastCommitEntry { parent: second, ..entry(FREE, "gone") }),
            ]],
            &[("a/kept", "nlink", 1)],
        ),
        (
            "a directory that is removed again",
            vec![
                vec![image(FREE, 0o40_755, 1024, 2, 5), create(FREE, "directory")],
                vec![FastCommitTag::Unlink(entry(FREE, "directory"))],
            ],
            &[("a", "nlink", 2)],
        ),
        (
            "a range is written again where it was, and elsewhere; the rest is cut off",
            vec![vec![del(FILE, 1, u32::MAX), add(FILE, 0, 1, 1950)]],
            &[("a/data", "blocks", 2)],
        ),
    ];
    for (what, commits, facts) in cases {
        let (ours, after) =
            recovered(&small.followed_by(commits)).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        for (path, key, value) in facts {
            let found = ours.get(*path).map(|facts| facts[*key].clone());
            assert_eq!(found, Some((*value).into()), "{what}: {path}: {key}");
        }
        if facts.is_empty() {
            assert_same(&ours, &base, what);
        }
        assert_clean(&after, what);
    }
}

/// A directory that has to grow does not get a block that a later tag gives to a file.
#[tokio::test]
async fn blocks_that_a_tag_names_are_kept_from_the_allocator() {
    let Some(small) = Small::load() else { return };
    // Names until the directory grows; then a file claims, one by one, the blocks next to where it did.
    let names = |commits: &mut Vec<Vec<FastCommitTag>>| {
        for some in 0..4 {
            let link = |number| FastCommitTag::Link(entry(FILE, &format!("{:060}", some * 10 + number)));
            commits.push((0..10).map(link).collect());
        }
    };
    let mut commits = Vec::new();
    names(&mut commits);
    let (ours, _) = recovered(&small.followed_by(commits)).await.unwrap();
    assert!(ours["a"]["size"].as_u64().unwrap() > 1024);
    for first in (1110_u32..1300).step_by(10) {
        let mut commits = Vec::new();
        names(&mut commits);
        let claim = |number: u32| add(FILE, 2 * number, 1, u64::from(first + number));
        commits.push(std::iter::once(del(FILE, 0, 256)).chain((0..10).map(claim)).collect());
        match recovered(&small.followed_by(commits)).await {
            Ok((_, after)) => assert_clean(&after, &format!("blocks from {first} on are claimed")),
            Err(error) => assert!(error.to_string().contains("in use already"), "{first}: {error}"),
        }
    }
}

/// Tags that contradict each other or the file system, in fast commits whose checksums are right: an error
/// that names the tag, and not a byte is written but by the log's own replay.
#[tokio::test]
async fn hostile_tags_are_refused_by_name() {
    let Some(small) = Small::load() else { return };
    let create = |inode, name| FastCommitTag::Create(entry(inode, name));
    for (tags, says) in [
        (vec![add(FILE, 300, 1, 5)], "fixed metadata"),
        (vec![add(FILE, 300, 1, 1 << 40)], "fixed metadata or outside"),
        (vec![add(FILE, 300, 1, 1100)], "in use already"),
        (vec![add(FILE, u32::MAX - 1, 5, 1950)], "blocks 4294967294+5"),
        (vec![FastCommitTag::AddRange { inode: FILE, extent: [0; 12] }], "+0"),
        (vec![add(DIRECTORY, 5, 1, 1950)], "no file"),
        (vec![add(InodeNumber(8), 5, 1, 1950)], "reserved"),
        (vec![add(InodeNumber(0), 5, 1, 1950)], "inode 0"),
        (vec![add(InodeNumber(1 << 30), 5, 1, 1950)], "is not within"),
        (vec![create(FREE, "name")], "no tag before"),
        (vec![image(FREE, REGULAR, 0, 1, 5)], "no name"),
        (vec![image(FREE, REGULAR, 0, 1, 5), create(FREE, "data")], "the name is that of inode 13"),
        (vec![image(FREE, REGULAR, 0, 1, 5), create(FREE, "..")], "no tag can make"),
        (vec![image(FREE, 0o170_644, 0, 1, 5)], "mode"),
        (vec![image(FILE, 0o40_755, 0, 1, 5)], "becomes"),
        (vec![FastCommitTag::Link(entry(DIRECTORY, "loop"))], "is a directory"),
        (
            vec![FastCommitTag::Unlink(FastCommitEntry {
                parent: InodeNumber::ROOT,
                ..entry(DIRECTORY, "a")
            })],
            "not empty",
        ),
        (vec![FastCommitTag::Link(FastCommitEntry { parent: FILE, ..entry(FILE, "b") })], "no directory"),
        (vec![add(FILE, 100, 1, 1950), add(FILE, 120, 1, 1950)], "is mapped by inodes 13 and 13"),
        (vec![FastCommitTag::Inode { inode: FREE, image: vec![0; 900].into() }], "an image of 900 bytes"),
    ] {
        let image = small.followed_by(vec![tags]);
        let device = Arc::new(MemoryDevice::from_image(image.clone()));
        let error = Filesystem::mount(Arc::clone(&device) as _, MountOptions::default()).await.map(drop);
        let error = error.expect_err(says).to_string();
        assert!(error.contains("fast commit") && error.contains(says), "{says}: {error}");
        // The log is as it was: another implementation can still replay it.
        let again = Filesystem::mount(device as Arc<dyn BlockDevice>, MountOptions::default()).await;
        assert_eq!(again.map(drop).unwrap_err().to_string(), error);
    }
}

/// Fails the test unless e2fsck finds nothing but sizes: a tag may make a file shorter than its blocks reach;
/// it shows nothing of them, and e2fsck finds it odd.
fn assert_clean_but_for_sizes(image: &Image, context: &str) {
    let output = image.in_a_file(|path| run("e2fsck", ["-fn".as_ref(), path.as_os_str()]));
    let said = String::from_utf8_lossy(&output.stdout);
    let mut findings = said.lines().filter(|line| line.ends_with("? no"));
    let sizes_only = findings.all(|line| line.contains("i_size is"));
    assert!(output.status.success() || (sizes_only && said.contains("i_size is")), "{context}: {said}");
}

/// Fast commits of random tags over a few inodes and names: an error, or a file system that e2fsck finds
/// clean.
#[tokio::test]
async fn random_tags_do_no_harm() {
    let Some(small) = Small::load() else { return };
    let rounds = if long_tests() { 3000 } else { 120 };
    let (mut applied, mut refused) = (0, 0);
    for seed in 0..rounds {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut commits = Vec::new();
        for _ in 0..random.usize(1..5) {
            let tags = (0..random.usize(1..6)).map(|_| {
                let some = if random.bool() { 5 } else { 6 };
                let inode = InodeNumber([13, 14, 20, 21, 22, 12][random.usize(..some)]);
                let name = ["data", "new", "x", "y"][random.usize(..4)];
                let parent = InodeNumber([2, 12, 12, 21][random.usize(..4)]);
                let entry = FastCommitEntry { parent, ..entry(inode, name) };
                match random.u8(..12) {
                    0..3 => {
                        let inode = InodeNumber(random.u32(20..23));
                        let mode = if inode.0 == 21 { 0o40_755 } else { REGULAR };
                        image(inode, mode, 40 << 10, u16::from(random.u8(..6) == 0), random.u32(..2))
                    }
                    3..5 => FastCommitTag::Create(entry),
                    5 => FastCommitTag::Link(entry),
                    6..8 => FastCommitTag::Unlink(entry),
                    8..11 => add(inode, random.u32(..20), random.u32(1..8), random.u64(1915..1990)),
                    _ => del(inode, random.u32(..30), random.u32(..300)),
                }
            });
            commits.push(tags.collect());
        }
        match recovered(&small.followed_by(commits)).await {
            Ok((_, after)) => {
                assert_clean_but_for_sizes(&after, &format!("seed {seed}"));
                applied += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("fast commit"), "seed {seed}: {error}");
                refused += 1;
            }
        }
    }
    println!("{applied} applied, {refused} refused");
    assert!(applied > 10 && refused > 10);
}

/// The recovery of a read-only mount goes to memory: the tree is the same and the device is not touched.
#[tokio::test]
async fn a_read_only_mount_replays_in_memory() {
    let Some(small) = Small::load() else { return };
    let device = Arc::new(MemoryDevice::from_image(small.image.clone()));
    let options = MountOptions::new().read_only(true);
    let filesystem = Filesystem::mount(Arc::clone(&device) as _, options).await.unwrap();
    assert_same(&manifest::of_filesystem(&filesystem).await, &small.expected, "read-only");
    drop(filesystem);
    assert!(device.content() == small.image.to_vec());
}
