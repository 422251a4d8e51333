//! Blocks that are reserved for a writable mapping before it is known which blocks of the file will need them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ext4_core::Result;

use crate::volume::Volume;

/// Blocks that are reserved for one mapping and for no block of the file yet.
#[derive(Debug)]
pub(crate) struct ReservedBlocks {
    volume: Arc<Volume>,
    blocks: AtomicU64,
}

impl ReservedBlocks {
    pub(crate) fn new(volume: &Arc<Volume>) -> Self {
        Self { volume: Arc::clone(volume), blocks: AtomicU64::new(0) }
    }

    pub(crate) fn add(&self, blocks: u64) -> Result<()> {
        self.volume.info.reserve_blocks(blocks)?;
        self.blocks.fetch_add(blocks, Ordering::AcqRel);
        Ok(())
    }

    /// How many are left.
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    /// Hands `blocks` over to blocks of the file; what is missing (a hole was punched since) is reserved now.
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
