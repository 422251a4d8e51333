//! The third pass: the images go to their places.
//!
//! The log is read in its order, each image is verified, the last image of a block wins; then they are written in
//! device order, adjacent ones together.

use std::collections::BTreeMap;
use std::sync::Arc;

use ext4_core::device::{AlignedBuffer, BioFlags, BlockDevice, BlockImage};
use ext4_core::meta::buffer::write_images;
use ext4_core::{BlockNumber, Error, Result};

use super::revoke::Revoked;
use super::scan::Found;
use crate::RecoveryReport;
use crate::format::{ESCAPED, Layout, MAGIC};
use crate::log::{Log, Reader};

/// Images are collected up to this size before they are written. A log that fits is verified as a whole before
/// anything is written.
pub(crate) const BATCH_BYTES: usize = 64 << 20;

/// Writes to `filesystem` what is not revoked; does not flush.
///
/// # Errors
/// The devices'; corrupt where an image fails its checksum or belongs outside the file system.
pub(crate) async fn replay(
    log: &Log,
    layout: &Layout,
    found: &Found,
    revoked: &Revoked,
    filesystem: &Arc<dyn BlockDevice>,
) -> Result<RecoveryReport> {
    let blocks = filesystem.geometry().size >> layout.block_size.bits();
    let internal = std::ptr::addr_eq(Arc::as_ptr(&log.device), Arc::as_ptr(filesystem));
    let limit = (BATCH_BYTES >> layout.block_size.bits()).max(1);
    let mut report = RecoveryReport::default();
    let mut batch: BTreeMap<BlockNumber, BlockImage> = BTreeMap::new();
    let mut reader = Reader::new(log);
    for record in found.records.iter().filter(|record| !record.revoke) {
        let descriptor = reader.read(record.block).await?.to_vec();
        if !layout.verify_tail(&descriptor) {
            return Err(Error::corrupt(
                format!("journal: log block {}: descriptor of transaction {}", record.block, record.id),
                "the checksum is wrong",
            ));
        }
        let mut at = record.block;
        for tag in layout.tags(&descriptor) {
            at = log.advance(at, 1);
            if revoked.covers(tag.block, record.id) {
                report.revoked += 1;
                continue;
            }
            let what = || {
                format!("journal: log block {at}: image of block {} in transaction {}", tag.block, record.id)
            };
            if tag.block.0 >= blocks {
                return Err(Error::corrupt(what(), format!("the file system has {blocks} blocks")));
            }
            if internal && log.owns(tag.block) {
                return Err(Error::corrupt(what(), "the block is the log's own"));
            }
            let content = reader.read(at).await?;
            if layout.tag_checksum(record.id, content) != tag.checksum {
                return Err(Error::corrupt(what(), "the checksum is wrong"));
            }
            let mut image = AlignedBuffer::copied(content)?;
            if tag.flags & ESCAPED != 0
                && let Some(start) = image.get_mut(..4)
            {
                start.copy_from_slice(&MAGIC.to_be_bytes());
            }
            batch.insert(tag.block, image.into());
            report.blocks += 1;
            if batch.len() >= limit {
                write(filesystem, layout, &mut batch).await?;
            }
        }
    }
    write(filesystem, layout, &mut batch).await?;
    Ok(report)
}

async fn write(
    filesystem: &Arc<dyn BlockDevice>,
    layout: &Layout,
    batch: &mut BTreeMap<BlockNumber, BlockImage>,
) -> Result<()> {
    let images = std::mem::take(batch).into_iter().collect();
    write_images(&**filesystem, layout.block_size, images, BioFlags::META).await
}
