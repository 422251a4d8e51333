//! A device over another that is never written: changes stay in memory.
//!
//! ```text
//!   reads ──► chunk in the overlay? ── none of the range ──► the bio goes down as it is, with its own memory
//!                    │                 part of it ─────────► it goes down, and is patched when it ends
//!                    └──────────────── all of it ──────────► answered from memory
//!   writes, zeros ──► the overlay; discards are advice that is not taken; flushes have nothing to flush
//! ```
//!
//! So a file system whose journal has to be replayed can be read in its recovered state on a medium that must
//! not change, or cannot.
//!
//! Invariants:
//! - The device below gets reads and nothing else. Were it written, an image that was opened for reading
//!   would differ afterwards, and one whose recovery went wrong would be lost.
//! - A write is in the overlay, whole, when it completes, or none of it is and it fails: no more than the
//!   limit is kept.
//! - A chunk's bytes count only if its mask says so; the rest of it is below. So no write has to read first.
//!
//! A read that lies in part on the overlay is read below as a whole: if the device below cannot read a
//! sector, it stays unreadable to such reads though the overlay has its content.
//!
//! Lock: one, around the map; held for lookups and copies, never while the device below or a completion is
//! called.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::RwLock;

use super::{
    AlignedBuffer, Bio, BlockDevice, BlockImage, Completion, EndIo, Geometry, Operation, Plug, Segment,
};
use crate::error::{Errno, Error, Result};

/// The least that a chunk holds; more if the device's blocks are larger.
const CHUNK: u64 = 4096;

/// A piece of the device that was written in part or in whole.
#[derive(Debug)]
struct Chunk {
    /// All its bytes; zeros are shared by all chunks that hold nothing else.
    content: BlockImage,
    /// A bit for each logical block of it that was written.
    written: u64,
}

/// What was written.
#[derive(Debug)]
struct Chunks {
    /// By number: the byte of the device over the chunk's size.
    map: BTreeMap<u64, Chunk>,
    zeros: BlockImage,
    /// Bytes of a chunk and of a logical block.
    chunk: u64,
    block: u64,
    /// The most bytes of chunks.
    limit: u64,
}

/// Part of a chunk: its number, the bytes in it, and the mask of their logical blocks.
struct Piece {
    number: u64,
    bytes: Range<usize>,
    mask: u64,
}

impl Chunks {
    /// `len` bytes at `offset`, both on logical blocks, piece by piece.
    fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = Piece> + use<> {
        let (chunk, block, end) = (self.chunk, self.block, offset + len);
        (offset / chunk..end.div_ceil(chunk)).map(move |number| {
            let start = number * chunk;
            let bytes = offset.max(start) - start..end.min(start + chunk) - start;
            let ones = |blocks: u64| if blocks >= 64 { u64::MAX } else { (1 << blocks) - 1 };
            let mask = ones(bytes.end / block) & !ones(bytes.start / block);
            // Below the size of a chunk.
            Piece { number, bytes: bytes.start as usize..bytes.end as usize, mask }
        })
    }

    /// How many of the range's logical blocks the overlay has: none, some, or all.
    fn coverage(&self, offset: u64, len: u64) -> Coverage {
        let (first, end) = (offset / self.chunk, (offset + len).div_ceil(self.chunk));
        if self.map.range(first..end).next().is_none() {
            return Coverage::None;
        }
        let (mut some, mut all) = (false, true);
        for piece in self.pieces(offset, len) {
            let written = self.map.get(&piece.number).map_or(0, |chunk| chunk.written & piece.mask);
            some |= written != 0;
            all &= written == piece.mask;
        }
        match (some, all) {
            (_, true) => Coverage::All,
            (true, false) => Coverage::Some,
            (false, false) => Coverage::None,
        }
    }

    /// Puts what the overlay has of the range over what `segments` hold.
    fn patch(&self, offset: u64, segments: &mut [Segment]) {
        let mut at = offset;
        for segment in segments {
            let len = u64::from(segment.len());
            let patched = segment.fill(|bytes| {
                let mut done = 0;
                for piece in self.pieces(at, len) {
                    let into = &mut bytes[done..done + piece.bytes.len()];
                    done += piece.bytes.len();
                    if let Some(chunk) = self.map.get(&piece.number) {
                        chunk.copy_to(into, &piece, self.block as usize);
                    }
                }
            });
            debug_assert!(patched.is_some(), "Bio::check refuses to read into an image");
            at += len;
        }
    }

    /// Makes sure that the range's chunks can be kept.
    fn admit(&self, offset: u64, len: u64) -> Result<()> {
        let (first, end) = (offset / self.chunk, (offset + len).div_ceil(self.chunk));
        let there = self.map.range(first..end).count() as u64;
        let wanted = self.map.len() as u64 + (end - first - there);
        if wanted.saturating_mul(self.chunk) > self.limit {
            return Err(Error::posix(
                Errno::ENOSPC,
                format!(
                    "the overlay in memory over the device that is only read is full: it may hold {} bytes",
                    self.limit
                ),
            ));
        }
        Ok(())
    }

    fn chunk_mut(&mut self, number: u64) -> &mut Chunk {
        let zeros = &self.zeros;
        self.map.entry(number).or_insert_with(|| Chunk { content: zeros.clone(), written: 0 })
    }

    fn write(&mut self, offset: u64, segments: &[Segment]) -> Result<()> {
        let len = segments.iter().map(|segment| u64::from(segment.len())).sum();
        self.admit(offset, len)?;
        // Memory for all of it first, so that a write is there whole or not at all.
        for piece in self.pieces(offset, len) {
            self.chunk_mut(piece.number).content.to_mut()?;
        }
        let mut at = offset;
        for segment in segments {
            segment.read(|bytes| -> Result<()> {
                let mut done = 0;
                for piece in self.pieces(at, bytes.len() as u64) {
                    let from = &bytes[done..done + piece.bytes.len()];
                    done += piece.bytes.len();
                    let chunk = self.chunk_mut(piece.number);
                    chunk.content.to_mut()?[piece.bytes].copy_from_slice(from);
                    chunk.written |= piece.mask;
                }
                Ok(())
            })?;
            at += u64::from(segment.len());
        }
        Ok(())
    }

    fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<()> {
        self.admit(offset, len)?;
        let (zeros, chunk_len) = (self.zeros.clone(), self.chunk as usize);
        for piece in self.pieces(offset, len) {
            let chunk = self.chunk_mut(piece.number);
            if piece.bytes.len() == chunk_len {
                chunk.content = zeros.clone();
            } else if !chunk.content.is_same(&zeros) {
                chunk.content.to_mut()?[piece.bytes].fill(0);
            }
            chunk.written |= piece.mask;
        }
        Ok(())
    }
}

impl Chunk {
    /// Copies those logical blocks of `piece` that were written.
    fn copy_to(&self, into: &mut [u8], piece: &Piece, block: usize) {
        if self.written & piece.mask == piece.mask {
            into.copy_from_slice(&self.content[piece.bytes.clone()]);
            return;
        }
        for (index, at) in piece.bytes.clone().step_by(block).enumerate() {
            if self.written & 1 << (at / block) != 0 {
                let (start, end) = (index * block, (index + 1) * block);
                into[start..end].copy_from_slice(&self.content[at..at + block]);
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Coverage {
    None,
    Some,
    All,
}

/// A device over another that is never written; see the module.
#[derive(Debug)]
pub struct OverlayDevice {
    inner: Arc<dyn BlockDevice>,
    geometry: Geometry,
    chunks: Arc<RwLock<Chunks>>,
}

impl OverlayDevice {
    /// A device that holds what `inner` holds, can be written, and keeps up to `limit` bytes of changes in
    /// memory. Beyond that writes fail with `ENOSPC`.
    ///
    /// # Errors
    /// - `ENOMEM` if the host has no memory.
    /// - Unsupported if a logical block of `inner` is larger than 64 pages.
    pub fn new(inner: Arc<dyn BlockDevice>, limit: u64) -> Result<Self> {
        let below = inner.geometry();
        let block = u64::from(below.logical_block_size);
        let chunk = CHUNK.max(block);
        if chunk / block > u64::from(u64::BITS) || !chunk.is_multiple_of(block) {
            return Err(Error::Unsupported(format!("an overlay over logical blocks of {block} bytes")));
        }
        let geometry = Geometry {
            volatile_cache: false,
            fua: true,
            discard: false,
            write_zeroes: true,
            read_only: false,
            ..below.clone()
        };
        let zeros = BlockImage::from(AlignedBuffer::zeroed(chunk as usize)?);
        let chunks = Chunks { map: BTreeMap::new(), zeros, chunk, block, limit };
        Ok(Self { inner, geometry, chunks: Arc::new(RwLock::new(chunks)) })
    }

    /// The same device, its changes shared, as one that cannot be written.
    #[must_use]
    pub fn sealed(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            geometry: Geometry { read_only: true, ..self.geometry.clone() },
            chunks: Arc::clone(&self.chunks),
        }
    }

    /// Bytes of memory that the changes take.
    #[must_use]
    pub fn used(&self) -> u64 {
        let chunks = self.chunks.read();
        chunks.map.len() as u64 * chunks.chunk
    }

    /// A read, or what is left of it for the device below.
    fn read(&self, mut bio: Bio) -> Option<Bio> {
        let (offset, len) = (bio.offset, bio.len);
        let coverage = {
            let chunks = self.chunks.read();
            let coverage = chunks.coverage(offset, len);
            if coverage == Coverage::All {
                chunks.patch(offset, &mut bio.segments);
            }
            coverage
        };
        match coverage {
            Coverage::None => Some(bio),
            Coverage::All => {
                bio.complete(Ok(()));
                None
            }
            Coverage::Some => {
                let chunks = Arc::clone(&self.chunks);
                let end_io = bio.end_io;
                let patched: EndIo = Box::new(move |mut completion: Completion| {
                    if completion.result.is_ok() {
                        chunks.read().patch(offset, &mut completion.segments);
                    }
                    end_io(completion);
                });
                bio.end_io = patched;
                Some(bio)
            }
        }
    }
}

impl BlockDevice for OverlayDevice {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&self, plug: Plug) {
        let mut below = Plug::with_capacity(plug.len());
        for bio in plug {
            if let Err(error) = bio.check(&self.geometry) {
                bio.complete(Err(error));
                continue;
            }
            let result = match bio.operation {
                Operation::Read => {
                    below.extend(self.read(bio));
                    continue;
                }
                Operation::Write => self.chunks.write().write(bio.offset, &bio.segments),
                Operation::WriteZeroes => self.chunks.write().write_zeroes(bio.offset, bio.len),
                Operation::Discard | Operation::Flush => Ok(()),
            };
            bio.complete(result);
        }
        if !below.is_empty() {
            self.inner.submit(below);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::conformance::{self, MIN_SIZE};
    use crate::device::simulated::Image;
    use crate::device::{BioFlags, MemoryDevice, RecordingDevice};

    fn bytes(len: usize, byte: u8) -> Vec<Segment> {
        let mut buffer = AlignedBuffer::zeroed(len).unwrap();
        buffer.fill(byte);
        vec![Segment::Owned(buffer)]
    }

    fn over(logical: u32) -> OverlayDevice {
        let inner = MemoryDevice::new(MIN_SIZE).with_geometry(|geometry| {
            geometry.logical_block_size = logical;
            geometry.read_only = true;
        });
        OverlayDevice::new(Arc::new(inner), MIN_SIZE).unwrap()
    }

    #[tokio::test]
    async fn it_does_what_every_device_does() {
        for logical in [512, 1024, 4096] {
            conformance::run(|read_only| -> Arc<dyn BlockDevice> {
                let device = over(logical);
                if read_only { Arc::new(device.sealed()) } else { Arc::new(device) }
            })
            .await;
        }
    }

    #[tokio::test]
    async fn the_device_below_is_never_written() {
        let mut image = Image::zeroed(1 << 20);
        image.fill(0, 1 << 20, 1);
        let below = Arc::new(RecordingDevice::new(image.clone()));
        let device = OverlayDevice::new(Arc::clone(&below) as _, 1 << 20).unwrap();
        device.write_at(512, bytes(512, 2), BioFlags::FUA).await.unwrap();
        device.write_at(3584, bytes(9216, 3), BioFlags::PREFLUSH).await.unwrap();
        device.write_zeroes(8192, 1024).await.unwrap();
        device.write_zeroes(65536, 8192).await.unwrap();
        device.discard(0, 4096).await.unwrap();
        device.flush().await.unwrap();
        let mut expected = vec![1_u8; 1 << 20];
        expected[512..1024].fill(2);
        expected[3584..12800].fill(3);
        expected[8192..9216].fill(0);
        expected[65536..73728].fill(0);
        for (offset, len) in [(0, 1 << 20), (0, 512), (512, 512), (3584, 512), (0, 4096), (65536, 16384)] {
            let read = device.read_at(offset as u64, len).await.unwrap();
            assert!(read[..] == expected[offset..offset + len], "{len} bytes at {offset}");
        }
        // Seven chunks: the first four, and two of zeros.
        assert_eq!(device.used(), 6 * CHUNK);
        let recording = below.recording();
        assert_eq!((recording.writes(), recording.flushes()), (0, 0));
        assert_eq!(device.sealed().read_at(512, 512).await.unwrap()[0], 2);
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded_and_a_write_is_whole_or_refused() {
        let device = OverlayDevice::new(Arc::new(MemoryDevice::new(1 << 20)), 2 * CHUNK).unwrap();
        device.write_at(0, bytes(4096, 1), BioFlags::empty()).await.unwrap();
        let error = device.write_at(0, bytes(12288, 2), BioFlags::empty()).await.unwrap_err();
        assert_eq!(error.errno(), Errno::ENOSPC);
        assert!(error.to_string().contains("overlay"), "{error}");
        assert_eq!(device.read_at(0, 4096).await.unwrap()[4095], 1);
        assert_eq!(device.write_zeroes(0, 1 << 20).await.unwrap_err().errno(), Errno::ENOSPC);
        // What is kept already may change.
        device.write_at(0, bytes(8192, 3), BioFlags::empty()).await.unwrap();
        device.write_zeroes(4096, 4096).await.unwrap();
        assert_eq!(device.read_at(0, 8192).await.unwrap()[4095..4097], [3, 0]);
    }

    #[tokio::test]
    async fn a_read_that_fails_below_fails_and_what_is_in_memory_is_read_all_the_same() {
        let faulty = Arc::new(crate::device::FaultyDevice::new(Arc::new(MemoryDevice::new(1 << 20))));
        faulty.fail_range(Operation::Read, 0..8192);
        let device = OverlayDevice::new(Arc::clone(&faulty) as _, 1 << 20).unwrap();
        device.write_at(0, bytes(4096, 1), BioFlags::empty()).await.unwrap();
        assert_eq!(device.read_at(0, 4096).await.unwrap()[0], 1);
        assert_eq!(device.read_at(0, 8192).await.unwrap_err().errno(), Errno::EIO);
    }
}
