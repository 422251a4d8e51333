//! One block group in memory: its descriptor, its bitmaps once they were needed, and hints that let a search
//! pass it by without a lock.
//!
//! ```text
//!   Group ── places (fixed) ── hints (atomics) ── returned (freed blocks whose transaction committed)
//!     └─ state [lock] ── descriptor ── blocks: buffer, allocatable ── inodes: buffer
//! ```
//!
//! Invariants:
//! - The descriptor in memory, the one in its buffer and the bitmap in its buffer agree whenever the state's
//!   lock is free: they change together, in one transaction, under the lock.
//! - `allocatable` (the bitmap plus what was freed in transactions that have not committed, and what was
//!   picked for data on its way) has every bit that the bitmap has. An allocation looks at it, never at the
//!   bitmap alone. Were a block handed out again before the transaction that freed it committed, a crash
//!   would leave the old file with the new file's data.
//! - A bitmap that contradicts its checksum, its free count or the system zones is never allocated from.
//!
//! Locks: a group's state is the "group lock" of the lock order. It is synchronous and never held across an
//! await: buffers are fetched first. Under it only buffers are modified; `returned` is innermost, taken by
//! commit callbacks.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::SuperblockInfo;
use crate::error::{Error, Result};
use crate::format::bitmap;
use crate::format::group_descriptor::{GroupDescriptor, GroupFlags};
use crate::meta::{BlockKind, Buffer, Transaction, Verifier};
use crate::types::{BlockNumber, GroupNumber};

/// See the module.
#[derive(Debug)]
pub(crate) struct Group {
    pub block_bitmap: BlockNumber,
    pub inode_bitmap: BlockNumber,
    pub inode_table: BlockNumber,
    /// True if the descriptor was bad: nothing of the group may be used.
    pub bad_descriptor: bool,
    /// True if the block bitmap was bad.
    pub bad_blocks: AtomicBool,
    /// True if the inode bitmap was bad.
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

    /// Changes the bitmap, which lies in `block`; one that was never written becomes a block of the
    /// transaction.
    fn modify<R>(
        &mut self,
        info: &SuperblockInfo,
        transaction: &dyn Transaction,
        (block, kind): (BlockNumber, BlockKind),
        f: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R> {
        match self {
            Self::Buffer(buffer) => buffer.modify(transaction, f),
            Self::Uninitialised(bytes) => {
                let buffer = info.cache.create(transaction, block, kind)?;
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

/// One of a group's two bitmaps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BitmapOf {
    /// The block bitmap.
    Blocks,
    /// The inode bitmap.
    Inodes,
}

impl BitmapOf {
    /// The flag of a group descriptor that says that the bitmap was never written.
    fn uninitialised(self) -> GroupFlags {
        match self {
            Self::Blocks => GroupFlags::BLOCK_UNINIT,
            Self::Inodes => GroupFlags::INODE_UNINIT,
        }
    }

    fn kind(self, group: GroupNumber) -> BlockKind {
        match self {
            Self::Blocks => BlockKind::BlockBitmap(group),
            Self::Inodes => BlockKind::InodeBitmap(group),
        }
    }
}

/// The block bitmap of a group.
#[derive(Debug)]
pub(crate) struct BlockMap {
    pub bitmap: Bitmap,
    /// The bitmap plus freed blocks that wait for their commit, and picked ones; `None` if there are none.
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

    /// Lets go of `allocatable` if it says what the bitmap says.
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

    /// Returns true if a run of `len` blocks may be there.
    pub fn may_have_run(&self, len: u32) -> bool {
        self.free_blocks.load(Ordering::Relaxed) >= len
            && self.longest_run.load(Ordering::Relaxed) >= len
            && !self.bad_blocks.load(Ordering::Relaxed)
    }

    /// The block of one of the bitmaps.
    fn bitmap_block(&self, which: BitmapOf) -> BlockNumber {
        match which {
            BitmapOf::Blocks => self.block_bitmap,
            BitmapOf::Inodes => self.inode_bitmap,
        }
    }

    /// Set once one of the bitmaps was found to be wrong.
    fn bad(&self, which: BitmapOf) -> &AtomicBool {
        match which {
            BitmapOf::Blocks => &self.bad_blocks,
            BitmapOf::Inodes => &self.bad_inodes,
        }
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

impl GroupState {
    /// Returns true if the bitmap is in memory.
    fn holds(&self, which: BitmapOf) -> bool {
        match which {
            BitmapOf::Blocks => self.blocks.is_some(),
            BitmapOf::Inodes => self.inodes.is_some(),
        }
    }

    fn put(&mut self, which: BitmapOf, bitmap: Bitmap) {
        match which {
            BitmapOf::Blocks => {
                self.blocks = Some(BlockMap { bitmap, allocatable: None, pending: 0, picked: 0 });
            }
            BitmapOf::Inodes => self.inodes = Some(InodeMap { bitmap, first_free: 0 }),
        }
    }

    /// Changes one of the bitmaps of group `number`, which is in memory, and seals it: its checksum goes into
    /// the descriptor here, which the caller writes in the same transaction
    /// ([`SuperblockInfo::write_descriptor`]).
    ///
    /// # Errors
    /// - Corrupt if the bitmap is not in memory.
    /// - Those of the transaction.
    ///
    /// Nothing was changed then.
    pub fn modify_bitmap<R>(
        &mut self,
        info: &SuperblockInfo,
        transaction: &dyn Transaction,
        number: GroupNumber,
        which: BitmapOf,
        f: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R> {
        let place = (info.group(number)?.bitmap_block(which), which.kind(number));
        let bitmap = match which {
            BitmapOf::Blocks => self.blocks.as_mut().map(|map| &mut map.bitmap),
            BitmapOf::Inodes => self.inodes.as_mut().map(|map| &mut map.bitmap),
        };
        let bitmap = bitmap.ok_or_else(|| gone(number, which))?;
        let (result, checksum) = bitmap.modify(info, transaction, place, |bytes| {
            let result = f(bytes);
            (result, info.bitmap_checksum(which, bytes))
        })?;
        match which {
            BitmapOf::Blocks => self.descriptor.block_bitmap_csum = checksum,
            BitmapOf::Inodes => self.descriptor.inode_bitmap_csum = checksum,
        }
        Ok(result)
    }
}

/// The error of an operation that finds a bitmap out of memory which it has locked.
pub(crate) fn gone(number: GroupNumber, which: BitmapOf) -> Error {
    let name = match which {
        BitmapOf::Blocks => "block",
        BitmapOf::Inodes => "inode",
    };
    Error::corrupt(format!("group {number}"), format!("its {name} bitmap is gone"))
}

/// The verifier of a bitmap: against its group's descriptor, which holds its checksum and count, so under the
/// group lock; and against the fixed metadata of the file system.
struct BitmapVerifier<'a> {
    info: &'a SuperblockInfo,
    number: GroupNumber,
    which: BitmapOf,
    descriptor: &'a GroupDescriptor,
}

impl BitmapVerifier<'_> {
    fn corrupt(&self, problem: String) -> Error {
        let (name, block) = match self.which {
            BitmapOf::Blocks => ("block", self.descriptor.block_bitmap),
            BitmapOf::Inodes => ("inode", self.descriptor.inode_bitmap),
        };
        Error::corrupt(format!("block {block}: {name} bitmap of group {}", self.number), problem)
    }

    /// Checks what also holds of a bitmap that was never written: the count, and that fixed metadata is in
    /// use.
    fn verify_content(&self, bytes: &[u8]) -> Result<()> {
        let (info, descriptor) = (self.info, self.descriptor);
        let (bits, counted) = match self.which {
            BitmapOf::Blocks => (info.block_bits(self.number), descriptor.free_blocks_count),
            BitmapOf::Inodes => (info.fixed.inodes_per_group, descriptor.free_inodes_count),
        };
        let free = bitmap::count_clear(bytes, bits);
        if free != counted {
            return Err(self.corrupt(format!("{free} bits are clear, the descriptor says {counted}")));
        }
        if self.which == BitmapOf::Inodes {
            return Ok(());
        }
        let first = info.fixed.group_first_block(self.number).0;
        let end = first + u64::from(info.fixed.group_blocks(self.number));
        let cluster_bits = info.fixed.cluster_bits();
        for zone in info.zones.overlapping(first..end) {
            let from = (zone.start.max(first) - first) >> cluster_bits;
            let to = ((zone.end.min(end) - 1 - first) >> cluster_bits) + 1;
            // The numbers fit: they are within the group.
            if !bitmap::is_set_range(bytes, from as u32..to as u32) {
                return Err(self.corrupt(format!("fixed metadata at block {} is free", zone.start)));
            }
        }
        Ok(())
    }
}

impl Verifier for BitmapVerifier<'_> {
    fn kind(&self) -> BlockKind {
        self.which.kind(self.number)
    }

    fn verify(&self, _block: BlockNumber, bytes: &[u8]) -> Result<()> {
        if self.info.features().metadata_csum() {
            let found = match self.which {
                BitmapOf::Blocks => self.descriptor.block_bitmap_csum,
                BitmapOf::Inodes => self.descriptor.inode_bitmap_csum,
            };
            let computed = self.info.bitmap_checksum(self.which, bytes);
            if computed != found {
                return Err(self.corrupt(format!("checksum {found:#010x} is not {computed:#010x}")));
            }
        }
        self.verify_content(bytes)
    }
}

/// The verifier of block `index` of the descriptor table: each descriptor has a right checksum and names the
/// places that it named when the file system was opened. Descriptors that were bad then stay out of it: their
/// groups are out of use, the others are not.
struct DescriptorsVerifier<'a> {
    info: &'a SuperblockInfo,
    index: u32,
}

impl Verifier for DescriptorsVerifier<'_> {
    fn kind(&self) -> BlockKind {
        BlockKind::GroupDescriptors {
            first: GroupNumber(self.index.saturating_mul(self.info.fixed.descriptors_per_block())),
        }
    }

    fn verify(&self, block: BlockNumber, bytes: &[u8]) -> Result<()> {
        let info = self.info;
        let per_block = info.fixed.descriptors_per_block();
        let first = self.index.saturating_mul(per_block);
        let descriptors = bytes.chunks_exact(usize::from(info.fixed.desc_size));
        for (number, bytes) in (first..info.groups_count()).take(per_block as usize).zip(descriptors) {
            let number = GroupNumber(number);
            let group = info.group(number)?;
            if group.bad_descriptor {
                continue;
            }
            let found = GroupDescriptor::parse(&info.context, number, bytes)?;
            for (name, found, known) in [
                ("block bitmap", found.block_bitmap, group.block_bitmap),
                ("inode bitmap", found.inode_bitmap, group.inode_bitmap),
                ("inode table", found.inode_table, group.inode_table),
            ] {
                if found != known {
                    return Err(Error::corrupt(
                        format!("block {block}: descriptor of group {number}"),
                        format!("{name} at {found} was at {known}"),
                    ));
                }
            }
        }
        Ok(())
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

    /// The checksum of a bitmap, as the group's descriptor holds it; 0 without metadata_csum.
    fn bitmap_checksum(&self, which: BitmapOf, bytes: &[u8]) -> u32 {
        let bits = match which {
            BitmapOf::Blocks => self.fixed.block_bitmap_bits(),
            BitmapOf::Inodes => self.fixed.inodes_per_group,
        };
        self.context.bitmap(&bytes[..(bits / 8) as usize])
    }

    /// The block bitmap of a group in which only fixed metadata is in use; what is past the group's blocks is
    /// set.
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

    /// The content of a bitmap that was never written.
    fn fresh_bitmap(&self, number: GroupNumber, which: BitmapOf) -> Box<[u8]> {
        match which {
            BitmapOf::Blocks => self.fresh_block_bitmap(number),
            BitmapOf::Inodes => self.fresh_inode_bitmap(),
        }
    }

    /// The group lock with one of the bitmaps in memory; `None` if the bitmap is bad, or cannot be read.
    ///
    /// The descriptor is there first: it says whether there is a bitmap to be read. The bitmap is verified
    /// under the lock, against the descriptor of that moment: the two change together, so a bitmap that the
    /// running transaction has changed passes as one from the device does.
    ///
    /// # Errors
    /// Corrupt if there is no such group.
    pub(crate) async fn lock_bitmap(
        &self,
        number: GroupNumber,
        which: BitmapOf,
    ) -> Result<Option<MutexGuard<'_, GroupState>>> {
        let group = self.group(number)?;
        loop {
            {
                let state = group.lock();
                if group.bad(which).load(Ordering::Relaxed) {
                    return Ok(None);
                }
                if state.holds(which) {
                    return Ok(Some(state));
                }
            }
            let uninitialised = group.descriptor().flags.contains(which.uninitialised());
            let fetched = match uninitialised {
                true => None,
                false => match self.cache.fetch(group.bitmap_block(which)).await {
                    Ok(fetched) => Some(fetched),
                    Err(error) => {
                        self.give_up(number, which, &error);
                        return Ok(None);
                    }
                },
            };
            let mut state = group.lock();
            if state.holds(which) || state.descriptor.flags.contains(which.uninitialised()) != uninitialised {
                continue;
            }
            let verifier = BitmapVerifier { info: self, number, which, descriptor: &state.descriptor };
            let verified = match fetched {
                Some(fetched) => fetched.verify(&verifier).map(Bitmap::Buffer),
                None => {
                    let bytes = self.fresh_bitmap(number, which);
                    verifier.verify_content(&bytes).map(|()| Bitmap::Uninitialised(bytes))
                }
            };
            match verified {
                Ok(bitmap) => state.put(which, bitmap),
                Err(error) => {
                    drop(state);
                    self.give_up(number, which, &error);
                    return Ok(None);
                }
            }
            drop(state);
            self.loaded(number);
        }
    }

    /// Takes a group with a bad bitmap out of use, as far as that bitmap goes.
    fn give_up(&self, number: GroupNumber, which: BitmapOf, error: &Error) {
        match which {
            BitmapOf::Blocks => self.give_up_blocks(number, error),
            BitmapOf::Inodes => self.give_up_inodes(number, error),
        }
    }

    fn give_up_blocks(&self, number: GroupNumber, error: &Error) {
        let Ok(group) = self.group(number) else { return };
        if !group.bad_blocks.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, group = number.0, "no blocks are allocated from this group");
            self.space.lost(u64::from(group.free_blocks.swap(0, Ordering::Relaxed)));
            self.bad_groups.lock().push((number, error.clone()));
        }
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

    /// Remembers that a group's bitmaps are in memory; lets go of those of the group that came first if there
    /// are too many.
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
                self.cache.read(block, &DescriptorsVerifier { info: self, index }).await
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
