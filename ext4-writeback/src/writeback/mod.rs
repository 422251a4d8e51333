//! TODO header.

pub(crate) mod completion;
pub(crate) mod dirty;
pub(crate) mod flusher;
pub(crate) mod gather;
pub(crate) mod inode;
pub(crate) mod size;
pub(crate) mod sync_all;
#[cfg(test)]
mod tests;
pub(crate) mod writepage;
pub(crate) mod writepages;
