//! Handles: one operation joins the running transaction, with credits for the blocks that it may change.
//!
//! Credits: a handle asks for the number of blocks that it can change at most. The first change of a block in
//! a transaction takes one credit from the handle that makes it; what is left goes back when the handle
//! stops. So the transaction's size is never above what its handles asked for, and it always fits the log.
//!
//! A handle starts only if its credits fit into the running transaction (a quarter of the log), and if that
//! transaction, as large as it can become, fits into the free part of the log. Otherwise the handle waits in
//! the order in which it came ([`Turn`]): for a commit, or for a checkpoint.
//!
//! So a commit finds room for what was counted. Not counted in advance are revokes beyond one block of them:
//! an operation that frees blocks does not know how many of them will be metadata. A commit that comes to
//! need more waits for the checkpoint task, which can always make room: everything else in the log is
//! committed. A transaction whose revokes have made it long takes no more handles, so that it fits the log.
//! (jbd2 has operations declare their revokes. They would have to count by the extent, while the journal here
//! counts what there is.)
//!
//! Invariant: the journal waits for handles (a locked transaction for its last one), so an operation that
//! holds a handle waits for nothing that waits for the journal.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ext4_core::meta::transaction::OnCommit;
use ext4_core::meta::{Buffer, Transaction as MetaTransaction};
use ext4_core::{BlockNumber, Errno, Error, Result, TransactionId, wait};
use parking_lot::MutexGuard;

use super::queue::Turn;
use crate::journal::Journal;
use crate::state::{Counters, Mode, Phase, State, Transaction, log_blocks};

/// A jbd2 handle: one operation's part in the running transaction. Dropping it stops the handle.
#[derive(Debug)]
pub struct Handle {
    journal: Arc<Journal>,
    operation: &'static str,
    /// The transaction that it belongs to.
    id: TransactionId,
    /// Blocks that it may still add to the transaction.
    credits: AtomicU32,
}

/// The answer to a handle that looks for room.
enum Look<T> {
    /// There is room, and it has been taken.
    Taken(T),
    /// There is none, or other handles are before this one.
    NoRoom,
    /// The running transaction takes no handle before it has been frozen, or runs again.
    Locked,
}

impl Journal {
    /// Starts a handle that may change `credits` blocks. Waits while the running transaction is being locked
    /// or the log is full. `operation` names the handle in assertions.
    ///
    /// # Errors
    /// - `ENOSPC`: `credits` is more than [`Journal::max_credits`].
    /// - `EROFS`: the journal does not run.
    /// - [`Error::Aborted`]: the journal has stopped.
    pub async fn start(self: &Arc<Self>, credits: u32, operation: &'static str) -> Result<Handle> {
        if credits > self.max_credits() {
            return Err(Error::posix(
                Errno::ENOSPC,
                format!("{operation}: {credits} blocks in one transaction of at most {}", self.max_credits()),
            ));
        }
        let (id, begun) = self.wait_for_room(credits, operation).await?;
        if begun && self.options.commit_interval.is_some() {
            // The commit task sets its timer.
            self.wake.commit.notify_one();
        }
        Counters::add(&self.counters.handles, 1);
        tracing::trace!(tid = id.0, operation, requested_blocks = credits, "jbd2_handle_start");
        Ok(Handle { journal: Arc::clone(self), operation, id, credits: AtomicU32::new(credits) })
    }

    /// Admits a handle, as [`Journal::admit`] does, as soon as there is room for it and no other handle is
    /// before it. A handle that only waits until a locked transaction is frozen takes no place in the queue.
    async fn wait_for_room(&self, credits: u32, operation: &'static str) -> Result<(TransactionId, bool)> {
        let look = |turn: bool, waited: Duration| {
            let mut state = self.state.lock();
            self.look_for_room(&mut state, credits, operation, turn, waited)
        };
        let first = look(false, Duration::ZERO)?;
        if let Look::Taken(admitted) = first {
            return Ok(admitted);
        }
        let began = self.runtime.monotonic();
        let waited = || self.runtime.monotonic() - began;
        if matches!(first, Look::Locked) {
            let unlocked = wait::try_until(&self.wake.room, || {
                Ok(match look(false, waited())? {
                    Look::Taken(admitted) => Some(Some(admitted)),
                    Look::NoRoom => Some(None),
                    Look::Locked => None,
                })
            });
            if let Some(admitted) = unlocked.await? {
                return Ok(admitted);
            }
        }
        let turn = Turn::take(self);
        turn.first().await;
        wait::try_until(&self.wake.room, || {
            Ok(match look(true, waited())? {
                Look::Taken(admitted) => Some(admitted),
                Look::NoRoom | Look::Locked => None,
            })
        })
        .await
    }

    /// Looks once for room. `turn`: the handle is the first in the queue. `waited`: the time since it came.
    fn look_for_room(
        &self,
        state: &mut State,
        credits: u32,
        operation: &'static str,
        turn: bool,
        waited: Duration,
    ) -> Result<Look<(TransactionId, bool)>> {
        state.check()?;
        if state.running.as_ref().is_some_and(|running| running.phase() != Phase::Running) {
            return Ok(Look::Locked);
        }
        if !turn && !state.queue.is_empty() {
            return Ok(Look::NoRoom);
        }
        if state.mode != Mode::Running {
            return Err(Error::posix(Errno::EROFS, format!("{operation}: the journal does not run")));
        }
        if !self.fits(state, credits) || !self.has_room(state, credits) {
            return Ok(Look::NoRoom);
        }
        Ok(Look::Taken(self.admit(state, credits, waited)))
    }

    /// Returns true if the running transaction, if there is one, has a place for `credits` more. If not, its
    /// commit has been asked for.
    fn fits(&self, state: &mut State, credits: u32) -> bool {
        let Some(running) = &mut state.running else { return true };
        let large = running.size() > 0 && running.size().saturating_add(credits) > self.max_credits();
        // Revokes take no credits, so that they have a bound of their own.
        let long = !running.revokes.is_empty()
            && running.log_blocks(&state.layout, credits) > self.log.ring() / 2
            && running.log_blocks(&state.layout, 0) > self.log.ring() / 4;
        if !large && !long {
            return true;
        }
        running.request_commit(|| self.runtime.monotonic());
        self.wake.commit.notify_one();
        false
    }

    /// Makes a handle with `credits` part of the running transaction, which begins if there is none. Returns
    /// its id, and true if it has begun and needs a timer.
    fn admit(&self, state: &mut State, credits: u32, waited: Duration) -> (TransactionId, bool) {
        let next = state.next;
        let mut begun = false;
        let timer_runs = state.timer_runs;
        let running = state.running.get_or_insert_with(|| {
            begun = !timer_runs;
            Transaction::new(next, self.runtime.monotonic())
        });
        running.handles += 1;
        running.reserved += credits;
        running.longest_wait = running.longest_wait.max(waited);
        (running.id, begun)
    }

    /// Returns true if the log has room for the running transaction with `credits` more. If not, a commit or
    /// a checkpoint that makes room has been asked for.
    fn has_room(&self, state: &mut State, credits: u32) -> bool {
        let running = match &state.running {
            Some(running) => running.log_blocks(&state.layout, credits),
            None => log_blocks(&state.layout, credits, 1),
        };
        let committing = state.committing.as_ref().map_or(0, |committing| committing.wanted);
        let wanted = running.saturating_add(committing);
        if wanted <= state.space.free {
            return true;
        }
        state.checkpoints.want(wanted);
        if state.committing.is_none()
            && state.checkpoints.is_empty()
            && let Some(running) = &mut state.running
        {
            // Only what is running takes up the log.
            running.request_commit(|| self.runtime.monotonic());
            self.wake.commit.notify_one();
        }
        self.wake.checkpoint.notify_one();
        false
    }
}

impl Handle {
    /// The state, in which this handle's transaction is the running one.
    fn state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.journal.state.lock();
        state.check()?;
        debug_assert!(
            state.running.as_ref().is_some_and(|running| running.id == self.id),
            "{}: its transaction is not the running one",
            self.operation
        );
        Ok(state)
    }

    /// Makes `buffer` part of the transaction.
    fn add(&self, buffer: &Buffer) -> Result<()> {
        let block = buffer.block();
        let mut overused = false;
        {
            let mut state = self.state()?;
            let Some(running) = &mut state.running else { return Ok(()) };
            running.revokes.cancel(block);
            match running.buffers.entry(block) {
                std::collections::hash_map::Entry::Occupied(mut entry) => {
                    if !entry.get().is_same(buffer) {
                        entry.insert(buffer.clone());
                    }
                }
                std::collections::hash_map::Entry::Vacant(entry) => {
                    entry.insert(buffer.clone());
                    let left = self.credits.load(Ordering::Relaxed);
                    if left == 0 {
                        overused = true;
                    } else {
                        self.credits.store(left - 1, Ordering::Relaxed);
                        running.reserved -= 1;
                    }
                }
            }
        }
        if overused {
            tracing::error!("{} changes block {block} without a credit for it", self.operation);
            debug_assert!(!overused, "{} changes block {block} without a credit for it", self.operation);
        }
        Ok(())
    }
}

impl Drop for Handle {
    /// Stops the handle: credits that were not used go back.
    fn drop(&mut self) {
        let journal = &self.journal;
        let mut state = journal.state.lock();
        let State { running, layout, space, .. } = &mut *state;
        let Some(running) = running else { return };
        running.reserved -= *self.credits.get_mut();
        running.handles -= 1;
        let drained = running.handles == 0 && running.is_draining();
        // Nearly full: a block that changes all the time is logged once in each transaction, so few large
        // transactions log least.
        let large = running.size() >= journal.max_credits() / 32 * 31
            || running.log_blocks(layout, 0) > space.free.max(journal.log.ring() / 2);
        let request = large && running.request_commit(|| journal.runtime.monotonic());
        drop(state);
        if drained {
            journal.wake.drained.notify_one();
        }
        if request {
            journal.wake.commit.notify_one();
        }
    }
}

impl MetaTransaction for Handle {
    fn id(&self) -> TransactionId {
        self.id
    }

    fn get_write_access(&self, buffer: &Buffer) -> Result<()> {
        self.add(buffer)
    }

    fn get_create_access(&self, buffer: &Buffer) -> Result<()> {
        self.add(buffer)
    }

    fn dirty_metadata(&self, _buffer: &Buffer) -> Result<()> {
        // The transaction has the buffer since write access was got, and reads it when this handle has
        // stopped.
        if self.journal.stopped.load(Ordering::Acquire) {
            return self.state().map(drop);
        }
        Ok(())
    }

    fn forget(&self, block: BlockNumber, _buffer: Option<&Buffer>) -> Result<()> {
        let forgotten = {
            let mut state = self.state()?;
            let Some(running) = &mut state.running else { return Ok(()) };
            running.revokes.revoke(block);
            let forgotten = running.buffers.remove(&block);
            if forgotten.is_some() {
                // Its place in the transaction is this handle's again.
                self.credits.fetch_add(1, Ordering::Relaxed);
                running.reserved += 1;
            }
            forgotten
        };
        drop(forgotten);
        Ok(())
    }

    fn credits(&self) -> u32 {
        self.credits.load(Ordering::Relaxed)
    }

    fn extend(&self, credits: u32) -> Result<bool> {
        let mut state = self.state()?;
        let Some(running) = &state.running else { return Ok(false) };
        if running.phase() != Phase::Running
            || running.size().saturating_add(credits) > self.journal.max_credits()
            || !self.journal.has_room(&mut state, credits)
        {
            return Ok(false);
        }
        if let Some(running) = &mut state.running {
            running.reserved += credits;
            self.credits.fetch_add(credits, Ordering::Relaxed);
        }
        Ok(true)
    }

    fn on_commit(&self, callback: OnCommit) {
        match self.state() {
            Ok(mut state) => {
                if let Some(running) = &mut state.running {
                    running.callbacks.push(callback);
                }
            }
            // The journal has stopped: the commit that the callback waits for never comes.
            Err(_) => drop(callback),
        }
    }
}
