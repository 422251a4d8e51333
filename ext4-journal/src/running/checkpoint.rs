//! Checkpoint: committed blocks go to their places, and their part of the log becomes free.
//!
//! Each block is known by its latest committed image. A block that a newer transaction committed again leaves
//! the older one's list: the newer one's copy in the log replaces the older. So a block that changes all the
//! time, a bitmap, is seldom written.
//!
//! A transaction none of whose blocks is left, and none before it, frees its part of the log: the tail in the
//! superblock moves on, behind a flush of the blocks that were written.
//!
//! Invariants:
//! - Only images of committed transactions are written. Otherwise a crash would show half an operation.
//! - One checkpoint at a time, and a block of it is written once: an older image never overtakes a newer one.
//! - A block that a committed transaction revoked is not written any more; see [`crate::log::revoke`].

use ext4_core::device::BioFlags;
use ext4_core::meta::buffer::write_images;
use ext4_core::wait;
use ext4_core::{BlockNumber, Result, TransactionId};

use crate::journal::Journal;
use crate::state::State;
use crate::state::statistics::Counters;

/// Blocks that are written at a time; between two lots revoked blocks are left out.
const LOT: usize = 1024;

impl State {
    /// Where the log begins when its `skip` oldest committed transactions are gone.
    fn tail_after(&self, skip: usize) -> (u32, TransactionId) {
        let committing = self.committing.as_ref();
        match self.checkpoints.transactions.get(skip) {
            Some(transaction) => (transaction.extent.start, transaction.extent.id),
            None => match committing.filter(|c| !self.checkpoints.holds(c.transaction.id)) {
                Some(committing) => (
                    committing.extent.map_or(self.space.head, |extent| extent.start),
                    committing.transaction.id,
                ),
                None => (self.space.head, self.next),
            },
        }
    }
}

impl Journal {
    /// One turn of the checkpoint task: makes room in the log where it is short, empties it where that is
    /// asked for. True where it did something.
    pub(crate) async fn checkpoint_if_needed(&self) -> bool {
        let (wanted, empty) = {
            let mut state = self.state.lock();
            if state.aborted.is_some() {
                return false;
            }
            let ring = self.log.ring();
            let free = state.space.free;
            let State { checkpoints, .. } = &mut *state;
            let short = free < ring / 4 || checkpoints.wanted > free;
            let empty = checkpoints.empty;
            if !empty && (!short || checkpoints.is_empty()) {
                checkpoints.wanted = 0;
                return false;
            }
            let target = if empty { ring } else { checkpoints.wanted.max(ring / 2) };
            checkpoints.wanted = 0;
            (target.saturating_sub(free), empty)
        };
        let result = async {
            self.checkpoint(wanted).await?;
            if empty { self.mark_empty().await } else { Ok(true) }
        };
        let went_on = result.await.unwrap_or_else(|error| {
            self.abort(&error);
            false
        });
        self.wake.checkpointed.notify_waiters();
        self.wake.room.notify_waiters();
        went_on
    }

    /// Writes the blocks of the oldest transactions until `wanted` log blocks are free, and moves the tail
    /// on.
    async fn checkpoint(&self, wanted: u32) -> Result<()> {
        let selected = self.state.lock().checkpoints.select(wanted);
        tracing::debug!(blocks = selected.len(), wanted, "jbd2_checkpoint");
        let home = self.home();
        for lot in selected.chunks(LOT) {
            let images = self.state.lock().checkpoints.take_lot(lot);
            if images.is_empty() {
                continue;
            }
            Counters::add(&self.counters.checkpointed_blocks, images.len());
            let flags = BioFlags::META | BioFlags::BACKGROUND;
            let result = write_images(&**home.cache.device(), self.log.block_size, images, flags).await;
            let released = {
                let mut state = self.state.lock();
                match &result {
                    Ok(()) => state.checkpoints.finish_lot(lot),
                    Err(_) => {
                        state.checkpoints.in_flight.clear();
                        Vec::new()
                    }
                }
            };
            drop(released);
            self.wake.checkpointed.notify_waiters();
            result?;
        }
        self.move_tail().await
    }

    /// Frees the log blocks of transactions that have nothing left to write, once the superblock on the
    /// medium does not claim them any more.
    async fn move_tail(&self) -> Result<()> {
        let (count, blocks, tail) = {
            let state = self.state.lock();
            state.check()?;
            let (count, blocks) = state.checkpoints.finished();
            (count, blocks, state.tail_after(count))
        };
        if count == 0 {
            return Ok(());
        }
        self.flush_checkpointed().await?;
        self.write_superblock(self.barrier_flags(), |superblock| superblock.set_tail(tail.0, tail.1)).await?;
        {
            let mut state = self.state.lock();
            state.checkpoints.transactions.drain(..count);
            state.space.free += blocks;
        }
        tracing::debug!(first_tid = tail.1.0, tail = tail.0, freed = blocks, "jbd2_update_log_tail");
        self.wake.room.notify_waiters();
        Ok(())
    }

    /// Makes what was written to its place durable. Where the log is on the same device the superblock's own
    /// flush does it.
    async fn flush_checkpointed(&self) -> Result<()> {
        let unflushed = std::mem::take(&mut self.state.lock().checkpoints.unflushed);
        let home = self.home();
        if unflushed && home.external && self.options.barrier {
            Counters::add(&self.counters.flushes, 1);
            home.cache.device().flush().await?;
        }
        Ok(())
    }

    /// Says on the medium that the log is empty, where it is. False where a commit is under way, which wakes
    /// the checkpoint task when it ends.
    async fn mark_empty(&self) -> Result<bool> {
        let next = {
            let mut state = self.state.lock();
            state.check()?;
            if !state.checkpoints.is_empty()
                || state.committing.as_ref().is_some_and(|committing| committing.extent.is_some())
            {
                return Ok(state.committing.is_none());
            }
            if state.fast.hold_log(state.running.as_ref()) {
                // Their transaction has to be committed in full first; that, or their end, wakes the
                // checkpoint task.
                if let Some(running) = &mut state.running {
                    running.request_commit(|| self.runtime.monotonic());
                }
                self.wake.commit.notify_one();
                return Ok(false);
            }
            if state.space.empty_on_medium {
                state.checkpoints.emptied += 1;
                state.checkpoints.empty = false;
                return Ok(true);
            }
            state.checkpoints.emptying = true;
            state.tail_after(0).1
        };
        let written = self
            .write_superblock(self.barrier_flags(), |superblock| {
                superblock.set_tail(0, next);
                superblock.set_fast_commit(false);
            })
            .await;
        let mut state = self.state.lock();
        state.checkpoints.emptying = false;
        if written.is_ok() {
            state.space.empty_on_medium = true;
            state.checkpoints.emptied += 1;
            state.checkpoints.empty = false;
        }
        written.map(|()| true)
    }

    /// Has the checkpoint task empty the log, and waits for it.
    pub(crate) async fn empty_log(&self) -> Result<()> {
        let mut before = None;
        wait::try_until(&self.wake.checkpointed, || {
            {
                let mut state = self.state.lock();
                state.check()?;
                let emptied = state.checkpoints.emptied;
                if *before.get_or_insert(emptied) != emptied {
                    return Ok(Some(()));
                }
                state.checkpoints.empty = true;
            }
            self.wake.checkpoint.notify_one();
            Ok(None)
        })
        .await
    }

    /// Waits until no write of one of `blocks` is in flight.
    pub(crate) async fn wait_for_checkpoints_of(&self, blocks: &[BlockNumber]) -> Result<()> {
        wait::try_until(&self.wake.checkpointed, || {
            let state = self.state.lock();
            state.check()?;
            let in_flight = blocks.iter().any(|block| state.checkpoints.in_flight.contains(block));
            Ok((!in_flight).then_some(()))
        })
        .await
    }
}
