//! TODO header.

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

/// What a file system lies on.
#[derive(Clone, Debug)]
pub(crate) struct Devices {
    pub filesystem: Arc<dyn BlockDevice>,
    /// The journal's own, where it has one.
    pub journal: Option<Arc<dyn BlockDevice>>,
}

impl Devices {
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

/// A file system as it lies on the device.
pub(crate) struct Found {
    pub info: Arc<SuperblockInfo>,
    /// Not recovered, where it needs that.
    pub journal: Option<Arc<Journal>>,
    /// What the superblock said of errors.
    pub former: FormerErrors,
    /// The journal was stopped by an error in its last life.
    pub journal_error: bool,
}

impl Found {
    /// True where the log holds something. It is replayed also where the superblock does not say so, as e2fsck does.
    pub fn needs_recovery(&self) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.needs_recovery())
    }

    /// Says what is known of errors, once at each mount.
    pub fn warn_of_errors(&self) {
        let superblock = self.info.superblock();
        if superblock.state & STATE_ERROR != 0 || self.journal_error {
            tracing::warn!("the file system has errors: a check is recommended");
        }
        self.former.warn();
    }
}

pub(crate) async fn load(devices: &Devices, options: &MountOptions) -> Result<Arc<SuperblockInfo>> {
    let (device, environment) = (Arc::clone(&devices.filesystem), Arc::clone(&options.environment));
    SuperblockInfo::load(device, options.cache / 4, environment, options.read_only).await
}

/// Reads superblock and groups, finds the journal and looks at it. Writes nothing.
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
