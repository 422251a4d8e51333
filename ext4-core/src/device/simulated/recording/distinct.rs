//! Distinct states after power cuts, told apart so that the same one is tested once.
//!
//! A cut's images share nearly all their memory with those of the cut before. So a state's fingerprint is
//! made from those of its chunks, and a chunk that was seen is not read again.

use std::collections::HashSet;

use crate::device::simulated::Image;
use crate::device::simulated::image::Fingerprints;

/// The states that a test has seen.
#[derive(Debug, Default)]
pub struct DistinctStates {
    fingerprints: Fingerprints,
    seen: HashSet<u64>,
    repeated: u64,
}

impl DistinctStates {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A number that is the same for equal content and, but for one chance in 2^64, another for other
    /// content.
    pub fn fingerprint(&mut self, image: &Image) -> u64 {
        self.fingerprints.of(image)
    }

    /// Returns true if no image with this content has been shown before.
    pub fn is_new(&mut self, image: &Image) -> bool {
        let fingerprint = self.fingerprint(image);
        let new = self.seen.insert(fingerprint);
        self.repeated += u64::from(!new);
        new
    }

    /// How many different states there were.
    #[must_use]
    pub fn distinct(&self) -> usize {
        self.seen.len()
    }

    /// How many images were states that had been seen.
    #[must_use]
    pub fn repeated(&self) -> u64 {
        self.repeated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_content_is_the_same_state_however_it_came_about() {
        let mut states = DistinctStates::new();
        let mut image = Image::zeroed(1 << 20);
        assert!(states.is_new(&image));
        let empty = image.clone();
        for round in 1..=20_u8 {
            image.write(u64::from(round) * 40_000, &[round; 512]);
            assert!(states.is_new(&image));
            // Made anew, with memory of its own.
            assert!(!states.is_new(&Image::from(&image.to_vec()[..])));
        }
        for round in 1..=20_u8 {
            image.write(u64::from(round) * 40_000, &[0; 512]);
            assert_eq!(states.is_new(&image), round < 20, "zeros are zeros, stored or not");
        }
        assert_eq!(image, empty);
        // The same bytes in another place.
        let (mut left, mut right) = (empty.clone(), empty.clone());
        left.write(0, &[1; 512]);
        right.write(65536, &[1; 512]);
        assert!(states.is_new(&left) && states.is_new(&right));
        assert_eq!((states.distinct(), states.repeated()), (42, 21));
    }
}
