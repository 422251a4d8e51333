//! How a log is recovered, and what a recovery found.
//!
//! Invariant: a report is no larger than [`MAX_FINDINGS`] lets it be, whatever the log says.

use std::fmt;

use ext4_core::{Error, TransactionId};

use crate::recovery::fast_commit::FastCommits;

/// Findings that a report holds; the rest is only counted.
pub(crate) const MAX_FINDINGS: usize = 1000;

/// What a recovery does about damage, and whether it writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// What to do where a committed transaction is damaged.
    pub damage: Damage,
    /// Do everything but write: neither to the file system nor to the log.
    pub check: bool,
}

/// What a recovery does where a committed transaction is damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Damage {
    /// Refuse, as the kernel does at mount: the error names the place, nothing is written.
    #[default]
    Refuse,
    /// As e2fsck: images that are damaged are left out, the log ends before the first transaction whose own
    /// blocks are damaged, and the report says so. The error is recorded in the journal superblock, so that
    /// the file system is marked as one to be checked.
    Salvage,
}

impl Recovery {
    /// As the kernel at mount.
    pub const NORMAL: Self = Self { damage: Damage::Refuse, check: false };
    /// As e2fsck.
    pub const SALVAGE: Self = Self { damage: Damage::Salvage, check: false };

    /// The same without writing.
    #[must_use]
    pub const fn checking(self) -> Self {
        Self { check: true, ..self }
    }
}

/// What a recovery did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Transactions replayed.
    pub transactions: u32,
    /// Images replayed; of several of one block the last is written to its place.
    pub blocks: u64,
    /// Images not replayed because their block had been revoked.
    pub revoked: u64,
    /// The transaction at the log's tail.
    pub first: TransactionId,
    /// Where and why the log ends.
    pub end: LogEnd,
    /// What was found damaged, in the order of the log; at most a thousand.
    pub findings: Vec<Finding>,
    /// Findings that found no room.
    pub more_findings: u64,
    /// Fast commits that follow. Where there are any the log is not empty yet: see
    /// [`Journal::finish_recovery`](crate::journal::Journal::finish_recovery).
    pub fast_commits: FastCommits,
}

impl RecoveryReport {
    /// Of a log that holds nothing and expects `next`.
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

/// Where the committed part of a log ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogEnd {
    /// The first transaction that is not replayed.
    pub transaction: TransactionId,
    /// The log block that says so; 0 where the log is empty.
    pub block: u32,
    /// Why.
    pub reason: EndReason,
}

/// Why a log ends where it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndReason {
    /// The superblock says that the log is empty.
    #[default]
    Empty,
    /// The block has no magic number: nothing was written there, or the transaction was not finished.
    NoMagic,
    /// The block belongs to another transaction, usually an older one.
    OtherTransaction(TransactionId),
    /// The block has the magic number and the right transaction and is of no known type.
    UnknownType(u32),
    /// The transaction failed a checksum and its commit is older than the one before it: it was there before
    /// the log was made.
    Stale,
    /// The commit block does not match its transaction, which with async commit is what an interruption looks
    /// like.
    Incomplete,
    /// The transaction is damaged.
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

/// Something in the log that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The log block.
    pub block: u32,
    /// The transaction it belongs to.
    pub transaction: TransactionId,
    /// What it is: `descriptor`, `image of block 77` …
    pub what: String,
    /// What was found: `checksum 0x12`.
    pub found: String,
    /// What was expected there.
    pub expected: String,
}

impl Finding {
    /// A checksum that is not what it should be.
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
