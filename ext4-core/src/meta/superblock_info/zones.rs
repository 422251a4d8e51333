//! The system zones: where the fixed metadata lies (superblocks, descriptors, bitmaps, inode tables), as
//! sorted ranges that do not touch each other.
//!
//! Invariant: no file's mapping and no free block may lie in a zone. Were this not checked, one wrong pointer
//! in an extent would let a write to a file overwrite an inode table.

use std::ops::Range;

use crate::types::BlockNumber;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct SystemZones {
    zones: Box<[Range<u64>]>,
}

impl SystemZones {
    /// From ranges in any order; also the first block that two ranges claim.
    pub fn new(mut ranges: Vec<Range<u64>>) -> (Self, Option<BlockNumber>) {
        ranges.retain(|range| !range.is_empty());
        ranges.sort_unstable_by_key(|range| range.start);
        let mut zones: Vec<Range<u64>> = Vec::new();
        let mut overlap = None;
        for range in ranges {
            match zones.last_mut() {
                Some(last) if range.start <= last.end => {
                    if range.start < last.end {
                        overlap.get_or_insert(BlockNumber(range.start));
                    }
                    last.end = last.end.max(range.end);
                }
                _ => zones.push(range),
            }
        }
        (Self { zones: zones.into() }, overlap)
    }

    /// The zones that have blocks in `range`, whole.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = &Range<u64>> {
        let first = self.zones.partition_point(|zone| zone.end <= range.start);
        self.zones[first..].iter().take_while(move |zone| zone.start < range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_and_found() {
        let (zones, overlap) = SystemZones::new(vec![10..20, 0..2, 20..30, 40..40, 50..51]);
        assert_eq!(overlap, None);
        assert_eq!(&*zones.zones, [0..2, 10..30, 50..51]);
        let found = |range| zones.overlapping(range).cloned().collect::<Vec<_>>();
        assert_eq!(found(2..10), []);
        assert_eq!(found(1..11), [0..2, 10..30]);
        assert_eq!(found(29..51), [10..30, 50..51]);
        assert_eq!(found(51..u64::MAX), []);
        let (zones, overlap) = SystemZones::new(vec![0..5, 4..6, 5..6]);
        assert_eq!(&*zones.zones, std::slice::from_ref(&(0..6)));
        assert_eq!(overlap, Some(BlockNumber(4)));
    }
}
