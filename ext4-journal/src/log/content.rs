//! A transaction's blocks as they lie in the log: descriptors, each with its images behind it.
//!
//! An image that begins with the log's magic number is *escaped*: its first four bytes lie in the log as
//! zeros, and the flag in its tag says so. Were it not, recovery could take the image for a metadata block of
//! the log.

use ext4_core::device::{AlignedBuffer, BlockImage, Segment};
use ext4_core::{BlockNumber, Result, TransactionId};

use crate::format::{ESCAPED, Layout, MAGIC, Tag};

/// The descriptors of `images` in transaction `id`, each with its images behind it, in the order of the log.
///
/// # Errors
/// [`ext4_core::Error`] if there is no memory for a block.
pub(crate) fn descriptors_and_images(
    layout: &Layout,
    id: TransactionId,
    images: &[(BlockNumber, BlockImage)],
) -> Result<Vec<Segment>> {
    let mut blocks = Vec::with_capacity(images.len().saturating_add(8));
    for some in images.chunks(layout.tags_per_descriptor()) {
        let mut tags = Vec::with_capacity(some.len());
        let mut logged = Vec::with_capacity(some.len());
        for (block, image) in some {
            let escaped = image.starts_with(&MAGIC.to_be_bytes());
            let mut image = image.clone();
            if escaped && let Some(start) = image.to_mut()?.get_mut(..4) {
                start.fill(0);
            }
            tags.push(Tag {
                block: *block,
                flags: if escaped { ESCAPED } else { 0 },
                checksum: layout.tag_checksum(id, &image),
            });
            logged.push(Segment::Image(image));
        }
        let mut descriptor = AlignedBuffer::zeroed(layout.block_size.len())?;
        layout.write_descriptor(&mut descriptor, id, &tags);
        blocks.push(Segment::Owned(descriptor));
        blocks.append(&mut logged);
    }
    Ok(blocks)
}
