//! What the data path did, counted.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// What the data path did since the mount. Each figure only grows; the difference of two snapshots is what
        /// happened between them. They are counted one by one, so a snapshot under load may have one event in one figure
        /// and not yet in another.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)+
        }

        /// The counters as they are counted.
        #[derive(Debug, Default)]
        pub(crate) struct LiveCounters {
            $(pub $name: AtomicU64,)+
        }

        impl LiveCounters {
            /// The figures now.
            pub fn snapshot(&self) -> Counters {
                Counters { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Passes of writeback over one inode (calls of writepages).
    passes,
    /// Runs of blocks allocated (or picked, to be published) at writeback or for a write without delayed allocation.
    allocations,
    /// Blocks in them.
    blocks_allocated,
    /// Ioends submitted.
    ioends,
    /// Bios they went out as.
    bios,
    /// Bytes they wrote.
    bytes,
    /// Runs of unwritten blocks made written.
    conversions,
    /// Runs of blocks that became part of their file with their data.
    publications,
    /// Ioends that another one's conversion took along.
    merges,
    /// Handles opened for conversions and sizes.
    completion_handles,
    /// Ioends that waited for earlier data before the size could pass them.
    parked,
    /// Writers that waited for the dirty limit, for memory or for I/O on a block they change.
    stalls,
    /// Nanoseconds that writers waited at the dirty limits, all together.
    throttled_nanoseconds,
    /// Folios given up to make room.
    reclaimed_folios,
    /// Bytes of them.
    reclaimed_bytes,
    /// Folios that were found in use again when they were to be given up.
    activated_folios,
    /// Folios that are shorter than was asked for, because memory is in small pieces.
    shorter_folios,
    /// Bios of reads.
    read_bios,
    /// Reads that did not find what they wanted in memory and read more than that.
    read_ahead_sync,
    /// Times that a reader passed the mark and more was read behind his back.
    read_ahead_async,
    /// Folios that were made, for reads and writes.
    folios_made,
    /// Reads past the page cache.
    direct_reads,
    /// Writes past the page cache.
    direct_writes,
    /// Those of them that had to go through it after all.
    direct_fallbacks,
}

impl LiveCounters {
    /// Counts.
    pub fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}
