//! Reclaim: all folios of a file system in the order of their age (the LRU lists), and which of them are
//! dropped when memory is short.
//!
//! ```text
//!   new ──► inactive ──(used again)──► active          two lists, oldest first, as in the kernel
//!              │    ◄──(active is more than half)──┘
//!              └──(not used again)──► dropped
//! ```
//!
//! If all of the inactive list is fresh or dirty, the oldest folios of the active list that were not used
//! lately are dropped.
//!
//! Data that is read or written once, however much of it, passes through the inactive list and takes nothing
//! from the active one. A use is counted when a folio is found again: a stream of small reads or writes that
//! goes on in the same folio is one use, and the access that made the folio is none.
//!
//! Invariant: a folio that is dirty or under writeback is not dropped.
//!
//! Lock: the mutex of the lists is a leaf; a folio is only locked with `try_lock`, after it was released.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::base::counters::LiveCounters;
use crate::cache::folio::Folio;
use crate::cache::page_cache::AddressSpace;

#[derive(Debug)]
struct Entry {
    space: Weak<AddressSpace>,
    folio: Weak<Folio>,
    len: usize,
    /// [`Lists::made`] when the folio was made.
    born: u64,
}

#[derive(Debug, Default)]
struct Lists {
    inactive: VecDeque<Entry>,
    active: VecDeque<Entry>,
    active_bytes: usize,
    /// Bytes of folios that were made since the mount.
    made: u64,
}

impl Lists {
    pub(crate) fn pop_active(&mut self) -> Option<Entry> {
        let entry = self.active.pop_front()?;
        self.active_bytes -= entry.len;
        Some(entry)
    }

    pub(crate) fn push_active(&mut self, entry: Entry) {
        self.active_bytes += entry.len;
        self.active.push_back(entry);
    }
}

/// The LRU lists: all folios of a file system, in the order of their age.
#[derive(Debug)]
pub(crate) struct FolioLists {
    lists: Mutex<Lists>,
    /// The most bytes that the active list keeps.
    most_active: usize,
    /// A folio is fresh until so many bytes of other folios have been made.
    fresh: u64,
}

/// Which folios reclaim drops. Each phase looks at each folio of its lists once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Folios of the inactive list, but for fresh ones; those that were used again become active.
    Inactive,
    /// Folios of the active list that were not used lately.
    Active,
    /// All clean folios.
    Any,
}

/// What reclaim does with a folio.
enum Verdict {
    GiveUp,
    Keep,
    Activate,
    Gone,
}

impl FolioLists {
    /// Empty lists for a pool of `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self { lists: Mutex::default(), most_active: capacity / 2, fresh: capacity as u64 / 4 }
    }

    /// Adds a folio that was just made.
    pub fn add(&self, space: Weak<AddressSpace>, folio: &Arc<Folio>) {
        let mut lists = self.lists.lock();
        lists.made += folio.len() as u64;
        let born = lists.made;
        lists.inactive.push_back(Entry { space, folio: Arc::downgrade(folio), len: folio.len(), born });
        // Folios of deleted files leave dead entries behind; looking at two entries for each addition removes
        // them faster than they come.
        for _ in 0..2 {
            if lists.inactive.front().is_none_or(|entry| entry.folio.strong_count() > 0) {
                break;
            }
            lists.inactive.pop_front();
        }
        for _ in 0..2 {
            if lists.active.front().is_none_or(|entry| entry.folio.strong_count() > 0) {
                break;
            }
            lists.pop_active();
        }
    }

    /// Makes the active list no longer than `most_active` bytes: its oldest folios stay if they were used,
    /// and move to the inactive list if not.
    pub(crate) fn balance(&self) {
        let mut lists = self.lists.lock();
        let mut turns = lists.active.len();
        while lists.active_bytes > self.most_active && turns > 0 {
            turns -= 1;
            let Some(entry) = lists.pop_active() else { break };
            let Some(folio) = entry.folio.upgrade() else { continue };
            if folio.take_uses() > 0 { lists.push_active(entry) } else { lists.inactive.push_back(entry) }
        }
        // All folios are in use all the time: the oldest go.
        while lists.active_bytes > self.most_active {
            let Some(entry) = lists.pop_active() else { break };
            lists.inactive.push_back(entry);
        }
    }

    /// Drops clean folios, those first that were not used lately, until `want` bytes are free; returns how
    /// many bytes were freed. With `fresh`, also folios that were made a moment ago, if there is nothing
    /// else.
    pub fn reclaim(&self, counters: &LiveCounters, want: usize, fresh: bool) -> usize {
        let mut freed = 0;
        for phase in [Phase::Inactive, Phase::Active, Phase::Any] {
            if freed < want && (fresh || phase != Phase::Any) {
                self.reclaim_from(counters, phase, want, &mut freed);
            }
        }
        LiveCounters::add(&counters.reclaimed_bytes, freed as u64);
        freed
    }

    fn reclaim_from(&self, counters: &LiveCounters, phase: Phase, want: usize, freed: &mut usize) {
        let lists = &self.lists;
        let (mut turns, young) = {
            let lists = lists.lock();
            let turns = match phase {
                Phase::Inactive => lists.inactive.len(),
                Phase::Active => lists.active.len(),
                Phase::Any => lists.inactive.len() + lists.active.len(),
            };
            (turns, lists.made.saturating_sub(self.fresh))
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
            match Self::judge(counters, &entry, phase, entry.born > young) {
                Verdict::GiveUp => *freed += entry.len,
                Verdict::Gone => {}
                Verdict::Keep if phase == Phase::Active => lists.lock().push_active(entry),
                Verdict::Keep => lists.lock().inactive.push_back(entry),
                Verdict::Activate => {
                    lists.lock().push_active(entry);
                    self.balance();
                }
            }
        }
    }

    fn judge(counters: &LiveCounters, entry: &Entry, phase: Phase, fresh: bool) -> Verdict {
        let (Some(space), Some(folio)) = (entry.space.upgrade(), entry.folio.upgrade()) else {
            return Verdict::Gone;
        };
        if folio.is_removed() {
            return Verdict::Gone;
        }
        match phase {
            Phase::Inactive if folio.uses() >= 2 => {
                folio.take_uses();
                LiveCounters::add(&counters.activated_folios, 1);
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
            LiveCounters::add(&counters.reclaimed_folios, 1);
            return Verdict::GiveUp;
        }
        Verdict::Keep
    }
}
