//! Room in the journal: which handles wait for it and in which order, what is set aside, revokes beyond what
//! is counted, how the checkpoint makes it, and what the statistics say of the waiting. On the simulated
//! scheduler, so that what waits for ever is reported.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use common::{DEVICE_BLOCKS, HIGH, LOG, base_image, block_of, buffer, location, recovered};
use ext4_core::device::simulated::{Change, Event, FaultyDevice, RecordingDevice};
use ext4_core::device::{BioFlags, BlockDevice, MemoryDevice};
use ext4_core::environment::{Runtime, Simulation};
use ext4_core::meta::{BufferCache, Transaction};
use ext4_core::{BlockNumber, BlockSize};
use ext4_journal::{Journal, JournalOptions};
use parking_lot::Mutex;

/// A journal that runs in a world of its own.
#[derive(Clone)]
struct Bench {
    world: Simulation,
    runtime: Arc<dyn Runtime>,
    memory: Arc<MemoryDevice>,
    faulty: Arc<FaultyDevice>,
    recorder: Arc<RecordingDevice>,
    journal: Arc<Journal>,
    cache: Arc<BufferCache>,
}

/// Runs `work` on a journal.
fn bench<F: Future<Output = ()> + Send + 'static>(seed: u64, work: impl FnOnce(Bench) -> F + Send + 'static) {
    let world = Simulation::new(seed);
    let inner = world.clone();
    let main = async move {
        let memory = Arc::new(MemoryDevice::from_image(base_image()));
        let faulty = Arc::new(FaultyDevice::new(Arc::clone(&memory) as _));
        let recorder = Arc::new(RecordingDevice::around(Arc::clone(&faulty) as _, base_image()));
        let device: Arc<dyn BlockDevice> = Arc::clone(&recorder) as _;
        let runtime = inner.runtime();
        let options = JournalOptions { commit_interval: None, barrier: true };
        let journal = Journal::open(location(&device), options, inner.environment(), Arc::clone(&runtime));
        let journal = journal.await.unwrap();
        let cache = BufferCache::new(device, BlockSize::KIB_1, 1 << 20);
        journal.start_running(&cache, true, true).await.unwrap();
        work(Bench { world: inner, runtime, memory, faulty, recorder, journal, cache }).await;
    };
    world.run(main).unwrap_or_else(|stuck| panic!("{stuck}"));
}

impl Bench {
    async fn change(&self, handle: &dyn Transaction, blocks: std::ops::Range<u64>, value: u8) {
        for block in blocks {
            buffer(&self.cache, block).await.modify(handle, |bytes| bytes.fill(value)).unwrap();
        }
    }

    /// Holds the device back from now on: nothing completes until it is driven.
    fn hold(&self) {
        self.faulty.reorder(1);
    }

    fn let_go(&self) {
        let faulty = Arc::clone(&self.faulty);
        drop(self.world.spawn("the device", async move { faulty.drive().await }));
    }
}

#[test]
fn a_large_handle_has_its_turn_in_a_crowd_of_small_ones() {
    for seed in 0..20 {
        bench(seed, |bench| async move {
            let started = Arc::new(AtomicU64::new(0));
            let mut crowd = Vec::new();
            for task in 0..24_u64 {
                let (bench, started) = (bench.clone(), Arc::clone(&started));
                crowd.push(bench.world.clone().spawn(&format!("small {task}"), async move {
                    for round in 0..60_u64 {
                        let handle = bench.journal.start(9, "small").await.unwrap();
                        started.fetch_add(1, Ordering::SeqCst);
                        let first = HIGH + (task * 7 + round) % 400;
                        bench.change(&handle, first..first + 5, 1).await;
                        bench.runtime.sleep(Duration::from_micros(5)).await;
                    }
                }));
            }
            bench.runtime.sleep(Duration::from_micros(60)).await;
            let before = started.load(Ordering::SeqCst);
            for _ in 0..3 {
                let large = bench.journal.start(bench.journal.max_credits(), "large").await.unwrap();
                bench.change(&large, HIGH..HIGH + 3, 2).await;
            }
            let overtook = started.load(Ordering::SeqCst) - before;
            // Those that were open or before it in the queue; not those that came after.
            assert!(overtook < 24 * 10, "{overtook} small ones came before three large ones");
            for task in crowd {
                task.await.unwrap();
            }
            assert_eq!(started.load(Ordering::SeqCst), 24 * 60);
        });
    }
}

#[test]
fn a_handle_that_gives_up_waiting_leaves_the_queue() {
    bench(1, |bench| async move {
        let first = bench.journal.start(200, "in the way").await.unwrap();
        bench.change(&first, HIGH..HIGH + 200, 1).await;
        {
            let mut gone = std::pin::pin!(bench.journal.start(100, "gives up"));
            tokio::select! {
                biased;
                _ = gone.as_mut() => panic!("there is no room"),
                () = bench.runtime.sleep(Duration::from_millis(1)) => {}
            }
            let journal = Arc::clone(&bench.journal);
            let behind =
                bench.world.spawn("behind", async move { journal.start(100, "behind").await.is_ok() });
            bench.runtime.sleep(Duration::from_millis(1)).await;
            drop(first);
            drop(gone.as_mut().await.unwrap());
            assert!(behind.await.unwrap());
        }
        // One that is at the front and goes before it was admitted.
        let first = bench.journal.start(200, "in the way again").await.unwrap();
        let journal = Arc::clone(&bench.journal);
        let mut gone = Box::pin(async move { journal.start(250, "gives up").await.map(drop) });
        tokio::select! {
            biased;
            _ = gone.as_mut() => panic!("there is no room"),
            () = bench.runtime.sleep(Duration::from_millis(1)) => {}
        }
        let journal = Arc::clone(&bench.journal);
        let behind = bench.world.spawn("behind", async move { journal.start(5, "behind").await.is_ok() });
        bench.runtime.sleep(Duration::from_millis(1)).await;
        drop(gone);
        drop(first);
        assert!(behind.await.unwrap());
    });
}

#[test]
fn more_revokes_than_were_counted_find_room_in_a_full_log() {
    bench(3, |bench| async move {
        // Blocks for 40 revoke blocks, none of them in the transaction.
        let count = 5000_u64;
        for round in 0..6_u64 {
            let handle = bench.journal.start(200, "fill").await.unwrap();
            bench.change(&handle, HIGH..HIGH + 200, 1).await;
            drop(handle);
            if round % 2 == 0 {
                bench.journal.force_commit().await.unwrap();
            }
        }
        let mut left = None;
        for round in 0..4_u64 {
            let handle = bench.journal.start(2, "free many").await.unwrap();
            for block in 0..count {
                // Far beyond the device: what is freed was never here, only its revoke counts.
                bench.cache.forget(&handle, BlockNumber(DEVICE_BLOCKS + round * count + block)).unwrap();
            }
            bench.change(&handle, HIGH + 300..HIGH + 301, 7).await;
            left = Some(handle.id());
        }
        bench.journal.commit(left.unwrap()).await.unwrap();
        assert_eq!(bench.journal.statistics().revokes, 4 * count);
        let image = recovered_in(&bench).await;
        assert_eq!(block_of(&image, HIGH + 300), vec![7; 1024]);
        bench.journal.close(false).await.unwrap();
    });
}

async fn recovered_in(bench: &Bench) -> ext4_core::device::simulated::Image {
    recovered(bench.memory.image()).await.unwrap()
}

#[test]
fn the_checkpoint_writes_adjacent_blocks_as_one_and_begins_before_the_log_is_full() {
    bench(1, |bench| async move {
        // 250 blocks in a row, changed in no order, and a few by themselves.
        let mut random = fastrand::Rng::with_seed(1);
        let mut blocks: Vec<u64> = (0..240).map(|number| HIGH + number).collect();
        random.shuffle(&mut blocks);
        let handle = bench.journal.start(250, "many").await.unwrap();
        for block in blocks.into_iter().chain([HIGH + 300, HIGH + 302]) {
            bench.change(&handle, block..block + 1, 1).await;
        }
        drop(handle);
        bench.journal.flush().await.unwrap();
        let in_log =
            |block: u64| LOG.iter().any(|(first, n)| (*first..first + u64::from(*n)).contains(&block));
        let events = bench.recorder.recording();
        let written: Vec<(u64, usize, BioFlags)> = events
            .events()
            .iter()
            .filter_map(|event| match event {
                Event::Submitted { change: Change::Write { offset, data }, flags }
                    if !in_log(offset / 1024) =>
                {
                    Some((offset / 1024, data.len() / 1024, *flags))
                }
                _ => None,
            })
            .collect();
        let places: Vec<_> = written.iter().map(|(block, count, _)| (*block, *count)).collect();
        assert_eq!(places, [(HIGH, 240), (HIGH + 300, 1), (HIGH + 302, 1)]);
        assert!(written.iter().all(|(.., flags)| flags.contains(BioFlags::BACKGROUND)));
        // From here on in small steps: a handle that starts never finds the log full.
        let before = bench.journal.statistics();
        for round in 0..400_u64 {
            let handle = bench.journal.start(8, "little").await.unwrap();
            let first = HIGH + round % 50 * 8;
            bench.change(&handle, first..first + 8, 2).await;
            drop(handle);
            bench.journal.force_commit().await.unwrap();
        }
        let after = bench.journal.statistics();
        assert!(after.log_blocks - before.log_blocks > 3 * 1023);
        assert_eq!(after.times.waiting, Duration::ZERO, "no handle waited");
        bench.journal.close(false).await.unwrap();
    });
}

#[test]
fn fsyncs_that_come_together_share_a_commit() {
    bench(1, |bench| async move {
        bench.hold();
        bench.let_go();
        let flushed = Arc::new(AtomicU32::new(0));
        let mut tasks = Vec::new();
        for task in 0..64_u64 {
            let (bench, flushed) = (bench.clone(), Arc::clone(&flushed));
            tasks.push(bench.world.clone().spawn(&format!("task {task}"), async move {
                for round in 0..10 {
                    let handle = bench.journal.start(4, "fsync").await.unwrap();
                    bench.change(&handle, HIGH + task..HIGH + task + 1, round).await;
                    let id = handle.id();
                    drop(handle);
                    if bench.journal.commit(id).await.unwrap() {
                        flushed.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let statistics = bench.journal.statistics();
        assert!(statistics.transactions <= 40, "{statistics:?}");
        assert_eq!(statistics.per_transaction(statistics.handles), 640 / statistics.transactions);
        println!("640 commits of 64 tasks: {} transactions", statistics.transactions);
    });
}

#[test]
fn the_statistics_say_where_the_time_went() {
    bench(1, |bench| async move {
        let (journal, runtime) = (Arc::clone(&bench.journal), Arc::clone(&bench.runtime));
        let handle = journal.start(10, "slow").await.unwrap();
        bench.change(&handle, HIGH..HIGH + 10, 1).await;
        runtime.sleep(Duration::from_millis(30)).await;
        let id = handle.id();
        let committed = bench.world.spawn("commits", {
            let journal = Arc::clone(&journal);
            async move { journal.commit(id).await }
        });
        runtime.sleep(Duration::from_millis(7)).await;
        let started = Arc::new(Mutex::new(Duration::ZERO));
        let waits = bench.world.spawn("waits for the lock", {
            let (journal, runtime, started) =
                (Arc::clone(&journal), Arc::clone(&runtime), Arc::clone(&started));
            let bench = bench.clone();
            async move {
                let handle = journal.start(1, "waits").await.unwrap();
                *started.lock() = runtime.monotonic();
                bench.change(&handle, HIGH..HIGH + 1, 2).await;
            }
        });
        runtime.sleep(Duration::from_millis(5)).await;
        bench.hold();
        drop(handle);
        runtime.sleep(Duration::from_millis(11)).await;
        bench.let_go();
        assert!(committed.await.unwrap().unwrap());
        waits.await.unwrap();
        let statistics = journal.statistics();
        assert_eq!((statistics.transactions, statistics.requested), (1, 1));
        assert_eq!(statistics.max_transaction_blocks, journal.max_credits());
        let millis = Duration::from_millis;
        assert_eq!(statistics.times.running, millis(30));
        assert_eq!(statistics.times.locked, millis(12));
        assert_eq!(statistics.times.flushing + statistics.times.logging, millis(11));
        assert_eq!(statistics.times.request_delay, Duration::ZERO);
        assert_eq!(statistics.average_commit_time, millis(23));
        assert_eq!(statistics.average(statistics.times.running), millis(30));
        journal.force_commit().await.unwrap();
        let statistics = journal.statistics();
        assert_eq!(statistics.times.waiting, millis(5), "the second one waited while the first was locked");
        assert_eq!(statistics.transactions, 2);
    });
}
