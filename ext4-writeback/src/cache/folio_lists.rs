//! TODO header.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::cache::folio::Folio;
use crate::cache::page_cache::AddressSpace;

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) space: Weak<AddressSpace>,
    pub(crate) folio: Weak<Folio>,
    pub(crate) len: usize,
    /// [`Lists::made`] when it was made.
    pub(crate) born: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Lists {
    pub(crate) inactive: VecDeque<Entry>,
    pub(crate) active: VecDeque<Entry>,
    active_bytes: usize,
    /// Bytes of folios that were made since the mount.
    pub(crate) made: u64,
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
    pub(crate) lists: Mutex<Lists>,
    /// The most bytes the active list keeps.
    most_active: usize,
    /// A folio is fresh until so many bytes of others have been made.
    pub(crate) fresh: u64,
}

/// Which folios are given up: each time one look at all that the list has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// Of the inactive list, but for fresh ones: those used again become active.
    Inactive,
    /// Of the active list, those not used lately.
    Active,
    /// Whatever is clean.
    Any,
}

/// What to do with a folio.
pub(crate) enum Verdict {
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

    pub(crate) fn add(&self, space: Weak<AddressSpace>, folio: &Arc<Folio>) {
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
}
