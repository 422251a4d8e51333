//! Block allocation: contiguous runs near a goal.
//!
//! A search asks groups in order (the goal's, the rest of its flex group, then all others) for a run of the
//! wanted length; if none has one, for a quarter of it, and so on down to single blocks. Each group's hints
//! (how much is free, an upper bound of its longest run) let the search pass it by without a lock; one bound
//! for all groups spares hopeless rounds.
//!
//! If a request has no goal, the flex group's stream says where the last such request ended. So many small
//! files that are written in turn lie one behind the other, and data and metadata each have a stream of their
//! own.
//!
//! Invariants:
//! - Every block comes out of the books ([`super::superblock_info::space`]) before a bitmap is looked at, so
//!   that two allocations never count on the same last block.
//! - A freed block goes back into circulation in the commit callback, never before. Were it handed out
//!   earlier, a crash would undo the freeing but not the new owner's data.
//! - A block is found by one search, whether it is marked in use at once or only picked (see [`picked`]).
//!
//! With bigalloc a bit of a bitmap is a cluster: what is searched, counted and reserved here are clusters,
//! and block numbers become bits, and bits block numbers, at this module's edge. Which blocks of a cluster
//! are in use is known to the extent tree of the file that has it; no cluster has two owners.
//!
//! Locks: one group's at a time; commit callbacks take only the innermost `returned` list.

pub mod picked;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::superblock_info::group::{BitmapOf, Group, GroupState, gone};
use super::superblock_info::space::Space;
use super::{SuperblockInfo, Transaction};
use crate::error::{Errno, Error, Result};
use crate::format::bitmap;
use crate::format::group_descriptor::GroupFlags;
use crate::types::{BlockNumber, GroupNumber, InodeNumber};

/// The longest run that is handed out: what one written extent can map.
const MOST_BLOCKS: u32 = 32_768;
/// A run this long is as good as a longer one.
const LONG_RUN: u32 = 2_048;
/// How many bitmaps a search for a run longer than [`LONG_RUN`] looks at.
const MOST_SEARCHED: u32 = 64;

/// A writer that appends and finds its goal taken begins anew at a place with so many free blocks, aligned to
/// as many: were it to go on right behind the other writer, the two would get in each other's way with every
/// further block.
const ROOM_TO_GROW: [u32; 2] = [2_048, 256];

/// What an allocation asks for.
#[derive(Clone, Copy, Debug)]
pub struct AllocationRequest {
    /// Where it would best lie; `None`: near the inode's group.
    pub goal: Option<BlockNumber>,
    /// The inode that gets them; its group is the default goal.
    pub inode: InodeNumber,
    /// How many blocks (clusters with bigalloc) are wanted; at least one.
    pub len: u32,
    /// True if the blocks were reserved with [`SuperblockInfo::reserve_blocks`]: as many as are allocated
    /// stop being reserved.
    pub reserved: bool,
    /// True for metadata, which may use what is kept back for root and splits.
    pub metadata: bool,
}

/// Blocks taken out of the books; what was not used goes back when it is dropped.
struct Claim<'a> {
    space: &'a Space,
    left: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.left > 0 {
            self.space.release(self.left);
        }
    }
}

/// Allocates one contiguous run of 1 to `len` blocks, the longest near the goal. Does not touch any inode.
///
/// With bigalloc it is a run of clusters: the first block of the first one, and how many clusters. Blocks of
/// files come from [`super::extent_tree::allocate`], which knows what of a cluster a file has already.
///
/// # Errors
/// - `ENOSPC` (see [`SuperblockInfo::blocks_awaiting_commit`]).
/// - Those of the device and of the transaction.
pub async fn allocate_blocks(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    request: &AllocationRequest,
) -> Result<(BlockNumber, u32)> {
    let wanted = request.len.clamp(1, MOST_BLOCKS).min(info.fixed.block_bitmap_bits());
    let mut claim = Claim { space: &info.space, left: 0 };
    let wanted = if request.reserved {
        wanted
    } else {
        let granted = info
            .space
            .reserve_up_to(u64::from(wanted), request.metadata)
            .ok_or_else(|| Error::posix(Errno::ENOSPC, "allocating blocks"))?;
        claim.left = granted;
        // At most `wanted`.
        granted as u32
    };
    let (first, len) = search(info, Taking::Logged(transaction), request, wanted).await?;
    info.space.allocated(u64::from(len));
    claim.left = claim.left.saturating_sub(u64::from(len));
    Ok((first, len))
}

/// What becomes of the run that a search finds.
#[derive(Clone, Copy)]
enum Taking<'a> {
    /// It is marked as in use, as part of a transaction.
    Logged(&'a dyn Transaction),
    /// It is kept from others in memory. `below`: every block of it has a lower number.
    Picked { below: BlockNumber },
}

/// Where a search begins.
struct Goal<'a> {
    group: GroupNumber,
    /// The bit within the group.
    offset: u32,
    /// The stream to move on, if the request had no goal of its own.
    stream: Option<&'a AtomicU64>,
}

fn goal<'a>(info: &'a SuperblockInfo, request: &AllocationRequest) -> Goal<'a> {
    let place = |block| bit_of_block(info, block);
    if let Some((group, offset)) = request.goal.and_then(place) {
        return Goal { group, offset, stream: None };
    }
    let home = info.group_of_inode(request.inode);
    let flex = info.flex_group(home);
    let stream = if request.metadata { &flex.next_metadata } else { &flex.next_data };
    let next = stream.load(Ordering::Relaxed);
    if next != 0
        && let Some((group, offset)) = place(BlockNumber(next))
    {
        return Goal { group, offset, stream: Some(stream) };
    }
    let per_flex = info.fixed.groups_per_flex();
    let mut group = home;
    if per_flex >= 4 {
        // As in the kernel: a flex group's first group is left to directories and other metadata.
        group = GroupNumber(home.0 - home.0 % per_flex);
        if !request.metadata && group.0 + 1 < info.groups_count() {
            group.0 += 1;
        }
    }
    Goal { group, offset: 0, stream: Some(stream) }
}

/// Every group, beginning with `start`, then the rest of its flex group, then all others in order.
fn groups_from(info: &SuperblockInfo, start: GroupNumber) -> impl Iterator<Item = GroupNumber> {
    let count = info.groups_count();
    let per_flex = info.fixed.groups_per_flex();
    let flex_first = start.0 - start.0 % per_flex;
    let flex_end = flex_first.saturating_add(per_flex).min(count);
    (start.0..flex_end)
        .chain(flex_first..start.0)
        .chain(flex_end..count)
        .chain(0..flex_first)
        .map(GroupNumber)
}

/// The group of a block, and the bit that stands for it in the group's bitmap.
fn bit_of_block(info: &SuperblockInfo, block: BlockNumber) -> Option<(GroupNumber, u32)> {
    let (group, offset) = info.fixed.group_of_block(block)?;
    Some((group, offset >> info.fixed.cluster_bits()))
}

/// The first block that `bit` of a group's bitmap stands for.
pub(super) fn block_of_bit(info: &SuperblockInfo, group: GroupNumber, bit: u32) -> BlockNumber {
    info.group_first_block(group).offset(u64::from(bit) << info.fixed.cluster_bits())
}

async fn search(
    info: &SuperblockInfo,
    taking: Taking<'_>,
    request: &AllocationRequest,
    wanted: u32,
) -> Result<(BlockNumber, u32)> {
    let goal = goal(info, request);
    let mut least = wanted;
    loop {
        let bound = info.longest_run.load(Ordering::Acquire);
        // The bound's upper half counts how often it was raised: see `Circulation::give_back`.
        if u64::from(least) <= bound & u64::from(u32::MAX) {
            let mut searched = 0;
            let mut complete = true;
            for number in groups_from(info, goal.group) {
                if !info.group(number)?.may_have_run(least) {
                    continue;
                }
                if let Taking::Picked { below } = taking
                    && info.group_first_block(number).offset(u64::from(info.block_bits(number))) > below
                {
                    complete = false;
                    continue;
                }
                if least > LONG_RUN && searched == MOST_SEARCHED {
                    complete = false;
                    break;
                }
                searched += 1;
                let from = if number == goal.group { goal.offset } else { 0 };
                let grows = request.goal.is_some() && !request.metadata && number == goal.group;
                if let Some(found) = try_group(info, taking, number, from, wanted, least, grows).await? {
                    if let Some(stream) = goal.stream {
                        let behind = u64::from(found.1) << info.fixed.cluster_bits();
                        stream.store(found.0.offset(behind).0, Ordering::Relaxed);
                    }
                    return Ok(found);
                }
            }
            if complete {
                let lowered = bound & !u64::from(u32::MAX) | u64::from(least - 1);
                let _ =
                    info.longest_run.compare_exchange(bound, lowered, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
        if least == 1 {
            return Err(Error::posix(Errno::ENOSPC, "allocating blocks"));
        }
        least = if least > LONG_RUN { LONG_RUN } else { (least / 4).max(1) };
    }
}

/// Allocates (or picks) in one group: the run at `from` if it is long enough, otherwise the first after it
/// that has `wanted` blocks, otherwise the longest; `None` if that has fewer than `least`. `grows`: for a
/// file that may go on behind it.
async fn try_group(
    info: &SuperblockInfo,
    taking: Taking<'_>,
    number: GroupNumber,
    from: u32,
    wanted: u32,
    least: u32,
    grows: bool,
) -> Result<Option<(BlockNumber, u32)>> {
    let group = info.group(number)?;
    let place = info.descriptor_buffer(number).await?;
    let Some(mut state) = info.lock_bitmap(number, BitmapOf::Blocks).await? else { return Ok(None) };
    // A cluster that the end of the device cuts off is no whole one.
    let end = info.fixed.group_blocks(number) >> info.fixed.cluster_bits();
    let Some(map) = &state.blocks else { return Ok(None) };
    let run = map.search(|bytes| {
        let at_goal = bitmap::next_clear_run(bytes, from, end, wanted)
            .filter(|run| run.start == from && run.len() >= least.min(LONG_RUN) as usize);
        let elsewhere = || if grows { room_to_grow(bytes, from, end, wanted) } else { None };
        at_goal.or_else(elsewhere).or_else(|| {
            let long_enough = |run: &Range<u32>| run.len() >= wanted as usize;
            let behind = bitmap::best_clear_run(bytes, from..end, wanted);
            if from == 0 || behind.as_ref().is_some_and(long_enough) {
                return behind;
            }
            bitmap::best_clear_run(bytes, 0..end, wanted)
        })
    });
    let found = run.as_ref().map_or(0, |run| run.end - run.start);
    if found < least {
        // The whole group was searched: nothing longer is in it.
        group.longest_run.store(found, Ordering::Relaxed);
        return Ok(None);
    }
    let Some(run) = run else { return Ok(None) };
    match taking {
        Taking::Logged(transaction) => take(info, transaction, number, &mut state, &place, run.clone())?,
        Taking::Picked { .. } => picked::keep(info, number, &mut state, run.clone())?,
    }
    Ok(Some((block_of_bit(info, number, run.start), found)))
}

/// The first `wanted` blocks of a free, aligned piece of the group with room for more, behind `from` or
/// before it.
fn room_to_grow(bytes: &[u8], from: u32, end: u32, wanted: u32) -> Option<Range<u32>> {
    ROOM_TO_GROW.into_iter().filter(|room| *room > wanted).find_map(|room| {
        // So many hold an aligned piece wherever they begin.
        let enough = 2 * room;
        let found = |run: &Range<u32>| run.end - run.start >= enough;
        let run = bitmap::best_clear_run(bytes, from..end, enough)
            .filter(found)
            .or_else(|| bitmap::best_clear_run(bytes, 0..from, enough).filter(found))?;
        let start = run.start.next_multiple_of(room);
        Some(start..start + wanted)
    })
}

/// Marks a run as in use: in the bitmap, in what is allocatable, in the descriptor.
fn take(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    number: GroupNumber,
    state: &mut GroupState,
    place: &(super::Buffer, usize),
    run: Range<u32>,
) -> Result<()> {
    let group = info.group(number)?;
    let len = run.end - run.start;
    state.modify_bitmap(info, transaction, number, BitmapOf::Blocks, |bytes| {
        debug_assert!(bitmap::is_clear_range(bytes, run.clone()), "an allocatable block is in use");
        bitmap::set_range(bytes, run.clone());
    })?;
    let map = state.blocks.as_mut().ok_or_else(|| gone(number, BitmapOf::Blocks))?;
    if let Some(allocatable) = &mut map.allocatable {
        bitmap::set_range(allocatable, run);
    }
    group.free_blocks.fetch_sub(len, Ordering::Relaxed);
    state.descriptor.free_blocks_count = state.descriptor.free_blocks_count.saturating_sub(len);
    state.descriptor.flags.remove(GroupFlags::BLOCK_UNINIT);
    info.write_descriptor(transaction, number, &state.descriptor, place)
}

/// Some group has a longer run than was known. A search that saw nothing of it must not lower the bound
/// again: the upper half is a generation.
fn raise_longest_run(longest_run: &AtomicU64) {
    let raise = |bound: u64| Some(((bound >> 32).wrapping_add(1) << 32) | u64::from(u32::MAX));
    let _ = longest_run.fetch_update(Ordering::AcqRel, Ordering::Relaxed, raise);
}

/// Marks blocks as used that something outside the bitmaps says belong to a file: a replayed fast commit.
/// Gives the runs among them that were free; with bigalloc in whole clusters, which may be more than was
/// asked for. Without a journal, before anything else runs. Does not touch any inode.
///
/// # Errors
/// - Corrupt if a block is fixed metadata or outside the file system, or its group's bitmap is bad.
/// - Those of the device and of the transaction.
pub async fn mark_used(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    first: BlockNumber,
    count: u64,
) -> Result<Vec<Range<u64>>> {
    let wrong = |problem: &str| Error::corrupt(format!("blocks {first}..{}", first.offset(count)), problem);
    if !info.is_data_range(first, count) {
        return Err(wrong("are fixed metadata or outside the file system"));
    }
    let cluster_bits = info.fixed.cluster_bits();
    let mut found = Vec::new();
    let (mut next, mut left) = clusters_of(info, first, count);
    while left > 0 {
        let (number, offset) =
            bit_of_block(info, next).ok_or_else(|| wrong("are outside the file system"))?;
        let len = left.min(u64::from(info.block_bits(number).saturating_sub(offset)));
        if len == 0 {
            return Err(wrong("are outside their group"));
        }
        let place = info.descriptor_buffer(number).await?;
        let state = info.lock_bitmap(number, BitmapOf::Blocks).await?;
        let mut state = state.ok_or_else(|| wrong("are in a group whose block bitmap is bad"))?;
        // At most a group's blocks.
        let end = offset + len as u32;
        let mut at = offset;
        while let Some(run) = state
            .blocks
            .as_ref()
            .and_then(|map| map.search(|bytes| bitmap::next_clear_run(bytes, at, end, u32::MAX)))
        {
            take(info, transaction, number, &mut state, &place, run.clone())?;
            info.space.lost(u64::from(run.end - run.start));
            found.push(block_of_bit(info, number, run.start).0..block_of_bit(info, number, run.end).0);
            at = run.end;
        }
        next = next.offset(len << cluster_bits);
        left -= len;
    }
    Ok(found)
}

/// The first block of the first cluster that `count` blocks from `first` touch, and how many clusters they
/// touch. The blocks themselves without bigalloc.
fn clusters_of(info: &SuperblockInfo, first: BlockNumber, count: u64) -> (BlockNumber, u64) {
    let bits = info.fixed.cluster_bits();
    let within = first.0 & ((1 << bits) - 1);
    (BlockNumber(first.0 - within), (within + count).div_ceil(1 << bits))
}

/// Where freed blocks go when their transaction has committed.
pub(super) struct Circulation {
    groups: Arc<[Group]>,
    space: Arc<Space>,
    longest_run: Arc<AtomicU64>,
}

impl Circulation {
    pub(super) fn of(info: &SuperblockInfo) -> Self {
        Self {
            groups: Arc::clone(&info.groups),
            space: Arc::clone(&info.space),
            longest_run: Arc::clone(&info.longest_run),
        }
    }

    pub(super) fn give_back(&self, number: GroupNumber, range: Range<u32>) {
        let len = range.end - range.start;
        let group = &self.groups[number.0 as usize];
        group.returned.lock().push(range);
        group.free_blocks.fetch_add(len, Ordering::Relaxed);
        group.longest_run.store(u32::MAX, Ordering::Relaxed);
        raise_longest_run(&self.longest_run);
        self.space.committed(u64::from(len));
    }
}

/// What is to happen to freed blocks before they are handed out again: the discards of mount option
/// `discard`.
pub trait FreedBlocks: Send + Sync + std::fmt::Debug {
    /// The transaction that freed `count` blocks from `first` on has committed (whole clusters with
    /// bigalloc). They stay out of use until `release` is called. Called by the commit task: it must not
    /// block.
    fn freed(&self, first: BlockNumber, count: u64, release: Box<dyn FnOnce() + Send>);
}

impl SuperblockInfo {
    /// Has freed blocks go by way of `freed` from now on; the first one set stays.
    pub fn set_freed_blocks(&self, freed: Arc<dyn FreedBlocks>) {
        let _ = self.freed_blocks.set(freed);
    }
}

/// Frees `count` blocks. They are handed out again only after the transaction has committed. `metadata`: each
/// is forgotten and revoked ([`super::BufferCache::forget`]). Does not touch any inode.
///
/// With bigalloc every cluster that the blocks touch is freed: nothing else may use it.
///
/// # Errors
/// - Corrupt if a block was free already or is fixed metadata.
/// - Those of the device and of the transaction.
pub async fn free_blocks(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    first: BlockNumber,
    count: u64,
    metadata: bool,
) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    if !info.is_data_range(first, count) {
        return Err(Error::corrupt(
            format!("blocks {first}..{}", first.offset(count)),
            "to be freed are fixed metadata or outside the file system",
        ));
    }
    let cluster_bits = info.fixed.cluster_bits();
    let (mut next, mut left) = clusters_of(info, first, count);
    if cluster_bits != 0 {
        let blocks = (left << cluster_bits).min(info.blocks_count().saturating_sub(next.0));
        if !info.is_data_range(next, blocks) {
            return Err(Error::corrupt(
                format!("blocks {first}..{}", first.offset(count)),
                "to be freed share a cluster with fixed metadata",
            ));
        }
    }
    while left > 0 {
        let (number, offset) = bit_of_block(info, next)
            .ok_or_else(|| Error::corrupt(format!("block {next}"), "is outside the file system"))?;
        let len = left.min(u64::from(info.block_bits(number).saturating_sub(offset)));
        if len == 0 {
            return Err(Error::corrupt(format!("block {next}"), "is outside its group"));
        }
        // At most a group's blocks.
        free_in_group(info, transaction, number, offset..offset + len as u32).await?;
        if metadata {
            let (from, to) = (next.0.max(first.0), next.offset(len << cluster_bits).0);
            for block in from..to.min(first.offset(count).0) {
                info.cache.forget(transaction, BlockNumber(block))?;
            }
        }
        next = next.offset(len << cluster_bits);
        left -= len;
    }
    Ok(())
}

async fn free_in_group(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    number: GroupNumber,
    range: Range<u32>,
) -> Result<()> {
    let place = info.descriptor_buffer(number).await?;
    let len = range.end - range.start;
    {
        let bad =
            || Error::corrupt(format!("group {number}: block bitmap"), "is bad; nothing is freed in it");
        let mut state = info.lock_bitmap(number, BitmapOf::Blocks).await?.ok_or_else(bad)?;
        let state = &mut *state;
        let Some(map) = &mut state.blocks else { return Err(bad()) };
        if let Some(free) = map.bitmap.read(|bytes| bitmap::next_clear(bytes, range.start, range.end)) {
            let block = block_of_bit(info, number, free);
            return Err(Error::corrupt(format!("block {block}"), "is to be freed but is free already"));
        }
        if map.allocatable.is_none() {
            map.allocatable = Some(map.bitmap.read(|bytes| Box::from(bytes)));
        }
        state.modify_bitmap(info, transaction, number, BitmapOf::Blocks, |bytes| {
            bitmap::clear_range(bytes, range.clone());
        })?;
        let Some(map) = &mut state.blocks else { return Err(bad()) };
        map.pending += len;
        state.descriptor.free_blocks_count += len;
        state.descriptor.flags.remove(GroupFlags::BLOCK_UNINIT);
        info.write_descriptor(transaction, number, &state.descriptor, &place)?;
        info.space.freed(u64::from(len));
    }
    let circulation = Circulation::of(info);
    let first = block_of_bit(info, number, range.start);
    let blocks = u64::from(len) << info.fixed.cluster_bits();
    let freed = info.freed_blocks.get().cloned();
    let release = Box::new(move || circulation.give_back(number, range));
    // Outside the lock: a transaction without a journal calls back at once.
    transaction.on_commit(match freed {
        Some(freed) => Box::new(move || freed.freed(first, blocks, release)),
        None => release,
    });
    Ok(())
}
