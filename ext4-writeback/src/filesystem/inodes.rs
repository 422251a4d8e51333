//! Finding inodes: by number, by a directory entry, and what follows when the last file of one is closed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ext4_core::format::inode::Inode;
use ext4_core::meta::inode_table;
use ext4_core::{Errno, Error, InodeNumber, Result};

use crate::base::lock_order::scoped;
use crate::filesystem::FilesystemInner;
use crate::inode::InodeInfo;

impl FilesystemInner {
    /// `inode` in memory, of this file system.
    pub fn new_inode_info(&self, inode: Inode) -> InodeInfo {
        InodeInfo::new(inode, self.volume.info.cluster_bits(), &self.reclaimable_extents)
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

    /// Counts a closed file; where it was the last of an inode without links, has the inode deleted.
    pub fn close_file(self: &Arc<Self>, inode: &Arc<InodeInfo>) {
        if self.inodes.closed(inode) && inode.unlinked.load(Ordering::Acquire) {
            self.inodes.release(Arc::clone(inode));
            let fs = Arc::clone(self);
            self.volume.runtime.spawn(Box::pin(scoped(async move {
                // Held to the end: unmount does not find what is being deleted, and would close the journal before it.
                let mounted = fs.volume.freeze.read().await;
                if *mounted {
                    fs.delete_released().await;
                }
            })));
        }
    }
}
