//! The scan, the first pass of recovery: it finds the end of the log.
//!
//! The log ends at the first block that is not a metadata block of the transaction expected there: a torn or
//! missing commit is the ordinary end of a log. A block that fails its checksum is a stale one from before
//! the log was made, if its transaction's commit time lies before that of the transaction before it;
//! otherwise the log is damaged.
//!
//! With async commit a commit block may reach the medium before its transaction. So a commit block that does
//! not match is the end of the log and no damage, unless a later commit was found (checksums v1). With
//! checksums v2 and v3 jbd2 does not apply that last rule, and of two such commits in a row it takes the
//! second for the end; the first is the safe one.
//!
//! Invariant: damage to a transaction's own blocks is judged here, before anything is written. Damage in a
//! transaction without a commit is no finding.

use ext4_core::checksum::crc32_be;
use ext4_core::{BlockNumber, Result, TransactionId};
use rustc_hash::FxHashSet;

use super::report::{EndReason, Finding, LogEnd};
use crate::format::{
    COMMIT, COMPAT_CHECKSUM, Commit, DESCRIPTOR, Header, INCOMPAT_ASYNC_COMMIT, Layout, REVOKE, Superblock,
};
use crate::log::{Log, Reader};

/// A descriptor or revoke block of a committed transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The log block.
    pub(crate) block: u32,
    /// The transaction that it belongs to.
    pub(crate) id: TransactionId,
    /// True for a revoke block, false for a descriptor.
    pub(crate) revoke: bool,
}

/// The result of the scan: what the log holds.
#[derive(Debug)]
pub(crate) struct Found {
    /// Descriptors and revoke blocks in the order of the log.
    pub(crate) records: Vec<Record>,
    /// The blocks that have an image in the log.
    pub(crate) images: FxHashSet<BlockNumber>,
    /// The number of images in committed transactions; each image of one block counts.
    pub(crate) image_count: u64,
    /// The number of committed transactions.
    pub(crate) transactions: u32,
    /// The end of the committed part: the first transaction that is not replayed.
    pub(crate) end: LogEnd,
    /// The log block after the last commit.
    pub(crate) head: u32,
    /// The number of the ring's blocks that committed transactions take.
    pub(crate) used: u32,
    /// The damage for which the log is refused; the committed part ends before it.
    pub(crate) damage: Option<Finding>,
    /// With async commit: a commit block that does not match although a later transaction was committed.
    pub(crate) suspicion: Option<Finding>,
}

/// The state of the walk along the log.
struct Walk {
    layout: Layout,
    whole_checksum: bool,
    async_commit: bool,
    found: Found,
    /// The next log block; `walked`: how many have been passed.
    at: u32,
    walked: u32,
    expected: TransactionId,
    /// The records of the transaction whose commit block is still to come.
    pending: Vec<Record>,
    pending_images: u64,
    checksum: u32,
    /// A block that failed its checksum; the commit block tells whether it is stale.
    doubtful: Option<Finding>,
    /// A block that cannot be used, although its checksum is right.
    broken: Option<Finding>,
    /// With async commit: the first commit block that does not match its transaction.
    incomplete: Option<Finding>,
    last_time: u64,
}

/// The next step of the walk.
enum Step {
    GoOn,
    End(EndReason),
    Damaged(Finding),
}

/// Walks the log from its tail to its end.
///
/// # Errors
/// I/O: the device's.
pub(crate) async fn scan(log: &Log, superblock: &Superblock) -> Result<Found> {
    let start = superblock.start();
    let end = |reason| LogEnd { transaction: superblock.sequence(), block: start, reason };
    let mut walk = Walk {
        layout: superblock.layout(),
        whole_checksum: superblock.has_compat(COMPAT_CHECKSUM),
        async_commit: superblock.has_incompat(INCOMPAT_ASYNC_COMMIT),
        found: Found {
            records: Vec::new(),
            images: FxHashSet::default(),
            image_count: 0,
            transactions: 0,
            end: end(EndReason::Empty),
            head: start.max(log.first),
            used: 0,
            damage: None,
            suspicion: None,
        },
        at: start,
        walked: 0,
        expected: superblock.sequence(),
        pending: Vec::new(),
        pending_images: 0,
        checksum: !0,
        doubtful: None,
        broken: None,
        incomplete: None,
        last_time: 0,
    };
    if start == 0 {
        return Ok(walk.found);
    }
    let mut reader = Reader::new(log);
    loop {
        let here = walk.at;
        let step = if walk.walked < log.ring() {
            walk.step(log, &mut reader).await?
        } else {
            Step::End(EndReason::FullTurn)
        };
        let reason = match step {
            Step::GoOn => continue,
            Step::End(reason) => reason,
            Step::Damaged(finding) => {
                walk.found.damage = Some(finding);
                EndReason::Damaged
            }
        };
        let mut found = walk.found;
        found.end = match walk.incomplete {
            Some(first) => LogEnd {
                transaction: first.transaction,
                block: first.block,
                reason: if reason == EndReason::Damaged { reason } else { EndReason::Incomplete },
            },
            None => LogEnd { transaction: walk.expected, block: here, reason },
        };
        return Ok(found);
    }
}

impl Walk {
    async fn step(&mut self, log: &Log, reader: &mut Reader<'_>) -> Result<Step> {
        let here = self.at;
        let block = reader.read(here).await?;
        let Some((kind, id)) = Header::read(block) else { return Ok(Step::End(EndReason::NoMagic)) };
        if id != self.expected {
            return Ok(Step::End(EndReason::OtherTransaction(id)));
        }
        self.at = log.advance(here, 1);
        self.walked = self.walked.saturating_add(1);
        match kind {
            DESCRIPTOR => self.descriptor(log, reader, here).await,
            REVOKE => {
                self.verify_tail(block, here, "revoke block");
                if let Err(bytes) = self.layout.revokes(block).map(drop) {
                    self.broken.get_or_insert_with(|| Finding {
                        block: here,
                        transaction: id,
                        what: "revoke block".into(),
                        found: format!("{bytes} bytes in use"),
                        expected: format!("no more than {}", self.layout.body_size()),
                    });
                }
                self.pending.push(Record { block: here, id, revoke: true });
                Ok(Step::GoOn)
            }
            COMMIT => Ok(match Commit::read(block) {
                Some(commit) => self.commit(block, &commit, here),
                None => Step::End(EndReason::UnknownType(kind)),
            }),
            _ => Ok(Step::End(EndReason::UnknownType(kind))),
        }
    }

    fn verify_tail(&mut self, block: &[u8], here: u32, what: &str) {
        if let Err((stored, computed)) = self.layout.verify_tail(block) {
            let id = self.expected;
            self.doubtful.get_or_insert_with(|| Finding::checksum(here, id, what, stored, computed));
        }
    }

    async fn descriptor(&mut self, log: &Log, reader: &mut Reader<'_>, here: u32) -> Result<Step> {
        let block = reader.read(here).await?;
        self.verify_tail(block, here, "descriptor");
        let mut count = 0_u32;
        for tag in self.layout.tags(block) {
            self.found.images.insert(tag.block);
            count = count.saturating_add(1);
        }
        // If there are more tags than the ring has blocks, the walk ends after this block.
        let within = count.min(log.ring());
        if self.whole_checksum && self.incomplete.is_none() && self.doubtful.is_none() {
            self.checksum = crc32_be(self.checksum, block);
            for index in 0..within {
                self.checksum = crc32_be(self.checksum, reader.read(log.advance(self.at, index)).await?);
            }
        }
        self.at = log.advance(self.at, count);
        self.walked = self.walked.saturating_add(count);
        self.pending_images = self.pending_images.saturating_add(u64::from(count));
        self.pending.push(Record { block: here, id: self.expected, revoke: false });
        Ok(Step::GoOn)
    }

    fn commit(&mut self, block: &[u8], commit: &Commit, here: u32) -> Step {
        let id = self.expected;
        let time = commit.seconds.get();
        let stale = time < self.last_time;
        if let Some(finding) = self.doubtful.take() {
            return if stale { Step::End(EndReason::Stale) } else { Step::Damaged(finding) };
        }
        if self.whole_checksum
            && let Some(first) = &self.incomplete
        {
            // A later transaction was committed, so the earlier one was not merely interrupted.
            return Step::Damaged(first.clone());
        }
        let checksum = std::mem::replace(&mut self.checksum, !0);
        let verdict = if self.whole_checksum && !commit.verify_compat_checksum(checksum) {
            Err((commit.stored_checksum(), checksum))
        } else {
            self.layout.verify_commit(block)
        };
        if let Err((stored, computed)) = verdict {
            let finding = Finding::checksum(here, id, "commit block", stored, computed);
            if stale {
                return Step::End(EndReason::Stale);
            }
            if !self.async_commit {
                return Step::Damaged(finding);
            }
            self.incomplete.get_or_insert(finding);
        } else if let Some(finding) = self.broken.take() {
            return Step::Damaged(finding);
        } else {
            self.found.suspicion.clone_from(&self.incomplete);
        }
        self.last_time = time;
        self.expected = id.next();
        if self.incomplete.is_none() {
            self.found.records.append(&mut self.pending);
            self.found.image_count = self.found.image_count.saturating_add(self.pending_images);
            self.found.transactions = self.found.transactions.saturating_add(1);
            self.found.head = self.at;
            self.found.used = self.walked;
        }
        self.pending_images = 0;
        Step::GoOn
    }
}

/// The last transaction id from `end` on that a metadata block of the ring names. What a salvage dropped is
/// still in the ring, and the log must not use those ids again.
///
/// # Errors
/// I/O: the device's.
pub(crate) async fn last_id(log: &Log, end: TransactionId) -> Result<TransactionId> {
    let mut last = end;
    let mut reader = Reader::new(log);
    for block in log.first..log.last() {
        // A block that cannot be read will not be read by the next recovery either.
        let Ok(content) = reader.read(block).await else { continue };
        if let Some((_, id)) = Header::read(content)
            && id.is_after(last)
            && id.0.wrapping_sub(end.0) <= log.ring()
        {
            last = id;
        }
    }
    Ok(last)
}
