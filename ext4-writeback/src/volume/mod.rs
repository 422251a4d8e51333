//! The volume (ext4_sb_info): the device with its superblock, the journal, and what decides if anything may
//! be written. It knows no inode in memory, no folio and no name.
//!
//! - `handle.rs`: journal handles, and their stand-in without a journal.
//! - `error_policy.rs`, `superblock_state.rs`: errors found, `errors=`, what the superblock says of the
//!   mount.
//! - `fast_commit/`: the changes of the running transaction, as tags.
//! - `discard.rs`: freed blocks on their way back to the allocator.
//!
//! Invariants:
//! - Every change of metadata is made under a handle of [`Volume::begin`] or its variants; these fail with
//!   `EROFS` after an abort, so nothing reaches the journal any more.
//! - A transaction with an operation that does not report all its changes to [`Volume::fast_commits`] is
//!   committed in full.
//!
//! Locks: `freeze` is the outermost lock of the file system. `direct` and `error_writer` are held over device
//! I/O, which is their purpose; only buffer locks are taken under them.

pub(crate) mod discard;
pub(crate) mod error_policy;
pub(crate) mod fast_commit;
pub(crate) mod handle;
pub(crate) mod superblock_state;
pub(crate) mod write_errors;

use std::sync::Arc;

use ext4_core::environment::Runtime;
use ext4_core::format::inode::InodeLayout;
use ext4_core::format::superblock::{ERRORS_PANIC, ERRORS_READ_ONLY, STATE_VALID};
use ext4_core::meta::orphan::Orphans;
use ext4_core::meta::{DirectTransaction, SuperblockInfo};
use ext4_core::{Errno, Error, InodeNumber, IoPurpose, Result, Timestamp, TransactionId};
use ext4_journal::Journal;
use tokio::sync::{Mutex, RwLock};

use crate::base::counters::LiveCounters;
use crate::base::lock_order::{Level, Rank, assert_no_handle};
use crate::base::operation_lock::OperationLock;
use crate::base::options::{MountOptions, OnError};
use crate::volume::discard::Discards;
use crate::volume::error_policy::{Consequence, ErrorPolicy};
use crate::volume::fast_commit::reason::Reason;
use crate::volume::fast_commit::track::{Table, Tracker};
use crate::volume::handle::Handle;
use crate::volume::write_errors::WriteErrors;

/// Without a journal: how many dirty blocks a handle may find before it has them written first.
const DIRECT_DIRTY_BLOCKS: usize = 4096;

/// The volume of a mounted file system. See the module.
pub(crate) struct Volume {
    /// Superblock, groups, buffer cache.
    pub info: Arc<SuperblockInfo>,
    /// The journal, if there is one and the file system can be written.
    pub journal: Option<Arc<Journal>>,
    /// Runs tasks and timers.
    pub runtime: Arc<dyn Runtime>,
    /// How the file system was mounted.
    pub options: MountOptions,
    /// Inodes that are being deleted or truncated.
    pub orphans: Orphans,
    /// The errors that were found, and what follows from them.
    pub errors: ErrorPolicy,
    /// Held while an error is written into the superblock past the journal.
    error_writer: Mutex<()>,
    /// The changes of the running transaction, for fast commits.
    pub fast_commits: Arc<Tracker>,
    /// Freed blocks that are discarded before they go back to the allocator (`discard`).
    pub discards: Option<Arc<Discards>>,
    /// s_umount: held for reading by each operation that changes something, for writing by unmount; the
    /// outermost lock. True if the file system is mounted.
    pub freeze: OperationLock<bool>,
    /// The layout of inodes in the inode table.
    pub inode_layout: InodeLayout,
    /// i_extra_isize of new inodes, in bytes.
    pub extra_isize: u16,
    /// s_state as mount found it; the error state is added to it.
    found_state: u16,
    /// Without a journal: held for reading by handles, for writing while dirty blocks are written.
    direct: Arc<RwLock<()>>,
    /// Counters of the data path.
    pub counters: LiveCounters,
    /// Data that could not be written.
    pub write_errors: WriteErrors,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume").field("device", self.info.device()).finish_non_exhaustive()
    }
}

impl Volume {
    /// The volume of a file system that is about to be mounted: `info` after recovery, with its `orphans`.
    pub fn new(
        info: Arc<SuperblockInfo>,
        journal: Option<Arc<Journal>>,
        orphans: Orphans,
        discards: Option<Arc<Discards>>,
        options: MountOptions,
        runtime: Arc<dyn Runtime>,
    ) -> Self {
        let superblock = info.superblock();
        let table = Table {
            journal: superblock.journal_inum,
            inodes_per_group: superblock.inodes_per_group,
            inodes_per_block: superblock.inodes_per_block(),
            has_clusters: superblock.cluster_bits() != 0,
        };
        let fast_commits = journal.as_ref().is_some_and(|journal| journal.has_fast_commits());
        Self {
            journal,
            runtime,
            orphans,
            fast_commits: Arc::new(Tracker::new(fast_commits, table)),
            discards,
            errors: ErrorPolicy::new(options.errors.unwrap_or(match superblock.errors {
                ERRORS_READ_ONLY => OnError::RemountReadOnly,
                ERRORS_PANIC => OnError::Panic,
                _ => OnError::Continue,
            })),
            error_writer: Mutex::new(()),
            freeze: OperationLock::new(Level::Freeze, true),
            inode_layout: InodeLayout {
                features: superblock.features,
                inode_size: superblock.inode_size,
                block_size: superblock.block_size,
                cluster_sectors: superblock.block_size.sectors() << superblock.cluster_bits(),
                checksum_seed: info.checksum_seed(),
                linux: superblock.creator_os == 0,
                hurd: superblock.creator_os == 1,
            },
            extra_isize: superblock.want_extra_isize.max(superblock.min_extra_isize),
            found_state: superblock.state | STATE_VALID,
            direct: Arc::default(),
            counters: LiveCounters::default(),
            write_errors: WriteErrors::default(),
            options,
            info,
        }
    }

    /// Starts a handle that may change `credits` blocks. Its transaction is committed in full: for operations
    /// that do not report all their changes to [`Volume::fast_commits`].
    ///
    /// # Errors
    /// - `EROFS` if nothing may be written ([`Volume::check_writable`]).
    /// - Those of the journal; without one, those of the device.
    pub async fn begin(&self, credits: u32, operation: &'static str) -> Result<Handle> {
        self.begin_for(credits, operation, Some(Reason::Other)).await
    }

    /// As [`Volume::begin`], for a `reason` that has a name.
    ///
    /// # Errors
    /// As [`Volume::begin`].
    pub async fn begin_ineligible(
        &self,
        credits: u32,
        operation: &'static str,
        reason: Reason,
    ) -> Result<Handle> {
        self.begin_for(credits, operation, Some(reason)).await
    }

    /// Starts a handle whose holder reports to [`Volume::fast_commits`] each change that replay does not find
    /// by itself: names, ranges, inodes that are made and freed. Logging an inode reports the inode.
    ///
    /// # Errors
    /// As [`Volume::begin`].
    pub async fn begin_tracked(&self, credits: u32, operation: &'static str) -> Result<Handle> {
        self.begin_for(credits, operation, None).await
    }

    async fn begin_for(
        &self,
        credits: u32,
        operation: &'static str,
        untracked: Option<Reason>,
    ) -> Result<Handle> {
        self.check_writable()?;
        let rank = Rank::new(Level::Handle);
        rank.check();
        let Some(journal) = &self.journal else {
            if self.info.cache.dirty_blocks() >= DIRECT_DIRTY_BLOCKS {
                self.write_dirty_blocks().await?;
            }
            return Ok(Handle::Direct {
                _no_writeback: Arc::clone(&self.direct).read_owned().await,
                transaction: DirectTransaction::new(Arc::clone(&self.info.cache)),
                _token: rank.taken(),
            });
        };
        let handle = journal.start(credits, operation).await.map_err(of_journal)?;
        let untracked = untracked
            .filter(|_| self.fast_commits.is_enabled())
            .map(|reason| (Arc::clone(&self.fast_commits), reason));
        let handle = Handle::Journal { handle, untracked, _token: rank.taken() };
        handle.mark_untracked();
        Ok(handle)
    }

    /// Without a journal: writes the metadata that changed, while no handle is open (see
    /// [`crate::volume::handle`]).
    ///
    /// # Errors
    /// Those of the device.
    pub async fn write_dirty_blocks(&self) -> Result<()> {
        assert_no_handle("writing dirty blocks");
        let _no_handles = self.direct.write().await;
        self.info.cache.write_dirty().await
    }

    /// Checks that the file system may be written.
    ///
    /// # Errors
    /// - `EROFS` if it is mounted read-only, or an error has stopped all writing.
    /// - `EIO` if an error has poisoned it (`errors=panic`).
    pub fn check_writable(&self) -> Result<()> {
        self.errors.check_alive()?;
        if self.options.read_only {
            return Err(Error::posix(Errno::EROFS, "mounted read-only"));
        }
        match self.journal.as_ref().and_then(|journal| journal.aborted()) {
            // The error that stopped the journal was reported when it occurred; from then on the answer is
            // EROFS.
            Some(Error::Aborted(cause)) => Err(Error::Aborted(cause)),
            Some(cause) => Err(Error::Aborted(cause.to_string())),
            None => self.errors.check(),
        }
    }

    /// The time to stamp into inodes.
    pub fn now(&self) -> Timestamp {
        self.keepable(self.info.environment.now())
    }

    /// `time` as inodes of this size can store it: inodes of 128 bytes have whole seconds from 1901 to 2038.
    /// If more of it were kept in memory, the time would change when the inode leaves memory.
    pub fn keepable(&self, time: Timestamp) -> Timestamp {
        if self.inode_layout.inode_size > 128 {
            return time;
        }
        let seconds = time.seconds.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
        Timestamp { seconds, nanoseconds: 0 }
    }

    /// After `ENOSPC`: commits, so that blocks that were freed lately can be allocated. Returns true if there
    /// were such blocks.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn commit_for_space(&self) -> Result<bool> {
        let Some(journal) = &self.journal else { return Ok(false) };
        if self.info.blocks_awaiting_commit() == 0 {
            return Ok(false);
        }
        self.commit_and_release(journal).await?;
        Ok(true)
    }

    /// Commits, and waits until freed blocks are discarded (if they are to be) and can be allocated. Never
    /// needs a folio.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn commit_and_release(&self, journal: &Arc<Journal>) -> Result<()> {
        journal.force_commit().await.map_err(of_journal)?;
        if let Some(discards) = &self.discards {
            discards.drain().await;
        }
        Ok(())
    }

    /// Keeps `error` for the superblock if it says something of the file system, and does what `errors=` asks
    /// for (ext4_handle_error). `inode` and `operation` are recorded with it. The caller holds no handle and
    /// no lock of an inode.
    pub async fn report(&self, error: &Error, inode: InodeNumber, operation: &'static str) {
        let consequence = self.errors.note(error, inode, operation, self.info.environment.now());
        if self.options.read_only {
            return;
        }
        let recorded = match consequence {
            Consequence::Nothing => return,
            Consequence::Record if self.check_writable().is_ok() => self.record_findings().await,
            Consequence::Record => self.record_on_device().await,
            Consequence::Stop => self.stop_writing(error).await,
        };
        if let Err(error) = recorded {
            tracing::warn!(%error, "an error could not be recorded in the superblock");
        }
    }

    /// Makes `transaction`, the last one that changed a regular file, durable, by a fast commit if possible.
    /// Returns true if that flushed the device after the call.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn commit_file(&self, journal: &Arc<Journal>, transaction: TransactionId) -> Result<bool> {
        let committed = if self.fast_commits.is_enabled() {
            journal.fast_commit(transaction, &*self.fast_commits).await
        } else {
            journal.commit(transaction).await
        };
        committed.map_err(of_journal)
    }

    /// The last step of fsync: makes durable the changes of `transaction`, the last one that an inode took
    /// part in, and all data that completed before the call. Commits the transaction if it is not durable
    /// yet, and flushes the device if the commit did not. With `fast`, a fast commit will do. If the data is
    /// `on_medium` already, the device is flushed only for the metadata that leads to it. Without a journal,
    /// writes all metadata that changed.
    ///
    /// # Errors
    /// Those of the journal and of the device.
    pub async fn make_durable(
        &self,
        transaction: Option<TransactionId>,
        fast: bool,
        on_medium: OnMedium,
    ) -> Result<()> {
        let flushed = match (&self.journal, transaction) {
            (Some(journal), Some(transaction)) if fast => self.commit_file(journal, transaction).await?,
            (Some(journal), Some(transaction)) => journal.commit(transaction).await.map_err(of_journal)?,
            (Some(_), None) => false,
            (None, _) => {
                self.write_dirty_blocks().await?;
                false
            }
        };
        // Without a journal the blocks that lead to the data went just now to the cache of the device.
        let needed = on_medium == OnMedium::No || self.journal.is_none();
        if !flushed && needed { self.flush_device().await } else { Ok(()) }
    }

    /// Flushes the device, unless mounted without barriers.
    ///
    /// # Errors
    /// Those of the device.
    pub async fn flush_device(&self) -> Result<()> {
        if !self.options.barrier {
            return Ok(());
        }
        self.info.device().flush().await.map_err(|error| error.for_purpose(IoPurpose::Other))
    }
}

/// An error of the journal's I/O: if it stopped the journal, that is noted there and once
/// ([`Volume::journal_aborted`]).
fn of_journal(error: Error) -> Error {
    error.for_purpose(IoPurpose::Other)
}

/// Says if data that is to be made durable is on the medium, and not only in the cache of the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OnMedium {
    /// It may be in the cache of the device only.
    No,
    /// It is on the medium: it was written with FUA.
    Yes,
}
