//! The replay, the third pass of recovery: the images go to their places.
//!
//! The log is read in its order, each image is verified, and the last image of a block wins; then the images
//! are written in device order, adjacent ones together.
//!
//! Invariant: a log that is to be refused for one image is refused before any is written. A log of which not
//! all images are in memory at once is therefore read twice: were it not, a file system whose recovery was
//! refused would be changed all the same, and not to any state it ever had.

use std::collections::BTreeMap;
use std::sync::Arc;

use ext4_core::device::{AlignedBuffer, BioFlags, BlockDevice, BlockImage};
use ext4_core::meta::buffer::write_images;
use ext4_core::{BlockNumber, Error, Result, TransactionId};

use super::report::{Damage, Finding, Recovery, RecoveryReport};
use super::revoke::Revoked;
use super::scan::Found;
use crate::format::{ESCAPED, Layout, MAGIC, Tag};
use crate::log::{Log, Reader};

/// Images are collected up to this size before they are written.
pub(crate) const BATCH_BYTES: usize = 64 << 20;

/// The committed part of a log and the device it belongs to.
pub(crate) struct Replay<'a> {
    pub(crate) log: &'a Log,
    pub(crate) layout: Layout,
    pub(crate) found: &'a Found,
    pub(crate) revoked: &'a Revoked,
    pub(crate) filesystem: &'a Arc<dyn BlockDevice>,
}

type Batch = BTreeMap<BlockNumber, BlockImage>;

impl Replay<'_> {
    /// Writes the images that are not revoked to the file system, unless `mode` only checks, and adds to
    /// `report`. Does not flush.
    ///
    /// # Errors
    /// - I/O: the log's device's or the file system's.
    /// - Corrupt: damage is refused, and an image fails its checksum or belongs into the log or outside the
    ///   file system.
    pub(crate) async fn run(&self, mode: Recovery, report: &mut RecoveryReport) -> Result<()> {
        let limit = (BATCH_BYTES >> self.layout.block_size.bits()).max(1);
        if mode.check {
            return self.pass(mode, report, None).await;
        }
        let at_once = usize::try_from(self.found.image_count).is_ok_and(|count| count <= limit);
        if mode.damage == Damage::Refuse && !at_once {
            self.pass(mode, &mut RecoveryReport::default(), None).await?;
        }
        self.pass(mode, report, Some(limit)).await
    }

    /// Reads and verifies every image; with a `limit` also writes them, at most so many at a time.
    async fn pass(&self, mode: Recovery, report: &mut RecoveryReport, limit: Option<usize>) -> Result<()> {
        let mut batch = Batch::new();
        let mut reader = Reader::new(self.log);
        for record in self.found.records.iter().filter(|record| !record.revoke) {
            let descriptor = reader.read(record.block).await?.to_vec();
            let mut at = record.block;
            for tag in self.layout.tags(&descriptor) {
                at = self.log.advance(at, 1);
                if self.revoked.covers(tag.block, record.id) {
                    report.revoked = report.revoked.saturating_add(1);
                    continue;
                }
                let content = reader.read(at).await;
                match self.judge(&tag, record.id, at, content, mode.damage)? {
                    Ok(content) => {
                        report.blocks = report.blocks.saturating_add(1);
                        if limit.is_some() {
                            batch.insert(tag.block, image(&tag, content)?);
                        }
                    }
                    Err(finding) if mode.damage == Damage::Refuse => return Err(finding.into()),
                    Err(finding) => report.add(finding),
                }
                if limit.is_some_and(|limit| batch.len() >= limit) {
                    self.write(&mut batch).await?;
                }
            }
        }
        self.write(&mut batch).await
    }

    /// The content of an image, or what is wrong with it.
    fn judge<'c>(
        &self,
        tag: &Tag,
        id: TransactionId,
        at: u32,
        content: Result<&'c [u8]>,
        damage: Damage,
    ) -> Result<std::result::Result<&'c [u8], Finding>> {
        let what = || format!("image of block {}", tag.block);
        let finding = |found: String, expected: String| {
            Ok(Err(Finding { block: at, transaction: id, what: what(), found, expected }))
        };
        let blocks = self.filesystem.geometry().size >> self.layout.block_size.bits();
        if tag.block.0 >= blocks {
            return finding(format!("block {}", tag.block), format!("less than {blocks}"));
        }
        let internal = std::ptr::addr_eq(Arc::as_ptr(&self.log.device), Arc::as_ptr(self.filesystem));
        if internal && self.log.owns(tag.block) {
            return finding("a block of the log itself".into(), "one outside it".into());
        }
        let content = match content {
            Ok(content) => content,
            // As e2fsck: a salvage goes on past a block that cannot be read.
            Err(error @ Error::Io { .. }) if damage == Damage::Salvage => {
                return finding(error.to_string(), "its content".into());
            }
            Err(error) => return Err(error),
        };
        let computed = self.layout.tag_checksum(id, content);
        if computed != tag.checksum {
            return Ok(Err(Finding::checksum(at, id, what(), tag.checksum, computed)));
        }
        Ok(Ok(content))
    }

    async fn write(&self, batch: &mut Batch) -> Result<()> {
        let images = std::mem::take(batch).into_iter().collect();
        write_images(&**self.filesystem, self.layout.block_size, images, BioFlags::META).await
    }
}

/// An image as it belongs at its place: no longer escaped.
fn image(tag: &Tag, content: &[u8]) -> Result<BlockImage> {
    let mut image = AlignedBuffer::copied(content)?;
    if tag.flags & ESCAPED != 0
        && let Some(start) = image.get_mut(..4)
    {
        start.copy_from_slice(&MAGIC.to_be_bytes());
    }
    Ok(image.into())
}
