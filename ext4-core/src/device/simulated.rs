//! Simulated devices.

use parking_lot::RwLock;

use super::{BioFlags, BlockDevice, Geometry, Operation, Plug};
use crate::error::Result;

/// A device in memory. Nothing in it is ever volatile: a completed write is there.
#[derive(Debug)]
pub struct MemoryDevice {
    geometry: Geometry,
    content: RwLock<Vec<u8>>,
}

impl MemoryDevice {
    /// A device of `size` bytes of zeros with 512-byte logical blocks.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self::from_content(vec![0; usize::try_from(size).expect("a memory device fits in memory")])
    }

    /// A device that holds `content`.
    #[must_use]
    pub fn from_content(content: Vec<u8>) -> Self {
        let geometry = Geometry {
            size: content.len() as u64,
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
        Self { geometry, content: RwLock::new(content) }
    }

    /// A copy of everything on the device.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.content.read().clone()
    }

    fn carry_out(&self, bio: &mut super::Bio) -> Result<()> {
        bio.check(&self.geometry)?;
        let start = usize::try_from(bio.offset).expect("the range was checked");
        let len = usize::try_from(bio.len).expect("the range was checked");
        match bio.operation {
            Operation::Flush => {}
            Operation::Discard | Operation::WriteZeroes => {
                self.content.write()[start..start + len].fill(0);
            }
            Operation::Write => {
                let mut content = self.content.write();
                let mut at = start;
                for segment in &bio.segments {
                    at += segment.read(|bytes| {
                        content[at..at + bytes.len()].copy_from_slice(bytes);
                        bytes.len()
                    });
                }
            }
            Operation::Read => {
                let content = self.content.read();
                let mut at = start;
                for segment in &mut bio.segments {
                    at += segment
                        .fill(|bytes| {
                            bytes.copy_from_slice(&content[at..at + bytes.len()]);
                            bytes.len()
                        })
                        .expect("Bio::check refuses to read into an image");
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
