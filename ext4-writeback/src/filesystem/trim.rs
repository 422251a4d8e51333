//! FITRIM: discards all free blocks, group by group.
//!
//! Invariant: a run of free blocks is discarded while it is withheld from allocation, and only if the
//! transaction that freed it has committed ([`ext4_core::meta::free_runs`]). If it were allocated meanwhile,
//! the discard could take its new content; if it were not free after a crash, a file would have lost its
//! content.

use std::ops::Range;

use ext4_core::meta::free_runs::withhold_free_run;
use ext4_core::{BlockNumber, Errno, Error, GroupNumber, InodeNumber, IoPurpose, Result};

use crate::filesystem::{Filesystem, FilesystemInner};

impl Filesystem {
    /// FITRIM: discards the free blocks among bytes `range` of the file system that lie in runs of at least
    /// `minimum_len` bytes. Returns how many bytes were discarded. Other operations go on meanwhile.
    ///
    /// # Errors
    /// - `EOPNOTSUPP`: the device cannot discard.
    /// - `EINVAL`: the range is behind the end or shorter than a block, or the minimum is longer than a
    ///   group.
    /// - `EROFS`: the file system is not written.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn trim(&self, range: Range<u64>, minimum_len: u64) -> Result<u64> {
        self.run("trim", InodeNumber(0), move |fs| async move { trim(&fs, range, minimum_len).await }).await
    }
}

async fn trim(fs: &FilesystemInner, range: Range<u64>, minimum_len: u64) -> Result<u64> {
    let (info, block_size) = (&fs.volume.info, fs.volume.info.block_size());
    if !info.device().geometry().discard {
        return Err(Error::Unsupported("the device does not discard".into()));
    }
    let superblock = info.superblock();
    let end = (range.end >> block_size.bits()).min(superblock.blocks_count);
    let start = block_size.blocks_for(range.start).max(u64::from(superblock.first_data_block));
    let least = block_size.blocks_for(minimum_len).max(1);
    let short = range.end.saturating_sub(range.start) < u64::from(block_size.bytes());
    if short || start >= superblock.blocks_count || least > u64::from(superblock.blocks_per_group) {
        let what = format!("trimming bytes {}..{}, {minimum_len} at least", range.start, range.end);
        return Err(Error::posix(Errno::EINVAL, what));
    }
    if end <= start {
        return Ok(0);
    }
    let (first, last) = (BlockNumber(start), BlockNumber(end - 1));
    let mut trimmed = 0;
    for number in info.group_of_block(first).0..=info.group_of_block(last).0 {
        fs.volume.check_writable()?;
        let group = GroupNumber(number);
        let base = info.group_first_block(group).0;
        // Within the group, which has less than 2^32 blocks.
        let within = |block: u64| u32::try_from(block.saturating_sub(base)).unwrap_or(u32::MAX);
        let (mut at, stop) = (within(start), within(end));
        // `least` is at most the blocks of a group.
        while let Some(run) = withhold_free_run(info, group, at..stop, least as u32).await? {
            let blocks = u64::from(run.blocks());
            let Some(offset) = run.first().byte(block_size) else { break };
            let discarded = info.device().discard(offset, blocks << block_size.bits()).await;
            discarded.map_err(|error| error.for_purpose(IoPurpose::Other))?;
            at = run.end();
            trimmed += blocks << block_size.bits();
        }
    }
    Ok(trimmed)
}
