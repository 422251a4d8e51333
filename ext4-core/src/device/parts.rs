//! One owned buffer in several bios: the parts of an [`AlignedBuffer`], each with its own bytes.
//!
//! Direct I/O gives the caller's memory to the device. The file's blocks may lie in many places, so one
//! buffer goes out as many bios, and each bio owns its memory until its completion ([`crate::device`]).
//!
//! Invariant: the parts of a buffer do not overlap, and the memory goes back to the host only when the last
//! of them is gone. Were it otherwise, a device could write into memory that is another's by now.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::memory::{AlignedBuffer, Sector};

/// The memory that parts share.
struct Whole {
    sectors: *mut [Sector],
    len: usize,
}

// SAFETY: the pointer came from a box that this owns; parts access disjoint bytes of it only.
unsafe impl Send for Whole {}
// SAFETY: as above.
unsafe impl Sync for Whole {}

impl Drop for Whole {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::into_raw` in `into_parts`, and nothing else frees it:
        // `from_parts` forgets the `Whole` that it takes the box out of.
        drop(unsafe { Box::from_raw(self.sectors) });
    }
}

/// Some bytes of an [`AlignedBuffer`] that was cut up; see the module.
pub struct BufferPart {
    whole: Arc<Whole>,
    start: usize,
    len: usize,
}

impl fmt::Debug for BufferPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferPart({}..{})", self.start, self.start + self.len)
    }
}

impl BufferPart {
    fn as_ptr(&self) -> *mut u8 {
        self.whole.sectors.cast::<u8>().wrapping_add(self.start)
    }
}

impl Deref for BufferPart {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes lie within the memory that `whole` keeps alive and are initialised; no other part
        // covers them, so a caller that changes them holds this part exclusively.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) }
    }
}

impl DerefMut for BufferPart {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; this part is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len) }
    }
}

impl AlignedBuffer {
    /// Cuts the buffer into parts of these lengths, one behind the other, and what is left.
    ///
    /// # Panics
    /// If the lengths are more than the buffer has.
    #[must_use]
    pub fn into_parts(self, lengths: &[usize]) -> Vec<BufferPart> {
        let total: usize = lengths.iter().sum();
        let (sectors, len) = self.into_sectors();
        assert!(total <= len, "{total} bytes of a buffer of {len}");
        let whole = Arc::new(Whole { sectors: Box::into_raw(sectors), len });
        let mut start = 0;
        let rest = len - total;
        lengths
            .iter()
            .copied()
            .chain(std::iter::once(rest))
            .map(|len| {
                let part = BufferPart { whole: Arc::clone(&whole), start, len };
                start += len;
                part
            })
            .collect()
    }

    /// The buffer that `parts` were cut from, once they are all that is left of it; in any order. `None` for
    /// no parts, and while others exist.
    #[must_use]
    pub fn from_parts(mut parts: Vec<BufferPart>) -> Option<Self> {
        let last = parts.pop()?;
        drop(parts);
        let whole = Arc::into_inner(last.whole)?;
        let (sectors, len) = (whole.sectors, whole.len);
        std::mem::forget(whole);
        // SAFETY: the pointer came from `Box::into_raw` in `into_parts`; no part is left, and the `Whole`
        // that would have freed it is forgotten.
        Some(Self::from_sectors(unsafe { Box::from_raw(sectors) }, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_buffer_again_when_all_are_back() {
        let buffer = AlignedBuffer::copied(&[7; 2048]).unwrap();
        let address = buffer.as_ptr();
        let mut parts = buffer.into_parts(&[512, 1024]);
        assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [512, 1024, 512]);
        parts[1].fill(9);
        std::thread::scope(|scope| {
            for part in &mut parts {
                scope.spawn(move || part[0] = 1);
            }
        });
        parts.reverse();
        let whole = AlignedBuffer::from_parts(parts).unwrap();
        assert_eq!(whole.as_ptr(), address);
        assert_eq!(
            (whole[0], whole[511], whole[512], whole[513], whole[1536], whole[1537]),
            (1, 7, 1, 9, 1, 7)
        );
    }

    #[test]
    fn a_part_that_is_away_keeps_the_memory() {
        let mut parts = AlignedBuffer::copied(&[3; 1024]).unwrap().into_parts(&[512]);
        let away = parts.pop().unwrap();
        assert!(AlignedBuffer::from_parts(parts).is_none());
        assert!(away.iter().all(|byte| *byte == 3));
        assert!(AlignedBuffer::from_parts(vec![away]).is_some(), "the last one brings it back");
        assert!(AlignedBuffer::from_parts(Vec::new()).is_none());
    }
}
