//! Image files as block devices.

use std::path::Path;

use ext4_core::Result;
use ext4_core::device::{BlockDevice, Geometry, Plug};

/// How to open an image file.
#[derive(Clone, Debug, Default)]
pub struct FileOptions {
    /// For reading only.
    pub read_only: bool,
    /// Where the file system starts in the file, in bytes (a partition).
    pub offset: u64,
    /// Create the file, which must not exist, with this size in bytes.
    pub create: Option<u64>,
}

/// An image file, read and written by positioned I/O on threads of its own.
#[derive(Debug)]
pub struct FileDevice {}

impl FileDevice {
    /// Opens `path`. Takes a lock on it (`flock`), so that two writers do not meet; refuses a block device that is
    /// mounted.
    pub fn open(_path: &Path, _options: &FileOptions) -> Result<Self> {
        todo!()
    }
}

impl BlockDevice for FileDevice {
    fn geometry(&self) -> &Geometry {
        todo!()
    }
    fn submit(&self, _plug: Plug) {
        todo!()
    }
}

/// An image file mapped for reading.
#[derive(Debug)]
pub struct MappedDevice {}

impl MappedDevice {
    /// Maps `path` from byte `offset` on.
    pub fn open(_path: &Path, _offset: u64) -> Result<Self> {
        todo!()
    }
}

impl BlockDevice for MappedDevice {
    fn geometry(&self) -> &Geometry {
        todo!()
    }
    fn submit(&self, _plug: Plug) {
        todo!()
    }
}
