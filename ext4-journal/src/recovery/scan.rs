//! The first pass: where the log ends.
//!
//! The log ends at the first block that is not a metadata block of the transaction expected there: a torn or missing
//! commit is the ordinary end of a log. A block that fails its checksum is a stale one from before the log was made
//! when its transaction's commit time lies before that of the transaction before it; otherwise the log is damaged.

use ext4_core::checksum::crc32_be;
use ext4_core::{BlockNumber, Error, Result, TransactionId};
use rustc_hash::FxHashSet;

use crate::format::{
    COMMIT, COMPAT_CHECKSUM, Commit, DESCRIPTOR, Header, INCOMPAT_ASYNC_COMMIT, REVOKE, Superblock,
};
use crate::log::{Log, Reader};

/// A descriptor or revoke block of a committed transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Its log block.
    pub(crate) block: u32,
    /// Its transaction.
    pub(crate) id: TransactionId,
    /// A revoke block, not a descriptor.
    pub(crate) revoke: bool,
}

/// What the log holds.
#[derive(Debug)]
pub(crate) struct Found {
    /// In the order of the log.
    pub(crate) records: Vec<Record>,
    /// Every block that has an image in the log.
    pub(crate) images: FxHashSet<BlockNumber>,
    /// How many transactions have been committed.
    pub(crate) transactions: u32,
    /// The first id without a commit.
    pub(crate) end: TransactionId,
}

/// Walks the log.
///
/// # Errors
/// The device's; corrupt where a committed transaction fails a checksum.
pub(crate) async fn scan(log: &Log, superblock: &Superblock) -> Result<Found> {
    let layout = superblock.layout();
    let whole_checksum = superblock.has_compat(COMPAT_CHECKSUM);
    let async_commit = superblock.has_incompat(INCOMPAT_ASYNC_COMMIT);
    let mut found = Found {
        records: Vec::new(),
        images: FxHashSet::default(),
        transactions: 0,
        end: superblock.sequence(),
    };
    let mut reader = Reader::new(log);
    let mut at = superblock.start();
    let mut walked = 0_u32;
    let mut expected = superblock.sequence();
    let mut pending = Vec::new();
    let mut checksum = !0_u32;
    // A block that failed its checksum and that may be stale: the commit block tells.
    let mut doubtful: Option<Error> = None;
    // With async commit: the first transaction whose commit block does not match it.
    let mut incomplete: Option<TransactionId> = None;
    let mut last_time = 0_u64;
    while walked < log.ring() {
        let block = reader.read(at).await?;
        let Some((kind, id)) = Header::read(block) else { break };
        if id != expected {
            break;
        }
        let here = at;
        at = log.advance(at, 1);
        walked += 1;
        match kind {
            DESCRIPTOR => {
                if !layout.verify_tail(block) {
                    doubtful.get_or_insert_with(|| bad(here, id, "descriptor"));
                }
                let mut count = 0;
                for tag in layout.tags(block) {
                    found.images.insert(tag.block);
                    count += 1;
                }
                if whole_checksum && incomplete.is_none() && doubtful.is_none() {
                    checksum = crc32_be(checksum, block);
                    for index in 0..count {
                        checksum = crc32_be(checksum, reader.read(log.advance(at, index)).await?);
                    }
                }
                at = log.advance(at, count);
                walked = walked.saturating_add(count);
                pending.push(Record { block: here, id, revoke: false });
            }
            REVOKE => {
                if !layout.verify_tail(block) {
                    doubtful.get_or_insert_with(|| bad(here, id, "revoke block"));
                }
                pending.push(Record { block: here, id, revoke: true });
            }
            COMMIT => {
                let Some(commit) = Commit::read(block) else { break };
                let time = commit.seconds.get();
                if let Some(error) = doubtful {
                    if time < last_time {
                        break;
                    }
                    return Err(error);
                }
                if whole_checksum && let Some(first) = incomplete {
                    // A later transaction was committed, so the earlier one was not merely interrupted.
                    return Err(Error::corrupt(
                        "journal",
                        format!("transaction {first} does not match the checksum of its commit block"),
                    ));
                }
                let matches = !whole_checksum || commit.verify_compat_checksum(checksum);
                checksum = !0;
                if !matches || !layout.verify_commit(block) {
                    if time < last_time {
                        break;
                    }
                    if !async_commit {
                        return Err(bad(here, id, "commit block"));
                    }
                    incomplete = Some(id);
                    if !whole_checksum {
                        break;
                    }
                }
                if incomplete.is_none() {
                    found.records.append(&mut pending);
                    found.transactions += 1;
                    found.end = id.next();
                    last_time = time;
                }
                expected = id.next();
            }
            _ => break,
        }
    }
    Ok(found)
}

fn bad(block: u32, id: TransactionId, what: &str) -> Error {
    Error::corrupt(format!("journal: log block {block}: {what} of transaction {id}"), "the checksum is wrong")
}
