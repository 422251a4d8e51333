//! What a worker or an attendant does with ioends whose I/O has ended: one handle for many, each inode's in the order
//! of its file.

use crate::writeback::completion::finish;
use std::collections::VecDeque;
use std::sync::Arc;

use ext4_core::format::inode::Inode;
use ext4_core::meta::Transaction as _;
use ext4_core::meta::{credits, extent_tree};
use ext4_core::{Errno, Error, LogicalBlock, Result};

use crate::base::counters::LiveCounters;
use crate::cache::ioend::{Ioend, Kind};
use crate::filesystem::FilesystemInner;
use crate::inode::InodeInfo;
use crate::volume::fast_commit::mapped::Mapped;
use crate::volume::fast_commit::reason::Reason;
use crate::volume::handle::Handle;
use crate::writeback::completion::gate::{Gate, gate};
use crate::writeback::completion::group::{Group, merge};
use crate::writeback::completion::publish::{STEP_CREDITS, publish_step};
use crate::writeback::completion::schedule;

/// Credits for one ioend: its conversion and its inode.
pub(crate) const CREDITS: u32 = credits::EXTENT + credits::INODE;

/// How many ioends one handle makes room for when it begins.
const BATCH_CREDITS: u32 = 16 * CREDITS;

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
    async fn stop(&mut self) {
        self.handle = None;
        for ioend in std::mem::take(&mut self.finished) {
            if ioend.kind == Kind::Picked && ioend.result.is_err() {
                finish::discard(self.fs, &ioend).await;
            }
            finish::finish(self.fs, ioend);
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
        let most = self.fs.journal.as_ref().map_or(BATCH_CREDITS, |journal| journal.max_credits() / 4);
        LiveCounters::add(&self.fs.writeback.counters.completion_handles, 1);
        let credits = BATCH_CREDITS.min(most).max(needed);
        self.handle = Some(self.fs.begin_tracked(credits, "convert").await?);
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

/// Converts and finishes what has completed of `inodes`.
pub(crate) async fn process(fs: &Arc<FilesystemInner>, inodes: Vec<Arc<InodeInfo>>) {
    let mut batch = Batch { fs, handle: None, finished: Vec::new(), removed: 0 };
    for inode in inodes {
        process_inode(&mut batch, &inode).await;
    }
    batch.stop().await;
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
    let parked = process_ioends(batch, inode, ioends).await;
    LiveCounters::add(&batch.fs.writeback.counters.parked, parked.len() as u64);
    // Attendants of one inode and a worker may be here at the same time.
    if queue.park(parked, removals, batch.removed) {
        schedule(batch.fs, inode);
    }
}

/// Fails, converts and finishes `ioends`. Returns those that wait for others.
async fn process_ioends(batch: &mut Batch<'_>, inode: &Arc<InodeInfo>, ioends: Vec<Ioend>) -> Vec<Ioend> {
    let fs = batch.fs;
    let queue = &inode.completion;
    let (good, failed): (Vec<_>, Vec<_>) = ioends.into_iter().partition(|ioend| ioend.result.is_ok());
    for ioend in failed {
        note_failure(fs, inode, &ioend);
        batch.end(ioend);
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
                fail(batch, group, &error);
            }
            break;
        }
        match process_groups(batch, inode, &mut groups, &mut parked).await {
            Ok(Progress::All) => break,
            Ok(Progress::NoCredits) => {}
            Ok(Progress::NoSpace) => {
                // A commit waits for no completion. Where it fails the next try says so.
                batch.stop().await;
                let _ = fs.commit_for_space().await;
            }
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
    parked
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
        if ioend.kind == Kind::Overwrite
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

/// Works on `groups` under one hold of the inode's lock, as far as the handle's credits go.
async fn process_groups(
    batch: &mut Batch<'_>,
    inode: &Arc<InodeInfo>,
    groups: &mut VecDeque<Group>,
    parked: &mut Vec<Ioend>,
) -> Result<Progress> {
    let fs = batch.fs;
    let block_size = fs.info.block_size();
    let mut disk = inode.inode.write().await;
    let mut changed = false;
    let mut progress = Progress::All;
    while let Some(mut group) = groups.pop_front() {
        let size = inode.size();
        if group.offset >= size.next_multiple_of(u64::from(block_size.bytes())) {
            // Cut off meanwhile: unwritten blocks stay so until the truncation frees them, picked ones go back.
            if group.kind == Kind::Picked {
                inode.preallocation.give_back(&fs.info, group.blocks.clone());
            }
            for ioend in group.members {
                batch.end(ioend);
            }
            continue;
        }
        if group.end > disk.size {
            match gate(fs, inode, &disk, &group) {
                Gate::Open => {}
                Gate::Failed(error) => {
                    fail(batch, group, &error);
                    continue;
                }
                Gate::Closed => {
                    parked.extend(group.members);
                    continue;
                }
            }
        }
        if !batch.has_room(group.credits()) {
            groups.push_front(group);
            progress = Progress::NoCredits;
            break;
        }
        let Some(handle) = &batch.handle else { break };
        let mut failed = None;
        if group.kind == Kind::Picked {
            let before = group.published;
            let outcome = publish(batch, inode, &mut disk, &mut group, size).await;
            changed = true;
            LiveCounters::add(&fs.writeback.counters.publications, u64::from(group.published > before));
            match outcome {
                Ok(true) => {}
                Ok(false) => progress = Progress::NoCredits,
                Err(error)
                    if error.errno() == Errno::ENOSPC
                        && !group.retried
                        && fs.info.blocks_awaiting_commit() > 0 =>
                {
                    group.retried = true;
                    progress = Progress::NoSpace;
                }
                Err(error) => {
                    tracing::error!(inode = inode.number.0, block = group.published, %error,
                        "publication failed: data is lost");
                    failed = Some(error);
                }
            }
        }
        if group.kind == Kind::Unwritten {
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
            tracing::trace!(
                ino = inode.number.0,
                lblk = first.0,
                len,
                ioends = group.members.len(),
                "ext4_convert_unwritten_extents"
            );
            if let Some(first) = group.members.first() {
                let mapped = Mapped::Blocks { physical: first.physical, unwritten: false };
                let blocks = (group.blocks.start, group.blocks.end);
                fs.fast_commits.range_changed(handle.id(), inode.number, blocks, mapped);
            }
            LiveCounters::add(&fs.writeback.counters.conversions, 1);
            LiveCounters::add(&fs.writeback.counters.merges, group.members.len() as u64 - 1);
        }
        let end = group.done_end(block_size).min(size);
        if end > disk.size {
            disk.size = end;
            inode.completion.set_disk_size(end);
            changed = true;
        }
        if progress != Progress::All {
            groups.push_front(group);
            break;
        }
        if let Some(error) = failed {
            fail(batch, group, &error);
            continue;
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
    if progress == Progress::All
        && size > disk.size
        && batch.has_room(CREDITS)
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
    Ok(progress)
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
    let fs = batch.fs;
    let end_of_file = u32::try_from(fs.info.block_size().blocks_for(size)).unwrap_or(u32::MAX);
    let end = group.blocks.end.min(end_of_file);
    while group.published < end {
        let Some(handle) = batch.handle.as_ref().filter(|_| batch.has_room(STEP_CREDITS)) else {
            return Ok(false);
        };
        let physical = group.physical.offset(u64::from(group.published - group.blocks.start));
        let len = end - group.published;
        group.published += publish_step(fs, handle, inode, disk, group.published, physical, len).await?;
    }
    inode.preallocation.give_back(&fs.info, end..group.blocks.end);
    Ok(true)
}
