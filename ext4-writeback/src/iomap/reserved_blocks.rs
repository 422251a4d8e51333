//! Reserved blocks of a writable memory mapping, before it is known which blocks of the file need them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ext4_core::Result;

use crate::volume::Volume;

/// Blocks that are reserved for one writable mapping and for no block of the file yet. Dropping it releases
/// the rest.
#[derive(Debug)]
pub(crate) struct ReservedBlocks {
    volume: Arc<Volume>,
    blocks: AtomicU64,
}

impl ReservedBlocks {
    /// No blocks yet.
    pub(crate) fn new(volume: &Arc<Volume>) -> Self {
        Self { volume: Arc::clone(volume), blocks: AtomicU64::new(0) }
    }

    /// Reserves `blocks` more.
    ///
    /// # Errors
    /// `ENOSPC`: there are not as many free blocks.
    pub(crate) fn add(&self, blocks: u64) -> Result<()> {
        self.volume.info.reserve_blocks(blocks)?;
        self.blocks.fetch_add(blocks, Ordering::AcqRel);
        Ok(())
    }

    /// How many blocks are left.
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    /// Hands `blocks` of the reservation over to blocks of the file. If it has fewer (a hole was punched
    /// since), the rest is reserved now.
    ///
    /// # Errors
    /// `ENOSPC`: there are not as many free blocks as are missing; then nothing has changed.
    pub fn take(&self, blocks: u64) -> Result<()> {
        let own = self.blocks().min(blocks);
        if own < blocks {
            self.volume.info.reserve_blocks(blocks - own)?;
        }
        self.blocks.fetch_sub(own, Ordering::AcqRel);
        Ok(())
    }
}

impl Drop for ReservedBlocks {
    fn drop(&mut self) {
        self.volume.info.release_reserved_blocks(self.blocks());
    }
}
