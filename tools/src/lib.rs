//! The library behind the programs `ext4` and `ext4-bench`: places inside images, backends, copying trees.
//!
//! ```text
//!   ext4 cp, pack, unpack …     IMAGE:/path      target      a place inside an image
//!      │ parse, call, print                      open        backend, mount
//!      ▼                                         copy        source ──► events ──► sink
//!   this library ──► ext4-writeback, backends    sizing      how large an image has to be
//! ```
//!
//! The binaries are thin: they parse their arguments, call this library, and print.
//!
//! Invariant: this crate knows nothing of the on-disk format; it calls the libraries.
#![forbid(unsafe_code)]

pub mod copy;
pub mod display;
pub mod mount_options;
pub mod open;
pub mod signature;
pub mod size;
pub mod sizing;
pub mod target;
pub mod temporary;

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
