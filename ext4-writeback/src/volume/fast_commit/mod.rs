//! Fast commits (ext4_fc_*), as the file system sees them: which changes become tags, and why a replay of the
//! tags is right.
//!
//! A fast commit says in a few tags what an fsync has to make durable: names made and removed, inodes as they
//! are now, ranges mapped and unmapped. It builds on the last full commit and is void once the next one is
//! durable. ext4-journal owns the format of the tags and the area that they lie in; this folder and
//! `recovery/` own their meaning.
//!
//! # While mounted
//!
//! fsync writes tags for the changes, not the images of all blocks that the transaction touched.
//!
//! | file | owns |
//! |---|---|
//! | `reason` | changes that have no tag, by name, and how often they happened |
//! | `mapped` | ranges that were mapped and unmapped in one file, disjoint |
//! | `track` | the changes of the running transaction since the last fast commit |
//! | `tags` | the tags for them |
//!
//! What is written: for each name that came or went CREAT, LINK or UNLINK in their order; for each inode the
//! ranges that were mapped or unmapped and the inode's fixed fields as they were logged. A fast commit holds
//! all changes of the transaction, not only those of the file that fsync was called for: so the entries that
//! a new file needs are in it, and a replay gives the state of one moment.
//!
//! A replay is right though it sees neither bitmaps, nor directory blocks, nor the nodes of extent trees:
//! - It starts from exactly the state after the last full commit: no block of the running transaction was
//!   written to its place, and all earlier transactions are in the log.
//! - A block that was freed in the running transaction is not used again before that has committed in full
//!   (the allocator's rule). So within one transaction a block is mapped at one place of one file at most, no
//!   range that is replayed lies on a block that the replay, or a file that is left alone, still needs, and
//!   the tags of different inodes can be applied in any order.
//! - Bitmaps and counts follow from the ranges and inodes. Directory blocks follow from the names: only
//!   operations that fitted into the blocks the directory had are written, so they fit again. Extent nodes
//!   are rebuilt from the ranges, perhaps at other places than before: on free blocks that no tag names. (The
//!   kernel's replay and ours do so; that of e2fsck does not avoid the blocks that later tags name, so a file
//!   that has such nodes gets no range.)
//! - An inode number that was freed in the running transaction and used again has its old life in the state
//!   that replay starts from: such a transaction is committed in full, and so is one that makes an inode in a
//!   slot where an earlier one left extents or attributes, which no tag would clear.
//!
//! If the replay of the kernel or of e2fsck is wrong, or the two do not agree, there is no fast commit: see
//! [`Reason`](reason::Reason).
//!
//! Invariant: an operation that does not report to the tracker makes the transaction ineligible
//! ([`crate::volume::Volume::begin`] does, [`crate::volume::Volume::begin_tracked`] does not). Otherwise an
//! operation that is not tracked by mistake would be lost after an fsync.
//!
//! # After a crash
//!
//! ```text
//!   log replayed ─► tags applied to metadata in memory ─► changed blocks ─► one transaction ─► their places
//!     (journal)       [replay, image, names, ranges, claims]                    (journal)
//! ```
//!
//! | file of `recovery/` | owns |
//! |---|---|
//! | `mod` | the order: claims, tags, deletions, claims settled |
//! | `image` | an inode from its INODE tag: which fields are used |
//! | `names` | CREAT, LINK, UNLINK |
//! | `ranges` | ADD_RANGE, DEL_RANGE, and what an inode gives up when it is deleted |
//! | `claims`, `settle` | blocks that tags name: kept from the allocator, settled at the end |
//!
//! The kernel writes the effect of each tag to its place at once, and corrects bitmaps at the end. So a crash
//! during the replay leaves a state between two states, on which the next replay has to build. Here nothing
//! is written until all tags have been applied; then the changes become a transaction of the journal with the
//! id of the fast commits. So a replay happens as a whole or not at all, and each tag is applied once, to the
//! state that it was made for.
//!
//! # Which parts of a tag are believed
//!
//! - Names are the truth about links: a link count is the names that were there plus those that the tags add,
//!   less those that they remove. The count of an image says what the result should be. (The kernel takes the
//!   count of the image, and gets that of a new directory wrong.)
//! - The mapping of an image is not believed, as it names blocks of extent nodes that never reached the
//!   device: mappings come from ADD_RANGE and DEL_RANGE. So i_blocks follows from what is mapped here.
//! - A tag for what does not exist (an inode that was made and deleted between two commits, a directory that
//!   came and went) is skipped, as the kernel does. A contradiction is an error that names the tag, and
//!   nothing is written.
//! - A name that was removed takes its inode with it only at the end: a file without a name may get one from
//!   a later tag (`linkat` of a temporary file). A number that was reused shows by its generation.

pub(crate) mod mapped;
pub(crate) mod reason;
pub(crate) mod tags;
pub(crate) mod track;
