//! The journal of a file system that is not mounted: looking at its log, and replaying it without a mount.
//!
//! Invariants:
//! - A replay leaves what a mount for reading and writing would start from: the log empty, `RECOVER` gone only after
//!   that is on the device. Orphans stay for the next mount, or for e2fsck.
//! - What a salvage had to leave out is known before the log is empty: the journal's own superblock says so in the same
//!   write, and keeps saying it until the file system's superblock does. Were it the other way around, a crash could
//!   leave a damaged file system that passes for a sound one.

use std::sync::Arc;

use ext4_core::device::BlockDevice;
use ext4_core::environment::Runtime;
use ext4_core::format::features::{Compat, Incompat};
use ext4_core::meta::SuperblockInfo;
use ext4_core::meta::orphan::Orphans;
use ext4_core::{Errno, Error, Result};
use ext4_journal::dump::Inspection;
use ext4_journal::{Damage, Recovery, RecoveryReport};

use crate::base::options::MountOptions;
use crate::base::runtime::{TokioRuntime, run_to_end};
use crate::mount::found::{Devices, load, look};
use crate::mount::journal_location;
use crate::volume::superblock_state::mark_recovered;

/// What a replay without a mount did, or would do.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JournalReplay {
    /// What the journal found and replayed.
    pub report: RecoveryReport,
    /// The file system is marked as one that has errors: what a salvage left out, or an error that the journal had been
    /// stopped with.
    pub error_recorded: bool,
    /// Inodes that were being deleted or truncated: the next mount, or e2fsck, finishes that.
    pub orphans: usize,
}

/// Opens the log of the file system on `device` to look at it. Writes nothing; of the options only the journal's device
/// and the environment count.
///
/// # Errors
/// `EINVAL` for a file system without a journal, `ENXIO` for a journal device that was not given; corrupt or
/// unsupported by name; the devices'.
pub async fn inspect_journal(device: Arc<dyn BlockDevice>, options: &MountOptions) -> Result<Inspection> {
    let environment = Arc::clone(&options.environment);
    let info = SuperblockInfo::load(device, options.cache / 4, environment, true).await?;
    check_for_journal(&info)?;
    Inspection::open(journal_location::locate(&info, options.journal_device.as_ref()).await?).await
}

/// Replays the log of the file system on `device` in the given mode, and marks the superblock accordingly.
///
/// # Errors
/// As [`inspect_journal`]; `EROFS` for a device that cannot be written, unless this only checks; corrupt where a
/// committed transaction is damaged and that is refused.
pub async fn replay_journal(
    device: Arc<dyn BlockDevice>,
    options: &MountOptions,
    mode: Recovery,
) -> Result<JournalReplay> {
    let runtime = TokioRuntime::or_current(options.runtime.as_ref())?;
    // What the log holds are blocks: replaying it takes no more of the file system than reading does.
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
    // What was read before the replay is old.
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
