//! The mounted file system: what all of it shares, and how an operation enters it.
//!
//! Invariants:
//! - Every operation that changes something runs inside [`RunToEnd`] and under `freeze`, held for reading. So a caller
//!   that stops waiting leaves no half operation behind, and unmount, which takes `freeze` for writing, finds none
//!   running.
//! - Nothing that runs in the background holds the file system but weakly: dropping the last [`Filesystem`] is a
//!   crash, after which nobody touches the device.
//!
//! Locks, outermost first: `freeze` → `rename` → the inodes' (see `inode_info`).

mod close;
mod deletion;
mod journal_change;
mod journal_location;
mod mount;
mod read_only;
mod statfs;
mod superblock_state;
mod sync;
mod synchronous;
mod unmount;
mod unmounted_journal;

pub use journal_change::{ExternalJournal, NewJournalOptions, create_journal, remove_journal};
pub use journal_location::has_external_journal;
pub use unmounted_journal::{JournalReplay, inspect_journal, replay_journal};

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ext4_core::device::{BlockDevice, MemoryPool};
use ext4_core::environment::{RunToEnd, Runtime};
use ext4_core::format::inode::{Inode, InodeLayout};
use ext4_core::format::superblock::Superblock;
use ext4_core::meta::mkfs::MkfsOptions;
use ext4_core::meta::orphan::Orphans;
use ext4_core::meta::{DirectTransaction, SuperblockInfo, Transaction as _, inode_table};
use ext4_core::{Errno, Error, InodeNumber, Timestamp};
use ext4_journal::Journal;
use ext4_journal::create::NewJournal;
use tokio::sync::{Mutex, RwLock};

use crate::discard::Discards;
use crate::error_policy::{Consequence, ErrorPolicy};
use crate::extent_status::Reclaimable;
use crate::fast_commit::{Reason, Tracker};
use crate::handle::Handle;
use crate::inode_cache::InodeCache;
use crate::inode_info::InodeInfo;
use crate::lock_order::HandleToken;
use crate::open_options::OpenOptions;
use crate::operation_lock::OperationLock;
use crate::runtime::run_to_end;
use crate::{File, MountOptions, Result};

/// A mounted ext4 file system. Cloning shares it. Dropping the last one without [`Filesystem::unmount`] is a crash,
/// and as safe as one.
#[derive(Clone, Debug)]
pub struct Filesystem {
    pub(crate) inner: Arc<FilesystemInner>,
}

/// What all of a mounted file system share. Tasks that run in the background hold it weakly, so that dropping the last
/// [`Filesystem`] lets go of the device.
pub(crate) struct FilesystemInner {
    /// Superblock, groups, buffer cache.
    pub info: Arc<SuperblockInfo>,
    /// The journal, where there is one and the file system can be written.
    pub journal: Option<Arc<Journal>>,
    /// Who runs tasks.
    pub runtime: Arc<dyn Runtime>,
    /// How it was mounted.
    pub options: MountOptions,
    /// Inodes that are being deleted or truncated.
    pub orphans: Orphans,
    /// Memory for folios.
    pub pool: Arc<MemoryPool>,
    /// Dirty accounting and the flusher.
    pub writeback: crate::flusher::Writeback,
    /// Inodes whose times are logged when there is another reason.
    pub lazy_times: crate::lazytime::LazyTimes,
    /// Bytes of folios that somebody views.
    pub viewed: Arc<AtomicUsize>,
    /// What is known of the extents of all inodes, as far as it could be read again: how much it is.
    pub reclaimable_extents: Arc<Reclaimable>,
    /// Freed blocks on their way back to the allocator, where they are discarded first.
    pub discards: Option<Arc<Discards>>,
    /// Inodes in memory.
    pub inodes: InodeCache,
    /// What was found wrong, and what follows from it.
    pub errors: ErrorPolicy,
    /// Held while an error is written into the superblock past the journal.
    error_writer: Mutex<()>,
    /// What the running transaction has done, for fast commits.
    pub fast_commits: Arc<Tracker>,
    /// Held for reading by every operation that changes something, for writing by unmount: the outermost lock. False
    /// when the file system is no longer mounted.
    pub freeze: OperationLock<bool>,
    /// Held by renames from one directory into another (s_vfs_rename_mutex): the tree of directories stands still.
    pub rename: Mutex<()>,
    /// How inodes lie in their table.
    pub inode_layout: InodeLayout,
    /// What new inodes' extra fields hold, in bytes.
    pub extra_isize: u16,
    /// The first inode that a name may have, but for the root.
    pub first_inode: InodeNumber,
    /// Blocks of fixed metadata and of the journal, for statfs.
    overhead_blocks: u64,
    /// s_state as it was found; errors are added to it.
    found_state: u16,
    /// Without a journal: held for reading by handles, for writing while dirty blocks are written.
    direct: Arc<RwLock<()>>,
}

impl std::fmt::Debug for FilesystemInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filesystem")
            .field("device", self.info.device())
            .field("journal", &self.journal.is_some())
            .field("inodes", &self.inodes)
            .finish_non_exhaustive()
    }
}

/// Without a journal: how many dirty blocks a handle may find before it has them written first.
const DIRECT_DIRTY_BLOCKS: usize = 4096;

impl FilesystemInner {
    /// Starts a handle that may change `credits` blocks. Its transaction has to be committed in full: for operations
    /// that do not tell [`FilesystemInner::fast_commits`] all they do.
    ///
    /// # Errors
    /// `EROFS`, or the journal's.
    pub async fn begin(&self, credits: u32, operation: &'static str) -> Result<Handle> {
        self.begin_for(credits, operation, Some(Reason::Other)).await
    }

    /// As [`FilesystemInner::begin`], where the reason has a name.
    ///
    /// # Errors
    /// As [`FilesystemInner::begin`].
    pub async fn begin_ineligible(
        &self,
        credits: u32,
        operation: &'static str,
        reason: Reason,
    ) -> Result<Handle> {
        self.begin_for(credits, operation, Some(reason)).await
    }

    /// Starts a handle whose holder tells [`FilesystemInner::fast_commits`] of everything it changes that replay does
    /// not find out by itself: names, ranges, inodes that come and go. [`FilesystemInner::log_inode`] tells of inodes.
    ///
    /// # Errors
    /// As [`FilesystemInner::begin`].
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
        let Some(journal) = &self.journal else {
            if self.info.cache.dirty_blocks() >= DIRECT_DIRTY_BLOCKS {
                self.write_dirty_blocks().await?;
            }
            return Ok(Handle::Direct {
                _no_writeback: Arc::clone(&self.direct).read_owned().await,
                transaction: DirectTransaction::new(Arc::clone(&self.info.cache)),
                _token: HandleToken::new(),
            });
        };
        let handle = journal.start(credits, operation).await?;
        let untracked = untracked
            .filter(|_| self.fast_commits.is_enabled())
            .map(|reason| (Arc::clone(&self.fast_commits), reason));
        let handle = Handle::Journal { handle, untracked, _token: HandleToken::new() };
        handle.mark_untracked();
        Ok(handle)
    }

    /// Without a journal: writes the metadata that changed, with every handle kept out (see [`crate::handle`]).
    pub async fn write_dirty_blocks(&self) -> Result<()> {
        let _no_handles = self.direct.write().await;
        self.info.cache.write_dirty().await
    }

    /// Writes `inode`, of which the caller holds the lock, into its slot as part of `handle`, and remembers the
    /// transaction for fsync (`datasync`: also for fdatasync).
    pub async fn log_inode(
        &self,
        handle: &Handle,
        info: &InodeInfo,
        inode: &Inode,
        datasync: bool,
    ) -> Result<()> {
        inode_table::write_inode(&self.info, handle, inode).await?;
        let transaction = handle.id();
        if self.fast_commits.wants(transaction, inode) {
            let slot = inode_table::slot(&self.info, inode.number).await?;
            self.fast_commits.inode_logged(transaction, inode.number, slot);
        }
        info.note_transaction(transaction, datasync);
        info.pages.times_dirty.store(false, Ordering::Release);
        Ok(())
    }

    /// Fails with `EROFS` where nothing may be written: mounted read-only, or so since an error.
    pub fn check_writable(&self) -> Result<()> {
        self.errors.check_alive()?;
        if self.options.read_only {
            return Err(Error::posix(Errno::EROFS, "mounted read-only"));
        }
        match self.journal.as_ref().and_then(|journal| journal.aborted()) {
            // The error that stopped it was reported when it struck; what it means from now on is EROFS.
            Some(Error::Aborted(cause)) => Err(Error::Aborted(cause)),
            Some(cause) => Err(Error::Aborted(cause.to_string())),
            None => self.errors.check(),
        }
    }

    /// The inode `number`, read where it is not in memory.
    ///
    /// # Errors
    /// `ENOENT` where it is free, `EINVAL` where no file can have that number; those of the inode table.
    pub async fn inode(self: &Arc<Self>, number: InodeNumber) -> Result<Arc<InodeInfo>> {
        self.inodes
            .get(number, async {
                let inode = self.read_inode(number).await?;
                if inode.links_count == 0 || inode.mode == 0 {
                    return Err(Error::posix(Errno::ENOENT, format!("inode {number} is free")));
                }
                Ok(InodeInfo::new(inode).of(self))
            })
            .await
    }

    async fn read_inode(&self, number: InodeNumber) -> Result<Inode> {
        if number.0 == 0 || number.0 > self.info.inodes_count() {
            return Err(Error::posix(Errno::EINVAL, format!("there is no inode {number}")));
        }
        tracing::trace!(ino = number.0, "ext4_load_inode");
        inode_table::read_inode(&self.info, number).await
    }

    /// The time to stamp into inodes.
    pub fn now(&self) -> Timestamp {
        self.keepable(self.info.environment.now())
    }

    /// `time` as inodes of this size can keep it: those of 128 bytes have whole seconds from 1901 to 2038. Were more
    /// of it shown, it would change when the inode leaves memory.
    pub fn keepable(&self, time: Timestamp) -> Timestamp {
        if self.inode_layout.inode_size > 128 {
            return time;
        }
        let seconds = time.seconds.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
        Timestamp { seconds, nanoseconds: 0 }
    }

    /// The inode that the entry `name` of `directory` points to. Where no file can be there, the directory is wrong.
    pub async fn inode_of_entry(
        self: &Arc<Self>,
        directory: InodeNumber,
        name: &[u8],
        number: InodeNumber,
    ) -> Result<Arc<InodeInfo>> {
        let reserved = number < self.first_inode && number != InodeNumber::ROOT;
        let found =
            if reserved { Err(Error::posix(Errno::EINVAL, "reserved")) } else { self.inode(number).await };
        match found {
            Err(Error::Posix { errno: Errno::ENOENT | Errno::EINVAL, context }) => Err(Error::corrupt(
                format!("directory {directory}: entry {:?}", String::from_utf8_lossy(name)),
                format!("inode {number}: {context}"),
            )),
            found => found,
        }
    }

    /// After `ENOSPC`: commits, so that what was freed lately can be used. False where there is nothing to gain.
    pub async fn commit_for_space(&self) -> Result<bool> {
        let Some(journal) = &self.journal else { return Ok(false) };
        if self.info.blocks_awaiting_commit() == 0 {
            return Ok(false);
        }
        self.commit_and_release(journal).await?;
        Ok(true)
    }

    /// Commits, and waits until what was freed is discarded, where it is to be, and can be allocated. It never needs a
    /// folio.
    pub async fn commit_and_release(&self, journal: &Arc<Journal>) -> Result<()> {
        journal.force_commit().await?;
        if let Some(discards) = &self.discards {
            discards.drain().await;
        }
        Ok(())
    }

    /// Counts a closed file; where it was the last of an inode without links, has the inode deleted.
    pub fn close_file(self: &Arc<Self>, inode: &Arc<InodeInfo>) {
        if self.inodes.closed(inode) && inode.unlinked.load(Ordering::Acquire) {
            self.inodes.release(Arc::clone(inode));
            let fs = Arc::clone(self);
            self.runtime.spawn(Box::pin(async move {
                // Held to the end: unmount does not find what is being deleted, and would close the journal before it.
                let mounted = fs.freeze.read().await;
                if *mounted {
                    fs.delete_released().await;
                }
            }));
        }
    }

    /// Keeps what `error` says of the file system for the superblock, and does what `errors=` asks for. To be called
    /// without a handle or a lock of an inode.
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
}

impl Filesystem {
    /// Runs an operation that changes something: to its end, under `freeze`, its errors noted.
    pub(crate) fn run<T, F>(
        &self,
        operation: &'static str,
        inode: InodeNumber,
        work: impl FnOnce(Arc<FilesystemInner>) -> F + Send + 'static,
    ) -> RunToEnd<Result<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let fs = Arc::clone(&self.inner);
        run_to_end(&self.inner.runtime, async move {
            let mounted = fs.freeze.read().await;
            if !*mounted {
                return Err(Error::posix(Errno::ENODEV, "unmounted"));
            }
            fs.check_writable()?;
            let result = work(Arc::clone(&fs)).await;
            if let Err(error) = &result {
                fs.report(error, inode, operation).await;
            }
            result
        })
    }

    /// The same for an operation that only reads: it may be dropped at any time.
    pub(crate) async fn observe<T>(
        &self,
        operation: &'static str,
        inode: InodeNumber,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.inner.errors.check_alive()?;
        let result = work.await;
        if let Err(error) = &result {
            self.inner.report(error, inode, operation).await;
        }
        result
    }

    /// The superblock as it is now.
    pub fn superblock(&self) -> Superblock {
        self.inner.info.superblock()
    }

    /// The present time of the environment it was mounted with: what is stamped into inodes.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.inner.info.environment.now()
    }

    /// Opens a regular file.
    ///
    /// # Errors
    /// `EISDIR` for a directory, `EINVAL` for what is neither, `ENOENT` where the inode has no name any more.
    pub async fn open(&self, inode: InodeNumber) -> Result<File> {
        self.open_with(inode, OpenOptions::default()).await
    }
}

/// Makes a file system with a journal superblock of the journal crate (see [`ext4_core::meta::mkfs::mkfs`]).
pub async fn mkfs(
    device: Arc<dyn BlockDevice>,
    options: &MkfsOptions,
    environment: &dyn ext4_core::environment::Environment,
) -> Result<()> {
    let superblock = |block_size, blocks, fast_commit_blocks, uuid| {
        NewJournal { block_size, blocks, fast_commit_blocks, uuid, external: false }.superblock()
    };
    ext4_core::meta::mkfs::mkfs(device, options, environment, &superblock).await
}
