//! Raw block devices (and files opened with `O_DIRECT`) through io_uring: an implementation of
//! [`ext4_core::device::BlockDevice`].
//!
//! ```text
//!   task: submit(plug) ──► engine: requests, split into transfers ──► ring: SQEs ─ enter ─► kernel
//!            │ (state lock)      ▲ backlog if the slots are full                        │ CQE, eventfd
//!            └───────────────────┴──── reaper task: retire slots, next phases, backlog ◄┘
//!                                               └──► EndIo of the bios that ended, outside the lock
//! ```
//!
//! `ext4_writeback::Filesystem::mount` takes the device. Without a file system, it is used through the trait:
//!
//! ```no_run
//! use ext4_backend_uring::{UringDevice, UringOptions};
//! use ext4_core::device::BlockDevice;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let options = UringOptions { read_only: true, ..UringOptions::default() };
//! let device = UringDevice::open("/dev/nvme0n1".as_ref(), &options)?;
//! println!("{} bytes, {} transfers in flight", device.geometry().size, device.geometry().queue_depth);
//! let block = device.read_at(0, 4096).await?;
//! println!("{:02x?}", &block[..16]);
//! # Ok(())
//! # }
//! ```
//!
//! Registered memory, fixed vectored transfers and the discard command are used if the kernel has them. If
//! the host forbids io_uring, as container runtimes do, [`UringDevice::open`] says so, and
//! `ext4-backend-file` opens the same device.
//!
//! | file | holds |
//! |---|---|
//! | `device.rs` | [`UringDevice`]: opening, the trait, the reaper task, dropping |
//! | `engine.rs` | requests and their phases, in flight and waiting. Safe code, no system calls |
//! | `polling.rs` | whether the submitter polls for completions |
//! | `transfer.rs` | one transfer: its memory, splitting, bouncing, resuming after a short transfer |
//! | `ring.rs` | the io_uring: every system call and every `unsafe` |
//!
//! Why this form: the caller submits its own plug under a short lock; a reaper task, woken by the ring's
//! eventfd, takes the completions. It was measured against a reactor thread, one submission for each bio, and
//! blocking threads: it has the least latency at depth one and the most transfers per second at depth.
//!
//! Invariant: this crate knows nothing of ext4.
#![deny(unsafe_code)]

mod device;
mod engine;
mod polling;
mod ring;
mod transfer;

pub use device::{UringDevice, UringOptions};
