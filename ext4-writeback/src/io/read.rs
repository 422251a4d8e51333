//! Buffered reads: bytes are copied from uptodate folios; other folios are filled from the device, with
//! read-ahead (kernel: `filemap_read`, `iomap_readahead`).
//!
//! Invariants:
//! - A folio that is being read stays locked until the last bio for it has ended, also if the reader stopped
//!   waiting.
//! - Blocks that are holes, unwritten, or behind i_size are zeroed in memory, not read. In the block that
//!   i_size ends in, the bytes behind i_size are zeroed after the read.
//! - A block whose read failed is not uptodate; the other blocks of the folio keep their state.
//! - Folios are added under `invalidate_lock` for reading: a truncation drops them first and frees blocks
//!   afterwards.

use std::ops::Range;
use std::sync::Arc;

use ext4_core::device::memory::PAGE_SIZE;
use ext4_core::device::{Bio, BioFlags, Completion, EndIo, Operation, Segment};
use ext4_core::{Error, IoPurpose, Result};
use parking_lot::Mutex;

use crate::base::counters::LiveCounters;
use crate::cache::extent_status::status::Status;
use crate::cache::folio::{Folio, FolioGuard};
use crate::inode::InodeInfo;
use crate::io::inline_data;
use crate::io::read_ahead::ReadAhead;
use crate::iomap;
use crate::writeback::Engine;
use crate::writeback::flusher::memory;

/// Buffered read at byte `position` into `buffer`. Returns how many bytes: fewer only at the end of the file.
///
/// # Errors
/// Those of the device; corrupt metadata; the host refuses to map memory.
pub(crate) async fn read(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
    buffer: &mut [u8],
    read_ahead: &Mutex<ReadAhead>,
) -> Result<usize> {
    let limit = window_limit(engine);
    let mut done = 0;
    // The folio that the read begins in the middle of: not a new use of it if a stream of reads goes on
    // there.
    let mut first = None;
    while done < buffer.len() {
        let at = position + done as u64;
        let size = inode.size();
        if at >= size {
            break;
        }
        // Checked after the size: a writer makes a file inline first and sets the size then.
        if inode.is_inline()
            && let Some(count) = inline_data::read(inode, at, &mut buffer[done..]).await?
        {
            return Ok(done + count);
        }
        let wanted = (buffer.len() - done) as u64;
        let end = (at + wanted).min(size);
        if let Some(folio) = inode.pages.find(at) {
            let stop = end.min(folio.end());
            if folio.is_uptodate(folio.blocks_touched(at, stop)) {
                let count = (stop - at) as usize;
                folio.read(at, stop, |bytes| buffer[done..done + count].copy_from_slice(bytes));
                if done > 0 || at == folio.start() {
                    folio.mark_accessed();
                } else {
                    first = Some(folio);
                }
                done += count;
                continue;
            }
        }
        fill_sequential(engine, inode, at, end, read_ahead).await?;
    }
    let next = {
        let mut read_ahead = read_ahead.lock();
        if let Some(folio) = first
            && !read_ahead.goes_on_at(position)
        {
            folio.mark_accessed();
        }
        read_ahead.advance(position, position + done as u64, inode.size(), limit)
    };
    if let Some((start, end)) = next {
        LiveCounters::add(&engine.volume.counters.read_ahead_async, 1);
        // A reader of that range gets the error.
        let _ = fill(engine, inode, start, start, end, false).await;
    }
    Ok(done)
}

/// The largest read-ahead window in bytes: an eighth of the folio pool.
fn window_limit(engine: &Engine) -> u64 {
    engine.dirty.capacity() as u64 / 8
}

/// Reads the folio at byte `position`, for an access up to byte `end`, and the read-ahead window behind it.
/// Waits for the first folio.
///
/// # Errors
/// As [`read`].
pub(crate) async fn fill_sequential(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
    end: u64,
    read_ahead: &Mutex<ReadAhead>,
) -> Result<()> {
    let history = |most| inode.pages.cached_before(position, most);
    let window = read_ahead.lock().window(position, end, window_limit(engine), history);
    if window > end {
        LiveCounters::add(&engine.volume.counters.read_ahead_sync, 1);
    }
    fill(engine, inode, position, end, window, true).await
}

/// Copies bytes from uptodate blocks in the page cache, from byte `position` on without a gap, into `buffer`.
/// Returns how many.
pub(crate) fn read_cached(inode: &InodeInfo, position: u64, buffer: &mut [u8]) -> usize {
    let end = position.saturating_add(buffer.len() as u64).min(inode.size());
    let mut at = position;
    while at < end
        && let Some(folio) = inode.pages.find(at)
    {
        let stop = end.min(folio.end());
        let gap = folio.next_not_uptodate(folio.blocks_touched(at, stop));
        let block_len = folio.len() as u64 / u64::from(folio.blocks());
        let stop =
            gap.as_ref().map_or(stop, |gap| stop.min(folio.start() + u64::from(gap.start) * block_len));
        if stop > at {
            let part = (at - position) as usize..(stop - position) as usize;
            folio.read(at, stop, |bytes| buffer[part].copy_from_slice(bytes));
            folio.mark_accessed();
            at = stop;
        }
        if gap.is_some() {
            break;
        }
    }
    (at - position) as usize
}

/// Starts reading folios from byte `position` up to `end` and, as far as memory allows, up to `window`; waits
/// for the first folio if `wait`.
async fn fill(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
    end: u64,
    window: u64,
    wait: bool,
) -> Result<()> {
    let _filling = inode.invalidate_lock.read().await;
    let size = inode.size();
    if position >= size || inode.is_inline() {
        return Ok(());
    }
    let window = window.max(end).min(size);
    let folio = find_or_create(engine, inode, position, window - position, false).await?;
    let mut reader = Reader::new(engine, inode);
    let first = Arc::clone(&folio);
    let mut at = folio.end();
    reader.add(folio).await?;
    while at < window {
        // Folios that are busy or find no memory are left out: no reader needs them yet.
        let next = match inode.pages.find(at) {
            Some(next) => next,
            None => {
                let Some(next) = create(engine, inode, at, window - at, false, None)? else { break };
                next
            }
        };
        at = next.end();
        if let Some(guard) = next.try_lock()
            && !guard.is_removed()
            && reader.add(guard).await.is_err()
        {
            // A reader of that folio gets the error.
            break;
        }
    }
    reader.submit();
    if !wait {
        return Ok(());
    }
    let guard = first.lock().await;
    match guard.take_read_error() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// The locked folio that holds byte `position`; if there is none, it is made for an access of `len` bytes.
/// Waits for memory. `sequential`: true if the access goes on where the last one ended.
///
/// # Errors
/// The host refuses to map memory.
pub(crate) async fn find_or_create(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
    len: u64,
    sequential: bool,
) -> Result<FolioGuard> {
    loop {
        let folio = match inode.pages.find(position) {
            Some(folio) => {
                // A sequential stream counts as one use of each folio, and most of its folios are new.
                if !sequential {
                    folio.mark_accessed();
                }
                folio
            }
            None => {
                let block_size = engine.volume.info.block_size();
                let limit = engine.dirty.folio_limit();
                let (_, wanted) = inode.pages.placement(position, len, sequential, block_size, limit);
                let least = PAGE_SIZE.max(block_size.len());
                let memory = memory::allocate_memory(engine, wanted, least).await?;
                match create(engine, inode, position, len, sequential, Some(memory))? {
                    Some(folio) => folio,
                    None => continue,
                }
            }
        };
        let guard = match FolioGuard::try_new(folio) {
            Ok(guard) => guard,
            Err(folio) => folio.lock().await,
        };
        if !guard.is_removed() {
            return Ok(guard);
        }
    }
}

/// A new folio that holds byte `position`, over `memory` if given. `None` if there is no memory, or a folio
/// is there by now.
fn create(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
    len: u64,
    sequential: bool,
    memory: Option<Arc<ext4_core::device::PoolMemory>>,
) -> Result<Option<Arc<Folio>>> {
    let block_size = engine.volume.info.block_size();
    let limit = memory.as_ref().map_or(engine.dirty.folio_limit(), |memory| memory.len());
    let (start, wanted) = inode.pages.placement(position, len, sequential, block_size, limit);
    let memory = match memory {
        // Another task added a neighbour meanwhile: the folio has to be of the size that fits beside it.
        Some(memory) if memory.len() != wanted => return Ok(None),
        Some(memory) => memory,
        None => match memory::try_allocate_memory(engine, wanted, PAGE_SIZE.max(block_size.len()))? {
            Some(memory) => memory,
            None => return Ok(None),
        },
    };
    let folio = Folio::new(memory, start, block_size);
    LiveCounters::add(&engine.volume.counters.folios_made, 1);
    if !inode.pages.insert(&folio) {
        return Ok(None);
    }
    engine.dirty.folios.add(inode.pages.space(), &folio);
    Ok(Some(folio))
}

/// A folio that is being read: unlocked when the last bio for it has ended.
struct FolioRead {
    folio: FolioGuard,
    /// i_size when the read began.
    size: u64,
}

impl FolioRead {
    fn end(&self, blocks: Range<u32>, result: &Result<()>, block_bits: u32) {
        let start = self.folio.start();
        let from = start + (u64::from(blocks.start) << block_bits);
        let to = start + (u64::from(blocks.end) << block_bits);
        match result.clone().and_then(|()| self.folio.zero(self.size.clamp(from, to), to)) {
            Ok(()) => self.folio.set_uptodate(blocks),
            Err(error) => self.folio.set_read_error(error),
        }
    }
}

/// A plug of reads.
pub(crate) struct Reader<'a> {
    engine: &'a Arc<Engine>,
    inode: &'a Arc<InodeInfo>,
    plug: Vec<Pending>,
}

struct Pending {
    offset: u64,
    bytes: u64,
    segments: Vec<Segment>,
    parts: Vec<(Arc<FolioRead>, Range<u32>)>,
}

impl<'a> Reader<'a> {
    /// An empty plug.
    pub fn new(engine: &'a Arc<Engine>, inode: &'a Arc<InodeInfo>) -> Self {
        Self { engine, inode, plug: Vec::new() }
    }

    /// Adds all blocks of a locked folio that are not uptodate.
    ///
    /// # Errors
    /// Those of looking up the mapping; the host refuses to map memory.
    pub async fn add(&mut self, folio: FolioGuard) -> Result<()> {
        let blocks = 0..folio.blocks();
        self.add_blocks(folio, blocks).await
    }

    /// Adds the blocks among `blocks` of a locked folio that are not uptodate. The folio is unlocked when
    /// they have been read.
    ///
    /// # Errors
    /// As [`Reader::add`].
    pub async fn add_blocks(&mut self, folio: FolioGuard, blocks: Range<u32>) -> Result<()> {
        let bits = self.engine.volume.info.block_size().bits();
        let size = self.inode.size();
        let behind = folio.blocks_touched(folio.start(), size.max(folio.start())).end;
        let first = folio.first_block();
        folio.make_gaps_unviewed(blocks.clone())?;
        let read = Arc::new(FolioRead { folio: folio.lend_to_io(), size });
        let folio = &read.folio;
        let mut at = blocks.start;
        while let Some(gap) = folio.next_not_uptodate(at..blocks.end) {
            let byte = |block: u32| folio.start() + (u64::from(block) << bits);
            if gap.start >= behind {
                folio.zero(byte(gap.start), byte(gap.end))?;
                folio.set_uptodate(gap.clone());
                at = gap.end;
                continue;
            }
            let extent = iomap::lookup(&self.engine.volume, self.inode, first + gap.start).await?;
            let stop = gap.end.min(behind).min(extent.end.distance(first));
            let run = gap.start..stop;
            at = stop;
            let Status::Written(physical) = extent.status else {
                folio.zero(byte(run.start), byte(run.end))?;
                folio.set_uptodate(run);
                continue;
            };
            let segment = Segment::Pool {
                memory: folio.memory(),
                offset: run.start << bits,
                len: (run.end - run.start) << bits,
            };
            self.push(physical.0 << bits, segment, (Arc::clone(&read), run));
        }
        Ok(())
    }

    fn push(&mut self, offset: u64, segment: Segment, part: (Arc<FolioRead>, Range<u32>)) {
        let geometry = self.engine.volume.info.device().geometry();
        let len = u64::from(segment.len());
        if let Some(last) = self.plug.last_mut()
            && last.offset + last.bytes == offset
            && last.bytes + len <= u64::from(geometry.max_transfer)
            && last.segments.len() < geometry.max_segments as usize
        {
            last.bytes += len;
            last.segments.push(segment);
            last.parts.push(part);
            return;
        }
        self.plug.push(Pending { offset, bytes: len, segments: vec![segment], parts: vec![part] });
    }

    /// Submits the plug to the device.
    pub fn submit(self) {
        let bits = self.engine.volume.info.block_size().bits();
        let mut plug = Vec::with_capacity(self.plug.len());
        LiveCounters::add(&self.engine.volume.counters.read_bios, self.plug.len() as u64);
        for pending in self.plug {
            let parts = pending.parts;
            let end_io: EndIo = Box::new(move |completion: Completion| {
                // Before the folios are unlocked: reclaim may give them up from then on, and nothing here
                // holds their memory.
                drop(completion.segments);
                let result = completion.result.map_err(|error| error.for_purpose(IoPurpose::Data));
                for (read, blocks) in parts {
                    read.end(blocks, &result, bits);
                }
            });
            plug.push(Bio::new(Operation::Read, BioFlags::SYNC, pending.offset, pending.segments, end_io));
        }
        if !plug.is_empty() {
            self.engine.volume.info.device().submit(plug);
        }
    }
}

/// Reads `blocks` of a locked folio, waits for them, and locks the folio again.
///
/// # Errors
/// As [`read`].
pub(crate) async fn read_blocks(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    folio: FolioGuard,
    blocks: Range<u32>,
) -> Result<FolioGuard> {
    let shared = Arc::clone(&folio);
    let mut reader = Reader::new(engine, inode);
    reader.add_blocks(folio, blocks).await?;
    reader.submit();
    let guard = shared.lock().await;
    match guard.take_read_error() {
        Some(error) => Err::<FolioGuard, Error>(error),
        None => Ok(guard),
    }
}
