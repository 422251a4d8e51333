//! Unwritten blocks, publication and indirect blocks: the ways in which delayed data becomes part of its
//! file.

use ext4_core::device::simulated::Image;
use ext4_writeback::{Allocation, MountOptions};

use super::common::make_image;

/// A way for delayed data to become part of its file. All of them pass the same tests of the same guarantees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Unwritten blocks, converted when the data is there.
    Unwritten,
    /// Blocks picked in memory, published when the data is there.
    Publish,
    /// Publication too, always so if a file has no extents (an ext3 image).
    Indirect,
}

impl Way {
    /// Further arguments of mke2fs.
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
