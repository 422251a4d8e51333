//! Fast commits in the area behind the ring, of the transaction that follows the last full commit.
//!
//! ```text
//!   ring:  … commit 41 │ (42 never committed)      area:  HEAD 42 … TAIL 42 │ … TAIL 42 │ … TAIL 40
//!                                                         └── these two ────────────────┘   └ an older one
//! ```
//!
//! A fast commit counts when every tag of it is valid, its TAIL names the transaction expected and the
//! checksum is right; the first that does not count ends the area, because those behind it stand on it. HEAD,
//! PAD and TAIL are not passed on: the file system gets the tags that change something, in their order.
//!
//! A first fast commit that does not count is the ordinary end too: it was torn. (The kernel refuses to mount
//! then; [`crate::format::FastCommitEncoder`] says how a writer avoids that.)
//!
//! Invariants:
//! - Nothing of a fast commit is passed on before its TAIL was verified.
//! - The walk reads each block of the area once, and memory is bounded by what the area's blocks hold.
//!
//! Source: fs/ext4/fast_commit.c (replay_scan), fs/jbd2/recovery.c (fc_do_one_pass: the area begins one block
//! behind the ring, and belongs to the first transaction without a full commit).

use std::fmt;

use ext4_core::checksum::crc32c;
use ext4_core::{Error, Result, TransactionId};

use crate::format::{FastCommitTag, FastCommitTags, Superblock};
use crate::log::{Log, Reader};

/// A fast commit: tags that became durable together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FastCommit {
    /// The tags that change something, in order: no HEAD, PAD or TAIL.
    pub tags: Vec<FastCommitTag>,
}

/// The fast commits that follow the last full commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FastCommits {
    /// In the order in which they are to be applied.
    pub commits: Vec<FastCommit>,
    /// The place and the reason of their end.
    pub end: FastCommitEnd,
}

impl FastCommits {
    /// All tags in order.
    pub fn tags(&self) -> impl Iterator<Item = &FastCommitTag> {
        self.commits.iter().flat_map(|commit| &commit.tags)
    }

    /// Returns true if there is nothing to apply.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.commits.is_empty()
    }
}

/// The end of the fast commits that count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FastCommitEnd {
    /// The block of the area that ends them, counted from the area's first.
    pub block: u32,
    /// The byte offset in that block.
    pub offset: usize,
    /// The reason.
    pub reason: FastCommitEndReason,
}

/// The reason for the end of the fast commits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FastCommitEndReason {
    /// The log has no area, or the area does not begin with HEAD.
    #[default]
    NoHead,
    /// The tag belongs to another transaction, usually an older one.
    OtherTransaction(TransactionId),
    /// The checksum in TAIL is wrong: the fast commit is not whole.
    Checksum {
        /// The checksum in TAIL.
        stored: u32,
        /// The checksum of the tags.
        computed: u32,
    },
    /// The bytes are no valid tag; the text says why.
    Invalid(String),
    /// The area ends.
    AreaEnds,
}

impl fmt::Display for FastCommitEndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHead => f.write_str("no head"),
            Self::OtherTransaction(id) => write!(f, "it belongs to transaction {id}"),
            Self::Checksum { stored, computed } => {
                write!(f, "checksum {stored:#010x}, expected {computed:#010x}")
            }
            Self::Invalid(problem) => f.write_str(problem),
            Self::AreaEnds => f.write_str("the area ends"),
        }
    }
}

/// Reads the fast commits of transaction `id`, the first without a full commit.
///
/// # Errors
/// - I/O: the device's.
/// - Unsupported: a whole fast commit asks for features that are not known.
pub(crate) async fn scan(log: &Log, superblock: &Superblock, id: TransactionId) -> Result<FastCommits> {
    let mut walk = Walk { id, pending: FastCommit::default(), checksum: 0, unknown_features: 0 };
    let mut found = FastCommits::default();
    if superblock.fast_commit_blocks() == 0 {
        return Ok(found);
    }
    let first = superblock.last().saturating_add(1);
    let mut reader = Reader::new(log);
    for at in first..superblock.max_len() {
        let block = at.saturating_sub(first);
        if let Some((offset, reason)) = walk.block(reader.read(at).await?, block == 0, &mut found.commits)? {
            found.end = FastCommitEnd { block, offset, reason };
            return Ok(found);
        }
    }
    let block = superblock.max_len().saturating_sub(first);
    found.end = FastCommitEnd { block, offset: 0, reason: FastCommitEndReason::AreaEnds };
    Ok(found)
}

struct Walk {
    id: TransactionId,
    /// The tags of the fast commit whose TAIL is still to come.
    pending: FastCommit,
    checksum: u32,
    unknown_features: u32,
}

impl Walk {
    /// Walks over a block. Returns the byte offset and the reason if the area ends in it.
    fn block(
        &mut self,
        block: &[u8],
        is_first: bool,
        commits: &mut Vec<FastCommit>,
    ) -> Result<Option<(usize, FastCommitEndReason)>> {
        let mut tags = FastCommitTags::new(block);
        if is_first && !matches!(tags.clone().next(), Some(Ok((_, FastCommitTag::Head { .. })))) {
            return Ok(Some((0, FastCommitEndReason::NoHead)));
        }
        for tag in &mut tags {
            let (covered, tag) = match tag {
                Ok(tag) => tag,
                Err((offset, problem)) => {
                    return Ok(Some((offset, FastCommitEndReason::Invalid(problem))));
                }
            };
            let at = covered.start;
            self.checksum = crc32c(self.checksum, block.get(covered).unwrap_or_default());
            match tag {
                FastCommitTag::Head { id, .. } | FastCommitTag::Tail { id, .. } if id != self.id => {
                    return Ok(Some((at, FastCommitEndReason::OtherTransaction(id))));
                }
                FastCommitTag::Head { features, .. } => self.unknown_features |= features,
                FastCommitTag::Tail { checksum: stored, .. } => {
                    let computed = std::mem::take(&mut self.checksum);
                    if stored != computed {
                        return Ok(Some((at, FastCommitEndReason::Checksum { stored, computed })));
                    }
                    if self.unknown_features != 0 {
                        let features = self.unknown_features;
                        let problem = format!("journal: fast commits with features {features:#x}");
                        return Err(Error::Unsupported(problem));
                    }
                    commits.push(std::mem::take(&mut self.pending));
                }
                FastCommitTag::Pad { .. } => {}
                tag => self.pending.tags.push(tag),
            }
        }
        Ok(None)
    }
}
