//! The end of an ioend: its folios stop being under writeback, its error is recorded, picked blocks of failed
//! I/O are returned (kernel: `iomap_finish_ioend`).

use std::ops::Range;
use std::sync::Arc;

use crate::cache::folio::Folio;
use crate::cache::ioend::Ioend;
use crate::inode::InodeInfo;
use crate::iomap::preallocation::drop_delayed;
use crate::writeback::Engine;

/// A folio and those of its blocks that an ioend has.
type Piece = (Arc<Folio>, Range<u32>);

/// Ends the writeback of the folios of `ioend` and records its error in the inode. Its handle, if any, has
/// been stopped.
pub(crate) fn finish(engine: &Engine, inode: &InodeInfo, mut ioend: Ioend) {
    if let Err(error) = &ioend.result {
        tracing::warn!(inode = inode.number.0, offset = ioend.offset, size = ioend.size, %error,
            "data was not written");
        inode.record_write_error(&engine.volume, error);
    }
    for (folio, _) in ioend.pieces.drain(..) {
        if folio.finish_piece() {
            let len = folio.len();
            // If reclaim gave the folio up while this reference exists, no memory would become free, and it
            // would give up other folios too.
            drop(folio);
            engine.dirty.end_writeback(len);
        }
    }
    inode.completion.state.lock().unfinished.remove(&ioend.id);
    inode.completion.progress.notify_waiters();
    engine.dirty.finish_ioend(ioend.id);
}

/// Returns the picked blocks of `ioend`, whose I/O or publication failed. Blocks that were made dirty again
/// meanwhile stay delayed; the data of the others is lost. No handle may be held, nor the inode's lock.
pub(crate) async fn discard(engine: &Engine, inode: &Arc<InodeInfo>, ioend: &Ioend) {
    for (folio, blocks) in &ioend.pieces {
        // Dirty bits change only under the folio's lock.
        let guard = folio.lock().await;
        let first = guard.first_block();
        let mut at = blocks.start;
        while at < blocks.end {
            let dirty = guard.next_dirty(at..blocks.end).unwrap_or(blocks.end..blocks.end);
            drop_delayed(&engine.volume, inode, first + at..first + dirty.start).await;
            if !dirty.is_empty() {
                let _disk = inode.on_disk.write().await;
                inode.preallocation.give_back(&engine.volume.info, first + dirty.start..first + dirty.end);
            }
            at = dirty.end;
        }
    }
}

/// If the failed tail was in `ioend`, and memory still holds it, it is dirty again: its zeros exist in memory
/// only, and a folio that is clean would be given up. The next pass tries again. No handle may be held, nor
/// the inode's lock.
pub(crate) async fn keep_failed_tail(engine: &Engine, inode: &Arc<InodeInfo>, pieces: &[Piece]) {
    let Some(block) = inode.completion.failed_tail_block() else { return };
    for (folio, blocks) in pieces {
        let blocks = folio.first_block() + blocks.start..folio.first_block() + blocks.end;
        if !blocks.contains(&block) {
            continue;
        }
        let guard = folio.lock().await;
        let within = block - guard.first_block();
        let still = inode.completion.failed_tail_block() == Some(block);
        if still && !guard.is_removed() && guard.is_uptodate(within..within + 1) {
            engine.mark_dirty(inode, &guard, within..within + 1);
        }
    }
}
