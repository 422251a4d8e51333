//! Opening an image file or block device with the right backend, and mounting its file system.
//!
//! | target | for reading | for writing |
//! |---|---|---|
//! | block device | io_uring | io_uring |
//! | image file | memory map | positional I/O |
//!
//! A file system that was not unmounted cleanly is recovered also for commands that only read: without its
//! journal the metadata is not consistent. For such a command the recovery happens in memory, over a device
//! opened for reading, and no byte of the image changes. With `--noload` the journal is ignored.
//!
//! An external journal is the device given with `--journal-device`, or else the device that udev names by the
//! journal's UUID (`/dev/disk/by-uuid/`). No other device is tried.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ext4_backend_file::{FileDevice, FileOptions, MappedDevice};
use ext4_backend_uring::{UringDevice, UringOptions};
use ext4_core::device::BlockDevice;
use ext4_core::environment::SystemEnvironment;
use ext4_core::format::superblock::Superblock;
use ext4_core::meta::SuperblockInfo;
use ext4_core::{Errno, Error, Result};
use ext4_journal::Inspection;
use ext4_journal::Recovery;
use ext4_writeback::{Filesystem, MountOptions};
use ext4_writeback::{JournalReplay, has_external_journal, inspect_journal, replay_journal};

use crate::mount_options::MountOptionList;

/// The backend for a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Backend {
    /// io_uring for block devices, positional I/O and memory maps for files.
    #[default]
    Auto,
    /// Positional I/O, also on a block device.
    File,
    /// io_uring with direct I/O, also on a file.
    Uring,
}

/// How a command accesses a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read only.
    Read,
    /// Read and write.
    Write,
}

/// The global options: how every target is opened.
#[derive(Clone, Debug)]
pub struct Opener {
    /// The backend.
    pub backend: Backend,
    /// First byte of the file system in the target (a partition).
    pub offset: u64,
    /// Cache for data and metadata, in bytes.
    pub cache: usize,
    /// The device with the external journal.
    pub journal_device: Option<PathBuf>,
    /// True if commands that only read ignore the journal.
    pub noload: bool,
    /// Mount options (`-o`).
    pub mount_options: MountOptionList,
}

/// What a path of the host names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetKind {
    /// Nothing.
    Missing,
    /// A regular file, with its size in bytes.
    File(u64),
    /// A block device.
    BlockDevice,
}

/// Returns what `path` names.
///
/// # Errors
/// - `EISDIR`, `EINVAL`: a directory, or something else that is neither a regular file nor a block device.
/// - The host's errors for stat(2), except `ENOENT`.
pub fn target_kind(path: &Path) -> Result<TargetKind> {
    match std::fs::metadata(path) {
        Ok(metadata) => kind_of(path, &metadata),
        Err(source) if source.kind() == ErrorKind::NotFound => Ok(TargetKind::Missing),
        Err(source) => Err(Error::host("open", path.display().to_string(), &source)),
    }
}

fn kind_of(path: &Path, metadata: &Metadata) -> Result<TargetKind> {
    if metadata.file_type().is_block_device() {
        Ok(TargetKind::BlockDevice)
    } else if metadata.is_file() {
        Ok(TargetKind::File(metadata.len()))
    } else {
        let what = format!("{} is neither an image file nor a block device", path.display());
        Err(Error::posix(if metadata.is_dir() { Errno::EISDIR } else { Errno::EINVAL }, what))
    }
}

impl Opener {
    /// Opens the device `path`. Has to be called within a tokio runtime.
    ///
    /// # Errors
    /// - `ENOENT`: there is no such path.
    /// - `EISDIR`, `EINVAL`: it is neither a regular file nor a block device.
    /// - `EBUSY`: it is mounted, or in use by another process.
    /// - The host's errors for opening it.
    pub fn device(&self, path: &Path, access: Access) -> Result<Arc<dyn BlockDevice>> {
        let kind = target_kind(path)?;
        if kind == TargetKind::Missing {
            return Err(Error::io("open", path.display().to_string(), Errno::ENOENT));
        }
        let read_only = access == Access::Read;
        if self.uses_uring(kind) {
            let options = UringOptions { read_only, offset: self.offset, ..UringOptions::default() };
            return Ok(Arc::new(UringDevice::open(path, &options)?));
        }
        if read_only && self.backend == Backend::Auto {
            return Ok(Arc::new(MappedDevice::open(path, self.offset)?));
        }
        let options = FileOptions { read_only, offset: self.offset, ..FileOptions::default() };
        Ok(Arc::new(FileDevice::open(path, &options)?))
    }

    /// Creates the image file `path`, which must not exist, with `size` bytes.
    ///
    /// # Errors
    /// - `EEXIST`: the file exists.
    /// - The host's errors for creating and opening it.
    pub fn create(&self, path: &Path, size: u64) -> Result<Arc<dyn BlockDevice>> {
        let options = FileOptions { create: Some(size), ..FileOptions::default() };
        let device = FileDevice::open(path, &options)?;
        if self.backend != Backend::Uring {
            return Ok(Arc::new(device));
        }
        drop(device);
        self.device(path, Access::Write)
    }

    fn uses_uring(&self, kind: TargetKind) -> bool {
        match self.backend {
            Backend::Auto => kind == TargetKind::BlockDevice,
            Backend::File => false,
            Backend::Uring => true,
        }
    }

    /// Reads the superblock on `path` as it is on the device: without a mount, without recovery.
    ///
    /// # Errors
    /// - Those of [`Opener::device`], and I/O errors.
    /// - Corrupt or unsupported: `path` holds no ext4 file system, or one with unsupported features.
    pub async fn superblock(&self, path: &Path) -> Result<Superblock> {
        Ok(self.load(path).await?.superblock())
    }

    /// Opens the metadata on `path` as it is on the device: without a mount, without recovery.
    ///
    /// # Errors
    /// Those of [`Opener::superblock`].
    pub async fn load(&self, path: &Path) -> Result<Arc<SuperblockInfo>> {
        let device = self.device(path, Access::Read)?;
        SuperblockInfo::load(device, INSPECTION_CACHE, Arc::new(SystemEnvironment), true).await
    }

    /// Mounts the file system on `path`.
    ///
    /// # Errors
    /// - Those of [`Opener::device`] and of [`Filesystem::mount`].
    /// - `EINVAL`: `noload` is set, and the command writes.
    pub async fn mount(&self, path: &Path, access: Access) -> Result<Filesystem> {
        let access = if self.mount_options.read_only() { Access::Read } else { access };
        let device = self.device(path, access)?;
        let mut options = MountOptions::new()
            .read_only(access == Access::Read)
            .noload(self.noload)
            .cache(self.cache)
            .journal_device(self.journal_device_of(&*device, access).await?);
        self.mount_options.apply(&mut options);
        Filesystem::mount(device, options).await
    }

    /// Opens the log of the file system on `path` for inspection: without a mount, without recovery.
    ///
    /// # Errors
    /// Those of [`Opener::device`] and of [`inspect_journal`].
    pub async fn inspect_journal(&self, path: &Path) -> Result<Inspection> {
        let device = self.device(path, Access::Read)?;
        let options = self.journal_options(&*device, Access::Read).await?;
        inspect_journal(device, &options).await
    }

    /// Replays the log of the file system on `path` without a mount.
    ///
    /// # Errors
    /// Those of [`Opener::device`] and of [`replay_journal`].
    pub async fn replay_journal(&self, path: &Path, mode: Recovery) -> Result<JournalReplay> {
        let access = if mode.check { Access::Read } else { Access::Write };
        let device = self.device(path, access)?;
        let options = self.journal_options(&*device, access).await?;
        replay_journal(device, &options, mode).await
    }

    async fn journal_options(&self, device: &dyn BlockDevice, access: Access) -> Result<MountOptions> {
        Ok(MountOptions::new()
            .cache(INSPECTION_CACHE)
            .journal_device(self.journal_device_of(device, access).await?))
    }

    /// Opens the external journal of the file system on `device`. Returns `None` if the file system has none,
    /// if `noload` is set, or if no device was given and udev names none by the journal's UUID.
    ///
    /// # Errors
    /// Those of [`Opener::device`].
    pub async fn journal_device_of(
        &self,
        device: &dyn BlockDevice,
        access: Access,
    ) -> Result<Option<Arc<dyn BlockDevice>>> {
        // The error for a device without a file system comes from the mount.
        let Ok(superblock) = SuperblockInfo::read_superblock(device).await else { return Ok(None) };
        if !has_external_journal(&superblock) || self.noload {
            return Ok(None);
        }
        let path = match &self.journal_device {
            Some(path) => path.clone(),
            None => {
                let uuid = uuid::Uuid::from_bytes(superblock.journal_uuid).to_string();
                let path = Path::new("/dev/disk/by-uuid").join(uuid);
                if !path.exists() {
                    return Ok(None);
                }
                path
            }
        };
        self.external_journal(&path, access).map(Some)
    }

    /// Opens the device `path` as an external journal: all of it, since `offset` is the place of the file
    /// system only.
    ///
    /// # Errors
    /// Those of [`Opener::device`].
    pub fn external_journal(&self, path: &Path, access: Access) -> Result<Arc<dyn BlockDevice>> {
        Self { offset: 0, ..self.clone() }.device(path, access)
    }
}

/// Metadata cache for reading a superblock or a log, in bytes.
const INSPECTION_CACHE: usize = 4 << 20;

/// The canonical path of an image, which is the same for all of its names.
///
/// # Errors
/// The host's errors for realpath(3).
pub fn identity(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|source| Error::host("open", path.display().to_string(), &source))
}
