//! Commit: the running transaction becomes durable.
//!
//! 1. *Locked*: new handles wait, open ones finish.
//! 2. *Flushing*: its images are frozen by cloning them (the next change of a block copies it), and the next
//!    transaction can run. Revoke blocks, descriptors and images go to the log in one plug of large writes.
//! 3. *Committing*: when all of them have completed, the commit block goes behind a flush, with FUA. The
//!    flush also makes durable what data writes had completed before. With an external log the file system's
//!    device is flushed first. (Where FUA is a flush behind the write, step 2 asks for that instead, and the
//!    commit block needs none before it.)
//! 4. *Committed*: its blocks wait for the checkpoint; blocks it revoked leave those of older transactions;
//!    then the callbacks run, then the tasks that wait are told.
//!
//! Invariant: images are read only by the clones made in step 2. Were a buffer read later, a change of the
//! next transaction could be committed without the rest of its operation.
//!
//! Invariant: callbacks, which hand out freed blocks, run only when no checkpoint write of a revoked block is
//! in flight. Were one, it could land on the data of the block's next owner.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ext4_core::device::{AlignedBuffer, BioFlags, Segment};
use ext4_core::environment::RunToEnd;
use ext4_core::meta::transaction::OnCommit;
use ext4_core::wait;
use ext4_core::{BlockNumber, Errno, Error, Result, TransactionId};

use crate::format::layout::Layout;
use crate::journal::Journal;
use crate::log::Extent;
use crate::log::content::descriptors_and_images;
use crate::log::revoke::revoke_blocks;
use crate::state::checkpoints::Frozen;
use crate::state::statistics::Counters;
use crate::state::transaction::{Phase, Transaction, log_blocks};
use crate::state::{Committing, State};

/// What a locked transaction commits, taken out of the reach of the next one.
struct Content {
    /// In the order of their blocks.
    frozen: Vec<Frozen>,
    /// In order.
    revoked: Vec<BlockNumber>,
    /// The form of the log's blocks.
    layout: Layout,
}

/// A commit that panics aborts the journal: no task would end it, and its waiters would wait for
/// ever.
struct AbortOnPanic<'a>(&'a Journal);

impl Drop for AbortOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.abort(&Error::posix(Errno::EIO, "a commit panicked"));
        }
    }
}

impl State {
    /// Ends a running transaction without handles and blocks: its id is used by the next. The callbacks are
    /// to be called without the lock.
    pub(crate) fn discard_empty(&mut self) -> Option<Vec<OnCommit>> {
        let idle = |running: &Transaction| running.is_idle() && running.phase() == Phase::Running;
        if self.running.as_ref().is_some_and(idle) {
            return self.running.take().map(|mut running| std::mem::take(&mut running.callbacks));
        }
        None
    }
}

impl Journal {
    /// Has what is running, which is old, committed at the next turn.
    pub(crate) fn request_commit(&self) {
        let mut state = self.state.lock();
        if let Some(running) = &mut state.running {
            running.commit_requested = true;
        }
    }

    /// Returns true if a commit of the running transaction was asked for.
    pub(crate) fn is_commit_requested(&self) -> bool {
        self.state.lock().running.as_ref().is_some_and(|running| running.commit_requested)
    }

    /// Commits what is running in the caller's own task, which spares two changes of tasks. Returns false if
    /// another task is committing, or a fast commit has to end first: that task makes sure that the commit
    /// task goes on.
    pub(crate) async fn commit_here(self: &Arc<Self>) -> bool {
        let Ok(turn) = Arc::clone(&self.committer).try_lock_owned() else { return false };
        let journal = Arc::clone(self);
        RunToEnd::new(&self.runtime, async move {
            let panics = AbortOnPanic(&journal);
            let committed = journal.commit_if_requested().await;
            drop(panics);
            // Callers that asked meanwhile did not get the turn.
            drop(turn);
            if journal.is_commit_requested() {
                journal.wake.commit.notify_one();
            }
            committed
        })
        .await
    }

    /// One turn of the committer: commits the running transaction where that is asked for. True where it did.
    pub(crate) async fn commit_if_requested(self: &Arc<Self>) -> bool {
        let id = {
            let mut state = self.state.lock();
            if state.aborted.is_some() {
                return false;
            }
            // A fast commit under way writes what the full one would make void: it ends first.
            if state.fast.is_busy() {
                return false;
            }
            match &mut state.running {
                Some(running) if running.commit_requested => {
                    tracing::debug!(transaction = running.id.0, "jbd2_start_commit");
                    running.advance(Phase::Locked, self.runtime.monotonic());
                    tracing::trace!(transaction = running.id.0, "jbd2_commit_locking");
                    running.id
                }
                _ => return false,
            }
        };
        if let Err(error) = self.commit_locked(id).await {
            self.abort(&error);
        }
        true
    }

    async fn commit_locked(&self, id: TransactionId) -> Result<()> {
        self.drain().await?;
        tracing::trace!(transaction = id.0, "jbd2_commit_flushing");
        let Some(content) = self.freeze()? else { return Ok(()) };
        let extent = self.take_log_space(id).await?;
        let (blocks, commit_block) = self.log_content(id, &content)?;
        let Content { frozen, revoked, .. } = content;
        assert_eq!(blocks.len() + 1, extent.count as usize, "the transaction was counted as it is written");
        Counters::add(&self.counters.log_blocks, blocks.len() + 1);
        Counters::add(&self.counters.logged_blocks, frozen.len());
        Counters::add(&self.counters.revokes, revoked.len());

        if self.state.lock().space.empty_on_medium {
            // The commit block's flush makes it durable before the commit is.
            let fast_commits = self.state.lock().fast.are_allowed();
            self.write_superblock(BioFlags::empty(), |superblock| {
                superblock.set_tail(extent.start, id);
                superblock.set_fast_commit(fast_commits);
            })
            .await?;
            self.state.lock().space.empty_on_medium = false;
        }
        tracing::trace!(transaction = id.0, blocks = blocks.len(), "jbd2_commit_logging");
        let flushed = self.write_log(extent.start, blocks).await?;
        self.advance_committing(Phase::Committing)?;
        let home = self.home();
        if self.options.barrier && home.external {
            Counters::add(&self.counters.flushes, 1);
            home.cache.device().flush().await?;
        }
        let commit_at = self.log.advance(extent.start, extent.count - 1);
        let flags = match (self.options.barrier, flushed) {
            (false, _) => BioFlags::empty(),
            (true, true) => BioFlags::FUA,
            (true, false) => BioFlags::PREFLUSH | BioFlags::FUA,
        };
        Counters::add(&self.counters.flushes, usize::from(flags.contains(BioFlags::PREFLUSH)));
        self.log.write(commit_at, vec![Segment::Owned(commit_block)], flags).await?;
        self.finish_commit(frozen, &revoked, extent).await
    }

    /// Writes everything of a transaction but its commit block. True where all of it is durable when this
    /// returns, and with it whatever the log's device had completed before: so on a device whose FUA is a
    /// flush behind the write, which then needs none before the commit block. It is the same number of
    /// flushes, and one wait less.
    async fn write_log(&self, start: u32, blocks: Vec<Segment>) -> Result<bool> {
        let flushes = self.options.barrier
            && self.log.device.geometry().fua_flushes()
            && self.log.is_one_transfer(start, blocks.len());
        let flags = if flushes { BioFlags::FUA } else { BioFlags::empty() };
        Counters::add(&self.counters.flushes, usize::from(flushes));
        self.log.write(start, blocks, flags).await?;
        Ok(flushes)
    }

    /// Waits for the open handles of the locked transaction.
    pub(crate) async fn drain(&self) -> Result<()> {
        loop {
            {
                let state = self.state.lock();
                state.check()?;
                if state.running.as_ref().is_none_or(|running| running.handles == 0) {
                    return Ok(());
                }
            }
            self.wake.drained.notified().await;
        }
    }

    /// Clones the images of the locked transaction and lets the next one run. `None`: there was nothing in
    /// it.
    fn freeze(&self) -> Result<Option<Content>> {
        let (buffers, layout) = {
            let mut state = self.state.lock();
            state.check()?;
            let layout = state.layout;
            let Some(running) = &mut state.running else { return Ok(None) };
            if running.is_empty() {
                let empty = state.running.take();
                drop(state);
                let callbacks = empty.map(|mut empty| std::mem::take(&mut empty.callbacks));
                callbacks.into_iter().flatten().for_each(|callback| callback());
                self.wake.room.notify_waiters();
                self.wake.committed.notify_waiters();
                return Ok(None);
            }
            (std::mem::take(&mut running.buffers), layout)
        };
        // Locked and without handles: no handle changes a buffer of it now, though others may be read.
        let mut frozen: Vec<Frozen> = buffers
            .into_iter()
            .map(|(block, buffer)| Frozen { block, image: buffer.image(), buffer })
            .collect();
        frozen.sort_unstable_by_key(|frozen| frozen.block);
        let revoked;
        {
            let mut state = self.state.lock();
            state.check()?;
            let Some(mut transaction) = state.running.take() else { return Ok(None) };
            revoked = transaction.revokes.sorted();
            transaction.advance(Phase::Flushing, self.runtime.monotonic());
            let images = u32::try_from(frozen.len()).unwrap_or(u32::MAX);
            let wanted = log_blocks(&layout, images, revoked.len());
            state.next = transaction.id.next();
            state.committing = Some(Committing { transaction, wanted, extent: None });
        }
        self.wake.room.notify_waiters();
        Ok(Some(Content { frozen, revoked, layout }))
    }

    /// Gives the committing transaction its part of the log. Handles only start where there is room, so it
    /// waits only where revokes took more than was thought, or while the superblock is being marked empty.
    async fn take_log_space(&self, id: TransactionId) -> Result<Extent> {
        wait::try_until(&self.wake.room, || {
            let mut state = self.state.lock();
            state.check()?;
            let State { committing, space, checkpoints, .. } = &mut *state;
            let Some(committing) = committing else { unreachable!("the commit put it there") };
            if !checkpoints.is_emptying() {
                let count = committing.wanted;
                if count >= self.log.ring() {
                    let what = format!("transaction {id}: {count} blocks in a log of {}", self.log.ring());
                    return Err(Error::posix(Errno::ENOSPC, what));
                }
                if let Some(start) = space.take(&self.log, count) {
                    let extent = Extent { id, start, count };
                    committing.extent = Some(extent);
                    committing.wanted = 0;
                    return Ok(Some(extent));
                }
                checkpoints.want(count);
                self.wake.checkpoint.notify_one();
            }
            Ok(None)
        })
        .await
    }

    /// The blocks that go to the log, in order, and the commit block.
    fn log_content(&self, id: TransactionId, content: &Content) -> Result<(Vec<Segment>, AlignedBuffer)> {
        let Content { frozen, revoked, layout } = content;
        let size = layout.block_size.len();
        let mut blocks: Vec<Segment> =
            revoke_blocks(layout, id, revoked)?.into_iter().map(Segment::Owned).collect();
        let images: Vec<_> = frozen.iter().map(|frozen| (frozen.block, frozen.image.clone())).collect();
        blocks.append(&mut descriptors_and_images(layout, id, &images)?);
        let now = self.environment.now();
        let mut commit = AlignedBuffer::zeroed(size)?;
        layout.write_commit(&mut commit, id, now.seconds, now.nanoseconds);
        Ok((blocks, commit))
    }

    fn advance_committing(&self, to: Phase) -> Result<()> {
        let mut state = self.state.lock();
        state.check()?;
        if let Some(committing) = &mut state.committing {
            committing.transaction.advance(to, self.runtime.monotonic());
        }
        Ok(())
    }

    /// The commit block is durable: hands the blocks to the checkpoint, runs the callbacks, tells the tasks
    /// that wait.
    async fn finish_commit(
        &self,
        frozen: Vec<Frozen>,
        revoked: &[BlockNumber],
        extent: Extent,
    ) -> Result<()> {
        let released;
        let callbacks;
        let stale;
        {
            let mut state = self.state.lock();
            state.check()?;
            let State { committing, checkpoints, fast, history, .. } = &mut *state;
            let Some(committing) = committing else { unreachable!("the commit put it there") };
            committing.transaction.advance(Phase::Committed, self.runtime.monotonic());
            history.add(&committing.transaction);
            callbacks = std::mem::take(&mut committing.transaction.callbacks);
            stale = fast.begin_to_void(extent.id);
            released = checkpoints.add(extent, frozen, revoked);
        }
        drop(released);
        self.wait_for_checkpoints_of(revoked).await?;
        for callback in callbacks {
            callback();
        }
        let (finished, low) = {
            let mut state = self.state.lock();
            let finished = state.committing.take();
            (finished, state.space.free < self.log.ring() / 4 || state.checkpoints.is_to_be_emptied())
        };
        self.counters.transactions.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(transaction = extent.id.0, log_blocks = extent.count, "jbd2_end_commit");
        drop(finished);
        self.wake.committed.notify_waiters();
        // A handle that waits for space asks again, now that there is something to checkpoint.
        self.wake.room.notify_waiters();
        if low {
            self.wake.checkpoint.notify_one();
        }
        if stale {
            self.void_fast_commits().await;
        }
        Ok(())
    }
}

impl Journal {
    /// Makes transaction `id` durable: commits it where it is running, waits where it is committing; nothing
    /// to do where it has committed. Returns true when that flushed the file system's device after the call.
    ///
    /// # Errors
    /// [`Error::Aborted`] where the journal has stopped.
    pub async fn commit(self: &Arc<Self>, id: TransactionId) -> Result<bool> {
        let mut flushes = None;
        loop {
            // Made under the lock: it misses no end from then on.
            let (done, is_running) = {
                let mut state = self.state.lock();
                state.check()?;
                if let Some(running) = state.running.as_mut().filter(|running| running.id == id) {
                    let done = Arc::clone(&running.done).notified_owned();
                    running.request_commit(|| self.runtime.monotonic());
                    if let Some(callbacks) = state.discard_empty() {
                        drop(state);
                        callbacks.into_iter().for_each(|callback| callback());
                        return Ok(flushes.unwrap_or(false));
                    }
                    flushes.get_or_insert(self.options.barrier);
                    (done, true)
                } else if let Some(committing) = &state.committing
                    && committing.transaction.id == id
                {
                    // Its flush is still to come: it covers what had been written when this call began.
                    let before_flush = committing.transaction.phase() < Phase::Committing;
                    flushes.get_or_insert(self.options.barrier && before_flush);
                    (Arc::clone(&committing.transaction.done).notified_owned(), false)
                } else {
                    return Ok(flushes.unwrap_or(false));
                }
            };
            if is_running && self.commit_here().await {
                continue;
            }
            done.await;
        }
    }

    /// Commits what is running and waits for it and for what is committing.
    ///
    /// # Errors
    /// As [`Journal::commit`].
    pub async fn force_commit(self: &Arc<Self>) -> Result<()> {
        let id = {
            let state = self.state.lock();
            state.check()?;
            match (&state.running, &state.committing) {
                (Some(running), Some(committing)) if running.is_idle() => committing.transaction.id,
                (Some(running), _) => running.id,
                (None, Some(committing)) => committing.transaction.id,
                (None, None) => return Ok(()),
            }
        };
        self.commit(id).await.map(drop)
    }

    /// Writes every committed block to its place and empties the log (freeze, unmount, before growing a
    /// bitmap …). Handles that run meanwhile may fill it again.
    ///
    /// # Errors
    /// As [`Journal::commit`].
    pub async fn flush(self: &Arc<Self>) -> Result<()> {
        self.force_commit().await?;
        self.empty_log().await
    }
}
