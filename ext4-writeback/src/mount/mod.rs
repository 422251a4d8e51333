//! Mounting and unmounting (the kernel's `ext4_fill_super`, `ext4_put_super`), and work on an unmounted file
//! system's journal.
//!
//! ```text
//!   superblock, groups ─► journal found ─► recovered ─► read again ─► marked as mounted ─► journal runs ─►
//!   orphans finished ─► flusher runs
//! ```
//!
//! | file | what |
//! |---|---|
//! | `found`, `run` | before recovery; recovery and all that runs afterwards |
//! | `read_only` | mounting read-only, which never writes |
//! | `unmount` | bringing everything to rest |
//! | `journal_location`, `journal_change` | where the journal lies; adding and removing it |
//! | `unmounted_journal` | inspection and replay of the log without a mount |
//! | `mkfs` | making a file system |
//!
//! Invariant: before recovery nothing of the file system is read but its superblock, its group descriptors
//! and the journal's inode; the log may hold newer images of everything else. All of it is read again after
//! recovery.

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
    /// Mounts the file system on `device`: verifies the superblock, recovers the journal, processes orphans,
    /// marks the superblock as mounted. A read-only mount writes nothing: a file system that needs recovery
    /// is recovered in memory.
    ///
    /// # Errors
    /// - `EINVAL`: the caller runs outside a tokio runtime and [`MountOptions::runtime`] is `None`; options
    ///   contradict each other or the file system; the given journal device is another file system's.
    /// - `EROFS`: the device cannot be written, and the mount is not read-only.
    /// - `ENXIO`: the file system has an external journal, and its device was not given.
    /// - `ENOSPC`: recovery in memory needs more than [`MountOptions::overlay_limit`].
    /// - `EOPNOTSUPP`: the file system has unsupported features, which the error names.
    /// - `EIO`, `EUCLEAN`: a device, or what it holds.
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
