//! The mounted file system (the kernel's `super_block`): what its operations share, and how an operation
//! enters it.
//!
//! Invariants:
//! - Every operation that changes something runs inside [`RunToEnd`] and under `freeze`, held for reading. So
//!   a caller that stops waiting leaves no half operation behind, and unmount, which takes `freeze` for
//!   writing, finds no operation running.
//! - Background tasks hold the file system weakly only. So dropping the last [`Filesystem`] is a crash, after
//!   which no task writes to the device.
//!
//! Locks, outermost first: `freeze` → `rename` → the inodes' ([`crate::inode`]).

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

/// A mounted ext4 file system. Cloning shares it. Dropping the last one without [`Filesystem::unmount`] is a
/// crash, and as safe as one.
///
/// Operations on an inode take its number, operations on a directory entry `(parent, name)`; both have the
/// names of the system calls. Operations on a path are named as in `std::fs` ([`Filesystem::resolve`]).
/// Permissions are not checked.
#[derive(Clone, Debug)]
pub struct Filesystem {
    pub(crate) inner: Arc<FilesystemInner>,
}

/// What all operations of a mounted file system share: the engine that moves data, and the inodes in memory.
/// Background tasks hold the engine weakly, so that dropping the last [`Filesystem`] lets go of the device.
pub(crate) struct FilesystemInner {
    /// Device, superblock, journal, error policy.
    pub volume: Arc<Volume>,
    /// Writeback, completions and the flusher.
    pub engine: Arc<Engine>,
    /// Inodes in memory.
    pub inodes: InodeCache,
    /// Held by a rename from one directory into another (`s_vfs_rename_mutex`): no directory moves meanwhile.
    pub rename: OrderedMutex<()>,
    /// The first inode that a directory entry may point to, besides the root directory (s_first_ino).
    pub first_inode: InodeNumber,
    /// Blocks of fixed metadata and of the journal, for statfs.
    pub overhead_blocks: u64,
    /// How many entries the extent status trees of all inodes have that can be dropped and read again.
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

impl Filesystem {
    /// Runs an operation that changes something: to its end, under `freeze`, with its errors reported to the
    /// error policy.
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

    /// Runs an operation that only reads, with its errors reported to the error policy. It may be dropped at
    /// any time.
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

    /// The present time, by the environment that the file system was mounted with: what inodes are stamped
    /// with.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.inner.volume.info.environment.now()
    }
}
