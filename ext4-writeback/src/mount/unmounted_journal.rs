//! The journal of an unmounted file system: inspection of its log, and replay without a mount
//! (`e2fsck -E journal_only`).
//!
//! Invariants:
//! - A replay leaves what a mount for writing would start from: an empty log, and `RECOVER` cleared only
//!   after that is on the device. Orphans stay for the next mount, or for e2fsck.
//! - An error is recorded for what a salvage left out before the log is empty: the journal's superblock
//!   records it in the same write (j_errno), and keeps it until the file system's superblock has it. In
//!   another order a crash could leave a damaged file system that is marked as sound.

use std::sync::Arc;

use ext4_core::device::BlockDevice;
use ext4_core::environment::Runtime;
use ext4_core::format::features::{Compat, Incompat};
use ext4_core::meta::SuperblockInfo;
use ext4_core::meta::orphan::Orphans;
use ext4_core::{Errno, Error, Result};
use ext4_journal::Inspection;
use ext4_journal::{Damage, Recovery, RecoveryReport};

use crate::base::options::MountOptions;
use crate::base::runtime::{TokioRuntime, run_to_end};
use crate::mount::found::{Devices, load, look};
use crate::mount::journal_location;
use crate::volume::superblock_state::mark_recovered;

/// What a replay without a mount did, or would do with [`Recovery::check`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JournalReplay {
    /// What the journal found and replayed.
    pub report: RecoveryReport,
    /// True if the file system is marked as having errors: a salvage left something out, or the journal had
    /// been aborted with an error.
    pub error_recorded: bool,
    /// Number of orphans: inodes whose deletion or truncation the next mount, or e2fsck, finishes.
    pub orphans: usize,
}

/// Opens the log of the unmounted file system on `device` for inspection. Writes nothing. Of the options only
/// the journal device, the environment and the size of the cache count.
///
/// # Errors
/// - `EINVAL`: the file system has no journal.
/// - `ENXIO`: its journal is external, and the device was not given.
/// - `EOPNOTSUPP`: unsupported features, which the error names.
/// - `EIO`, `EUCLEAN`: a device, or what it holds.
pub async fn inspect_journal(device: Arc<dyn BlockDevice>, options: &MountOptions) -> Result<Inspection> {
    let environment = Arc::clone(&options.environment);
    let info = SuperblockInfo::load(device, options.cache / 4, environment, true).await?;
    check_for_journal(&info)?;
    Inspection::open(journal_location::locate(&info, options.journal_device.as_ref()).await?).await
}

/// Replays the log of the unmounted file system on `device` as `mode` says, and marks the superblock
/// accordingly.
///
/// # Errors
/// - `EINVAL`: the caller runs outside a tokio runtime and [`MountOptions::runtime`] is `None`.
/// - `EROFS`: a device cannot be written, unless `mode` only checks.
/// - `EUCLEAN`: a committed transaction is damaged, and `mode` refuses that.
/// - Those of [`inspect_journal`].
pub async fn replay_journal(
    device: Arc<dyn BlockDevice>,
    options: &MountOptions,
    mode: Recovery,
) -> Result<JournalReplay> {
    let runtime = TokioRuntime::or_current(options.runtime.as_ref())?;
    // The log holds images of blocks: replaying it needs no feature of the file system that reading does not
    // need.
    let options = MountOptions { read_only: true, noload: false, ..options.clone() };
    let replaying = replay(device, options, mode, Arc::clone(&runtime));
    run_to_end(&runtime, replaying).await
}

async fn replay(
    device: Arc<dyn BlockDevice>,
    options: MountOptions,
    mode: Recovery,
    runtime: Arc<dyn Runtime>,
) -> Result<JournalReplay> {
    let devices = Devices { filesystem: device, journal: options.journal_device.clone() };
    let found = look(&devices, &options, &runtime).await?;
    check_for_journal(&found.info)?;
    let Some(journal) = &found.journal else { unreachable!("the file system has one and it was looked for") };
    if mode.check {
        let report = journal.recover_with(&devices.filesystem, mode).await?;
        let salvaged = mode.damage == Damage::Salvage && !report.findings.is_empty();
        let error_recorded = found.journal_error || salvaged;
        return Ok(JournalReplay { report, error_recorded, orphans: 0 });
    }
    devices.check_writable()?;
    let report = journal.recover_with(&devices.filesystem, mode).await?;
    // Blocks that were read before the replay may be old.
    let mut info = load(&devices, &options).await?;
    if !report.fast_commits.is_empty() {
        crate::recovery::finish_recovery(&info, journal, &report.fast_commits).await?;
        info = load(&devices, &options).await?;
    }
    let error_recorded = journal.recorded_errno() != 0;
    if error_recorded || info.superblock().features.incompat.contains(Incompat::RECOVER) {
        mark_recovered(&info, &found.former, error_recorded).await?;
    }
    if error_recorded {
        journal.clear_errno().await?;
    }
    let orphans = Orphans::load(&info).await?.pending().len();
    Ok(JournalReplay { report, error_recorded, orphans })
}

fn check_for_journal(info: &SuperblockInfo) -> Result<()> {
    if info.superblock().features.compat.contains(Compat::HAS_JOURNAL) {
        return Ok(());
    }
    Err(Error::posix(Errno::EINVAL, "the file system has no journal"))
}
