//! All folios of a file system in the order of their age, and which of them are given up when memory is short.
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
//! Invariant: a folio that is dirty or under writeback is not given up.
//!
//! Locks: the lists' mutex is a leaf.

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
    /// [`Lists::made`] when it was made.
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

/// All folios of a file system, in the order of their age.
#[derive(Debug)]
pub(crate) struct FolioLists {
    lists: Mutex<Lists>,
    /// The most bytes the active list keeps.
    most_active: usize,
    /// A folio is fresh until so many bytes of others have been made.
    fresh: u64,
}

/// Which folios are given up: each time one look at all that the list has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Of the inactive list, but for fresh ones: those used again become active.
    Inactive,
    /// Of the active list, those not used lately.
    Active,
    /// Whatever is clean.
    Any,
}

/// What to do with a folio.
enum Verdict {
    GiveUp,
    Keep,
    Activate,
    Gone,
}

impl FolioLists {
    /// For a pool of `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self { lists: Mutex::default(), most_active: capacity / 2, fresh: capacity as u64 / 4 }
    }

    /// A folio was made.
    pub fn add(&self, space: Weak<AddressSpace>, folio: &Arc<Folio>) {
        let mut lists = self.lists.lock();
        lists.made += folio.len() as u64;
        let born = lists.made;
        lists.inactive.push_back(Entry { space, folio: Arc::downgrade(folio), len: folio.len(), born });
        // Folios of deleted files leave dead entries behind; two looks at the front per addition outpace them.
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

    /// Makes the active list as short as it is to be: the oldest get a second chance on either list.
    pub(crate) fn balance(&self) {
        let mut lists = self.lists.lock();
        let mut turns = lists.active.len();
        while lists.active_bytes > self.most_active && turns > 0 {
            turns -= 1;
            let Some(entry) = lists.pop_active() else { break };
            let Some(folio) = entry.folio.upgrade() else { continue };
            if folio.take_uses() > 0 { lists.push_active(entry) } else { lists.inactive.push_back(entry) }
        }
        // All of them are in use all the time: the oldest go.
        while lists.active_bytes > self.most_active {
            let Some(entry) = lists.pop_active() else { break };
            lists.inactive.push_back(entry);
        }
    }

    /// Gives up clean folios, those first that were not used lately, until `want` bytes are free; returns how many
    /// were. `fresh`: also what was made a moment ago, where there is nothing else.
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
