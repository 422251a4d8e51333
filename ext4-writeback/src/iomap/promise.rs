//! TODO header.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ext4_core::Result;

use crate::filesystem::FilesystemInner;

/// Blocks that are promised to one mapping and to no block of the file yet.
#[derive(Debug)]
pub(crate) struct Promise {
    fs: Arc<FilesystemInner>,
    blocks: AtomicU64,
}

impl Promise {
    pub(crate) fn new(fs: &Arc<FilesystemInner>) -> Self {
        Self { fs: Arc::clone(fs), blocks: AtomicU64::new(0) }
    }

    pub(crate) fn add(&self, blocks: u64) -> Result<()> {
        self.fs.info.reserve_blocks(blocks)?;
        self.blocks.fetch_add(blocks, Ordering::AcqRel);
        Ok(())
    }

    /// How many are left.
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    /// Hands `blocks` over to blocks of the file; what is missing (a hole was punched since) is promised now.
    pub fn take(&self, blocks: u64) -> Result<()> {
        let own = self.blocks().min(blocks);
        if own < blocks {
            self.fs.info.reserve_blocks(blocks - own)?;
        }
        self.blocks.fetch_sub(own, Ordering::AcqRel);
        Ok(())
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.fs.info.release_reserved_blocks(self.blocks());
    }
}
