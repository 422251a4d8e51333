//! Fast commits: fsync writes what it is about, not the images of every block that the transaction touched.
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
//!   at other places than ours perhaps: on free blocks that no tag names.
//! - An inode number that was freed in the running transaction and used again has its old life in the state that replay
//!   starts from: such a transaction is committed in full, and so is one that makes an inode in a slot where an earlier
//!   one left extents or attributes, which no tag would clear.
//!
//! Where the references' replay is wrong, or they do not agree, there is no fast commit: see [`Reason`].
//!
//! Invariant: what is not told to the tracker makes the transaction ineligible ([`crate::filesystem::FilesystemInner::begin`]
//! does, [`crate::filesystem::FilesystemInner::begin_tracked`] does not). Were it the other way round, an operation that
//! somebody forgot to track would be lost after an fsync.

mod commit;
mod mapped;
mod reason;
mod track;

pub(crate) use mapped::Mapped;
pub use reason::{FastCommitReasons, Reason};
pub(crate) use track::{Operation, Table, Tracker};
