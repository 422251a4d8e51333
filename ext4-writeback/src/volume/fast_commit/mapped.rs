//! Ranges that were mapped and unmapped in one file, for ADD_RANGE and DEL_RANGE: disjoint, each with its
//! mapping now.
//!
//! The kernel keeps one range from the first block to the last and looks at the extent tree when it commits;
//! which may need the device. Here the mapping of a range is known when it changes.

use std::collections::BTreeMap;

use ext4_core::format::extent::Extent;
use ext4_core::{BlockNumber, InodeNumber, LogicalBlock};
use ext4_journal::FastCommitTag;

/// The mapping of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mapped {
    /// A hole.
    Hole,
    /// Blocks from this one on; `unwritten`: they read as zeros.
    Blocks { physical: BlockNumber, unwritten: bool },
}

impl Mapped {
    /// The mapping of the block that lies `count` blocks further on.
    fn advance(self, count: u32) -> Self {
        match self {
            Self::Hole => Self::Hole,
            Self::Blocks { physical, unwritten } => {
                Self::Blocks { physical: physical.offset(u64::from(count)), unwritten }
            }
        }
    }
}

/// First block of the file → (block behind the last, mapping).
#[derive(Clone, Debug, Default)]
pub(crate) struct Ranges(BTreeMap<u32, (u32, Mapped)>);

impl Ranges {
    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Blocks `start..end` of the file are mapped as `mapped` from now on.
    pub fn set(&mut self, start: u32, end: u32, mapped: Mapped) {
        if start >= end {
            return;
        }
        self.cut(start);
        self.cut(end);
        let inside: Vec<u32> = self.0.range(start..end).map(|(start, _)| *start).collect();
        for key in inside {
            self.0.remove(&key);
        }
        let (mut start, mut end, mut mapped) = (start, end, mapped);
        if let Some((before, (before_end, what))) = self.0.range(..start).next_back().map(|(k, v)| (*k, *v))
            && before_end == start
            && what.advance(start - before) == mapped
        {
            (start, mapped) = (before, what);
        }
        if let Some((after_end, what)) = self.0.get(&end).copied()
            && mapped.advance(end - start) == what
        {
            self.0.remove(&end);
            end = after_end;
        }
        self.0.insert(start, (end, mapped));
    }

    /// Splits the range that reaches over block `at`, if there is one.
    fn cut(&mut self, at: u32) {
        let Some((start, (end, mapped))) = self.0.range(..at).next_back().map(|(k, v)| (*k, *v)) else {
            return;
        };
        if end > at {
            self.0.insert(start, (at, mapped));
            self.0.insert(at, (end, mapped.advance(at - start)));
        }
    }

    /// ADD_RANGE and DEL_RANGE for the ranges, in the order of the file, no extent longer than the format
    /// allows.
    pub fn tags(&self, inode: InodeNumber, tags: &mut Vec<FastCommitTag>) {
        for (start, (end, mapped)) in &self.0 {
            let logical = LogicalBlock(*start);
            let Mapped::Blocks { unwritten, .. } = *mapped else {
                tags.push(FastCommitTag::DelRange { inode, logical, len: end - start });
                continue;
            };
            let mut at = *start;
            while at < *end {
                let len = (end - at).min(Extent::max_len(unwritten));
                if let Mapped::Blocks { physical, .. } = mapped.advance(at - start) {
                    let extent = Extent { logical: LogicalBlock(at), len, physical, unwritten }.to_entry();
                    tags.push(FastCommitTag::AddRange { inode, extent });
                }
                at += len;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(physical: u64, unwritten: bool) -> Mapped {
        Mapped::Blocks { physical: BlockNumber(physical), unwritten }
    }

    /// For each block the ranges say what was set last.
    #[test]
    fn ranges_say_what_was_set_last() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut ranges, mut model) = (Ranges::default(), BTreeMap::new());
            for _ in 0..40 {
                let start = random.u32(0..60);
                let end = start + random.u32(0..20);
                // Few places, so that neighbours often fit together.
                let mapped = match random.u8(0..3) {
                    0 => Mapped::Hole,
                    kind => blocks(1000 + u64::from(start), kind == 1),
                };
                ranges.set(start, end, mapped);
                for at in start..end {
                    model.insert(at, mapped.advance(at - start));
                }
            }
            let mut found = BTreeMap::new();
            let mut last: Option<(u32, Mapped)> = None;
            for (start, (end, mapped)) in &ranges.0 {
                assert!(start < end, "seed {seed}");
                if let Some((last_end, next)) = last {
                    assert!(last_end <= *start, "seed {seed}: overlap");
                    assert!(last_end < *start || next != *mapped, "seed {seed}: not merged");
                }
                last = Some((*end, mapped.advance(end - start)));
                found.extend((*start..*end).map(|at| (at, mapped.advance(at - start))));
            }
            assert_eq!(found, model, "seed {seed}");
        }
    }

    #[test]
    fn a_long_range_becomes_several_extents() {
        let mut ranges = Ranges::default();
        ranges.set(5, 5 + 100_000, blocks(70_000, true));
        ranges.set(200_000, u32::MAX, Mapped::Hole);
        let mut tags = Vec::new();
        ranges.tags(InodeNumber(12), &mut tags);
        let mut next = 5;
        for tag in &tags[..tags.len() - 1] {
            let FastCommitTag::AddRange { inode, extent } = tag else { panic!("{tag}") };
            let extent = Extent::from_entry(extent);
            assert_eq!((*inode, extent.logical.0, extent.unwritten), (InodeNumber(12), next, true));
            assert_eq!(extent.physical.0, 70_000 + u64::from(next - 5));
            next += extent.len;
        }
        assert_eq!(next, 100_005);
        let hole = FastCommitTag::DelRange {
            inode: InodeNumber(12),
            logical: LogicalBlock(200_000),
            len: u32::MAX - 200_000,
        };
        assert_eq!(tags.last(), Some(&hole));
    }
}
