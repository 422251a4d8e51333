//! Checkpoint: committed blocks go to their places, and their part of the log becomes free.
//!
//! A transaction that has no block left to write, and none before it that has, frees its part of the log: the
//! tail in the superblock moves on, behind a flush of the blocks that were written. Which image of a block
//! counts is said in [`Checkpoints`](crate::state::Checkpoints).
//!
//! Invariants:
//! - Only images of committed transactions are written. Otherwise a crash would show half an operation.
//! - One checkpoint at a time, and a block of it is written once: an older image never overtakes a newer one.
//! - A block that a committed transaction revoked is not written any more; see [`crate::log::Revokes`].

use ext4_core::device::BioFlags;
use ext4_core::meta::buffer::write_images;
use ext4_core::{BlockNumber, Result, wait};

use crate::journal::Journal;
use crate::state::{Counters, State};

/// Blocks that are written at a time; between two lots revoked blocks are left out.
const LOT: usize = 1024;

impl Journal {
    /// One turn of the checkpoint task: makes room in the log if it is short, empties it if that is asked
    /// for. Returns true if it did something.
    pub(crate) async fn checkpoint_if_needed(&self) -> bool {
        let (wanted, empty) = {
            let mut state = self.state.lock();
            if state.aborted.is_some() {
                return false;
            }
            let ring = self.log.ring();
            let free = state.space.free;
            let State { checkpoints, .. } = &mut *state;
            let asked = checkpoints.take_wanted();
            let short = free < ring / 4 || asked > free;
            let empty = checkpoints.is_to_be_emptied();
            if !empty && (!short || checkpoints.is_empty()) {
                return false;
            }
            let target = if empty { ring } else { asked.max(ring / 2) };
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

    /// Writes the blocks of the oldest transactions until `wanted` more log blocks are free, and moves the
    /// tail on.
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
                        state.checkpoints.fail_lot();
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
            state.checkpoints.drop_oldest(count);
            state.space.free += blocks;
        }
        tracing::debug!(first_tid = tail.1.0, tail = tail.0, freed = blocks, "jbd2_update_log_tail");
        self.wake.room.notify_waiters();
        Ok(())
    }

    /// Makes blocks that were written to their places durable. With an internal log the flush that comes with
    /// the superblock does it.
    async fn flush_checkpointed(&self) -> Result<()> {
        let unflushed = self.state.lock().checkpoints.take_unflushed();
        let home = self.home();
        if unflushed && home.external && self.options.barrier {
            Counters::add(&self.counters.flushes, 1);
            home.cache.device().flush().await?;
        }
        Ok(())
    }

    /// Marks the log empty on the medium, if it is empty. Returns false while a commit is under way, or fast
    /// commits hold the log; the end of either wakes the checkpoint task.
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
                // Their transaction has to be committed in full first.
                if let Some(running) = &mut state.running {
                    running.request_commit(|| self.runtime.monotonic());
                }
                self.wake.commit.notify_one();
                return Ok(false);
            }
            if state.space.empty_on_medium {
                state.checkpoints.note_empty();
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
            state.checkpoints.note_empty();
        }
        written.map(|()| true)
    }

    /// Asks the checkpoint task to empty the log, and waits until it has.
    pub(crate) async fn empty_log(&self) -> Result<()> {
        let mut before = None;
        wait::try_until(&self.wake.checkpointed, || {
            {
                let mut state = self.state.lock();
                state.check()?;
                let emptied = state.checkpoints.emptied();
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

    /// Waits until no write of one of `blocks` to its place is in flight.
    pub(crate) async fn wait_for_checkpoints_of(&self, blocks: &[BlockNumber]) -> Result<()> {
        wait::try_until(&self.wake.checkpointed, || {
            let state = self.state.lock();
            state.check()?;
            Ok((!state.checkpoints.is_in_flight(blocks)).then_some(()))
        })
        .await
    }
}
