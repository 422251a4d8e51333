//! Committed transactions whose blocks are not in their places yet, oldest first.
//!
//! Invariant: the log's tail does not pass a transaction as long as one of its blocks is here. Otherwise
//! recovery would miss a committed change.

use std::collections::VecDeque;

use ext4_core::device::BlockImage;
use ext4_core::meta::Buffer;
use ext4_core::{BlockNumber, TransactionId};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::log::Extent;

/// A committed block that is not in its place.
#[derive(Debug)]
struct Entry {
    /// The transaction that committed it last.
    id: TransactionId,
    image: BlockImage,
    /// Keeps the block in the cache: the device does not have it yet.
    buffer: Buffer,
}

/// A committed transaction whose part of the log is in use.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) extent: Extent,
    /// What it committed.
    blocks: Vec<BlockNumber>,
    /// How many of them are not in their places and not in a newer transaction.
    left: usize,
}

/// What waits to be written to its place.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    blocks: FxHashMap<BlockNumber, Entry>,
    /// Oldest first.
    pub(crate) transactions: VecDeque<Committed>,
    /// Blocks whose write is in flight.
    pub(crate) in_flight: FxHashSet<BlockNumber>,
    /// Blocks were written since the last flush.
    pub(crate) unflushed: bool,
    /// So many log blocks are wanted free.
    pub(crate) wanted: u32,
    /// The log is to be emptied.
    pub(crate) empty: bool,
    /// The superblock is being written to say that the log is empty: nothing may be added to it meanwhile.
    pub(crate) emptying: bool,
    /// How often the log was found or made empty.
    pub(crate) emptied: u64,
}

impl Checkpoints {
    /// Asks for `blocks` free log blocks.
    pub(crate) fn want(&mut self, blocks: u32) {
        self.wanted = self.wanted.max(blocks);
    }

    /// True where the log is to be emptied.
    pub(crate) fn is_to_be_emptied(&self) -> bool {
        self.empty
    }

    /// True where no committed transaction is in the log.
    pub(crate) fn is_empty(&self) -> bool {
        self.transactions.is_empty()
    }

    /// True while nothing may be added to the log.
    pub(crate) fn is_emptying(&self) -> bool {
        self.emptying
    }

    /// Adds a committed transaction. Returns what is to be dropped without the lock.
    pub(crate) fn add(
        &mut self,
        extent: Extent,
        frozen: Vec<Frozen>,
        revoked: &[BlockNumber],
    ) -> Vec<(BlockImage, Buffer)> {
        let mut released = Vec::new();
        let blocks = frozen.iter().map(|frozen| frozen.block).collect();
        self.transactions.push_back(Committed { extent, blocks, left: frozen.len() });
        for Frozen { block, image, buffer } in frozen {
            if let Some(old) = self.blocks.insert(block, Entry { id: extent.id, image, buffer }) {
                self.one_less(old.id);
                released.push((old.image, old.buffer));
            }
        }
        for block in revoked {
            if let Some(old) = self.blocks.remove(block) {
                self.one_less(old.id);
                released.push((old.image, old.buffer));
            }
        }
        released
    }

    fn one_less(&mut self, id: TransactionId) {
        // Ids follow one another, so the distance from the oldest is the index.
        let Some(oldest) = self.transactions.front() else { return };
        let index = id.0.wrapping_sub(oldest.extent.id.0) as usize;
        if let Some(transaction) = self.transactions.get_mut(index) {
            debug_assert_eq!(transaction.extent.id, id);
            transaction.left -= 1;
        }
    }

    /// The blocks to write so that `wanted` log blocks get free beyond `free`, in device order.
    pub(crate) fn select(&self, wanted: u32) -> Vec<(BlockNumber, TransactionId)> {
        let mut gained = 0_u32;
        let mut blocks = Vec::new();
        for transaction in &self.transactions {
            if gained >= wanted {
                break;
            }
            gained = gained.saturating_add(transaction.extent.count);
            if transaction.left == 0 {
                continue;
            }
            let id = transaction.extent.id;
            let theirs = |block: &&BlockNumber| self.blocks.get(block).is_some_and(|entry| entry.id == id);
            blocks.extend(transaction.blocks.iter().filter(theirs).map(|block| (*block, id)));
        }
        blocks.sort_unstable();
        blocks
    }

    /// The images of those of `lot` that are still what they were when they were selected; now in flight.
    pub(crate) fn take_lot(
        &mut self,
        lot: &[(BlockNumber, TransactionId)],
    ) -> Vec<(BlockNumber, BlockImage)> {
        let images: Vec<_> = lot
            .iter()
            .filter_map(|(block, id)| {
                let entry = self.blocks.get(block).filter(|entry| entry.id == *id)?;
                Some((*block, entry.image.clone()))
            })
            .collect();
        self.in_flight.extend(images.iter().map(|(block, _)| *block));
        images
    }

    /// The lot is in its place.
    pub(crate) fn finish_lot(&mut self, lot: &[(BlockNumber, TransactionId)]) -> Vec<(BlockImage, Buffer)> {
        let mut released = Vec::new();
        self.in_flight.clear();
        self.unflushed = true;
        for (block, id) in lot {
            if self.blocks.get(block).is_some_and(|entry| entry.id == *id)
                && let Some(entry) = self.blocks.remove(block)
            {
                self.one_less(*id);
                released.push((entry.image, entry.buffer));
            }
        }
        released
    }

    /// The log blocks of the oldest transactions that have nothing left to write, and how many those are.
    pub(crate) fn finished(&self) -> (usize, u32) {
        let finished = self.transactions.iter().take_while(|transaction| transaction.left == 0);
        finished.fold((0, 0), |(count, blocks), transaction| (count + 1, blocks + transaction.extent.count))
    }
}

impl Checkpoints {
    /// True where transaction `id` has been added, though perhaps it still counts as committing.
    pub(crate) fn holds(&self, id: TransactionId) -> bool {
        self.transactions.back().is_some_and(|last| last.extent.id == id)
    }
}

/// A block as a committing transaction froze it.
pub(crate) struct Frozen {
    pub(crate) block: BlockNumber,
    pub(crate) image: BlockImage,
    pub(crate) buffer: Buffer,
}
