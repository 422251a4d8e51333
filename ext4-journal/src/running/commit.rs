//! Commit: the running transaction becomes durable in the log.
//!
//! 1. *Locked*: new handles wait, open ones finish.
//! 2. *Flushing*: its images are frozen by cloning them (the next change of a block copies the image), and
//!    the next transaction can run. Revoke blocks, descriptors and images go to the log in one plug of large
//!    writes.
//! 3. *Committing*: when all of them have completed, the commit block goes behind a flush, with FUA. The
//!    flush also makes durable what data writes had completed before. With an external log the file system's
//!    device is flushed first. (If the device's FUA is a flush behind the write, step 2 asks for that
//!    instead, and the commit block needs no flush before it.)
//! 4. *Committed*: its blocks wait for the checkpoint, blocks that it revoked leave the lists of older
//!    transactions; then the callbacks run, and then the waiters are notified.
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
use ext4_core::{BlockNumber, Errno, Error, Result, TransactionId, wait};

use crate::format::Layout;
use crate::journal::Journal;
use crate::log::{Extent, descriptors_and_images, revoke_blocks};
use crate::state::{Committing, Counters, Frozen, Phase, State, log_blocks};

/// What a locked transaction commits, taken out of the reach of the next one.
struct Content {
    /// Images in the order of their blocks.
    frozen: Vec<Frozen>,
    /// Revoked blocks in order.
    revoked: Vec<BlockNumber>,
    /// The form of the log's blocks.
    layout: Layout,
}

/// A commit that panics takes the journal with it: it would never end, and its waiters would wait for ever.
struct AbortOnPanic<'a>(&'a Journal);

impl Drop for AbortOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.abort(&Error::posix(Errno::EIO, "a commit panicked"));
        }
    }
}

impl Journal {
    /// Makes transaction `id` durable: commits it if it is running, waits for it if it is committing; if it
    /// has committed there is nothing to do. Returns true if that flushed the file system's device after the
    /// call began.
    ///
    /// # Errors
    /// [`Error::Aborted`]: the journal has stopped.
    pub async fn commit(self: &Arc<Self>, id: TransactionId) -> Result<bool> {
        let mut flushes = None;
        loop {
            // Made under the lock: it misses no end of the transaction from then on.
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
                    // A flush that is still to come covers what had been written when this call began.
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

    /// Commits the running transaction, and waits for it and for the committing one.
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

    /// Commits, writes every committed block to its place and empties the log, for a freeze or an unmount.
    /// Handles that run meanwhile may fill the log again.
    ///
    /// # Errors
    /// As [`Journal::commit`].
    pub async fn flush(self: &Arc<Self>) -> Result<()> {
        self.force_commit().await?;
        self.empty_log().await
    }

    /// Asks for a commit of the running transaction, which is old, at the next turn.
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

    /// Commits the running transaction in the caller's own task, which spares two task switches. Returns
    /// false if a commit is under way in another task, or a fast commit has to end first: either then wakes
    /// the commit task.
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

    /// One turn of the committer: commits the running transaction if that was asked for. Returns true if it
    /// did.
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

    /// Takes a locked transaction to its end: one call for each step of the picture above.
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
        self.mark_in_use(extent).await?;
        tracing::trace!(transaction = id.0, blocks = blocks.len(), "jbd2_commit_logging");
        let flushed = self.write_log(extent.start, blocks).await?;
        self.write_commit_block(extent, commit_block, flushed).await?;
        self.finish_commit(frozen, &revoked, extent).await
    }

    /// Says in the superblock that the log is not empty, if the medium has it empty: it begins with `extent`.
    async fn mark_in_use(&self, extent: Extent) -> Result<()> {
        let (empty, fast_commits) = {
            let state = self.state.lock();
            (state.space.empty_on_medium, state.fast.are_allowed())
        };
        if empty {
            // The commit block's flush makes it durable before the commit is.
            self.write_superblock(BioFlags::empty(), |superblock| {
                superblock.set_tail(extent.start, extent.id);
                superblock.set_fast_commit(fast_commits);
            })
            .await?;
            self.state.lock().space.empty_on_medium = false;
        }
        Ok(())
    }

    /// Writes everything of a transaction but its commit block. Returns true if all of it is durable, and
    /// with it all that the log's device had completed before. That is so on a device whose FUA is a flush
    /// behind the write: it then needs no flush before the commit block, which is the same number of flushes
    /// and one wait less.
    async fn write_log(&self, start: u32, blocks: Vec<Segment>) -> Result<bool> {
        let flushes = self.options.barrier
            && self.log.device.geometry().fua_flushes()
            && self.log.is_one_transfer(start, blocks.len());
        let flags = if flushes { BioFlags::FUA } else { BioFlags::empty() };
        Counters::add(&self.counters.flushes, usize::from(flushes));
        self.log.write(start, blocks, flags).await?;
        Ok(flushes)
    }

    /// Writes the commit block, the last of `extent`, behind a flush and with FUA. `flushed`: that flush has
    /// been.
    async fn write_commit_block(&self, extent: Extent, block: AlignedBuffer, flushed: bool) -> Result<()> {
        self.advance_committing(Phase::Committing)?;
        let home = self.home();
        if self.options.barrier && home.external {
            Counters::add(&self.counters.flushes, 1);
            home.cache.device().flush().await?;
        }
        let at = self.log.advance(extent.start, extent.count - 1);
        let flags = match (self.options.barrier, flushed) {
            (false, _) => BioFlags::empty(),
            (true, true) => BioFlags::FUA,
            (true, false) => BioFlags::PREFLUSH | BioFlags::FUA,
        };
        Counters::add(&self.counters.flushes, usize::from(flags.contains(BioFlags::PREFLUSH)));
        self.log.write(at, vec![Segment::Owned(block)], flags).await
    }

    /// Waits until the transaction, which is locked or paused, has no open handle.
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

    /// Clones the images of the locked transaction, and lets the next one run. `None`: nothing was in it.
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
        // Locked and without handles: no buffer of it changes now, though it may be read.
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

    /// Gives the committing transaction its part of the log. A handle starts only if there is room, so this
    /// waits only if revokes took more than was counted, or while the superblock is written to mark the log
    /// empty.
    async fn take_log_space(&self, id: TransactionId) -> Result<Extent> {
        wait::try_until(&self.wake.room, || {
            let mut state = self.state.lock();
            state.check()?;
            let State { committing, space, checkpoints, .. } = &mut *state;
            let Some(committing) = committing else { unreachable!("the committer put it there") };
            if checkpoints.is_emptying() {
                return Ok(None);
            }
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
            Ok(None)
        })
        .await
    }

    /// The blocks that go to the log, in its order, and the commit block.
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

    /// Ends a commit whose commit block is durable: hands the blocks to the checkpoint, runs the callbacks,
    /// and notifies the waiters.
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
            let Some(committing) = committing else { unreachable!("the committer put it there") };
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
        // Handles that wait for space ask again, now that there is something to checkpoint.
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
