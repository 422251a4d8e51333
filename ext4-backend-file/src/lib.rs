//! Image files as block devices: two implementations of [`ext4_core::device::BlockDevice`].
//!
//! - [`FileDevice`]: positional, vectored I/O on a few threads of the device. No task of the caller blocks.
//!   It also opens a block device, for hosts without io_uring.
//! - [`MappedDevice`]: a read-only memory map, for looking into an image.
//!
//! ```text
//!   submit(plug)
//!      │ sorted by offset, neighbours joined
//!      ▼
//!    queue ──► thread: preadv, pwritev2, fallocate, fdatasync ──► EndIo of each bio
//! ```
//!
//! `ext4_writeback::Filesystem::mount` takes either device. Without a file system, the device is used through
//! the trait:
//!
//! ```
//! use ext4_backend_file::{FileDevice, FileOptions};
//! use ext4_core::device::{AlignedBuffer, BioFlags, BlockDevice, Segment};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("disk.img");
//! // A sparse file of 16 MiB, which must not exist before.
//! let device = FileDevice::open(&path, &FileOptions { create: Some(16 << 20), ..FileOptions::default() })?;
//! let mut buffer = AlignedBuffer::zeroed(4096)?;
//! buffer[..5].copy_from_slice(b"hello");
//! device.write_at(8192, vec![Segment::Owned(buffer)], BioFlags::empty()).await?;
//! device.flush().await?; // the write survives a power cut from here on
//! assert_eq!(&device.read_at(8192, 4096).await?[..5], b"hello");
//! # Ok(())
//! # }
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
