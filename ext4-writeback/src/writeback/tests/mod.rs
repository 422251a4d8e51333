//! Tests of writepages and of its races with truncation, fallocate and hole punching.

pub(crate) mod races;
pub(crate) mod writepages;
