//! e2fsprogs as the judge, both ways: logs that debugfs wrote are replayed by us as by e2fsck, byte for byte;
//! logs that we wrote are read by debugfs and replayed by e2fsck as by us.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Ext4, blocks_of, debugfs_replay, e2fsck_replay, open_with, options};
use ext4_core::device::BlockDevice;
use ext4_core::meta::{BufferCache, Opaque};
use ext4_core::{BlockNumber, Errno, TransactionId};
use ext4_journal::{FastCommitTag, NewJournal, Recovery};
use ext4_journal::{Inspection, LogBlockContent, LogPart};
use ext4_test_support::corpus::{corpus, e2fsprogs_image, images_named, kernel_images};
use ext4_test_support::tools::{assert_clean, debugfs, debugfs_write, have_e2fsprogs, mke2fs_image, run_ok};

fn mkfs(path: &Path, arguments: &[&str], size: &str) {
    let fixed = ["-E", "lazy_itable_init=0,lazy_journal_init=0"];
    mke2fs_image(&[&fixed[..], arguments].concat(), size).to_file(path).unwrap();
}

/// `count` blocks whose content says which write it was; with `escape` every other begins with the journal's
/// magic.
fn content(count: usize, letter: u8, size: usize, escape: bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count * size);
    for index in 0..count {
        let mut block = vec![letter; size];
        block[..8].copy_from_slice(format!("{index:08}").as_bytes());
        if escape && index % 2 == 0 {
            block[..4].copy_from_slice(&[0xc0, 0x3b, 0x39, 0x98]);
        }
        bytes.extend(block);
    }
    bytes
}

/// What debugfs reads in the log of `image` is what our own dump reads: every block, every tag, every revoke.
async fn debugfs_reads_the_same_log(image: &Path, ext4: &Ext4, what: &str) {
    let theirs: Vec<String> = debugfs(image, "logdump -a")
        .lines()
        .map(str::trim)
        .filter(|line| {
            ["Found expected", "FS block", "Revoke FS"].iter().any(|start| line.starts_with(start))
        })
        .map(str::to_owned)
        .collect();
    let memory = ext4.device();
    let device: Arc<dyn BlockDevice> = Arc::clone(&memory) as _;
    let inspection = Inspection::open(ext4.location(&device)).await.unwrap();
    let mut walk = inspection.blocks(false);
    let mut ours = Vec::new();
    while let Some(found) = walk.next().await.unwrap() {
        let (kind, name) = match &found.content {
            LogBlockContent::Descriptor(_) => (1, "descriptor block"),
            LogBlockContent::Commit { .. } => (2, "commit block"),
            LogBlockContent::Revoke(_) => (5, "revoke table"),
            LogBlockContent::Unknown(kind) => panic!("{what}: type {kind}"),
        };
        let (id, block) = (found.transaction, found.block);
        ours.push(format!("Found expected sequence {id}, type {kind} ({name}) at block {block}"));
        assert!(!found.checksum.is_some_and(|checksum| checksum.is_wrong()), "{what}: {found:?}");
        match found.content {
            LogBlockContent::Descriptor(tags) => ours.extend(tags.iter().map(|tag| {
                let checksum = tag.checksum.filter(|_| found.part == LogPart::Committed);
                assert!(!checksum.is_some_and(|checksum| checksum.is_wrong()), "{what}: {tag:?}");
                let (target, image, flags) = (tag.target, tag.image, tag.flags & !8);
                format!("FS block {target} logged at journal block {image} (flags {flags:#x})")
            })),
            LogBlockContent::Revoke(blocks) => {
                ours.extend(blocks.unwrap().iter().map(|block| format!("Revoke FS block {block}")));
            }
            _ => {}
        }
    }
    let theirs: Vec<_> = theirs.iter().map(|line| without_last_flag(line)).collect();
    assert!(ours.len() > 2, "{what}: {ours:?}");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs, "{what}");
    }
    assert_eq!(ours.len(), theirs.len(), "{what}");
}

/// A line of logdump without the flag of a descriptor's last tag, which it shows or not.
fn without_last_flag(line: &str) -> String {
    match line.split_once("(flags 0x") {
        Some((start, flags)) => {
            let flags = u32::from_str_radix(flags.trim_end_matches(')'), 16).unwrap() & !8;
            format!("{start}(flags {flags:#x})")
        }
        None => line.to_owned(),
    }
}

/// One write of a debugfs transaction over /target: blocks from `first` on.
enum Step {
    Write { first: usize, count: usize, letter: u8 },
    Revoke { first: usize, count: usize },
    WriteUncommitted { first: usize, count: usize, letter: u8 },
}

struct Recipe {
    name: &'static str,
    steps: Vec<Step>,
    escape: bool,
}

fn recipes() -> Vec<Recipe> {
    use Step::{Revoke, Write, WriteUncommitted};
    let recipe = |name, escape, steps| Recipe { name, steps, escape };
    vec![
        recipe("short", false, vec![Write { first: 5, count: 20, letter: b'b' }]),
        recipe(
            "long",
            false,
            (1..4).map(|i| Write { first: i * 50, count: 500, letter: b'0' + i as u8 }).collect(),
        ),
        recipe(
            "revoke",
            false,
            vec![
                Write { first: 0, count: 400, letter: b'1' },
                Revoke { first: 100, count: 200 },
                Write { first: 200, count: 50, letter: b'3' },
                Revoke { first: 0, count: 10 },
                Write { first: 20, count: 10, letter: b'4' },
            ],
        ),
        recipe(
            "uncommitted",
            false,
            vec![
                Write { first: 0, count: 100, letter: b'1' },
                WriteUncommitted { first: 50, count: 100, letter: b'2' },
            ],
        ),
        recipe("escape", true, vec![Write { first: 30, count: 60, letter: b'1' }]),
    ]
}

/// Writes the recipe's transactions with debugfs. Returns what /target holds after a right replay.
fn write_transactions(
    image: &Path,
    directory: &Path,
    recipe: &Recipe,
    version: Option<u32>,
    size: usize,
) -> Vec<u8> {
    let target = blocks_of(image, "/target");
    let list = |first: usize, count: usize| -> String {
        let numbers: Vec<_> = target[first..first + count].iter().map(u64::to_string).collect();
        numbers.join(",")
    };
    let mut expected = content(target.len(), b'a', size, false);
    let mut shadows: Vec<Vec<(usize, Vec<u8>)>> = vec![Vec::new(); target.len()];
    let open = version.map_or("jo".to_owned(), |version| format!("jo -c -v {version}"));
    let mut commands = Vec::new();
    for (transaction, step) in recipe.steps.iter().enumerate() {
        commands.push(open.clone());
        match *step {
            Step::Write { first, count, letter } | Step::WriteUncommitted { first, count, letter } => {
                let new = content(count, letter, size, recipe.escape);
                let file = directory.join(format!("new{transaction}"));
                std::fs::write(&file, &new).unwrap();
                let uncommitted = matches!(step, Step::WriteUncommitted { .. });
                let flag = if uncommitted { "-c " } else { "" };
                commands.push(format!("jw -b {} {flag}{}", list(first, count), file.display()));
                if !uncommitted {
                    for (index, block) in new.chunks(size).enumerate() {
                        shadows[first + index].push((transaction, block.to_vec()));
                    }
                }
            }
            Step::Revoke { first, count } => {
                commands.push(format!("jw -r {}", list(first, count)));
                shadows[first..first + count].iter_mut().for_each(Vec::clear);
            }
        }
        commands.push("jc".to_owned());
    }
    let script = directory.join("commands");
    std::fs::write(&script, commands.join("\n") + "\n").unwrap();
    let said = run_ok("debugfs", ["-w".as_ref(), "-f".as_ref(), script.as_os_str(), image.as_os_str()]);
    assert!(!said.contains("while"), "debugfs: {said}");
    for (index, shadow) in shadows.iter().enumerate() {
        if let Some((_, block)) = shadow.last() {
            expected[index * size..(index + 1) * size].copy_from_slice(block);
        }
    }
    expected
}

async fn replays_what_debugfs_wrote(name: &str, features: &str, block_size: &str, version: Option<u32>) {
    if !have_e2fsprogs() {
        return;
    }
    for recipe in recipes() {
        let what = format!("{name} {}", recipe.name);
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        mkfs(&image, &["-b", block_size, "-O", features, "-J", "size=8"], "48M");
        let size = block_size.parse().unwrap();
        let target = directory.path().join("target");
        std::fs::write(&target, content(700, b'a', size, false)).unwrap();
        debugfs_write(&image, &format!("write {} target", target.display()));
        let expected = write_transactions(&image, directory.path(), &recipe, version, size);
        let ext4 = Ext4::load(&image);
        debugfs_reads_the_same_log(&image, &ext4, &what).await;
        let (ours, report) = ext4.recover().await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(report.blocks > 0, "{what}: {report:?}");
        let theirs = e2fsck_replay(&ext4.content);
        assert_eq!(ext4.differences(&ours, &theirs), Vec::<usize>::new(), "{what}");
        let mut found = Vec::new();
        for block in blocks_of(&image, "/target") {
            let start = usize::try_from(block).unwrap() * size;
            found.extend_from_slice(&ours[start..start + size]);
        }
        assert!(found == expected, "{what}: /target is not what its transactions make of it");
    }
}

#[tokio::test]
async fn tags_without_checksums_32_bits() {
    replays_what_debugfs_wrote("v0-32", "^64bit,^metadata_csum", "1024", None).await;
}

#[tokio::test]
async fn tags_without_checksums_64_bits() {
    replays_what_debugfs_wrote("v0-64", "64bit,^metadata_csum", "1024", None).await;
}

#[tokio::test]
async fn tags_v2_32_bits() {
    replays_what_debugfs_wrote("v2-32", "^64bit,metadata_csum", "1024", Some(2)).await;
}

#[tokio::test]
async fn tags_v2_64_bits() {
    replays_what_debugfs_wrote("v2-64", "64bit,metadata_csum", "1024", Some(2)).await;
}

#[tokio::test]
async fn tags_v3_32_bits() {
    replays_what_debugfs_wrote("v3-32", "^64bit,metadata_csum", "1024", Some(3)).await;
}

#[tokio::test]
async fn tags_v3_64_bits_and_4_kib_blocks() {
    replays_what_debugfs_wrote("v3-64", "64bit,metadata_csum", "4096", Some(3)).await;
}

fn unpack(corpus: &Path, name: &str, directory: &Path) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, e2fsprogs_image(corpus, name).content()).unwrap();
    path
}

#[tokio::test]
async fn images_of_e2fsprogs_give_what_the_kernel_gave() {
    let Some(corpus) = corpus().filter(|_| have_e2fsprogs()) else { return };
    let directory = tempfile::tempdir().unwrap();
    // What the kernel refused is refused, by the name of what is damaged.
    for (name, refusal) in [
        ("j_corrupt_commit_csum", "commit block of transaction 3"),
        ("j_corrupt_descr_csum", "descriptor of transaction 3"),
        ("j_corrupt_journal_block", "image of block 1090 of transaction"),
        ("j_corrupt_sb_csum", "journal superblock: checksum"),
    ] {
        let ext4 = Ext4::load(&unpack(&corpus, name, directory.path()));
        let memory = ext4.device();
        let device: Arc<dyn BlockDevice> = Arc::clone(&memory) as _;
        let error = match open_with(ext4.location(&device), options()).await {
            Ok(journal) => journal.recover(&device).await.err(),
            Err(error) => Some(error),
        };
        let error = error.unwrap_or_else(|| panic!("{name} is recovered")).to_string();
        assert!(error.contains(refusal), "{name}: {error}");
        assert!(
            memory.content() == ext4.content,
            "{name}: a refused journal was changed, or its file system"
        );
    }
    for name in ["j_corrupt_revoke_csum", "j_recover_csum2_64bit"] {
        let ext4 = Ext4::load(&unpack(&corpus, name, directory.path()));
        let (ours, _) = ext4.recover().await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(ext4.differences(&ours, &e2fsck_replay(&ext4.content)), Vec::<usize>::new(), "{name}");
    }
}

/// What the tags mean is the file system's business: the log stays until it says what they change.
#[tokio::test]
async fn fast_commits_are_found_and_the_log_waits_for_them() {
    let Some(corpus) = corpus().filter(|_| have_e2fsprogs()) else { return };
    let directory = tempfile::tempdir().unwrap();
    let ext4 = Ext4::load(&unpack(&corpus, "j_recover_fast_commit", directory.path()));
    let device: Arc<dyn BlockDevice> = ext4.device();
    let journal = open_with(ext4.location(&device), options()).await.unwrap();
    let report = journal.recover(&device).await.unwrap();
    assert_eq!((report.transactions, report.end.transaction), (1, TransactionId(6)));
    let names: Vec<_> = report.fast_commits.tags().map(FastCommitTag::name).collect();
    assert_eq!(report.fast_commits.commits.len(), 1);
    println!("{names:?}, then {}", report.fast_commits.end.reason);
    assert!(names.contains(&"CREAT"), "{names:?}");
    assert!(journal.needs_recovery());
    journal.finish_recovery(&device, Vec::new()).await.unwrap();
    assert!(!journal.needs_recovery());
    assert_eq!(journal.finish_recovery(&device, Vec::new()).await.unwrap_err().errno(), Errno::EINVAL);
}

/// A salvage keeps what e2fsck keeps: around a damaged image everything else, up to a damaged commit block
/// all before it. Behind a damaged descriptor e2fsck replays nothing at all, we what comes before.
#[tokio::test]
async fn a_salvage_keeps_what_e2fsck_keeps() {
    if !have_e2fsprogs() {
        return;
    }
    for (version, features) in [(2, "64bit"), (3, "64bit"), (3, "^64bit")] {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        mkfs(&image, &["-b", "1024", "-O", &format!("{features},metadata_csum"), "-J", "size=4"], "24M");
        let target = directory.path().join("target");
        std::fs::write(&target, content(700, b'a', 1024, false)).unwrap();
        let write = format!("write {} target", target.display());
        debugfs_write(&image, &write);
        let steps =
            (0..3).map(|i| Step::Write { first: i * 10, count: 30, letter: b'1' + i as u8 }).collect();
        let recipe = Recipe { name: "three", steps, escape: false };
        write_transactions(&image, directory.path(), &recipe, Some(version), 1024);
        let intact = Ext4::load(&image);
        let dump = debugfs(&image, "logdump -a");
        let block_of = |kind: &str, nth: usize| -> u32 {
            let line = dump.lines().filter(|line| line.contains(kind)).nth(nth).unwrap();
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        for (what, block, byte) in [
            ("image", block_of("(descriptor block)", 1) + 5, 600),
            ("last image", block_of("(descriptor block)", 2) + 30, 3),
            ("commit", block_of("(commit block)", 1), 0x3b),
            ("first commit", block_of("(commit block)", 0), 0x3b),
        ] {
            let what = format!("v{version}, {features}: {what}");
            let (first, _) = intact.journal[0];
            assert_eq!(intact.journal.len(), 1, "the journal is in one piece");
            let mut content = intact.content.clone();
            content[(first.0 as usize + block as usize) * 1024 + byte] ^= 1;
            let ext4 = Ext4 { content, journal: intact.journal.clone(), ..intact };
            let memory = ext4.device();
            let device: Arc<dyn BlockDevice> = Arc::clone(&memory) as _;
            let journal = open_with(ext4.location(&device), options()).await.unwrap();
            assert!(journal.recover(&device).await.is_err(), "{what}");
            let report = journal.recover_with(&device, Recovery::SALVAGE).await.unwrap();
            assert_eq!(report.findings.len(), 1, "{what}: {report:?}");
            let theirs = e2fsck_replay(&ext4.content);
            assert_eq!(ext4.differences(&memory.content(), &theirs), Vec::<usize>::new(), "{what}");
        }
    }
}

/// Images that the kernel left in mid-flight. All of them where `EXT4_KERNEL_CORPUS` names a directory that
/// make_kernel_corpus.sh filled; otherwise a few small ones are made, where a kernel is to be had.
#[tokio::test]
async fn images_that_the_kernel_left_in_mid_flight() {
    if !have_e2fsprogs() {
        return;
    }
    let made = tempfile::tempdir().unwrap();
    let names = "^(dirty-csum-v1|dirty-wrap-1k|fc-full-commit)$";
    let Some(directories) = kernel_images(made.path(), names, &[1]) else { return };
    let images = images_named(&directories, &["dirty-", "dj-", "fc-full-commit"]);
    assert!(images.len() >= 3, "{images:?}");
    for path in images {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let ext4 = Ext4::load(&path);
        debugfs_reads_the_same_log(&path, &ext4, &name).await;
        let (ours, report) = ext4.recover().await.unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut differing = ext4.differences(&ours, &debugfs_replay(&ext4.content));
        // debugfs also brings the backups up to date when it ends.
        let backups = backups(&path);
        differing.retain(|block| !backups.contains(block));
        assert_eq!(differing, Vec::<usize>::new(), "{name}");
        println!("{name}: {report:?}");
    }
}

/// The blocks that hold copies of the superblock and of group descriptors.
fn backups(image: &Path) -> Vec<usize> {
    let said = run_ok("dumpe2fs", [image]);
    let places = |line: &str| -> Vec<usize> {
        line.split(" at ")
            .skip(1)
            .filter_map(|place| {
                let digits: String = place.chars().take_while(char::is_ascii_digit).collect();
                digits.parse().ok()
            })
            .collect()
    };
    said.lines()
        .filter(|line| line.contains("Group descriptor at") || line.contains("Backup superblock at"))
        .filter(|line| !line.contains("Primary"))
        .flat_map(places)
        .collect()
}

/// What mke2fs writes where a log begins is what we would write.
#[test]
fn a_new_superblock_is_mke2fs_own() {
    if !have_e2fsprogs() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    for block_size in ["1024", "4096"] {
        mkfs(&image, &["-b", block_size, "-J", "size=4"], "32M");
        let ext4 = Ext4::load(&image);
        let start = usize::try_from(ext4.journal[0].0.byte(ext4.block_size).unwrap()).unwrap();
        let theirs = &ext4.content[start..start + ext4.block_size.len()];
        let blocks = ext4.journal.iter().map(|(_, count)| count).sum();
        let uuid = ext4.content[1024 + 0x68..1024 + 0x78].try_into().unwrap();
        let ours =
            NewJournal { block_size: ext4.block_size, blocks, fast_commit_blocks: 0, uuid, external: false }
                .superblock();
        let differing: Vec<_> = (0..ours.len()).filter(|byte| ours[*byte] != theirs[*byte]).collect();
        assert!(differing.is_empty(), "bytes {differing:x?}");
        std::fs::remove_file(&image).unwrap();
    }
}

/// Our log in an image of mke2fs: debugfs reads it, e2fsck replays it as we do.
async fn writes_what_e2fsck_replays(arguments: &[&str]) {
    if !have_e2fsprogs() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    mkfs(&image, arguments, "24M");
    let target = directory.path().join("target");
    std::fs::write(&target, content(400, b'a', 1024, false)).unwrap();
    let write = format!("write {} target", target.display());
    debugfs_write(&image, &write);
    let blocks = blocks_of(&image, "/target");
    let mut ext4 = Ext4::load(&image);
    let size = ext4.block_size.len();

    let memory = ext4.device();
    let device: Arc<dyn BlockDevice> = Arc::clone(&memory) as _;
    let journal = open_with(ext4.location(&device), options()).await.unwrap();
    assert!(!journal.needs_recovery());
    let cache = BufferCache::new(Arc::clone(&device), ext4.block_size, 1 << 20);
    journal.start_running(&cache, ext4.metadata_csum, ext4.bit64).await.unwrap();
    let mut last = vec![0; blocks.len()];
    for round in 1..8_u8 {
        let handle = journal.start(200, "change /target").await.unwrap();
        // More than one descriptor's tags, some of them escaped, some blocks in several transactions.
        for index in (0..150).map(|index| (index * 2 + usize::from(round) * 7) % blocks.len()) {
            let block = BlockNumber(blocks[index]);
            let buffer = cache.read(block, &Opaque).await.unwrap();
            buffer
                .modify(&handle, |bytes| {
                    bytes.fill(round);
                    if index % 3 == 0 {
                        bytes[..4].copy_from_slice(&[0xc0, 0x3b, 0x39, 0x98]);
                    }
                })
                .unwrap();
            last[index] = round;
        }
        if round == 5 {
            for block in &blocks[..30] {
                cache.forget(&handle, BlockNumber(*block)).unwrap();
            }
        }
        drop(handle);
        if round == 7 {
            break; // not committed
        }
        journal.force_commit().await.unwrap();
    }
    assert_eq!(journal.statistics().checkpointed_blocks, 0, "the log holds all of it");
    drop((journal, cache));

    // The cut: what the kernel and e2fsck go by is the flag in the superblock.
    let mut content = memory.content();
    let at = 1024 + 0x60;
    content[at] |= 4;
    // The superblock's own checksum.
    if ext4.metadata_csum {
        let checksum = ext4_core::checksum::crc32c(!0, &content[1024..1024 + 0x3fc]);
        content[1024 + 0x3fc..2048].copy_from_slice(&checksum.to_le_bytes());
    }
    std::fs::write(&image, &content).unwrap();
    let dump = debugfs(&image, "logdump -a");
    for wanted in ["type 1 (descriptor", "type 2 (commit", "type 5 (revoke", "expected sequence"] {
        assert!(dump.contains(wanted), "{wanted}: {dump}");
    }
    ext4.content = content;
    debugfs_reads_the_same_log(&image, &ext4, "our log").await;
    let (ours, report) = ext4.recover().await.unwrap();
    assert_eq!(report.transactions, 6);
    assert!(report.revoked > 0);
    let theirs = e2fsck_replay(&ext4.content);
    assert_eq!(ext4.differences(&ours, &theirs), Vec::<usize>::new());
    let first = usize::try_from(blocks[100]).unwrap() * size;
    assert!((1..7).contains(&ours[first + size - 1]), "something was replayed");
    std::fs::write(&image, &theirs).unwrap();
    assert_clean(&image, "after e2fsck's replay");
}

#[tokio::test]
async fn our_log_with_checksums_v3_and_64_bits() {
    writes_what_e2fsck_replays(&["-b", "1024", "-J", "size=4"]).await;
}

#[tokio::test]
async fn our_log_with_checksums_v3_and_32_bits() {
    writes_what_e2fsck_replays(&["-b", "1024", "-J", "size=4", "-O", "^64bit"]).await;
}

#[tokio::test]
async fn our_log_without_checksums() {
    writes_what_e2fsck_replays(&["-b", "1024", "-J", "size=4", "-O", "^64bit,^metadata_csum"]).await;
    writes_what_e2fsck_replays(&["-b", "1024", "-J", "size=4", "-O", "64bit,^metadata_csum"]).await;
}
