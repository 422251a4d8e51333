//! What the command-line tools are made of: naming a place inside an image, choosing a backend, copying trees in and
//! out. The binaries stay thin: they parse their arguments, call in here, and print.
//!
//! Invariant: this crate knows nothing of the on-disk format; it calls the libraries.
#![forbid(unsafe_code)]

pub mod copy;
pub mod display;
pub mod mount_options;
pub mod open;
pub mod size;
pub mod sizing;
pub mod target;
pub mod temporary;

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
