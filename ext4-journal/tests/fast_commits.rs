//! When a fast commit may be written and where, by a source of tags that knows no files.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::{buffer, open_with, options};
use ext4_core::device::simulated::Image;
use ext4_core::device::{BlockDevice, MemoryDevice};
use ext4_core::meta::{BufferCache, Transaction as _};
use ext4_core::{BlockNumber, BlockSize, InodeNumber, LogicalBlock, TransactionId};
use ext4_journal::NewJournal;
use ext4_journal::{FastCommitSource, FastCommitTag, FastCommitTags, Ineligible, Journal, JournalLocation};

/// The log: 1,104 blocks of 1 KiB from block 100 on, the last 16 of them the area, of which 14 are used.
const LOG: (u64, u32) = (100, 1104);
const AREA: u64 = LOG.0 + LOG.1 as u64 - 16 + 1;
const USED: usize = 14;

/// Gives so many tags each time.
#[derive(Default)]
struct Source {
    tags: usize,
    ineligible: AtomicBool,
    taken: AtomicUsize,
}

impl FastCommitSource for Source {
    fn is_eligible(&self, _id: TransactionId) -> bool {
        !self.ineligible.load(Ordering::Relaxed)
    }

    fn take(&self, _id: TransactionId) -> Result<Vec<FastCommitTag>, Ineligible> {
        let round = self.taken.fetch_add(1, Ordering::Relaxed) as u32;
        let tag = |at: usize| FastCommitTag::DelRange {
            inode: InodeNumber(12 + round),
            logical: LogicalBlock(at as u32),
            len: 1,
        };
        Ok((0..self.tags).map(tag).collect())
    }
}

struct Running {
    memory: Arc<MemoryDevice>,
    journal: Arc<Journal>,
    cache: Arc<BufferCache>,
}

async fn run() -> Running {
    let mut image = Image::zeroed(4000 * 1024);
    let superblock = NewJournal {
        block_size: BlockSize::KIB_1,
        blocks: LOG.1,
        fast_commit_blocks: 16,
        uuid: [9; 16],
        external: false,
    };
    image.write(LOG.0 * 1024, &superblock.superblock());
    let memory = Arc::new(MemoryDevice::from_image(image));
    let device: Arc<dyn BlockDevice> = Arc::clone(&memory) as _;
    let location = JournalLocation {
        device: Arc::clone(&device),
        block_size: BlockSize::KIB_1,
        runs: vec![(BlockNumber(LOG.0), LOG.1)],
        superblock: 0,
    };
    let journal = open_with(location, options()).await.unwrap();
    let cache = BufferCache::new(device, BlockSize::KIB_1, 1 << 20);
    journal.allow_fast_commits();
    journal.start_running(&cache, true, true).await.unwrap();
    Running { memory, journal, cache }
}

impl Running {
    /// Changes a block in a handle; the transaction it was in.
    async fn change(&self, block: u64) -> TransactionId {
        let buffer = buffer(&self.cache, block).await;
        let handle = self.journal.start(4, "test").await.unwrap();
        buffer.modify(&handle, |bytes| bytes[0] = bytes[0].wrapping_add(1)).unwrap();
        handle.id()
    }

    fn area_block(&self, at: usize) -> Vec<u8> {
        let mut block = vec![0; 1024];
        self.memory.image().read((AREA + at as u64) * 1024, &mut block);
        block
    }

    fn tags(&self, at: usize) -> Vec<FastCommitTag> {
        let block = self.area_block(at);
        FastCommitTags::new(&block).map_while(Result::ok).map(|(_, tag)| tag).collect()
    }
}

#[tokio::test]
async fn an_empty_log_is_committed_in_full_first() {
    let running = run().await;
    let source = Source { tags: 1, ..Source::default() };
    let id = running.change(10).await;
    assert!(running.journal.fast_commit(id, &source).await.unwrap(), "it flushed");
    let fast = running.journal.statistics().fast_commits;
    assert_eq!((fast.commits, fast.log_empty), (0, 1));
    assert_eq!(running.area_block(0), vec![0; 1024]);
    // From now on there is something in the log.
    let id = running.change(10).await;
    assert!(running.journal.fast_commit(id, &source).await.unwrap());
    assert_eq!(running.journal.statistics().fast_commits.commits, 1);
    assert!(matches!(running.tags(0)[0], FastCommitTag::Head { features: 0, id: head } if head == id));
    // Nothing is lost by emptying it: the transaction is committed in full before.
    running.journal.flush().await.unwrap();
    assert!(running.tags(0).is_empty());
    assert_eq!(running.journal.statistics().transactions, 2);
}

#[tokio::test]
async fn fast_commits_follow_one_another_until_the_area_is_full() {
    let running = run().await;
    // Four blocks each: three fit into 14.
    let source = Source { tags: 200, ..Source::default() };
    let first = running.change(10).await;
    running.journal.commit(first).await.unwrap();
    for round in 0..2 {
        let id = running.change(20).await;
        for number in 0..3 {
            running.change(21 + number).await;
            assert!(running.journal.fast_commit(id, &source).await.unwrap());
        }
        let fast = running.journal.statistics().fast_commits;
        assert_eq!((fast.commits, fast.area_full), (3 * (round + 1), round));
        let tails = (0..USED)
            .flat_map(|at| running.tags(at))
            .filter(|tag| matches!(tag, FastCommitTag::Tail { id: tail, .. } if *tail == id))
            .count();
        assert_eq!(tails, 3);
        assert!(matches!(running.tags(0)[0], FastCommitTag::Head { id: head, .. } if head == id));
        let full = running.journal.statistics().transactions;
        running.change(24).await;
        assert!(running.journal.fast_commit(id, &source).await.unwrap());
        let statistics = running.journal.statistics();
        assert_eq!((statistics.fast_commits.area_full, statistics.transactions), (round + 1, full + 1));
        // The next fast commit waits for the zeros over the head of these; so does this, by way of a commit.
        let next = running.change(30).await;
        running.journal.commit(next).await.unwrap();
        assert!(running.tags(0).is_empty(), "old fast commits are void");
    }
    for at in USED..15 {
        assert_eq!(running.area_block(at), vec![0; 1024], "the area's last block is left alone");
    }
}

#[tokio::test]
async fn what_is_ineligible_or_has_committed_is_no_fast_commit() {
    let running = run().await;
    let source = Source { tags: 1, ..Source::default() };
    let first = running.change(10).await;
    running.journal.commit(first).await.unwrap();
    source.ineligible.store(true, Ordering::Relaxed);
    let id = running.change(10).await;
    assert!(running.journal.fast_commit(id, &source).await.unwrap());
    assert!(!running.journal.fast_commit(id, &source).await.unwrap(), "it is durable: nothing was flushed");
    let fast = running.journal.statistics().fast_commits;
    assert_eq!((fast.commits, fast.ineligible, fast.overtaken), (0, 1, 1));
    assert_eq!(source.taken.load(Ordering::Relaxed), 0);
}

/// Nothing has happened since: nothing is written, and the caller is told that nothing was flushed.
#[tokio::test]
async fn a_fast_commit_of_nothing_writes_nothing() {
    let running = run().await;
    let source = Source::default();
    let first = running.change(10).await;
    running.journal.commit(first).await.unwrap();
    let id = running.change(10).await;
    assert!(!running.journal.fast_commit(id, &source).await.unwrap());
    let fast = running.journal.statistics().fast_commits;
    assert_eq!((fast.commits, fast.served), (0, 1));
}

/// The snapshot waits for the open handle, and a new one waits for the snapshot.
#[tokio::test]
async fn the_snapshot_is_taken_between_handles() {
    let running = run().await;
    let source = Arc::new(Source { tags: 1, ..Source::default() });
    let first = running.change(10).await;
    running.journal.commit(first).await.unwrap();
    let open = running.journal.start(4, "open").await.unwrap();
    let id = open.id();
    let committing = tokio::spawn({
        let (journal, source) = (Arc::clone(&running.journal), Arc::clone(&source));
        async move { journal.fast_commit(id, &*source).await }
    });
    tokio::task::yield_now().await;
    let late = tokio::spawn({
        let journal = Arc::clone(&running.journal);
        async move { journal.start(4, "late").await.unwrap().id() }
    });
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert_eq!(source.taken.load(Ordering::Relaxed), 0, "a handle is open");
    assert!(!late.is_finished(), "handles are kept out");
    let buffer = buffer(&running.cache, 11).await;
    buffer.modify(&open, |bytes| bytes[0] = 1).unwrap();
    drop(open);
    assert!(committing.await.unwrap().unwrap());
    assert_eq!(source.taken.load(Ordering::Relaxed), 1);
    assert_eq!(late.await.unwrap(), id, "the transaction goes on");
}

/// A caller that goes away while it has the transaction paused leaves it running, and the next fsync is a
/// full commit.
#[tokio::test]
async fn a_caller_that_goes_away_lets_handles_go_on() {
    let running = run().await;
    let source = Source { tags: 1, ..Source::default() };
    let first = running.change(10).await;
    running.journal.commit(first).await.unwrap();
    let id = running.change(10).await;
    let open = running.journal.start(4, "open").await.unwrap();
    {
        let mut waiting = std::pin::pin!(running.journal.fast_commit(id, &source));
        let polled = poll_once(&mut waiting).await;
        assert!(polled.is_none(), "it waits for the handle");
    }
    drop(open);
    assert_eq!(running.change(12).await, id);
    assert!(running.journal.fast_commit(id, &source).await.unwrap());
    let statistics = running.journal.statistics();
    assert_eq!((statistics.fast_commits.commits, statistics.fast_commits.failed), (0, 1));
    assert_eq!(statistics.transactions, 2);
}

/// Polls once.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}
