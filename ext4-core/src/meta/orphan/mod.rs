//! Orphans: inodes that were unlinked while open or are being truncated. A crash leaves them behind; the next
//! mount deletes those without links and cuts the others to their size.
//!
//! They are kept in one of two places: in the orphan file (feature `orphan_file`), or, if there is none or it
//! is full, on a list: the superblock names its head, each inode's `dtime` the next.
//!
//! ```text
//!   superblock.last_orphan ─► inode 30: dtime 12 ─► inode 12: dtime 25 ─► inode 25: dtime 0
//! ```
//!
//! An operation that takes inode 12 off has to change inode 30, of which another task may hold a copy in
//! memory and log it at any moment, with the `dtime` it had. So the copies do not decide: **as long as an
//! inode is on the list, its `dtime` on the device is what [`OrphanLinks`] says**;
//! [`super::inode_table::write_inode`] asks it under the lock of the buffer and overrides the copy's. Callers
//! need not know. [`Orphans::add`] and [`Orphans::remove`] set the `dtime` of the inode they are given as
//! well, so that the copy is right when it leaves the list.
//!
//! Invariant: a link changes in [`OrphanLinks`] before the slot on the device changes, so a writer that comes
//! between writes the new link, and one that came before is written over. Were it otherwise, a stale copy
//! could bring a removed inode back onto the list, and after a crash a file in use would be deleted.
//!
//! Invariant: `ORPHAN_PRESENT` is set in the superblock no later than in the transaction of the first entry
//! in the file; without it a kernel does not look into the file.
//!
//! Locks: the list's is taken inside a handle and the inode's own lock, and covers superblock and inode
//! table; the file's covers memory only.

mod file;

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use rustc_hash::{FxHashMap, FxHashSet};

use self::file::OrphanFile;
use super::{SuperblockInfo, Transaction, inode_table};
use crate::error::Result;
use crate::format::features::RoCompat;
use crate::format::inode::Inode;
use crate::types::InodeNumber;

/// The `dtime` of every inode on the list: the next orphan's number, 0 for the last.
#[derive(Debug, Default)]
pub struct OrphanLinks {
    next: RwLock<FxHashMap<InodeNumber, u32>>,
}

impl OrphanLinks {
    /// What the `dtime` of `inode` is on the device; `None` if it is not on the list, so that its copy
    /// decides.
    #[must_use]
    pub fn dtime(&self, inode: InodeNumber) -> Option<u32> {
        let next = self.next.read();
        // Nearly always there is no list at all.
        if next.is_empty() { None } else { next.get(&inode).copied() }
    }

    fn set(&self, inode: InodeNumber, next: u32) {
        self.next.write().insert(inode, next);
    }

    fn clear(&self, inode: InodeNumber) {
        self.next.write().remove(&inode);
    }
}

impl SuperblockInfo {
    /// What links the inodes on the list of orphans.
    #[must_use]
    pub fn orphan_links(&self) -> &OrphanLinks {
        &self.orphan_links
    }
}

/// The list, its links apart.
#[derive(Debug, Default)]
struct List {
    head: Option<InodeNumber>,
    /// For each inode the one that points to it; the head is not in it.
    previous: FxHashMap<InodeNumber, InodeNumber>,
}

/// The orphans of a mounted file system.
#[derive(Debug)]
pub struct Orphans {
    list: tokio::sync::Mutex<List>,
    file: Option<OrphanFile>,
    /// What was there when the file system was opened.
    pending: Vec<InodeNumber>,
    /// The list on the device goes on behind the last inode that can be an orphan.
    damaged: AtomicBool,
    /// ORPHAN_PRESENT is known to be set.
    present: AtomicBool,
}

impl Orphans {
    /// Reads the list and the orphan file. [`Orphans::pending`] says what a crash left behind. A list that
    /// leads to what can be no orphan ends there, as in the kernel; see [`Orphans::mend`].
    ///
    /// # Errors
    /// - Corrupt if a block of the orphan file is damaged.
    /// - Those of the device.
    pub async fn load(info: &SuperblockInfo) -> Result<Self> {
        let superblock = info.superblock();
        let (order, damaged) = walk(info, superblock.last_orphan).await?;
        let mut list = List { head: order.first().copied(), previous: FxHashMap::default() };
        for pair in order.windows(2) {
            list.previous.insert(pair[1], pair[0]);
            info.orphan_links.set(pair[0], pair[1].0);
        }
        if let Some(last) = order.last() {
            info.orphan_links.set(*last, 0);
        }
        let file = OrphanFile::load(info, &superblock).await?;
        let present = superblock.features.ro_compat.contains(RoCompat::ORPHAN_PRESENT);
        let mut pending = order;
        if let Some(file) = file.as_ref().filter(|_| present) {
            let listed: FxHashSet<InodeNumber> = pending.iter().copied().collect();
            pending.extend(file.inodes().into_iter().filter(|inode| !listed.contains(inode)));
        }
        Ok(Self {
            list: tokio::sync::Mutex::new(list),
            file,
            pending,
            damaged: AtomicBool::new(damaged),
            present: AtomicBool::new(present),
        })
    }

    /// The inodes a crash left behind: to be deleted if they have no links, truncated to their size
    /// otherwise.
    #[must_use]
    pub fn pending(&self) -> Vec<InodeNumber> {
        self.pending.clone()
    }

    /// Returns true if the list on the device leads to what can be no orphan, until [`Orphans::mend`].
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    /// Ends a damaged list on the device where it ends in memory. For a mount that may write; no-op
    /// otherwise.
    ///
    /// # Errors
    /// Those of the device and the transaction.
    pub async fn mend(&self, info: &SuperblockInfo, transaction: &dyn Transaction) -> Result<()> {
        let list = self.list.lock().await;
        if !self.damaged.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut last = list.head;
        while let Some(next) = last.and_then(|inode| info.orphan_links.dtime(inode)).filter(|next| *next != 0)
        {
            last = Some(InodeNumber(next));
        }
        match last {
            Some(last) => inode_table::write_dtime(info, transaction, last, 0).await?,
            None => set_head(info, transaction, 0).await?,
        }
        self.damaged.store(false, Ordering::Release);
        Ok(())
    }

    /// Returns true if no inode is in the orphan file, so that `ORPHAN_PRESENT` may be cleared at a clean
    /// unmount.
    #[must_use]
    pub fn file_is_empty(&self) -> bool {
        self.file.as_ref().is_none_or(OrphanFile::is_empty)
    }

    /// Adds `inode` (no-op if it is on already). May change `inode.dtime`; the caller logs the inode.
    ///
    /// # Errors
    /// Those of the transaction.
    pub async fn add(
        &self,
        info: &SuperblockInfo,
        transaction: &dyn Transaction,
        inode: &mut Inode,
    ) -> Result<()> {
        let number = inode.number;
        if info.orphan_links.dtime(number).is_some() {
            return Ok(());
        }
        if let Some(file) = &self.file {
            if file.contains(number) {
                return Ok(());
            }
            self.announce(info, transaction).await?;
            if file.add(transaction, number)? {
                return Ok(());
            }
        }
        let mut list = self.list.lock().await;
        let next = list.head.map_or(0, |head| head.0);
        set_head(info, transaction, number.0).await?;
        info.orphan_links.set(number, next);
        if let Some(head) = list.head.replace(number) {
            list.previous.insert(head, number);
        }
        inode.dtime = next;
        Ok(())
    }

    /// Takes `inode` off (no-op if it is not on). May change `inode.dtime`; the caller logs the inode.
    ///
    /// # Errors
    /// Those of the device and the transaction.
    pub async fn remove(
        &self,
        info: &SuperblockInfo,
        transaction: &dyn Transaction,
        inode: &mut Inode,
    ) -> Result<()> {
        let number = inode.number;
        if let Some(file) = &self.file {
            file.remove(transaction, number)?;
        }
        if info.orphan_links.dtime(number).is_none() {
            return Ok(());
        }
        let mut list = self.list.lock().await;
        let Some(next) = info.orphan_links.dtime(number) else { return Ok(()) };
        let before = list.previous.get(&number).copied();
        match before {
            None => set_head(info, transaction, next).await?,
            Some(before) => {
                info.orphan_links.set(before, next);
                let written = inode_table::write_dtime(info, transaction, before, next).await;
                if written.is_err() {
                    info.orphan_links.set(before, number.0);
                    written?;
                }
            }
        }
        list.previous.remove(&number);
        let next = (next != 0).then_some(InodeNumber(next));
        match (before, next) {
            (None, _) => {
                list.head = next;
                if let Some(next) = next {
                    list.previous.remove(&next);
                }
            }
            (Some(before), Some(next)) => drop(list.previous.insert(next, before)),
            (Some(_), None) => {}
        }
        info.orphan_links.clear(number);
        inode.dtime = 0;
        Ok(())
    }

    /// Sets `ORPHAN_PRESENT` if the mount has not.
    async fn announce(&self, info: &SuperblockInfo, transaction: &dyn Transaction) -> Result<()> {
        if self.present.load(Ordering::Acquire) {
            return Ok(());
        }
        if !info.superblock().features.ro_compat.contains(RoCompat::ORPHAN_PRESENT) {
            info.modify_superblock(transaction, &mut |superblock| {
                superblock.features.ro_compat.insert(RoCompat::ORPHAN_PRESENT);
            })
            .await?;
        }
        self.present.store(true, Ordering::Release);
        Ok(())
    }
}

async fn set_head(info: &SuperblockInfo, transaction: &dyn Transaction, head: u32) -> Result<()> {
    info.modify_superblock(transaction, &mut |superblock| superblock.last_orphan = head).await
}

/// Returns true for the number of an inode that can be an orphan.
fn can_be_orphan(info: &SuperblockInfo, number: u32) -> bool {
    number >= info.fixed.first_ino && number <= info.inodes_count()
}

/// The list from `head` on, as far as it leads to what can be orphans, and whether it went on behind that.
async fn walk(info: &SuperblockInfo, head: u32) -> Result<(Vec<InodeNumber>, bool)> {
    let (mut order, mut seen) = (Vec::new(), FxHashSet::default());
    let mut next = head;
    while next != 0 {
        let number = InodeNumber(next);
        if !can_be_orphan(info, next) || !seen.insert(number) {
            tracing::warn!(inode = next, "the list of orphans leads to what can be none");
            return Ok((order, true));
        }
        let inode = match inode_table::read_inode(info, number).await {
            Ok(inode) => inode,
            Err(error) if error.is_corrupt() => {
                tracing::warn!(inode = next, %error, "an orphan cannot be read");
                return Ok((order, true));
            }
            Err(error) => return Err(error),
        };
        // A number past the last inode is the time of a deletion: this one is gone.
        if inode.mode == 0 || inode.dtime > info.inodes_count() {
            tracing::warn!(inode = next, "the list of orphans leads to a free inode");
            return Ok((order, true));
        }
        order.push(number);
        next = inode.dtime;
    }
    Ok((order, false))
}
