//! The accounts of the ring: which part of it is free.
//!
//! Invariant: `free` counts only blocks that the superblock *on the medium* no longer claims: it grows after
//! the tail has moved there, never before. Were it to grow earlier, a crash could find the tail pointing at
//! blocks that a newer transaction had already written over, and recovery would stop before transactions that
//! had been reported durable.
//!
//! Invariant: one block of the ring always stays free, so that a full log and an empty one differ.

use ext4_core::TransactionId;

use super::Log;

/// Log space: the used and the free part of the ring.
#[derive(Debug)]
pub(crate) struct Space {
    /// The log block that the next transaction begins at.
    pub(crate) head: u32,
    /// Free blocks: no transaction uses them, and the superblock on the medium does not claim them.
    pub(crate) free: u32,
    /// True if the superblock on the medium says that the log is empty (jbd2: `JBD2_FLUSHED`).
    pub(crate) empty_on_medium: bool,
}

impl Space {
    /// The space of an empty ring.
    pub(crate) fn empty(log: &Log) -> Self {
        Self { head: log.first, free: log.ring().saturating_sub(1), empty_on_medium: true }
    }

    /// Takes `count` blocks at the head and returns the first. `None`: there are not as many.
    pub(crate) fn take(&mut self, log: &Log, count: u32) -> Option<u32> {
        self.free = self.free.checked_sub(count)?;
        let start = self.head;
        self.head = log.advance(start, count);
        Some(start)
    }
}

/// A committed transaction's part of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) id: TransactionId,
    /// Its first log block.
    pub(crate) start: u32,
    /// Its log blocks, all around the ring's end.
    pub(crate) count: u32,
}
