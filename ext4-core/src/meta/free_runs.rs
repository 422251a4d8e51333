//! FITRIM: free runs kept from being allocated for a while. A trim, which tells the device that their content
//! is not needed, must not race with an allocation, whose data the discard could take.
//!
//! ```text
//!   bitmap        1 1 0 0 0 0 1 0        what is in use, on the device
//!   allocatable   1 1 1 1 1 1 1 0        what an allocation sees: the run 2..6 is withheld
//! ```
//!
//! Invariants:
//! - Only what can be allocated is withheld: never a block that was freed in a transaction that has not
//!   committed. Were one discarded, a crash would bring the file back without its content.
//! - A withheld run is out of the books too, so that no request reserves it. At most half of what is left is
//!   withheld: writeback, which must not fail for lack of a block for an extent node, finds one.
//! - With bigalloc a run is one of whole free clusters: of one that a file has a block of, nothing is free to
//!   others.
//! - Nothing of it reaches the device's bitmap: after a crash the run is free.

use std::ops::Range;

use super::SuperblockInfo;
use super::block_allocator::{Circulation, block_of_bit};
use super::superblock_info::group::BitmapOf;
use crate::error::Result;
use crate::format::bitmap;
use crate::types::{BlockNumber, GroupNumber};

/// A run of free blocks that is not allocated as long as this lives.
pub struct WithheldRun {
    circulation: Circulation,
    group: GroupNumber,
    /// Bits of the group's bitmap: clusters with bigalloc.
    range: Range<u32>,
    first: BlockNumber,
    cluster_bits: u32,
}

impl std::fmt::Debug for WithheldRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WithheldRun(group {}, {:?})", self.group, self.range)
    }
}

impl WithheldRun {
    /// The first block of the run.
    #[must_use]
    pub fn first(&self) -> BlockNumber {
        self.first
    }

    /// How many blocks it has.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        (self.range.end - self.range.start) << self.cluster_bits
    }

    /// Where the search for the next run of the group goes on: a block number within the group.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.range.end << self.cluster_bits
    }
}

impl Drop for WithheldRun {
    fn drop(&mut self) {
        self.circulation.give_back(self.group, self.range.clone());
    }
}

/// Withholds the first run of free blocks of `group` within `range` (block numbers within the group) that has
/// `least` blocks; `None` if there is none, if its bitmap is bad, or if nearly everything is reserved. With
/// bigalloc the run is one of whole clusters, all of which lies within `range`.
///
/// # Errors
/// Those of the device.
pub async fn withhold_free_run(
    info: &SuperblockInfo,
    group: GroupNumber,
    range: Range<u32>,
    least: u32,
) -> Result<Option<WithheldRun>> {
    let Some(mut state) = info.lock_bitmap(group, BitmapOf::Blocks).await? else { return Ok(None) };
    let Some(map) = &mut state.blocks else { return Ok(None) };
    let cluster_bits = info.fixed.cluster_bits();
    // A cluster that the end of the device cuts off is no whole one.
    let end = range.end.min(info.fixed.group_blocks(group)) >> cluster_bits;
    let mut at = range.start.div_ceil(1 << cluster_bits);
    let least = least.max(1).div_ceil(1 << cluster_bits);
    let run = loop {
        let Some(run) = map.search(|bytes| bitmap::next_clear_run(bytes, at, end, u32::MAX)) else {
            return Ok(None);
        };
        if run.end - run.start >= least {
            break run;
        }
        at = run.end;
    };
    let granted = info.space.withhold_up_to(u64::from(run.end - run.start));
    if granted < u64::from(least) {
        info.space.committed(granted);
        return Ok(None);
    }
    // At most the run.
    let run = run.start..run.start + granted as u32;
    let bits = run.end - run.start;
    if map.allocatable.is_none() {
        map.allocatable = Some(map.bitmap.read(|bytes| Box::from(bytes)));
    }
    if let Some(allocatable) = &mut map.allocatable {
        bitmap::set_range(allocatable, run.clone());
    }
    map.pending += bits;
    info.group(group)?.free_blocks.fetch_sub(bits, std::sync::atomic::Ordering::Relaxed);
    let first = block_of_bit(info, group, run.start);
    Ok(Some(WithheldRun { circulation: Circulation::of(info), group, range: run, first, cluster_bits }))
}
