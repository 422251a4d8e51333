//! TODO header.

use ext4_core::meta::extent_tree::MappingState;
use ext4_core::{BlockNumber, LogicalBlock};

/// What lies at a run of blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Status {
    /// Nothing.
    Hole,
    /// Dirty data without blocks, for which space is promised.
    Delayed,
    /// Allocated blocks without data, from this one on.
    Unwritten(BlockNumber),
    /// Data, from this block on.
    Written(BlockNumber),
}

impl Status {
    /// The status `count` blocks further on in the same run.
    pub fn advance(self, count: u32) -> Self {
        match self {
            Self::Hole => Self::Hole,
            Self::Delayed => Self::Delayed,
            Self::Unwritten(block) => Self::Unwritten(block.offset(u64::from(count))),
            Self::Written(block) => Self::Written(block.offset(u64::from(count))),
        }
    }
}

impl From<MappingState> for Status {
    fn from(state: MappingState) -> Self {
        match state {
            MappingState::Hole => Self::Hole,
            MappingState::Written(block) => Self::Written(block),
            MappingState::Unwritten(block) => Self::Unwritten(block),
        }
    }
}

/// An answer of the tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    /// The first block.
    pub start: LogicalBlock,
    /// The block behind the last.
    pub end: LogicalBlock,
    /// What is there.
    pub status: Status,
    /// The sequence number it is true at.
    pub sequence: u64,
}

/// What [`ExtentStatusTree::reserve`](crate::cache::extent_status::ExtentStatusTree::reserve) found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reservation {
    /// Every block of the range is delayed or allocated now.
    Done,
    /// This block is not known: load it and ask again. Nothing was changed.
    NotCached(LogicalBlock),
}
