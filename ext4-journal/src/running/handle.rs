//! Handles: joining the running transaction, and what one may do in it.
//!
//! Credits: a handle asks for as many blocks as it can change at most. The first change of a block in a
//! transaction takes one from the handle that makes it; what is left goes back when the handle stops. So the
//! transaction's size is never above what its handles asked for, and it always fits the log.
//!
//! A handle starts only where its credits fit into the running transaction (a quarter of the log) and that,
//! as large as it can become, fits into the free part of the log beside what is reserved. Otherwise it waits,
//! in the order in which it came ([`crate::running::queue`]): for a commit, or for a checkpoint.
//!
//! So a commit finds room for what was counted. Not counted in advance are revokes beyond one block of them:
//! an operation that frees blocks does not know how many will be metadata. A commit that comes to need more
//! waits for the checkpoint task, and that waits for no task: all else in the log is committed. A transaction
//! whose revokes have made it long takes no more handles, so that it fits the log. (jbd2 has operations
//! declare their revokes; they would have to count by the extent, where we count what there is.)
//!
//! Invariant: the journal waits for handles (a locked transaction for its last one), so a task that holds one
//! waits for nothing that waits for the journal.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use ext4_core::meta::transaction::OnCommit;
use ext4_core::meta::{Buffer, Transaction as MetaTransaction};
use ext4_core::{BlockNumber, Errno, Error, Result, TransactionId};
use parking_lot::MutexGuard;

use crate::journal::Journal;
use crate::running::queue::Turn;
use crate::state::statistics::Counters;
use crate::state::transaction::{Phase, Transaction};
use crate::state::{Mode, State};

/// One operation's part in the running transaction. Dropping it stops it.
#[derive(Debug)]
pub struct Handle {
    journal: Arc<Journal>,
    operation: &'static str,
    /// The transaction it belongs to.
    id: AtomicU32,
    /// Blocks it may still add to the transaction.
    credits: AtomicU32,
}

impl Journal {
    /// Starts a handle that may change `credits` blocks; waits where the running transaction is being locked
    /// or the log is full. `operation` names it in assertions.
    ///
    /// # Errors
    /// `ENOSPC` for more than [`Journal::max_credits`], [`Error::Aborted`] where the journal has stopped,
    /// `EROFS` where it does not run.
    pub async fn start(self: &Arc<Self>, credits: u32, operation: &'static str) -> Result<Handle> {
        let id = self.join(credits, operation).await?;
        tracing::trace!(tid = id.0, operation, requested_blocks = credits, "jbd2_handle_start");
        Ok(Handle::new(self, operation, id, credits))
    }

    async fn join(&self, credits: u32, operation: &'static str) -> Result<TransactionId> {
        if credits > self.max_credits() {
            return Err(Error::posix(
                Errno::ENOSPC,
                format!("{operation}: {credits} blocks in one transaction of at most {}", self.max_credits()),
            ));
        }
        let (id, begun) = self
            .wait_for_room(|state, waited| {
                if state.mode != Mode::Running {
                    return Err(Error::posix(Errno::EROFS, format!("{operation}: the journal does not run")));
                }
                if !self.fits(state, credits) || !self.has_room(state, credits) {
                    return Ok(None);
                }
                let admitted = self.admit(state, credits);
                if let Some(running) = &mut state.running {
                    running.longest_wait = running.longest_wait.max(waited);
                }
                Ok(Some(admitted))
            })
            .await?;
        self.admitted(begun);
        Ok(id)
    }

    /// Calls `take` until it takes what it wants. Between two calls it waits for what may have changed the
    /// answer, in the queue of the handles that do; while a transaction is locked no handle is asked. `take`
    /// is told how long it has waited.
    pub(crate) async fn wait_for_room<T>(
        &self,
        mut take: impl FnMut(&mut State, Duration) -> Result<Option<T>>,
    ) -> Result<T> {
        let mut began = None;
        let mut turn = None;
        loop {
            let mut room = std::pin::pin!(self.wake.room.notified());
            let locked;
            {
                let mut state = self.state.lock();
                state.check()?;
                locked = state.running.as_ref().is_some_and(|running| running.phase() != Phase::Running);
                if !locked && (turn.is_some() || state.queue.is_empty()) {
                    let waited = began.map_or(Duration::ZERO, |began| self.runtime.monotonic() - began);
                    if let Some(taken) = take(&mut state, waited)? {
                        return Ok(taken);
                    }
                }
                // With the lock held: a task that changes the state from here on reaches this waiter.
                room.as_mut().enable();
            }
            began.get_or_insert_with(|| self.runtime.monotonic());
            if locked || turn.is_some() {
                room.await;
            } else {
                let place = Turn::take(self);
                place.first().await;
                turn = Some(place);
            }
        }
    }

    /// True where the running transaction, if there is one, has a place for `credits` more. Otherwise its
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

    /// Makes a handle with `credits` part of the running transaction, which begins where there is none: its
    /// id, and whether it has begun and needs a timer. [`Journal::admitted`] follows without the lock.
    pub(crate) fn admit(&self, state: &mut State, credits: u32) -> (TransactionId, bool) {
        let next = state.next;
        let mut begun = false;
        let timer_runs = state.timer_runs;
        let running = state.running.get_or_insert_with(|| {
            begun = !timer_runs;
            Transaction::new(next, self.runtime.monotonic())
        });
        running.handles += 1;
        running.reserved += credits;
        (running.id, begun)
    }

    /// Counts a handle, and sets the timer of a transaction that has begun.
    pub(crate) fn admitted(&self, begun: bool) {
        if begun && self.options.commit_interval.is_some() {
            self.wake.commit.notify_one();
        }
        Counters::add(&self.counters.handles, 1);
    }

    /// Returns true if the log has room for the running transaction with `credits` more. Otherwise room is
    /// being made.
    pub(crate) fn has_room(&self, state: &mut State, credits: u32) -> bool {
        let running = match &state.running {
            Some(running) => running.log_blocks(&state.layout, credits),
            None if credits == 0 => 0,
            None => crate::state::transaction::log_blocks(&state.layout, credits, 1),
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
    /// A handle that was admitted to transaction `id`.
    pub(crate) fn new(
        journal: &Arc<Journal>,
        operation: &'static str,
        id: TransactionId,
        credits: u32,
    ) -> Self {
        Self {
            journal: Arc::clone(journal),
            operation,
            id: AtomicU32::new(id.0),
            credits: AtomicU32::new(credits),
        }
    }

    /// The state, with this handle's transaction in `running`.
    fn state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.journal.state.lock();
        state.check()?;
        debug_assert!(
            state.running.as_ref().is_some_and(|running| running.id.0 == self.id.load(Ordering::Relaxed)),
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

    /// Leaves the transaction; what it reserved and did not use goes back.
    fn leave(&self) {
        let journal = &self.journal;
        let mut state = journal.state.lock();
        let State { running, layout, space, .. } = &mut *state;
        let Some(running) = running else { return };
        running.reserved -= self.credits.swap(0, Ordering::Relaxed);
        running.handles -= 1;
        let drained = running.handles == 0 && running.is_draining();
        // Nearly full: a block that changes all the time is logged once for each transaction, so few large
        // ones log least.
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

impl Drop for Handle {
    fn drop(&mut self) {
        self.leave();
    }
}

#[async_trait]
impl MetaTransaction for Handle {
    fn id(&self) -> TransactionId {
        TransactionId(self.id.load(Ordering::Relaxed))
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
            // What it waits for never comes.
            Err(_) => drop(callback),
        }
    }
}
