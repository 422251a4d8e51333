//! Fast commits as this library writes them, judged by those who replay them: the kernel's mount, e2fsck, and our own recovery.
//!
//! | file | owns |
//! |---|---|
//! | `judge` | what each of the three makes of an image that a crash left |
//! | `operations` | operation by operation: fast or full, and what is found afterwards |
#![allow(clippy::unwrap_used, reason = "what fails here is a failed test")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/tree.rs"]
mod tree;

mod judge;
mod operations;

use std::time::Duration;

use ext4_writeback::MountOptions;

/// No timers: what reaches the device is what the test asked for. (A commit interval of an hour: with none at all the
/// writers would write back themselves.)
fn quiet() -> MountOptions {
    MountOptions { commit_interval: Some(Duration::from_secs(3600)), ..MountOptions::default() }
}
