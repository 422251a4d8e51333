//! Bytes become a damaged log, and recovery is held to what it promises of any log. For the fuzzer (`fuzz/`),
//! and for its stable twin (`tests/mutation.rs`).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::sync::Arc;

use ext4_core::device::simulated::Image;
use ext4_core::device::{BlockDevice, MemoryDevice};
use ext4_journal::{EndReason, Recovery};
use ext4_journal::{Inspection, LogBlockContent, LogPart};

use super::raw_log::{Checksums, Content, Form, MAGIC, RawLog};
use super::{DEVICE_BLOCKS, HIGH};

/// What is read from the input; zeros when it is used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u32 {
        u32::from_be_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// Mostly one of the values that matter.
    fn number(&mut self) -> u32 {
        const VALUES: [u32; 15] =
            [0, 1, 2, 4, 8, 9, 16, 255, 1000, 1020, 1023, 1024, 0x7fff_ffff, 0x8000_0000, u32::MAX];
        match self.byte() {
            index if usize::from(index) < VALUES.len() * 8 => VALUES[usize::from(index) / 8],
            index if index < 200 => u32::from(self.byte()),
            _ => self.word(),
        }
    }

    fn content(&mut self) -> Content {
        let block = |input: &mut Self| match input.byte() {
            0..=5 => u64::from(input.number()),
            6..=8 => 1100 + u64::from(input.byte()),
            other => HIGH + u64::from(other % 32),
        };
        let image = |input: &mut Self| {
            let mut bytes = vec![input.byte(); 1024];
            if input.byte().is_multiple_of(4) {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            bytes
        };
        Content {
            images: (0..self.byte() % 6).map(|_| (block(self), image(self))).collect(),
            revokes: (0..self.byte() % 4).map(|_| block(self)).collect(),
            time: u64::from(self.byte()),
        }
    }
}

/// The log that `input` describes: some transactions, then damage.
pub fn log(input: &[u8]) -> RawLog {
    let mut input = Input(input);
    let kind = input.byte();
    let checksums = [Checksums::None, Checksums::V1, Checksums::V2, Checksums::V3][usize::from(kind % 4)];
    let form = Form { async_commit: kind & 4 != 0, ..Form::new(checksums, kind & 8 != 0) };
    let start = if kind & 16 != 0 { 1010 + u32::from(input.byte() % 13) } else { 1 };
    let sequence = if kind & 32 != 0 { u32::MAX - 1 } else { 5 };
    let mut log = RawLog::new(form, start, sequence);
    for _ in 0..input.byte() % 6 {
        let content = input.content();
        log.transaction(&content);
    }
    while !input.0.is_empty() {
        damage(&mut log, &mut input);
    }
    log
}

fn damage(log: &mut RawLog, input: &mut Input<'_>) {
    // A block that is in use, or any.
    let used: Vec<u32> = log.placed.iter().flat_map(super::raw_log::Placed::blocks).collect();
    let any = |input: &mut Input<'_>| match input.byte() {
        index if index < 220 && !used.is_empty() => used[usize::from(index) % used.len()],
        _ => input.word() % log.len(),
    };
    let block = any(input);
    match input.byte() % 10 {
        0 => log.flip(block, (input.word() % 1024) as usize, input.byte() % 8),
        1 => {
            // Near the front, where everything has a meaning.
            let at = usize::from(input.byte() % 64) * 4;
            log.set_word(block, at, input.number());
            seal(log, block);
        }
        2 => {
            let other = any(input);
            let (left, right) = (log.block(block), log.block(other));
            log.set_block(block, &right);
            log.set_block(other, &left);
        }
        3 => {
            let content = log.block(any(input));
            log.set_block(block, &content);
        }
        4 => log.set_block(block, &vec![input.byte(); 1024]),
        5 => {
            log.set_word(0, usize::from(input.byte() % 64) * 4, input.number());
            if !input.byte().is_multiple_of(4) {
                log.seal_superblock();
            }
        }
        6 => {
            let content = input.content();
            log.transaction(&content);
        }
        7 => {
            let content = input.content();
            log.uncommitted(&content);
        }
        8 => log.head = input.number().clamp(1, log.len() - 1),
        _ => log.sequence = log.sequence.wrapping_add(input.number()),
    }
}

/// Makes the checksum of a metadata block right, whatever it is now.
fn seal(log: &mut RawLog, block: u32) {
    let content = log.block(block);
    if block == 0 {
        log.seal_superblock();
    } else if content[..4] == MAGIC && content[4..8] == [0, 0, 0, 2] {
        log.seal_commit(block);
    } else if content[..4] == MAGIC {
        log.seal_tail(block);
    }
}

/// The blocks that the committed part names, by a dump; `None` where the log cannot be opened. Walks
/// everything.
async fn named(log: &RawLog) -> Option<BTreeSet<u64>> {
    let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_image(log.image.clone()));
    let inspection = Inspection::open(log.location(&device)).await.ok()?;
    let mut blocks = BTreeSet::new();
    for all in [false, true] {
        let mut walk = inspection.blocks(all);
        let mut count = 0;
        while let Some(block) = walk.next().await.unwrap() {
            count += 1;
            assert!(count <= log.len(), "a dump goes round and round");
            if let (LogPart::Committed, LogBlockContent::Descriptor(tags)) = (block.part, block.content) {
                blocks.extend(tags.iter().filter(|tag| !tag.revoked).map(|tag| tag.target.0));
            }
        }
        let mut walk = inspection.fast_commits(all);
        while walk.next().await.unwrap().is_some() {}
    }
    Some(blocks)
}

/// What became of a log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fate {
    /// It cannot be opened, or was not salvaged either.
    Refused,
    /// A mount refuses it, a salvage found its way.
    Salvaged,
    /// Nothing was replayed.
    Nothing,
    /// Something was.
    Replayed,
}

/// Panics where recovery of the log that `input` describes breaks a promise.
pub async fn judge(input: &[u8]) -> Fate {
    let log = log(input);
    let named = named(&log).await;
    let mut outcomes = Vec::new();
    for mode in [Recovery::NORMAL, Recovery::SALVAGE] {
        let (checked, same) = log.recover(mode.checking()).await;
        assert!(same == log.image, "a check wrote something");
        let (result, image) = log.recover(mode).await;
        match result {
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert!(checked.is_err() && image == log.image, "a refused log was changed: {error}");
            }
            Ok(report) => {
                assert_eq!(checked.unwrap(), report);
                let named = named.as_ref().expect("what is recovered can be dumped");
                contained(&log, &image, named);
                let after = log.with_image(image.clone());
                assert!(!after.open().await.unwrap().needs_recovery());
                let (again, twice) = after.recover(mode).await;
                assert_eq!(again.unwrap().end.reason, EndReason::Empty);
                assert!(twice == image, "a second recovery changed something");
                outcomes.push((report, image));
            }
        }
    }
    if let [(normal, image), (salvaged, salvaged_image)] = &outcomes[..]
        && salvaged.findings.is_empty()
    {
        assert_eq!(normal, salvaged);
        assert!(image == salvaged_image, "a salvage of a sound log is its recovery");
    }
    match &outcomes[..] {
        [] => Fate::Refused,
        [_] => Fate::Salvaged,
        [(report, _), ..] if report.blocks == 0 => Fate::Nothing,
        _ => Fate::Replayed,
    }
}

/// Panics where a block of the log was changed but its superblock, or one that no tag names.
fn contained(log: &RawLog, image: &Image, named: &BTreeSet<u64>) {
    let superblock = log.place(0) / 1024;
    for block in 0..DEVICE_BLOCKS {
        let changed = log.content(image, block) != log.content(&log.image, block);
        assert!(!changed || block == superblock || !log.owns(block), "block {block} of the log was written");
        assert!(!changed || block == superblock || named.contains(&block), "block {block} was written");
    }
}
