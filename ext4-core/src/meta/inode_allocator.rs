//! Inode allocation: directories spread over flex groups (Orlov's policy, as the kernel has it), other inodes
//! near their directory.
//!
//! Invariants:
//! - An inode below `s_first_ino` is never handed out nor freed.
//! - `itable_unused` never covers an inode in use: were it to, e2fsck and the kernel's lazy initialisation
//!   would zero that inode.
//! - A group whose inodes are first used has an initialised block bitmap too, as in the kernel.
//!
//! Locks: one group's at a time.

use std::sync::atomic::Ordering;

use super::superblock_info::group::{BitmapOf, Group, GroupState};
use super::{SuperblockInfo, Transaction};
use crate::error::{Errno, Error, Result};
use crate::format::bitmap;
use crate::format::group_descriptor::{GroupDescriptor, GroupFlags};
use crate::types::{GroupNumber, InodeNumber};

/// Allocates an inode number: directories spread over flex groups (Orlov), others near `parent`.
///
/// # Errors
/// - `ENOSPC` if there is no free space.
/// - Those of the device and of the transaction.
pub async fn allocate_inode(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    parent: InodeNumber,
    is_directory: bool,
) -> Result<InodeNumber> {
    let count = info.groups_count();
    let home = info.group_of_inode(parent);
    let start = if is_directory { orlov(info, parent, home) } else { near(info, parent, home) };
    if let Some(start) = start {
        // The hint may be out of date by the time the group is locked: then the next group with a free inode
        // does.
        for number in (start.0..count).chain(0..start.0).map(GroupNumber) {
            if let Some(inode) = try_group(info, transaction, number, is_directory).await? {
                return Ok(inode);
            }
        }
    }
    Err(Error::posix(Errno::ENOSPC, "allocating an inode"))
}

fn has_inodes(group: &Group) -> bool {
    group.free_inodes.load(Ordering::Relaxed) > 0
}

/// The group of the first of `numbers` with a free inode.
fn first_with_inodes(info: &SuperblockInfo, mut numbers: impl Iterator<Item = u32>) -> Option<GroupNumber> {
    numbers.find(|number| info.groups.get(*number as usize).is_some_and(has_inodes)).map(GroupNumber)
}

/// For what is no directory. Source: the kernel's `find_group_other`.
fn near(info: &SuperblockInfo, parent: InodeNumber, home: GroupNumber) -> Option<GroupNumber> {
    let count = info.groups_count();
    let per_flex = info.fixed.groups_per_flex();
    if per_flex > 1 {
        let first = home.0 - home.0 % per_flex;
        return first_with_inodes(info, first..first.saturating_add(per_flex).min(count))
            .or_else(|| spread(info, home))
            .or_else(|| fallback(info, home));
    }
    let usable = |number: &u32| {
        info.groups
            .get(*number as usize)
            .is_some_and(|group| has_inodes(group) && group.free_blocks.load(Ordering::Relaxed) > 0)
    };
    if usable(&home.0) {
        return Some(home);
    }
    // Quadratic steps from a place that differs with the parent, so that crowded directories part.
    let mut number = (u64::from(home.0) + u64::from(parent.0)) % u64::from(count);
    let mut step = 1_u64;
    while step < u64::from(count) {
        number = (number + step) % u64::from(count);
        // Below the count of groups.
        if usable(&(number as u32)) {
            return Some(GroupNumber(number as u32));
        }
        step <<= 1;
    }
    first_with_inodes(info, (home.0..count).chain(0..home.0))
}

/// For a directory. Source: the kernel's `find_group_orlov`.
fn orlov(info: &SuperblockInfo, parent: InodeNumber, home: GroupNumber) -> Option<GroupNumber> {
    let chosen = if parent == InodeNumber::ROOT { top_level(info) } else { spread(info, home) };
    chosen.or_else(|| fallback(info, home))
}

/// What decides about a flex group: averages over all of them.
struct Averages {
    flex_groups: u32,
    free_inodes: u32,
    free_blocks: u64,
    directories: u32,
}

impl Averages {
    fn new(info: &SuperblockInfo) -> Self {
        let flex_groups = u32::try_from(info.flex_groups.len()).unwrap_or(u32::MAX).max(1);
        Self {
            flex_groups,
            free_inodes: info.free_inodes_count() / flex_groups,
            free_blocks: info.free_and_reserved_blocks().0 / u64::from(flex_groups),
            directories: info.directories.load(Ordering::Relaxed) / flex_groups,
        }
    }
}

fn flex_groups_range(info: &SuperblockInfo, flex: u32) -> std::ops::Range<u32> {
    let per_flex = info.fixed.groups_per_flex();
    let first = flex.saturating_mul(per_flex);
    first..first.saturating_add(per_flex).min(info.groups_count())
}

fn flex_free_blocks(info: &SuperblockInfo, flex: u32) -> u64 {
    flex_groups_range(info, flex)
        .filter_map(|number| info.groups.get(number as usize))
        .map(|group| u64::from(group.free_blocks.load(Ordering::Relaxed)) << info.cluster_bits())
        .sum()
}

/// A directory in the root: the flex group with the fewest directories among those with at least average
/// room. The search begins one further each time, so that directories made in turn spread.
fn top_level(info: &SuperblockInfo) -> Option<GroupNumber> {
    let averages = Averages::new(info);
    let start = info.next_top_level.fetch_add(1, Ordering::Relaxed) % averages.flex_groups;
    let mut best = None;
    let mut fewest = info.fixed.inodes_per_group;
    for flex in (start..averages.flex_groups).chain(0..start) {
        let statistics = &info.flex_groups[flex as usize];
        let free = statistics.free_inodes.load(Ordering::Relaxed);
        let directories = statistics.used_dirs.load(Ordering::Relaxed);
        if free > 0
            && directories < fewest
            && free >= averages.free_inodes
            && flex_free_blocks(info, flex) >= averages.free_blocks
        {
            best = Some(flex);
            fewest = directories;
            if fewest == 0 {
                break;
            }
        }
    }
    first_with_inodes(info, flex_groups_range(info, best?))
}

/// A directory further down: the parent's flex group unless it is crowded, otherwise the next that is not.
fn spread(info: &SuperblockInfo, home: GroupNumber) -> Option<GroupNumber> {
    let averages = Averages::new(info);
    let per_flex = info.fixed.groups_per_flex();
    let inodes = info.fixed.inodes_per_group.saturating_mul(per_flex);
    let blocks = u64::from(info.fixed.blocks_per_group) * u64::from(per_flex);
    let most_directories = averages.directories.saturating_add(inodes / 16).max(1);
    let least_inodes = averages.free_inodes.saturating_sub(inodes / 4).max(1);
    let least_blocks = averages.free_blocks.saturating_sub(blocks / 4);
    let start = home.0 / per_flex;
    (start..averages.flex_groups)
        .chain(0..start)
        .find(|flex| {
            let statistics = &info.flex_groups[*flex as usize];
            statistics.used_dirs.load(Ordering::Relaxed) < most_directories
                && statistics.free_inodes.load(Ordering::Relaxed) >= least_inodes
                && flex_free_blocks(info, *flex) >= least_blocks
        })
        .and_then(|flex| first_with_inodes(info, flex_groups_range(info, flex)))
}

/// Any group with at least an average share of free inodes; any with one.
fn fallback(info: &SuperblockInfo, home: GroupNumber) -> Option<GroupNumber> {
    let count = info.groups_count();
    let average = info.free_inodes_count() / count.max(1);
    let all = || (home.0..count).chain(0..home.0);
    all()
        .find(|number| {
            info.groups.get(*number as usize).is_some_and(|group| {
                has_inodes(group) && group.free_inodes.load(Ordering::Relaxed) >= average
            })
        })
        .map(GroupNumber)
        .or_else(|| first_with_inodes(info, all()))
}

async fn try_group(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    number: GroupNumber,
    is_directory: bool,
) -> Result<Option<InodeNumber>> {
    let group = info.group(number)?;
    if !has_inodes(group) || group.bad_inodes.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let place = info.descriptor_buffer(number).await?;
    if group.descriptor().flags.contains(GroupFlags::BLOCK_UNINIT) {
        initialise_block_bitmap(info, transaction, number, &place).await?;
    }
    let per_group = info.fixed.inodes_per_group;
    let Some(mut state) = info.lock_bitmap(number, BitmapOf::Inodes).await? else { return Ok(None) };
    let Some(map) = &mut state.inodes else { return Ok(None) };
    let lowest = if number.0 == 0 { info.fixed.first_ino - 1 } else { 0 };
    let from = map.first_free.max(lowest);
    let Some(index) = map.bitmap.read(|bytes| bitmap::next_clear(bytes, from, per_group)) else {
        map.first_free = per_group;
        return Ok(None);
    };
    take(info, transaction, number, &mut state, &place, index, is_directory)?;
    if let Some(map) = &mut state.inodes {
        map.first_free = index + 1;
    }
    // At most inodes_count, which fits.
    Ok(Some(InodeNumber(number.0 * per_group + index + 1)))
}

/// Marks a free inode as used: in the bitmap, in the descriptor, in the counters.
fn take(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    number: GroupNumber,
    state: &mut GroupState,
    place: &(super::Buffer, usize),
    index: u32,
    is_directory: bool,
) -> Result<()> {
    let group = info.group(number)?;
    let per_group = info.fixed.inodes_per_group;
    state.modify_bitmap(info, transaction, number, BitmapOf::Inodes, |bytes| {
        bitmap::set_range(bytes, index..index + 1);
    })?;
    let descriptor = &mut state.descriptor;
    descriptor.free_inodes_count = descriptor.free_inodes_count.saturating_sub(1);
    if info.features().group_checksums() {
        descriptor.itable_unused = unused(descriptor, per_group).min(per_group - (index + 1));
        descriptor.flags.remove(GroupFlags::INODE_UNINIT);
    }
    if is_directory {
        descriptor.used_dirs_count += 1;
    }
    info.write_descriptor(transaction, number, descriptor, place)?;
    let flex = info.flex_group(number);
    group.free_inodes.fetch_sub(1, Ordering::Relaxed);
    flex.free_inodes.fetch_sub(1, Ordering::Relaxed);
    info.free_inodes.fetch_sub(1, Ordering::Relaxed);
    if is_directory {
        group.used_dirs.fetch_add(1, Ordering::Relaxed);
        flex.used_dirs.fetch_add(1, Ordering::Relaxed);
        info.directories.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// How many slots at the end of a group's table were never used.
fn unused(descriptor: &GroupDescriptor, per_group: u32) -> u32 {
    // Without the flag a table that was never used is counted from its start.
    if descriptor.flags.contains(GroupFlags::INODE_UNINIT) { per_group } else { descriptor.itable_unused }
}

/// Returns true if `inode` is in use as its bitmap says.
///
/// # Errors
/// - Corrupt if the number is out of range or the bitmap is bad.
/// - Those of the device.
pub async fn is_used(info: &SuperblockInfo, inode: InodeNumber) -> Result<bool> {
    let (number, index) = place(info, inode)?;
    let state = info.lock_bitmap(number, BitmapOf::Inodes).await?.ok_or_else(|| bad_bitmap(inode))?;
    let map = state.inodes.as_ref().ok_or_else(|| bad_bitmap(inode))?;
    Ok(map.bitmap.read(|bytes| bitmap::is_set(bytes, index)))
}

/// Marks `inode`, which is free, as used, because something outside the bitmaps says so: a replayed fast
/// commit. Slots of its table that are counted as used from now on, and were not before, become free inodes.
///
/// # Errors
/// - Corrupt if the number is out of range, reserved or in use, or the bitmap is bad.
/// - Those of the device and of the transaction.
pub async fn mark_used(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: InodeNumber,
    is_directory: bool,
) -> Result<()> {
    let (number, index) = place(info, inode)?;
    if inode.0 < info.fixed.first_ino {
        return Err(Error::corrupt(format!("inode {inode}"), "is to be used but is reserved"));
    }
    let group = info.group(number)?;
    let place = info.descriptor_buffer(number).await?;
    if group.descriptor().flags.contains(GroupFlags::BLOCK_UNINIT) {
        initialise_block_bitmap(info, transaction, number, &place).await?;
    }
    let per_group = info.fixed.inodes_per_group;
    let first_unused = {
        let mut state = info.lock_bitmap(number, BitmapOf::Inodes).await?.ok_or_else(|| bad_bitmap(inode))?;
        let map = state.inodes.as_ref().ok_or_else(|| bad_bitmap(inode))?;
        if map.bitmap.read(|bytes| bitmap::is_set(bytes, index)) {
            return Err(Error::corrupt(format!("inode {inode}"), "is to be used but is in use already"));
        }
        let first_unused = per_group.saturating_sub(unused(&state.descriptor, per_group));
        take(info, transaction, number, &mut state, &place, index, is_directory)?;
        first_unused
    };
    if info.features().group_checksums() {
        for index in first_unused..index {
            let slot = InodeNumber(number.0 * per_group + index + 1);
            super::inode_table::clear_slot(info, transaction, slot).await?;
        }
    }
    Ok(())
}

fn place(info: &SuperblockInfo, inode: InodeNumber) -> Result<(GroupNumber, u32)> {
    let problem = || format!("is not within 1 to {}", info.inodes_count());
    info.fixed.group_of_inode(inode).ok_or_else(|| Error::corrupt(format!("inode {inode}"), problem()))
}

fn bad_bitmap(inode: InodeNumber) -> Error {
    Error::corrupt(format!("inode {inode}"), "its group's inode bitmap is bad")
}

/// Writes the block bitmap of a group that never had one.
pub(super) async fn initialise_block_bitmap(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    number: GroupNumber,
    place: &(super::Buffer, usize),
) -> Result<()> {
    let Some(mut state) = info.lock_bitmap(number, BitmapOf::Blocks).await? else { return Ok(()) };
    if !state.descriptor.flags.contains(GroupFlags::BLOCK_UNINIT) {
        return Ok(());
    }
    state.modify_bitmap(info, transaction, number, BitmapOf::Blocks, |_| ())?;
    state.descriptor.flags.remove(GroupFlags::BLOCK_UNINIT);
    info.write_descriptor(transaction, number, &state.descriptor, place)
}

/// Frees an inode number. The table slot must have been cleared or marked deleted by the caller.
///
/// # Errors
/// - Corrupt if it was free already or is reserved.
/// - Those of the device and of the transaction.
pub async fn free_inode(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: InodeNumber,
    is_directory: bool,
) -> Result<()> {
    let wrong = |problem: &str| Error::corrupt(format!("inode {inode}"), problem);
    if inode.0 < info.fixed.first_ino {
        return Err(wrong("is to be freed but is reserved"));
    }
    let (number, index) =
        info.fixed.group_of_inode(inode).ok_or_else(|| wrong("is to be freed but does not exist"))?;
    let group = info.group(number)?;
    let place = info.descriptor_buffer(number).await?;
    let mut state = info
        .lock_bitmap(number, BitmapOf::Inodes)
        .await?
        .ok_or_else(|| wrong("is to be freed but its group's inode bitmap is bad"))?;
    let Some(map) = &mut state.inodes else { return Err(wrong("is to be freed but its bitmap is gone")) };
    if !map.bitmap.read(|bytes| bitmap::is_set(bytes, index)) {
        return Err(wrong("is to be freed but is free already"));
    }
    // Too low does no harm: the search begins there.
    map.first_free = map.first_free.min(index);
    state.modify_bitmap(info, transaction, number, BitmapOf::Inodes, |bytes| {
        bitmap::clear_range(bytes, index..index + 1);
    })?;
    let descriptor = &mut state.descriptor;
    descriptor.free_inodes_count += 1;
    if is_directory {
        descriptor.used_dirs_count = descriptor.used_dirs_count.saturating_sub(1);
    }
    info.write_descriptor(transaction, number, descriptor, &place)?;
    drop(state);
    let flex = info.flex_group(number);
    group.free_inodes.fetch_add(1, Ordering::Relaxed);
    flex.free_inodes.fetch_add(1, Ordering::Relaxed);
    info.free_inodes.fetch_add(1, Ordering::Relaxed);
    if is_directory {
        let less = |count: u32| Some(count.saturating_sub(1));
        for counter in [&group.used_dirs, &flex.used_dirs, &info.directories] {
            let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }
    Ok(())
}
