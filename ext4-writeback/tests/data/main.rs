//! The data path against models, power cuts and faults. e2fsck judges every image.

#[allow(clippy::unwrap_used, reason = "what fails there is a failed test")]
#[path = "../common/mod.rs"]
mod images;

mod allocations;
mod basic;
mod bigalloc;
mod common;
mod crash;
mod cuts;
mod direct;
mod direct_crash;
mod failures_crash;
mod fallocate;
mod fallocate_crash;
mod fallocate_judged;
mod fast_commit_crash;
mod indirect;
mod inline_data;
mod memory;
mod mix;
mod model;
mod promises;
mod published;
mod read_ahead;
mod rows;
mod simulated;
mod speed;
mod statements;
mod store;
mod stress;
mod synchronous;
mod way;
