//! The mounted file system.

use std::sync::Arc;

use ext4_core::device::{BlockDevice, MemoryPool};
use ext4_core::environment::Runtime;
use ext4_core::format::inode::{FileType, Inode};
use ext4_core::format::superblock::Superblock;
use ext4_core::meta::directory::DirectoryEntry;
use ext4_core::meta::mkfs::MkfsOptions;
use ext4_core::meta::orphan::Orphans;
use ext4_core::meta::xattr::SetMode;
use ext4_core::meta::{DirectTransaction, SuperblockInfo, Transaction as _, inode_table};
use ext4_core::{Errno, Error, InodeNumber};
use ext4_journal::Journal;
use tokio::sync::{Mutex, RwLock};

use crate::error_policy::ErrorPolicy;
use crate::handle::Handle;
use crate::inode_cache::InodeCache;
use crate::inode_info::InodeInfo;
use crate::{Attributes, Credentials, File, MountOptions, Result, SetAttributes, StatFs};

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
    pub writeback: crate::flusher::WritebackControl,
    /// Inodes in memory.
    pub inodes: InodeCache,
    /// What was found wrong, and what follows from it.
    pub errors: ErrorPolicy,
    /// Held for reading by every operation that changes something, for writing by unmount: the outermost lock. False
    /// when the file system is no longer mounted.
    pub freeze: RwLock<bool>,
    /// Held by renames from one directory into another (s_vfs_rename_mutex): the tree of directories stands still.
    pub rename: Mutex<()>,
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
    /// Starts a handle that may change `credits` blocks.
    ///
    /// # Errors
    /// `EROFS`, or the journal's.
    pub async fn begin(&self, credits: u32, operation: &'static str) -> Result<Handle> {
        self.check_writable()?;
        let Some(journal) = &self.journal else {
            if self.info.cache.dirty_blocks() >= DIRECT_DIRTY_BLOCKS {
                self.write_dirty_blocks().await?;
            }
            let guard = Arc::clone(&self.direct).read_owned().await;
            return Ok(Handle::Direct(DirectTransaction::new(Arc::clone(&self.info.cache)), guard));
        };
        Ok(Handle::Journal(journal.start(credits, operation).await?))
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
        info.note_transaction(handle.id(), datasync);
        Ok(())
    }

    /// Fails with `EROFS` where nothing may be written: mounted read-only, or so since an error.
    pub fn check_writable(&self) -> Result<()> {
        if self.options.read_only {
            return Err(Error::posix(Errno::EROFS, "mounted read-only"));
        }
        if let Some(error) = self.journal.as_ref().and_then(|journal| journal.aborted()) {
            return Err(error);
        }
        self.errors.check()
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
                Ok(InodeInfo::new(inode))
            })
            .await
    }

    async fn read_inode(&self, number: InodeNumber) -> Result<Inode> {
        if number.0 == 0 || number.0 > self.info.inodes_count() {
            return Err(Error::posix(Errno::EINVAL, format!("there is no inode {number}")));
        }
        inode_table::read_inode(&self.info, number).await
    }
}

/// Makes a file system with a journal superblock of the journal crate (see [`ext4_core::meta::mkfs::mkfs`]).
pub async fn mkfs(
    device: Arc<dyn BlockDevice>,
    options: &MkfsOptions,
    environment: &dyn ext4_core::environment::Environment,
) -> Result<()> {
    ext4_core::meta::mkfs::mkfs(device, options, environment, &ext4_journal::Journal::new_superblock).await
}

impl Filesystem {
    /// Mounts: verifies the superblock, recovers the journal, processes orphans, marks the superblock as mounted.
    pub async fn mount(_device: Arc<dyn BlockDevice>, _options: MountOptions) -> Result<Self> {
        todo!()
    }

    /// Drains and closes everything; the device holds a clean file system when it returns. `EBUSY` where files are
    /// open.
    pub async fn unmount(self) -> Result<()> {
        todo!()
    }

    /// sync(2): everything written so far is durable when it returns.
    pub async fn sync(&self) -> Result<()> {
        todo!()
    }

    /// Space and inodes.
    pub fn statfs(&self) -> StatFs {
        todo!()
    }

    /// The superblock as it is now.
    pub fn superblock(&self) -> Superblock {
        todo!()
    }

    /// Finds `name` in a directory; `ENOENT` where it is not there.
    pub async fn lookup(&self, _parent: InodeNumber, _name: &[u8]) -> Result<InodeNumber> {
        todo!()
    }

    /// What stat tells of an inode.
    pub async fn attributes(&self, _inode: InodeNumber) -> Result<Attributes> {
        todo!()
    }

    /// Changes attributes; ctime follows.
    pub async fn set_attributes(&self, _inode: InodeNumber, _changes: &SetAttributes) -> Result<()> {
        todo!()
    }

    /// Makes a regular file.
    pub async fn create(&self, _parent: InodeNumber, _name: &[u8], _as: Credentials) -> Result<InodeNumber> {
        todo!()
    }

    /// Makes a directory.
    pub async fn mkdir(&self, _parent: InodeNumber, _name: &[u8], _as: Credentials) -> Result<InodeNumber> {
        todo!()
    }

    /// Makes a symlink to `target`.
    pub async fn symlink(
        &self,
        _parent: InodeNumber,
        _name: &[u8],
        _target: &[u8],
        _as: Credentials,
    ) -> Result<InodeNumber> {
        todo!()
    }

    /// Makes a device node (`device`: major, minor), FIFO or socket.
    pub async fn mknod(
        &self,
        _parent: InodeNumber,
        _name: &[u8],
        _file_type: FileType,
        _device: (u32, u32),
        _as: Credentials,
    ) -> Result<InodeNumber> {
        todo!()
    }

    /// Gives an inode another name.
    pub async fn link(&self, _inode: InodeNumber, _parent: InodeNumber, _name: &[u8]) -> Result<()> {
        todo!()
    }

    /// Removes a name that is not a directory's; the inode goes when it was the last and nobody has it open.
    pub async fn unlink(&self, _parent: InodeNumber, _name: &[u8]) -> Result<()> {
        todo!()
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, _parent: InodeNumber, _name: &[u8]) -> Result<()> {
        todo!()
    }

    /// rename(2). `no_replace` is RENAME_NOREPLACE, `exchange` RENAME_EXCHANGE.
    pub async fn rename(
        &self,
        _from: (InodeNumber, &[u8]),
        _to: (InodeNumber, &[u8]),
        _flags: RenameFlags,
    ) -> Result<()> {
        todo!()
    }

    /// A symlink's target.
    pub async fn readlink(&self, _inode: InodeNumber) -> Result<Vec<u8>> {
        todo!()
    }

    /// Up to `max` entries of a directory from `position` on (0: the start; then [`DirectoryEntry::next`]).
    pub async fn readdir(
        &self,
        _directory: InodeNumber,
        _position: u64,
        _max: usize,
    ) -> Result<Vec<DirectoryEntry>> {
        todo!()
    }

    /// An extended attribute's value; `ENODATA` where it is not there.
    pub async fn getxattr(&self, _inode: InodeNumber, _name: &[u8]) -> Result<Vec<u8>> {
        todo!()
    }

    /// The names of all extended attributes.
    pub async fn listxattr(&self, _inode: InodeNumber) -> Result<Vec<Vec<u8>>> {
        todo!()
    }

    /// Sets an extended attribute.
    pub async fn setxattr(
        &self,
        _inode: InodeNumber,
        _name: &[u8],
        _value: &[u8],
        _mode: SetMode,
    ) -> Result<()> {
        todo!()
    }

    /// Removes an extended attribute.
    pub async fn removexattr(&self, _inode: InodeNumber, _name: &[u8]) -> Result<()> {
        todo!()
    }

    /// Opens a regular file.
    pub async fn open(&self, _inode: InodeNumber) -> Result<File> {
        todo!()
    }

    /// Follows `path` from the root; symlinks on the way are followed, the last one where `follow`. At most 40.
    pub async fn resolve(&self, _path: &[u8], _follow: bool) -> Result<InodeNumber> {
        todo!()
    }

    /// The directory that holds the last component of `path`, and that component.
    pub async fn resolve_parent<'p>(&self, path: &'p [u8]) -> Result<(InodeNumber, &'p [u8])> {
        let _ = path;
        Err(Error::posix(Errno::ENOSYS, "resolve_parent"))
    }

    /// fsync of a directory: its names are durable when it returns.
    pub async fn sync_inode(&self, _inode: InodeNumber) -> Result<()> {
        todo!()
    }
}

/// The flags of [`Filesystem::rename`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RenameFlags {
    /// Fail where the target exists.
    pub no_replace: bool,
    /// Swap the two.
    pub exchange: bool,
}
