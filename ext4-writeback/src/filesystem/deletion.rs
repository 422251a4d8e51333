//! Deleting inodes (the kernel's `ext4_evict_inode`) when the last link and the last open file are gone, and
//! processing the orphans that a crash left.
//!
//! Invariant: an inode without links is on the orphan list or in the orphan file from the transaction that
//! took its last link until the one that frees its number. A crash in between leaves an orphan, which the
//! next mount deletes; without that its blocks would be lost until a check.
//!
//! Locks: a deletion takes the inode's `rwlock` for writing, then handles of its own. The caller holds
//! neither.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ext4_core::format::inode::{FileType, Inode, InodeFlags};
use ext4_core::meta::{Transaction as _, credits, inode_allocator, xattr};
use ext4_core::{InodeNumber, Result};

use crate::filesystem::FilesystemInner;
use crate::inode::InodeInfo;
use crate::inode::log::log_inode;
use crate::io::truncate;
use crate::volume::fast_commit::reason::Reason;

impl FilesystemInner {
    /// Deletes `inode`, if it has no links, is not open and was not deleted already. The caller holds no
    /// handle and no lock of the inode.
    pub async fn delete_inode(self: &Arc<Self>, inode: &Arc<InodeInfo>) -> Result<()> {
        let _content = inode.rwlock.write().await;
        let has_content = {
            let raw = inode.on_disk.read().await;
            let used = inode.open_count.load(Ordering::Acquire) > 0;
            if raw.links_count > 0 || used || inode.freed.load(Ordering::Acquire) {
                return Ok(());
            }
            raw.file_type() == Some(FileType::Regular)
                || maps_blocks(&raw, self.volume.info.cluster_sectors())
        };
        if has_content {
            truncate::free_all_blocks(&self.engine, inode).await?;
        }
        let credits = credits::ALLOCATE_INODE + credits::XATTR + credits::ORPHAN + credits::INODE;
        let handle = self.volume.begin_tracked(credits, "delete inode").await?;
        let mut raw = inode.on_disk.write().await;
        xattr::release_block(&self.volume.info, &handle, &mut raw).await?;
        self.volume.orphans.remove(&self.volume.info, &handle, &mut raw).await?;
        raw.size = 0;
        if !raw.flags.contains(InodeFlags::EXTENTS) {
            raw.i_block = [0; 60];
        }
        raw.dtime = u32::try_from(self.volume.info.environment.now().seconds).unwrap_or(u32::MAX).max(1);
        log_inode(&self.volume, &handle, inode, &raw, true).await?;
        self.volume.fast_commits.inode_freed(handle.id(), inode.number);
        inode.freed.store(true, Ordering::Release);
        // Out of the cache before the number is free: the creator that gets it next makes an inode of its
        // own.
        self.inodes.remove(inode.number);
        inode_allocator::free_inode(&self.volume.info, &handle, inode.number, raw.is_dir()).await
    }

    /// Deletes `inode` if it has lost its last link and is not open. A failure is reported and does not undo
    /// what the caller did: the inode stays an orphan.
    pub async fn delete_unlinked(self: &Arc<Self>, inode: &Arc<InodeInfo>) {
        if !inode.unlinked.load(Ordering::Acquire) || inode.open_count.load(Ordering::Acquire) > 0 {
            return;
        }
        if let Err(error) = self.delete_inode(inode).await {
            tracing::warn!(inode = %inode.number, %error, "an orphan could not be deleted");
            self.volume.report(&error, inode.number, "delete inode").await;
        }
    }

    /// Deletes the inodes without links whose last open file was closed.
    pub async fn delete_released(self: &Arc<Self>) {
        while let Some(inode) = self.inodes.next_released() {
            self.delete_unlinked(&inode).await;
        }
    }

    /// Orphan processing at mount (the kernel's `ext4_orphan_cleanup`): deletes orphans without links, and
    /// finishes the truncation of the others. An orphan that cannot be processed is reported and left.
    pub(crate) async fn process_orphans(self: &Arc<Self>) {
        for number in self.volume.orphans.pending() {
            if let Err(error) = self.process_orphan(number).await {
                tracing::warn!(inode = %number, %error, "an orphan could not be processed");
                self.volume.report(&error, number, "process orphan").await;
            }
        }
        if self.volume.orphans.is_damaged()
            && let Err(error) = self.mend_orphan_list().await
        {
            tracing::warn!(%error, "the orphan list could not be repaired");
        }
    }

    async fn mend_orphan_list(&self) -> Result<()> {
        let handle =
            self.volume.begin_ineligible(credits::ORPHAN, "mend orphan list", Reason::Orphan).await?;
        self.volume.orphans.mend(&self.volume.info, &handle).await
    }

    async fn process_orphan(self: &Arc<Self>, number: InodeNumber) -> Result<()> {
        let inode = Arc::new(self.new_inode_info(self.read_inode(number).await?));
        self.inodes.insert(&inode);
        if inode.unlinked.load(Ordering::Acquire) {
            self.delete_inode(&inode).await
        } else {
            truncate::resume(&self.engine, &inode).await
        }
    }
}

/// Returns true if `inode`, a directory or symlink, has blocks besides its attribute block.
fn maps_blocks(inode: &Inode, cluster_sectors: u64) -> bool {
    let attributes = if inode.file_acl.0 == 0 { 0 } else { cluster_sectors };
    let typed = matches!(inode.file_type(), Some(FileType::Directory | FileType::Symlink));
    typed && inode.sectors > attributes
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;

    use ext4_core::{BlockSize, InodeNumber};

    use crate::testing::{PAGE, assert_clean, mounted, poll_once};

    /// The file has lost its last name and was closed, and its deletion is under way when unmount is called.
    #[tokio::test]
    async fn unmount_waits_for_a_deletion_that_has_begun() {
        let (device, fs, file) = mounted(BlockSize::KIB_4).await;
        file.write_at(0, &[1; 3 * PAGE as usize]).await.expect("writes");
        file.sync_all().await.expect("syncs");
        fs.unlink(InodeNumber::ROOT, b"file").await.expect("unlinks");
        let inode = Arc::clone(&file.inode);
        let held = inode.rwlock.read().await;
        drop(file);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        {
            let mut unmount = pin!(fs.unmount());
            for _ in 0..100 {
                assert!(poll_once(unmount.as_mut()).is_pending());
                tokio::task::yield_now().await;
            }
            drop(held);
            unmount.await.expect("unmounts");
        }
        // e2fsck would complain of an orphan that is left.
        assert_clean(&device);
    }
}
