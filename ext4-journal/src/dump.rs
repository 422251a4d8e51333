//! A dump of the log without recovering it: what its blocks say, one by one, also those that no recovery
//! reads.
//!
//! ```text
//!   tail ─► [committed]… ─► [unfinished] ─► old transactions, and pieces of them, all around the ring
//! ```
//!
//! A block that begins with the magic number is metadata of the log: an image that begins so lies there
//! escaped. So what is left of old transactions is found although nothing points to it.
//!
//! Invariants:
//! - Nothing is written.
//! - A walk ends after one turn of the ring, and holds one block of the log and its parsed content.
//! - Which part a block belongs to follows from recovery's own scan: were it judged here again, a dump could
//!   call committed what a mount does not replay.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)
)]

use std::sync::Arc;

use ext4_core::checksum::{crc32_be, crc32c};
use ext4_core::{BlockNumber, Result, TransactionId};

use crate::format::{
    COMMIT, COMPAT_CHECKSUM, Commit, DESCRIPTOR, ESCAPED, FastCommitTag, FastCommitTags, Header, REVOKE,
    Superblock,
};
use crate::log::{JournalHeader, JournalLocation, Log, Reader};
use crate::recovery::{self, EndReason, Finding, Found, LogEnd, Revoked};

/// A log whose superblock was read and that was scanned, for a look at its blocks.
#[derive(Debug)]
pub struct Inspection {
    log: Log,
    superblock: Superblock,
    header: JournalHeader,
    found: Found,
    revoked: Revoked,
}

/// The content of a log in numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogSummary {
    /// The number of committed transactions that a recovery replays.
    pub transactions: u32,
    /// The number of images in those transactions; each image of one block counts.
    pub images: u64,
    /// The number of revoke blocks and descriptors in those transactions.
    pub metadata_blocks: usize,
    /// The number of the ring's blocks that those transactions take.
    pub used: u32,
    /// The number of the ring's blocks.
    pub ring: u32,
    /// The transaction at the tail.
    pub first: TransactionId,
    /// The place and the reason of the committed part's end.
    pub end: LogEnd,
    /// The log block after the last commit.
    pub head: u32,
    /// The damage for which a mount refuses the log.
    pub damage: Option<Finding>,
}

/// The part of the log that a block belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogPart {
    /// A transaction that recovery replays.
    Committed,
    /// The transaction after the last commit, which has no commit block.
    Unfinished,
    /// A transaction behind a damaged one, which no recovery replays.
    Dropped,
    /// A transaction that was checkpointed, or of an earlier life of the log.
    Old,
}

/// A checksum, as it is stored and as it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogChecksum {
    /// The stored checksum.
    pub stored: u32,
    /// The checksum of the content; `None` if that cannot be known any more.
    pub computed: Option<u32>,
}

impl LogChecksum {
    /// Returns true if the checksum is known to be wrong.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        self.computed.is_some_and(|computed| computed != self.stored)
    }

    fn of(verdict: std::result::Result<(), (u32, u32)>, stored: u32) -> Self {
        let computed = verdict.err().map_or(stored, |(_, computed)| computed);
        Self { stored, computed: Some(computed) }
    }
}

/// A metadata block of the log: descriptor, revoke block or commit block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogBlock {
    /// The log block.
    pub block: u32,
    /// The transaction that it names.
    pub transaction: TransactionId,
    /// The part of the log that it belongs to.
    pub part: LogPart,
    /// The block's checksum, if it has one. With checksums v1 a commit block has the checksum of its
    /// transaction.
    pub checksum: Option<LogChecksum>,
    /// The block's content.
    pub content: LogBlockContent,
}

/// The content of a metadata block of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogBlockContent {
    /// A descriptor: the places of the images that follow.
    Descriptor(Vec<TagEntry>),
    /// A revoke block: blocks of which no older image is replayed. `None`: the list is longer than the block.
    Revoke(Option<Vec<BlockNumber>>),
    /// A commit block: its transaction is complete.
    Commit {
        /// The commit time in seconds since 1970.
        seconds: u64,
        /// The part of the commit time below a second, in nanoseconds.
        nanoseconds: u32,
    },
    /// A block of no known type; the number is its type.
    Unknown(u32),
}

/// A tag of a descriptor: the place of one image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TagEntry {
    /// The block of the file system.
    pub target: BlockNumber,
    /// The log block with its image.
    pub image: u32,
    /// The tag's flags: 1 escaped, 2 the same UUID, 4 deleted, 8 the last tag.
    pub flags: u16,
    /// The image's checksum, if tags have one.
    pub checksum: Option<LogChecksum>,
    /// True if a revoke keeps the image from being replayed.
    pub revoked: bool,
}

impl TagEntry {
    /// Returns true if the image is escaped: it begins with the log's magic number, and lies in the log
    /// without it.
    #[must_use]
    pub fn is_escaped(&self) -> bool {
        self.flags & ESCAPED != 0
    }
}

impl Inspection {
    /// Reads the superblock and scans the log. Damage in the log is no error.
    ///
    /// # Errors
    /// I/O, corrupt or unsupported: as [`crate::Journal::open`].
    pub async fn open(location: JournalLocation) -> Result<Self> {
        let (log, superblock) = Log::open(location).await?;
        let found = recovery::scan(&log, &superblock).await?;
        let revoked = recovery::collect(&log, &superblock.layout(), &found).await?;
        Ok(Self { header: JournalHeader::of(&superblock), log, superblock, found, revoked })
    }

    /// The journal superblock's fields.
    #[must_use]
    pub fn header(&self) -> &JournalHeader {
        &self.header
    }

    /// The content of the log in numbers.
    #[must_use]
    pub fn summary(&self) -> LogSummary {
        LogSummary {
            transactions: self.found.transactions,
            images: self.found.image_count,
            metadata_blocks: self.found.records.len(),
            used: self.found.used,
            ring: self.log.ring(),
            first: self.superblock.sequence(),
            end: self.found.end,
            head: self.found.head,
            damage: self.found.damage.clone(),
        }
    }

    /// The metadata blocks of the log in its order: those that recovery replays and those that follow without
    /// a commit; with `all` also every other one in the ring.
    #[must_use]
    pub fn blocks(&self, all: bool) -> LogBlocks<'_> {
        let empty = self.found.end.reason == EndReason::Empty;
        LogBlocks {
            inspection: self,
            reader: Reader::new(&self.log),
            images: Reader::new(&self.log),
            all,
            at: if empty { self.log.first } else { self.superblock.start() },
            walked: 0,
            committed: self.found.used,
            covered: 0,
            running: !0,
        }
    }

    /// The blocks of the fast-commit area that follow the last commit; with `all` every one of the area.
    #[must_use]
    pub fn fast_commits(&self, all: bool) -> FastCommitBlocks<'_> {
        let (first, end) = if self.superblock.fast_commit_blocks() == 0 {
            (0, 0)
        } else {
            (self.superblock.last().saturating_add(1), self.superblock.max_len())
        };
        FastCommitBlocks { inspection: self, reader: Reader::new(&self.log), all, at: first, end, running: 0 }
    }

    fn part(&self, id: TransactionId, committed: bool) -> LogPart {
        let end = self.found.end.transaction;
        let ahead = id.is_at_or_after(end) && id.0.wrapping_sub(end.0) <= self.log.ring();
        if committed {
            LogPart::Committed
        } else if !ahead || self.found.end.reason == EndReason::Empty {
            LogPart::Old
        } else if matches!(self.found.end.reason, EndReason::Damaged | EndReason::Incomplete) {
            LogPart::Dropped
        } else if id == end && self.found.end.reason != EndReason::Stale {
            LogPart::Unfinished
        } else {
            LogPart::Old
        }
    }
}

/// A walk over the metadata blocks of a log.
pub struct LogBlocks<'a> {
    inspection: &'a Inspection,
    reader: Reader<'a>,
    images: Reader<'a>,
    all: bool,
    at: u32,
    walked: u32,
    /// The number of blocks of the committed part.
    committed: u32,
    /// The number of blocks, from here on, that are images of the last descriptor.
    covered: u32,
    /// The crc32 over the transaction, if checksums v1 are on.
    running: u32,
}

impl LogBlocks<'_> {
    /// The next metadata block; `None` at the end.
    ///
    /// # Errors
    /// I/O: the device's.
    pub async fn next(&mut self) -> Result<Option<LogBlock>> {
        let log = &self.inspection.log;
        if self.inspection.found.end.reason == EndReason::Empty && !self.all {
            return Ok(None);
        }
        while self.walked < log.ring() {
            let here = self.at;
            let committed = self.walked < self.committed;
            let content = self.reader.read(here).await?;
            let covered = self.covered > 0;
            self.covered = self.covered.saturating_sub(1);
            let header = Header::read(content);
            let part = header.map(|(_, id)| self.inspection.part(id, committed));
            let is_live = part.is_some_and(|part| part != LogPart::Old);
            if !self.all && !covered && !is_live {
                return Ok(None);
            }
            self.at = log.advance(here, 1);
            self.walked = self.walked.saturating_add(1);
            // Images of the committed part are no metadata blocks, whatever they begin with.
            let (Some((kind, id)), Some(part)) = (header, part) else { continue };
            if committed && covered || !self.all && !is_live {
                continue;
            }
            let content = Arc::<[u8]>::from(content);
            return self.read(here, kind, id, part, &content).await.map(Some);
        }
        Ok(None)
    }

    async fn read(
        &mut self,
        block: u32,
        kind: u32,
        transaction: TransactionId,
        part: LogPart,
        bytes: &[u8],
    ) -> Result<LogBlock> {
        let layout = self.inspection.superblock.layout();
        let tail = layout.stored_tail(bytes).map(|stored| LogChecksum::of(layout.verify_tail(bytes), stored));
        let (checksum, content) = match kind {
            DESCRIPTOR => {
                let tags = self.tags(block, transaction, part, bytes).await?;
                (tail, LogBlockContent::Descriptor(tags))
            }
            REVOKE => {
                let blocks = layout.revokes(bytes).ok().map(Iterator::collect);
                (tail, LogBlockContent::Revoke(blocks))
            }
            COMMIT => match Commit::read(bytes) {
                Some(commit) => {
                    let content = LogBlockContent::Commit {
                        seconds: commit.seconds.get(),
                        nanoseconds: commit.nanoseconds(),
                    };
                    (self.commit_checksum(part, bytes, &commit), content)
                }
                None => (None, LogBlockContent::Unknown(kind)),
            },
            _ => (None, LogBlockContent::Unknown(kind)),
        };
        Ok(LogBlock { block, transaction, part, checksum, content })
    }

    async fn tags(
        &mut self,
        block: u32,
        id: TransactionId,
        part: LogPart,
        bytes: &[u8],
    ) -> Result<Vec<TagEntry>> {
        let Inspection { log, superblock, revoked, .. } = self.inspection;
        let layout = superblock.layout();
        let whole_checksum = superblock.has_compat(COMPAT_CHECKSUM) && part == LogPart::Committed;
        if whole_checksum {
            self.running = crc32_be(self.running, bytes);
        }
        let mut entries = Vec::new();
        let mut image = block;
        for tag in layout.tags(bytes).take(log.ring() as usize) {
            image = log.advance(image, 1);
            let mut checksum = None;
            if whole_checksum || layout.has_tag_checksums() {
                // An image that cannot be read has no right checksum.
                let content = self.images.read(image).await.ok();
                if let Some(content) = content.filter(|_| whole_checksum) {
                    self.running = crc32_be(self.running, content);
                }
                checksum = layout.has_tag_checksums().then(|| LogChecksum {
                    stored: tag.checksum,
                    computed: content.map(|content| layout.tag_checksum(id, content)),
                });
            }
            let revoked = part == LogPart::Committed && revoked.covers(tag.block, id);
            entries.push(TagEntry { target: tag.block, image, flags: tag.flags, checksum, revoked });
        }
        self.covered = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        Ok(entries)
    }

    fn commit_checksum(&mut self, part: LogPart, bytes: &[u8], commit: &Commit) -> Option<LogChecksum> {
        let Inspection { superblock, .. } = self.inspection;
        let layout = superblock.layout();
        let stored = commit.stored_checksum();
        if superblock.has_compat(COMPAT_CHECKSUM) {
            let running = std::mem::replace(&mut self.running, !0);
            let computed = if commit.verify_compat_checksum(running) { stored } else { running };
            let computed = (part == LogPart::Committed).then_some(computed);
            return Some(LogChecksum { stored, computed });
        }
        layout.has_tag_checksums().then(|| LogChecksum::of(layout.verify_commit(bytes), stored))
    }
}

/// A block of the fast-commit area, parsed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FastCommitBlock {
    /// The log block.
    pub block: u32,
    /// The block's tags, each with its byte offset in the block; a TAIL also with its checksum.
    pub tags: Vec<(usize, FastCommitTag, Option<LogChecksum>)>,
    /// The byte offset of the first bytes that are no valid tag, and the reason.
    pub problem: Option<(usize, String)>,
}

/// A walk over the fast-commit area.
pub struct FastCommitBlocks<'a> {
    inspection: &'a Inspection,
    reader: Reader<'a>,
    all: bool,
    at: u32,
    end: u32,
    running: u32,
}

impl FastCommitBlocks<'_> {
    /// The transaction that fast commits have to name to be replayed.
    #[must_use]
    pub fn expected(&self) -> TransactionId {
        self.inspection.found.end.transaction
    }

    /// The next block of the area with tags; `None` at the end.
    ///
    /// # Errors
    /// I/O: the device's.
    pub async fn next(&mut self) -> Result<Option<FastCommitBlock>> {
        while self.at < self.end {
            let block = self.at;
            self.at = self.at.saturating_add(1);
            let content = self.reader.read(block).await?;
            let mut found = FastCommitBlock { block, tags: Vec::new(), problem: None };
            let mut stale = false;
            for tag in FastCommitTags::new(content) {
                let (covered, tag) = match tag {
                    Ok(tag) => tag,
                    Err(problem) => {
                        found.problem = Some(problem);
                        break;
                    }
                };
                self.running = crc32c(self.running, content.get(covered.clone()).unwrap_or_default());
                let mut checksum = None;
                match &tag {
                    FastCommitTag::Head { id, .. } => stale |= *id != self.inspection.found.end.transaction,
                    FastCommitTag::Tail { id, checksum: stored } => {
                        stale |= *id != self.inspection.found.end.transaction;
                        let computed = std::mem::replace(&mut self.running, 0);
                        checksum = Some(LogChecksum { stored: *stored, computed: Some(computed) });
                    }
                    _ => {}
                }
                found.tags.push((covered.start, tag, checksum));
            }
            let is_empty = found.tags.is_empty();
            if !self.all && (stale || is_empty) {
                self.at = self.end;
                return Ok(None);
            }
            if is_empty {
                self.running = 0;
                continue;
            }
            return Ok(Some(found));
        }
        Ok(None)
    }
}
