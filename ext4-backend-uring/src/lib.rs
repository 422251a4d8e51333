//! Raw block devices (and files opened `O_DIRECT`) through io_uring.
//!
//! ```text
//!   task: submit(plug) ──► engine: requests, split into transfers ──► ring: SQEs ── enter ──► kernel
//!            │ (state lock)      ▲ backlog where the slots are full                            │ CQE, eventfd
//!            └───────────────────┴──── reaper task: retire slots, next phases, backlog ◄──────┘
//!                                               └──► EndIo of what has ended, outside the lock
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `device.rs` | opening, the trait, the reaper, the end |
//! | `engine.rs` | requests and their phases: what is in flight, what waits, what comes next. Safe code, no system calls |
//! | `polling.rs` | whether whoever submits watches for the end himself |
//! | `transfer.rs` | one transfer: its memory, splitting, bouncing, going on after a short one |
//! | `ring.rs` | the io_uring itself: every system call and every `unsafe` |
//!
//! Why this form: the caller submits its own plug under a short lock, a task woken by the ring's eventfd reaps. Among
//! the forms that were measured (a reactor thread, one submission for each bio, blocking threads) it has the least
//! latency at depth one and the most transfers at depth.
//!
//! Invariant: this crate knows nothing of ext4.
#![deny(unsafe_code)]

mod device;
mod engine;
mod polling;
mod ring;
mod transfer;

pub use device::{UringDevice, UringOptions};
