//! What a worker or an attendant does with ioends whose I/O has ended: one handle for many, each inode's in the order
//! of its file.

use crate::inode::log::log_inode;
use crate::writeback::completion::finish;
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
use crate::volume::fast_commit::mapped::Mapped;
use crate::volume::fast_commit::reason::Reason;
use crate::volume::handle::Handle;
use crate::writeback::Engine;
use crate::writeback::completion::gate::{Gate, gate};
use crate::writeback::completion::group::{CREDITS, Group, merge};
use crate::writeback::completion::publish::{STEP_CREDITS, publish_step};
use crate::writeback::size::follow_size;

/// How many ioends one handle makes room for when it begins.
const BATCH_CREDITS: u32 = 16 * CREDITS;

/// A handle that many ioends share, and those that are finished when it has been stopped.
struct Batch<'a> {
    engine: &'a Arc<Engine>,
    handle: Option<Handle>,
    finished: Vec<(Arc<InodeInfo>, Ioend)>,
    /// How many ioends of the inode in hand have blocked nobody since.
    removed: u64,
}

impl Batch<'_> {
    /// Everything of `ioend` but the end of the handle is decided.
    fn end(&mut self, inode: &Arc<InodeInfo>, ioend: Ioend) {
        let _ = inode.completion.remove(&ioend);
        self.removed += 1;
        self.finished.push((Arc::clone(inode), ioend));
    }

    /// `group` ends with `result`, whatever the I/O of its ioends gave if that is an error.
    fn end_group(&mut self, inode: &Arc<InodeInfo>, group: Group, result: Result<()>) {
        for mut ioend in group.members {
            if result.is_err() {
                ioend.result.clone_from(&result);
            }
            self.end(inode, ioend);
        }
    }

    /// Stops the handle, then ends the writeback of what it converted.
    async fn stop(&mut self) {
        self.handle = None;
        for (inode, ioend) in std::mem::take(&mut self.finished) {
            if ioend.kind == Kind::Picked && ioend.result.is_err() {
                finish::discard(self.engine, &inode, &ioend).await;
            }
            finish::finish(self.engine, &inode, ioend);
        }
    }

    /// True where the handle has `credits` for one more step.
    fn has_room(&self, credits: u32) -> bool {
        self.handle.as_ref().is_some_and(|handle| {
            handle.credits() >= credits || matches!(handle.extend(BATCH_CREDITS), Ok(true))
        })
    }

    /// A handle with `credits`; another one where this one has none. No inode lock may be held.
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

/// How far a hold of the inode's lock came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Everything is done or parked.
    All,
    /// The handle has no credits left.
    NoCredits,
    /// There is no block for metadata; some will be free after a commit.
    NoSpace,
}

/// Converts and finishes what has completed of `inodes`. Returns those that have to be looked at again.
#[must_use = "what is parked would be forgotten"]
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

/// Fails, converts and finishes `ioends`. Returns those that wait for others.
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
                // A commit waits for no completion. Where it fails the next try says so.
                batch.stop().await;
                let _ = engine.volume.commit_for_space().await;
            }
            Err(error) => {
                for group in groups {
                    batch.end_group(inode, group, Err(error.clone()));
                }
                // Neither conversion nor size is in a transaction: what the caller waits for did not happen.
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
        let tail = (size >> block_size.bits()) as u32;
        if ioend.kind == Kind::Overwrite
            && !size.is_multiple_of(u64::from(block_size.bytes()))
            && ioend.blocks.contains(&tail)
        {
            inode.completion.state.lock().failed_tail = Some((tail, error.clone()));
        }
    }
}

/// Works on `groups` under one hold of the inode's lock, as far as the handle's credits go:
///
/// ```text
///   group ─► cut off by a truncation ──────────────────────────────► ended
///         ─► the gate of i_disksize: failed ─► ended; closed ─► parked
///         ─► published, or converted ─► i_disksize moves ─► ended
///   no group left ─► i_disksize follows a size without data of its own
///   inode logged, lock given back
/// ```
async fn process_groups(
    batch: &mut Batch<'_>,
    inode: &Arc<InodeInfo>,
    groups: &mut VecDeque<Group>,
    parked: &mut Vec<Ioend>,
) -> Result<Progress> {
    let engine = batch.engine;
    let mut hold = Hold { engine, inode, disk: inode.inode.write().await, changed: false };
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
    // A size that was raised without data of its own follows when nothing before it is unfinished.
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

/// What to do with a group.
enum Verdict {
    Work,
    /// A truncation cut it off.
    CutOff,
    /// Earlier data is unfinished.
    Park,
    Fail(Error),
}

/// How the work on a group ended.
enum Step {
    Done,
    /// The rest of it needs credits or space.
    Again(Progress),
    Failed(Error),
}

/// One hold of an inode's lock (i_data_sem): what changes under it is logged before the lock is given back.
struct Hold<'a> {
    engine: &'a Arc<Engine>,
    inode: &'a Arc<InodeInfo>,
    disk: WriteGuard<'a, Inode>,
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

    /// Unwritten blocks stay so until the truncation frees them, picked ones go back.
    fn drop_cut_off(&self, group: &Group) {
        if group.kind == Kind::Picked {
            self.inode.preallocation.give_back(&self.engine.volume.info, group.blocks.clone());
        }
    }

    /// i_disksize moves to the end of what is done of `group`, within i_size.
    fn reach(&mut self, group: &Group, size: u64) -> Step {
        let end = group.done_end(self.engine.volume.info.block_size()).min(size);
        if end > self.disk.size {
            self.disk.size = end;
            self.inode.completion.set_disk_size(end);
            self.changed = true;
        }
        Step::Done
    }

    /// Unwritten blocks become written.
    async fn convert(&mut self, handle: &Handle, group: &Group, size: u64) -> Step {
        let volume = &self.engine.volume;
        let first = LogicalBlock(group.blocks.start);
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
        let blocks = (group.blocks.start, group.blocks.end);
        volume.fast_commits.range_changed(handle.id(), self.inode.number, blocks, mapped);
        LiveCounters::add(&volume.counters.conversions, 1);
        LiveCounters::add(&volume.counters.merges, group.members.len() as u64 - 1);
        self.reach(group, size)
    }

    /// Picked blocks become part of the file, as far as the handle's credits go. What was published before a failure
    /// counts.
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
                tracing::error!(inode = self.inode.number.0, block = group.published, %error,
                    "publication failed: data is lost");
                Step::Failed(error)
            }
        };
        self.reach(group, size);
        step
    }
}

/// Publishes what `group` has within the first `size` bytes of the file, as far as the handle's credits go; what lies
/// behind was cut off, and is given back. False where there are no credits left.
async fn publish(
    batch: &Batch<'_>,
    inode: &InodeInfo,
    disk: &mut Inode,
    group: &mut Group,
    size: u64,
) -> Result<bool> {
    let engine = batch.engine;
    let end_of_file = u32::try_from(engine.volume.info.block_size().blocks_for(size)).unwrap_or(u32::MAX);
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
