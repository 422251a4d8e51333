//! TODO header.

pub(crate) mod races;
pub(crate) mod writepages;
