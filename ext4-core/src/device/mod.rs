//! Block devices as the engine sees them: bios in batches, each completed on its own.
//!
//! ```text
//!   writeback, journal, buffer cache
//!        │  Plug = [Bio, Bio, …]                ▲ EndIo(Completion), once per bio, any order, any thread
//!        ▼                                      │
//!   BlockDevice::submit ── backend (uring, file, memory, recording, faulty)
//! ```
//!
//! Invariants:
//! - A bio owns its memory until its completion; no caller has to wait for a dropped future before freeing a
//!   buffer.
//! - Every bio that was submitted is completed exactly once, also when the device is being dropped.
//! - Ordering between bios is the submitter's business: it waits for completions, then flushes. A device may
//!   reorder everything that is in flight. A completed write is durable only after a flush that was submitted
//!   after its completion, or when it carried [`BioFlags::FUA`]. Were this wrong, a commit block could reach
//!   the medium before the blocks that it commits, and a crash would replay garbage.
//! - Completions do bookkeeping only: they run in the backend's completion context and never block.

pub mod conformance;
pub mod host;
pub mod memory;
pub mod overlay;
mod parts;
pub mod simulated;
mod view;
mod views;

use std::sync::Arc;

use async_trait::async_trait;
use bitflags::bitflags;
use tokio::sync::oneshot;

use crate::error::{Errno, Error, Result};
pub use memory::{AlignedBuffer, BlockImage, MemoryPool, PoolMemory};
pub use overlay::OverlayDevice;
pub use parts::BufferPart;
pub use simulated::{FaultyDevice, Image, MemoryDevice, RecordingDevice};
pub use view::PoolView;

/// What a bio asks of the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Operation {
    /// Fill the segments from the device.
    Read,
    /// Store the segments on the device.
    Write,
    /// Make every write that had completed before durable.
    Flush,
    /// The range's content is no longer needed; it may read as anything afterwards. Advice: a device that
    /// cannot discard ([`Geometry::discard`]) completes it and does nothing.
    Discard,
    /// The range reads as zeros afterwards.
    WriteZeroes,
}

bitflags! {
    /// How a bio is to be carried out.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct BioFlags: u32 {
        /// Flush the volatile cache before this write: what had completed before it is durable when it is.
        const PREFLUSH = 1 << 0;
        /// Force unit access: complete only when this write itself is durable.
        const FUA = 1 << 1;
        /// File-system metadata.
        const META = 1 << 2;
        /// A task waits for it.
        const SYNC = 1 << 3;
        /// No task waits for it.
        const BACKGROUND = 1 << 4;
    }
}

/// A piece of a bio's memory. Its length is a multiple of the logical block size.
#[derive(Debug)]
pub enum Segment {
    /// Part of a folio: bytes `offset..offset + len` of the pool memory.
    Pool {
        /// The memory; shared with the page cache, whose folio state keeps others off it.
        memory: Arc<PoolMemory>,
        /// Where the piece starts, in bytes.
        offset: u32,
        /// How long it is, in bytes.
        len: u32,
    },
    /// A frozen block image; for writing only.
    Image(BlockImage),
    /// Memory the bio owns and hands back at completion.
    Owned(AlignedBuffer),
    /// Part of such memory, the rest of which is in other bios.
    Part(BufferPart),
}

impl Segment {
    /// The piece's length in bytes.
    #[must_use]
    pub fn len(&self) -> u32 {
        match self {
            Self::Pool { len, .. } => *len,
            Self::Image(image) => u32::try_from(image.len()).unwrap_or(u32::MAX),
            Self::Owned(buffer) => u32::try_from(buffer.len()).unwrap_or(u32::MAX),
            Self::Part(part) => u32::try_from(part.len()).unwrap_or(u32::MAX),
        }
    }

    /// Returns true for a piece of no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The piece's address, for a device to which its bio belongs: valid for [`Segment::len`] bytes as long
    /// as the segment lives. A device writes there only what a read brings, and never into an
    /// [`Segment::Image`].
    pub fn as_device_ptr(&mut self) -> *mut u8 {
        match self {
            Self::Pool { memory, offset, .. } => memory.as_ptr().wrapping_add(*offset as usize),
            Self::Image(image) => image.as_ptr().cast_mut(),
            Self::Owned(buffer) => buffer.as_mut_ptr(),
            Self::Part(part) => part.as_mut_ptr(),
        }
    }

    /// Calls `f` with the piece's bytes.
    pub fn read<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Self::Pool { memory, offset, len } => memory.read(*offset, *len, f),
            Self::Image(image) => f(image),
            Self::Owned(buffer) => f(buffer),
            Self::Part(part) => f(part),
        }
    }

    /// Calls `f` with the piece's bytes to fill; `None` for a frozen image, which cannot be read into.
    pub fn fill<R>(&mut self, f: impl FnOnce(&mut [u8]) -> R) -> Option<R> {
        match self {
            Self::Pool { memory, offset, len } => Some(memory.write(*offset, *len, f)),
            Self::Image(_) => None,
            Self::Owned(buffer) => Some(f(buffer)),
            Self::Part(part) => Some(f(part)),
        }
    }
}

/// How one bio ended: the result, and its segments back.
#[derive(Debug)]
pub struct Completion {
    /// All of it, or an error; never part of it.
    pub result: Result<()>,
    /// The segments of the bio, in order; filled if it was a read that succeeded.
    pub segments: Vec<Segment>,
}

/// What runs when a bio ends. It must not block and must not submit while holding a lock that a completion
/// takes.
pub type EndIo = Box<dyn FnOnce(Completion) + Send>;

/// One contiguous range of the device, the memory for it, an operation, and what to call at its end.
pub struct Bio {
    /// What to do.
    pub operation: Operation,
    /// How to do it.
    pub flags: BioFlags,
    /// The first byte on the device; a multiple of the logical block size.
    pub offset: u64,
    /// The length in bytes; for reads and writes the sum of the segments' lengths, 0 for a flush.
    pub len: u64,
    /// The memory, in device order; empty for flush, discard and write-zeroes.
    pub segments: Vec<Segment>,
    /// Called exactly once, when the bio has ended.
    pub end_io: EndIo,
}

impl std::fmt::Debug for Bio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bio({:?} {}+{} {:?})", self.operation, self.offset, self.len, self.flags)
    }
}

impl Bio {
    /// A read or write of `segments` at byte `offset`.
    pub fn new(
        operation: Operation,
        flags: BioFlags,
        offset: u64,
        segments: Vec<Segment>,
        end_io: EndIo,
    ) -> Self {
        let len = segments.iter().map(|segment| u64::from(segment.len())).sum();
        Self { operation, flags, offset, len, segments, end_io }
    }

    /// A flush, a discard or a write of zeros: no memory.
    pub fn without_memory(
        operation: Operation,
        flags: BioFlags,
        offset: u64,
        len: u64,
        end_io: EndIo,
    ) -> Self {
        Self { operation, flags, offset, len, segments: Vec::new(), end_io }
    }

    /// Ends the bio: hands its memory back with the result.
    pub fn complete(self, result: Result<()>) {
        (self.end_io)(Completion { result, segments: self.segments });
    }

    /// What every backend checks before it starts a bio: alignment, bounds, read-only, memory of the right
    /// kind.
    ///
    /// # Errors
    /// `EINVAL` for a range or memory that the geometry does not allow, `EROFS` for a change of a read-only
    /// device, `EIO` for a range past the end.
    pub fn check(&self, geometry: &Geometry) -> Result<()> {
        let unit = u64::from(geometry.logical_block_size);
        let fail = |errno| Err(Error::io(self.operation_name(), self.location(), errno));
        if self.operation != Operation::Read && self.operation != Operation::Flush && geometry.read_only {
            return fail(Errno::EROFS);
        }
        if self.operation == Operation::Flush {
            return Ok(());
        }
        if !self.offset.is_multiple_of(unit) || !self.len.is_multiple_of(unit) || self.len == 0 {
            return fail(Errno::EINVAL);
        }
        if self.offset.checked_add(self.len).is_none_or(|end| end > geometry.size) {
            return fail(Errno::EIO);
        }
        if matches!(self.operation, Operation::Read | Operation::Write) {
            let total: u64 = self.segments.iter().map(|segment| u64::from(segment.len())).sum();
            let misaligned =
                self.segments.iter().any(|segment| !u64::from(segment.len()).is_multiple_of(unit));
            let frozen = self.operation == Operation::Read
                && self.segments.iter().any(|segment| matches!(segment, Segment::Image(_)));
            // A backend hands bare addresses to the host: what a piece claims must be its own.
            let outside = self.segments.iter().any(|segment| match segment {
                Segment::Pool { memory, offset, len } => {
                    u64::from(*offset) + u64::from(*len) > memory.len() as u64
                }
                Segment::Image(_) | Segment::Owned(_) | Segment::Part(_) => false,
            });
            if total != self.len || misaligned || frozen || outside {
                return fail(Errno::EINVAL);
            }
        }
        Ok(())
    }

    /// The operation's name in an error.
    #[must_use]
    pub fn operation_name(&self) -> &'static str {
        match self.operation {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Flush => "flush",
            Operation::Discard => "discard",
            Operation::WriteZeroes => "write zeroes",
        }
    }

    /// The range's name in an error.
    #[must_use]
    pub fn location(&self) -> String {
        format!("bytes {}..{}", self.offset, self.offset.saturating_add(self.len))
    }
}

/// Bios that are submitted together: the backend may start them with one system call.
pub type Plug = Vec<Bio>;

/// What a device is and can do. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The device's size.
    pub size: u64,
    /// The smallest unit of a transfer: offsets and lengths are multiples of it.
    pub logical_block_size: u32,
    /// The unit the device writes without reading first.
    pub physical_block_size: u32,
    /// What addresses of memory must be a multiple of; backends copy what is not.
    pub memory_alignment: u32,
    /// The largest transfer that is carried out as one; backends split larger ones.
    pub max_transfer: u32,
    /// The most memory segments in one transfer; backends split if there are more.
    pub max_segments: u32,
    /// How many transfers are worth having in flight.
    pub queue_depth: u32,
    /// True if completed writes may be lost in a power cut until a flush.
    pub volatile_cache: bool,
    /// True if [`BioFlags::FUA`] costs less than a flush. FUA is honoured on every device: if this is false
    /// and the cache is volatile, as the write and a flush after it, so that what had completed before the
    /// write was submitted is durable too when the write completes.
    pub fua: bool,
    /// True if discard does something.
    pub discard: bool,
    /// True if write-zeroes costs less than writing zeros. It is honoured on every device.
    pub write_zeroes: bool,
    /// True if nothing can be changed.
    pub read_only: bool,
}

impl Geometry {
    /// Returns true if a write with [`BioFlags::FUA`] also makes durable what had completed before it was
    /// submitted.
    #[must_use]
    pub fn fua_flushes(&self) -> bool {
        self.volatile_cache && !self.fua
    }
}

/// A device that stores bytes in blocks.
///
/// The implementer accepts a whole plug without blocking the submitter (but for some microseconds in which a
/// fast device may end it), completes every bio exactly once through its [`EndIo`], in any order, from any
/// thread (also from within `submit`); finishes short transfers itself or fails the bio; splits what exceeds
/// the geometry's limits; and runs [`Bio::check`] on each bio first.
#[async_trait]
pub trait BlockDevice: Send + Sync + std::fmt::Debug + 'static {
    /// What the device is.
    fn geometry(&self) -> &Geometry;

    /// Starts every bio of the plug.
    fn submit(&self, plug: Plug);

    /// Starts one bio and waits for it. `flags` as in [`BioFlags`].
    ///
    /// Dropping the future forgets the waiter, not the I/O.
    async fn submit_and_wait(
        &self,
        operation: Operation,
        flags: BioFlags,
        offset: u64,
        len: u64,
        segments: Vec<Segment>,
    ) -> Completion {
        let (sender, receiver) = oneshot::channel();
        let end_io: EndIo = Box::new(move |completion| drop(sender.send(completion)));
        self.submit(vec![Bio { operation, flags, offset, len, segments, end_io }]);
        receiver.await.unwrap_or_else(|_| Completion {
            result: Err(Error::io("complete", "the device went away", Errno::EIO)),
            segments: Vec::new(),
        })
    }

    /// Reads `len` bytes at byte `offset` into fresh memory; both multiples of the logical block size.
    ///
    /// # Errors
    /// The device's, or those of [`Bio::check`].
    async fn read_at(&self, offset: u64, len: usize) -> Result<AlignedBuffer> {
        let segments = vec![Segment::Owned(AlignedBuffer::zeroed(len)?)];
        let completion =
            self.submit_and_wait(Operation::Read, BioFlags::SYNC, offset, len as u64, segments).await;
        completion.result?;
        match completion.segments.into_iter().next() {
            Some(Segment::Owned(buffer)) => Ok(buffer),
            _ => Err(Error::io("read", "the device kept the memory", Errno::EIO)),
        }
    }

    /// Writes `segments` at byte `offset`.
    ///
    /// # Errors
    /// The device's, or those of [`Bio::check`].
    async fn write_at(&self, offset: u64, segments: Vec<Segment>, flags: BioFlags) -> Result<()> {
        let len = segments.iter().map(|segment| u64::from(segment.len())).sum();
        self.submit_and_wait(Operation::Write, flags, offset, len, segments).await.result
    }

    /// Makes every write that has completed durable.
    ///
    /// # Errors
    /// Those of the device.
    async fn flush(&self) -> Result<()> {
        self.submit_and_wait(Operation::Flush, BioFlags::SYNC, 0, 0, Vec::new()).await.result
    }

    /// Discards `len` bytes at byte `offset`.
    ///
    /// # Errors
    /// The device's, or those of [`Bio::check`].
    async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.submit_and_wait(Operation::Discard, BioFlags::empty(), offset, len, Vec::new()).await.result
    }

    /// Makes `len` bytes at byte `offset` read as zeros.
    ///
    /// # Errors
    /// The device's, or those of [`Bio::check`].
    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.submit_and_wait(Operation::WriteZeroes, BioFlags::empty(), offset, len, Vec::new()).await.result
    }
}
