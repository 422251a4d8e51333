//! The data path against models, power cuts and faults. e2fsck judges every image.

mod basic;
mod common;
mod crash;
mod fallocate;
mod fallocate_crash;
mod fallocate_model;
mod model;
mod speed;
mod statements;
mod stress;
