//! Folio memory: allocation from the pool, and direct reclaim if all of it is in use.
//!
//! Which folios are reclaimed first is decided by [`FolioLists`](crate::cache::folio_lists::FolioLists).
//!
//! Invariants:
//! - Dirty folios and folios under writeback are not reclaimed, and take at most the dirty limit and one
//!   folio per writer: reclaim always finds clean folios in the end, and a reader never waits for ever.
//! - Read-ahead reclaims no fresh folio. If it did, with the rest of memory dirty and in use, it would
//!   reclaim the folio that its own reader waits for; the reader would read it again, and so on for ever.
//! - If the pool has no piece as long as was asked for, a shorter one is taken, down to one page: fragmented
//!   memory makes folios small, and no task waits for it.
//! - A task that waits for memory holds no folio lock and no handle: writeback needs both.
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

/// Memory for a folio: `len` bytes, or less if memory is short, down to `least` bytes. Waits if all of it is
/// in use. No folio lock and no handle may be held.
///
/// # Errors
/// The host refuses to map memory.
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
        // Folios that are not dirty are locked or being read, which ends without a notification.
        tokio::select! {
            biased;
            () = notified => {}
            () = engine.volume.runtime.sleep(Duration::from_millis(1)) => {}
        }
    }
}

/// As [`allocate_memory`]; `None` instead of waiting, and instead of reclaiming fresh folios: for read-ahead,
/// which must not take folios that were read ahead before and have not been used yet.
///
/// # Errors
/// As [`allocate_memory`].
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
    // If so much is free already, it is in small pieces: reclaiming more for each of them would drop folios
    // that were read a moment ago.
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
