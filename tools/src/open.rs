//! Opening an image file or a block device with the backend that suits it, and mounting what is on it.
//!
//! | target | to read | to write |
//! |---|---|---|
//! | block device | io_uring | io_uring |
//! | image file | memory map | positioned I/O |
//!
//! A file system that was not unmounted cleanly is recovered also for commands that only read: without its journal it
//! is not one consistent file system. For them that happens in memory, over a device opened for reading, and no byte
//! of the image changes. With `--noload` it is read as it lies.
//!
//! Where a file system has its journal on a device of its own, that is the one given with `--journal-device`, or else
//! the one that udev names by the journal's UUID. Names are not guessed.

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
use ext4_journal::Recovery;
use ext4_journal::dump::Inspection;
use ext4_writeback::{Filesystem, MountOptions};
use ext4_writeback::{JournalReplay, has_external_journal, inspect_journal, replay_journal};

use crate::mount_options::MountOptionList;

/// Which backend drives a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Backend {
    /// io_uring for block devices, positioned I/O and memory maps for files.
    #[default]
    Auto,
    /// Positioned I/O, also on a block device.
    File,
    /// io_uring with direct I/O, also on a file.
    Uring,
}

/// What a command wants to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Only read.
    Read,
    /// Change.
    Write,
}

/// How to open any target: the global options.
#[derive(Clone, Debug)]
pub struct Opener {
    /// The backend.
    pub backend: Backend,
    /// Where the file system starts, in bytes.
    pub offset: u64,
    /// Bytes of cache for data and metadata.
    pub cache: usize,
    /// The device that holds the journal of a file system that has it on another.
    pub journal_device: Option<PathBuf>,
    /// Commands that only read ignore the journal.
    pub noload: bool,
    /// What else was asked for (`-o`).
    pub mount_options: MountOptionList,
}

/// What stands under a name of the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetKind {
    /// Nothing.
    Missing,
    /// A regular file of so many bytes.
    File(u64),
    /// A block device.
    BlockDevice,
}

/// Looks at `path`.
///
/// # Errors
/// The host's, and `EINVAL` for what can hold no file system.
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
    /// Opens `path`. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// The host's (`EBUSY` for a mounted device), and `EINVAL` for what can hold no file system.
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
    /// The host's.
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

    /// The superblock of what is on `path`, as it stands there: without a mount, without recovery.
    ///
    /// # Errors
    /// The host's; corrupt or unsupported where no file system that we know is there.
    pub async fn superblock(&self, path: &Path) -> Result<Superblock> {
        Ok(self.load(path).await?.superblock())
    }

    /// The opened metadata of what is on `path`, as it stands there: without a mount, without recovery.
    ///
    /// # Errors
    /// As [`Opener::superblock`].
    pub async fn load(&self, path: &Path) -> Result<Arc<SuperblockInfo>> {
        let device = self.device(path, Access::Read)?;
        SuperblockInfo::load(device, INSPECTION_CACHE, Arc::new(SystemEnvironment), true).await
    }

    /// Mounts what is on `path`.
    ///
    /// # Errors
    /// The host's, the file system's; `EINVAL` for `noload` where something is to be changed.
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

    /// The log of what is on `path`, to look at: without a mount, without recovery.
    ///
    /// # Errors
    /// The host's; those of [`inspect_journal`].
    pub async fn inspect_journal(&self, path: &Path) -> Result<Inspection> {
        let device = self.device(path, Access::Read)?;
        let options = self.journal_options(&*device, Access::Read).await?;
        inspect_journal(device, &options).await
    }

    /// Replays the log of what is on `path` without a mount.
    ///
    /// # Errors
    /// The host's; those of [`replay_journal`].
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

    /// The journal's own device, where what is on `device` says that it has one and it can be found.
    ///
    /// # Errors
    /// The host's.
    pub async fn journal_device_of(
        &self,
        device: &dyn BlockDevice,
        access: Access,
    ) -> Result<Option<Arc<dyn BlockDevice>>> {
        // What is no file system is named by the mount.
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
        // The partition that the file system is in says nothing of the journal's place.
        let opener = Self { offset: 0, ..self.clone() };
        opener.device(&path, access).map(Some)
    }
}

/// Bytes of metadata cache to look at a superblock with.
const INSPECTION_CACHE: usize = 4 << 20;

/// An image on the host, by which two names of one image are known to be the same.
///
/// # Errors
/// The host's.
pub fn identity(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|source| Error::host("open", path.display().to_string(), &source))
}
