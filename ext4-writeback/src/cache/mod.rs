//! TODO header.

pub(crate) mod block_set;
pub(crate) mod error_sequence;
pub(crate) mod extent_status;
pub(crate) mod folio;
pub(crate) mod folio_lists;
pub(crate) mod ioend;
pub(crate) mod ioends;
pub(crate) mod page_cache;
pub(crate) mod picks;
