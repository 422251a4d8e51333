//! Memory for folios: where it comes from when all of it is in use.
//!
//! What is given up first is decided by [`FolioLists`](crate::cache::folio_lists::FolioLists).
//!
//! Invariants:
//! - Dirty folios and those under writeback are not given up, and take at most the hard limit and one folio per writer:
//!   reclaim always finds clean ones in the end and a reader never waits for ever.
//! - Reading ahead gives up nothing fresh. Were it to, with the rest of memory dirty and in use, it would give up the
//!   folio its own reader waits for, who would read it again, and so on for ever.
//! - Where the pool has no piece as long as was asked for, a shorter one is taken, down to one page: memory in small
//!   pieces makes folios small, and nothing wait.
//! - Waiting for memory happens with no folio lock and no handle held: writeback needs both.
//!
//! Locks: the lists' mutex is a leaf.

use std::sync::Arc;
use std::time::Duration;

use ext4_core::Result;
use ext4_core::device::PoolMemory;

use crate::base::counters::LiveCounters;
use crate::base::lock_order::assert_no_handle;
use crate::writeback::Engine;
use crate::writeback::sync_all::sync_all_data;

/// Memory for a folio: `len` bytes, or less where memory is short, down to `least`. Waits where all of it is in use.
/// No folio lock may be held.
pub(crate) async fn allocate_memory(
    engine: &Arc<Engine>,
    len: usize,
    least: usize,
) -> Result<Arc<PoolMemory>> {
    assert_no_handle("waiting for folio memory");
    let control = &engine.dirty;
    loop {
        let notified = control.progress.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if let Some(memory) = try_allocate(engine, len, least, true)? {
            return Ok(memory);
        }
        LiveCounters::add(&engine.volume.counters.stalls, 1);
        if control.limits.deterministic {
            let operation = {
                let engine = Arc::clone(engine);
                async move { sync_all_data(&engine).await }
            };
            let _ = crate::base::runtime::run_to_end(&engine.volume.runtime, operation).await;
            tokio::task::yield_now().await;
            continue;
        }
        control.kick_everything();
        // What is not dirty is locked or read right now, which ends without a word to us.
        tokio::select! {
            biased;
            () = notified => {}
            () = engine.volume.runtime.sleep(Duration::from_millis(1)) => {}
        }
    }
}

/// As [`allocate_memory`], `None` instead of waiting, and instead of giving up what was made a moment ago: for reading
/// ahead, which must not take what was read before it and has not been looked at yet.
pub(crate) fn try_allocate_memory(
    engine: &Arc<Engine>,
    len: usize,
    least: usize,
) -> Result<Option<Arc<PoolMemory>>> {
    try_allocate(engine, len, least, false)
}

fn try_allocate(
    engine: &Arc<Engine>,
    len: usize,
    least: usize,
    fresh: bool,
) -> Result<Option<Arc<PoolMemory>>> {
    if let Some(memory) = engine.pool.allocate(len)? {
        return Ok(Some(Arc::new(memory)));
    }
    // Where so much is free already, it lies in small pieces: giving up more for each of them would drop what was read
    // a moment ago.
    let free = engine.pool.capacity().saturating_sub(engine.pool.used());
    if free < len {
        engine.dirty.folios.reclaim(&engine.volume.counters, 2 * len - free, fresh);
    }
    let mut size = len;
    loop {
        if let Some(memory) = engine.pool.allocate(size)? {
            if size < len {
                LiveCounters::add(&engine.volume.counters.shorter_folios, 1);
            }
            return Ok(Some(Arc::new(memory)));
        }
        if size <= least {
            return Ok(None);
        }
        size /= 2;
    }
}
