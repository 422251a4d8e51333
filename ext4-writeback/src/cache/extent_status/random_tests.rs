//! The accounting against a model that counts every block after every step.

use std::sync::Arc;

use ext4_core::meta::extent_tree::{Mapping, MappingState};
use ext4_core::{BlockNumber, LogicalBlock};

use crate::cache::extent_status::ExtentStatusTree;
use crate::cache::extent_status::status::{Reservation, Status};
use crate::testing::blocks;

const BLOCKS: usize = 160;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Block {
    Hole,
    Delayed,
    Allocated,
}

/// One file: what is on the device, what is delayed, what of it the tree knows, and the books.
struct Model {
    bits: u32,
    tree: ExtentStatusTree,
    blocks: [Block; BLOCKS],
    reserved: u64,
}

impl Model {
    fn cluster(&self, block: usize) -> std::ops::Range<usize> {
        let size = 1 << self.bits;
        let start = block / size * size;
        start..(start + size).min(BLOCKS)
    }

    fn cluster_has(&self, block: usize, kind: Block) -> bool {
        self.blocks[self.cluster(block)].contains(&kind)
    }

    /// Clusters that are allocated.
    fn allocated(&self) -> usize {
        (0..BLOCKS).step_by(1 << self.bits).filter(|at| self.cluster_has(*at, Block::Allocated)).count()
    }

    /// Reads what the device says of the extent around `block`.
    fn load(&mut self, block: usize) {
        let end = (block..BLOCKS).find(|at| self.blocks[*at] != self.blocks[block]).unwrap_or(BLOCKS);
        let state = match self.blocks[block] {
            Block::Allocated => MappingState::Written(BlockNumber(1000 + block as u64)),
            Block::Hole | Block::Delayed => MappingState::Hole,
        };
        let len = if end == BLOCKS && state == MappingState::Hole {
            u32::MAX - block as u32
        } else {
            (end - block) as u32
        };
        self.tree.cache(&Mapping { logical: LogicalBlock(block as u32), len, state });
    }

    fn reserve(&mut self, range: std::ops::Range<usize>, fails: bool) {
        loop {
            let mut asked = 0;
            let mut needed = 0;
            for at in (0..BLOCKS).step_by(1 << self.bits) {
                let cluster = self.cluster(at);
                let hole = cluster.clone().any(|at| range.contains(&at) && self.blocks[at] == Block::Hole);
                let own = self.blocks[cluster].iter().all(|block| *block == Block::Hole);
                needed += u64::from(hole && own);
            }
            let result = self.tree.reserve(blocks(range.start as u32..range.end as u32), |count| {
                asked = count;
                match fails {
                    true => Err(ext4_core::Error::posix(ext4_core::Errno::ENOSPC, "full")),
                    false => Ok(()),
                }
            });
            match result {
                Ok(Reservation::NotCached(block)) => self.load(block.0 as usize),
                Ok(Reservation::Done) => {
                    assert_eq!(asked, needed, "reserved for {range:?}");
                    self.reserved += asked;
                    for block in &mut self.blocks[range] {
                        if *block == Block::Hole {
                            *block = Block::Delayed;
                        }
                    }
                    return;
                }
                Err(_) => {
                    assert!(fails);
                    return;
                }
            }
        }
    }

    /// Allocates `range`, whatever is there: as writeback does, or a write without delayed allocation.
    /// Returns how many reserved clusters that releases, and how many clusters it takes.
    fn allocate(&mut self, range: std::ops::Range<usize>) -> (u64, u64) {
        let before = self.allocated();
        let physical = BlockNumber(1000 + range.start as u64);
        let (released, _) =
            self.tree.set(blocks(range.start as u32..range.end as u32), Status::Unwritten(physical));
        self.blocks[range.clone()].fill(Block::Allocated);
        self.reserved -= released;
        (released, (self.allocated() - before) as u64)
    }

    /// Removes `range` as truncation and punching a hole do: from memory, from the device, then the ends.
    fn remove(&mut self, range: std::ops::Range<usize>) {
        let released = self.tree.remove(blocks(range.start as u32..range.end as u32));
        self.reserved -= released;
        self.blocks[range.clone()].fill(Block::Hole);
        for end in [range.start, range.end - 1] {
            if self.tree.shares_cluster(LogicalBlock(end as u32))
                && !self.cluster_has(end, Block::Allocated)
                && self.tree.cluster_freed(LogicalBlock(end as u32))
            {
                self.reserved += 1;
            }
        }
    }

    fn check(&self, context: &str) {
        let own =
            |at: &usize| self.cluster_has(*at, Block::Delayed) && !self.cluster_has(*at, Block::Allocated);
        let expected = (0..BLOCKS).step_by(1 << self.bits).filter(own).count() as u64;
        assert_eq!(self.reserved, expected, "{context}: the books");
        assert_eq!(self.tree.reserved_blocks(), expected << self.bits, "{context}: the tree");
        for at in (0..BLOCKS).step_by(1 << self.bits) {
            let both = self.cluster_has(at, Block::Delayed) && self.cluster_has(at, Block::Allocated);
            assert_eq!(self.tree.shares_cluster(LogicalBlock(at as u32)), both, "{context}: cluster of {at}");
        }
        for (at, block) in self.blocks.iter().enumerate() {
            let Some(extent) = self.tree.lookup(LogicalBlock(at as u32)) else {
                assert_ne!(*block, Block::Delayed, "{context}: block {at} is forgotten");
                continue;
            };
            let same = matches!(
                (extent.status, block),
                (Status::Hole, Block::Hole)
                    | (Status::Delayed, Block::Delayed)
                    | (Status::Written(_) | Status::Unwritten(_), Block::Allocated)
            );
            assert!(same, "{context}: block {at} is {block:?}, the tree says {:?}", extent.status);
        }
    }
}

#[test]
fn k_38_reservations_are_exact_after_every_step() {
    for seed in 0..24 {
        let bits = 1 + seed as u32 % 4;
        let mut random = fastrand::Rng::with_seed(seed);
        let mut model = Model {
            bits,
            tree: ExtentStatusTree::of(bits, &Arc::default()),
            blocks: [Block::Hole; BLOCKS],
            reserved: 0,
        };
        for step in 0..3000 {
            let start = random.usize(0..BLOCKS);
            let most = if random.bool() { 6 } else { BLOCKS };
            let end = random.usize(start + 1..=BLOCKS.min(start + most));
            let kind = random.u8(0..12);
            match kind {
                0..4 => model.reserve(start..end, false),
                4 => model.reserve(start..end, true),
                // As writeback does: a piece of what is delayed.
                5..8 => {
                    if let Some(first) = (start..BLOCKS).find(|at| model.blocks[*at] == Block::Delayed) {
                        let run =
                            (first..BLOCKS).take_while(|at| model.blocks[*at] == Block::Delayed).count();
                        let (released, taken) = model.allocate(first..first + random.usize(1..=run));
                        assert_eq!(
                            released, taken,
                            "seed {seed}, step {step}: what is reserved is what is allocated"
                        );
                    }
                }
                // As a write without delayed allocation, or fallocate.
                8 => drop(model.allocate(start..end)),
                9 => model.remove(start..BLOCKS),
                10 => model.remove(start..end),
                // Failed writeback.
                _ => {
                    let released = model.tree.remove_delayed(blocks(start as u32..end as u32));
                    model.reserved -= released;
                    for block in &mut model.blocks[start..end] {
                        if *block == Block::Delayed {
                            *block = Block::Hole;
                        }
                    }
                }
            }
            model.check(&format!("seed {seed}, step {step} (kind {kind}, {start}..{end})"));
        }
        model.remove(0..BLOCKS);
        assert_eq!((model.reserved, model.tree.reserved_blocks()), (0, 0), "seed {seed}");
    }
}

#[test]
fn the_last_cluster_of_the_largest_file_is_cut_off() {
    let tree = ExtentStatusTree::of(4, &Arc::default());
    let hole = Mapping { logical: LogicalBlock(0), len: u32::MAX, state: MappingState::Hole };
    tree.cache(&hole);
    let mut reserved = 0;
    let last = u32::MAX - 1;
    let reserve = |count| {
        reserved += count;
        Ok(())
    };
    assert_eq!(tree.reserve(blocks(last - 20..last + 1), reserve).expect("reserved"), Reservation::Done);
    assert_eq!(reserved, 2);
    assert_eq!(tree.remove(blocks(last - 2..u32::MAX)), 0);
    assert_eq!(tree.remove(blocks(0..u32::MAX)), 2);
}
