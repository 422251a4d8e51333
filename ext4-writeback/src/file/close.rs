//! Closing a file (the kernel's `ext4_release_file`): the open count, and writeback of a file that was
//! replaced in place.
//!
//! An editor that saves by truncation cuts a file to 0 bytes and writes it again. Until the new data is on
//! the device a crash shows an empty file. So closing such a file starts its writeback (the kernel's
//! `EXT4_STATE_DA_ALLOC_CLOSE`), and the next commit takes its size along. Closing does not wait for that, as
//! in the kernel. A program that has to be sure renames a new file over the old one
//! ([`crate::namespace::rename`]), which waits, or calls fsync.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::base::lock_order::Scoped;
use crate::file::File;
use crate::filesystem::FilesystemInner;
use crate::inode::InodeInfo;
use crate::writeback::sync_inode::start_inode_range;

impl Drop for File {
    fn drop(&mut self) {
        let fs = &self.filesystem.inner;
        if self.inode.replaced_by_truncation.swap(false, Ordering::AcqRel) {
            write_back_replaced(fs, &self.inode);
        }
        fs.close_file(&self.inode);
    }
}

/// Starts writeback of `inode`, unless the mount is one where nothing happens unasked (no commit interval),
/// or the file was deleted.
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
