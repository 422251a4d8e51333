//! The ways in which delayed data becomes part of its file.

use ext4_core::device::simulated::Image;
use ext4_writeback::{Allocation, MountOptions};

use super::common::make_image;

/// A way for delayed data to become part of its file: with the same tests, for the same promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Unwritten blocks, converted when the data is there.
    Unwritten,
    /// Blocks picked in memory, published when the data is there.
    Publish,
    /// The same, always so where a file has no extents (an ext3 image).
    Indirect,
}

impl Way {
    /// What mke2fs is told besides.
    pub fn features(self) -> &'static [&'static str] {
        match self {
            Self::Unwritten | Self::Publish => &[],
            Self::Indirect => &["-t", "ext3"],
        }
    }

    /// An image for it; see [`make_image`].
    pub fn image(self, mib: u64, block_size: u32, options: &[&str], fill: u8) -> Image {
        make_image(mib, block_size, &[self.features(), options].concat(), fill)
    }

    /// `options` with what it takes.
    pub fn mounted(self, options: MountOptions) -> MountOptions {
        let allocation = if self == Self::Publish { Allocation::Publish } else { Allocation::Unwritten };
        options.allocation(allocation)
    }
}
