//! The ioends of one inode (i_rsv_conversion_list): which are in flight, done, parked, unfinished; and
//! i_disksize.
//!
//! *Attendants* are tasks that wait for ioends of the inode and do the work of the completion workers
//! meanwhile.
//!
//! Lock: the mutex is a leaf. Attendants of one inode and a worker may look at the list at the same time;
//! [`CompletionQueue::park`] makes sure that no parked ioend is forgotten between them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use ext4_core::{Error, Result};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::cache::ioend::Ioend;

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Ioends that are not converted yet: (first byte of the file, number) → byte behind the last.
    pub(crate) in_flight: BTreeMap<(u64, u64), u64>,
    /// Ioends that are not finished: number → bytes of the file.
    pub(crate) unfinished: BTreeMap<u64, Range<u64>>,
    /// Ioends whose I/O has ended.
    pub(crate) done: Vec<Ioend>,
    /// Ioends that wait for earlier ones.
    pub(crate) parked: Vec<Ioend>,
    /// How many ioends have left `in_flight`: a task that parks ioends which it found blocked checks if they
    /// still are.
    pub(crate) removals: u64,
    /// True if there is work: the inode is in the workers' queue, or an attendant does the work.
    pub(crate) queued: bool,
    /// How many attendants there are.
    pub(crate) attendants: u32,
    /// The tail, the block that i_disksize ends in, if it could not be written or mapped, and why.
    pub(crate) failed_tail: Option<(u32, Error)>,
    /// The tail, while it is dirty and in no ioend yet and its folio is being written back.
    unsent_tail: Option<u32>,
}

/// The ioends of one inode, and a copy of i_disksize for tasks that must not wait for the lock of the inode.
#[derive(Debug)]
pub(crate) struct CompletionQueue {
    disk_size: AtomicU64,
    pub(crate) state: Mutex<State>,
    /// Ioends were finished, or there is work for an attendant. Tasks that wait for other inodes are not
    /// woken.
    pub(crate) progress: Notify,
}

impl CompletionQueue {
    /// No ioends; `disk_size` is i_disksize in bytes.
    pub fn new(disk_size: u64) -> Self {
        Self { disk_size: AtomicU64::new(disk_size), state: Mutex::default(), progress: Notify::new() }
    }

    /// i_disksize in bytes.
    pub fn disk_size(&self) -> u64 {
        self.disk_size.load(Ordering::SeqCst)
    }

    /// i_disksize was changed to `size` bytes. The caller holds the lock of the inode for writing.
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
    pub fn expect_tail(&self, block: u32) {
        self.state.lock().unsent_tail = Some(block);
    }

    /// The writeback of the tail's folio ended with `result`, and the last ioend is closed. If it failed
    /// before the tail was in an ioend, i_disksize must not pass the tail: what lies behind it fails with it.
    pub fn note_tail_sent(&self, result: &Result<()>) {
        let mut state = self.state.lock();
        if let (Some(block), Err(error)) = (state.unsent_tail.take(), result) {
            state.failed_tail = Some((block, error.clone()));
        }
    }

    /// Returns true if an ioend that reaches past byte `position` is in flight.
    pub fn is_in_flight_from(&self, position: u64) -> bool {
        self.state.lock().in_flight.values().any(|end| *end > position)
    }

    /// Forgets the failed tail: a truncation cut it off, or it is to be written again.
    pub fn forget_failed_tail(&self) {
        self.state.lock().failed_tail = None;
    }

    /// `blocks` of the file have been written: if the failed tail is among them, it is forgotten.
    pub fn note_tail_written(&self, blocks: &Range<u32>) {
        let mut state = self.state.lock();
        if state.failed_tail.as_ref().is_some_and(|(block, _)| blocks.contains(block)) {
            state.failed_tail = None;
        }
    }

    /// Returns true if the tail, the block that i_disksize ends in, could not be written.
    pub fn has_failed_tail(&self) -> bool {
        self.state.lock().failed_tail.is_some()
    }

    /// Returns true if every ioend over bytes `range` of the file with a number below `id` is finished.
    pub fn is_range_finished_below(&self, range: &Range<u64>, id: u64) -> bool {
        let state = self.state.lock();
        !state.unfinished.range(..id).any(|(_, of)| of.start < range.end && range.start < of.end)
    }

    /// The caller becomes an attendant, until [`CompletionQueue::stop_attending`].
    pub fn attend(&self) {
        self.state.lock().attendants += 1;
    }

    /// The caller is no attendant any more. Returns true if there is work and no attendant is left: the
    /// caller gives it to the workers.
    pub fn stop_attending(&self) -> bool {
        let mut state = self.state.lock();
        state.attendants -= 1;
        state.queued && state.attendants == 0
    }

    /// Returns true if there is work for a worker or an attendant.
    pub fn has_work(&self) -> bool {
        self.state.lock().queued
    }

    /// Resolves when ioends of the inode have been finished since this was called, or there is work for an
    /// attendant.
    pub fn progress(&self) -> Notified<'_> {
        self.progress.notified()
    }

    /// Takes `ioend`, which blocks no other any more, out of `in_flight`. Returns true if others are parked,
    /// perhaps behind it: they have to be looked at.
    #[must_use]
    pub(crate) fn remove(&self, ioend: &Ioend) -> bool {
        let mut state = self.state.lock();
        state.in_flight.remove(&(ioend.offset, ioend.id));
        state.removals += 1;
        !state.parked.is_empty()
    }

    /// Ends a look at completed ioends: parks `ioends`, which are blocked. `removals` is the value of
    /// [`State::removals`] when the look began; since then the caller took `own` ioends out of `in_flight`.
    /// Returns true if the inode has to be looked at again: the ioends that block the parked ones may be
    /// gone, and the task that removed them did not see the parked ones.
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
        let first = (offset >> 12) as u32;
        let ioend = Ioend {
            id,
            offset,
            size: 4096,
            blocks: first..first + 1,
            physical: BlockNumber(1000 + u64::from(first)),
            kind: Kind::Unwritten,
            pieces: Vec::new(),
            result: Ok(()),
        };
        inode.completion.start(&ioend);
        inode.completion.close(&ioend);
        ioend
    }

    /// Two tasks look at the ioends of one inode at the same time: the first finds the ioend of the second
    /// block blocked by that of the first block, which the second task has taken. In each order one of them
    /// must look again.
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
                assert!(!others, "none was parked yet");
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
    fn a_task_that_parks_behind_its_own_ioends_does_not_ask_for_another_look() {
        let inode = Arc::new(InodeInfo::new(test_inode(12, 0o100_644), 0, &Arc::default()));
        let queue = &inode.completion;
        let (first, third) = (ioend(&inode, 1, 0), ioend(&inode, 3, 8192));
        let removals = queue.state.lock().removals;
        let _ = queue.remove(&first);
        assert!(!queue.park(vec![third], removals, 1));
    }
}
