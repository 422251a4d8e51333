//! The memory of one file: folios, the extent status tree, ioends, picked blocks, write errors. It knows
//! neither transaction nor device.
//!
//! Locks: all mutexes here are leaves, but for that of the tree of folios, under which the state of a folio
//! is locked.

pub(crate) mod block_set;
pub(crate) mod error_sequence;
pub(crate) mod extent_status;
pub(crate) mod folio;
pub(crate) mod folio_lists;
pub(crate) mod ioend;
pub(crate) mod ioends;
pub(crate) mod page_cache;
pub(crate) mod picks;
