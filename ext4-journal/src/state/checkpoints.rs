//! The checkpoint list: committed blocks that are not at their places yet, and the transactions whose part of
//! the log they keep in use.
//!
//! Each block is known by its latest committed image. A block that a newer transaction commits again leaves
//! the older one's list: the newer copy in the log replaces the older. So a block that changes all the time,
//! such as a bitmap, is seldom written.
//!
//! Invariants:
//! - Only images of committed transactions are here. Otherwise a crash would show half an operation.
//! - A block that a committed transaction revoked is not here any more; see [`crate::log`]'s revokes.
//! - Transactions stand in the order of their ids, without a gap, so that an id gives the index.

use std::collections::VecDeque;

use ext4_core::device::BlockImage;
use ext4_core::meta::Buffer;
use ext4_core::{BlockNumber, TransactionId};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::log::Extent;

/// A block as a committing transaction froze it.
pub(crate) struct Frozen {
    pub(crate) block: BlockNumber,
    pub(crate) image: BlockImage,
    pub(crate) buffer: Buffer,
}

/// A committed block that is not at its place.
#[derive(Debug)]
struct Entry {
    /// The transaction that committed it last.
    id: TransactionId,
    image: BlockImage,
    /// Keeps the block in the buffer cache: the device does not have it yet.
    buffer: Buffer,
}

/// A committed transaction whose part of the log is in use.
#[derive(Debug)]
struct Committed {
    extent: Extent,
    /// The blocks that it committed.
    blocks: Vec<BlockNumber>,
    /// How many of them are neither at their places nor in a newer transaction.
    left: usize,
}

/// What the checkpoint task has to do, and what it is asked for.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    blocks: FxHashMap<BlockNumber, Entry>,
    /// Oldest first.
    transactions: VecDeque<Committed>,
    /// Blocks whose write to their places is in flight.
    in_flight: FxHashSet<BlockNumber>,
    /// True if blocks were written to their places since the last flush.
    unflushed: bool,
    /// Free log blocks that a handle or a commit waits for.
    wanted: u32,
    /// True if the log is to be emptied.
    pub(crate) empty: bool,
    /// True while the superblock is written to say that the log is empty: nothing may be added to the log
    /// then.
    pub(crate) emptying: bool,
    /// How often the log was found or made empty.
    emptied: u64,
}

impl Checkpoints {
    /// Asks for `blocks` free log blocks.
    pub(crate) fn want(&mut self, blocks: u32) {
        self.wanted = self.wanted.max(blocks);
    }

    /// The free log blocks that were asked for since the last call.
    pub(crate) fn take_wanted(&mut self) -> u32 {
        std::mem::take(&mut self.wanted)
    }

    /// True if the log is to be emptied.
    pub(crate) fn is_to_be_emptied(&self) -> bool {
        self.empty
    }

    /// True if no committed transaction is in the log.
    pub(crate) fn is_empty(&self) -> bool {
        self.transactions.is_empty()
    }

    /// True while nothing may be added to the log.
    pub(crate) fn is_emptying(&self) -> bool {
        self.emptying
    }

    /// How often the log was found or made empty.
    pub(crate) fn emptied(&self) -> u64 {
        self.emptied
    }

    /// Notes that the log is empty, on the medium too.
    pub(crate) fn note_empty(&mut self) {
        self.emptied += 1;
        self.empty = false;
    }

    /// Adds a committed transaction. Returns what the caller drops when it has given the state's lock back.
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

    /// Counts one block less that transaction `id` has to write.
    fn one_less(&mut self, id: TransactionId) {
        // Ids follow one another, so the distance from the oldest is the index.
        let Some(oldest) = self.transactions.front() else { return };
        let index = id.0.wrapping_sub(oldest.extent.id.0) as usize;
        if let Some(transaction) = self.transactions.get_mut(index) {
            debug_assert_eq!(transaction.extent.id, id);
            transaction.left -= 1;
        }
    }

    /// The blocks to write so that `wanted` more log blocks become free, in device order.
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

    /// Puts the blocks of `lot` in flight that are still as they were when they were selected: their images.
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

    /// Notes that the blocks of `lot` are at their places. Returns what the caller drops without the state's
    /// lock.
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

    /// Notes that the writes of a lot have failed: none is in flight any more.
    pub(crate) fn fail_lot(&mut self) {
        self.in_flight.clear();
    }

    /// True if a write of one of `blocks` is in flight.
    pub(crate) fn is_in_flight(&self, blocks: &[BlockNumber]) -> bool {
        blocks.iter().any(|block| self.in_flight.contains(block))
    }

    /// Returns true if blocks were written to their places since the last call.
    pub(crate) fn take_unflushed(&mut self) -> bool {
        std::mem::take(&mut self.unflushed)
    }

    /// The number of oldest transactions that have nothing left to write, and the log blocks that they take.
    pub(crate) fn finished(&self) -> (usize, u32) {
        let finished = self.transactions.iter().take_while(|transaction| transaction.left == 0);
        finished.fold((0, 0), |(count, blocks), transaction| (count + 1, blocks + transaction.extent.count))
    }

    /// Drops the `count` oldest transactions: their part of the log is free.
    pub(crate) fn drop_oldest(&mut self, count: usize) {
        self.transactions.drain(..count);
    }

    /// The part of the log of the oldest transaction but `skip`.
    pub(crate) fn extent_after(&self, skip: usize) -> Option<Extent> {
        self.transactions.get(skip).map(|transaction| transaction.extent)
    }

    /// True if transaction `id` has been added, although it may still count as committing.
    pub(crate) fn holds(&self, id: TransactionId) -> bool {
        self.transactions.back().is_some_and(|last| last.extent.id == id)
    }
}
