//! Mounting.
//!
//! ```text
//!   superblock, groups ─► journal found ─► recovered ─► read again ─► marked as mounted ─► journal runs ─►
//!   orphans finished ─► flusher runs
//! ```
//!
//! Invariant: nothing of the file system but its superblock, its group descriptors and the journal's inode is looked
//! at before recovery; what the log holds is newer. All of it is read again afterwards.
//!
//! Where the journal lies: `journal_location.rs`; mounting to read only, which never writes: `read_only.rs`.

pub(crate) mod found;
pub(crate) mod journal_change;
pub(crate) mod journal_location;
pub(crate) mod mkfs;
pub(crate) mod read_only;
pub(crate) mod run;
pub(crate) mod unmount;
pub(crate) mod unmounted_journal;

use std::sync::Arc;

use ext4_core::device::BlockDevice;
use ext4_core::environment::Runtime;
use ext4_core::format::features::RoCompat;
use ext4_core::{Errno, Error, Result};

use crate::base::options::{Allocation, MountOptions};
use crate::base::runtime::{TokioRuntime, run_to_end};
use crate::filesystem::Filesystem;
use crate::mount::found::{Devices, look};
use crate::mount::run::{recover, run};

impl Filesystem {
    /// Mounts: verifies the superblock, recovers the journal, processes orphans, marks the superblock as mounted.
    /// Read-only, nothing is written: a file system that needs recovery is recovered in memory.
    ///
    /// # Errors
    /// Corrupt, or unsupported with the names of the features; `EROFS` for a device that cannot be written and is to
    /// be; `EINVAL` for options that contradict each other or the file system, and outside a tokio runtime if
    /// [`MountOptions::runtime`] is `None`; `ENXIO` for a journal device that was
    /// not given; the devices'.
    pub async fn mount(device: Arc<dyn BlockDevice>, options: MountOptions) -> Result<Self> {
        let runtime = TokioRuntime::or_current(options.runtime.as_ref())?;
        let mounting = mount(device, options, Arc::clone(&runtime));
        run_to_end(&runtime, mounting).await
    }
}

async fn mount(
    device: Arc<dyn BlockDevice>,
    options: MountOptions,
    runtime: Arc<dyn Runtime>,
) -> Result<Filesystem> {
    let devices = Devices { filesystem: device, journal: options.journal_device.clone() };
    if options.read_only {
        return crate::mount::read_only::mount(devices, options, runtime).await;
    }
    if options.noload {
        let context = "noload: with the journal ignored a file system can only be mounted read-only";
        return Err(Error::posix(Errno::EINVAL, context));
    }
    let found = look(&devices, &options, &runtime).await?;
    let features = found.info.features();
    if options.allocation == Allocation::Publish && features.ro_compat.contains(RoCompat::BIGALLOC) {
        let context = "alloc=publish: blocks that share a cluster (bigalloc) cannot be picked one by one";
        return Err(Error::posix(Errno::EINVAL, context));
    }
    devices.check_writable()?;
    let opened = recover(&devices, found, &options).await?;
    run(opened, options, runtime).await
}
