//! Closing files: what the file system counts, and what it writes back then.
//!
//! A file that was cut to nothing and written again is about to hold what it held before, in a new version: an editor
//! saves so. Until the new data is on the device a crash shows an empty file. When it is closed the data is sent off at
//! once (the kernel's `EXT4_STATE_DA_ALLOC_CLOSE`), so that the next commit takes its size along; nobody waits for it,
//! as in the kernel. Who has to be sure renames ([`crate::namespace`]), which waits, or asks for fsync.

use crate::writeback::sync_inode::start_inode_range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::base::lock_order::Scoped;
use crate::file::File;
use crate::filesystem::FilesystemInner;
use crate::inode::InodeInfo;

impl Drop for File {
    fn drop(&mut self) {
        let fs = &self.filesystem.inner;
        if self.inode.replaced_by_truncation.swap(false, Ordering::AcqRel) {
            write_back_replaced(fs, &self.inode);
        }
        fs.close_file(&self.inode);
    }
}

/// Starts writeback of `inode`, unless nothing may happen by itself, or the file is gone.
fn write_back_replaced(fs: &Arc<FilesystemInner>, inode: &Arc<InodeInfo>) {
    let pointless = inode.unlinked.load(Ordering::Acquire) || !inode.pages.is_dirty_folios();
    if pointless || fs.engine.dirty.is_deterministic() {
        return;
    }
    let (fs, inode) = (Arc::clone(fs), Arc::clone(inode));
    Arc::clone(&fs.volume.runtime).spawn(Box::pin(Scoped::new(Box::pin(async move {
        let mounted = fs.volume.freeze.read().await;
        if *mounted {
            // Errors are recorded in the inode.
            let _ = start_inode_range(&fs.engine, &inode, 0..u64::MAX).await;
        }
    }))));
}
