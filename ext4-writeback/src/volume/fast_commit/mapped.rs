//! Ranges that were mapped and unmapped in one file, for ADD_RANGE and DEL_RANGE: disjoint, each with its
//! mapping now.
//!
//! The kernel keeps one range from the first block to the last and looks at the extent tree when it commits;
//! which may need the device. Here the mapping of a range is known when it changes.

use ext4_core::format::extent::Extent;
use ext4_core::run_map::{RunMap, RunValue};
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

impl RunValue for Mapped {
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
pub(crate) struct Ranges(RunMap<Mapped>);

impl Ranges {
    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Blocks `start..end` of the file are mapped as `mapped` from now on.
    pub fn set(&mut self, start: u32, end: u32, mapped: Mapped) {
        self.0.set(start..end, mapped);
    }

    /// ADD_RANGE and DEL_RANGE for the ranges, in the order of the file, no extent longer than the format
    /// allows.
    pub fn tags(&self, inode: InodeNumber, tags: &mut Vec<FastCommitTag>) {
        for run in self.0.iter() {
            let logical = LogicalBlock(run.start);
            let Mapped::Blocks { unwritten, .. } = run.value else {
                tags.push(FastCommitTag::DelRange { inode, logical, len: run.blocks() });
                continue;
            };
            let mut at = run.start;
            while at < run.end {
                let len = (run.end - at).min(Extent::max_len(unwritten));
                if let Mapped::Blocks { physical, .. } = run.value_at(at) {
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
    use std::collections::BTreeMap;

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
            for run in ranges.0.iter() {
                assert!(run.start < run.end, "seed {seed}");
                if let Some((last_end, next)) = last {
                    assert!(last_end <= run.start, "seed {seed}: overlap");
                    assert!(last_end < run.start || next != run.value, "seed {seed}: not merged");
                }
                last = Some((run.end, run.value.advance(run.blocks())));
                found.extend((run.start..run.end).map(|at| (at, run.value_at(at))));
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
