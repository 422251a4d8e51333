//! An image file mapped for reading: every read is one copy from the host's page cache, within `submit`.
//!
//! The hazard: if another process truncates the file while it is mapped, touching the part that is gone
//! raises `SIGBUS`. The length is checked at each submit, and a shared `flock` keeps writers of this library
//! away; a foreign process that truncates between the check and the copy still ends this process. For images
//! that other programs may change, use [`crate::FileDevice`].
#![allow(unsafe_code)]

use std::path::Path;

use ext4_core::device::host::{HostFile, HostOptions};
use ext4_core::device::{Bio, BlockDevice, Geometry, Operation, Plug};
use ext4_core::{Errno, Error, Result};

/// An image file mapped for reading. Writes fail with `EROFS`; a read behind the end of a file that was
/// truncated fails with `EIO`.
///
/// A process that truncates the file while a read copies from it ends this process with `SIGBUS`: use
/// [`crate::FileDevice`] for a file that other programs may change.
#[derive(Debug)]
pub struct MappedDevice {
    host: HostFile,
    geometry: Geometry,
    map: Option<memmap2::Mmap>,
}

impl MappedDevice {
    /// Maps `path` from byte `offset` to its end. `offset` is a multiple of the logical block size.
    ///
    /// # Errors
    /// - `EBUSY`: another process has the file open for writing through this library.
    /// - `EFBIG`: the file is larger than the address space.
    /// - `EINVAL`: `offset` does not lie within the file, or not on a logical block.
    /// - `EISDIR`, `ENOTBLK`: `path` is neither a regular file nor a block device.
    /// - The host's errors for opening and mapping the file.
    pub fn open(path: &Path, offset: u64) -> Result<Self> {
        let host = HostFile::open(path, &HostOptions { read_only: true, offset, ..HostOptions::default() })?;
        let failed = |source| Error::host("map", path.display().to_string(), &source);
        let geometry = Geometry {
            memory_alignment: 1,
            volatile_cache: false,
            read_only: true,
            ..host.geometry().clone()
        };
        let len = usize::try_from(geometry.size)
            .map_err(|_| Error::posix(Errno::EFBIG, format!("map {}: larger than memory", path.display())))?;
        let map = if len == 0 {
            // mmap refuses to map nothing.
            None
        } else {
            // SAFETY: the map is only read, by copies of single ranges (`carry_out`); the module says what
            // happens if the file is truncated. A foreign writer may change bytes under the map, as on any
            // device with two users: what is read is checked like anything from a device.
            Some(
                unsafe { memmap2::MmapOptions::new().offset(offset).len(len).map(host.file()) }
                    .map_err(failed)?,
            )
        };
        Ok(Self { host, geometry, map })
    }

    fn carry_out(&self, bio: &mut Bio) -> Result<()> {
        bio.check(&self.geometry)?;
        if bio.operation == Operation::Flush {
            return Ok(());
        }
        let fail = |errno| {
            let location = format!("{} of {}", bio.location(), self.host.path().display());
            Err(Error::io("read", location, errno))
        };
        if !self.host.is_block_device() {
            let end = self.host.offset() + bio.offset + bio.len;
            match self.host.file().metadata() {
                Ok(metadata) if metadata.len() >= end => {}
                Ok(_) => return fail(Errno::EIO),
                Err(source) => return Err(Error::host("read", bio.location(), &source)),
            }
        }
        let Some(map) = &self.map else { return fail(Errno::EIO) };
        let Ok(mut at) = usize::try_from(bio.offset) else { return fail(Errno::EIO) };
        for segment in &mut bio.segments {
            at += segment
                .fill(|bytes| {
                    bytes.copy_from_slice(&map[at..at + bytes.len()]);
                    bytes.len()
                })
                .unwrap_or(0);
        }
        Ok(())
    }
}

impl BlockDevice for MappedDevice {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&self, plug: Plug) {
        for mut bio in plug {
            let result = self.carry_out(&mut bio);
            bio.complete(result);
        }
    }
}
