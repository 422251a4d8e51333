//! Fast commits, as the file system sees them.
//!
//! A fast commit says in a few tags what an fsync has to make durable: names made and removed, inodes as they are now,
//! ranges mapped and unmapped. It stands on the last full commit and is void as soon as the next one is there. The
//! journal crate owns the tags' form and the area they lie in; here is what they mean.
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

mod claims;
mod image;
mod names;
mod ranges;
mod replay;

pub use replay::{ReplayReport, finish_recovery, replay};
