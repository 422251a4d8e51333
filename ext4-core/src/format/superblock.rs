//! The superblock.

use super::features::Features;

/// A checked superblock.
#[derive(Clone, Debug)]
pub struct Superblock {
    /// The feature masks.
    pub features: Features,
}
