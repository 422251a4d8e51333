//! Power cuts at every moment of random workloads: recovery brings back the state after some operation, never
//! one older than what had been reported durable, and never old metadata over a file's data.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{HIGH, base_image, block_of, location, open_with, options, recovered, run};
use ext4_core::BlockNumber;
use ext4_core::device::simulated::{FaultyDevice, Image, RecordingDevice};
use ext4_core::device::{AlignedBuffer, BioFlags, BlockDevice, MemoryDevice, Segment};
use ext4_core::meta::{BlockKind, BufferCache, Transaction};
use ext4_journal::{Handle, Journal, JournalOptions};
use parking_lot::Mutex;

/// The block that every operation stamps with its number.
const COUNTER: u64 = HIGH;
/// Blocks that operations use as metadata and as data in turn: few, so that each is used again and again, or
/// many, so that some are left alone until a checkpoint writes them.
const FEW: u64 = 60;
const MANY: u64 = 450;

/// What a block is used for after an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    Metadata(u32),
    Data(u32),
}

type Snapshot = BTreeMap<u64, Use>;

fn content(used: Use) -> Vec<u8> {
    let (kind, stamp) = match used {
        Use::Metadata(stamp) => (1_u8, stamp),
        Use::Data(stamp) => (2, stamp),
    };
    let mut bytes = vec![kind; 1024];
    // Some begin like a block of the log.
    if stamp.is_multiple_of(5) {
        bytes[..4].copy_from_slice(&[0xc0, 0x3b, 0x39, 0x98]);
    }
    bytes[4..8].copy_from_slice(&stamp.to_be_bytes());
    bytes
}

/// Random operations through a journal, and what each must leave.
struct Load {
    random: fastrand::Rng,
    journal: Arc<Journal>,
    cache: Arc<BufferCache>,
    device: Arc<dyn BlockDevice>,
    now: Snapshot,
    /// The state after each operation.
    states: Vec<Snapshot>,
    /// Freed blocks that may be used again.
    free: Arc<Mutex<Vec<u64>>>,
}

impl Load {
    async fn step(&mut self) {
        let number = u32::try_from(self.states.len()).unwrap();
        let mut new_data = None;
        if self.random.u8(..3) == 0
            && let Some(block) = self.take_free()
        {
            // Data has reached the device before the operation that refers to it.
            let data = AlignedBuffer::copied(&content(Use::Data(number))).unwrap();
            self.device.write_at(block * 1024, vec![Segment::Owned(data)], BioFlags::empty()).await.unwrap();
            new_data = Some(block);
        }
        let handle = self.journal.start(12, "a random operation").await.unwrap();
        let counter = common::buffer(&self.cache, COUNTER).await;
        counter.modify(&handle, |bytes| bytes.copy_from_slice(&content(Use::Metadata(number)))).unwrap();
        if let Some(block) = new_data {
            self.now.insert(block, Use::Data(number));
        }
        for _ in 0..self.random.u32(0..6) {
            let metadata = self.used(|used| matches!(used, Use::Metadata(_)));
            if let Some(block) = self.random.choice(&metadata).copied() {
                let buffer = common::buffer(&self.cache, block).await;
                let used = Use::Metadata(number);
                buffer.modify(&handle, |bytes| bytes.copy_from_slice(&content(used))).unwrap();
                self.now.insert(block, used);
            }
        }
        for _ in 0..self.random.u32(0..3) {
            if let Some(block) = self.take_free() {
                self.create(&handle, block, number);
            }
        }
        let filling = self.now.len() < 200 && self.free.lock().len() > 200;
        let most = if filling { 1 } else { 3 };
        for _ in 0..self.random.u32(0..most) {
            let all = self.used(|_| true);
            if let Some(block) = self.random.choice(&all).copied() {
                self.release(&handle, block, number);
            }
        }
        self.states.push(self.now.clone());
    }

    fn create(&mut self, handle: &Handle, block: u64, number: u32) {
        let buffer = self.cache.create(handle, BlockNumber(block), BlockKind::Opaque).unwrap();
        let used = Use::Metadata(number);
        buffer.modify(handle, |bytes| bytes.copy_from_slice(&content(used))).unwrap();
        self.now.insert(block, used);
    }

    fn release(&mut self, handle: &Handle, block: u64, number: u32) {
        if let Some(Use::Metadata(_)) = self.now.remove(&block) {
            self.cache.forget(handle, BlockNumber(block)).unwrap();
            if self.random.u8(..4) == 0 {
                // Freed, and metadata again, in one transaction.
                return self.create(handle, block, number);
            }
        }
        let free = Arc::clone(&self.free);
        handle.on_commit(Box::new(move || free.lock().push(block)));
    }

    fn used(&self, wanted: impl Fn(&Use) -> bool) -> Vec<u64> {
        self.now.iter().filter(|(_, used)| wanted(used)).map(|(block, _)| *block).collect()
    }

    fn take_free(&mut self) -> Option<u64> {
        let mut free = self.free.lock();
        if free.is_empty() {
            return None;
        }
        let index = self.random.usize(..free.len());
        Some(free.swap_remove(index))
    }
}

struct Recorded {
    device: Arc<RecordingDevice>,
    states: Vec<Snapshot>,
    statistics: ext4_journal::Statistics,
}

/// Runs `operations` random operations, committing now and then, and drops the journal or closes it.
async fn record(seed: u64, blocks: u64, operations: u32, close: bool) -> Recorded {
    let faulty = Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::from_image(base_image()))));
    faulty.reorder(seed);
    let recorder = RecordingDevice::around(Arc::clone(&faulty) as _, base_image());
    // The commit is written another way where FUA is a flush behind the write.
    let recorder = Arc::new(if seed.is_multiple_of(3) { recorder.without_fua() } else { recorder });
    let driver = tokio::spawn(async move { faulty.drive().await });
    let device: Arc<dyn BlockDevice> = Arc::clone(&recorder) as _;
    let (journal, cache) = run(&device, options()).await;
    let mut load = Load {
        random: fastrand::Rng::with_seed(seed),
        journal,
        cache,
        device,
        now: Snapshot::new(),
        states: vec![Snapshot::new()],
        free: Arc::new(Mutex::new((HIGH + 1..=HIGH + blocks).collect())),
    };
    let mut waiting = Vec::new();
    for _ in 0..operations {
        load.step().await;
        if load.random.u8(..5) == 0 {
            let number = load.states.len() - 1;
            let (journal, recorder) = (Arc::clone(&load.journal), Arc::clone(&recorder));
            // The next operations run while it commits.
            waiting.push(tokio::spawn(async move {
                journal.force_commit().await.unwrap();
                recorder.mark(format!("durable {number}"));
            }));
        }
        if load.random.u8(..8) == 0 {
            for commit in waiting.drain(..) {
                commit.await.unwrap();
            }
        }
    }
    for commit in waiting {
        commit.await.unwrap();
    }
    if close {
        load.journal.close(false).await.unwrap();
        recorder.mark(format!("durable {operations}"));
    }
    let statistics = load.journal.statistics();
    let states = std::mem::take(&mut load.states);
    drop(load);
    driver.abort();
    Recorded { device: recorder, states, statistics }
}

/// Panics unless `image`, recovered, holds the state after an operation from `durable` on. Returns which.
async fn check(image: Image, durable: u32, states: &[Snapshot], what: &str) -> usize {
    let recovered = recovered(image).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    let counter = block_of(&recovered, COUNTER);
    let number = u32::from_be_bytes(counter[4..8].try_into().unwrap());
    assert!(number >= durable, "{what}: operation {durable} was durable, recovery brought back {number}");
    if number > 0 {
        assert_eq!(counter, content(Use::Metadata(number)), "{what}: the counter");
    }
    for (block, used) in &states[number as usize] {
        let found = block_of(&recovered, *block);
        assert!(found == content(*used), "{what}: block {block} is not {used:?} as after operation {number}");
    }
    number as usize
}

fn durable(cut: &ext4_core::device::simulated::Cut<'_>) -> u32 {
    cut.marks().filter_map(|mark| mark.strip_prefix("durable ")?.parse().ok()).max().unwrap_or(0)
}

async fn cut_everywhere(
    seed: u64,
    blocks: u64,
    operations: u32,
    close: bool,
    step: usize,
) -> ext4_journal::Statistics {
    let recorded = record(seed, blocks, operations, close).await;
    let recording = recorded.device.recording();
    let mut cuts = 0;
    for cut in recording.cuts().step_by(step) {
        let durable = durable(&cut);
        let at = cut.position();
        let none =
            check(cut.with_none(), durable, &recorded.states, &format!("seed {seed}, {at}, none")).await;
        let all = check(cut.with_all(), durable, &recorded.states, &format!("seed {seed}, {at}, all")).await;
        assert!(all >= none);
        let variant = cut.variant(seed);
        check(variant, durable, &recorded.states, &format!("seed {seed}, {at}, variant")).await;
        cuts += 3;
    }
    assert!(cuts > 100, "{cuts} cuts");
    recorded.statistics
}

#[tokio::test]
async fn any_cut_recovers_a_state_that_was_at_least_the_durable_one() {
    for seed in 0..6 {
        let statistics = cut_everywhere(seed, FEW, 120, seed % 2 == 0, 1).await;
        assert!(statistics.revokes > 0, "{statistics:?}");
    }
}

#[tokio::test]
async fn the_log_wraps_around_many_times() {
    let statistics = cut_everywhere(77, MANY, 2500, false, 37).await;
    assert!(statistics.log_blocks > 5 * 1024, "{statistics:?}");
    assert!(statistics.checkpointed_blocks > 0, "{statistics:?}");
}

/// Transactions as large as they can be: each is written over what the last checkpoint has just freed.
#[tokio::test]
async fn the_log_is_written_over_only_after_its_tail_has_moved() {
    let faulty = Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::from_image(base_image()))));
    faulty.reorder(3);
    let recorder = Arc::new(RecordingDevice::around(Arc::clone(&faulty) as _, base_image()));
    let driver = tokio::spawn(async move { faulty.drive().await });
    let device: Arc<dyn BlockDevice> = Arc::clone(&recorder) as _;
    let (journal, cache) = run(&device, options()).await;
    for round in 1..=14_u8 {
        let handle = journal.start(256, "a large operation").await.unwrap();
        for block in HIGH..HIGH + 256 {
            let buffer = common::buffer(&cache, block).await;
            buffer.modify(&handle, |bytes| bytes.fill(round)).unwrap();
        }
        drop(handle);
        journal.force_commit().await.unwrap();
        recorder.mark(format!("durable {round}"));
    }
    drop((journal, cache));
    driver.abort();
    let recording = recorder.recording();
    for cut in recording.cuts() {
        let durable = durable(&cut);
        for image in [cut.with_none(), cut.with_all(), cut.variant(0), cut.variant(1), cut.variant(2)] {
            let recovered = recovered(image).await.unwrap();
            let first = block_of(&recovered, HIGH)[0];
            assert!(u32::from(first) >= durable, "{}: {durable} was durable, not {first}", cut.position());
            for block in HIGH..HIGH + 256 {
                assert!(
                    block_of(&recovered, block) == vec![first; 1024],
                    "{}: block {block}",
                    cut.position()
                );
            }
        }
    }
}

#[tokio::test]
async fn a_cut_during_recovery_changes_nothing() {
    let recorded = record(5, FEW, 150, false).await;
    let recording = recorded.device.recording();
    let total = recording.cuts().count();
    for cut in recording.cuts().step_by(total / 8) {
        let image = cut.with_all();
        let expected = recovered(image.clone()).await.unwrap();
        let recorder = Arc::new(RecordingDevice::new(image));
        let device: Arc<dyn BlockDevice> = Arc::clone(&recorder) as _;
        let journal = open_with(location(&device), options()).await.unwrap();
        journal.recover(&device).await.unwrap();
        let again = recorder.recording();
        for inner in again.cuts() {
            for image in [inner.with_none(), inner.with_all(), inner.variant(3)] {
                let result = recovered(image).await.unwrap();
                for block in (0..64).chain(HIGH..common::DEVICE_BLOCKS) {
                    assert_eq!(block_of(&result, block), block_of(&expected, block), "block {block}");
                }
            }
        }
    }
}

#[tokio::test]
async fn dropping_a_running_journal_is_a_crash() {
    let memory = Arc::new(MemoryDevice::from_image(base_image()));
    let device: Arc<dyn BlockDevice> = Arc::clone(&memory) as _;
    let interval = Some(std::time::Duration::from_secs(3600));
    let (journal, cache) = run(&device, JournalOptions { commit_interval: interval, barrier: true }).await;
    let weak = Arc::downgrade(&journal);
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert!(tasks >= 2);
    for (number, commit) in [(1_u8, true), (2, false)] {
        let handle = journal.start(1, "change").await.unwrap();
        common::buffer(&cache, HIGH).await.modify(&handle, |bytes| bytes.fill(number)).unwrap();
        drop(handle);
        if commit {
            journal.force_commit().await.unwrap();
        }
    }
    drop((journal, cache));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(weak.upgrade().is_none(), "a task keeps the journal");
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), tasks - 2, "a task is left");
    let recovered = recovered(memory.image()).await.unwrap();
    assert_eq!(block_of(&recovered, HIGH), vec![1; 1024]);
}

#[tokio::test]
async fn freed_metadata_that_became_data_survives_recovery() {
    let memory = Arc::new(MemoryDevice::from_image(base_image()));
    let device: Arc<dyn BlockDevice> = Arc::clone(&memory) as _;
    let (journal, cache) = run(&device, options()).await;
    let block = BlockNumber(HIGH + 3);
    let handle = journal.start(2, "make metadata").await.unwrap();
    cache.create(&handle, block, BlockKind::Opaque).unwrap().modify(&handle, |bytes| bytes.fill(1)).unwrap();
    drop(handle);
    journal.force_commit().await.unwrap();

    let freed = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let handle = journal.start(2, "free it").await.unwrap();
    cache.forget(&handle, block).unwrap();
    let told = Arc::clone(&freed);
    handle.on_commit(Box::new(move || told.store(true, std::sync::atomic::Ordering::SeqCst)));
    drop(handle);
    assert!(!freed.load(std::sync::atomic::Ordering::SeqCst), "a freed block is held back until the commit");
    journal.force_commit().await.unwrap();
    assert!(freed.load(std::sync::atomic::Ordering::SeqCst));

    let mut data = AlignedBuffer::zeroed(1024).unwrap();
    data.fill(9);
    device.write_at(block.0 * 1024, vec![Segment::Owned(data)], BioFlags::FUA).await.unwrap();
    // Without a crash: no checkpoint writes the old metadata.
    journal.flush().await.unwrap();
    assert_eq!(block_of(&memory.image(), block.0), vec![9; 1024]);
    drop((journal, cache));
    assert_eq!(block_of(&recovered(memory.image()).await.unwrap(), block.0), vec![9; 1024]);
}
