//! The end of a recovery with fast commits: the blocks that they change come in as one transaction.
//!
//! ```text
//!   log replayed, flushed ─► tail = behind the last commit ─► images, commit block ─► places ─► log empty
//!         │                       │                               │
//!         └─ a crash: all again   └─ the same state, an empty     └─ a crash replays this transaction;
//!                                    ring: the area counts           the area belongs to an older one
//! ```
//!
//! The kernel and e2fsck write what a fast commit changes straight to its place, bitmap here, inode there. A
//! crash on the way leaves blocks whose checksums name each other's other version, and the next recovery has
//! to build on that. As a transaction with the fast commits' own id it is there as a whole or not at all to
//! the next recovery.
//!
//! Invariants:
//! - Before the commit block is durable nothing of the file system has changed, and the fast commits still
//!   count: the tail that is written first names the transaction that they belong to.
//! - The ring is written over only when the superblock on the medium no longer claims what it held, and that
//!   had been flushed to its places.

use std::sync::Arc;

use ext4_core::device::{AlignedBuffer, BioFlags, BlockDevice, BlockImage, Segment};
use ext4_core::meta::buffer::write_images;
use ext4_core::{BlockNumber, Errno, Error, Result, TransactionId};

use crate::journal::Journal;
use crate::log::descriptors_and_images;
use crate::state::Unfinished;

impl Journal {
    /// Ends a recovery that found fast commits: commits `images`, the new content of each block of
    /// `filesystem` that the fast commits change, as one transaction, writes them to their places, and
    /// empties the log. After a crash either all of them are there, or the recovery starts again from the
    /// beginning. Without images the fast commits are dropped. After an error the recovery can be done again.
    ///
    /// # Errors
    /// - `EINVAL`: no recovery is unfinished.
    /// - `ENOSPC`: the images do not fit into the log.
    /// - Corrupt: an image belongs into the log itself or outside the file system.
    /// - I/O: the log's device's or the file system's.
    pub async fn finish_recovery(
        &self,
        filesystem: &Arc<dyn BlockDevice>,
        images: Vec<(BlockNumber, BlockImage)>,
    ) -> Result<()> {
        let unfinished = self.state.lock().unfinished;
        let nothing = || Error::posix(Errno::EINVAL, "finish recovery: none is unfinished");
        let Unfinished { id, head, mut next, salvaged } = unfinished.ok_or_else(nothing)?;
        if !images.is_empty() {
            self.check_places(filesystem, &images)?;
            self.commit_images(id, head, &images).await?;
            write_images(&**filesystem, self.log.block_size, images, BioFlags::META).await?;
            filesystem.flush().await?;
            // Its own id is taken now.
            next = if next.is_after(id.next()) { next } else { id.next().next() };
        }
        self.mark_recovered(next, salvaged).await
    }

    /// Marks the log empty on the medium, once what it held is at its place.
    pub(crate) async fn mark_recovered(&self, next: TransactionId, salvaged: bool) -> Result<()> {
        self.write_superblock(BioFlags::PREFLUSH | BioFlags::FUA, |superblock| {
            superblock.set_tail(0, next);
            if salvaged && superblock.errno() == 0 {
                superblock.set_errno(-(Errno::EUCLEAN as i32));
            }
        })
        .await?;
        let mut state = self.state.lock();
        state.next = next;
        state.unfinished = None;
        Ok(())
    }

    fn check_places(
        &self,
        filesystem: &Arc<dyn BlockDevice>,
        images: &[(BlockNumber, BlockImage)],
    ) -> Result<()> {
        let blocks = filesystem.geometry().size >> self.log.block_size.bits();
        let internal = std::ptr::addr_eq(Arc::as_ptr(&self.log.device), Arc::as_ptr(filesystem));
        let wrong = images.iter().find(|(block, _)| block.0 >= blocks || (internal && self.log.owns(*block)));
        match wrong {
            Some((block, _)) => Err(Error::corrupt(
                format!("fast commit: block {block}"),
                format!("is the log's own or outside the {blocks} blocks of the file system"),
            )),
            None => Ok(()),
        }
    }

    /// Makes `images` transaction `id`, durable at `head`.
    async fn commit_images(
        &self,
        id: TransactionId,
        head: u32,
        images: &[(BlockNumber, BlockImage)],
    ) -> Result<()> {
        let layout = self.state.lock().superblock.layout();
        let blocks = descriptors_and_images(&layout, id, images)?;
        let count = u32::try_from(blocks.len()).unwrap_or(u32::MAX);
        if count.saturating_add(1) >= self.log.ring() {
            return Err(Error::posix(
                Errno::ENOSPC,
                format!("fast commits: {count} blocks of log in a ring of {}", self.log.ring()),
            ));
        }
        let flags = BioFlags::PREFLUSH | BioFlags::FUA;
        self.write_superblock(flags, |superblock| superblock.set_tail(head, id)).await?;
        self.log.write(head, blocks, BioFlags::empty()).await?;
        let now = self.environment.now();
        let mut commit = AlignedBuffer::zeroed(self.log.block_size.len())?;
        layout.write_commit(&mut commit, id, now.seconds, now.nanoseconds);
        self.log.write(self.log.advance(head, count), vec![Segment::Owned(commit)], flags).await
    }
}
