//! What happens after the I/O of an ioend: conversion of unwritten blocks, publication of picked ones, the size on the
//! device, and only then the end of the folios' writeback.
//!
//! ```text
//!   device ── end_io ──► nothing to do: finished at once
//!                   └──► the inode's list ──► worker, or whoever waits in fsync ([`crate::writeback::completion::attendance`]): one handle for many
//!                                              errors │ merge │ gate │ convert or publish, raise i_disksize, log │ stop │ finish
//!                                                             └── parked until earlier data is there
//! ```
//!
//! Invariants:
//! - In the device's context there is bookkeeping only; handles are opened by a worker or an attendant, who wait for no data.
//! - i_disksize moves over completed data only, in the order of the file: an ioend that reaches past it is parked while
//!   an earlier one that does is unfinished. After a crash no file has zeros where data was appended, and no written
//!   block lies behind the size, which e2fsck would call corrupt.
//! - The tail gate: nothing moves i_disksize past the block that it ends in (unaligned) before the zeros behind it are on
//!   the device. Its bytes there are anything until then; were the size to pass, a crash would show them. They are in an
//!   ioend before all that lies behind them ([`gate`]).
//! - Where writing that block failed, or it could not be mapped, what lies behind it fails with it.
//! - The truncate race: size and conversion are decided under the inode's lock, against i_size as it is then.
//! - A parked ioend is not published, and no block past the end of the file is: a block that is not unwritten must not
//!   lie there.
//! - What could not be published is given back under the folios' locks, between the handle and the end of the writeback.
//! - A folio's writeback ends after the handle has been stopped.
//!
//! Locks: the queue's mutex is a leaf.

pub(crate) mod attendance;
pub(crate) mod convert;
pub(crate) mod finish;
pub(crate) mod gate;
pub(crate) mod group;
pub(crate) mod publish;
#[cfg(test)]
mod tests;
pub(crate) mod wait;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::base::lock_order::Scoped;
use crate::base::runtime::run_to_end;
use crate::cache::ioend::{Ioend, Kind};
use crate::inode::InodeInfo;
use crate::writeback::Engine;
use crate::writeback::completion::convert::process;
use crate::writeback::completion::finish::finish;

/// How many inodes a worker takes at a time.
const BATCH_INODES: usize = 128;

/// The I/O of `ioend` ended, well or not. In the device's completion context.
pub(crate) fn end_io(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, ioend: Ioend) {
    for (folio, _) in &ioend.pieces {
        folio.end_piece_io();
    }
    let disk_size = inode.completion.disk_size();
    let defer = ioend.result.is_err()
        || ioend.kind != Kind::Overwrite
        || ioend.end() > disk_size
        || inode.size() > disk_size;
    let mut others_wait = false;
    if defer {
        inode.completion.state.lock().done.push(ioend);
    } else {
        others_wait = inode.completion.remove(&ioend);
        finish(engine, inode, ioend);
    }
    engine.dirty.completed.ios.fetch_sub(1, Ordering::AcqRel);
    // Somebody who extends the file looks for ioends in flight after raising i_size; if he saw this one, the size is
    // left to us.
    if defer || others_wait || inode.size() > inode.completion.disk_size() {
        schedule(engine, inode);
    }
    engine.dirty.note_progress();
}

/// Has a worker look at `inode`, or whoever waits for it.
pub(crate) fn schedule(engine: &Arc<Engine>, inode: &Arc<InodeInfo>) {
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
    give_to_workers(engine, inode);
}

/// Puts `inode`, which has work, into the workers' queue.
pub(crate) fn give_to_workers(engine: &Arc<Engine>, inode: &Arc<InodeInfo>) {
    let mut completed = engine.dirty.completed.completed.lock();
    completed.queue.push_back(Arc::clone(inode));
    if engine.dirty.is_deterministic() {
        drop(completed);
        engine.dirty.note_progress();
        return;
    }
    if completed.worker {
        return;
    }
    completed.worker = true;
    drop(completed);
    let worker = Arc::clone(engine);
    engine.volume.runtime.spawn(Box::pin(Scoped::new(Box::pin(async move {
        loop {
            let inodes: Vec<_> = {
                let mut completed = worker.dirty.completed.completed.lock();
                let count = completed.queue.len().min(BATCH_INODES);
                completed.worker = count > 0;
                completed.queue.drain(..count).collect()
            };
            if inodes.is_empty() {
                worker.dirty.note_progress();
                return;
            }
            process_and_schedule(&worker, inodes).await;
        }
    }))));
}

/// Without workers: where no I/O is in flight, converts what has completed, inode by inode. True where there was
/// something.
pub(crate) async fn run_when_io_ended(engine: &Arc<Engine>) -> bool {
    let control = &engine.dirty.completed;
    if control.ios.load(Ordering::Acquire) != 0 {
        return false;
    }
    let mut inodes: Vec<_> = control.completed.lock().queue.drain(..).collect();
    if inodes.is_empty() {
        return false;
    }
    inodes.sort_by_key(|inode| inode.number);
    // To its end, also if the caller stops waiting: the ioends are in no list any more.
    let owned = Arc::clone(engine);
    run_to_end(&engine.volume.runtime, async move { process_and_schedule(&owned, inodes).await }).await;
    true
}

/// Converts and finishes what has completed of `inodes`; what has to be looked at again is given to a worker.
pub(crate) async fn process_and_schedule(engine: &Arc<Engine>, inodes: Vec<Arc<InodeInfo>>) {
    for inode in process(engine, inodes).await {
        schedule(engine, &inode);
    }
}
