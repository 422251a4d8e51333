//! Recovery of logs made byte by byte: every form, every way a log ends, everything that can be wrong with
//! it. The rules are jbd2's: where it stops, what it refuses; and e2fsck's for what a salvage keeps.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::raw_log::{Checksums, Content, Form, MAGIC, Placed, RawLog, put, replayed};
use common::{HIGH, LOG, open_with, options};
use ext4_core::checksum::crc32c;
use ext4_core::device::simulated::{FaultyDevice, Image, RecordingDevice};
use ext4_core::device::{BlockDevice, MemoryDevice, Operation};
use ext4_core::{Error, TransactionId};
use ext4_journal::{EndReason, LogEnd, Recovery, RecoveryReport};

fn image(form: Form, stamp: u8, escaped: bool) -> Vec<u8> {
    let mut bytes = vec![stamp; form.block_size];
    if escaped {
        bytes[..4].copy_from_slice(&MAGIC);
    }
    bytes
}

/// Four transactions: blocks written twice, one escaped, one revoked and written again, one revoked for good.
fn contents(form: Form) -> Vec<Content> {
    let at = |block: u64, stamp: u8| (HIGH + block, image(form, stamp, block == 1));
    let content = |images: Vec<(u64, Vec<u8>)>, revokes: &[u64], time| Content {
        images,
        revokes: revokes.iter().map(|block| HIGH + block).collect(),
        time,
    };
    vec![
        content(vec![at(0, 10), at(1, 11), at(2, 12), at(3, 13)], &[], 100),
        content(vec![at(1, 21), at(5, 25)], &[2, 77], 101),
        content(vec![at(2, 32)], &[3], 102),
        content(vec![at(0, 40), at(5, 45), at(6, 46)], &[], 103),
    ]
}

fn four(form: Form, start: u32, sequence: u32) -> (RawLog, Vec<Placed>) {
    let mut log = RawLog::new(form, start, sequence);
    let placed = contents(form).iter().map(|content| log.transaction(content)).collect();
    (log, placed)
}

/// Panics unless `image` holds what the first `count` of [`contents`] make of it, and is otherwise as it was.
fn assert_prefix(log: &RawLog, image: &Image, count: usize, what: &str) {
    let expected = replayed(&contents(log.form)[..count]);
    for (block, content) in &expected {
        assert!(log.content(image, *block) == *content, "{what}: block {block} after {count} transactions");
    }
    let changed = log.changed(image);
    assert!(changed.iter().all(|block| expected.contains_key(block)), "{what}: {changed:?} changed");
}

async fn ends(log: &RawLog, count: usize, end: LogEnd, what: &str) -> RecoveryReport {
    let (result, image) = log.recover(Recovery::NORMAL).await;
    let report = result.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(report.end, end, "{what}");
    assert_eq!(report.transactions as usize, count, "{what}");
    assert_eq!(report.findings, [], "{what}");
    assert_prefix(log, &image, count, what);
    let again = log.with_image(image.clone());
    assert!(!again.open().await.unwrap().needs_recovery(), "{what}: the log is empty");
    assert!(again.recover(Recovery::NORMAL).await.1 == image, "{what}: a second recovery changes nothing");
    // A check finds the same and writes nothing.
    let (checked, image) = log.recover(Recovery::NORMAL.checking()).await;
    assert_eq!(checked.unwrap(), report, "{what}");
    assert!(image == log.image, "{what}: a check wrote something");
    report
}

/// Panics unless a mount refuses the log by that name, with nothing written, and a salvage keeps `count`
/// transactions less the images of `without`.
async fn refused(log: &RawLog, name: &str, count: usize, without: &[(usize, u64)], what: &str) {
    let (result, image) = log.recover(Recovery::NORMAL).await;
    let error = result.expect_err(what);
    assert!(matches!(error, Error::Corrupt(_)), "{what}: {error}");
    assert!(error.to_string().contains(name), "{what}: {error}");
    assert!(image == log.image, "{what}: a refused log was changed, or its file system");

    let (result, image) = log.recover(Recovery::SALVAGE).await;
    let report = result.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(!report.findings.is_empty(), "{what}");
    assert!(report.findings.iter().any(|finding| finding.to_string().contains(name)), "{what}: {report:?}");
    assert_eq!(report.transactions as usize, count, "{what}");
    let mut kept = contents(log.form);
    kept.truncate(count);
    for (transaction, block) in without {
        kept[*transaction].images.retain(|(at, _)| at != block);
    }
    for (block, content) in replayed(&kept) {
        assert!(log.content(&image, block) == content, "{what}: block {block} after a salvage");
    }
    let changed = log.changed(&image);
    let named = replayed(&kept);
    assert!(changed.iter().all(|block| named.contains_key(block)), "{what}: {changed:?} changed");
    // The error stays for the file system to take note of, and no id that lies in the log is used again.
    let after = log.with_image(image);
    let journal = after.open().await.unwrap();
    assert!(!journal.needs_recovery(), "{what}");
    assert!(journal.recorded_errno() < 0, "{what}");
    let sequence = u32::from_be_bytes(after.block(0)[0x18..0x1c].try_into().unwrap());
    let last = log.placed.last().unwrap().id;
    if report.end.reason == EndReason::Damaged {
        assert_eq!(sequence, last.wrapping_add(1), "{what}");
    }
    let (checked, image) = log.recover(Recovery::SALVAGE.checking()).await;
    assert_eq!(checked.unwrap(), report, "{what}");
    assert!(image == log.image, "{what}: a check wrote something");
}

fn end(transaction: u32, block: u32, reason: EndReason) -> LogEnd {
    LogEnd { transaction: TransactionId(transaction), block, reason }
}

#[tokio::test]
async fn every_form_in_every_block_size_is_replayed() {
    for form in Form::all() {
        for block_size in [1024, 2048, 4096, 16384, 65536] {
            let form = Form { block_size, ..form };
            let (log, _) = four(form, 1, 5);
            let what = format!("{form:?}");
            let report = ends(&log, 4, end(9, log.head, EndReason::NoMagic), &what).await;
            assert_eq!((report.blocks, report.revoked), (8, 2), "{what}");
            assert_eq!(report.first, TransactionId(5));
        }
    }
}

#[tokio::test]
async fn the_log_wraps_at_its_end_and_ids_wrap_at_2_to_the_32() {
    for form in Form::all() {
        // Between any two blocks of the log, and from run to run of its blocks on the device.
        for start in (1000..1024).chain(590..602) {
            let (log, placed) = four(form, start, u32::MAX - 1);
            assert_eq!(placed[2].id, 0);
            ends(&log, 4, end(2, log.head, EndReason::NoMagic), &format!("{form:?}, start {start}")).await;
        }
    }
}

#[tokio::test]
async fn block_numbers_past_2_to_the_32_are_read_where_64bit_is_on_and_only_there() {
    for form in Form::all() {
        let mut log = RawLog::new(form, 1, 5);
        let content =
            Content { images: vec![(HIGH + (1 << 32), image(form, 9, false))], ..Content::default() };
        log.transaction(&content);
        let (result, image) = log.recover(Recovery::NORMAL).await;
        if form.bit64 {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("image of block 4294968996"), "{error}");
            assert!(image == log.image);
        } else {
            result.unwrap();
            assert_eq!(log.changed(&image), [HIGH]);
        }
    }
}

#[tokio::test]
async fn a_revoke_of_a_high_block_does_not_cover_its_low_half() {
    let form = Form::new(Checksums::V3, true);
    let mut log = RawLog::new(form, 1, 5);
    let content =
        Content { images: vec![(HIGH, image(form, 9, false))], revokes: vec![HIGH + (1 << 32)], time: 1 };
    log.transaction(&content);
    let (result, image) = log.recover(Recovery::NORMAL).await;
    assert_eq!(result.unwrap().revoked, 0);
    assert_eq!(log.changed(&image), [HIGH]);
}

#[tokio::test]
async fn a_log_ends_where_its_last_commit_is() {
    for form in Form::all() {
        let what = format!("{form:?}");
        let full = contents(form);
        // A transaction without its commit.
        let mut log = RawLog::new(form, 1, 5);
        full[..2].iter().for_each(|content| drop(log.transaction(content)));
        let torn = log.clone();
        let open = log.uncommitted(&full[2]);
        ends(&log, 2, end(7, log.head, EndReason::NoMagic), &what).await;
        // Its descriptor only, and garbage behind it.
        let mut cut = torn.clone();
        cut.set_block(open.revoke.unwrap(), &log.block(open.revoke.unwrap()));
        ends(&cut, 2, end(7, open.descriptor.unwrap(), EndReason::NoMagic), &what).await;
        let mut garbage = cut.clone();
        for block in open.descriptor.unwrap()..900 {
            garbage.set_block(block, &vec![0xa5; 1024]);
        }
        ends(&garbage, 2, end(7, open.descriptor.unwrap(), EndReason::NoMagic), &what).await;
        // A damaged one without a commit is no damage.
        let mut damaged = log.clone();
        damaged.flip(open.descriptor.unwrap(), 13, 0);
        let (result, image) = damaged.recover(Recovery::NORMAL).await;
        assert_eq!(result.unwrap().findings, [], "{what}");
        assert_prefix(&damaged, &image, 2, &what);
        // An older transaction, whole, behind the end; and one of a later id.
        for sequence in [3, 8, 6] {
            let mut stale = torn.clone();
            stale.sequence = sequence;
            stale.transaction(&full[2]);
            let reason = EndReason::OtherTransaction(TransactionId(sequence));
            ends(&stale, 2, end(7, torn.head, reason), &what).await;
        }
        // A superblock's magic and an unknown type.
        for kind in [0, 3, 4, 6, u32::MAX] {
            let mut unknown = torn.clone();
            let mut block = vec![0; 1024];
            block[..4].copy_from_slice(&MAGIC);
            put(&mut block, 4, kind);
            put(&mut block, 8, 7);
            unknown.set_block(torn.head, &block);
            ends(&unknown, 2, end(7, torn.head, EndReason::UnknownType(kind)), &what).await;
        }
    }
}

#[tokio::test]
async fn an_empty_log_changes_nothing() {
    for form in Form::all() {
        let (mut log, _) = four(form, 1, 5);
        log.set_word(0, 0x1c, 0);
        log.seal_superblock();
        let (result, image) = log.recover(Recovery::NORMAL).await;
        assert_eq!(result.unwrap().end, end(5, 0, EndReason::Empty));
        assert!(image == log.image);
    }
}

#[tokio::test]
async fn what_is_damaged_in_a_committed_transaction_is_refused_by_name_and_salvaged_around() {
    let mut damaged_blocks = 0;
    for form in Form::all() {
        let (log, placed) = four(form, 1, 5);
        let blocks = matches!(form.checksums, Checksums::V2 | Checksums::V3);
        for (number, transaction) in placed.iter().enumerate() {
            let id = transaction.id;
            let what = format!("{form:?}, transaction {id}");
            if blocks {
                for (block, name) in [
                    (transaction.descriptor, "descriptor"),
                    (transaction.revoke, "revoke block"),
                    (transaction.commit, "commit block"),
                ] {
                    // Not every transaction revokes something.
                    let Some(block) = block else { continue };
                    damaged_blocks += 1;
                    let mut bad = log.clone();
                    // In the commit block the nanoseconds, which nothing else looks at.
                    bad.flip(block, if name == "commit block" { 0x3b } else { 1000 }, 3);
                    let name = format!("log block {block}: {name} of transaction {id}");
                    refused(&bad, &name, number, &[], &what).await;
                }
                let (target, _) = contents(form)[number].images[0];
                let revoked = contents(form).iter().skip(number).any(|later| later.revokes.contains(&target));
                let mut bad = log.clone();
                bad.flip(transaction.images[0], 500, 7);
                let name = format!("image of block {target} of transaction {id}");
                if !revoked {
                    refused(&bad, &name, 4, &[(number, target)], &what).await;
                }
            }
            if form.checksums == Checksums::V1 {
                for block in [transaction.descriptor.unwrap(), transaction.images[0]] {
                    let mut bad = log.clone();
                    bad.flip(block, 700, 1);
                    refused(&bad, &format!("commit block of transaction {id}"), number, &[], &what).await;
                }
            }
            if let Some(revoke) = transaction.revoke {
                let mut bad = log.clone();
                bad.set_word(revoke, 12, 1025);
                bad.seal_tail(revoke);
                let name = format!("log block {revoke}: revoke block of transaction {id}: 1025 bytes in use");
                refused(&bad, &name, number, &[], &what).await;
            }
        }
    }
    assert!(damaged_blocks > 20, "{damaged_blocks} damaged blocks");
}

#[tokio::test]
async fn a_revoked_image_may_be_damaged() {
    for checksums in [Checksums::V2, Checksums::V3] {
        let form = Form::new(checksums, true);
        let (mut log, placed) = four(form, 1, 5);
        log.flip(placed[0].images[3], 500, 7);
        ends(&log, 4, end(9, log.head, EndReason::NoMagic), "revoked").await;
    }
}

#[tokio::test]
async fn an_image_that_belongs_nowhere_is_not_written() {
    for form in Form::all() {
        for (target, name) in
            [(5000, "block 5000, expected less than 2200"), (LOG[1].0 + 5, "the log itself")]
        {
            let mut log = RawLog::new(form, 1, 5);
            let full = contents(form);
            log.transaction(&full[0]);
            let mut second = full[1].clone();
            second.images.push((target, image(form, 99, false)));
            log.transaction(&second);
            refused(&log, name, 2, &[], &format!("{form:?}, {target}")).await;
        }
    }
}

#[tokio::test]
async fn a_stale_transaction_is_told_by_its_commit_time() {
    for checksums in [Checksums::V1, Checksums::V2, Checksums::V3] {
        let form = Form::new(checksums, true);
        let what = format!("{form:?}");
        for (time, is_stale) in [(99, true), (100, true), (101, false), (5000, false)] {
            let full = contents(form);
            for part in ["descriptor", "revoke", "commit"] {
                let mut log = RawLog::new(form, 1, 5);
                full[..2].iter().for_each(|content| drop(log.transaction(content)));
                let third = log.transaction(&Content { time, ..full[2].clone() });
                let (block, byte) = match part {
                    "descriptor" => (third.descriptor.unwrap(), 900),
                    "revoke" => (third.revoke.unwrap(), 900),
                    _ => (third.commit.unwrap(), if checksums == Checksums::V1 { 0x10 } else { 0x3b }),
                };
                // Checksums v1 do not cover revoke blocks.
                if checksums == Checksums::V1 && part == "revoke" {
                    continue;
                }
                log.flip(block, byte, 0);
                if is_stale {
                    let end = end(7, third.commit.unwrap(), EndReason::Stale);
                    ends(&log, 2, end, &what).await;
                } else {
                    refused(&log, "of transaction 7", 2, &[], &what).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn with_async_commit_an_interrupted_transaction_is_the_end() {
    for checksums in [Checksums::V1, Checksums::V2, Checksums::V3] {
        let form = Form { async_commit: true, ..Form::new(checksums, true) };
        let what = format!("{form:?}");
        let full = contents(form);
        let bad_commit = |log: &mut RawLog, placed: &Placed| {
            let commit = placed.commit.unwrap();
            log.flip(commit, if checksums == Checksums::V1 { 0x10 } else { 0x3b }, 0);
            commit
        };
        let mut log = RawLog::new(form, 1, 5);
        full[..2].iter().for_each(|content| drop(log.transaction(content)));
        let third = log.transaction(&full[2]);
        let commit = bad_commit(&mut log, &third);
        ends(&log, 2, end(7, commit, EndReason::Incomplete), &what).await;
        // Another transaction without a commit behind it changes nothing.
        let mut later = log.clone();
        later.uncommitted(&full[3]);
        ends(&later, 2, end(7, commit, EndReason::Incomplete), &what).await;
        // One with a commit: v1 knows then that the first is damaged; v2 and v3 stop without an error, and
        // say so.
        log.transaction(&full[3]);
        if checksums == Checksums::V1 {
            refused(&log, "commit block of transaction 7", 2, &[], &what).await;
        } else {
            let (result, image) = log.recover(Recovery::NORMAL).await;
            let report = result.unwrap();
            assert_eq!(report.end, end(7, commit, EndReason::Incomplete), "{what}");
            assert_eq!(report.findings.len(), 1, "{what}");
            assert_prefix(&log, &image, 2, &what);
        }
    }
}

#[tokio::test]
async fn a_commit_without_a_v1_checksum_counts() {
    let form = Form::new(Checksums::V1, false);
    let (mut log, placed) = four(form, 1, 5);
    let commit = placed[1].commit.unwrap();
    log.set_word(commit, 12, 0);
    log.set_word(commit, 16, 0);
    ends(&log, 4, end(9, log.head, EndReason::NoMagic), "unused").await;
    // Of another kind, or of a wrong length.
    for (byte, value) in [(12, 2), (13, 8)] {
        let mut bad = four(form, 1, 5).0;
        let mut block = bad.block(commit);
        block[byte] = value;
        bad.set_block(commit, &block);
        refused(&bad, "commit block of transaction 6", 1, &[], "kind").await;
    }
}

#[tokio::test]
async fn a_commit_block_of_which_only_the_first_sector_was_written_counts() {
    let form = Form { block_size: 4096, ..Form::new(Checksums::V3, true) };
    let (mut log, placed) = four(form, 1, 5);
    let commit = placed[3].commit.unwrap();
    let mut block = log.block(commit);
    block[512..].fill(0x77);
    log.set_block(commit, &block);
    ends(&log, 4, end(9, log.head, EndReason::NoMagic), "torn").await;
}

/// The journal of another file system lies there: its checksums begin with its own UUID.
#[tokio::test]
async fn a_log_under_a_foreign_uuid_is_refused() {
    for checksums in [Checksums::V2, Checksums::V3] {
        let (mut log, _) = four(Form::new(checksums, true), 1, 5);
        let mut superblock = log.block(0);
        superblock[0x30..0x40].fill(9);
        log.set_block(0, &superblock);
        log.seal_superblock();
        assert_ne!(crc32c(!0, &[9; 16]), crc32c(!0, &[7; 16]));
        refused(&log, "descriptor of transaction 5", 0, &[], "foreign").await;
    }
}

#[tokio::test]
async fn tags_that_never_end_are_no_transaction() {
    for form in Form::all() {
        let mut log = RawLog::new(Form { block_size: 65536, ..form }, 1, 5);
        let first = contents(log.form)[0].clone();
        log.transaction(&first);
        // As many tags as there is room for, which is more than the ring has blocks, and no last one.
        let descriptor = log.uncommitted(&first).descriptor.unwrap();
        let mut block = log.block(descriptor);
        for at in (12..65536 - 4).step_by(4) {
            put(&mut block, at, 0x0002_0002);
        }
        log.set_block(descriptor, &block);
        log.seal_tail(descriptor);
        let (result, image) = log.recover(Recovery::NORMAL).await;
        let report = result.unwrap();
        assert_eq!(report.transactions, 1, "{form:?}");
        assert_eq!(report.end.reason, EndReason::FullTurn, "{form:?}");
        assert_prefix(&log, &image, 1, &format!("{form:?}"));
    }
}

/// More images than are held in memory at once: the last of them is damaged, and still nothing was written.
#[tokio::test]
async fn a_log_larger_than_a_batch_is_verified_before_anything_is_written() {
    let form = Form { block_size: 65536, ..Form::new(Checksums::V3, true) };
    let mut log = RawLog::sized(form, 1, 5, 2800, &[(10, 1400)]);
    let mut last = None;
    for transaction in 0..4_u64 {
        let images = (0..300).map(|block| {
            let target = 1450 + transaction * 300 + block;
            (target, vec![transaction as u8 + 1; 65536])
        });
        let content = Content { images: images.collect(), revokes: Vec::new(), time: 9 };
        last = Some(log.transaction(&content));
    }
    let (result, image) = log.recover(Recovery::NORMAL).await;
    assert_eq!(result.unwrap().blocks, 1200);
    assert_eq!(log.changed(&image).len(), 1200);
    log.flip(last.unwrap().images[299], 9, 1);
    let (result, image) = log.recover(Recovery::NORMAL).await;
    assert!(result.unwrap_err().to_string().contains("image of block 2649 of transaction 8"));
    assert!(image == log.image, "a refused log wrote a block");
    let (result, image) = log.recover(Recovery::SALVAGE).await;
    assert_eq!(result.unwrap().findings.len(), 1);
    assert_eq!(log.changed(&image).len(), 1199);
}

#[tokio::test]
async fn a_cut_at_any_write_of_a_recovery_or_a_salvage_changes_nothing() {
    for (name, mode) in [("recovery", Recovery::NORMAL), ("salvage", Recovery::SALVAGE)] {
        for bad in ["descriptor", "image"] {
            let (mut log, placed) = four(Form::new(Checksums::V3, true), 1010, 5);
            if mode == Recovery::SALVAGE {
                let block = if bad == "image" { placed[3].images[1] } else { placed[2].descriptor.unwrap() };
                log.flip(block, 100, 0);
            }
            let (expected, image) = log.recover(mode).await;
            let (expected, image) = (expected.unwrap(), image);
            let recorder = Arc::new(RecordingDevice::new(log.image.clone()));
            let device: Arc<dyn BlockDevice> = Arc::clone(&recorder) as _;
            let journal = open_with(log.location(&device), options()).await.unwrap();
            assert_eq!(journal.recover_with(&device, mode).await.unwrap(), expected);
            let mut cuts = 0;
            for cut in recorder.recording().cuts() {
                for seed in 0..20 {
                    let state = match seed {
                        0 => cut.with_none(),
                        1 => cut.with_all(),
                        _ => cut.variant(seed),
                    };
                    let again = log.with_image(state);
                    let (result, recovered) = again.recover(mode).await;
                    let result = result.unwrap();
                    let what = format!("{name}, {bad}, {}, variant {seed}", cut.position());
                    assert!(result == expected || result.end.reason == EndReason::Empty, "{what}");
                    assert!(recovered == image, "{what}");
                    cuts += 1;
                }
            }
            assert!(cuts > 60, "{cuts}");
        }
    }
}

#[tokio::test]
async fn a_block_that_cannot_be_read_stops_a_mount_and_is_left_out_by_a_salvage() {
    let form = Form::new(Checksums::V3, true);
    let (log, placed) = four(form, 1, 5);
    let place = log.place(placed[3].images[0]);
    let faulty = Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::from_image(log.image.clone()))));
    faulty.fail_range(Operation::Read, place..place + 1024);
    let device: Arc<dyn BlockDevice> = Arc::clone(&faulty) as _;
    let journal = open_with(log.location(&device), options()).await.unwrap();
    let error = journal.recover(&device).await.unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    let report = journal.recover_with(&device, Recovery::SALVAGE).await.unwrap();
    assert_eq!((report.transactions, report.blocks, report.findings.len()), (4, 7, 1));
    assert_eq!(report.findings[0].block, placed[3].images[0]);
    assert!(journal.recorded_errno() < 0);
}

#[tokio::test]
async fn a_report_is_bounded() {
    let form = Form { block_size: 65536, ..Form::new(Checksums::None, true) };
    let mut log = RawLog::sized(form, 1, 5, 1600, &[(10, 1500)]);
    let images = (0..1100).map(|block| (5000 + block, vec![1; 65536])).collect();
    log.transaction(&Content { images, ..Content::default() });
    let (result, image) = log.recover(Recovery::SALVAGE).await;
    let report = result.unwrap();
    assert_eq!((report.findings.len(), report.more_findings, report.blocks), (1000, 100, 0));
    assert_eq!(log.changed(&image), []);
}

#[tokio::test]
async fn a_version_1_superblock_has_no_features() {
    let (mut log, _) = four(Form::new(Checksums::None, false), 1, 5);
    log.set_word(0, 4, 3);
    // What a version 1 superblock does not have may be anything.
    log.set_word(0, 0x24, u32::MAX);
    log.set_word(0, 0x28, u32::MAX);
    ends(&log, 4, end(9, log.head, EndReason::NoMagic), "version 1").await;
}
