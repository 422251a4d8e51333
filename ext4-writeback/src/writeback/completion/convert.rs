//! Conversion of ioends whose I/O has ended, by a worker or an attendant: one handle for many ioends, those
//! of an inode in the order of its file (kernel: `ext4_do_flush_completed_IO`).
//!
//! Invariants:
//! - No inode lock is held while a handle is begun or stopped, and no handle is held while picked blocks are
//!   returned.
//! - The inode is logged under the hold of its lock that changed it.
//! - An ioend is finished after the handle that converted it has been stopped.

use std::collections::VecDeque;
use std::sync::Arc;

use ext4_core::format::inode::Inode;
use ext4_core::meta::Transaction as _;
use ext4_core::meta::extent_tree;
use ext4_core::{Errno, Error, LogicalBlock, Result};

use crate::base::counters::LiveCounters;
use crate::base::lock_order::WriteGuard;
use crate::cache::ioend::{Ioend, Kind};
use crate::inode::InodeInfo;
use crate::inode::log::log_inode;
use crate::volume::fast_commit::mapped::Mapped;
use crate::volume::fast_commit::reason::Reason;
use crate::volume::handle::Handle;
use crate::writeback::Engine;
use crate::writeback::completion::finish;
use crate::writeback::completion::gate::{Gate, gate};
use crate::writeback::completion::group::{CREDITS, Group, merge};
use crate::writeback::completion::publish::{STEP_CREDITS, publish_step};
use crate::writeback::size::follow_size;

/// Credits that a handle for many ioends begins with: room for 16.
const BATCH_CREDITS: u32 = 16 * CREDITS;

/// A handle that many ioends share, and the ioends that are finished when it has been stopped.
struct Batch<'a> {
    engine: &'a Arc<Engine>,
    handle: Option<Handle>,
    finished: Vec<(Arc<InodeInfo>, Ioend)>,
    /// How many ioends of the current inode were removed from its list of ioends in flight.
    removed: u64,
}

impl Batch<'_> {
    /// `ioend` needs nothing more but the end of the handle.
    fn end(&mut self, inode: &Arc<InodeInfo>, ioend: Ioend) {
        let _ = inode.completion.remove(&ioend);
        self.removed += 1;
        self.finished.push((Arc::clone(inode), ioend));
    }

    /// Ends the ioends of `group`; if `result` is an error, it becomes theirs.
    fn end_group(&mut self, inode: &Arc<InodeInfo>, group: Group, result: Result<()>) {
        for mut ioend in group.members {
            if result.is_err() {
                ioend.result.clone_from(&result);
            }
            self.end(inode, ioend);
        }
    }

    /// Stops the handle, then finishes the ioends that it converted.
    async fn stop(&mut self) {
        self.handle = None;
        for (inode, ioend) in std::mem::take(&mut self.finished) {
            if ioend.kind == Kind::Picked && ioend.result.is_err() {
                finish::discard(self.engine, &inode, &ioend).await;
            }
            let failed = if ioend.result.is_err() { ioend.pieces.clone() } else { Vec::new() };
            finish::finish(self.engine, &inode, ioend);
            finish::keep_failed_tail(self.engine, &inode, &failed).await;
        }
    }

    /// Returns true if the handle has, or can be extended to, `credits` for one more step.
    fn has_room(&self, credits: u32) -> bool {
        self.handle.as_ref().is_some_and(|handle| {
            handle.credits() >= credits || matches!(handle.extend(BATCH_CREDITS), Ok(true))
        })
    }

    /// Makes sure that there is a handle with `needed` credits; begins another one if this one has too few.
    /// No inode lock may be held.
    ///
    /// # Errors
    /// Those of the journal.
    async fn make_room(&mut self, needed: u32) -> Result<()> {
        if self.has_room(needed) {
            return Ok(());
        }
        self.stop().await;
        let most =
            self.engine.volume.journal.as_ref().map_or(BATCH_CREDITS, |journal| journal.max_credits() / 4);
        LiveCounters::add(&self.engine.volume.counters.completion_handles, 1);
        let credits = BATCH_CREDITS.min(most).max(needed);
        self.handle = Some(self.engine.volume.begin_tracked(credits, "convert").await?);
        Ok(())
    }
}

/// How far the work under one hold of the inode's lock came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Everything is done or parked.
    All,
    /// The handle has no credits left.
    NoCredits,
    /// There is no free block for metadata; some become free at the next commit.
    NoSpace,
}

/// Converts and finishes the completed ioends of `inodes`. Returns the inodes that have to be looked at
/// again.
#[must_use = "parked ioends would be forgotten"]
pub(crate) async fn process(engine: &Arc<Engine>, mut inodes: Vec<Arc<InodeInfo>>) -> Vec<Arc<InodeInfo>> {
    let mut batch = Batch { engine, handle: None, finished: Vec::new(), removed: 0 };
    let mut again = Vec::new();
    for inode in inodes.drain(..) {
        if process_inode(&mut batch, &inode).await {
            again.push(inode);
        }
    }
    batch.stop().await;
    again
}

/// Returns true if the inode has to be looked at again.
async fn process_inode(batch: &mut Batch<'_>, inode: &Arc<InodeInfo>) -> bool {
    let queue = &inode.completion;
    let (ioends, removals) = {
        let mut state = queue.state.lock();
        state.queued = false;
        let mut ioends = std::mem::take(&mut state.done);
        ioends.append(&mut state.parked);
        (ioends, state.removals)
    };
    batch.removed = 0;
    let parked = process_ioends(batch, inode, ioends).await;
    LiveCounters::add(&batch.engine.volume.counters.parked, parked.len() as u64);
    // Attendants of one inode and a worker may be here at the same time.
    queue.park(parked, removals, batch.removed)
}

/// Fails, converts and finishes `ioends`. Returns those that wait for other ioends, to be parked.
async fn process_ioends(batch: &mut Batch<'_>, inode: &Arc<InodeInfo>, ioends: Vec<Ioend>) -> Vec<Ioend> {
    let engine = batch.engine;
    let queue = &inode.completion;
    let (good, failed): (Vec<_>, Vec<_>) = ioends.into_iter().partition(|ioend| ioend.result.is_ok());
    for ioend in failed {
        note_failure(engine, inode, &ioend);
        batch.end(inode, ioend);
    }
    if good.is_empty() && inode.size() <= queue.disk_size() {
        return Vec::new();
    }
    let mut groups = VecDeque::from(merge(good));
    let mut parked = Vec::new();
    loop {
        let needed = groups.front().map_or(CREDITS, Group::credits);
        if let Err(error) = batch.make_room(needed).await {
            for group in groups {
                batch.end_group(inode, group, Err(error.clone()));
            }
            break;
        }
        match process_groups(batch, inode, &mut groups, &mut parked).await {
            Ok(Progress::All) => break,
            Ok(Progress::NoCredits) => {}
            Ok(Progress::NoSpace) => {
                // A commit waits for no completion. If it fails, the next try returns the error.
                batch.stop().await;
                let _ = engine.volume.commit_for_space().await;
            }
            Err(error) => {
                for group in groups {
                    batch.end_group(inode, group, Err(error.clone()));
                }
                // Neither conversion nor i_disksize is in a transaction: a caller in fsync has to see the
                // error.
                for (_, ioend) in batch.finished.iter_mut().filter(|(owner, _)| Arc::ptr_eq(owner, inode)) {
                    if ioend.result.is_ok() {
                        ioend.result = Err(error.clone());
                    }
                }
                break;
            }
        }
    }
    parked
}

fn note_failure(engine: &Engine, inode: &InodeInfo, ioend: &Ioend) {
    if let Err(error) = &ioend.result {
        if engine.volume.options.data_error_aborts
            && let Some(journal) = &engine.volume.journal
        {
            journal.abort(error);
        }
        let size = inode.completion.disk_size();
        let block_size = engine.volume.info.block_size();
        let tail = LogicalBlock::containing(size, block_size);
        if ioend.kind == Kind::Overwrite
            && !size.is_multiple_of(u64::from(block_size.bytes()))
            && ioend.blocks.contains(&tail)
        {
            inode.completion.state.lock().failed_tail = Some((tail, error.clone()));
        }
    }
}

/// Converts or publishes `groups` under one hold of the inode's lock, as far as the handle's credits go:
///
/// ```text
///   group ─► cut off by a truncation ──────────────────────────────► ended
///         ─► the gate of i_disksize: failed ─► ended; closed ─► parked
///         ─► published, or converted ─► i_disksize moves ─► ended
///   no group left ─► i_disksize follows a size without data of its own
///   inode logged, lock released
/// ```
async fn process_groups(
    batch: &mut Batch<'_>,
    inode: &Arc<InodeInfo>,
    groups: &mut VecDeque<Group>,
    parked: &mut Vec<Ioend>,
) -> Result<Progress> {
    let engine = batch.engine;
    let mut hold = Hold { engine, inode, disk: inode.on_disk.write().await, changed: false };
    let mut progress = Progress::All;
    while let Some(mut group) = groups.pop_front() {
        let size = inode.size();
        match hold.judge(&group, size) {
            Verdict::Work => {}
            Verdict::CutOff => {
                hold.drop_cut_off(&group);
                batch.end_group(inode, group, Ok(()));
                continue;
            }
            Verdict::Park => {
                parked.extend(group.members);
                continue;
            }
            Verdict::Fail(error) => {
                batch.end_group(inode, group, Err(error));
                continue;
            }
        }
        if !batch.has_room(group.credits()) {
            groups.push_front(group);
            progress = Progress::NoCredits;
            break;
        }
        let Some(handle) = &batch.handle else { break };
        let step = match group.kind {
            Kind::Picked => hold.publish(batch, &mut group, size).await,
            Kind::Unwritten => hold.convert(handle, &group, size).await,
            Kind::Overwrite => hold.reach(&group, size),
        };
        match step {
            Step::Done => {
                inode.completion.note_tail_written(&group.blocks);
                batch.end_group(inode, group, Ok(()));
            }
            Step::Again(reason) => {
                groups.push_front(group);
                progress = reason;
                break;
            }
            Step::Failed(error) => batch.end_group(inode, group, Err(error)),
        }
    }
    // i_disksize follows an i_size without data of its own when no data before it is unfinished.
    if progress == Progress::All && batch.has_room(CREDITS) {
        hold.changed |= follow_size(&engine.volume, inode, &mut hold.disk);
    }
    if hold.changed
        && let Some(handle) = &batch.handle
    {
        log_inode(&engine.volume, handle, inode, &hold.disk, true).await?;
    }
    Ok(progress)
}

/// What to do with a group of ioends.
enum Verdict {
    Work,
    /// A truncation cut the group off.
    CutOff,
    /// Earlier data is unfinished.
    Park,
    Fail(Error),
}

/// How the work on a group ended.
enum Step {
    Done,
    /// The rest of the group needs credits or space.
    Again(Progress),
    Failed(Error),
}

/// One hold of an inode's lock (i_data_sem): changes under it are logged before the lock is released.
struct Hold<'a> {
    engine: &'a Arc<Engine>,
    inode: &'a Arc<InodeInfo>,
    disk: WriteGuard<'a, Inode>,
    /// True if the inode has to be logged.
    changed: bool,
}

impl Hold<'_> {
    fn judge(&self, group: &Group, size: u64) -> Verdict {
        let block_size = self.engine.volume.info.block_size();
        if group.offset >= size.next_multiple_of(u64::from(block_size.bytes())) {
            return Verdict::CutOff;
        }
        if group.end <= self.disk.size {
            return Verdict::Work;
        }
        match gate(&self.engine.volume, self.inode, &self.disk, group) {
            Gate::Open => Verdict::Work,
            Gate::Failed(error) => Verdict::Fail(error),
            Gate::Closed => Verdict::Park,
        }
    }

    /// A truncation cut `group` off: its unwritten blocks stay so until the truncation frees them, picked
    /// ones are returned.
    fn drop_cut_off(&self, group: &Group) {
        if group.kind == Kind::Picked {
            self.inode.preallocation.give_back(&self.engine.volume.info, group.blocks.clone());
        }
    }

    /// Moves i_disksize to the end of what is done of `group`, i_size at most.
    fn reach(&mut self, group: &Group, size: u64) -> Step {
        let end = group.done_end(self.engine.volume.info.block_size()).min(size);
        if end > self.disk.size {
            self.disk.size = end;
            self.inode.completion.set_disk_size(end);
            self.changed = true;
        }
        Step::Done
    }

    /// Converts the unwritten blocks of `group` to written.
    async fn convert(&mut self, handle: &Handle, group: &Group, size: u64) -> Step {
        let volume = &self.engine.volume;
        let first = group.blocks.start;
        let len = group.blocks.end - group.blocks.start;
        let converted =
            extent_tree::convert_to_written(&volume.info, handle, &mut self.disk, first, len).await;
        self.changed = true;
        if let Err(error) = converted {
            tracing::error!(inode = self.inode.number.0, block = first.0, len, %error,
                "conversion failed: potential data loss");
            volume.fast_commits.mark_ineligible(handle.id(), Reason::Failure);
            return Step::Failed(error);
        }
        self.inode.extent_status.set_written(group.blocks.clone());
        tracing::trace!(
            ino = self.inode.number.0,
            lblk = first.0,
            len,
            ioends = group.members.len(),
            "ext4_convert_unwritten_extents"
        );
        let mapped = Mapped::Blocks { physical: group.physical, unwritten: false };
        let blocks = (group.blocks.start.0, group.blocks.end.0);
        volume.fast_commits.range_changed(handle.id(), self.inode.number, blocks, mapped);
        LiveCounters::add(&volume.counters.conversions, 1);
        LiveCounters::add(&volume.counters.merges, group.members.len() as u64 - 1);
        self.reach(group, size)
    }

    /// Makes picked blocks part of the file, as far as the handle's credits go. i_disksize moves over what
    /// was published before a failure.
    async fn publish(&mut self, batch: &Batch<'_>, group: &mut Group, size: u64) -> Step {
        let volume = &self.engine.volume;
        let before = group.published;
        let outcome = publish(batch, self.inode, &mut self.disk, group, size).await;
        self.changed = true;
        LiveCounters::add(&volume.counters.publications, u64::from(group.published > before));
        let step = match outcome {
            Ok(true) => Step::Done,
            Ok(false) => Step::Again(Progress::NoCredits),
            Err(error)
                if error.errno() == Errno::ENOSPC
                    && !group.retried
                    && volume.info.blocks_awaiting_commit() > 0 =>
            {
                group.retried = true;
                Step::Again(Progress::NoSpace)
            }
            Err(error) => {
                tracing::error!(inode = self.inode.number.0, block = group.published.0, %error,
                    "publication failed: data is lost");
                Step::Failed(error)
            }
        };
        self.reach(group, size);
        step
    }
}

/// Publishes the blocks of `group` within the first `size` bytes of the file, as far as the handle's credits
/// go; blocks behind were cut off, and are returned. Returns true if all is done, false if there are no
/// credits left.
///
/// # Errors
/// As [`publish_step`].
async fn publish(
    batch: &Batch<'_>,
    inode: &InodeInfo,
    disk: &mut Inode,
    group: &mut Group,
    size: u64,
) -> Result<bool> {
    let engine = batch.engine;
    let end_of_file = LogicalBlock::at_or_behind(size, engine.volume.info.block_size());
    let end = group.blocks.end.min(end_of_file);
    while group.published < end {
        let Some(handle) = batch.handle.as_ref().filter(|_| batch.has_room(STEP_CREDITS)) else {
            return Ok(false);
        };
        let physical = group.physical.offset(u64::from(group.published - group.blocks.start));
        let len = end - group.published;
        group.published += publish_step(engine, handle, inode, disk, group.published, physical, len).await?;
    }
    inode.preallocation.give_back(&engine.volume.info, end..group.blocks.end);
    Ok(true)
}
