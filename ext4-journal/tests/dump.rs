//! Looking at a log: every block that says something is listed, with its part of the log, what it says and
//! whether its checksum is right; also of what no recovery reads any more.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::HIGH;
use common::raw_log::{Checksums, Content, Form, MAGIC, RawLog};
use ext4_core::device::{BlockDevice, MemoryDevice};
use ext4_core::{BlockNumber, Result, TransactionId};
use ext4_journal::EndReason;
use ext4_journal::{Inspection, LogBlock, LogBlockContent, LogPart};

async fn open(log: &RawLog) -> Result<Inspection> {
    let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_image(log.image.clone()));
    Inspection::open(log.location(&device)).await
}

async fn blocks(log: &RawLog, all: bool) -> Vec<LogBlock> {
    let inspection = open(log).await.unwrap();
    let mut walk = inspection.blocks(all);
    let mut found = Vec::new();
    while let Some(block) = walk.next().await.unwrap() {
        found.push(block);
    }
    found
}

fn content(form: Form, first: u64, count: u64, revokes: &[u64]) -> Content {
    let image = |block: u64| {
        let mut bytes = vec![block as u8; form.block_size];
        if block.is_multiple_of(3) {
            bytes[..4].copy_from_slice(&MAGIC);
        }
        (HIGH + block, bytes)
    };
    Content {
        images: (first..first + count).map(image).collect(),
        revokes: revokes.iter().map(|block| HIGH + block).collect(),
        time: 1000 + first,
    }
}

#[tokio::test]
async fn every_block_of_a_log_is_listed_with_what_it_says() {
    for form in Form::all() {
        // Around the end of the ring.
        let mut log = RawLog::new(form, 1015, 5);
        log.transaction(&content(form, 0, 4, &[]));
        log.transaction(&content(form, 3, 5, &[1, 40]));
        let open_one = log.uncommitted(&content(form, 9, 3, &[]));
        let found = blocks(&log, false).await;
        let mut expected = Vec::new();
        for placed in &log.placed {
            let parts = [placed.revoke, placed.descriptor, placed.commit];
            expected.extend(parts.into_iter().flatten().map(|block| (block, placed.id)));
        }
        let listed: Vec<_> = found.iter().map(|block| (block.block, block.transaction.0)).collect();
        assert_eq!(listed, expected, "{form:?}");
        for block in &found {
            let unfinished = block.transaction.0 == open_one.id;
            assert_eq!(block.part, if unfinished { LogPart::Unfinished } else { LogPart::Committed });
            assert!(block.checksum.is_none_or(|checksum| !checksum.is_wrong()), "{form:?}: {block:?}");
            let has = match form.checksums {
                Checksums::None => false,
                Checksums::V1 => matches!(block.content, LogBlockContent::Commit { .. }),
                _ => true,
            };
            assert_eq!(block.checksum.is_some(), has, "{form:?}: {block:?}");
        }
        let LogBlockContent::Descriptor(tags) = &found[0].content else { panic!("{:?}", found[0]) };
        assert_eq!(tags.iter().map(|tag| tag.image).collect::<Vec<_>>(), log.placed[0].images);
        assert_eq!(tags.iter().map(|tag| tag.target.0 - HIGH).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(tags.iter().map(|tag| tag.is_escaped()).collect::<Vec<_>>(), [true, false, false, true]);
        assert_eq!(tags.iter().map(|tag| tag.revoked).collect::<Vec<_>>(), [false, true, false, false]);
        let LogBlockContent::Revoke(revoked) = &found[2].content else { panic!("{:?}", found[2]) };
        assert_eq!(revoked.clone().unwrap(), [BlockNumber(HIGH + 1), BlockNumber(HIGH + 40)]);
        assert_eq!(found[1].content, LogBlockContent::Commit { seconds: 1000, nanoseconds: 0 });

        let summary = open(&log).await.unwrap().summary();
        assert_eq!((summary.transactions, summary.images, summary.used), (2, 9, 6 + 8));
        assert_eq!(summary.head, open_one.descriptor.unwrap());
        assert_eq!(summary.end.reason, EndReason::NoMagic);
    }
}

#[tokio::test]
async fn old_transactions_and_pieces_of_them_are_found_with_all() {
    for form in Form::all() {
        let mut log = RawLog::new(form, 1, 5);
        for first in 0..6 {
            log.transaction(&content(form, first, 3, &[60]));
        }
        // The tail has moved past the first four; a new transaction lies over half of the first two.
        let (tail, head, id) = (log.placed[4].revoke.unwrap(), log.head, log.sequence);
        log.set_word(0, 0x1c, tail);
        log.set_word(0, 0x18, 9);
        log.seal_superblock();
        log.set_block(7, &vec![0x11; 1024]);
        let live = blocks(&log, false).await;
        assert!(live.iter().all(|block| block.part == LogPart::Committed), "{live:?}");
        assert_eq!(live.len(), 6);
        let all = blocks(&log, true).await;
        let old: Vec<_> = all.iter().filter(|block| block.part == LogPart::Old).collect();
        // Block 7 was a revoke block.
        assert_eq!(old.len(), 4 * 3 - 1, "{form:?}: {old:?}");
        assert_eq!(&all[..6], &live[..]);
        // An empty log has only old blocks.
        log.set_word(0, 0x1c, 0);
        log.set_word(0, 0x18, id);
        log.seal_superblock();
        assert_eq!(blocks(&log, false).await, []);
        let all = blocks(&log, true).await;
        assert_eq!(all.len(), 6 * 3 - 1);
        assert!(all.iter().all(|block| block.part == LogPart::Old && block.block < head));
    }
}

#[tokio::test]
async fn what_is_wrong_is_shown_where_it_is() {
    for checksums in [Checksums::V2, Checksums::V3] {
        let form = Form::new(checksums, true);
        let mut log = RawLog::new(form, 1, 5);
        let first = log.transaction(&content(form, 0, 4, &[]));
        let second = log.transaction(&content(form, 3, 5, &[40]));
        let third = log.transaction(&content(form, 5, 2, &[]));
        log.flip(first.images[2], 99, 0);
        log.flip(second.revoke.unwrap(), 99, 0);
        let found = blocks(&log, false).await;
        let part = |id: u32| found.iter().find(|block| block.transaction.0 == id).unwrap().part;
        assert_eq!(
            (part(first.id), part(second.id), part(third.id)),
            (LogPart::Committed, LogPart::Dropped, LogPart::Dropped)
        );
        let wrong: Vec<_> = found
            .iter()
            .filter(|block| block.checksum.is_some_and(|checksum| checksum.is_wrong()))
            .map(|block| block.block)
            .collect();
        assert_eq!(wrong, [second.revoke.unwrap()]);
        let LogBlockContent::Descriptor(tags) = &found[0].content else { panic!() };
        let wrong = tags.iter().filter(|tag| tag.checksum.unwrap().is_wrong());
        assert_eq!(wrong.map(|tag| tag.image).collect::<Vec<_>>(), [first.images[2]]);
        let damage = open(&log).await.unwrap().summary().damage.unwrap();
        assert_eq!((damage.block, damage.transaction), (second.revoke.unwrap(), TransactionId(second.id)));
    }
}

#[tokio::test]
async fn an_interrupted_descriptor_does_not_hide_what_it_did_not_reach() {
    let form = Form::new(Checksums::V3, true);
    let mut log = RawLog::new(form, 1, 5);
    for first in 0..3 {
        log.transaction(&content(form, first, 3, &[]));
    }
    // A new life at the same place: its descriptor reached the medium, its images did not.
    let before = log.clone();
    log.set_word(0, 0x18, 20);
    log.seal_superblock();
    (log.head, log.sequence) = (1, 20);
    log.placed.clear();
    let placed = log.uncommitted(&content(form, 0, 12, &[]));
    for image in placed.images {
        let was = before.block(image);
        log.set_block(image, &was);
    }
    let found = blocks(&log, true).await;
    assert_eq!(found[0].part, LogPart::Unfinished);
    let old: Vec<u32> = found[1..].iter().map(|block| block.transaction.0).collect();
    assert_eq!(old, [5, 6, 6, 7, 7], "{found:?}");
    assert_eq!(blocks(&log, false).await.len(), 1);
}

#[tokio::test]
async fn a_ring_of_nothing_but_headers_ends_after_one_turn() {
    for kind in [1_u32, 2, 5, 9] {
        for form in Form::all() {
            let mut log = RawLog::new(form, 1, 5);
            for block in 1..log.len() {
                let mut bytes = vec![0xff; 1024];
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[4..8].copy_from_slice(&kind.to_be_bytes());
                bytes[8..12].copy_from_slice(&5_u32.to_be_bytes());
                log.set_block(block, &bytes);
            }
            for all in [false, true] {
                let found = blocks(&log, all).await;
                assert!(found.len() < log.len() as usize, "{}", found.len());
            }
        }
    }
}
