//! Raw block devices (and files opened O_DIRECT) through io_uring.

use std::path::Path;

use ext4_core::Result;
use ext4_core::device::{BlockDevice, Geometry, Plug};

/// How to open a device.
#[derive(Clone, Debug, Default)]
pub struct UringOptions {
    /// For reading only.
    pub read_only: bool,
    /// Where the file system starts on the device, in bytes (a partition).
    pub offset: u64,
    /// Submission queue entries; 0: 256.
    pub queue_depth: u32,
}

/// A block device driven by one io_uring.
#[derive(Debug)]
pub struct UringDevice {}

impl UringDevice {
    /// Opens `path`; needs a tokio runtime with I/O enabled around it. A block device is opened exclusively (O_EXCL),
    /// so that a mounted one is refused with EBUSY.
    ///
    /// # Errors
    /// The host's; where it forbids io_uring, the message says so and names the file backend.
    pub fn open(_path: &Path, _options: &UringOptions) -> Result<Self> {
        todo!()
    }
}

impl BlockDevice for UringDevice {
    fn geometry(&self) -> &Geometry {
        todo!()
    }
    fn submit(&self, _plug: Plug) {
        todo!()
    }
}
