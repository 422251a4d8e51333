//! The orphan file in memory: its blocks, which slots are taken, and which inode is in which.
//!
//! The buffers are held as long as the file system is mounted, so adding and removing an orphan waits for
//! nothing.
//!
//! Invariant: a slot that memory calls free is 0 in the block; it is taken in memory before the block changes
//! and given back after it, so no two inodes are ever written to one slot.

use std::collections::hash_map::Entry;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::can_be_orphan;
use crate::error::{Error, Result};
use crate::format::features::Compat;
use crate::format::orphan_file;
use crate::format::superblock::Superblock;
use crate::meta::extent_tree::MappingState;
use crate::meta::{BlockKind, Buffer, SuperblockInfo, Transaction, Verifier, block_map, inode_table};
use crate::types::{BlockNumber, InodeNumber, LogicalBlock};

/// The largest orphan file: mke2fs makes at most 512 blocks.
const MAX_BLOCKS: u64 = 1 << 16;

/// A slot: the number of the block in the file, and of the slot in it.
type Slot = (usize, usize);

#[derive(Debug)]
struct State {
    /// For each block a bit for each slot that is taken.
    taken: Vec<Vec<u64>>,
    /// For each block how many slots are free.
    free: Vec<usize>,
    /// Where each inode is. One that a damaged file holds twice has the other slot in `more`.
    slots: FxHashMap<InodeNumber, Slot>,
    more: Vec<(InodeNumber, Slot)>,
    /// The block where a free slot was found last.
    hint: usize,
}

impl State {
    /// Takes a free slot.
    fn take(&mut self) -> Option<Slot> {
        let count = self.free.len();
        let block = (0..count).map(|i| (self.hint + i) % count).find(|block| self.free[*block] > 0)?;
        let words = &mut self.taken[block];
        let word = words.iter().position(|word| *word != u64::MAX)?;
        let bit = words[word].trailing_ones() as usize;
        words[word] |= 1 << bit;
        self.free[block] -= 1;
        self.hint = block;
        Some((block, word * 64 + bit))
    }

    fn give_back(&mut self, (block, slot): Slot) {
        self.taken[block][slot / 64] &= !(1 << (slot % 64));
        self.free[block] += 1;
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct OrphanFile {
    blocks: Vec<Buffer>,
    state: Mutex<State>,
}

impl OrphanFile {
    /// Reads the file; `None` if the file system has none.
    pub async fn load(info: &SuperblockInfo, superblock: &Superblock) -> Result<Option<Self>> {
        if !info.features().compat.contains(Compat::ORPHAN_FILE) {
            return Ok(None);
        }
        let number = InodeNumber(superblock.orphan_file_inum);
        let inode = inode_table::read_inode(info, number).await?;
        let what = || format!("orphan file, inode {number}");
        let count = inode.size >> info.block_size().bits();
        if inode.links_count == 0 || count == 0 || count > MAX_BLOCKS {
            return Err(Error::corrupt(what(), format!("{} bytes, {} links", inode.size, inode.links_count)));
        }
        let seed = info.owner(&inode).checksum_seed();
        let mut blocks = Vec::new();
        let mut logical = 0;
        while u64::from(logical) < count {
            let run = block_map::lookup(info, &inode, LogicalBlock(logical)).await?;
            let MappingState::Written(first) = run.state else {
                return Err(Error::corrupt(what(), format!("block {logical} is a hole")));
            };
            let len = u64::from(run.len).min(count - u64::from(logical));
            info.cache.prefetch(first, u32::try_from(len).unwrap_or(0));
            for block in (0..len).map(|i| first.offset(i)) {
                blocks.push(info.cache.read(block, &OrphansVerifier { seed }).await?);
            }
            logical += u32::try_from(len).unwrap_or(u32::MAX);
        }
        let state = Mutex::new(scan(info, &blocks));
        Ok(Some(Self { blocks, state }))
    }

    /// The inodes in the file, in its order.
    pub fn inodes(&self) -> Vec<InodeNumber> {
        let state = self.state.lock();
        let mut slots: Vec<(Slot, InodeNumber)> =
            state.slots.iter().map(|(inode, slot)| (*slot, *inode)).collect();
        slots.sort_unstable();
        slots.into_iter().map(|(_, inode)| inode).collect()
    }

    /// Returns true if every slot is free.
    pub fn is_empty(&self) -> bool {
        let per_block =
            self.blocks.first().map_or(0, |block| block.read(|bytes| orphan_file::slots(bytes).count()));
        self.state.lock().free.iter().all(|free| *free == per_block)
    }

    /// Returns true if `inode` is in the file.
    pub fn contains(&self, inode: InodeNumber) -> bool {
        self.state.lock().slots.contains_key(&inode)
    }

    /// Returns true if it added `inode`, which is not there; false if the file is full.
    pub fn add(&self, transaction: &dyn Transaction, inode: InodeNumber) -> Result<bool> {
        let Some(slot) = self.state.lock().take() else { return Ok(false) };
        if let Err(error) = self.write(transaction, slot, inode.0) {
            self.state.lock().give_back(slot);
            return Err(error);
        }
        self.state.lock().slots.insert(inode, slot);
        Ok(true)
    }

    /// Takes `inode` out; no-op if it is not there.
    pub fn remove(&self, transaction: &dyn Transaction, inode: InodeNumber) -> Result<()> {
        loop {
            let slot = {
                let state = self.state.lock();
                let Some(slot) = state.slots.get(&inode) else { return Ok(()) };
                *slot
            };
            self.write(transaction, slot, 0)?;
            let mut state = self.state.lock();
            state.give_back(slot);
            state.slots.remove(&inode);
            if let Some(at) = state.more.iter().position(|(other, _)| *other == inode) {
                let (_, slot) = state.more.swap_remove(at);
                state.slots.insert(inode, slot);
            }
        }
    }

    fn write(&self, transaction: &dyn Transaction, (block, slot): Slot, inode: u32) -> Result<()> {
        self.blocks[block].modify(transaction, |bytes| orphan_file::set_slot(bytes, slot, inode))
    }
}

/// The verifier of a block of the orphan file.
struct OrphansVerifier {
    seed: Option<u32>,
}

impl Verifier for OrphansVerifier {
    fn kind(&self) -> BlockKind {
        BlockKind::OrphanFile { seed: self.seed }
    }

    fn verify(&self, block: BlockNumber, bytes: &[u8]) -> Result<()> {
        orphan_file::verify(bytes, block, self.seed)
            .map_err(|problem| Error::corrupt(format!("block {block}: orphan file"), problem))
    }
}

/// Which slots are taken. A number that can be no orphan keeps its slot, as in the kernel: only a checker
/// knows what it meant.
fn scan(info: &SuperblockInfo, blocks: &[Buffer]) -> State {
    let per_block = orphan_file::slots_per_block(info.block_size());
    let mut state =
        State { taken: Vec::new(), free: Vec::new(), slots: FxHashMap::default(), more: Vec::new(), hint: 0 };
    for (block, buffer) in blocks.iter().enumerate() {
        // Bits past the last slot are taken for good.
        let mut words = vec![0_u64; per_block.div_ceil(64)];
        if let Some(last) = words.last_mut().filter(|_| !per_block.is_multiple_of(64)) {
            *last = u64::MAX << (per_block % 64);
        }
        let mut free = per_block;
        buffer.read(|bytes| {
            for (slot, inode) in orphan_file::slots(bytes).enumerate().filter(|(_, inode)| *inode != 0) {
                words[slot / 64] |= 1 << (slot % 64);
                free -= 1;
                let number = InodeNumber(inode);
                if !can_be_orphan(info, inode) {
                    tracing::warn!(inode, "the orphan file holds what can be no orphan");
                    continue;
                }
                match state.slots.entry(number) {
                    Entry::Occupied(_) => state.more.push((number, (block, slot))),
                    Entry::Vacant(place) => drop(place.insert((block, slot))),
                }
            }
        });
        state.taken.push(words);
        state.free.push(free);
    }
    state
}
