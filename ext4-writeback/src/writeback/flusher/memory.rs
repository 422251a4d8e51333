//! Memory for folios: where it comes from when all of it is in use.
//!
//! ```text
//!   new ──► inactive ──(used again)──► active          two lists, oldest first, as the kernel's
//!              │    ◄──(active is more than half)──┘
//!              └──(not used again)──► given up
//! ```
//!
//! Where the inactive list has nothing but what is fresh or dirty, the oldest of the active one go that were not used
//! lately.
//!
//! What is read or written once, however much of it, passes through the inactive list and takes nothing from the active
//! one. A use is counted when a folio is found again: a stream of small reads or writes that goes on in the folio it
//! was in is one use, and the one that made the folio is none.
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

use std::sync::{Arc, Weak};
use std::time::Duration;

use ext4_core::Result;
use ext4_core::device::PoolMemory;

use crate::base::counters::LiveCounters;
use crate::base::lock_order::assert_no_handle;
use crate::cache::folio::Folio;
use crate::cache::folio_lists::{Entry, Phase, Verdict};
use crate::cache::page_cache::AddressSpace;
use crate::filesystem::FilesystemInner;
use crate::writeback::dirty::Writeback;
use crate::writeback::sync_all::sync_all_data;

impl Writeback {
    /// A folio was made.
    pub fn add_folio(&self, space: Weak<AddressSpace>, folio: &Arc<Folio>) {
        self.folios.add(space, folio);
    }

    /// Gives up clean folios, those first that were not used lately, until `want` bytes are free; returns how many
    /// were. `fresh`: also what was made a moment ago, where there is nothing else.
    fn reclaim(&self, want: usize, fresh: bool) -> usize {
        let mut freed = 0;
        for phase in [Phase::Inactive, Phase::Active, Phase::Any] {
            if freed < want && (fresh || phase != Phase::Any) {
                self.reclaim_from(phase, want, &mut freed);
            }
        }
        LiveCounters::add(&self.counters.reclaimed_bytes, freed as u64);
        freed
    }

    fn reclaim_from(&self, phase: Phase, want: usize, freed: &mut usize) {
        let lists = &self.folios.lists;
        let (mut turns, young) = {
            let lists = lists.lock();
            let turns = match phase {
                Phase::Inactive => lists.inactive.len(),
                Phase::Active => lists.active.len(),
                Phase::Any => lists.inactive.len() + lists.active.len(),
            };
            (turns, lists.made.saturating_sub(self.folios.fresh))
        };
        while *freed < want && turns > 0 {
            turns -= 1;
            let taken = {
                let mut lists = lists.lock();
                match phase {
                    Phase::Inactive => lists.inactive.pop_front(),
                    Phase::Active => lists.pop_active(),
                    Phase::Any => lists.inactive.pop_front().or_else(|| lists.pop_active()),
                }
            };
            let Some(entry) = taken else { return };
            match self.judge(&entry, phase, entry.born > young) {
                Verdict::GiveUp => *freed += entry.len,
                Verdict::Gone => {}
                Verdict::Keep if phase == Phase::Active => lists.lock().push_active(entry),
                Verdict::Keep => lists.lock().inactive.push_back(entry),
                Verdict::Activate => {
                    lists.lock().push_active(entry);
                    self.folios.balance();
                }
            }
        }
    }

    fn judge(&self, entry: &Entry, phase: Phase, fresh: bool) -> Verdict {
        let (Some(space), Some(folio)) = (entry.space.upgrade(), entry.folio.upgrade()) else {
            return Verdict::Gone;
        };
        if folio.is_removed() {
            return Verdict::Gone;
        }
        match phase {
            Phase::Inactive if folio.uses() >= 2 => {
                folio.take_uses();
                LiveCounters::add(&self.counters.activated_folios, 1);
                return Verdict::Activate;
            }
            Phase::Inactive if fresh => return Verdict::Keep,
            Phase::Active if folio.take_uses() > 0 => return Verdict::Keep,
            _ => {}
        }
        if !folio.is_dirty()
            && !folio.is_under_writeback()
            && let Some(guard) = folio.try_lock()
            && !guard.is_dirty()
            && !guard.is_under_writeback()
            && !guard.is_removed()
        {
            space.remove(&guard);
            LiveCounters::add(&self.counters.reclaimed_folios, 1);
            return Verdict::GiveUp;
        }
        Verdict::Keep
    }
}

/// Memory for a folio: `len` bytes, or less where memory is short, down to `least`. Waits where all of it is in use.
/// No folio lock may be held.
pub(crate) async fn allocate_memory(
    fs: &Arc<FilesystemInner>,
    len: usize,
    least: usize,
) -> Result<Arc<PoolMemory>> {
    assert_no_handle("waiting for folio memory");
    let control = &fs.writeback;
    loop {
        let notified = control.progress.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if let Some(memory) = try_allocate(fs, len, least, true)? {
            return Ok(memory);
        }
        LiveCounters::add(&control.counters.stalls, 1);
        if control.deterministic {
            let operation = {
                let fs = Arc::clone(fs);
                async move { sync_all_data(&fs).await }
            };
            let _ = crate::base::runtime::run_to_end(&fs.runtime, operation).await;
            tokio::task::yield_now().await;
            continue;
        }
        control.kick_everything();
        // What is not dirty is locked or read right now, which ends without a word to us.
        tokio::select! {
            biased;
            () = notified => {}
            () = fs.runtime.sleep(Duration::from_millis(1)) => {}
        }
    }
}

/// As [`allocate_memory`], `None` instead of waiting, and instead of giving up what was made a moment ago: for reading
/// ahead, which must not take what was read before it and has not been looked at yet.
pub(crate) fn try_allocate_memory(
    fs: &Arc<FilesystemInner>,
    len: usize,
    least: usize,
) -> Result<Option<Arc<PoolMemory>>> {
    try_allocate(fs, len, least, false)
}

fn try_allocate(
    fs: &Arc<FilesystemInner>,
    len: usize,
    least: usize,
    fresh: bool,
) -> Result<Option<Arc<PoolMemory>>> {
    if let Some(memory) = fs.pool.allocate(len)? {
        return Ok(Some(Arc::new(memory)));
    }
    // Where so much is free already, it lies in small pieces: giving up more for each of them would drop what was read
    // a moment ago.
    let free = fs.pool.capacity().saturating_sub(fs.pool.used());
    if free < len {
        fs.writeback.reclaim(2 * len - free, fresh);
    }
    let mut size = len;
    loop {
        if let Some(memory) = fs.pool.allocate(size)? {
            if size < len {
                LiveCounters::add(&fs.writeback.counters.shorter_folios, 1);
            }
            return Ok(Some(Arc::new(memory)));
        }
        if size <= least {
            return Ok(None);
        }
        size /= 2;
    }
}
