//! Our file system: helpers for all suites.

use ext4_writeback::{Credentials, Filesystem};

/// Owner and mode of new files.
pub fn owner() -> Credentials {
    Credentials { uid: 0, gid: 0, mode: 0o644 }
}

/// Bytes written to the journal since the mount. `block_size` in bytes.
pub fn journal_bytes(filesystem: &Filesystem, block_size: f64) -> f64 {
    let statistics = filesystem.journal_statistics().unwrap_or_default();
    (statistics.log_blocks + statistics.fast_commits.blocks) as f64 * block_size
}
