//! The running journal: handles, credits, shared commits, the timer, the log short of space, abort, close.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use common::{
    DEVICE_BLOCKS, HIGH, LOG, base_image, block_of, buffer, location, open_with, options, recovered, run,
};
use ext4_core::device::simulated::{Event, FaultyDevice, RecordingDevice};
use ext4_core::device::{BioFlags, BlockDevice, MemoryDevice, Operation, Plug};
use ext4_core::meta::{BlockKind, BufferCache, Transaction};
use ext4_core::{BlockNumber, BlockSize, Errno, Error, TransactionId};
use ext4_journal::NewJournal;
use ext4_journal::{Journal, JournalLocation, JournalOptions};

async fn change(journal: &Arc<Journal>, cache: &BufferCache, block: u64, value: u8) -> TransactionId {
    let handle = journal.start(1, "change one block").await.unwrap();
    buffer(cache, block).await.modify(&handle, |bytes| bytes.fill(value)).unwrap();
    handle.id()
}

fn memory() -> (Arc<MemoryDevice>, Arc<dyn BlockDevice>) {
    let memory = Arc::new(MemoryDevice::from_image(base_image()));
    (Arc::clone(&memory), memory)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tasks_join_commit_and_run_the_log_full() {
    const TASKS: u64 = 16;
    const ROUNDS: u32 = 400;
    let (memory, device) = memory();
    let (journal, cache) = run(&device, options()).await;
    let durable: Arc<Vec<AtomicU32>> = Arc::new((0..TASKS).map(|_| AtomicU32::new(0)).collect());
    let shared = HIGH;
    let total = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for task in 0..TASKS {
        let (journal, cache, durable, total) =
            (Arc::clone(&journal), Arc::clone(&cache), Arc::clone(&durable), Arc::clone(&total));
        tasks.push(tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(task);
            for round in 1..=ROUNDS {
                let credits = random.u32(6..60);
                let handle = journal.start(credits, "one of many").await.unwrap();
                let id;
                {
                    let count = |bytes: &mut [u8]| {
                        let value = u64::from_be_bytes(bytes[..8].try_into().unwrap()) + 1;
                        bytes[..8].copy_from_slice(&value.to_be_bytes());
                    };
                    buffer(&cache, shared).await.modify(&handle, count).unwrap();
                    total.fetch_add(1, Ordering::SeqCst);
                    for index in 0..5 {
                        let block = HIGH + 1 + task * 5 + index;
                        let stamp = |bytes: &mut [u8]| bytes[..4].copy_from_slice(&round.to_be_bytes());
                        buffer(&cache, block).await.modify(&handle, stamp).unwrap();
                        if random.u8(..8) == 0 {
                            tokio::task::yield_now().await;
                        }
                    }
                    id = handle.id();
                    drop(handle);
                }
                if random.u8(..6) == 0 {
                    journal.commit(id).await.unwrap();
                    durable[usize::try_from(task).unwrap()].store(round, Ordering::SeqCst);
                }
            }
        }));
    }
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(120), task).await.expect("no deadlock").unwrap();
    }
    // A cut now: all of what was reported durable is there, each task's blocks agree.
    let after_cut = recovered(memory.image()).await.unwrap();
    for task in 0..TASKS {
        let stamps: Vec<u32> = (0..5)
            .map(|index| {
                let block = block_of(&after_cut, HIGH + 1 + task * 5 + index);
                u32::from_be_bytes(block[..4].try_into().unwrap())
            })
            .collect();
        assert!(stamps.iter().all(|stamp| *stamp == stamps[0]), "half an operation: {stamps:?}");
        assert!(stamps[0] >= durable[usize::try_from(task).unwrap()].load(Ordering::SeqCst));
    }
    let statistics = journal.statistics();
    journal.close(false).await.unwrap();
    let counted = u64::from_be_bytes(block_of(&memory.image(), shared)[..8].try_into().unwrap());
    assert_eq!(counted, total.load(Ordering::SeqCst));
    assert_eq!(counted, TASKS * u64::from(ROUNDS));
    assert_eq!(statistics.handles, counted);
    assert!(statistics.log_blocks > 3 * 1024, "the log was run through several times: {statistics:?}");
    let journal = open_with(location(&device), options()).await.unwrap();
    assert!(!journal.needs_recovery());
}

#[tokio::test]
async fn concurrent_commits_share_one() {
    let faulty = Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::from_image(base_image()))));
    let recorder = Arc::new(RecordingDevice::around(Arc::clone(&faulty) as _, base_image()));
    let device: Arc<dyn BlockDevice> = Arc::clone(&recorder) as _;
    let (journal, cache) = run(&device, options()).await;
    faulty.reorder(1);
    let driver = tokio::spawn(async move { faulty.drive().await });
    let mut tasks = Vec::new();
    for task in 0..32 {
        let (journal, cache) = (Arc::clone(&journal), Arc::clone(&cache));
        tasks.push(tokio::spawn(async move {
            let id = change(&journal, &cache, HIGH + task, 1).await;
            journal.commit(id).await.unwrap()
        }));
    }
    for task in tasks {
        assert!(task.await.unwrap(), "each commit flushed after its caller asked");
    }
    driver.abort();
    let statistics = journal.statistics();
    assert!(statistics.transactions <= 3, "{statistics:?}");
    // One flush, which comes with the commit block, for each.
    assert_eq!(
        recorder.recording().flushes() as u64,
        statistics.transactions + 1,
        "and one for the features"
    );
}

#[tokio::test]
async fn commit_of_what_is_durable_does_nothing() {
    let (_, device) = memory();
    let (journal, cache) = run(&device, options()).await;
    let id = change(&journal, &cache, HIGH, 1).await;
    assert!(journal.commit(id).await.unwrap());
    assert!(!journal.commit(id).await.unwrap());
    // A transaction in which no handle changed anything.
    drop(journal.start(5, "nothing").await.unwrap());
    let before = journal.statistics();
    journal.force_commit().await.unwrap();
    assert_eq!(journal.statistics().transactions, before.transactions);
    let without_barrier = {
        let (_, device) = memory();
        let (journal, cache) = run(&device, JournalOptions { commit_interval: None, barrier: false }).await;
        let id = change(&journal, &cache, HIGH, 1).await;
        journal.commit(id).await.unwrap()
    };
    assert!(!without_barrier);
}

#[tokio::test(start_paused = true)]
async fn an_old_transaction_is_committed() {
    let (memory, device) = memory();
    let interval = Some(Duration::from_secs(5));
    let (journal, cache) = run(&device, JournalOptions { commit_interval: interval, barrier: true }).await;
    for round in 1..4 {
        change(&journal, &cache, HIGH, round).await;
        tokio::time::sleep(Duration::from_millis(4900)).await;
        assert_eq!(journal.statistics().transactions, u64::from(round) - 1);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(journal.statistics().transactions, u64::from(round));
        assert_eq!(block_of(&recovered(memory.image()).await.unwrap(), HIGH), vec![round; 1024]);
    }
    // An idle journal stays so.
    drop(journal.start(1, "nothing").await.unwrap());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(journal.statistics().transactions, 3);
}

#[tokio::test]
async fn credits_are_taken_once_for_each_block_and_given_back() {
    let (_, device) = memory();
    let (journal, cache) = run(&device, options()).await;
    assert_eq!(journal.max_credits(), 256);
    let handle = journal.start(3, "count credits").await.unwrap();
    let one = buffer(&cache, HIGH).await;
    for _ in 0..5 {
        one.modify(&handle, |bytes| bytes.fill(1)).unwrap();
    }
    assert_eq!(handle.credits(), 2);
    let other = journal.start(1, "another").await.unwrap();
    one.modify(&other, |bytes| bytes.fill(2)).unwrap();
    assert_eq!(other.credits(), 1, "the block is the transaction's already");
    cache.forget(&handle, BlockNumber(HIGH)).unwrap();
    assert_eq!(handle.credits(), 3);
    assert!(handle.extend(200).unwrap());
    assert_eq!(handle.credits(), 203);
    assert!(!handle.extend(100).unwrap(), "there is no room in a quarter of the log");
    drop(other);
    drop(handle);
    let error = journal.start(257, "too much").await.unwrap_err();
    assert_eq!(error.errno(), Errno::ENOSPC);
}

#[tokio::test]
#[should_panic(expected = "careless changes block 1701 without a credit for it")]
async fn changing_more_than_was_asked_for_is_caught_by_name() {
    let (_, device) = memory();
    let (journal, cache) = run(&device, options()).await;
    let handle = journal.start(1, "careless").await.unwrap();
    for block in [HIGH, HIGH + 1] {
        buffer(&cache, block).await.modify(&handle, |bytes| bytes.fill(1)).unwrap();
    }
}

#[tokio::test]
async fn a_handle_waits_where_the_transaction_is_full_and_that_one_is_committed() {
    let (_, device) = memory();
    let (journal, cache) = run(&device, options()).await;
    let first = journal.start(200, "large").await.unwrap();
    buffer(&cache, HIGH).await.modify(&first, |bytes| bytes.fill(1)).unwrap();
    let second = tokio::spawn({
        let journal = Arc::clone(&journal);
        async move { journal.start(100, "does not fit").await.map(|handle| handle.id()) }
    });
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    assert!(!second.is_finished());
    assert!(!first.extend(1).unwrap(), "the transaction is being locked");
    let id = first.id();
    drop(first);
    assert_eq!(second.await.unwrap().unwrap(), id.next());
}

#[tokio::test]
async fn abort_is_sticky_reaches_every_caller_and_is_recorded() {
    let (memory, device) = memory();
    let (journal, cache) = run(&device, options()).await;
    change(&journal, &cache, HIGH, 1).await;
    journal.force_commit().await.unwrap();
    let handle = journal.start(5, "aborted").await.unwrap();
    let block = buffer(&cache, HIGH).await;
    block.modify(&handle, |bytes| bytes.fill(2)).unwrap();
    let committer = tokio::spawn({
        let journal = Arc::clone(&journal);
        async move { journal.force_commit().await }
    });
    tokio::task::yield_now().await;
    journal.abort(&Error::io("write", "somewhere", Errno::EIO));
    journal.abort(&Error::corrupt("something", "later"));
    assert!(matches!(committer.await.unwrap(), Err(Error::Aborted(_))));
    assert!(matches!(block.modify(&handle, |_| ()), Err(Error::Aborted(_))));
    assert!(matches!(handle.extend(1), Err(Error::Aborted(_))));
    drop(handle);
    assert!(matches!(journal.start(1, "after").await, Err(Error::Aborted(_))));
    assert!(matches!(journal.flush().await, Err(Error::Aborted(_))));
    assert_eq!(journal.aborted().unwrap().errno(), Errno::EIO);
    assert!(matches!(journal.close(false).await, Err(Error::Aborted(_))));
    drop((journal, cache));
    let journal = open_with(location(&device), options()).await.unwrap();
    assert_eq!(journal.recorded_errno(), -(Errno::EIO as i32));
    assert!(journal.needs_recovery());
    journal.recover(&device).await.unwrap();
    assert_eq!(block_of(&memory.image(), HIGH), vec![1; 1024]);
    journal.clear_errno().await.unwrap();
    assert_eq!(open_with(location(&device), options()).await.unwrap().recorded_errno(), 0);
}

#[tokio::test]
async fn an_error_of_the_device_aborts() {
    for (operation, place) in [
        (Operation::Write, LOG[0].0 * 1024..(LOG[0].0 + 600) * 1024),
        (Operation::Write, HIGH * 1024..(HIGH + 1) * 1024),
    ] {
        let faulty = Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::from_image(base_image()))));
        let device: Arc<dyn BlockDevice> = Arc::clone(&faulty) as _;
        let (journal, cache) = run(&device, options()).await;
        change(&journal, &cache, HIGH, 1).await;
        faulty.fail_range(operation, place);
        let result = journal.flush().await;
        assert!(matches!(result, Err(Error::Aborted(_))), "{result:?}");
        assert_eq!(journal.aborted().unwrap().errno(), Errno::EIO);
        assert!(matches!(journal.close(false).await, Err(Error::Aborted(_))));
    }
}

#[tokio::test]
async fn closing_leaves_a_clean_log_and_erasing_a_new_one() {
    let mut contents = Vec::new();
    for rounds in [1, 40] {
        let (memory, device) = memory();
        let (journal, cache) = run(&device, options()).await;
        for round in 0..rounds {
            change(&journal, &cache, HIGH + round % 7, 1).await;
            journal.force_commit().await.unwrap();
        }
        for block in 0..7 {
            change(&journal, &cache, HIGH + block, 5).await;
        }
        journal.close(true).await.unwrap();
        assert_eq!(journal.start(1, "late").await.unwrap_err().errno(), Errno::EROFS);
        journal.close(true).await.unwrap();
        contents.push(memory.image().to_vec());
        let again = open_with(location(&device), options()).await.unwrap();
        assert!(!again.needs_recovery());
    }
    assert!(contents[0] == contents[1], "an erased log does not tell what went through it");
    let log = LOG.iter().flat_map(|(first, count)| *first..first + u64::from(*count)).skip(1);
    for block in log {
        let start = usize::try_from(block * 1024).unwrap();
        assert!(contents[0][start..start + 1024].iter().all(|byte| *byte == 0), "block {block}");
    }

    let (memory, device) = memory();
    let (journal, cache) = run(&device, options()).await;
    change(&journal, &cache, HIGH, 3).await;
    journal.close(false).await.unwrap();
    assert_eq!(block_of(&memory.image(), HIGH), vec![3; 1024]);
    drop((journal, cache));
    // It opens and runs again, and flush leaves it empty while it runs.
    let (journal, cache) = run(&device, options()).await;
    change(&journal, &cache, HIGH, 4).await;
    journal.flush().await.unwrap();
    assert!(!open_with(location(&device), options()).await.unwrap().needs_recovery());
    change(&journal, &cache, HIGH, 5).await;
    journal.force_commit().await.unwrap();
    assert!(open_with(location(&device), options()).await.unwrap().needs_recovery());
    assert_eq!(block_of(&recovered(memory.image()).await.unwrap(), HIGH), vec![5; 1024]);
}

#[tokio::test]
async fn an_external_log_flushes_the_file_system_before_its_commit_block() {
    let mut log_image = ext4_core::device::simulated::Image::zeroed(1024 * 1024);
    log_image.write(
        0,
        &NewJournal {
            block_size: BlockSize::KIB_1,
            blocks: 1024,
            fast_commit_blocks: 0,
            uuid: [1; 16],
            external: false,
        }
        .superblock(),
    );
    let log = Arc::new(MemoryDevice::from_image(log_image));
    let filesystem = Arc::new(RecordingDevice::new(base_image()));
    let log_device: Arc<dyn BlockDevice> = Arc::clone(&log) as _;
    let device: Arc<dyn BlockDevice> = Arc::clone(&filesystem) as _;
    let location = JournalLocation {
        device: Arc::clone(&log_device),
        block_size: BlockSize::KIB_1,
        runs: vec![(BlockNumber(0), 1024)],
        superblock: 0,
    };
    let journal = open_with(location.clone(), options()).await.unwrap();
    let cache = BufferCache::new(Arc::clone(&device), BlockSize::KIB_1, 1 << 20);
    journal.start_running(&cache, true, false).await.unwrap();
    change(&journal, &cache, HIGH, 1).await;
    journal.force_commit().await.unwrap();
    assert_eq!(filesystem.recording().flushes(), 1);
    assert_eq!(filesystem.recording().writes(), 0);
    let journal = open_with(location.clone(), options()).await.unwrap();
    let report = journal.recover(&device).await.unwrap();
    assert_eq!((report.transactions, report.blocks), (1, 1));
    assert_eq!(block_of(&filesystem.recording().cut_at(usize::MAX).with_none(), HIGH), vec![1; 1024]);
}

#[tokio::test]
async fn nothing_is_written_before_there_is_something_to_write() {
    let recorder = Arc::new(RecordingDevice::new(base_image()));
    let device: Arc<dyn BlockDevice> = Arc::clone(&recorder) as _;
    let (journal, _cache) = run(&device, options()).await;
    assert_eq!(recorder.recording().writes(), 1, "the features");
    journal.close(false).await.unwrap();
    assert_eq!(recorder.recording().writes(), 1);
    let (journal, _cache) = run(&device, options()).await;
    assert_eq!(recorder.recording().writes(), 1, "they are there already");
    journal.close(false).await.unwrap();
    assert_eq!(recorder.recording().writes(), 1);
    let writes = recorder.recording();
    let flags = writes.events().iter().find_map(|event| match event {
        Event::Submitted { flags, .. } => Some(*flags),
        _ => None,
    });
    assert!(flags.unwrap().contains(BioFlags::PREFLUSH | BioFlags::FUA));
}

/// Holds back writes that touch a range until it is told to let them go.
#[derive(Debug)]
struct HoldingDevice {
    inner: Arc<dyn BlockDevice>,
    range: std::ops::Range<u64>,
    held: parking_lot::Mutex<Option<Plug>>,
}

impl HoldingDevice {
    fn release(&self) {
        let held = self.held.lock().take();
        self.inner.submit(held.unwrap_or_default());
    }

    fn holds(&self) -> usize {
        self.held.lock().as_ref().map_or(0, Vec::len)
    }
}

impl BlockDevice for HoldingDevice {
    fn geometry(&self) -> &ext4_core::device::Geometry {
        self.inner.geometry()
    }

    fn submit(&self, plug: Plug) {
        let touches = |bio: &ext4_core::device::Bio| {
            bio.operation == Operation::Write
                && bio.offset < self.range.end
                && self.range.start < bio.offset + bio.len
        };
        let (mut held, passed): (Plug, Plug) = plug.into_iter().partition(touches);
        if let Some(holding) = &mut *self.held.lock() {
            holding.append(&mut held);
        }
        self.inner.submit(passed);
        self.inner.submit(held);
    }
}

/// While the superblock is being told that the log is empty nothing may be committed: its last word would be
/// lost.
#[tokio::test]
async fn a_commit_waits_while_the_log_is_marked_empty() {
    let (memory, inner) = memory();
    let range = LOG[0].0 * 1024..(LOG[0].0 + 1) * 1024;
    let holding = Arc::new(HoldingDevice { inner, range, held: parking_lot::Mutex::default() });
    let device: Arc<dyn BlockDevice> = Arc::clone(&holding) as _;
    let (journal, cache) = run(&device, options()).await;
    change(&journal, &cache, HIGH, 1).await;
    journal.force_commit().await.unwrap();
    // The tail moves on with one write, the next says that the log is empty.
    *holding.held.lock() = Some(Vec::new());
    let flush = tokio::spawn({
        let journal = Arc::clone(&journal);
        async move { journal.flush().await }
    });
    while holding.holds() == 0 {
        tokio::task::yield_now().await;
    }
    let tail_move = holding.held.lock().replace(Vec::new());
    holding.inner.submit(tail_move.unwrap());
    while holding.holds() == 0 {
        tokio::task::yield_now().await;
    }
    change(&journal, &cache, HIGH, 2).await;
    let commit = tokio::spawn({
        let journal = Arc::clone(&journal);
        async move { journal.force_commit().await }
    });
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    holding.release();
    commit.await.unwrap().unwrap();
    flush.await.unwrap().unwrap();
    assert_eq!(block_of(&recovered(memory.image()).await.unwrap(), HIGH), vec![2; 1024]);
}

/// A block that is being checkpointed while the transaction that frees it commits: it must not be handed out
/// before the write has landed, or that would land on what it is used for next.
#[tokio::test]
async fn a_freed_block_waits_for_its_checkpoint_in_flight() {
    let (_, memory) = memory();
    let range = HIGH * 1024..(HIGH + 1) * 1024;
    let holding =
        Arc::new(HoldingDevice { inner: memory, range, held: parking_lot::Mutex::new(Some(Vec::new())) });
    let device: Arc<dyn BlockDevice> = Arc::clone(&holding) as _;
    let (journal, cache) = run(&device, options()).await;
    change(&journal, &cache, HIGH, 1).await;
    let flush = tokio::spawn({
        let journal = Arc::clone(&journal);
        async move { journal.flush().await }
    });
    while holding.holds() == 0 {
        tokio::task::yield_now().await;
    }
    let freed = Arc::new(AtomicU32::new(0));
    let handle = journal.start(2, "free it").await.unwrap();
    cache.forget(&handle, BlockNumber(HIGH)).unwrap();
    let told = Arc::clone(&freed);
    handle.on_commit(Box::new(move || told.store(1, Ordering::SeqCst)));
    drop(handle);
    let commit = tokio::spawn({
        let journal = Arc::clone(&journal);
        async move { journal.force_commit().await }
    });
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    assert_eq!(freed.load(Ordering::SeqCst), 0, "the old content is still on its way");
    holding.release();
    commit.await.unwrap().unwrap();
    assert_eq!(freed.load(Ordering::SeqCst), 1);
    flush.await.unwrap().unwrap();
}

/// Any single bit of the log flipped: an error, or the state after one of the transactions, and nothing else
/// changed.
#[tokio::test]
async fn a_flipped_bit_gives_an_error_or_an_older_state() {
    let (memory, device) = memory();
    let (journal, cache) = run(&device, options()).await;
    for round in 1..6 {
        let handle = journal.start(10, "round").await.unwrap();
        for block in 0..3 {
            buffer(&cache, HIGH + block).await.modify(&handle, |bytes| bytes.fill(round)).unwrap();
        }
        cache.create(&handle, BlockNumber(HIGH + 10), BlockKind::Opaque).unwrap();
        if round % 2 == 0 {
            cache.forget(&handle, BlockNumber(HIGH + 10)).unwrap();
        }
        drop(handle);
        journal.force_commit().await.unwrap();
    }
    let used = usize::try_from(journal.statistics().log_blocks).unwrap() + 2;
    drop((journal, cache));
    let image = memory.image();
    let mut random = fastrand::Rng::with_seed(9);
    let (mut replayed, mut refused) = (0, 0);
    for _ in 0..4000 {
        let mut bad = image.clone();
        let at = LOG[0].0 * 1024 + random.u64(0..used as u64 * 1024);
        let mut byte = [0];
        bad.read(at, &mut byte);
        bad.write(at, &[byte[0] ^ (1 << random.u8(0..8))]);
        let Ok(result) = recovered(bad.clone()).await else {
            refused += 1;
            continue;
        };
        replayed += 1;
        let states: Vec<u8> = (0..3).map(|block| block_of(&result, HIGH + block)[0]).collect();
        assert!(states.iter().all(|state| *state == states[0]), "byte {at}: {states:?}");
        for block in (0..64).chain(488..1100).chain(HIGH + 11..DEVICE_BLOCKS) {
            assert!(
                block_of(&result, block) == block_of(&bad, block),
                "byte {at}: block {block} was changed"
            );
        }
    }
    println!("{replayed} replayed, {refused} refused");
    assert!(replayed > 100 && refused > 1000, "{replayed} replayed, {refused} refused");
}
