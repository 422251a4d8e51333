//! TODO header.

pub(crate) mod buffered_write;
pub(crate) mod direct;
pub(crate) mod drop_folios;
pub(crate) mod fallocate;
pub(crate) mod fsync;
pub(crate) mod inline_data;
pub(crate) mod read;
pub(crate) mod read_ahead;
pub(crate) mod truncate;
pub(crate) mod zero;
