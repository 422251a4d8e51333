//! Dropping page cache before the blocks below it are freed or moved (kernel: `truncate_pagecache_range`).
//!
//! Invariant: a folio is dropped after its writeback has ended. If it were dropped earlier, its I/O could go
//! to a block that belongs to another file by then.
//!
//! Locks: `invalidate_lock` for writing is held by the caller, so no reader fills folios meanwhile; folio
//! locks are taken one at a time.

use std::ops::Range;
use std::sync::Arc;

use crate::inode::InodeInfo;
use crate::writeback::Engine;
use crate::writeback::completion;
use crate::writeback::completion::wait;

/// Drops the page cache of bytes `range`: whole folios and, of the folios at its ends, the blocks that lie
/// wholly in it. Waits for the writeback of these folios. The caller holds `invalidate_lock` for writing, and
/// no handle.
pub(crate) async fn drop_folios(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, range: Range<u64>) {
    let mut at = range.start;
    while let Some(folio) = inode.pages.first_from(at).filter(|folio| folio.start() < range.end) {
        // Ioends parked behind data that is cut off now have to be looked at again.
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
