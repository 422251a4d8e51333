//! The state in the superblock (s_state, s_mnt_count, s_error_*, the flag `RECOVER`): mounted or clean, how
//! often mounted, which errors were found.
//!
//! Invariants:
//! - `RECOVER` is on the device before the first transaction can reach the log, and is cleared only after the
//!   log is empty on the device. A kernel that finds it clear throws the log away: if the flag were set too
//!   late or cleared too early, committed changes would be lost.
//! - Nothing here clears the error state: only a check does.
//! - Once the journal has stopped, the superblock on the device gets the findings and nothing else. The one
//!   in memory holds changes of transactions that never commit; if it were written, the orphan list could
//!   name an inode that still has its links.

use std::sync::Arc;

use ext4_core::device::{BioFlags, Segment};
use ext4_core::format::features::{Compat, Incompat, RoCompat};
use ext4_core::format::superblock::{
    ErrorRecord, STATE_ERROR, STATE_ORPHANS, STATE_VALID, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, Superblock,
};
use ext4_core::meta::{SuperblockInfo, credits};
use ext4_core::{Error, Result};

use crate::base::options::MountOptions;
use crate::volume::Volume;
use crate::volume::error_policy::{Finding, Findings};

/// The errors that the superblock had recorded before the journal was replayed over it.
pub(crate) struct FormerErrors {
    count: u32,
    first: ErrorRecord,
    last: ErrorRecord,
    state: u16,
}

impl FormerErrors {
    pub fn of(superblock: &Superblock) -> Self {
        Self {
            count: superblock.error_count,
            first: superblock.first_error,
            last: superblock.last_error,
            state: superblock.state & STATE_ERROR,
        }
    }

    /// Logs when and where errors were found in former mounts, as the kernel does some minutes after each
    /// mount.
    pub fn warn(&self) {
        if self.count == 0 {
            return;
        }
        let text = |function: &[u8; 32]| {
            let text = function.split(|byte| *byte == 0).next().unwrap_or_default();
            String::from_utf8_lossy(text).into_owned()
        };
        for (which, record) in [("first", &self.first), ("last", &self.last)] {
            if record.time != 0 {
                tracing::warn!(
                    errors = self.count,
                    time = record.time,
                    function = text(&record.function),
                    inode = record.inode,
                    block = record.block,
                    code = record.code,
                    "{which} error that the superblock remembers"
                );
            }
        }
    }

    /// Puts the former errors back: a kernel writes errors past the journal, so a copy of the superblock in
    /// the log does not have them.
    fn restore(&self, superblock: &mut Superblock) {
        superblock.state |= self.state;
        if self.count > superblock.error_count {
            superblock.error_count = self.count;
            superblock.first_error = self.first;
            superblock.last_error = self.last;
        }
    }
}

/// Marks the superblock of a file system that is about to run: mounted once more, and to be recovered after a
/// crash.
pub(crate) async fn mark_mounted(
    info: &SuperblockInfo,
    options: &MountOptions,
    former: &FormerErrors,
    journal_error: bool,
) -> Result<()> {
    let now = info.environment.now().seconds;
    info.write_superblock(&mut |superblock| {
        former.restore(superblock);
        if journal_error {
            superblock.state |= STATE_ERROR;
        }
        superblock.mnt_count = superblock.mnt_count.saturating_add(1);
        superblock.mtime = now;
        if let Some(place) = &options.last_mounted {
            superblock.last_mounted = [0; 64];
            for (byte, value) in superblock.last_mounted.iter_mut().zip(place.iter().take(63)) {
                *byte = *value;
            }
        }
        let features = &mut superblock.features;
        if features.compat.contains(Compat::HAS_JOURNAL) {
            features.incompat.insert(Incompat::RECOVER);
            if features.compat.contains(Compat::ORPHAN_FILE) {
                features.ro_compat.insert(RoCompat::ORPHAN_PRESENT);
            }
        } else {
            // Without a journal a crash leaves damage that only a check repairs.
            superblock.state &= !STATE_VALID;
        }
    })
    .await
}

/// Marks the superblock after recovery, for a mount that writes nothing more.
pub(crate) async fn mark_recovered(
    info: &SuperblockInfo,
    former: &FormerErrors,
    journal_error: bool,
) -> Result<()> {
    info.write_superblock(&mut |superblock| {
        former.restore(superblock);
        if journal_error {
            superblock.state |= STATE_ERROR;
        }
        superblock.features.incompat.remove(Incompat::RECOVER);
    })
    .await
}

impl Volume {
    /// Marks the superblock of a file system that has come to rest: clean, with the errors that were found.
    ///
    /// # Errors
    /// Those of the device.
    pub(crate) async fn mark_clean(&self) -> Result<()> {
        let findings = self.errors.take();
        let found_state = self.found_state;
        self.info
            .write_superblock(&mut |superblock| {
                superblock.state = (found_state & !STATE_ORPHANS) | (superblock.state & STATE_ERROR);
                if let Some(findings) = &findings {
                    record(superblock, findings);
                }
                superblock.features.incompat.remove(Incompat::RECOVER);
                // An orphan that could not be deleted is left to the next mount, or to a check.
                if self.orphans.file_is_empty() {
                    superblock.features.ro_compat.remove(RoCompat::ORPHAN_PRESENT);
                }
            })
            .await
    }

    /// Puts findings into the superblock: in a transaction, or past the journal if that has stopped. Findings
    /// that cannot be put there are kept.
    ///
    /// # Errors
    /// Those of the journal and of the device.
    pub(crate) async fn record_findings(&self) -> Result<()> {
        if self.check_writable().is_err() {
            return self.record_on_device().await;
        }
        let Some(findings) = self.errors.take() else { return Ok(()) };
        let recorded = async {
            let handle = self.begin(credits::INODE, "record errors").await?;
            self.info.modify_superblock(&handle, &mut |superblock| record(superblock, &findings)).await
        };
        let recorded = recorded.await;
        if recorded.is_err() {
            self.errors.put_back(findings);
        }
        recorded
    }

    /// Stops all writing after `error`: aborts the journal, and writes the finding into the superblock at
    /// once.
    ///
    /// # Errors
    /// Those of the device.
    pub(crate) async fn stop_writing(&self, error: &Error) -> Result<()> {
        if let Some(journal) = &self.journal {
            journal.abort(error);
        }
        self.record_on_device().await
    }

    /// The journal has stopped with `error`. A task of the journal calls this, which must not block.
    pub(crate) fn journal_aborted(self: &Arc<Self>, error: &Error) {
        let first = self.errors.note_abort(error, self.info.environment.now());
        if !first {
            // The task that stopped writing records it.
            return;
        }
        let volume = Arc::clone(self);
        self.runtime.spawn(Box::pin(async move {
            if let Err(error) = volume.record_on_device().await {
                tracing::warn!(%error, "the error could not be recorded in the superblock");
            }
        }));
    }

    /// Puts findings into the superblock as it lies on the device, past the journal, which has stopped. No
    /// other call is still writing when it returns.
    ///
    /// # Errors
    /// Those of the device.
    pub(crate) async fn record_on_device(&self) -> Result<()> {
        let _one = self.error_writer.lock().await;
        let Some(findings) = self.errors.take() else { return Ok(()) };
        let written = self.write_findings(&findings).await;
        if written.is_err() {
            self.errors.put_back(findings);
        }
        written
    }

    async fn write_findings(&self, findings: &Findings) -> Result<()> {
        let device = self.info.device();
        let unit = u64::from(device.geometry().logical_block_size);
        let first = SUPERBLOCK_OFFSET / unit * unit;
        let end = (SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE as u64).next_multiple_of(unit);
        // The 1,024 bytes, rounded outwards to blocks of the device.
        let mut content = device.read_at(first, (end - first) as usize).await?;
        let at = (SUPERBLOCK_OFFSET - first) as usize;
        let place = &mut content[at..at + SUPERBLOCK_SIZE];
        let mut superblock = Superblock::parse(place)?;
        record(&mut superblock, findings);
        place.copy_from_slice(&superblock.to_bytes());
        let flags = BioFlags::PREFLUSH | BioFlags::FUA | BioFlags::META | BioFlags::SYNC;
        device.write_at(first, vec![Segment::Owned(content)], flags).await
    }
}

fn record(superblock: &mut Superblock, findings: &Findings) {
    let entry = |finding: &Finding| {
        let mut function = [0; 32];
        for (byte, value) in function.iter_mut().zip(finding.operation.bytes().take(31)) {
            *byte = value;
        }
        ErrorRecord {
            time: finding.time.seconds,
            inode: finding.inode.0,
            function,
            code: finding.code,
            ..ErrorRecord::default()
        }
    };
    superblock.state |= STATE_ERROR;
    if superblock.error_count == 0
        && let Some(first) = &findings.first
    {
        superblock.first_error = entry(first);
    }
    if let Some(last) = &findings.last {
        superblock.last_error = entry(last);
    }
    superblock.error_count = superblock.error_count.saturating_add(findings.count);
}
