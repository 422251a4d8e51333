//! The data path against models, power cuts and faults. e2fsck judges every image.

mod basic;
mod common;
mod crash;
mod direct;
mod direct_crash;
mod model;
mod read_ahead;
mod rows;
mod simulated;
mod speed;
mod statements;
mod store;
mod stress;
mod synchronous;
