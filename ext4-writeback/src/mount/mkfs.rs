//! mkfs: ext4-core's, with the journal superblock of ext4-journal, which ext4-core does not know.

use std::sync::Arc;

use ext4_core::Result;
use ext4_core::device::BlockDevice;
use ext4_core::meta::mkfs::MkfsOptions;
use ext4_journal::NewJournal;

/// Makes an ext4 file system on `device` (mke2fs). Time, UUID and hash seed come from `environment`.
///
/// # Errors
/// - `EINVAL`: options that contradict each other or do not fit the device.
/// - `ENOSPC`: the device is too small.
/// - `EROFS`: the device cannot be written.
/// - `EIO`: the device failed.
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
