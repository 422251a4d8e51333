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
pub(crate) mod inline_extent;
pub(crate) mod inodes;
pub(crate) mod statfs;
pub(crate) mod statistics;
pub(crate) mod sync;
pub(crate) mod synchronous;
pub(crate) mod trim;

use std::future::Future;
use std::sync::Arc;

use ext4_core::environment::RunToEnd;
use ext4_core::format::superblock::Superblock;
use ext4_core::{Errno, Error, InodeNumber, Result, Timestamp};

use crate::base::lock_order::{OrderedMutex, scoped};
use crate::base::runtime::run_operation;
use crate::cache::extent_status::tree::Reclaimable;
use crate::inode::cache::InodeCache;
use crate::volume::Volume;
use crate::writeback::Engine;

/// A mounted ext4 file system. Cloning shares it. Dropping the last one without [`Filesystem::unmount`] is a crash,
/// and as safe as one.
#[derive(Clone, Debug)]
pub struct Filesystem {
    pub(crate) inner: Arc<FilesystemInner>,
}

/// What all of a mounted file system share: the engine that moves data, and the inodes in memory. Tasks in the background
/// hold the engine weakly, so that dropping the last [`Filesystem`] lets go of the device.
pub(crate) struct FilesystemInner {
    /// Device, superblock, journal, error policy.
    pub volume: Arc<Volume>,
    /// Writeback, completions and the flusher.
    pub engine: Arc<Engine>,
    /// Inodes in memory.
    pub inodes: InodeCache,
    /// Held by renames from one directory into another (s_vfs_rename_mutex): the tree of directories stands still.
    pub rename: OrderedMutex<()>,
    /// The first inode that a name may have, but for the root.
    pub first_inode: InodeNumber,
    /// Blocks of fixed metadata and of the journal, for statfs.
    pub overhead_blocks: u64,
    /// What is known of the extents of all inodes, as far as it could be read again: how much it is.
    pub reclaimable_extents: Arc<Reclaimable>,
}

impl std::fmt::Debug for FilesystemInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filesystem")
            .field("device", self.volume.info.device())
            .field("journal", &self.volume.journal.is_some())
            .field("inodes", &self.inodes)
            .finish_non_exhaustive()
    }
}

/// Without a journal: how many dirty blocks a handle may find before it has them written first.
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
        run_operation(&self.inner.volume.runtime, async move {
            let mounted = fs.volume.freeze.read().await;
            if !*mounted {
                return Err(Error::posix(Errno::ENODEV, "unmounted"));
            }
            fs.volume.check_writable()?;
            let result = work(Arc::clone(&fs)).await;
            if let Err(error) = &result {
                fs.volume.report(error, inode, operation).await;
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
        self.inner.volume.errors.check_alive()?;
        let result = scoped(work).await;
        if let Err(error) = &result {
            self.inner.volume.report(error, inode, operation).await;
        }
        result
    }

    /// The superblock as it is now.
    pub fn superblock(&self) -> Superblock {
        self.inner.volume.info.superblock()
    }

    /// The present time of the environment it was mounted with: what is stamped into inodes.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.inner.volume.info.environment.now()
    }
}
