//! Looking at a log without recovering it: what its blocks say, block by block, also those that no recovery
//! reads.
//!
//! ```text
//!   tail ─► [committed]… ─► [unfinished] ─► old transactions, and pieces of them, all around the ring
//! ```
//!
//! A block is metadata of the log where it begins with the magic number: images that begin so lie there
//! escaped. So whatever is left of old transactions is found without anything pointing to it.
//!
//! Invariants:
//! - Nothing is written.
//! - A walk ends after one turn of the ring, and holds one block of the log and what that says.
//! - Which part a block belongs to follows from recovery's own scan: were it judged here again, a dump could
//!   call committed what a mount does not replay.

use std::sync::Arc;

use ext4_core::checksum::{crc32_be, crc32c};
use ext4_core::{BlockNumber, Result, TransactionId};

use crate::format::commit::Commit;
use crate::format::fast_commit::{FastCommitTag, FastCommitTags};
use crate::format::superblock::Superblock;
use crate::format::{COMMIT, COMPAT_CHECKSUM, DESCRIPTOR, ESCAPED, Header, REVOKE};
use crate::log::header::JournalHeader;
use crate::log::location::JournalLocation;
use crate::log::{Log, Reader};
use crate::recovery::report::{EndReason, Finding, LogEnd};
use crate::recovery::revoke::Revoked;
use crate::recovery::scan::Found;
use crate::recovery::{revoke, scan};

/// A log that is looked at.
#[derive(Debug)]
pub struct Inspection {
    log: Log,
    superblock: Superblock,
    header: JournalHeader,
    found: Found,
    revoked: Revoked,
}

/// What a log holds, in numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    /// Committed transactions that a recovery replays.
    pub transactions: u32,
    /// Images in them; several of one block each count.
    pub images: u64,
    /// Revoke blocks and descriptors in them.
    pub metadata_blocks: usize,
    /// Blocks of the ring they take.
    pub used: u32,
    /// Blocks of the ring.
    pub ring: u32,
    /// The transaction at the tail.
    pub first: TransactionId,
    /// Where the committed part ends, and why.
    pub end: LogEnd,
    /// The block after the last commit.
    pub head: u32,
    /// What a mount refuses the log for.
    pub damage: Option<Finding>,
}

/// Which part of the log a block belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// A transaction that recovery replays.
    Committed,
    /// The transaction after the last commit, without one of its own.
    Unfinished,
    /// A transaction behind a damaged one.
    Dropped,
    /// A transaction that was checkpointed, or of an earlier life of the log.
    Old,
}

/// A checksum as it stands there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checksum {
    /// The one stored.
    pub stored: u32,
    /// The one that should be there; `None` where that cannot be known any more.
    pub computed: Option<u32>,
}

impl Checksum {
    /// True where it is known to be wrong.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        self.computed.is_some_and(|computed| computed != self.stored)
    }

    fn of(verdict: std::result::Result<(), (u32, u32)>, stored: u32) -> Self {
        let computed = verdict.err().map_or(stored, |(_, computed)| computed);
        Self { stored, computed: Some(computed) }
    }
}

/// A metadata block of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogBlock {
    /// Where it lies in the log.
    pub block: u32,
    /// Its transaction.
    pub transaction: TransactionId,
    /// Its part of the log.
    pub part: Part,
    /// Its checksum, where it has one. With checksums v1 a commit block has that of its transaction.
    pub checksum: Option<Checksum>,
    /// What it says.
    pub content: LogBlockContent,
}

/// What a metadata block of the log says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogBlockContent {
    /// Where the images that follow belong.
    Descriptor(Vec<TagEntry>),
    /// Blocks of which no older image is to be replayed. `None`: the list is longer than the block.
    Revoke(Option<Vec<BlockNumber>>),
    /// The transaction is complete.
    Commit {
        /// When, in seconds since 1970.
        seconds: u64,
        /// And nanoseconds.
        nanoseconds: u32,
    },
    /// No type that is known.
    Unknown(u32),
}

/// A tag of a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TagEntry {
    /// The block of the file system.
    pub target: BlockNumber,
    /// The log block with its image.
    pub image: u32,
    /// The flags as they stand there: 1 escaped, 2 the same UUID, 4 deleted, 8 the last tag.
    pub flags: u16,
    /// The image's checksum, where tags have one.
    pub checksum: Option<Checksum>,
    /// A revoke keeps it from being replayed.
    pub revoked: bool,
}

impl TagEntry {
    /// The image began with the log's magic number, and lies there without.
    #[must_use]
    pub fn is_escaped(&self) -> bool {
        self.flags & ESCAPED != 0
    }
}

impl Inspection {
    /// Reads the superblock and scans the log. Nothing is refused but a superblock.
    ///
    /// # Errors
    /// The device's; corrupt or unsupported as [`crate::journal::Journal::open`].
    pub async fn open(location: JournalLocation) -> Result<Self> {
        let (log, superblock) = Log::open(location).await?;
        let found = scan::scan(&log, &superblock).await?;
        let revoked = revoke::collect(&log, &superblock.layout(), &found).await?;
        Ok(Self { header: JournalHeader::of(&superblock), log, superblock, found, revoked })
    }

    /// What the superblock says.
    #[must_use]
    pub fn header(&self) -> &JournalHeader {
        &self.header
    }

    /// What the log holds.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
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

    /// The metadata blocks of the log in its order: what recovery replays and what follows without a commit;
    /// with `all` also whatever else the ring holds.
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

    /// The blocks of the fast-commit area: those that follow the last commit, or with `all` whatever lies
    /// there.
    #[must_use]
    pub fn fast_commits(&self, all: bool) -> FastCommitBlocks<'_> {
        let (first, end) = if self.superblock.fast_commit_blocks() == 0 {
            (0, 0)
        } else {
            (self.superblock.last().saturating_add(1), self.superblock.max_len())
        };
        FastCommitBlocks { inspection: self, reader: Reader::new(&self.log), all, at: first, end, running: 0 }
    }

    fn part(&self, id: TransactionId, committed: bool) -> Part {
        let end = self.found.end.transaction;
        let ahead = id.is_at_or_after(end) && id.0.wrapping_sub(end.0) <= self.log.ring();
        if committed {
            Part::Committed
        } else if !ahead || self.found.end.reason == EndReason::Empty {
            Part::Old
        } else if matches!(self.found.end.reason, EndReason::Damaged | EndReason::Incomplete) {
            Part::Dropped
        } else if id == end && self.found.end.reason != EndReason::Stale {
            Part::Unfinished
        } else {
            Part::Old
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
    /// Blocks of the committed part.
    committed: u32,
    /// Blocks that the last descriptor's images take.
    covered: u32,
    /// The crc32 over the transaction, where checksums v1 are on.
    running: u32,
}

impl LogBlocks<'_> {
    /// The next block; `None` at the end.
    ///
    /// # Errors
    /// The device's.
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
            let is_live = part.is_some_and(|part| part != Part::Old);
            if !self.all && !covered && !is_live {
                return Ok(None);
            }
            self.at = log.advance(here, 1);
            self.walked = self.walked.saturating_add(1);
            // What the committed part's images begin with is theirs.
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
        part: Part,
        bytes: &[u8],
    ) -> Result<LogBlock> {
        let layout = self.inspection.superblock.layout();
        let tail = layout.stored_tail(bytes).map(|stored| Checksum::of(layout.verify_tail(bytes), stored));
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
        part: Part,
        bytes: &[u8],
    ) -> Result<Vec<TagEntry>> {
        let Inspection { log, superblock, revoked, .. } = self.inspection;
        let layout = superblock.layout();
        let whole_checksum = superblock.has_compat(COMPAT_CHECKSUM) && part == Part::Committed;
        if whole_checksum {
            self.running = crc32_be(self.running, bytes);
        }
        let mut entries = Vec::new();
        let mut image = block;
        for tag in layout.tags(bytes).take(log.ring() as usize) {
            image = log.advance(image, 1);
            let mut checksum = None;
            if whole_checksum || layout.has_tag_checksums() {
                // What cannot be read has no right checksum.
                let content = self.images.read(image).await.ok();
                if let Some(content) = content.filter(|_| whole_checksum) {
                    self.running = crc32_be(self.running, content);
                }
                checksum = layout.has_tag_checksums().then(|| Checksum {
                    stored: tag.checksum,
                    computed: content.map(|content| layout.tag_checksum(id, content)),
                });
            }
            let revoked = part == Part::Committed && revoked.covers(tag.block, id);
            entries.push(TagEntry { target: tag.block, image, flags: tag.flags, checksum, revoked });
        }
        self.covered = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        Ok(entries)
    }

    fn commit_checksum(&mut self, part: Part, bytes: &[u8], commit: &Commit) -> Option<Checksum> {
        let Inspection { superblock, .. } = self.inspection;
        let layout = superblock.layout();
        let stored = commit.stored_checksum();
        if superblock.has_compat(COMPAT_CHECKSUM) {
            let running = std::mem::replace(&mut self.running, !0);
            let computed = if commit.verify_compat_checksum(running) { stored } else { running };
            let computed = (part == Part::Committed).then_some(computed);
            return Some(Checksum { stored, computed });
        }
        layout.has_tag_checksums().then(|| Checksum::of(layout.verify_commit(bytes), stored))
    }
}

/// A block of the fast-commit area.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FastCommitBlock {
    /// Where it lies in the log.
    pub block: u32,
    /// Its tags, each with its offset in the block; of a tail also its checksum.
    pub tags: Vec<(usize, FastCommitTag, Option<Checksum>)>,
    /// Where the tags stop making sense, and why.
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
    /// The transaction that fast commits must name to be replayed.
    #[must_use]
    pub fn expected(&self) -> TransactionId {
        self.inspection.found.end.transaction
    }

    /// The next block with tags; `None` at the end.
    ///
    /// # Errors
    /// The device's.
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
                        checksum = Some(Checksum { stored: *stored, computed: Some(computed) });
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
