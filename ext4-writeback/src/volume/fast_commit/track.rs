//! The tracker of fast commits (ext4_fc_track_*): the changes of the running transaction since the last fast
//! commit.
//!
//! Operations report their changes under their handle. The record of a transaction begins with the first
//! handle that reports something, and is dropped when a handle of a later transaction does: a full commit has
//! made it void.
//!
//! Invariants:
//! - Names are kept in the order in which they came and went, as the kernel keeps them. In another order a
//!   directory might have no room for a name, or a file lose its last name before it gets the next one, and
//!   be deleted by the replay.
//! - An inode without links is not in a fast commit: its replay would bring it back, or fail. Either nothing
//!   of it is durable (it was made in this transaction and is in no fast commit), and all its changes are
//!   forgotten; or the transaction that took its last link is committed in full, and recovery finds it among
//!   the orphans.
//! - Memory is bounded by [`MOST_RECORDS`].
//!
//! Locks: one mutex, a leaf, never held across an await.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ext4_core::format::extent::Node;
use ext4_core::format::inode::{FileType, Inode, InodeFlags};
use ext4_core::meta::inode_table::Slot;
use ext4_core::{InodeNumber, TransactionId};
use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::volume::fast_commit::mapped::{Mapped, Ranges};
use crate::volume::fast_commit::reason::{FastCommitReasons, Reason};

/// How many names, inodes and ranges are kept at most: several times what the largest area (256 blocks of 4
/// KiB by default) holds.
const MOST_RECORDS: usize = 16_384;

/// A change of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    /// CREAT: the name was added with a new inode.
    Create,
    /// LINK: the name was added.
    Link,
    /// UNLINK: the name was removed.
    Unlink,
}

/// A name that was added or removed.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub operation: Operation,
    pub parent: InodeNumber,
    pub inode: InodeNumber,
    pub name: Arc<[u8]>,
}

/// An inode that changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changed {
    /// The slot that it was logged into; `None` only until the handle that changed a range logs the inode.
    pub slot: Option<Slot>,
    pub ranges: Ranges,
}

/// The record of one transaction.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub ineligible: Option<Reason>,
    pub entries: Vec<Entry>,
    pub inodes: BTreeMap<InodeNumber, Changed>,
    /// Inodes made in the transaction; true if a fast commit has them.
    pub born: FxHashMap<InodeNumber, bool>,
    /// Inodes made in the transaction whose last name was removed before any fast commit.
    dead: FxHashSet<InodeNumber>,
    /// Inodes freed in the transaction that the last full commit had.
    freed: FxHashSet<InodeNumber>,
    /// Ranges of all `inodes`.
    ranges: usize,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub transaction: Option<TransactionId>,
    pub record: Record,
    /// Directories in the inode table block of the journal's inode that have grown since the mount.
    grown: FxHashSet<InodeNumber>,
    /// Inodes that are on the list of orphans while they are truncated, with the transaction that put them
    /// there.
    pub truncated: FxHashMap<InodeNumber, TransactionId>,
}

impl State {
    /// The record of `transaction`, which is the running one; `None` if it is ineligible already.
    fn record(&mut self, transaction: TransactionId) -> Option<&mut Record> {
        if self.transaction != Some(transaction) {
            self.transaction = Some(transaction);
            self.record = Record::default();
        }
        self.record.ineligible.is_none().then_some(&mut self.record)
    }
}

impl Record {
    fn is_full(&self) -> bool {
        self.entries.len() + self.inodes.len() + self.ranges > MOST_RECORDS
    }

    /// Drops all changes: they will not be needed.
    fn refuse(&mut self, reason: Reason) {
        *self = Self { ineligible: Some(reason), ..Self::default() };
    }

    /// All changes are in a fast commit now.
    pub fn written(&mut self) {
        self.entries.clear();
        self.inodes.clear();
        self.ranges = 0;
        for durable in self.born.values_mut() {
            *durable = true;
        }
    }
}

/// Which inodes share a block of the inode table, and how blocks are allocated.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Table {
    /// The inode of the journal; 0 if the log is on another device.
    pub journal: u32,
    pub inodes_per_group: u32,
    pub inodes_per_block: u32,
    /// True if blocks are allocated in clusters (bigalloc).
    pub has_clusters: bool,
}

impl Table {
    fn is_beside_journal(self, inode: InodeNumber) -> bool {
        let place = |number: u32| {
            let index = number.checked_sub(1)?;
            let group = index.checked_div(self.inodes_per_group)?;
            Some((group, (index % self.inodes_per_group).checked_div(self.inodes_per_block)?))
        };
        self.journal != 0 && place(inode.0) == place(self.journal)
    }
}

/// The tracker. See the module. Does nothing if the journal has no fast commits.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    enabled: bool,
    table: Table,
    pub(crate) state: Mutex<State>,
    counts: [AtomicU64; Reason::COUNT],
}

impl Tracker {
    /// An empty tracker; `enabled` says if the journal has an area for fast commits.
    pub fn new(enabled: bool, table: Table) -> Self {
        Self { enabled, table, ..Self::default() }
    }

    /// Returns true if fast commits can be written at all.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// How often each reason came up.
    pub fn reasons(&self) -> FastCommitReasons {
        FastCommitReasons::new(std::array::from_fn(|at| {
            self.counts.get(at).map_or(0, |count| count.load(Ordering::Relaxed))
        }))
    }

    pub(crate) fn count(&self, reason: Reason) {
        if let Some(count) = self.counts.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// `transaction` has to be committed in full (the kernel's `ext4_fc_mark_ineligible`).
    pub fn mark_ineligible(&self, transaction: TransactionId, reason: Reason) {
        if !self.enabled {
            return;
        }
        self.count(reason);
        if let Some(record) = self.state.lock().record(transaction) {
            record.refuse(reason);
        }
    }

    /// Returns true if [`Tracker::inode_logged`] needs the slot of `inode`, which is being logged in
    /// `transaction`. A change that has no tag makes the transaction ineligible.
    pub fn wants(&self, transaction: TransactionId, inode: &Inode) -> bool {
        if !self.enabled || inode.is_dir() || inode.links_count == 0 {
            // The fields of a directory have no tag, and fsync of a directory is a full commit.
            return false;
        }
        let reason = if inode.file_type() != Some(FileType::Regular) {
            Reason::SpecialFile
        } else if inode.flags.contains(InodeFlags::JOURNAL_DATA) {
            Reason::JournalData
        } else if self.table.is_beside_journal(inode.number) {
            Reason::BesideJournal
        } else if inode.flags.contains(InodeFlags::INLINE_DATA) || !inode.uses_extents() {
            Reason::Mapping
        } else {
            let mut state = self.state.lock();
            let Some(record) = state.record(transaction) else { return false };
            let changed = record.inodes.get(&inode.number);
            let has_nodes = Node::new(&inode.i_block).is_some_and(|root| root.depth() > 0);
            if !has_nodes || changed.is_none_or(|changed| changed.ranges.len() == 0) {
                return changed.is_none_or(|changed| changed.slot.is_none());
            }
            Reason::ExtentNodes
        };
        self.mark_ineligible(transaction, reason);
        false
    }

    /// `inode` was logged in `transaction`, into `slot`.
    pub fn inode_logged(&self, transaction: TransactionId, inode: InodeNumber, slot: Slot) {
        let mut state = self.state.lock();
        let Some(record) = state.record(transaction) else { return };
        if record.dead.contains(&inode) {
            return;
        }
        record.inodes.entry(inode).or_default().slot = Some(slot);
        self.check_room(record);
    }

    fn check_room(&self, record: &mut Record) {
        if record.is_full() {
            self.count(Reason::NoMemory);
            record.refuse(Reason::NoMemory);
        }
    }

    /// Blocks `start..end` of `inode` were mapped as `mapped` under a handle of `transaction`, which logs the
    /// inode afterwards.
    pub fn range_changed(
        &self,
        transaction: TransactionId,
        inode: InodeNumber,
        (start, end): (u32, u32),
        mapped: Mapped,
    ) {
        if !self.enabled {
            return;
        }
        if self.table.has_clusters {
            self.mark_ineligible(transaction, Reason::Clusters);
            return;
        }
        let mut state = self.state.lock();
        let Some(record) = state.record(transaction) else { return };
        if record.dead.contains(&inode) {
            return;
        }
        let changed = record.inodes.entry(inode).or_default();
        let before = changed.ranges.len();
        changed.ranges.set(start, end, mapped);
        record.ranges = record.ranges + changed.ranges.len() - before;
        self.check_room(record);
    }

    /// The inode `number` was made in `transaction`; `blank` says if nothing is left of an earlier
    /// inode in its slot.
    pub fn inode_made(&self, transaction: TransactionId, number: InodeNumber, blank: bool) {
        if !self.enabled {
            return;
        }
        let mut state = self.state.lock();
        let Some(record) = state.record(transaction) else { return };
        record.dead.remove(&number);
        if record.freed.contains(&number) || (!blank && !record.born.contains_key(&number)) {
            self.count(Reason::InodeReuse);
            record.refuse(Reason::InodeReuse);
            return;
        }
        record.born.insert(number, false);
    }

    /// Names in `directory` were changed in `transaction`; it had `size` bytes before.
    pub fn directory_changed(&self, transaction: TransactionId, directory: &Inode, size: u64) {
        if !self.enabled {
            return;
        }
        if directory.flags.contains(InodeFlags::INLINE_DATA) {
            // Its names lie in its inode, which has no tag; e2fsck's replay looks for a block of the
            // directory.
            self.mark_ineligible(transaction, Reason::Mapping);
        }
        let grew = directory.size != size;
        if grew {
            self.mark_ineligible(transaction, Reason::DirectoryGrowth);
        }
        if self.table.is_beside_journal(directory.number) {
            // e2fsck adds a name to the inode that it takes for the directory, and writes that inode if it
            // has an index.
            let mut state = self.state.lock();
            if grew {
                state.grown.insert(directory.number);
            }
            let misread = state.grown.contains(&directory.number);
            drop(state);
            if misread || directory.flags.contains(InodeFlags::INDEX) {
                self.mark_ineligible(transaction, Reason::BesideJournal);
            }
        }
    }

    /// A name of a regular file was added or removed in `transaction`.
    pub fn name_changed(
        &self,
        transaction: TransactionId,
        operation: Operation,
        parent: InodeNumber,
        inode: InodeNumber,
        name: &[u8],
    ) {
        if !self.enabled {
            return;
        }
        let mut state = self.state.lock();
        let Some(record) = state.record(transaction) else { return };
        record.entries.push(Entry { operation, parent, inode, name: name.into() });
        self.check_room(record);
    }

    /// The last name of `inode` was removed in `transaction`.
    pub fn last_name_went(&self, transaction: TransactionId, inode: InodeNumber) {
        if !self.enabled {
            return;
        }
        let mut state = self.state.lock();
        let Some(record) = state.record(transaction) else { return };
        if record.born.get(&inode) != Some(&false) {
            self.count(Reason::LastLink);
            record.refuse(Reason::LastLink);
            return;
        }
        record.entries.retain(|entry| entry.inode != inode);
        if let Some(changed) = record.inodes.remove(&inode) {
            record.ranges -= changed.ranges.len();
        }
        record.dead.insert(inode);
    }

    /// The inode `number` was freed in `transaction`.
    pub fn inode_freed(&self, transaction: TransactionId, number: InodeNumber) {
        if !self.enabled {
            return;
        }
        let mut state = self.state.lock();
        state.truncated.remove(&number);
        if let Some(record) = state.record(transaction)
            && !record.born.contains_key(&number)
        {
            record.freed.insert(number);
            if record.freed.len() > MOST_RECORDS {
                self.count(Reason::NoMemory);
                record.refuse(Reason::NoMemory);
            }
        }
    }

    /// `inode` was put on the list of orphans by `transaction`, to be truncated.
    pub fn truncation_begins(&self, transaction: TransactionId, inode: InodeNumber) {
        if self.enabled {
            self.state.lock().truncated.entry(inode).or_insert(transaction);
        }
    }

    /// `inode` was taken off the list of orphans by `transaction`. If another transaction put it there, the
    /// state that a replay starts from has it on the list, and its image would break the chain.
    pub fn truncation_ends(&self, transaction: TransactionId, inode: InodeNumber) {
        if !self.enabled {
            return;
        }
        let began = self.state.lock().truncated.remove(&inode);
        if began != Some(transaction) {
            self.mark_ineligible(transaction, Reason::Orphan);
        }
    }
}
