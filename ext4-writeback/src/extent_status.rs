//! The extent status tree.

/// What lies where in one file.
#[derive(Debug, Default)]
pub(crate) struct ExtentStatusTree {}

impl ExtentStatusTree {
    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Blocks that are promised but not allocated.
    pub fn delayed_blocks(&self) -> u64 {
        0
    }
}
