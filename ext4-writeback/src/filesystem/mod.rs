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

pub(crate) mod deletion;
pub(crate) mod inodes;
pub(crate) mod statfs;
pub(crate) mod sync;
pub(crate) mod synchronous;
pub(crate) mod trim;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use ext4_core::device::MemoryPool;
use ext4_core::environment::{RunToEnd, Runtime};
use ext4_core::format::inode::InodeLayout;
use ext4_core::format::superblock::Superblock;
use ext4_core::meta::SuperblockInfo;
use ext4_core::meta::orphan::Orphans;
use ext4_core::{Errno, Error, InodeNumber, Result, Timestamp};
use ext4_journal::Journal;
use tokio::sync::{Mutex, RwLock};

use crate::base::operation_lock::OperationLock;
use crate::base::options::MountOptions;
use crate::base::runtime::run_to_end;
use crate::cache::extent_status::tree::Reclaimable;
use crate::inode::cache::InodeCache;
use crate::volume::discard::Discards;
use crate::volume::error_policy::ErrorPolicy;
use crate::volume::fast_commit::track::Tracker;

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
    pub writeback: crate::writeback::dirty::Writeback,
    /// Inodes whose times are logged when there is another reason.
    pub lazy_times: crate::inode::lazytime::LazyTimes,
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
    pub(crate) error_writer: Mutex<()>,
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
    pub(crate) overhead_blocks: u64,
    /// s_state as it was found; errors are added to it.
    pub(crate) found_state: u16,
    /// Without a journal: held for reading by handles, for writing while dirty blocks are written.
    pub(crate) direct: Arc<RwLock<()>>,
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
pub(crate) const DIRECT_DIRTY_BLOCKS: usize = 4096;

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
}
