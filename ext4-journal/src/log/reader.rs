//! Reading the log block by block, with read-ahead, for recovery and for dumps.
//!
//! Invariant: a block that cannot be read makes only its own read fail: if a read ahead fails, the block
//! asked for is read alone.

use ext4_core::device::AlignedBuffer;
use ext4_core::{Error, Result};

use super::Log;

/// Bytes that are read ahead at a time: from the least, doubled as long as each read follows on the last.
const READ_AHEAD: std::ops::RangeInclusive<usize> = 16_384..=262_144;

/// A reader of log blocks that keeps what it read ahead.
pub(crate) struct Reader<'a> {
    log: &'a Log,
    /// The first log block of `content`.
    start: u32,
    content: Option<AlignedBuffer>,
    /// Bytes to read at a time.
    ahead: usize,
}

impl<'a> Reader<'a> {
    /// A reader that has read nothing.
    pub(crate) fn new(log: &'a Log) -> Self {
        Self { log, start: 0, content: None, ahead: *READ_AHEAD.start() }
    }

    /// The content of log block `block`.
    ///
    /// # Errors
    /// - I/O: the device's.
    /// - Corrupt: the log has no such block.
    pub(crate) async fn read(&mut self, block: u32) -> Result<&[u8]> {
        if self.range(block).is_none() {
            self.fill(block).await?;
        }
        let content = self.range(block).and_then(|range| self.content.as_ref()?.get(range));
        content.ok_or_else(|| Error::corrupt("journal", format!("log block {block} was not read")))
    }

    /// The bytes of log block `block` in the content, if they are there.
    fn range(&self, block: u32) -> Option<std::ops::Range<usize>> {
        let size = self.log.block_size.len();
        let index = usize::try_from(block.checked_sub(self.start)?).ok()?;
        let at = index.checked_mul(size)?;
        let end = at.checked_add(size)?;
        (end <= self.content.as_ref()?.len()).then_some(at..end)
    }

    /// Reads log block `block` and some after it.
    async fn fill(&mut self, block: u32) -> Result<()> {
        let bits = self.log.block_size.bits();
        let (device, contiguous) = self.log.locate(block)?;
        let held = self.content.as_ref().map_or(0, |content| content.len() >> bits);
        let next = u32::try_from(held).ok().and_then(|held| self.start.checked_add(held));
        let goes_on = held > 0 && next == Some(block);
        self.ahead =
            if goes_on { self.ahead.saturating_mul(2).min(*READ_AHEAD.end()) } else { *READ_AHEAD.start() };
        let ahead = u32::try_from(self.ahead >> bits).unwrap_or(1).max(1);
        let end = if block < self.log.last() { self.log.last() } else { self.log.available };
        let count = contiguous.min(ahead).min(end.saturating_sub(block)).max(1);
        let (offset, size) = (self.log.byte(device)?, self.log.block_size.len());
        let bytes = size.saturating_mul(count as usize);
        self.content = Some(match self.log.device.read_at(offset, bytes).await {
            // Another block of the range may be the one that cannot be read.
            Err(_) if count > 1 => self.log.device.read_at(offset, size).await?,
            read => read?,
        });
        self.start = block;
        Ok(())
    }
}
