//! The log as a ring of blocks on a device.
//!
//! ```text
//!   log block   0            first                                last        max_len
//!               superblock   [ tail ─────► head ··· free ··· ]    fast commits
//!                              └── wraps around ──┘
//! ```
//!
//! The area for fast commits begins one block behind the ring's end, as jbd2 has it (`j_fc_first`): block
//! `last` belongs to neither.
//!
//! [`Log`] maps log blocks to the device, reads and writes them; [`Reader`] reads the ring ahead; [`Space`]
//! accounts for the ring.
//!
//! Invariant: a log block that is out of bounds is an error and no access: numbers of log blocks come from
//! the device.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)
)]

mod content;
mod create;
mod header;
mod location;
mod reader;
mod revoke;
mod space;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ext4_core::device::{AlignedBuffer, Bio, BioFlags, BlockDevice, EndIo, Operation, Segment};
use ext4_core::{BlockNumber, BlockSize, Error, Result};

pub(crate) use content::descriptors_and_images;
pub use create::{NewJournal, attach_user, detach_user, external_superblock_block};
pub use header::JournalHeader;
pub use location::JournalLocation;
pub(crate) use reader::Reader;
pub(crate) use revoke::{Revokes, revoke_blocks};
pub(crate) use space::{Extent, Space};

use crate::format::Superblock;

/// Log blocks that are contiguous on the device.
#[derive(Clone, Copy, Debug)]
struct Run {
    log: u32,
    device: BlockNumber,
    count: u32,
}

/// The log's blocks on their device.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) block_size: BlockSize,
    runs: Vec<Run>,
    available: u32,
    /// The block of the journal superblock.
    pub(crate) superblock: u32,
    /// The ring: `first` up to, not including, `last`.
    pub(crate) first: u32,
    last: AtomicU32,
}

impl Log {
    /// The log at `location` and its superblock, verified.
    ///
    /// # Errors
    /// - I/O: the device's.
    /// - Corrupt: `location` is empty or lies outside the device, or the superblock is wrong.
    /// - Unsupported: the superblock has a feature that is not known.
    pub(crate) async fn open(location: JournalLocation) -> Result<(Self, Superblock)> {
        let block_size = location.block_size;
        let mut log = Self::new(location)?;
        let superblock = log.read_block(log.superblock).await?;
        let superblock = Superblock::read(&superblock, block_size, log.available())?;
        if superblock.first() <= log.superblock {
            let problem =
                format!("the log begins in block {}, at or before its superblock", superblock.first());
            return Err(Error::corrupt("journal superblock", problem));
        }
        log.set_ring(superblock.first(), superblock.last());
        Ok((log, superblock))
    }

    /// The log at `location`; [`Log::set_ring`] follows once the superblock has been read.
    fn new(location: JournalLocation) -> Result<Self> {
        let blocks = location.device.geometry().size >> location.block_size.bits();
        let mut runs = Vec::with_capacity(location.runs.len());
        let mut available = 0_u32;
        for (device, count) in location.runs {
            if count == 0 {
                continue;
            }
            if device.offset(u64::from(count)).0 > blocks {
                return Err(Error::corrupt(
                    "journal",
                    format!("blocks {device}+{count} lie outside the device of {blocks} blocks"),
                ));
            }
            runs.push(Run { log: available, device, count });
            available = available
                .checked_add(count)
                .ok_or_else(|| Error::corrupt("journal", "more than 2^32 blocks"))?;
        }
        if runs.is_empty() {
            return Err(Error::corrupt("journal", "it has no blocks"));
        }
        Ok(Self {
            device: location.device,
            block_size: location.block_size,
            runs,
            available,
            superblock: location.superblock,
            first: 1,
            last: AtomicU32::new(1),
        })
    }

    /// The number of blocks that there is room for.
    fn available(&self) -> u32 {
        self.available
    }

    /// The ring's bounds.
    fn set_ring(&mut self, first: u32, last: u32) {
        self.first = first;
        self.set_last(last);
    }

    /// Lets the ring, which is empty, end at block `last`: behind it lies the area for fast commits.
    pub(crate) fn set_last(&self, last: u32) {
        self.last.store(last, Ordering::Relaxed);
    }

    /// The block behind the ring's last. It changes only before the journal runs.
    pub(crate) fn last(&self) -> u32 {
        self.last.load(Ordering::Relaxed)
    }

    /// The ring's size in blocks.
    pub(crate) fn ring(&self) -> u32 {
        self.last().saturating_sub(self.first)
    }

    /// The log block `count` blocks after `block` in the ring. `block` lies in the ring.
    pub(crate) fn advance(&self, block: u32, count: u32) -> u32 {
        let skip = u64::from(block.saturating_sub(self.first)).saturating_add(u64::from(count));
        let offset = skip.checked_rem(u64::from(self.ring())).unwrap_or(0);
        self.first.saturating_add(u32::try_from(offset).expect("less than the ring"))
    }

    /// Returns true if `block` of the log's device is one of the log's own.
    pub(crate) fn owns(&self, block: BlockNumber) -> bool {
        self.runs.iter().any(|run| block >= run.device && block < run.device.offset(u64::from(run.count)))
    }

    /// The place of log block `block` on the device, and the number of contiguous blocks that begin there.
    fn locate(&self, block: u32) -> Result<(BlockNumber, u32)> {
        let index = self.runs.partition_point(|run| run.log <= block).saturating_sub(1);
        let place = |run: &Run| {
            let skip = block.checked_sub(run.log)?;
            let left = run.count.checked_sub(skip).filter(|left| *left > 0)?;
            Some((run.device.offset(u64::from(skip)), left))
        };
        self.runs.get(index).and_then(place).ok_or_else(|| self.outside(block))
    }

    fn outside(&self, block: u32) -> Error {
        Error::corrupt("journal", format!("log block {block} of {}", self.available))
    }

    /// The number of blocks from log block `block` to the ring's end, at least one.
    fn left_in_ring(&self, block: u32) -> Result<u32> {
        let left = self.last().checked_sub(block).filter(|left| *left > 0);
        left.ok_or_else(|| self.outside(block))
    }

    fn byte(&self, block: BlockNumber) -> Result<u64> {
        block
            .byte(self.block_size)
            .ok_or_else(|| Error::corrupt(format!("block {block}"), "past the end of any device"))
    }

    /// Reads one log block, the superblock for instance.
    pub(crate) async fn read_block(&self, block: u32) -> Result<AlignedBuffer> {
        let (device, _) = self.locate(block)?;
        self.device.read_at(self.byte(device)?, self.block_size.len()).await
    }

    /// Writes the superblock's block.
    pub(crate) async fn write_superblock(&self, block: &[u8], flags: BioFlags) -> Result<()> {
        let (device, _) = self.locate(self.superblock)?;
        let segments = vec![Segment::Owned(AlignedBuffer::copied(block)?)];
        self.device.write_at(self.byte(device)?, segments, flags | BioFlags::META | BioFlags::SYNC).await
    }

    /// Writes the superblock's block without waiting for it.
    pub(crate) fn submit_superblock(&self, block: &[u8]) -> Result<()> {
        let (device, _) = self.locate(self.superblock)?;
        let segments = vec![Segment::Owned(AlignedBuffer::copied(block)?)];
        let flags = BioFlags::META | BioFlags::SYNC;
        let bio = Bio::new(Operation::Write, flags, self.byte(device)?, segments, Box::new(drop));
        self.device.submit(vec![bio]);
        Ok(())
    }

    /// Returns true if [`Log::write`] writes `count` blocks from log block `start` on as one transfer, which
    /// the device does not split either.
    pub(crate) fn is_one_transfer(&self, start: u32, count: usize) -> bool {
        let geometry = self.device.geometry();
        let most = (geometry.max_transfer >> self.block_size.bits()).min(geometry.max_segments.max(1));
        let Ok((_, contiguous)) = self.locate(start) else { return false };
        let contiguous = contiguous.min(self.last().saturating_sub(start));
        u32::try_from(count).is_ok_and(|count| count <= most.min(contiguous))
    }

    /// Writes `blocks` from log block `start` of the ring on, in as few transfers as the log's runs and the
    /// device allow, and waits for all of them.
    pub(crate) async fn write(&self, start: u32, blocks: Vec<Segment>, flags: BioFlags) -> Result<()> {
        let limit = self.device.geometry().max_segments.clamp(1, 1024);
        let (mut at, mut left) = (start, u32::try_from(blocks.len()).unwrap_or(u32::MAX));
        let mut blocks = blocks.into_iter();
        let mut transfers = Vec::new();
        while left > 0 {
            let (device, contiguous) = self.locate(at)?;
            let count = contiguous.min(self.left_in_ring(at)?).min(left).min(limit);
            let segments: Vec<Segment> = blocks.by_ref().take(count as usize).collect();
            transfers.push((Operation::Write, self.byte(device)?, u64::from(count), segments));
            at = self.advance(at, count);
            left = left.saturating_sub(count);
        }
        self.submit_all(transfers, flags | BioFlags::META | BioFlags::SYNC).await
    }

    /// Writes `blocks` from log block `start` on, outside the ring: the first sector of the first of them
    /// last, with `flags`, when all the rest has completed. So whatever a crash tears, the first sector is
    /// there only if the rest is, and with a preflush and FUA both are durable.
    pub(crate) async fn write_first_sector_last(
        &self,
        start: u32,
        blocks: &[Vec<u8>],
        flags: BioFlags,
    ) -> Result<()> {
        let owned = |bytes: &[u8]| AlignedBuffer::copied(bytes).map(Segment::Owned);
        let Some((first, others)) = blocks.split_first() else { return Ok(()) };
        let sector = (self.device.geometry().logical_block_size as usize).min(first.len());
        let (head, rest) = first.split_at(sector);
        let at = self.byte(self.locate(start)?.0)?;
        if !others.is_empty() {
            let others = others.iter().map(|block| owned(block)).collect::<Result<_>>()?;
            self.write_area(start.saturating_add(1), others, BioFlags::empty()).await?;
        }
        let mut flags = flags;
        if !rest.is_empty() {
            let mut own = BioFlags::META | BioFlags::SYNC;
            if flags.contains(BioFlags::PREFLUSH | BioFlags::FUA) && self.device.geometry().fua_flushes() {
                // The flush behind this write is the one before the first sector.
                own |= BioFlags::FUA;
                flags.remove(BioFlags::PREFLUSH);
            }
            let behind = at.saturating_add(sector as u64);
            self.device.write_at(behind, vec![owned(rest)?], own).await?;
        }
        self.device.write_at(at, vec![owned(head)?], flags | BioFlags::META | BioFlags::SYNC).await
    }

    /// Writes zeros over the first sector of log block `block`.
    pub(crate) async fn zero_first_sector(&self, block: u32, flags: BioFlags) -> Result<()> {
        let sector = self.device.geometry().logical_block_size as usize;
        let zeros = AlignedBuffer::zeroed(sector.min(self.block_size.len()))?;
        let at = self.byte(self.locate(block)?.0)?;
        let flags = flags | BioFlags::META | BioFlags::SYNC;
        self.device.write_at(at, vec![Segment::Owned(zeros)], flags).await
    }

    /// Writes `blocks` from log block `start` on, outside the ring, and waits for them: in one transfer with
    /// `flags` if the log's runs and the device allow it. If they do not, the last transfer has the flags and
    /// the others have completed before it, so that its preflush covers them.
    pub(crate) async fn write_area(&self, start: u32, blocks: Vec<Segment>, flags: BioFlags) -> Result<()> {
        let limit = self.device.geometry().max_segments.max(1);
        let (mut at, mut left) = (start, u32::try_from(blocks.len()).unwrap_or(u32::MAX));
        let mut blocks = blocks.into_iter();
        let mut transfers = Vec::new();
        while left > 0 {
            let (device, contiguous) = self.locate(at)?;
            let count = contiguous.min(left).min(limit);
            let segments: Vec<Segment> = blocks.by_ref().take(count as usize).collect();
            transfers.push((Operation::Write, self.byte(device)?, u64::from(count), segments));
            at = at.saturating_add(count);
            left = left.saturating_sub(count);
        }
        let Some(last) = transfers.pop() else { return Ok(()) };
        let all = BioFlags::META | BioFlags::SYNC;
        if !transfers.is_empty() {
            self.submit_all(transfers, all).await?;
        }
        self.submit_all(vec![last], flags | all).await
    }

    /// Zeros log blocks `first..end`.
    pub(crate) async fn zero(&self, first: u32, end: u32) -> Result<()> {
        let mut transfers = Vec::new();
        let mut at = first;
        while at < end {
            let (device, contiguous) = self.locate(at)?;
            let count = contiguous.min(end.saturating_sub(at));
            transfers.push((Operation::WriteZeroes, self.byte(device)?, u64::from(count), Vec::new()));
            at = at.saturating_add(count);
        }
        self.submit_all(transfers, BioFlags::META).await
    }

    async fn submit_all(
        &self,
        transfers: Vec<(Operation, u64, u64, Vec<Segment>)>,
        flags: BioFlags,
    ) -> Result<()> {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let mut plug = Vec::with_capacity(transfers.len());
        for (operation, offset, blocks, segments) in transfers {
            let sender = sender.clone();
            let end_io: EndIo = Box::new(move |completion| drop(sender.send(completion.result)));
            let len = blocks << self.block_size.bits();
            plug.push(Bio { operation, flags, offset, len, segments, end_io });
        }
        drop(sender);
        self.device.submit(plug);
        let mut first_error = Ok(());
        while let Some(result) = receiver.recv().await {
            first_error = first_error.and(result);
        }
        first_error
    }
}
