//! Inodes in memory (the kernel's `iget` and `iput`): found by number or directory entry, and let go by a
//! close.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ext4_core::format::inode::Inode;
use ext4_core::meta::inode_table;
use ext4_core::{Errno, Error, InodeNumber, Result};

use crate::base::lock_order::scoped;
use crate::filesystem::FilesystemInner;
use crate::inode::InodeInfo;

impl FilesystemInner {
    /// An inode in memory, of this file system, that holds `inode`.
    pub fn new_inode_info(&self, inode: Inode) -> InodeInfo {
        InodeInfo::new(inode, self.volume.info.cluster_bits(), &self.reclaimable_extents)
    }

    /// The inode `number`, which is read from the inode table if it is not in memory.
    ///
    /// # Errors
    /// - `ENOENT`: the inode is free.
    /// - `EINVAL`: the file system has no inode of that number.
    /// - `EIO`, `EUCLEAN`: the inode table could not be read.
    pub async fn inode(self: &Arc<Self>, number: InodeNumber) -> Result<Arc<InodeInfo>> {
        self.inodes
            .get(number, async {
                let inode = self.read_inode(number).await?;
                if inode.links_count == 0 || inode.mode == 0 {
                    return Err(Error::posix(Errno::ENOENT, format!("inode {number} is free")));
                }
                Ok(self.new_inode_info(inode))
            })
            .await
    }

    pub(crate) async fn read_inode(&self, number: InodeNumber) -> Result<Inode> {
        if number.0 == 0 || number.0 > self.volume.info.inodes_count() {
            return Err(Error::posix(Errno::EINVAL, format!("there is no inode {number}")));
        }
        tracing::trace!(ino = number.0, "ext4_load_inode");
        inode_table::read_inode(&self.volume.info, number).await
    }

    /// The inode `number`, to which the entry `name` of `directory` points.
    ///
    /// # Errors
    /// - `EUCLEAN`: no file can have that inode, so the directory is corrupt.
    /// - Those of [`FilesystemInner::inode`].
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

    /// Lowers the open count of `inode`. If that was its last open file and it has no links, a task deletes
    /// it.
    pub fn close_file(self: &Arc<Self>, inode: &Arc<InodeInfo>) {
        if self.inodes.closed(inode) && inode.unlinked.load(Ordering::Acquire) {
            self.inodes.release(Arc::clone(inode));
            let fs = Arc::clone(self);
            self.volume.runtime.spawn(Box::pin(scoped(async move {
                // Held to the end: unmount does not see an inode that is being deleted, and would close the
                // journal under it.
                let mounted = fs.volume.freeze.read().await;
                if *mounted {
                    fs.delete_released().await;
                }
            })));
        }
    }
}
