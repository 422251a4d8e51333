//! TODO header.

use std::sync::Arc;

use ext4_core::Result;
use ext4_core::device::BlockDevice;
use ext4_core::meta::mkfs::MkfsOptions;
use ext4_journal::NewJournal;

/// Makes a file system with a journal superblock of the journal crate (see [`ext4_core::meta::mkfs::mkfs`]).
pub async fn mkfs(
    device: Arc<dyn BlockDevice>,
    options: &MkfsOptions,
    environment: &dyn ext4_core::environment::Environment,
) -> Result<()> {
    let superblock = |block_size, blocks, fast_commit_blocks, uuid| {
        NewJournal { block_size, blocks, fast_commit_blocks, uuid, external: false }.superblock()
    };
    ext4_core::meta::mkfs::mkfs(device, options, environment, &superblock).await
}
