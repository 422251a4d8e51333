//! The data path against models, power cuts and faults. e2fsck judges every image.

mod basic;
mod bigalloc;
mod common;
mod crash;
mod model;
mod speed;
mod statements;
mod stress;
