//! The inode's list of ioends: which are in flight, done, parked, unfinished.
//!
//! Locks: the mutex is a leaf. Attendants of one inode and a worker may look at the list at the same time;
//! [`CompletionQueue::park`] sees to it that nothing is forgotten between them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use ext4_core::{Error, LogicalBlock, Result};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::cache::ioend::Ioend;

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Ioends that are not converted yet: (first byte, number) → byte behind the last.
    pub(crate) in_flight: BTreeMap<(u64, u64), u64>,
    /// Ioends that are not finished: number → bytes of the file.
    pub(crate) unfinished: BTreeMap<u64, Range<u64>>,
    /// Their I/O has ended.
    pub(crate) done: Vec<Ioend>,
    /// They wait for earlier ones.
    pub(crate) parked: Vec<Ioend>,
    /// How many ioends have left `in_flight`: who parks what he found blocked asks whether that is still true.
    pub(crate) removals: u64,
    /// There is work: the inode is in the workers' queue, or somebody who waits does it.
    pub(crate) queued: bool,
    /// How many wait for this inode and do its work meanwhile.
    pub(crate) attendants: u32,
    /// The block at the end of i_disksize could not be written, or not be mapped.
    pub(crate) failed_tail: Option<(LogicalBlock, Error)>,
    /// That block is dirty and in no ioend yet, while its folio is written back.
    unsent_tail: Option<LogicalBlock>,
}

/// The inode's list of ioends, and i_disksize for those who must not wait for the inode's lock.
#[derive(Debug)]
pub(crate) struct CompletionQueue {
    disk_size: AtomicU64,
    pub(crate) state: Mutex<State>,
    /// Ioends were finished, or there is work for whoever waits: those of other inodes sleep on.
    pub(crate) progress: Notify,
}

impl CompletionQueue {
    /// Nothing in flight; `disk_size` is the size in the inode on the device (i_disksize).
    pub fn new(disk_size: u64) -> Self {
        Self { disk_size: AtomicU64::new(disk_size), state: Mutex::default(), progress: Notify::new() }
    }

    /// i_disksize.
    pub fn disk_size(&self) -> u64 {
        self.disk_size.load(Ordering::SeqCst)
    }

    /// i_disksize was changed. The caller holds the inode's lock for writing.
    pub fn set_disk_size(&self, size: u64) {
        self.disk_size.store(size, Ordering::SeqCst);
    }

    /// `ioend` is being built.
    pub fn start(&self, ioend: &Ioend) {
        let mut state = self.state.lock();
        state.in_flight.insert((ioend.offset, ioend.id), u64::MAX);
        state.unfinished.insert(ioend.id, ioend.offset..u64::MAX);
    }

    /// `ioend` is complete and about to be submitted.
    pub fn close(&self, ioend: &Ioend) {
        let mut state = self.state.lock();
        state.in_flight.insert((ioend.offset, ioend.id), ioend.end());
        state.unfinished.insert(ioend.id, ioend.offset..ioend.end());
        state.unsent_tail = state.unsent_tail.filter(|block| !ioend.blocks.contains(block));
    }

    /// The folio that holds `block`, the dirty one at the end of i_disksize, is about to be written back.
    pub fn expect_tail(&self, block: LogicalBlock) {
        self.state.lock().unsent_tail = Some(block);
    }

    /// The writeback of its folio ended, with the last ioend closed: where it failed before the block was in an ioend,
    /// what lies behind the block fails with it.
    pub fn note_tail_sent(&self, result: &Result<()>) {
        let mut state = self.state.lock();
        if let (Some(block), Err(error)) = (state.unsent_tail.take(), result) {
            state.failed_tail = Some((block, error.clone()));
        }
    }

    /// True where an ioend that reaches past `position` is unfinished.
    pub fn is_in_flight_from(&self, position: u64) -> bool {
        self.state.lock().in_flight.values().any(|end| *end > position)
    }

    /// A truncation cut the failed block off, or it is to be tried again.
    pub fn forget_failed_tail(&self) {
        self.state.lock().failed_tail = None;
    }

    /// Blocks `blocks` have been written: if the failed tail is among them, it is none any more.
    pub fn note_tail_written(&self, blocks: &Range<LogicalBlock>) {
        let mut state = self.state.lock();
        if state.failed_tail.as_ref().is_some_and(|(block, _)| blocks.contains(block)) {
            state.failed_tail = None;
        }
    }

    /// True where the block at the end of i_disksize could not be written.
    pub fn has_failed_tail(&self) -> bool {
        self.state.lock().failed_tail.is_some()
    }

    /// True where every ioend over bytes `range` with a number below `id` is finished.
    pub fn is_range_finished_below(&self, range: &Range<u64>, id: u64) -> bool {
        let state = self.state.lock();
        !state.unfinished.range(..id).any(|(_, of)| of.start < range.end && range.start < of.end)
    }

    /// From now on whoever calls this does the workers' part, until [`CompletionQueue::stop_attending`].
    pub fn attend(&self) {
        self.state.lock().attendants += 1;
    }

    /// True where work is left that nobody does any more.
    pub fn stop_attending(&self) -> bool {
        let mut state = self.state.lock();
        state.attendants -= 1;
        state.queued && state.attendants == 0
    }

    /// True where there is work for a worker or an attendant.
    pub fn has_work(&self) -> bool {
        self.state.lock().queued
    }

    /// Resolves when ioends of the inode have been finished since this was called, or there is work for an attendant.
    pub fn progress(&self) -> Notified<'_> {
        self.progress.notified()
    }

    /// `ioend` blocks nobody any more. True where others are parked, perhaps behind it: they have to be looked at.
    #[must_use]
    pub(crate) fn remove(&self, ioend: &Ioend) -> bool {
        let mut state = self.state.lock();
        state.in_flight.remove(&(ioend.offset, ioend.id));
        state.removals += 1;
        !state.parked.is_empty()
    }

    /// Ends a look at what was completed: parks `ioends`, which are blocked. `removals` is what it was when the look
    /// began; since then `own` ioends were taken out of `in_flight` by the caller. True where somebody has to look
    /// again: what the parked were found to be blocked by may be gone, and whoever took it away did not see them.
    #[must_use]
    pub(crate) fn park(&self, mut ioends: Vec<Ioend>, removals: u64, own: u64) -> bool {
        let mut state = self.state.lock();
        let others_parked = own > 0 && !state.parked.is_empty();
        let others_removed = !ioends.is_empty() && state.removals != removals + own;
        state.parked.append(&mut ioends);
        others_parked || others_removed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ext4_core::BlockNumber;

    use super::*;
    use crate::cache::ioend::Kind;
    use crate::inode::InodeInfo;
    use crate::testing::test_inode;

    fn ioend(inode: &Arc<InodeInfo>, id: u64, offset: u64) -> Ioend {
        let first = LogicalBlock((offset >> 12) as u32);
        let ioend = Ioend {
            id,
            offset,
            size: 4096,
            blocks: first..first + 1,
            physical: BlockNumber(1000 + u64::from(first.0)),
            kind: Kind::Unwritten,
            pieces: Vec::new(),
            result: Ok(()),
        };
        inode.completion.start(&ioend);
        inode.completion.close(&ioend);
        ioend
    }

    /// Two look at an inode's ioends at the same time: the first finds the second block's ioend blocked by that of
    /// the first block, which is in the other's hands. In each order somebody must look again.
    #[test]
    fn what_is_parked_while_its_blocker_ends_is_looked_at_again() {
        for blocker_ends_first in [false, true] {
            let inode = Arc::new(InodeInfo::new(test_inode(12, 0o100_644), 0, &Arc::default()));
            let queue = &inode.completion;
            let (first, second) = (ioend(&inode, 1, 0), ioend(&inode, 2, 4096));
            let removals = queue.state.lock().removals;
            let again = if blocker_ends_first {
                let _ = queue.remove(&first);
                let others = queue.park(Vec::new(), removals, 1);
                assert!(!others, "nobody was parked yet");
                queue.park(vec![second], removals, 0)
            } else {
                assert!(!queue.park(vec![second], removals, 0), "still blocked");
                assert!(queue.remove(&first));
                queue.park(Vec::new(), removals, 1)
            };
            assert!(again, "forgotten, blocker first: {blocker_ends_first}");
        }
    }

    #[test]
    fn who_parks_behind_his_own_ioends_does_not_ask_for_another_look() {
        let inode = Arc::new(InodeInfo::new(test_inode(12, 0o100_644), 0, &Arc::default()));
        let queue = &inode.completion;
        let (first, third) = (ioend(&inode, 1, 0), ioend(&inode, 3, 8192));
        let removals = queue.state.lock().removals;
        let _ = queue.remove(&first);
        assert!(!queue.park(vec![third], removals, 1));
    }
}
