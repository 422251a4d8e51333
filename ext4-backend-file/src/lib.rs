//! Image files as block devices.
//!
//! - [`FileDevice`]: positional, vectored I/O on a few threads of its own, so that no task of the caller ever blocks.
//!   It serves block devices as well, where io_uring is not to be had.
//! - [`MappedDevice`]: a read-only memory map, for looking into an image.
//!
//! ```text
//!   submit(plug) ── sorted, neighbours joined ──► queue ──► thread: preadv/pwritev2/fallocate/fdatasync ──► EndIo
//! ```
//!
//! Invariant: this crate knows nothing of ext4.
#![deny(unsafe_code)]

mod file;
mod mapped;
mod syscall;
mod workers;

pub use file::{FileDevice, FileOptions};
pub use mapped::MappedDevice;
