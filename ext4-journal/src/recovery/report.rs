//! Recovery modes, and the report of a recovery.
//!
//! Invariant: a report is no larger than [`MAX_FINDINGS`] lets it be, whatever the log says.

use std::fmt;

use ext4_core::{Error, TransactionId};

use super::fast_commit::FastCommits;

/// The number of findings that a report holds; further ones are only counted.
pub(crate) const MAX_FINDINGS: usize = 1000;

/// The mode of a recovery: what it does about damage, and whether it writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// What the recovery does if a committed transaction is damaged.
    pub damage: Damage,
    /// True if the recovery does everything but write, neither to the file system nor to the log.
    pub check: bool,
}

/// The treatment of damage in a committed transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Damage {
    /// The log is refused, as the kernel does at mount: the error names the place, and nothing is written.
    #[default]
    Refuse,
    /// Damage is left out, as e2fsck does: damaged images are not replayed, the log ends before the first
    /// transaction whose own blocks are damaged, and the report says so. The error is recorded in the journal
    /// superblock, so that the file system is marked as one to be checked.
    Salvage,
}

impl Recovery {
    /// The kernel's mode at mount: damage is refused.
    pub const NORMAL: Self = Self { damage: Damage::Refuse, check: false };
    /// The mode of e2fsck: damage is left out.
    pub const SALVAGE: Self = Self { damage: Damage::Salvage, check: false };

    /// The same mode without writing.
    #[must_use]
    pub const fn checking(self) -> Self {
        Self { check: true, ..self }
    }
}

/// The report of a recovery: what it did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The number of replayed transactions.
    pub transactions: u32,
    /// The number of replayed images; of several images of one block the last is written to its place.
    pub blocks: u64,
    /// The number of images that were not replayed because their block had been revoked.
    pub revoked: u64,
    /// The transaction at the log's tail.
    pub first: TransactionId,
    /// The place and the reason of the log's end.
    pub end: LogEnd,
    /// Damage that was found, in the order of the log; at most a thousand findings.
    pub findings: Vec<Finding>,
    /// The number of further findings.
    pub more_findings: u64,
    /// The fast commits that follow the last full commit. If there are any, the log is not empty yet:
    /// [`Journal::finish_recovery`](crate::Journal::finish_recovery) empties it.
    pub fast_commits: FastCommits,
}

impl RecoveryReport {
    /// The report of an empty log that expects transaction `next`.
    pub(crate) fn of_empty(next: TransactionId) -> Self {
        let end = LogEnd { transaction: next, block: 0, reason: EndReason::Empty };
        Self { first: next, end, ..Self::default() }
    }

    pub(crate) fn add(&mut self, finding: Finding) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        } else {
            self.more_findings = self.more_findings.saturating_add(1);
        }
    }
}

/// The end of a log's committed part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogEnd {
    /// The first transaction that is not replayed.
    pub transaction: TransactionId,
    /// The log block that ends it; 0 if the log is empty.
    pub block: u32,
    /// The reason.
    pub reason: EndReason,
}

/// The reason for the end of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndReason {
    /// The superblock says that the log is empty.
    #[default]
    Empty,
    /// The block has no magic number: nothing was written there, or the transaction was not finished.
    NoMagic,
    /// The block belongs to another transaction, usually an older one.
    OtherTransaction(TransactionId),
    /// The block has the magic number and the expected transaction, but no known type.
    UnknownType(u32),
    /// The transaction failed a checksum, and its commit time is before that of the transaction before it: it
    /// was there before the log was made.
    Stale,
    /// The commit block does not match its transaction: with async commit an interruption looks so.
    Incomplete,
    /// The transaction is damaged, and the log ends before it.
    Damaged,
    /// The walk came around the whole ring.
    FullTurn,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the log is empty"),
            Self::NoMagic => f.write_str("no magic number"),
            Self::OtherTransaction(id) => write!(f, "it belongs to transaction {id}"),
            Self::UnknownType(kind) => write!(f, "it has the unknown type {kind}"),
            Self::Stale => f.write_str("stale: it was there before the log was made"),
            Self::Incomplete => f.write_str("the commit block does not match its transaction (async commit)"),
            Self::Damaged => f.write_str("damaged"),
            Self::FullTurn => f.write_str("the whole ring was walked"),
        }
    }
}

/// A piece of damage in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The log block.
    pub block: u32,
    /// The transaction that the block belongs to.
    pub transaction: TransactionId,
    /// The kind of the block: `descriptor`, `image of block 77` …
    pub what: String,
    /// The wrong value: `checksum 0x12`.
    pub found: String,
    /// The value that was expected.
    pub expected: String,
}

impl Finding {
    /// The finding of a wrong checksum.
    pub(crate) fn checksum(
        block: u32,
        transaction: TransactionId,
        what: impl Into<String>,
        stored: u32,
        computed: u32,
    ) -> Self {
        Self {
            block,
            transaction,
            what: what.into(),
            found: format!("checksum {stored:#010x}"),
            expected: format!("{computed:#010x}"),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { block, transaction, what, found, expected } = self;
        write!(f, "log block {block}: {what} of transaction {transaction}: {found}, expected {expected}")
    }
}

impl From<Finding> for Error {
    fn from(finding: Finding) -> Self {
        let Finding { block, transaction, what, found, expected } = finding;
        Self::corrupt(
            format!("journal: log block {block}: {what} of transaction {transaction}"),
            format!("{found}, expected {expected}"),
        )
    }
}
