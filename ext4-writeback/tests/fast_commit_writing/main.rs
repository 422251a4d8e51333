//! Fast commits as this library writes them, judged by all that replay them: the kernel's mount, e2fsck, and
//! our own recovery.
//!
//! | file | owns |
//! |---|---|
//! | `concurrent` | many at once, and what an fsync costs |
//! | `judge` | what each of the three makes of an image that a crash left |
//! | `mixes` | random operations, cut at every write |
//! | `operations` | operation by operation: fast or full, and what is found afterwards |
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/tree.rs"]
mod tree;

mod concurrent;
mod judge;
mod mixes;
mod operations;

use std::time::Duration;

use ext4_writeback::MountOptions;

/// No timers: what reaches the device is what the test asked for. (A commit interval of an hour: with none at
/// all the writers would write back themselves.)
fn quiet() -> MountOptions {
    MountOptions::new().commit_interval(Some(Duration::from_secs(3600)))
}
