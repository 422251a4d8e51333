//! The status of runs of blocks (EXTENT_STATUS_*), and the answers of the extent status tree.

use ext4_core::meta::extent_tree::MappingState;
use ext4_core::{BlockNumber, LogicalBlock};

/// The status of a run of blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Status {
    /// A hole: nothing.
    Hole,
    /// Delayed: dirty data without blocks, for which space is reserved.
    Delayed,
    /// Unwritten: allocated blocks without data, from this block of the device on.
    Unwritten(BlockNumber),
    /// Written: data, from this block of the device on.
    Written(BlockNumber),
}

impl Status {
    /// The status of the block that lies `count` blocks further on in the same run.
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

/// An answer of the tree: a run of blocks with one status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    /// The first block of the file.
    pub start: LogicalBlock,
    /// The block of the file behind the last.
    pub end: LogicalBlock,
    /// Its status.
    pub status: Status,
    /// The sequence number at which it is valid.
    pub sequence: u64,
}

/// What [`ExtentStatusTree::reserve`](crate::cache::extent_status::ExtentStatusTree::reserve) found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reservation {
    /// Every block of the range is delayed or allocated now.
    Done,
    /// This block is not known: the caller loads it and asks again. Nothing was changed.
    NotCached(LogicalBlock),
}
