//! Throttling: writers that make folios dirty faster than they can be written wait, each for its share (the
//! kernel's `balance_dirty_pages`).
//!
//! The set point lies halfway between the background limit and the dirty limit, and at three quarters of the
//! dirty limit at least. Above it a writer waits until bytes have become clean: as many as it made dirty,
//! times a factor that grows from 0 at the set point to 2 at the dirty limit, times the number of waiting
//! writers. So all writers together go on as fast as the device takes the data, and each gets the same part
//! of that, whatever it writes at a time. At the dirty limit all writers wait.
//!
//! Invariant: a throttled writer holds no folio lock and no handle: writeback needs both. It waits for the
//! flusher, which goes on until dirty data is well below the set point, so a writer never waits for ever.

use ext4_core::wait;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::base::counters::LiveCounters;
use crate::base::lock_order::assert_no_handle;
use crate::base::runtime::queue_up;
use crate::inode::InodeInfo;
use crate::writeback::Engine;
use crate::writeback::dirty::Dirty;
use crate::writeback::sync_all::sync_all_data;

/// Counts a waiting writer until it is dropped, also with the writer's future.
struct Waiting<'a>(&'a Dirty);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.amount.throttled.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Dirty {
    /// Bytes dirty or under writeback above which writers are throttled.
    fn set_point(&self) -> usize {
        (self.limits.background + (self.limits.limit - self.limits.background) / 2)
            .max(self.limits.limit / 4 * 3)
    }

    /// How many bytes have to become clean for each byte that was made dirty, in 256ths.
    fn pressure(&self, dirty: usize) -> u64 {
        let set_point = self.set_point();
        let above = dirty.saturating_sub(set_point) as u64;
        let band = (self.limits.limit - set_point).max(1) as u64;
        (above * 512 / band).min(512)
    }
}

/// Returns true if [`throttle`] has anything to do.
pub(crate) fn would_throttle(engine: &Engine) -> bool {
    let control = &engine.dirty;
    let dirty = control.dirty_bytes();
    dirty > control.limits.background
        && (dirty > control.set_point()
            || !control.flusher.kicked.load(Ordering::Relaxed)
            || control.limits.deterministic)
}

/// Throttles a writer to `inode`: waits if too much is dirty. The caller holds no lock but `rwlock`, and no
/// handle.
pub(crate) async fn throttle(engine: &Arc<Engine>, inode: &Arc<InodeInfo>) {
    let control = &engine.dirty;
    if control.dirty_bytes() <= control.limits.background {
        return;
    }
    if control.limits.deterministic {
        // No other task writes back. Errors are recorded in the inodes.
        let engine = Arc::clone(engine);
        let runtime = Arc::clone(&engine.volume.runtime);
        let _ = crate::base::runtime::run_to_end(&runtime, async move { sync_all_data(&engine).await }).await;
        return;
    }
    if control.kick() {
        // A writer that never waits would keep the flusher from running.
        queue_up().await;
    }
    let dirty = control.dirty_bytes();
    let set_point = control.set_point();
    if dirty <= set_point {
        inode.pages.dirtied.take_owed();
        return;
    }
    let owed = inode.pages.dirtied.take_owed();
    if owed == 0 && dirty <= control.limits.limit {
        return;
    }
    assert_no_handle("throttling");
    let others = control.amount.throttled.fetch_add(1, Ordering::Relaxed) as u64;
    let _waiting = Waiting(control);
    let price = (owed * control.pressure(dirty) / 256).saturating_mul(others + 1);
    let until = control.cleaned().saturating_add(price);
    let paid = || {
        let dirty = control.dirty_bytes();
        // After an error that stopped all writing, dirty data does not become less.
        dirty <= set_point
            || (control.cleaned() >= until && dirty <= control.limits.limit)
            || engine.volume.check_writable().is_err()
    };
    if paid() {
        return;
    }
    LiveCounters::add(&engine.volume.counters.stalls, 1);
    let began = engine.volume.runtime.monotonic();
    let progress = || {
        let paid = paid();
        if !paid {
            control.kick();
        }
        paid.then_some(())
    };
    wait::until(&control.progress, progress).await;
    let waited = engine.volume.runtime.monotonic().saturating_sub(began);
    let nanoseconds = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
    LiveCounters::add(&engine.volume.counters.throttled_nanoseconds, nanoseconds);
    tracing::debug!(ino = inode.number.0, dirty, owed, price, nanoseconds, "balance_dirty_pages");
}
