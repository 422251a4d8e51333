//! A device in memory.
//!
//! Locks: one, around the content, held while a bio's bytes are copied.

use parking_lot::RwLock;

use super::Image;
use crate::device::{AlignedBuffer, Bio, BioFlags, BlockDevice, Geometry, Operation, Plug};
use crate::error::Result;

/// A device in memory. Nothing in it is ever volatile: a completed write is there. Bios complete within
/// `submit`.
#[derive(Debug)]
pub struct MemoryDevice {
    geometry: Geometry,
    content: RwLock<Image>,
}

impl MemoryDevice {
    /// A device of `size` bytes of zeros with 512-byte logical blocks. Zeros take no memory.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self::from_image(Image::zeroed(size))
    }

    /// A device that holds `content`.
    #[must_use]
    pub fn from_content(content: Vec<u8>) -> Self {
        Self::from_image(Image::from(&content[..]))
    }

    /// A device that holds what `image` holds now; they share memory until either is changed.
    #[must_use]
    pub fn from_image(image: Image) -> Self {
        let geometry = Geometry {
            size: image.len(),
            logical_block_size: 512,
            physical_block_size: 4096,
            memory_alignment: 1,
            max_transfer: 1 << 30,
            max_segments: 1024,
            queue_depth: 128,
            volatile_cache: false,
            fua: true,
            discard: true,
            write_zeroes: true,
            read_only: false,
        };
        Self { geometry, content: RwLock::new(image) }
    }

    /// The device with a geometry that `change` has changed: another logical block size, read-only … The size
    /// must stay.
    #[must_use]
    pub fn with_geometry(mut self, change: impl FnOnce(&mut Geometry)) -> Self {
        change(&mut self.geometry);
        assert!(self.geometry.size <= self.content.get_mut().len(), "the device is larger than its memory");
        self
    }

    /// A copy of everything on the device.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.content.read().to_vec()
    }

    /// Everything on the device as it is now, at little cost.
    #[must_use]
    pub fn image(&self) -> Image {
        self.content.read().clone()
    }

    fn carry_out(&self, bio: &mut Bio) -> Result<()> {
        bio.check(&self.geometry)?;
        let mut at = bio.offset;
        match bio.operation {
            Operation::Flush => {}
            Operation::Discard | Operation::WriteZeroes => self.content.write().fill(at, bio.len, 0),
            Operation::Write => {
                let mut content = self.content.write();
                for segment in &bio.segments {
                    segment.read(|bytes| content.write(at, bytes));
                    at += u64::from(segment.len());
                }
            }
            Operation::Read => {
                let content = self.content.read();
                for segment in &mut bio.segments {
                    segment
                        .fill(|bytes| content.read(at, bytes))
                        .expect("Bio::check refuses to read into an image");
                    at += u64::from(segment.len());
                }
            }
        }
        Ok(())
    }
}

impl BlockDevice for MemoryDevice {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&self, plug: Plug) {
        for mut bio in plug {
            debug_assert!(!bio.flags.contains(BioFlags::PREFLUSH) || bio.operation == Operation::Write);
            let result = self.carry_out(&mut bio);
            bio.complete(result);
        }
    }
}

/// All bytes of a bio's segments, one after the other.
pub(super) fn gather(bio: &Bio) -> Result<AlignedBuffer> {
    let len = bio.segments.iter().map(|segment| segment.len() as usize).sum();
    let mut bytes = AlignedBuffer::zeroed(len)?;
    let mut at = 0;
    for segment in &bio.segments {
        segment.read(|piece| bytes[at..at + piece.len()].copy_from_slice(piece));
        at += segment.len() as usize;
    }
    Ok(bytes)
}
