//! The data path against models, power cuts and faults. e2fsck judges every image.
//!
//! `g_6_…` in the name of a test refers to statement G-6 of `docs/data-path.md`, `k_05_…` to row K-05.

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
mod memory_map;
mod mix;
mod model;
mod promises;
mod published;
mod read_ahead;
mod rows;
mod simulated;
mod speed;
mod statements;
mod stress;
mod synchronous;
mod way;
