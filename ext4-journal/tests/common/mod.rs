//! What the journal's tests share: a runtime, a device with a log in it, the tools of e2fsprogs.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses some of it, and a test may panic")]

pub mod mutation;
pub mod raw_log;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ext4_core::device::simulated::Image;
use ext4_core::device::{BlockDevice, MemoryDevice};
use ext4_core::environment::{BoxFuture, FixedEnvironment, Runtime};
use ext4_core::meta::{Buffer, BufferCache, Opaque};
use ext4_core::{BlockNumber, BlockSize, Result, Timestamp};
use ext4_journal::NewJournal;
use ext4_journal::{Journal, JournalLocation, JournalOptions};
use ext4_test_support::tools::{self, Judged, debugfs};
use tokio::time::Instant;

/// Tasks and timers of the tokio runtime around the test.
pub struct TestRuntime(pub Instant);

impl Runtime for TestRuntime {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        drop(tokio::spawn(task));
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}

pub fn options() -> JournalOptions {
    JournalOptions { commit_interval: None, barrier: true }
}

/// A device of 1 KiB blocks with a log in two pieces and nothing else.
pub const DEVICE_BLOCKS: u64 = 2200;
/// Where the log lies: 1,024 blocks, the fewest there may be.
pub const LOG: [(u64, u32); 2] = [(1100, 600), (64, 424)];
/// Blocks below this one and from [`HIGH`] on are free for a test.
pub const HIGH: u64 = 1700;

pub fn location(device: &Arc<dyn BlockDevice>) -> JournalLocation {
    JournalLocation {
        device: Arc::clone(device),
        block_size: BlockSize::KIB_1,
        runs: LOG.iter().map(|(block, count)| (BlockNumber(*block), *count)).collect(),
        superblock: 0,
    }
}

/// The device's first content: an empty log, zeros elsewhere.
pub fn base_image() -> Image {
    let mut image = Image::zeroed(DEVICE_BLOCKS * 1024);
    image.write(
        LOG[0].0 * 1024,
        &NewJournal {
            block_size: BlockSize::KIB_1,
            blocks: 1024,
            fast_commit_blocks: 0,
            uuid: [7; 16],
            external: false,
        }
        .superblock(),
    );
    image
}

pub async fn open_with(location: JournalLocation, options: JournalOptions) -> Result<Arc<Journal>> {
    let environment =
        Arc::new(FixedEnvironment::new(Timestamp { seconds: 1_700_000_000, nanoseconds: 0 }, 1));
    Journal::open(location, options, environment, Arc::new(TestRuntime(Instant::now()))).await
}

/// Opens, recovers where needed, and runs the journal of a device made from [`base_image`].
pub async fn run(device: &Arc<dyn BlockDevice>, options: JournalOptions) -> (Arc<Journal>, Arc<BufferCache>) {
    let journal = open_with(location(device), options).await.unwrap();
    if journal.needs_recovery() {
        journal.recover(device).await.unwrap();
    }
    let cache = BufferCache::new(Arc::clone(device), BlockSize::KIB_1, 1 << 20);
    journal.start_running(&cache, true, true).await.unwrap();
    (journal, cache)
}

/// The device after recovery of `image`.
pub async fn recovered(image: Image) -> Result<Image> {
    let memory = Arc::new(MemoryDevice::from_image(image));
    let device: Arc<dyn BlockDevice> = Arc::clone(&memory) as _;
    let journal = open_with(location(&device), options()).await?;
    journal.recover(&device).await?;
    Ok(memory.image())
}

pub async fn buffer(cache: &BufferCache, block: u64) -> Buffer {
    cache.read(BlockNumber(block), &Opaque).await.unwrap()
}

pub fn block_of(image: &Image, block: u64) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    image.read(block * 1024, &mut bytes);
    bytes
}

/// Runs a tool: its exit code and what it said.
pub fn tool(program: &str, arguments: &[&str]) -> (i32, String) {
    let output = tools::run(program, arguments);
    (output.status.code().unwrap_or(-1), tools::said(&output))
}

/// The blocks of a file in order, as debugfs lists them; those of its map or extent tree left out.
pub fn blocks_of(image: &Path, file: &str) -> Vec<u64> {
    let said = debugfs(image, &format!("stat {file}"));
    let (_, list) = said.split_once("BLOCKS:").or_else(|| said.split_once("EXTENTS:")).unwrap();
    let range = |text: &str| -> Option<std::ops::RangeInclusive<u64>> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    let piece = |piece: &str| {
        let (logical, physical) = piece.trim().strip_prefix('(')?.split_once("):")?;
        range(logical).and(range(physical))
    };
    list.split([',', '\n']).filter_map(piece).flatten().collect()
}

/// An ext4 image in memory, with what a test must know of it. Read with our own eyes from the superblock: the
/// rooms above are not there.
pub struct Ext4 {
    pub content: Vec<u8>,
    pub block_size: BlockSize,
    pub journal: Vec<(BlockNumber, u32)>,
    pub bit64: bool,
    pub metadata_csum: bool,
}

impl Ext4 {
    pub fn load(path: &Path) -> Self {
        let content = std::fs::read(path).unwrap();
        let word = |at: usize| u32::from_le_bytes(content[1024 + at..1024 + at + 4].try_into().unwrap());
        let block_size = BlockSize::from_bits(10 + word(0x18)).unwrap();
        let (incompat, ro_compat) = (word(0x60), word(0x64));
        let mut journal: Vec<(BlockNumber, u32)> = Vec::new();
        for block in blocks_of(path, "<8>") {
            match journal.last_mut() {
                Some((first, count)) if first.offset(u64::from(*count)).0 == block => *count += 1,
                _ => journal.push((BlockNumber(block), 1)),
            }
        }
        Self {
            block_size,
            journal,
            bit64: incompat & 0x80 != 0,
            metadata_csum: ro_compat & 0x400 != 0,
            content,
        }
    }

    pub fn device(&self) -> Arc<MemoryDevice> {
        Arc::new(MemoryDevice::from_content(self.content.clone()))
    }

    pub fn location(&self, device: &Arc<dyn BlockDevice>) -> JournalLocation {
        JournalLocation {
            device: Arc::clone(device),
            block_size: self.block_size,
            runs: self.journal.clone(),
            superblock: 0,
        }
    }

    /// The content after our recovery.
    pub async fn recover(&self) -> Result<(Vec<u8>, ext4_journal::RecoveryReport)> {
        let memory = self.device();
        let device: Arc<dyn BlockDevice> = Arc::clone(&memory) as _;
        let journal = open_with(self.location(&device), options()).await?;
        let report = journal.recover(&device).await?;
        let again = open_with(self.location(&device), options()).await?;
        assert!(!again.needs_recovery());
        Ok((memory.content(), report))
    }

    /// The blocks in which two contents differ, the log's and the superblock's own left out.
    pub fn differences(&self, left: &[u8], right: &[u8]) -> Vec<usize> {
        assert_eq!(left.len(), right.len());
        let size = self.block_size.len();
        let in_log = |block: usize| {
            self.journal
                .iter()
                .any(|(first, count)| (first.0..first.0 + u64::from(*count)).contains(&(block as u64)))
        };
        let outside_superblock = |block: &[u8], number: usize| {
            let mut block = block.to_vec();
            let start = number * size;
            for byte in 1024_usize..2048 {
                if byte >= start && byte < start + size {
                    block[byte - start] = 0;
                }
            }
            block
        };
        (0..left.len() / size)
            .filter(|block| !in_log(*block))
            .filter(|block| {
                let range = block * size..(block + 1) * size;
                outside_superblock(&left[range.clone()], *block) != outside_superblock(&right[range], *block)
            })
            .collect()
    }
}

/// What debugfs's replay makes of an image: it leaves the orphans alone, which e2fsck's does not.
pub fn debugfs_replay(content: &[u8]) -> Vec<u8> {
    content.in_a_file(|path| {
        tools::debugfs_write(path, "jr");
        std::fs::read(path).unwrap()
    })
}

/// What e2fsck's replay, and the orphans' after it, makes of an image.
pub fn e2fsck_replay(content: &[u8]) -> Vec<u8> {
    content.in_a_file(|path| {
        let (code, said) = tool("e2fsck", &["-y", "-E", "journal_only", path.to_str().unwrap()]);
        assert!(code <= 1, "e2fsck: {code}: {said}");
        std::fs::read(path).unwrap()
    })
}
