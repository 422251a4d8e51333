//! The extent status tree (ext4_es_tree): what lies where in one file, as all tasks see it.
//!
//! ```text
//!   block  0        8      20            21                      2^32-1
//!          [written][delay][ unwritten   ][hole ………………………………)   what is not in the tree is not known:
//!                                                       look on the device and add it
//! ```
//!
//! Invariants:
//! - Delayed blocks exist only here; they are never dropped to save memory. One block is reserved for each of
//!   them with [`SuperblockInfo::reserve_blocks`](ext4_core::meta::SuperblockInfo::reserve_blocks).
//! - With bigalloc whole clusters are reserved: as many as there are clusters that have a delayed block and
//!   no allocated one ([`clusters`]). Below, "reserved" counts clusters then.
//! - A delayed block has a dirty block of the page cache above it: both appear under the folio lock with no
//!   await between them, so that no dropped future leaves one without the other.
//! - What is read from the device only fills gaps: if the tree knows something, the tree is right.
//! - Extents that could be read again have a bound in each tree and in all trees of the file system together
//!   ([`Reclaimable`]): a tree that grows while all of them hold too much drops its own extents. Another file
//!   system in the process has a bound of its own.
//! - The sequence number grows with every change, under the lock. A user that kept an answer compares it; a
//!   false "changed" is allowed, a false "unchanged" would write data into blocks that belong to another file
//!   by now.
//!
//! Locks: one mutex, a leaf. A task that changes both the mapping on the device and the tree holds the lock
//! of the inode (i_data_sem) for writing around both. A writer of a hole holds `rwlock`, which keeps
//! truncation and allocation of holes away.

pub(crate) mod clusters;
#[cfg(test)]
mod random_tests;
pub(crate) mod status;
pub(crate) mod tree;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ext4_core::meta::extent_tree::Mapping;
use ext4_core::{LogicalBlock, Result};
use parking_lot::Mutex;

use crate::cache::extent_status::status::{Extent, Reservation, Status};
use crate::cache::extent_status::tree::{Reclaimable, Tree};

/// The extent status tree of one file. See the module.
#[derive(Debug, Default)]
pub(crate) struct ExtentStatusTree {
    tree: Mutex<Tree>,
    sequence: AtomicU64,
}

impl ExtentStatusTree {
    /// An empty tree that shares its bound with no other tree.
    #[cfg(test)]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty tree of a file system whose clusters have 2^`cluster_bits` blocks; its extents are counted in
    /// `reclaimable`.
    pub fn of(cluster_bits: u32, reclaimable: &Arc<Reclaimable>) -> Self {
        let tree = Tree::new(cluster_bits, reclaimable);
        Self { tree: Mutex::new(tree), ..Self::default() }
    }

    fn bump(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Release) + 1
    }

    /// The sequence number, which grows with every change.
    pub fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::Acquire)
    }

    /// How many blocks are delayed.
    pub fn delayed_blocks(&self) -> u64 {
        self.tree.lock().delayed_blocks
    }

    /// How many blocks are reserved; with bigalloc those of whole clusters.
    pub fn reserved_blocks(&self) -> u64 {
        let tree = self.tree.lock();
        match tree.clusters.bits {
            0 => tree.delayed_blocks,
            bits => tree.clusters.reserved << bits,
        }
    }

    /// The cluster of `block` was freed on the device. Returns true if delayed blocks shared it: the caller
    /// reserves it again. Always false without bigalloc. The caller holds the lock of the inode for writing.
    pub fn cluster_freed(&self, block: LogicalBlock) -> bool {
        self.tree.lock().clusters.freed(block)
    }

    /// Returns true if delayed blocks share the cluster of `block` with allocated ones.
    pub fn shares_cluster(&self, block: LogicalBlock) -> bool {
        self.tree.lock().clusters.is_shared(block)
    }

    /// What is known of `block` and of the blocks behind it; `None` if `block` is not known.
    pub fn lookup(&self, block: LogicalBlock) -> Option<Extent> {
        let tree = self.tree.lock();
        let (start, end, status) = tree.covering(block)?;
        let status = status.advance(block - start);
        Some(Extent { start: block, end, status, sequence: self.sequence() })
    }

    /// Adds what was found on the device, for blocks of which nothing is known yet. The caller holds the lock
    /// of the inode.
    pub fn cache(&self, mapping: &Mapping) {
        let end = mapping.logical.offset(mapping.len);
        let status = Status::from(mapping.state);
        let mut tree = self.tree.lock();
        let mut at = mapping.logical;
        while at < end {
            if let Some((_, known_end, _)) = tree.covering(at) {
                at = known_end;
                continue;
            }
            let gap_end = tree.extents.range(at..end).next().map_or(end, |(start, _)| *start);
            tree.put(at, gap_end, status.advance(at - mapping.logical));
            at = gap_end;
        }
        tree.prune(mapping.logical);
        self.bump();
    }

    /// Makes the holes of `range` delayed, all or none. `reserve` is asked for as many blocks as there are in
    /// holes; with bigalloc for the clusters that have neither delayed nor allocated blocks yet, which may be
    /// none. The caller holds `rwlock` for writing and the lock of the folio that covers the range.
    ///
    /// # Errors
    /// Those of `reserve`; nothing was changed then.
    pub fn reserve(
        &self,
        range: Range<LogicalBlock>,
        reserve: impl FnOnce(u64) -> Result<()>,
    ) -> Result<Reservation> {
        let mut tree = self.tree.lock();
        if tree.clusters.bits != 0 {
            let reservation = tree.reserve_clusters(range, reserve)?;
            self.bump();
            return Ok(reservation);
        }
        if tree.goes_on_behind_delayed(&range) {
            reserve(u64::from(range.end - range.start))?;
            tree.lengthen_delayed(&range);
            self.bump();
            return Ok(Reservation::Done);
        }
        let (mut at, mut holes) = (range.start, 0);
        while at < range.end {
            let Some((_, end, status)) = tree.covering(at) else {
                return Ok(Reservation::NotCached(at));
            };
            let stop = end.min(range.end);
            if status == Status::Hole {
                holes += u64::from(stop - at);
            }
            at = stop;
        }
        if holes == 0 {
            return Ok(Reservation::Done);
        }
        reserve(holes)?;
        tree.delay_holes(range);
        self.bump();
        Ok(Reservation::Done)
    }

    /// `range` was allocated or converted: sets its status, whatever it was before. Returns how many reserved
    /// blocks (clusters) that uses up, those of the delayed blocks in the range, and the new sequence number.
    /// The caller holds the lock of the inode for writing.
    pub fn set(&self, range: Range<LogicalBlock>, status: Status) -> (u64, u64) {
        let mut tree = self.tree.lock();
        let allocated = matches!(status, Status::Unwritten(_) | Status::Written(_));
        let released = tree.releasing(range.clone(), |tree| {
            if allocated {
                tree.share_clusters(&range);
            }
            let delayed = tree.carve(range.clone());
            tree.put(range.start, range.end, status);
            delayed
        });
        tree.prune(range.start);
        (released, self.bump())
    }

    /// The unwritten blocks of `range` were converted to written ones. The caller holds the lock of the inode
    /// for writing.
    pub fn set_written(&self, range: Range<LogicalBlock>) {
        let mut tree = self.tree.lock();
        let mut at = range.start;
        while at < range.end {
            let Some((start, end, status)) = tree.covering(at) else {
                at = tree.extents.range(at..range.end).next().map_or(range.end, |(start, _)| *start);
                continue;
            };
            let stop = end.min(range.end);
            if let Status::Unwritten(block) = status.advance(at - start) {
                tree.carve(at..stop);
                tree.put(at, stop, Status::Written(block));
            }
            at = stop;
        }
        self.bump();
    }

    /// Forgets `range`, its delayed blocks included. Returns how many blocks (clusters) need no longer be
    /// reserved; the caller releases them.
    pub fn remove(&self, range: Range<LogicalBlock>) -> u64 {
        let mut tree = self.tree.lock();
        let released = tree.releasing(range.clone(), |tree| tree.carve(range));
        self.bump();
        released
    }

    /// Forgets only the delayed blocks of `range`. Returns how many blocks (clusters) need no longer be
    /// reserved.
    pub fn remove_delayed(&self, range: Range<LogicalBlock>) -> u64 {
        let mut tree = self.tree.lock();
        let released = tree.releasing(range.clone(), |tree| {
            let (mut at, mut delayed) = (range.start, 0);
            while at < range.end {
                let Some((_, end, status)) = tree.covering(at) else {
                    at = tree.extents.range(at..range.end).next().map_or(range.end, |(start, _)| *start);
                    continue;
                };
                let stop = end.min(range.end);
                if status == Status::Delayed {
                    delayed += tree.carve(at..stop);
                    tree.put(at, stop, Status::Hole);
                }
                at = stop;
            }
            delayed
        });
        self.bump();
        released
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::extent_status::tree::{MAX_RECLAIMABLE, MAX_RECLAIMABLE_OF_ALL, MIN_RECLAIMABLE};
    use crate::testing::blocks;
    use ext4_core::BlockNumber;
    use ext4_core::LogicalBlock;
    use ext4_core::meta::extent_tree::MappingState;

    fn mapping(logical: u32, len: u32, state: MappingState) -> Mapping {
        Mapping { logical: LogicalBlock(logical), len, state }
    }

    /// A kept answer is valid while the sequence number is the one that it came with; 32 bits of it would
    /// wrap.
    #[test]
    fn k_24_the_sequence_goes_on_behind_32_bits() {
        let tree = ExtentStatusTree { sequence: AtomicU64::new(7), ..ExtentStatusTree::new() };
        tree.cache(&mapping(0, 10, MappingState::Written(BlockNumber(1000))));
        let kept = tree.lookup(LogicalBlock(3)).expect("known");
        tree.sequence.store(kept.sequence + (1 << 32) - 1, Ordering::Release);
        tree.remove(blocks(0..10));
        assert_ne!(kept.sequence, tree.sequence());
        assert_eq!(tree.sequence() as u32, kept.sequence as u32, "what 32 bits would have said");
    }

    /// A writer that made blocks delayed has a valid answer at once.
    #[test]
    fn k_25_k_19_what_was_just_reserved_is_delayed_and_fresh() {
        let tree = ExtentStatusTree::new();
        tree.cache(&mapping(0, 100, MappingState::Hole));
        let before = tree.sequence();
        assert_eq!(tree.reserve(blocks(5..9), |_| Ok(())).expect("room"), Reservation::Done);
        let extent = tree.lookup(LogicalBlock(5)).expect("known");
        assert_eq!(
            (extent.status, extent.end, extent.sequence),
            (Status::Delayed, LogicalBlock(9), tree.sequence())
        );
        assert_ne!(before, tree.sequence(), "an answer that says hole is stale");
        // The next step of a stream takes a short cut, and changes the sequence too.
        let before = tree.sequence();
        assert_eq!(tree.reserve(blocks(9..12), |_| Ok(())).expect("room"), Reservation::Done);
        assert_eq!(tree.lookup(LogicalBlock(5)).expect("known").end, LogicalBlock(12));
        assert_ne!(before, tree.sequence());
    }

    #[test]
    fn agrees_with_a_vector_of_blocks() {
        const BLOCKS: usize = 200;
        let mut random = fastrand::Rng::with_seed(11);
        let tree = ExtentStatusTree::new();
        let mut model: Vec<Option<Status>> = vec![None; BLOCKS];
        for _ in 0..20_000 {
            let start = random.usize(0..BLOCKS);
            let end = random.usize(start..=BLOCKS);
            let range = blocks(start as u32..end as u32);
            let physical = BlockNumber(random.u64(1000..1100));
            let status = |i: usize, status: Status| status.advance((i - start) as u32);
            match random.u8(0..5) {
                0 => {
                    let state = match random.u8(0..3) {
                        0 => MappingState::Hole,
                        1 => MappingState::Written(physical),
                        _ => MappingState::Unwritten(physical),
                    };
                    tree.cache(&mapping(range.start.0, range.end - range.start, state));
                    for (i, slot) in model.iter_mut().enumerate().take(end).skip(start) {
                        slot.get_or_insert(status(i, state.into()));
                    }
                }
                1 => {
                    let holes = model[start..end].iter().filter(|s| **s == Some(Status::Hole)).count();
                    let unknown = model[start..end].iter().position(Option::is_none);
                    let mut reserved = 0;
                    let result = tree.reserve(range, |n| {
                        reserved = n;
                        Ok(())
                    });
                    match unknown {
                        Some(at) => {
                            let at = LogicalBlock((start + at) as u32);
                            assert_eq!(result.expect("reserved"), Reservation::NotCached(at));
                        }
                        None => {
                            assert_eq!(reserved, holes as u64);
                            for slot in &mut model[start..end] {
                                if *slot == Some(Status::Hole) {
                                    *slot = Some(Status::Delayed);
                                }
                            }
                        }
                    }
                }
                2 => {
                    let delayed = model[start..end].iter().filter(|s| **s == Some(Status::Delayed)).count();
                    assert_eq!(tree.set(range, Status::Unwritten(physical)).0, delayed as u64);
                    for (i, slot) in model.iter_mut().enumerate().take(end).skip(start) {
                        *slot = Some(status(i, Status::Unwritten(physical)));
                    }
                }
                3 => {
                    tree.set_written(range);
                    for slot in &mut model[start..end] {
                        if let Some(Status::Unwritten(block)) = *slot {
                            *slot = Some(Status::Written(block));
                        }
                    }
                }
                _ => {
                    let delayed = model[start..end].iter().filter(|s| **s == Some(Status::Delayed)).count();
                    if random.bool() {
                        assert_eq!(tree.remove(range), delayed as u64);
                        model[start..end].fill(None);
                    } else {
                        assert_eq!(tree.remove_delayed(range), delayed as u64);
                        for slot in &mut model[start..end] {
                            if *slot == Some(Status::Delayed) {
                                *slot = Some(Status::Hole);
                            }
                        }
                    }
                }
            }
            for (i, expected) in model.iter().enumerate() {
                assert_eq!(
                    tree.lookup(LogicalBlock(i as u32)).map(|extent| extent.status),
                    *expected,
                    "block {i}"
                );
            }
            let delayed = model.iter().filter(|s| **s == Some(Status::Delayed)).count();
            assert_eq!(tree.delayed_blocks(), delayed as u64);
            let tree = tree.tree.lock();
            for ((start, (end, status)), (next, (_, next_status))) in
                tree.extents.iter().zip(tree.extents.iter().skip(1))
            {
                assert!(end <= next, "{start}..{end} and {next}");
                assert!(
                    end < next || status.advance(*end - *start) != *next_status,
                    "{start}..{end} goes on"
                );
            }
        }
    }

    #[test]
    fn a_stream_of_small_reservations_is_one_delayed_extent() {
        let tree = ExtentStatusTree::new();
        tree.cache(&mapping(0, u32::MAX, MappingState::Hole));
        for block in 0..1000 {
            tree.reserve(blocks(block..block + 1), |_| Ok(())).expect("reserved");
        }
        let extent = tree.lookup(LogicalBlock(3)).expect("known");
        assert_eq!((extent.start..extent.end, extent.status), (blocks(3..1000), Status::Delayed));
        assert_eq!(tree.tree.lock().extents.len(), 2);
    }

    #[test]
    fn delayed_blocks_survive_the_bound() {
        let tree = ExtentStatusTree::new();
        tree.cache(&mapping(0, 10, MappingState::Hole));
        tree.reserve(blocks(0..10), |_| Ok(())).expect("reserved");
        for i in 0..20_000 {
            tree.cache(&mapping(100 + 2 * i, 1, MappingState::Written(BlockNumber(7))));
        }
        assert!(tree.tree.lock().extents.len() <= MAX_RECLAIMABLE + 1);
        assert_eq!(tree.lookup(LogicalBlock(3)).map(|extent| extent.status), Some(Status::Delayed));
    }

    #[test]
    fn all_trees_together_have_a_bound() {
        let [here, elsewhere] = [Arc::default(), Arc::default()];
        let trees: Vec<_> = (0..80).map(|_| ExtentStatusTree::of(0, &here)).collect();
        let fill = |tree: &ExtentStatusTree, count: u32| {
            for i in 0..count {
                tree.cache(&mapping(2 * i, 1, MappingState::Written(BlockNumber(7))));
            }
        };
        for tree in &trees {
            fill(tree, 8000);
        }
        let held: usize = trees.iter().map(|tree| tree.tree.lock().extents.len()).sum();
        assert!(held <= MAX_RECLAIMABLE_OF_ALL + trees.len() * MIN_RECLAIMABLE, "{held}");
        assert!(held > MAX_RECLAIMABLE_OF_ALL / 2, "{held}");
        // The trees of another file system have a bound of their own.
        let other = ExtentStatusTree::of(0, &elsewhere);
        fill(&other, 8000);
        assert_eq!(other.tree.lock().extents.len(), 8000);
        // One more tree of this file system may hold none.
        let tree = ExtentStatusTree::of(0, &here);
        fill(&tree, 8000);
        assert!(tree.tree.lock().extents.len() < 8000);
        // A dropped tree makes room.
        drop((trees, tree));
        assert_eq!(here.0.load(Ordering::Relaxed), 0);
        let tree = ExtentStatusTree::of(0, &here);
        fill(&tree, 8000);
        assert_eq!(tree.tree.lock().extents.len(), 8000);
    }

    #[test]
    fn k_21_the_sequence_moves_with_every_change() {
        let tree = std::sync::Arc::new(ExtentStatusTree::new());
        let threads: Vec<_> = (0..4_u32)
            .map(|thread| {
                let tree = std::sync::Arc::clone(&tree);
                std::thread::spawn(move || {
                    for i in 0..1000 {
                        let before = tree.sequence();
                        let hole = MappingState::Hole;
                        tree.cache(&mapping(thread * 1_000_000 + i * 2, 1, hole));
                        assert!(tree.sequence() > before);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no panic");
        }
        assert_eq!(tree.sequence(), 4000);
    }
}
