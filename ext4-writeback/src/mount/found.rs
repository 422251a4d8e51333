//! The first part of mounting (the kernel's `ext4_load_super`): superblock and group descriptors read and
//! verified, the journal found and opened. Writes nothing.
//!
//! Invariant: until recovery nothing else of the file system is read, since the log holds newer images of
//! every other block; what was read here is read again after it.

use std::sync::Arc;

use ext4_core::device::BlockDevice;
use ext4_core::environment::Runtime;
use ext4_core::format::features::Compat;
use ext4_core::format::superblock::STATE_ERROR;
use ext4_core::meta::SuperblockInfo;
use ext4_core::{Errno, Error, Result};
use ext4_journal::{Journal, JournalOptions};

use crate::base::options::MountOptions;
use crate::mount::journal_location;
use crate::volume::superblock_state::FormerErrors;

/// The devices of one file system.
#[derive(Clone, Debug)]
pub(crate) struct Devices {
    /// The device of the file system.
    pub filesystem: Arc<dyn BlockDevice>,
    /// The journal device, if it was given.
    pub journal: Option<Arc<dyn BlockDevice>>,
}

impl Devices {
    /// Checks that the devices can be written.
    ///
    /// # Errors
    /// `EROFS`: one of them cannot.
    pub fn check_writable(&self) -> Result<()> {
        let read_only = |device: &Arc<dyn BlockDevice>| device.geometry().read_only;
        if read_only(&self.filesystem) {
            return Err(Error::posix(Errno::EROFS, "the device cannot be written; mount it read-only"));
        }
        if self.journal.as_ref().is_some_and(read_only) {
            return Err(Error::posix(Errno::EROFS, "the journal's device cannot be written"));
        }
        Ok(())
    }
}

/// A file system as it lies on the device, before recovery.
pub(crate) struct Found {
    /// Superblock and group descriptors.
    pub info: Arc<SuperblockInfo>,
    /// The journal, which may need recovery; `None` without one, and with `noload`.
    pub journal: Option<Arc<Journal>>,
    /// What the superblock says of earlier errors.
    pub former: FormerErrors,
    /// True if the journal recorded an error when it was aborted (j_errno).
    pub journal_error: bool,
}

impl Found {
    /// Returns true if the log is not empty. It is replayed even if the superblock lacks `RECOVER`, as e2fsck
    /// does.
    pub fn needs_recovery(&self) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.needs_recovery())
    }

    /// Warns of recorded errors, once at each mount.
    pub fn warn_of_errors(&self) {
        let superblock = self.info.superblock();
        if superblock.state & STATE_ERROR != 0 || self.journal_error {
            tracing::warn!("the file system has errors: a check is recommended");
        }
        self.former.warn();
    }
}

/// Reads and verifies superblock and group descriptors.
///
/// # Errors
/// - `EUCLEAN`, `EOPNOTSUPP`: no ext4 file system, a corrupt one, or one with unsupported features.
/// - `EIO`: the device failed.
pub(crate) async fn load(devices: &Devices, options: &MountOptions) -> Result<Arc<SuperblockInfo>> {
    let (device, environment) = (Arc::clone(&devices.filesystem), Arc::clone(&options.environment));
    SuperblockInfo::load(device, options.cache / 4, environment, options.read_only).await
}

/// Loads the file system, and opens its journal without recovering it. Writes nothing.
///
/// # Errors
/// - Those of [`load`] and [`journal_location::locate`].
/// - `EUCLEAN`, `EOPNOTSUPP`: a corrupt journal superblock, or one with unsupported features.
pub(crate) async fn look(
    devices: &Devices,
    options: &MountOptions,
    runtime: &Arc<dyn Runtime>,
) -> Result<Found> {
    let info = load(devices, options).await?;
    let superblock = info.superblock();
    let former = FormerErrors::of(&superblock);
    if !superblock.features.compat.contains(Compat::HAS_JOURNAL) || options.noload {
        return Ok(Found { info, journal: None, former, journal_error: false });
    }
    let location = journal_location::locate(&info, devices.journal.as_ref()).await?;
    let journal_options =
        JournalOptions { commit_interval: options.commit_interval, barrier: options.barrier };
    let environment = Arc::clone(&options.environment);
    let journal = Journal::open(location, journal_options, environment, Arc::clone(runtime)).await?;
    let journal_error = journal.recorded_errno() != 0;
    Ok(Found { info, journal: Some(journal), former, journal_error })
}
