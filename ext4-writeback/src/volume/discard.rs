//! Discard of freed blocks (`discard`): after the commit that freed them, the device is told that it need not
//! keep them.
//!
//! ```text
//!   freed in a transaction ─► committed ─► queue ─► [task] merged, discarded ─► back to the allocator
//! ```
//!
//! Invariants:
//! - A block is discarded only when the transaction that freed it is durable. If it were discarded before, a
//!   crash would bring the file back without its content.
//! - A block goes back to the allocator only when its discard has ended, well or not. If it were allocated
//!   while the discard is in flight, the discard could take the data of its new owner.
//! - The commit task only fills the queue: it never waits for discards, which can take long.
//! - A discard that fails is logged and changes nothing: the blocks are free all the same.
//!
//! Lock: the mutex of the queue is a leaf.

use std::sync::{Arc, Weak};
use std::time::Duration;

use ext4_core::device::BlockDevice;
use ext4_core::environment::Runtime;
use ext4_core::meta::FreedBlocks;
use ext4_core::wait;
use ext4_core::{BlockNumber, BlockSize};
use ext4_journal::Journal;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// How long the task waits for the rest of a commit's freed blocks, so that neighbours become one discard.
const GATHER: Duration = Duration::from_millis(1);

/// Blocks that were freed together.
struct Freed {
    first: BlockNumber,
    count: u64,
    release: Box<dyn FnOnce() + Send>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Freed>,
    /// True if a task works on the queue.
    running: bool,
}

/// The queue of one mounted file system and its task.
pub(crate) struct Discards {
    this: Weak<Self>,
    device: Arc<dyn BlockDevice>,
    block_size: BlockSize,
    journal: Arc<Journal>,
    runtime: Arc<dyn Runtime>,
    queue: Mutex<Queue>,
    /// The queue became empty and its task ended.
    idle: Notify,
}

impl std::fmt::Debug for Discards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Discards({} waiting)", self.queue.lock().waiting.len())
    }
}

impl Discards {
    /// An empty queue for `device`.
    pub fn new(
        device: &Arc<dyn BlockDevice>,
        block_size: BlockSize,
        journal: &Arc<Journal>,
        runtime: &Arc<dyn Runtime>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            device: Arc::clone(device),
            block_size,
            journal: Arc::clone(journal),
            runtime: Arc::clone(runtime),
            queue: Mutex::default(),
            idle: Notify::new(),
        })
    }

    /// Waits until everything that is queued is discarded and free.
    pub async fn drain(&self) {
        wait::until(&self.idle, || (!self.queue.lock().running).then_some(())).await;
    }

    /// Takes all that waits; `None` if nothing waits, and the task is not counted as running any more.
    fn take(&self) -> Option<Vec<Freed>> {
        let mut queue = self.queue.lock();
        if queue.waiting.is_empty() {
            queue.running = false;
            drop(queue);
            self.idle.notify_waiters();
            return None;
        }
        Some(std::mem::take(&mut queue.waiting))
    }

    async fn discard(&self, first: BlockNumber, count: u64) {
        // Nothing changes on the device any more when the journal has stopped.
        if self.journal.aborted().is_some() {
            return;
        }
        let Some(offset) = first.byte(self.block_size) else { return };
        if let Err(error) = self.device.discard(offset, count << self.block_size.bits()).await {
            tracing::warn!(%error, "freed blocks could not be discarded");
        }
    }
}

impl FreedBlocks for Discards {
    fn freed(&self, first: BlockNumber, count: u64, release: Box<dyn FnOnce() + Send>) {
        {
            let mut queue = self.queue.lock();
            queue.waiting.push(Freed { first, count, release });
            if std::mem::replace(&mut queue.running, true) {
                return;
            }
        }
        let runtime = Arc::clone(&self.runtime);
        self.runtime.spawn(Box::pin(work(Weak::clone(&self.this), runtime)));
    }
}

/// The task: discards until the queue is empty, or the file system was dropped.
async fn work(discards: Weak<Discards>, runtime: Arc<dyn Runtime>) {
    loop {
        runtime.sleep(GATHER).await;
        let Some(discards) = discards.upgrade() else { return };
        let Some(freed) = discards.take() else { return };
        for (first, count, members) in merged(freed) {
            discards.discard(first, count).await;
            members.into_iter().for_each(|release| release());
        }
    }
}

type Run = (BlockNumber, u64, Vec<Box<dyn FnOnce() + Send>>);

/// Sorts by the order of the device, and joins neighbours.
fn merged(mut freed: Vec<Freed>) -> Vec<Run> {
    freed.sort_unstable_by_key(|freed| freed.first);
    let mut runs: Vec<Run> = Vec::new();
    for Freed { first, count, release } in freed {
        match runs.last_mut() {
            Some((start, len, members)) if start.offset(*len) == first => {
                *len += count;
                members.push(release);
            }
            _ => runs.push((first, count, vec![release])),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_discard() {
        let freed = [(10, 2), (30, 1), (12, 3), (9, 1), (16, 1)];
        let freed =
            freed.map(|(first, count)| Freed { first: BlockNumber(first), count, release: Box::new(|| ()) });
        let runs: Vec<_> = merged(freed.into())
            .into_iter()
            .map(|(first, count, members)| (first.0, count, members.len()))
            .collect();
        assert_eq!(runs, [(9, 6, 3), (16, 1, 1), (30, 1, 1)]);
    }
}
