//! Counters of the data path: passes, ioends, bios, conversions, reclaim, direct I/O.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Counters of the data path since the mount. Each of them only grows; the difference of two
        /// snapshots is what happened between them. They are counted one by one, so a snapshot under load may
        /// have an event in one counter and not yet in another.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)+
        }

        /// The counters of one mounted file system, as they change.
        #[derive(Debug, Default)]
        pub(crate) struct LiveCounters {
            $(pub $name: AtomicU64,)+
        }

        impl LiveCounters {
            /// The counters now.
            pub fn snapshot(&self) -> Counters {
                Counters { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Passes of writeback over one inode (calls of writepages).
    passes,
    /// Runs of blocks allocated (or picked, to be published) at writeback or for a write without delayed
    /// allocation.
    allocations,
    /// Blocks in the runs counted by `allocations`.
    blocks_allocated,
    /// Ioends submitted.
    ioends,
    /// Bios that the ioends went out as.
    bios,
    /// Bytes that the ioends wrote.
    bytes,
    /// Runs of unwritten blocks made written.
    conversions,
    /// Runs of blocks that became part of their file with their data.
    publications,
    /// Ioends that were converted together with another one.
    merges,
    /// Handles opened for conversions and sizes.
    completion_handles,
    /// Ioends that waited for earlier data before the size could pass them.
    parked,
    /// Writers that waited for the dirty limit, for memory or for I/O on a block they change.
    stalls,
    /// Nanoseconds that writers waited at the dirty limits (balance_dirty_pages), all writers together.
    throttled_nanoseconds,
    /// Folios that reclaim dropped to make room.
    reclaimed_folios,
    /// Bytes of the folios counted by `reclaimed_folios`.
    reclaimed_bytes,
    /// Folios that reclaim moved to the active list, because they had been used again.
    activated_folios,
    /// Folios shorter than was asked for, because free memory is in small pieces.
    shorter_folios,
    /// Bios of reads.
    read_bios,
    /// Synchronous read-ahead: reads that missed the page cache and read more than was asked for.
    read_ahead_sync,
    /// Asynchronous read-ahead: a reader passed the mark, and more was read while it went on.
    read_ahead_async,
    /// Folios that were allocated, for reads and writes.
    folios_made,
    /// Direct reads: past the page cache.
    direct_reads,
    /// Direct writes: past the page cache.
    direct_writes,
    /// Direct writes that had to go through the page cache after all.
    direct_fallbacks,
}

impl LiveCounters {
    /// Adds `count` to `counter`.
    pub fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}
