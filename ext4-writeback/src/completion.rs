//! What happens after the I/O of an ioend: conversion of unwritten blocks, the size on the device, and only then the
//! end of the folios' writeback.
//!
//! ```text
//!   device ── end_io ──► nothing to do: finished at once
//!                   └──► the inode's list ──► worker, or whoever waits in fsync ([`crate::attendance`]): one handle for many
//!                                              errors │ merge │ gate │ convert, raise i_disksize, log │ stop │ finish
//!                                                             └── parked until earlier data is there
//! ```
//!
//! Invariants:
//! - In the device's context there is bookkeeping only; handles are opened by a worker or an attendant, who wait for no data.
//! - i_disksize moves over completed data only, in the order of the file: an ioend that reaches past it is parked while
//!   an earlier one that does is unfinished. After a crash no file has zeros where data was appended, and no written
//!   block lies behind the size, which e2fsck would call corrupt.
//! - The tail gate: while the block that i_disksize ends in (unaligned) is written on the device and dirty in memory,
//!   nothing moves i_disksize past it, and the folio is kicked. Its bytes behind the size are anything on the device
//!   until then; were the size to pass, a crash would show them.
//! - Where writing that block failed, what lies behind it fails with it.
//! - The truncate race: size and conversion are decided under the inode's lock, against i_size as it is then.
//! - A folio's writeback ends after the handle has been stopped.
//!
//! Locks: the queue's mutex is a leaf.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ext4_core::meta::{Transaction, block_map, credits, extent_tree};
use ext4_core::{Errno, Error, LogicalBlock, Result};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::counters::LiveCounters;
use crate::extent_status::Status;
use crate::fast_commit::{Mapped, Reason};
use crate::filesystem::FilesystemInner;
use crate::flusher;
use crate::handle::Handle;
use crate::inode_info::InodeInfo;
use crate::ioend::Ioend;
use crate::lock_order::Scoped;
use crate::writeback;

/// How many inodes a worker takes at a time.
const BATCH_INODES: usize = 128;
/// Credits for one ioend: its conversion and its inode.
const CREDITS: u32 = credits::EXTENT + credits::INODE;
/// How many ioends one handle makes room for when it begins.
const BATCH_CREDITS: u32 = 16 * CREDITS;

#[derive(Debug, Default)]
struct State {
    /// Ioends that are not converted yet: (first byte, number) → byte behind the last.
    in_flight: BTreeMap<(u64, u64), u64>,
    /// The numbers of ioends that are not finished.
    unfinished: BTreeSet<u64>,
    /// Their I/O has ended.
    done: Vec<Ioend>,
    /// They wait for earlier ones.
    parked: Vec<Ioend>,
    /// How many ioends have left `in_flight`: who parks what he found blocked asks whether that is still true.
    removals: u64,
    /// There is work: the inode is in the workers' queue, or somebody who waits does it.
    queued: bool,
    /// How many wait for this inode and do its work meanwhile.
    attendants: u32,
    /// The block at the end of i_disksize could not be written.
    failed_tail: Option<(u32, Error)>,
}

/// The inode's list of ioends, and i_disksize for those who must not wait for the inode's lock.
#[derive(Debug)]
pub(crate) struct CompletionQueue {
    disk_size: AtomicU64,
    state: Mutex<State>,
    /// Ioends were finished, or there is work for whoever waits: those of other inodes sleep on.
    progress: Notify,
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
        state.unfinished.insert(ioend.id);
    }

    /// `ioend` is complete and about to be submitted.
    pub fn close(&self, ioend: &Ioend) {
        self.state.lock().in_flight.insert((ioend.offset, ioend.id), ioend.end());
    }

    /// True where an ioend that reaches past `position` is unfinished.
    pub fn is_in_flight_from(&self, position: u64) -> bool {
        self.state.lock().in_flight.values().any(|end| *end > position)
    }

    /// A truncation cut the failed block off, or it is to be tried again.
    pub fn forget_failed_tail(&self) {
        self.state.lock().failed_tail = None;
    }

    /// True where the block at the end of i_disksize could not be written.
    pub fn has_failed_tail(&self) -> bool {
        self.state.lock().failed_tail.is_some()
    }

    /// True where every ioend with a number below `id` is finished.
    pub fn is_finished_below(&self, id: u64) -> bool {
        self.state.lock().unfinished.first().is_none_or(|first| *first >= id)
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
    fn remove(&self, ioend: &Ioend) -> bool {
        let mut state = self.state.lock();
        state.in_flight.remove(&(ioend.offset, ioend.id));
        state.removals += 1;
        !state.parked.is_empty()
    }

    /// Ends a look at what was completed: parks `ioends`, which are blocked. `removals` is what it was when the look
    /// began; since then `own` ioends were taken out of `in_flight` by the caller. True where somebody has to look
    /// again: what the parked were found to be blocked by may be gone, and whoever took it away did not see them.
    #[must_use]
    fn park(&self, mut ioends: Vec<Ioend>, removals: u64, own: u64) -> bool {
        let mut state = self.state.lock();
        let others_parked = own > 0 && !state.parked.is_empty();
        let others_removed = !ioends.is_empty() && state.removals != removals + own;
        state.parked.append(&mut ioends);
        others_parked || others_removed
    }
}

#[derive(Debug, Default)]
struct Completed {
    queue: VecDeque<Arc<InodeInfo>>,
    worker: bool,
}

/// Inodes with ioends whose I/O has ended.
#[derive(Debug, Default)]
pub(crate) struct CompletedInodes {
    completed: Mutex<Completed>,
    ios: AtomicUsize,
}

impl CompletedInodes {
    /// An ioend goes to the device.
    pub fn io_started(&self) {
        self.ios.fetch_add(1, Ordering::AcqRel);
    }
}

/// The I/O of `ioend` ended, well or not. In the device's completion context.
pub(crate) fn end_io(fs: &Arc<FilesystemInner>, ioend: Ioend) {
    for (folio, _) in &ioend.pieces {
        folio.end_piece_io();
    }
    let inode = Arc::clone(&ioend.inode);
    let disk_size = inode.completion.disk_size();
    let defer =
        ioend.result.is_err() || ioend.unwritten || ioend.end() > disk_size || inode.size() > disk_size;
    let mut others_wait = false;
    if defer {
        inode.completion.state.lock().done.push(ioend);
    } else {
        others_wait = inode.completion.remove(&ioend);
        finish(fs, ioend);
    }
    fs.writeback.completed.ios.fetch_sub(1, Ordering::AcqRel);
    // Somebody who extends the file looks for ioends in flight after raising i_size; if he saw this one, the size is
    // left to us.
    if defer || others_wait || inode.size() > inode.completion.disk_size() {
        schedule(fs, &inode);
    }
    flusher::note_progress(fs);
}

/// Has a worker look at `inode`, or whoever waits for it.
pub(crate) fn schedule(fs: &Arc<FilesystemInner>, inode: &Arc<InodeInfo>) {
    {
        let mut state = inode.completion.state.lock();
        if std::mem::replace(&mut state.queued, true) {
            return;
        }
        if state.attendants > 0 {
            drop(state);
            inode.completion.progress.notify_waiters();
            return;
        }
    }
    give_to_workers(fs, inode);
}

/// Puts `inode`, which has work, into the workers' queue.
pub(crate) fn give_to_workers(fs: &Arc<FilesystemInner>, inode: &Arc<InodeInfo>) {
    let mut completed = fs.writeback.completed.completed.lock();
    completed.queue.push_back(Arc::clone(inode));
    if fs.writeback.is_deterministic() {
        drop(completed);
        flusher::note_progress(fs);
        return;
    }
    if completed.worker {
        return;
    }
    completed.worker = true;
    drop(completed);
    let worker = Arc::clone(fs);
    fs.runtime.spawn(Box::pin(Scoped::new(Box::pin(async move {
        loop {
            let inodes: Vec<_> = {
                let mut completed = worker.writeback.completed.completed.lock();
                let count = completed.queue.len().min(BATCH_INODES);
                completed.worker = count > 0;
                completed.queue.drain(..count).collect()
            };
            if inodes.is_empty() {
                flusher::note_progress(&worker);
                return;
            }
            process(&worker, inodes).await;
        }
    }))));
}

/// Without workers: where no I/O is in flight, converts what has completed, inode by inode. True where there was
/// something.
pub(crate) async fn run_when_io_ended(fs: &Arc<FilesystemInner>) -> bool {
    let control = &fs.writeback.completed;
    if control.ios.load(Ordering::Acquire) != 0 {
        return false;
    }
    let mut inodes: Vec<_> = control.completed.lock().queue.drain(..).collect();
    if inodes.is_empty() {
        return false;
    }
    inodes.sort_by_key(|inode| inode.number);
    process(fs, inodes).await;
    true
}

/// Waits until no worker runs and none is needed.
pub(crate) async fn wait_for_workers(fs: &Arc<FilesystemInner>) {
    flusher::wait_for_progress(fs, || {
        let completed = fs.writeback.completed.completed.lock();
        completed.queue.is_empty() && !completed.worker
    })
    .await;
}

/// Everything of `ioend` is done: ends its folios' writeback and reports its error.
fn finish(fs: &FilesystemInner, ioend: Ioend) {
    if let Err(error) = &ioend.result {
        tracing::warn!(inode = ioend.inode.number.0, offset = ioend.offset, size = ioend.size, %error,
            "data was not written");
        ioend.inode.write_errors.record(error);
    }
    for (folio, _) in &ioend.pieces {
        if folio.finish_piece() {
            fs.writeback.end_writeback(folio.len());
        }
    }
    ioend.inode.completion.state.lock().unfinished.remove(&ioend.id);
    ioend.inode.completion.progress.notify_waiters();
    fs.writeback.finish_ioend(ioend.id);
}

/// A handle that many ioends share, and those that are finished when it has been stopped.
struct Batch<'a> {
    fs: &'a Arc<FilesystemInner>,
    handle: Option<Handle>,
    finished: Vec<Ioend>,
    /// How many ioends of the inode in hand have blocked nobody since.
    removed: u64,
}

impl Batch<'_> {
    /// Everything of `ioend` but the end of the handle is decided.
    fn end(&mut self, ioend: Ioend) {
        let _ = ioend.inode.completion.remove(&ioend);
        self.removed += 1;
        self.finished.push(ioend);
    }

    /// Stops the handle, then ends the writeback of what it converted.
    fn stop(&mut self) {
        self.handle = None;
        for ioend in self.finished.drain(..) {
            finish(self.fs, ioend);
        }
    }

    /// True where the handle has credits for one more ioend.
    fn has_room(&self) -> bool {
        self.handle.as_ref().is_some_and(|handle| {
            handle.credits() >= CREDITS || matches!(handle.extend(BATCH_CREDITS), Ok(true))
        })
    }

    /// A handle with credits for one ioend; another one where this one has none. No inode lock may be held.
    async fn make_room(&mut self) -> Result<()> {
        if self.has_room() {
            return Ok(());
        }
        self.stop();
        let most = self.fs.journal.as_ref().map_or(BATCH_CREDITS, |journal| journal.max_credits() / 4);
        LiveCounters::add(&self.fs.writeback.counters.completion_handles, 1);
        let credits = BATCH_CREDITS.min(most).max(CREDITS);
        self.handle = Some(self.fs.begin_tracked(credits, "convert").await?);
        Ok(())
    }
}

/// Ioends that follow one another in the file and on the device.
struct Group {
    blocks: Range<u32>,
    offset: u64,
    end: u64,
    unwritten: bool,
    members: Vec<Ioend>,
}

fn merge(mut ioends: Vec<Ioend>) -> Vec<Group> {
    ioends.sort_by_key(|ioend| (ioend.offset, ioend.id));
    let mut groups: Vec<Group> = Vec::new();
    for ioend in ioends {
        if let Some(group) = groups.last_mut()
            && let Some(last) = group.members.last()
            && group.unwritten == ioend.unwritten
            && last.end() == ioend.offset
            && last.physical.offset(u64::from(last.blocks.end - last.blocks.start)) == ioend.physical
        {
            group.blocks.end = ioend.blocks.end;
            group.end = ioend.end();
            group.members.push(ioend);
            continue;
        }
        groups.push(Group {
            blocks: ioend.blocks.clone(),
            offset: ioend.offset,
            end: ioend.end(),
            unwritten: ioend.unwritten,
            members: vec![ioend],
        });
    }
    groups
}

enum Gate {
    Open,
    /// Earlier data is unfinished; `kick`: nobody writes the tail block yet.
    Closed {
        kick: bool,
    },
    Failed(Error),
}

/// Converts and finishes what has completed of `inodes`.
pub(crate) async fn process(fs: &Arc<FilesystemInner>, inodes: Vec<Arc<InodeInfo>>) {
    let mut batch = Batch { fs, handle: None, finished: Vec::new(), removed: 0 };
    for inode in inodes {
        process_inode(&mut batch, &inode).await;
    }
    batch.stop();
}

async fn process_inode(batch: &mut Batch<'_>, inode: &Arc<InodeInfo>) {
    let queue = &inode.completion;
    let (ioends, removals) = {
        let mut state = queue.state.lock();
        state.queued = false;
        let mut ioends = std::mem::take(&mut state.done);
        ioends.append(&mut state.parked);
        (ioends, state.removals)
    };
    batch.removed = 0;
    let (parked, kick) = process_ioends(batch, inode, ioends).await;
    LiveCounters::add(&batch.fs.writeback.counters.parked, parked.len() as u64);
    // Attendants of one inode and a worker may be here at the same time.
    if queue.park(parked, removals, batch.removed) {
        schedule(batch.fs, inode);
    }
    if kick {
        let tail = queue.disk_size();
        let (fs, inode) = (Arc::clone(batch.fs), Arc::clone(inode));
        Arc::clone(&fs.runtime).spawn(Box::pin(Scoped::new(Box::pin(async move {
            writeback::write_tail(&fs, &inode, tail).await;
            // It may have been cleaned by somebody else, or dropped: look again.
            schedule(&fs, &inode);
        }))));
    }
}

/// Fails, converts and finishes `ioends`. Returns those that wait for others, and whether the block at the end of
/// i_disksize has to be written for that, which nobody does yet.
async fn process_ioends(
    batch: &mut Batch<'_>,
    inode: &Arc<InodeInfo>,
    ioends: Vec<Ioend>,
) -> (Vec<Ioend>, bool) {
    let fs = batch.fs;
    let queue = &inode.completion;
    let (good, failed): (Vec<_>, Vec<_>) = ioends.into_iter().partition(|ioend| ioend.result.is_ok());
    for ioend in failed {
        note_failure(fs, inode, &ioend);
        batch.end(ioend);
    }
    if good.is_empty() && inode.size() <= queue.disk_size() {
        return (Vec::new(), false);
    }
    let mut groups = VecDeque::from(merge(good));
    let mut parked = Vec::new();
    let mut kick = false;
    loop {
        if let Err(error) = batch.make_room().await {
            for group in groups {
                fail(batch, group, &error);
            }
            break;
        }
        match process_groups(batch, inode, &mut groups, &mut parked, &mut kick).await {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) => {
                for group in groups {
                    fail(batch, group, &error);
                }
                // Neither conversion nor size is in a transaction: what the caller waits for did not happen.
                for ioend in batch.finished.iter_mut().filter(|ioend| Arc::ptr_eq(&ioend.inode, inode)) {
                    if ioend.result.is_ok() {
                        ioend.result = Err(error.clone());
                    }
                }
                break;
            }
        }
    }
    (parked, kick)
}

fn note_failure(fs: &FilesystemInner, inode: &InodeInfo, ioend: &Ioend) {
    if let Err(error) = &ioend.result {
        if fs.options.data_error_aborts
            && let Some(journal) = &fs.journal
        {
            journal.abort(error);
        }
        let size = inode.completion.disk_size();
        let block_size = fs.info.block_size();
        let tail = (size >> block_size.bits()) as u32;
        if !ioend.unwritten
            && !size.is_multiple_of(u64::from(block_size.bytes()))
            && ioend.blocks.contains(&tail)
        {
            inode.completion.state.lock().failed_tail = Some((tail, error.clone()));
        }
    }
}

fn fail(batch: &mut Batch<'_>, group: Group, error: &Error) {
    for mut ioend in group.members {
        ioend.result = Err(error.clone());
        batch.end(ioend);
    }
}

/// Works on `groups` under one hold of the inode's lock, as far as the handle's credits go. True when all are done or
/// parked.
async fn process_groups(
    batch: &mut Batch<'_>,
    inode: &Arc<InodeInfo>,
    groups: &mut VecDeque<Group>,
    parked: &mut Vec<Ioend>,
    kick: &mut bool,
) -> Result<bool> {
    let fs = batch.fs;
    let block_size = fs.info.block_size();
    let mut disk = inode.inode.write().await;
    let mut changed = false;
    let mut all = true;
    while let Some(group) = groups.pop_front() {
        let size = inode.size();
        if group.offset >= size.next_multiple_of(u64::from(block_size.bytes())) {
            // Cut off meanwhile: the blocks stay unwritten until the truncation frees them.
            for ioend in group.members {
                batch.end(ioend);
            }
            continue;
        }
        if group.end > disk.size {
            match gate(fs, inode, &disk, &group).await {
                Ok(Gate::Open) => {}
                Ok(Gate::Failed(error)) | Err(error) => {
                    fail(batch, group, &error);
                    continue;
                }
                Ok(Gate::Closed { kick: wanted }) => {
                    *kick |= wanted;
                    parked.extend(group.members);
                    continue;
                }
            }
        }
        if !batch.has_room() {
            groups.push_front(group);
            all = false;
            break;
        }
        let Some(handle) = &batch.handle else { break };
        if group.unwritten {
            let first = LogicalBlock(group.blocks.start);
            let len = group.blocks.end - group.blocks.start;
            let converted = extent_tree::convert_to_written(&fs.info, handle, &mut disk, first, len).await;
            changed = true;
            if let Err(error) = converted {
                tracing::error!(inode = inode.number.0, block = first.0, len, %error,
                    "conversion failed: potential data loss");
                fs.fast_commits.mark_ineligible(handle.id(), Reason::Failure);
                fail(batch, group, &error);
                continue;
            }
            inode.extent_status.set_written(group.blocks.clone());
            if let Some(first) = group.members.first() {
                let mapped = Mapped::Blocks { physical: first.physical, unwritten: false };
                let blocks = (group.blocks.start, group.blocks.end);
                fs.fast_commits.range_changed(handle.id(), inode.number, blocks, mapped);
            }
            LiveCounters::add(&fs.writeback.counters.conversions, 1);
            LiveCounters::add(&fs.writeback.counters.merges, group.members.len() as u64 - 1);
        }
        let end = group.end.min(size);
        if end > disk.size {
            disk.size = end;
            inode.completion.set_disk_size(end);
            changed = true;
        }
        {
            let mut state = inode.completion.state.lock();
            if state.failed_tail.as_ref().is_some_and(|(block, _)| group.blocks.contains(block)) {
                state.failed_tail = None;
            }
        }
        for ioend in group.members {
            batch.end(ioend);
        }
    }
    // A size that was raised without data of its own follows when nothing before it is unfinished.
    let size = inode.size();
    let floor = disk.size & !(u64::from(block_size.bytes()) - 1);
    if all
        && size > disk.size
        && batch.has_room()
        && !inode.completion.has_failed_tail()
        && !inode.completion.is_in_flight_from(floor)
        && !inode.pages.is_dirty_from(floor)
    {
        disk.size = size;
        inode.completion.set_disk_size(size);
        changed = true;
    }
    if changed && let Some(handle) = &batch.handle {
        fs.log_inode(handle, inode, &disk, true).await?;
    }
    Ok(all)
}

/// May `group`, which reaches past i_disksize, move it?
async fn gate(
    fs: &FilesystemInner,
    inode: &InodeInfo,
    disk: &ext4_core::format::inode::Inode,
    group: &Group,
) -> Result<Gate> {
    let block_size = fs.info.block_size();
    let floor = disk.size & !(u64::from(block_size.bytes()) - 1);
    let tail = (floor >> block_size.bits()) as u32;
    {
        let state = inode.completion.state.lock();
        if state.in_flight.range(..(group.offset, 0)).any(|(_, end)| *end > floor) {
            return Ok(Gate::Closed { kick: false });
        }
        if let Some((block, error)) = &state.failed_tail
            && *block < group.blocks.start
        {
            return Ok(Gate::Failed(error.clone()));
        }
    }
    if floor == disk.size || tail >= group.blocks.start || !inode.pages.is_block_dirty(floor) {
        return Ok(Gate::Open);
    }
    let status = match inode.extent_status.lookup(tail) {
        Some(extent) => extent.status,
        None => Status::from(block_map::lookup(&fs.info, disk, LogicalBlock(tail)).await?.state),
    };
    if !matches!(status, Status::Written(_)) {
        // Nothing stale can be there.
        return Ok(Gate::Open);
    }
    let folio = inode.pages.find(floor);
    let own = folio.is_some_and(|tail| {
        group.members.iter().flat_map(|ioend| &ioend.pieces).any(|(folio, _)| Arc::ptr_eq(folio, &tail))
    });
    if own {
        // The folio cannot be written again before this ioend has finished; it was written with it, then, and i_disksize
        // would have passed the block. Were it not so, waiting would be for ever.
        let location = format!("inode {} at byte {floor}", inode.number);
        return Ok(Gate::Failed(Error::io("order the tail of", location, Errno::EIO)));
    }
    Ok(Gate::Closed { kick: true })
}

#[cfg(test)]
mod tests {
    use ext4_core::format::features::Features;
    use ext4_core::format::inode::{Inode, InodeLayout};
    use ext4_core::{BlockNumber, BlockSize, InodeNumber};

    use super::*;

    fn test_inode() -> Inode {
        let layout = InodeLayout {
            features: Features::default(),
            inode_size: 256,
            block_size: BlockSize::KIB_4,
            cluster_sectors: 8,
            checksum_seed: 0,
            linux: true,
            hurd: false,
        };
        Inode::free(InodeNumber(12), &layout)
    }

    fn ioend(inode: &Arc<InodeInfo>, id: u64, offset: u64) -> Ioend {
        let first = (offset >> 12) as u32;
        let ioend = Ioend {
            id,
            inode: Arc::clone(inode),
            offset,
            size: 4096,
            blocks: first..first + 1,
            physical: BlockNumber(1000 + u64::from(first)),
            unwritten: true,
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
            let inode = Arc::new(InodeInfo::new(test_inode()));
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
        let inode = Arc::new(InodeInfo::new(test_inode()));
        let queue = &inode.completion;
        let (first, third) = (ioend(&inode, 1, 0), ioend(&inode, 3, 8192));
        let removals = queue.state.lock().removals;
        let _ = queue.remove(&first);
        assert!(!queue.park(vec![third], removals, 1));
    }
}
