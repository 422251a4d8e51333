//! TODO header.

use crate::writeback::completion::wait;
use std::ops::Range;
use std::sync::Arc;

use crate::inode::InodeInfo;
use crate::writeback::Engine;
use crate::writeback::completion;

/// Drops the page cache of bytes `range`: whole folios and, of those at its ends, the blocks that lie wholly in it.
/// Waits for their writeback. The caller holds `invalidate_lock` for writing, and no handle.
pub(crate) async fn drop_folios(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, range: Range<u64>) {
    let mut at = range.start;
    while let Some(folio) = inode.pages.first_from(at).filter(|folio| folio.start() < range.end) {
        // What was parked behind data that is cut off now has to be looked at again.
        completion::schedule(engine, inode);
        wait::wait_for_folio(engine, &folio).await;
        let guard = folio.lock().await;
        if guard.is_removed() {
            continue;
        }
        if guard.is_under_writeback() {
            continue;
        }
        if guard.start() >= range.start && guard.end() <= range.end {
            if inode.pages.remove(&guard) {
                engine.dirty.note_clean(guard.len());
            }
        } else {
            let blocks = guard.blocks_covered(range.start, range.end);
            if guard.discard_blocks(blocks) {
                inode.pages.note_clean(&guard);
                engine.dirty.note_clean(guard.len());
            }
        }
        at = guard.end();
    }
}
