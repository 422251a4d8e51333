//! TODO header.

use std::sync::Arc;

use crate::cache::ioend::Ioend;
use crate::filesystem::FilesystemInner;
use crate::inode::InodeInfo;
use crate::iomap::preallocation::drop_delayed;

/// Everything of `ioend` is done: ends its folios' writeback and reports its error.
pub(crate) fn finish(fs: &FilesystemInner, mut ioend: Ioend) {
    if let Err(error) = &ioend.result {
        tracing::warn!(inode = ioend.inode.number.0, offset = ioend.offset, size = ioend.size, %error,
            "data was not written");
        ioend.inode.write_errors.record(error);
    }
    for (folio, _) in ioend.pieces.drain(..) {
        if folio.finish_piece() {
            let len = folio.len();
            // Given up while we have it, it would free nothing, and others would have to go as well.
            drop(folio);
            fs.writeback.end_writeback(len);
        }
    }
    ioend.inode.completion.state.lock().unfinished.remove(&ioend.id);
    ioend.inode.completion.progress.notify_waiters();
    fs.writeback.finish_ioend(ioend.id);
}

/// `ioend`, whose blocks were picked, failed: they go back. What was made dirty again meanwhile stays delayed, the rest
/// is lost. No handle may be held, nor the inode's lock.
pub(crate) async fn discard(fs: &FilesystemInner, ioend: &Ioend) {
    let inode: &Arc<InodeInfo> = &ioend.inode;
    for (folio, blocks) in &ioend.pieces {
        // Dirty bits change under the folio's lock only.
        let guard = folio.lock().await;
        let first = guard.first_block();
        let mut at = blocks.start;
        while at < blocks.end {
            let dirty = guard.next_dirty(at..blocks.end).unwrap_or(blocks.end..blocks.end);
            drop_delayed(fs, inode, first + at..first + dirty.start).await;
            if !dirty.is_empty() {
                let _disk = inode.inode.write().await;
                inode.preallocation.give_back(&fs.info, first + dirty.start..first + dirty.end);
            }
            at = dirty.end;
        }
    }
}
