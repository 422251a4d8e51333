//! The data path against models, power cuts and faults. e2fsck judges every image.

mod basic;
mod common;
mod crash;
mod model;
mod rows;
mod simulated;
mod speed;
mod statements;
mod stress;
