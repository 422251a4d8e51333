//! Fast commits, as the file system sees them.
//!
//! A fast commit says in a few tags what an fsync has to make durable: names made and removed, inodes as they are now,
//! ranges mapped and unmapped. It stands on the last full commit and is void as soon as the next one is there. The
//! journal crate owns the tags' form and the area they lie in; here is what they mean.
//!
//! # While mounted
//!
//! fsync writes what it is about, not the images of every block that the transaction touched.
//!
//! | file | owns |
//! |---|---|
//! | `reason` | what has no tag, by name, and how often that happened |
//! | `mapped` | what was mapped and unmapped in a file, as disjoint ranges |
//! | `track` | what the running transaction has done since the last fast commit |
//! | `commit` | the tags for it, and fsync's way to the journal |
//!
//! What is written: for each name that came or went CREAT, LINK or UNLINK in their order; for each inode the ranges that
//! were mapped or unmapped and the inode's fixed fields as they were logged. A fast commit holds everything that the
//! transaction has done, not only the file that fsync was called for: so the entries a new file needs are in it, and
//! what is replayed is the state of one moment.
//!
//! Why a replay is right though it sees neither bitmaps, nor directory blocks, nor the nodes of extent trees:
//! - It starts from exactly the state after the last full commit: nothing of the running transaction is in its place,
//!   and all before it is in the log.
//! - A block that was freed in the running transaction is not used again before that has committed in full (the
//!   allocator's rule). So within one transaction a block is mapped at one place of one file at most, no range that is
//!   replayed lies on a block that the replay, or a file that is left alone, still needs, and the tags of different
//!   inodes can be applied in any order.
//! - Bitmaps and counts follow from the ranges and inodes. Directory blocks follow from the names: only operations that
//!   fitted into the blocks the directory had are written, so they fit again. Extent nodes are rebuilt from the ranges,
//!   at other places than ours perhaps: on free blocks that no tag names. (So the kernel does it, and our own replay;
//!   e2fsck does not keep clear of the blocks that later tags name, so a file that has such nodes gets no range.)
//! - An inode number that was freed in the running transaction and used again has its old life in the state that replay
//!   starts from: such a transaction is committed in full, and so is one that makes an inode in a slot where an earlier
//!   one left extents or attributes, which no tag would clear.
//!
//! Where the references' replay is wrong, or they do not agree, there is no fast commit: see [`Reason`].
//!
//! Invariant: what is not told to the tracker makes the transaction ineligible ([`crate::volume::Volume::begin`]
//! does, [`crate::volume::Volume::begin_tracked`] does not). Were it the other way round, an operation that
//! somebody forgot to track would be lost after an fsync.
//!
//! # After a crash
//!
//! ```text
//!   log replayed ─► tags applied to metadata in memory ─► the blocks that changed ─► one transaction ─► their places
//!     (journal)       [replay, image, names, ranges, claims]                          (journal)
//! ```
//!
//! | file | what |
//! |---|---|
//! | `replay` | the order of things: claims, tags, deletions, claims settled |
//! | `image` | an inode from its INODE tag: which fields count |
//! | `names` | CREAT, LINK, UNLINK |
//! | `ranges` | ADD_RANGE, DEL_RANGE, and what an inode gives up when it is deleted |
//! | `claims` | blocks that tags name: kept from everybody else, settled at the end |
//!
//! The kernel writes each tag's effect straight to its place, with bitmaps put right at the end. So a crash during the
//! replay leaves something between two states, on which the next replay has to build. Here nothing is written until
//! everything has been applied, and then it comes in as a transaction of the journal with the fast commits' own id: a
//! replay happens as a whole or not at all, and every tag is applied once, to the very state that it was made for.
//!
//! # What a tag may be believed
//!
//! - Names are the truth about links: a link count is the names that were there plus those that the tags add, less those
//!   that they remove. An image's own count says what it should come to. (The kernel takes the image's, and gets that of
//!   a new directory wrong.)
//! - An image's mapping is not believed, as it names blocks of extent nodes that never reached the device: mappings come
//!   from ADD_RANGE and DEL_RANGE. So i_blocks follows from what is mapped here.
//! - A tag for what does not exist (an inode that was made and deleted between two commits, a directory that came and
//!   went) is passed over, as the kernel does. What contradicts itself is an error that names the tag, and nothing is
//!   written.
//! - A name that was removed takes its inode with it only at the end: a file without a name may get one from a later tag
//!   (`linkat` of a temporary file). A number that was reused shows by its generation.

pub(crate) mod mapped;
pub(crate) mod reason;
pub(crate) mod tags;
pub(crate) mod track;
