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

use ext4_core::{Error, LogicalBlock, Result};
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
    /// The block at the end of i_disksize could not be written, or not be mapped.
    pub(crate) failed_tail: Option<(LogicalBlock, Error)>,
    /// That block is dirty and in no ioend yet, while its folio is written back.
    unsent_tail: Option<LogicalBlock>,
    /// The bytes of a folio whose dirty bits a pass takes, until all of them are in ioends; and the number
    /// that the next ioend had when the pass began with it. There is one pass at a time.
    window: Option<(Range<u64>, u64)>,
    /// Syncs under way: their numbers, and the lowest size the file was truncated to since each began.
    syncs: Vec<(u64, u64)>,
    next_sync: u64,
}

impl State {
    /// Returns true if bytes that reach past `position`, and begin before `below`, are on their way: taken by
    /// a pass, or in an ioend that is not converted yet.
    pub(crate) fn is_under_way(&self, position: u64, below: (u64, u64)) -> bool {
        self.in_flight.range(..below).any(|(_, end)| *end > position)
            || self.window.as_ref().is_some_and(|(taken, _)| taken.start < below.0 && taken.end > position)
    }
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
    pub fn expect_tail(&self, block: LogicalBlock) {
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
        self.state.lock().is_under_way(position, (u64::MAX, u64::MAX))
    }

    /// A pass is about to take the dirty bits of the folio with bytes `range`: from now on they are in
    /// flight, although no ioend has them yet. `next_ioend`: the number that the next ioend of the file
    /// system will have. Were they counted from their ioend on only, a size could move over them while the
    /// pass waits for a handle: a crash would show what the device held there.
    pub fn open_window(&self, range: Range<u64>, next_ioend: u64) {
        self.state.lock().window = Some((range, next_ioend));
    }

    /// Everything that was taken is in ioends, or failed. Returns true if ioends are parked: they have to be
    /// looked at.
    #[must_use]
    pub fn close_window(&self) -> bool {
        let mut state = self.state.lock();
        state.window = None;
        state.removals += 1;
        !state.parked.is_empty()
    }

    /// The file is truncated to `size` bytes. The caller holds the inode's lock for writing.
    pub fn note_truncation(&self, size: u64) {
        for (_, lowest) in &mut self.state.lock().syncs {
            *lowest = size.min(*lowest);
        }
    }

    /// A sync begins: its number. [`CompletionQueue::end_sync`] ends it.
    pub fn begin_sync(&self) -> u64 {
        let mut state = self.state.lock();
        state.next_sync += 1;
        let number = state.next_sync;
        state.syncs.push((number, u64::MAX));
        number
    }

    /// The lowest size that the file was truncated to since sync `number` began; `u64::MAX` if it was not.
    pub fn lowest_since(&self, number: u64) -> u64 {
        self.state.lock().syncs.iter().find(|(of, _)| *of == number).map_or(0, |(_, lowest)| *lowest)
    }

    /// Sync `number` ended.
    pub fn end_sync(&self, number: u64) {
        self.state.lock().syncs.retain(|(of, _)| *of != number);
    }

    /// The block at the end of i_disksize that could not be written.
    pub fn failed_tail_block(&self) -> Option<LogicalBlock> {
        self.state.lock().failed_tail.as_ref().map(|(block, _)| *block)
    }

    /// The rest of `block`, in which the file ends, could not be zeroed: no size may pass it.
    pub fn set_failed_tail(&self, block: LogicalBlock, error: &Error) {
        self.state.lock().failed_tail = Some((block, error.clone()));
    }

    /// Blocks `blocks` are no longer part of the file: if the failed tail is among them, it is none any more.
    pub fn forget_failed_tail(&self, blocks: &Range<LogicalBlock>) {
        self.note_tail_written(blocks);
    }

    /// Blocks `blocks` have been written: if the failed tail is among them, it is none any more.
    pub fn note_tail_written(&self, blocks: &Range<LogicalBlock>) {
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
        let within = |of: &Range<u64>| of.start < range.end && range.start < of.end;
        !state.unfinished.range(..id).any(|(_, of)| within(of))
            && !state.window.as_ref().is_some_and(|(taken, next_ioend)| *next_ioend < id && within(taken))
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
