//! One block group in memory: its descriptor, its bitmaps once somebody needed them, and hints that let a search pass
//! it by without a lock.
//!
//! ```text
//!   Group ── places (fixed) ── hints (atomics) ── returned (freed blocks whose transaction committed)
//!     └─ state [lock] ── descriptor ── blocks: buffer, allocatable ── inodes: buffer
//! ```
//!
//! Invariants:
//! - The descriptor in memory, the one in its buffer and the bitmap in its buffer agree whenever the state's lock is
//!   free: they change together, in one transaction, under the lock.
//! - `allocatable` (the bitmap plus what was freed in transactions that have not committed, and what was picked for data
//!   on its way) has every bit that the bitmap has. An allocation looks at it, never at the bitmap alone. Were a block handed out again before the
//!   transaction that freed it committed, a crash would leave the old file with the new file's data.
//! - A bitmap that contradicts its checksum, its free count or the system zones is never allocated from.
//!
//! Locks: a group's state is the "group lock" of the lock order. It is synchronous and never held across an await:
//! buffers are fetched first. Under it only buffers are modified; `returned` is innermost, taken by commit callbacks.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::SuperblockInfo;
use crate::error::{Error, Result};
use crate::format::bitmap;
use crate::format::group_descriptor::{GroupDescriptor, GroupFlags};
use crate::meta::{BlockKind, Buffer, Transaction};
use crate::types::{BlockNumber, GroupNumber};

/// See the module.
#[derive(Debug)]
pub(crate) struct Group {
    pub block_bitmap: BlockNumber,
    pub inode_bitmap: BlockNumber,
    pub inode_table: BlockNumber,
    /// The descriptor was not to be believed: nothing of the group may be used.
    pub bad_descriptor: bool,
    /// The block bitmap was not to be believed.
    pub bad_blocks: AtomicBool,
    /// The inode bitmap was not to be believed.
    pub bad_inodes: AtomicBool,
    /// Blocks that can be allocated.
    pub free_blocks: AtomicU32,
    /// No run of allocatable blocks is longer.
    pub longest_run: AtomicU32,
    /// Free inodes.
    pub free_inodes: AtomicU32,
    /// Directories.
    pub used_dirs: AtomicU32,
    /// Freed blocks (numbers within the group) whose transaction has committed.
    pub returned: Mutex<Vec<Range<u32>>>,
    state: Mutex<GroupState>,
}

/// What the group lock protects.
#[derive(Debug)]
pub(crate) struct GroupState {
    pub descriptor: GroupDescriptor,
    pub blocks: Option<BlockMap>,
    pub inodes: Option<InodeMap>,
}

/// A bitmap: in its block, or made up because the block was never written.
#[derive(Debug)]
pub(crate) enum Bitmap {
    Buffer(Buffer),
    Uninitialised(Box<[u8]>),
}

impl Bitmap {
    pub fn read<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Self::Buffer(buffer) => buffer.read(f),
            Self::Uninitialised(bytes) => f(bytes),
        }
    }

    /// Changes the bitmap; one that was never written becomes a block of the transaction.
    pub fn modify<R>(
        &mut self,
        info: &SuperblockInfo,
        transaction: &dyn Transaction,
        block: BlockNumber,
        f: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R> {
        match self {
            Self::Buffer(buffer) => buffer.modify(transaction, f),
            Self::Uninitialised(bytes) => {
                let buffer = info.cache.create(transaction, block)?;
                let result = buffer.modify(transaction, |to| {
                    to.copy_from_slice(bytes);
                    f(to)
                })?;
                *self = Self::Buffer(buffer);
                Ok(result)
            }
        }
    }
}

/// The block bitmap of a group.
#[derive(Debug)]
pub(crate) struct BlockMap {
    pub bitmap: Bitmap,
    /// The bitmap plus freed blocks that wait for their commit, and picked ones; `None` where there are none.
    pub allocatable: Option<Box<[u8]>>,
    /// How many blocks wait.
    pub pending: u32,
    /// How many are picked: kept in memory for data that is on its way to them.
    pub picked: u32,
}

impl BlockMap {
    /// Calls `f` with what an allocation must look at.
    pub fn search<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        match &self.allocatable {
            Some(bytes) => f(bytes),
            None => self.bitmap.read(f),
        }
    }

    /// Lets go of `allocatable` where it says what the bitmap says.
    pub fn forget_allocatable(&mut self) {
        if self.pending == 0 && self.picked == 0 {
            self.allocatable = None;
        }
    }
}

/// The inode bitmap of a group.
#[derive(Debug)]
pub(crate) struct InodeMap {
    pub bitmap: Bitmap,
    /// No inode below this index is free.
    pub first_free: u32,
}

impl Group {
    pub fn new(descriptor: GroupDescriptor, bad_descriptor: bool) -> Self {
        let usable = |count: u32| AtomicU32::new(if bad_descriptor { 0 } else { count });
        Self {
            block_bitmap: descriptor.block_bitmap,
            inode_bitmap: descriptor.inode_bitmap,
            inode_table: descriptor.inode_table,
            bad_descriptor,
            bad_blocks: AtomicBool::new(bad_descriptor),
            bad_inodes: AtomicBool::new(bad_descriptor),
            free_blocks: usable(descriptor.free_blocks_count),
            longest_run: usable(u32::MAX),
            free_inodes: usable(descriptor.free_inodes_count),
            used_dirs: usable(descriptor.used_dirs_count),
            returned: Mutex::default(),
            state: Mutex::new(GroupState { descriptor, blocks: None, inodes: None }),
        }
    }

    /// True where a run of `len` blocks may be there.
    pub fn may_have_run(&self, len: u32) -> bool {
        self.free_blocks.load(Ordering::Relaxed) >= len
            && self.longest_run.load(Ordering::Relaxed) >= len
            && !self.bad_blocks.load(Ordering::Relaxed)
    }

    /// A copy of the descriptor.
    pub fn descriptor(&self) -> GroupDescriptor {
        self.state.lock().descriptor
    }

    /// The group lock, nothing loaded for sure.
    pub fn lock(&self) -> MutexGuard<'_, GroupState> {
        let mut state = self.state.lock();
        self.take_returned(&mut state);
        state
    }

    /// Makes what was freed in committed transactions allocatable.
    fn take_returned(&self, state: &mut GroupState) {
        let mut returned = self.returned.lock();
        if returned.is_empty() {
            return;
        }
        let Some(map) = &mut state.blocks else { return };
        for range in returned.drain(..) {
            map.pending = map.pending.saturating_sub(range.end - range.start);
            if let Some(allocatable) = &mut map.allocatable {
                bitmap::clear_range(allocatable, range);
            }
        }
        map.forget_allocatable();
    }
}

impl SuperblockInfo {
    pub(crate) fn group(&self, group: GroupNumber) -> Result<&Group> {
        self.groups
            .get(group.0 as usize)
            .ok_or_else(|| Error::corrupt(format!("group {group}"), "is past the last group"))
    }

    /// How many bits of a group's block bitmap stand for blocks (clusters).
    pub(crate) fn block_bits(&self, group: GroupNumber) -> u32 {
        let bits = self.fixed.cluster_bits();
        self.fixed.group_blocks(group).div_ceil(1 << bits)
    }

    /// The bytes of a block bitmap that its checksum covers.
    pub(crate) fn block_bitmap_bytes(&self) -> usize {
        (self.fixed.block_bitmap_bits() / 8) as usize
    }

    /// The bytes of an inode bitmap that its checksum covers.
    pub(crate) fn inode_bitmap_bytes(&self) -> usize {
        (self.fixed.inodes_per_group / 8) as usize
    }

    /// The block bitmap of a group in which only fixed metadata is in use; what is past the group's blocks is set.
    pub(crate) fn fresh_block_bitmap(&self, group: GroupNumber) -> Box<[u8]> {
        let mut bytes = vec![0; self.block_size().len()].into_boxed_slice();
        let first = self.fixed.group_first_block(group).0;
        let blocks = u64::from(self.fixed.group_blocks(group));
        let cluster_bits = self.fixed.cluster_bits();
        // The numbers fit: they are within a group, which has less than 2^32 blocks.
        let within = |block: u64| (block.saturating_sub(first).min(blocks) >> cluster_bits) as u32;
        for zone in self.zones.overlapping(first..first + blocks) {
            let end = within((zone.end.saturating_sub(1)).min(first + blocks - 1)) + 1;
            bitmap::set_range(&mut bytes, within(zone.start)..end);
        }
        bitmap::set_range(&mut bytes, self.block_bits(group)..u32::MAX);
        bytes
    }

    /// The inode bitmap of a group without inodes; what is past the group's inodes is set.
    pub(crate) fn fresh_inode_bitmap(&self) -> Box<[u8]> {
        let mut bytes = vec![0; self.block_size().len()].into_boxed_slice();
        bitmap::set_range(&mut bytes, self.fixed.inodes_per_group..u32::MAX);
        bytes
    }

    /// The group lock with the block bitmap there; `None` where the bitmap is bad.
    pub(crate) async fn lock_blocks(
        &self,
        number: GroupNumber,
    ) -> Result<Option<MutexGuard<'_, GroupState>>> {
        let group = self.group(number)?;
        loop {
            {
                let state = group.lock();
                if group.bad_blocks.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                if state.blocks.is_some() {
                    return Ok(Some(state));
                }
            }
            let uninitialised = group.descriptor().flags.contains(GroupFlags::BLOCK_UNINIT);
            let found = if uninitialised {
                Bitmap::Uninitialised(self.fresh_block_bitmap(number))
            } else {
                // The checksum is in the descriptor, which changes with the bitmap: it is compared under the lock.
                match self.cache.read(group.block_bitmap, BlockKind::BlockBitmap, |_| Ok(())).await {
                    Ok(buffer) => Bitmap::Buffer(buffer),
                    Err(error) => {
                        self.give_up_blocks(number, &error);
                        return Ok(None);
                    }
                }
            };
            let mut state = group.lock();
            if state.blocks.is_some()
                || state.descriptor.flags.contains(GroupFlags::BLOCK_UNINIT) != uninitialised
            {
                continue;
            }
            if let Err(error) = self.check_block_bitmap(number, &state.descriptor, &found) {
                drop(state);
                self.give_up_blocks(number, &error);
                return Ok(None);
            }
            state.blocks = Some(BlockMap { bitmap: found, allocatable: None, pending: 0, picked: 0 });
            drop(state);
            self.loaded(number);
        }
    }

    fn check_block_bitmap(
        &self,
        number: GroupNumber,
        descriptor: &GroupDescriptor,
        found: &Bitmap,
    ) -> Result<()> {
        let what = || format!("block {}: block bitmap of group {number}", descriptor.block_bitmap);
        let bits = self.block_bits(number);
        let covered = self.block_bitmap_bytes();
        found.read(|bytes| {
            if matches!(found, Bitmap::Buffer(_)) && self.features().metadata_csum() {
                let computed = self.context.bitmap(&bytes[..covered]);
                if computed != descriptor.block_bitmap_csum {
                    return Err(Error::corrupt(
                        what(),
                        format!("checksum {:#010x} is not {computed:#010x}", descriptor.block_bitmap_csum),
                    ));
                }
            }
            let free = bitmap::count_clear(bytes, bits);
            if free != descriptor.free_blocks_count {
                return Err(Error::corrupt(
                    what(),
                    format!("{free} bits are clear, the descriptor says {}", descriptor.free_blocks_count),
                ));
            }
            let first = self.fixed.group_first_block(number).0;
            let end = first + u64::from(self.fixed.group_blocks(number));
            let cluster_bits = self.fixed.cluster_bits();
            for zone in self.zones.overlapping(first..end) {
                let from = (zone.start.max(first) - first) >> cluster_bits;
                let to = ((zone.end.min(end) - 1 - first) >> cluster_bits) + 1;
                // The numbers fit: they are within the group.
                if !bitmap::is_set_range(bytes, from as u32..to as u32) {
                    return Err(Error::corrupt(
                        what(),
                        format!("fixed metadata at block {} is free", zone.start),
                    ));
                }
            }
            Ok(())
        })
    }

    fn give_up_blocks(&self, number: GroupNumber, error: &Error) {
        let Ok(group) = self.group(number) else { return };
        if !group.bad_blocks.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, group = number.0, "no blocks are allocated from this group");
            self.space.lost(u64::from(group.free_blocks.swap(0, Ordering::Relaxed)));
            self.bad_groups.lock().push((number, error.clone()));
        }
    }

    /// The group lock with the inode bitmap there; `None` where the bitmap is bad.
    pub(crate) async fn lock_inodes(
        &self,
        number: GroupNumber,
    ) -> Result<Option<MutexGuard<'_, GroupState>>> {
        let group = self.group(number)?;
        loop {
            {
                let state = group.lock();
                if group.bad_inodes.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                if state.inodes.is_some() {
                    return Ok(Some(state));
                }
            }
            let uninitialised = group.descriptor().flags.contains(GroupFlags::INODE_UNINIT);
            let found = if uninitialised {
                Bitmap::Uninitialised(self.fresh_inode_bitmap())
            } else {
                match self.cache.read(group.inode_bitmap, BlockKind::InodeBitmap, |_| Ok(())).await {
                    Ok(buffer) => Bitmap::Buffer(buffer),
                    Err(error) => {
                        self.give_up_inodes(number, &error);
                        return Ok(None);
                    }
                }
            };
            let mut state = group.lock();
            if state.inodes.is_some()
                || state.descriptor.flags.contains(GroupFlags::INODE_UNINIT) != uninitialised
            {
                continue;
            }
            if let Err(error) = self.check_inode_bitmap(number, &state.descriptor, &found) {
                drop(state);
                self.give_up_inodes(number, &error);
                return Ok(None);
            }
            state.inodes = Some(InodeMap { bitmap: found, first_free: 0 });
            drop(state);
            self.loaded(number);
        }
    }

    fn check_inode_bitmap(
        &self,
        number: GroupNumber,
        descriptor: &GroupDescriptor,
        found: &Bitmap,
    ) -> Result<()> {
        let what = || format!("block {}: inode bitmap of group {number}", descriptor.inode_bitmap);
        let covered = self.inode_bitmap_bytes();
        found.read(|bytes| {
            if matches!(found, Bitmap::Buffer(_)) && self.features().metadata_csum() {
                let computed = self.context.bitmap(&bytes[..covered]);
                if computed != descriptor.inode_bitmap_csum {
                    return Err(Error::corrupt(
                        what(),
                        format!("checksum {:#010x} is not {computed:#010x}", descriptor.inode_bitmap_csum),
                    ));
                }
            }
            let free = bitmap::count_clear(bytes, self.fixed.inodes_per_group);
            if free != descriptor.free_inodes_count {
                return Err(Error::corrupt(
                    what(),
                    format!("{free} bits are clear, the descriptor says {}", descriptor.free_inodes_count),
                ));
            }
            Ok(())
        })
    }

    fn give_up_inodes(&self, number: GroupNumber, error: &Error) {
        let Ok(group) = self.group(number) else { return };
        if !group.bad_inodes.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, group = number.0, "no inodes are allocated from this group");
            let lost = group.free_inodes.swap(0, Ordering::Relaxed);
            self.count_inodes(number, |flex| {
                flex.free_inodes.fetch_sub(lost, Ordering::Relaxed);
            });
            self.free_inodes.fetch_sub(lost, Ordering::Relaxed);
            self.bad_groups.lock().push((number, error.clone()));
        }
    }

    /// Remembers that a group's bitmaps are in memory; lets go of those of the group that came first where there are
    /// too many.
    fn loaded(&self, number: GroupNumber) {
        let mut loaded = self.loaded.lock();
        loaded.push_back(number);
        if loaded.len() <= self.most_loaded {
            return;
        }
        let Some(oldest) = loaded.pop_front() else { return };
        let Ok(group) = self.group(oldest) else { return };
        let Some(mut state) = group.state.try_lock() else {
            loaded.push_back(oldest);
            return;
        };
        group.take_returned(&mut state);
        if state.blocks.as_ref().is_some_and(|map| map.pending > 0 || map.picked > 0) {
            loaded.push_back(oldest);
            return;
        }
        state.blocks = None;
        state.inodes = None;
    }

    /// The block of the descriptor table that holds `group`'s descriptor, and the byte in it where that lies.
    pub(crate) async fn descriptor_buffer(&self, group: GroupNumber) -> Result<(Buffer, usize)> {
        let per_block = self.fixed.descriptors_per_block();
        let index = group.0 / per_block;
        let offset = (group.0 % per_block) as usize * usize::from(self.fixed.desc_size);
        let cell = self
            .descriptors
            .get(index as usize)
            .ok_or_else(|| Error::corrupt(format!("group {group}"), "is past the last group"))?;
        let buffer = cell
            .get_or_try_init(|| async {
                let block = self.fixed.descriptor_block(index);
                self.cache.read(block, BlockKind::GroupDescriptors, |_| Ok(())).await
            })
            .await?;
        Ok((buffer.clone(), offset))
    }

    /// Writes a group's descriptor with its checksum. The group lock is held.
    pub(crate) fn write_descriptor(
        &self,
        transaction: &dyn Transaction,
        number: GroupNumber,
        descriptor: &GroupDescriptor,
        place: &(Buffer, usize),
    ) -> Result<()> {
        let (buffer, offset) = place;
        buffer.modify(transaction, |bytes| descriptor.write(&self.context, number, &mut bytes[*offset..]))
    }
}
