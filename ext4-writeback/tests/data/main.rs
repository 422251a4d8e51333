//! The data path against models, power cuts and faults. e2fsck judges every image.

mod allocations;
mod basic;
mod common;
mod crash;
mod direct;
mod direct_crash;
mod memory;
mod model;
mod read_ahead;
mod speed;
mod statements;
mod store;
mod stress;
mod synchronous;
