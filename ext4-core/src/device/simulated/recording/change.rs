//! What a bio changes on a device, and carrying it out: in full, or torn as a power cut leaves it.

use std::sync::Arc;

use crate::device::simulated::{Image, Random};

/// The unit that a device writes whole or not at all.
const SECTOR: usize = 512;
/// What a discarded range may hold: a byte that shows.
const DISCARDED: u8 = 0xdb;

/// What a submitted bio changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// These bytes are stored at byte `offset`.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Arc<[u8]>,
    },
    /// `len` bytes at byte `offset` read as zeros.
    Zeroes {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// `len` bytes at byte `offset` may hold anything.
    Discard {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Nothing: a flush.
    Flush,
}

impl Change {
    /// The bytes of the device it covers.
    pub(super) fn range(&self) -> std::ops::Range<u64> {
        match self {
            Self::Write { offset, data } => *offset..*offset + data.len() as u64,
            Self::Zeroes { offset, len } | Self::Discard { offset, len } => *offset..*offset + *len,
            Self::Flush => 0..0,
        }
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (left, right) = (self.range(), other.range());
        left.start < right.end && right.start < left.end
    }

    /// Carries it out in full.
    pub(super) fn apply(&self, image: &mut Image) {
        match self {
            Self::Write { offset, data } => image.write(*offset, data),
            Self::Zeroes { offset, len } | Self::Discard { offset, len } => image.fill(*offset, *len, 0),
            Self::Flush => {}
        }
    }

    /// Carries out a part of it, as chance will have it.
    pub(super) fn apply_torn(&self, image: &mut Image, random: &mut Random) {
        match self {
            Self::Write { offset, data } => {
                // Torn: a run from the front, a run to the end, or sectors here and there.
                let sectors = data.len().div_ceil(SECTOR);
                let split = random.below(sectors + 1);
                let kind = random.below(3);
                for (number, sector) in data.chunks(SECTOR).enumerate() {
                    let keep = match kind {
                        0 => number < split,
                        1 => number >= split,
                        _ => random.below(2) == 0,
                    };
                    if keep {
                        image.write(offset + (number * SECTOR) as u64, sector);
                    }
                }
            }
            Self::Zeroes { offset, len } => {
                let part = random.below(usize::try_from(*len).unwrap_or(usize::MAX));
                let part = part - part % SECTOR;
                image.fill(*offset, part as u64, 0);
            }
            Self::Discard { offset, len } => image.fill(*offset, *len, DISCARDED),
            Self::Flush => {}
        }
    }
}
