//! The log as a ring of blocks on a device.
//!
//! ```text
//!   log block   0            first                                last        max_len
//!               superblock   [ tail ─────► head ··· free ··· ]    fast commits
//!                              └── wraps around ──┘
//! ```
//!
//! The area for fast commits begins one block behind the ring's end, as jbd2 has it (`j_fc_first`): block
//! `last` is not used.
//!
//! [`Log`] maps log blocks to the device, reads and writes them; [`Space`] accounts for the ring.
//!
//! Invariant: `free` counts only blocks that the superblock *on the medium* no longer claims: it grows after
//! the tail has moved there, never before. Were it to grow earlier, a crash could find the tail pointing at
//! blocks that a newer transaction had already written over, and recovery would stop before transactions that
//! had been reported durable.
//!
//! Invariant: one block of the ring always stays free, so that a full log and an empty one differ.

pub(crate) mod content;
pub(crate) mod create;
pub(crate) mod header;
pub(crate) mod location;
pub(crate) mod revoke;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ext4_core::device::{AlignedBuffer, Bio, BioFlags, BlockDevice, EndIo, Operation, Segment};
use ext4_core::{BlockNumber, BlockSize, Error, Result, TransactionId};

use crate::format::superblock::Superblock;
use crate::log::location::JournalLocation;

/// How much is read ahead at a time: from the least, doubled as long as the reader goes on where it stopped.
const READ_AHEAD: std::ops::RangeInclusive<usize> = 16 << 10..=256 << 10;

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
    /// The device's; corrupt or unsupported by name.
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

    /// The log at `location`; [`Log::set_ring`] follows once the superblock was read.
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

    /// How many blocks there is room for.
    fn available(&self) -> u32 {
        self.available
    }

    /// The ring's bounds.
    fn set_ring(&mut self, first: u32, last: u32) {
        self.first = first;
        self.set_last(last);
    }

    /// Lets the ring, which is empty, end at block `last`: what lies behind it is the area for fast commits.
    pub(crate) fn set_last(&self, last: u32) {
        self.last.store(last, Ordering::Relaxed);
    }

    /// The block behind the ring's last. It changes only before the journal runs.
    pub(crate) fn last(&self) -> u32 {
        self.last.load(Ordering::Relaxed)
    }

    /// The ring's size in blocks.
    pub(crate) fn ring(&self) -> u32 {
        self.last() - self.first
    }

    /// The log block `count` blocks after `block` in the ring.
    pub(crate) fn advance(&self, block: u32, count: u32) -> u32 {
        let ring = u64::from(self.ring());
        let offset = (u64::from(block - self.first) + u64::from(count)) % ring;
        self.first + u32::try_from(offset).expect("less than the ring")
    }

    /// True where the block of `device` is one of the log's own.
    pub(crate) fn owns(&self, block: BlockNumber) -> bool {
        self.runs.iter().any(|run| block >= run.device && block < run.device.offset(u64::from(run.count)))
    }

    /// Where log block `block` lies, and how many contiguous blocks begin there.
    fn locate(&self, block: u32) -> Result<(BlockNumber, u32)> {
        let index = self.runs.partition_point(|run| run.log <= block).saturating_sub(1);
        match self.runs.get(index) {
            Some(run) if block - run.log < run.count => {
                let skip = block - run.log;
                Ok((run.device.offset(u64::from(skip)), run.count - skip))
            }
            _ => Err(Error::corrupt("journal", format!("log block {block} of {}", self.available))),
        }
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

    /// True where [`Log::write`] writes `count` blocks from log block `start` on as one transfer, which the
    /// device does not split either.
    pub(crate) fn is_one_transfer(&self, start: u32, count: usize) -> bool {
        let geometry = self.device.geometry();
        let most = (geometry.max_transfer >> self.block_size.bits()).min(geometry.max_segments.max(1));
        let contiguous = self.locate(start).map_or(0, |(_, contiguous)| contiguous.min(self.last() - start));
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
            let count = contiguous.min(self.last() - at).min(left).min(limit);
            let segments: Vec<Segment> = blocks.by_ref().take(count as usize).collect();
            transfers.push((Operation::Write, self.byte(device)?, u64::from(count), segments));
            at = self.advance(at, count);
            left -= count;
        }
        self.submit_all(transfers, flags | BioFlags::META | BioFlags::SYNC).await
    }

    /// Writes `blocks` from log block `start` on, outside the ring, but for the first sector of the first of
    /// them: that goes with `flags` when all the rest has completed. So whatever a crash tears, the first
    /// sector is there only when the rest is, and with a preflush and FUA both are durable.
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
            self.write_area(start + 1, others, BioFlags::empty()).await?;
        }
        let mut flags = flags;
        if !rest.is_empty() {
            let mut own = BioFlags::META | BioFlags::SYNC;
            if flags.contains(BioFlags::PREFLUSH | BioFlags::FUA) && self.device.geometry().fua_flushes() {
                // The flush behind this write is the one before the first sector.
                own |= BioFlags::FUA;
                flags.remove(BioFlags::PREFLUSH);
            }
            self.device.write_at(at + sector as u64, vec![owned(rest)?], own).await?;
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

    /// Writes `blocks` from log block `start` on, outside the ring, and waits for them: one transfer with
    /// `flags` where the log's runs and the device allow it. Where they do not, the last one has the flags
    /// and the others have completed before, so that its preflush covers them.
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
            at += count;
            left -= count;
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
            let count = contiguous.min(end - at);
            transfers.push((Operation::WriteZeroes, self.byte(device)?, u64::from(count), Vec::new()));
            at += count;
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

/// Reads the ring block by block, some way ahead.
pub(crate) struct Reader<'a> {
    log: &'a Log,
    start: u32,
    content: Option<AlignedBuffer>,
    ahead: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(log: &'a Log) -> Self {
        Self { log, start: 0, content: None, ahead: *READ_AHEAD.start() }
    }

    /// Log block `block`.
    pub(crate) async fn read(&mut self, block: u32) -> Result<&[u8]> {
        let size = self.log.block_size.len();
        let held = self.content.as_ref().map_or(0, |content| content.len() / size);
        let cached = block.checked_sub(self.start).is_some_and(|index| (index as usize) < held);
        if !cached {
            let (device, contiguous) = self.log.locate(block)?;
            let goes_on = held > 0 && block == self.start + u32::try_from(held).unwrap_or(0);
            self.ahead = if goes_on { (self.ahead * 2).min(*READ_AHEAD.end()) } else { *READ_AHEAD.start() };
            let ahead = u32::try_from(self.ahead / size).unwrap_or(1).max(1);
            let end = if block < self.log.last() { self.log.last() } else { self.log.available };
            let count = contiguous.min(ahead).min(end - block);
            let (offset, bytes) = (self.log.byte(device)?, count as usize * size);
            self.content = Some(match self.log.device.read_at(offset, bytes).await {
                // Another block of the range may be the one that cannot be read.
                Err(_) if count > 1 => self.log.device.read_at(offset, size).await?,
                read => read?,
            });
            self.start = block;
        }
        let at = (block - self.start) as usize * size;
        self.content
            .as_ref()
            .and_then(|content| content.get(at..at + size))
            .ok_or_else(|| Error::corrupt("journal", format!("log block {block} was not read")))
    }
}

/// What of the ring is used.
#[derive(Debug)]
pub(crate) struct Space {
    /// Where the next transaction goes.
    pub(crate) head: u32,
    /// Blocks that no transaction uses and the superblock on the medium does not claim.
    pub(crate) free: u32,
    /// The superblock on the medium says that the log is empty (jbd2: `JBD2_FLUSHED`).
    pub(crate) empty_on_medium: bool,
}

impl Space {
    /// An empty ring.
    pub(crate) fn empty(log: &Log) -> Self {
        Self { head: log.first, free: log.ring() - 1, empty_on_medium: true }
    }

    /// Takes `count` blocks at the head: where they begin. `None` where there are not as many.
    pub(crate) fn take(&mut self, log: &Log, count: u32) -> Option<u32> {
        self.free = self.free.checked_sub(count)?;
        let start = self.head;
        self.head = log.advance(start, count);
        Some(start)
    }
}

/// A committed transaction's part of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) id: TransactionId,
    pub(crate) start: u32,
    pub(crate) count: u32,
}
