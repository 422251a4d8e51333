//! Every bit of a small log flipped, every field of its superblock set to nasty values: recovery ends, with
//! an error and nothing changed, or with the state after some of the transactions, never all but one in the
//! middle.
//!
//! | checksums | what a flipped bit may do |
//! |---|---|
//! | v3 | nothing: an error, or a state that was |
//! | v2 | the same, but an image whose 16 bits of checksum do not show the flip has that one bit flipped |
//! | v1 | the same as v3 for images and descriptors; revoke blocks have no checksum |
//! | none | a tag may name any block of the file system, never one of the log or beyond the device |
//!
//! In CI every bit of the superblock and of what log blocks use, and samples of the rest;
//! `EXT4_LONG_TESTS=1`: every bit of every used block, in every form.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeSet;

use common::HIGH;
use common::raw_log::{Checksums, Content, Form, MAGIC, RawLog, replayed};
use ext4_core::device::simulated::Image;
use ext4_journal::{Recovery, RecoveryReport};
use ext4_test_support::settings::long_tests;

/// Transactions with revokes, escapes, and blocks written more than once.
fn contents() -> Vec<Content> {
    let image = |stamp: u8, escaped: bool| {
        let mut bytes: Vec<u8> = (0..1024_u32).map(|at| stamp.wrapping_add(at as u8 / 3)).collect();
        if escaped {
            bytes[..4].copy_from_slice(&MAGIC);
        }
        bytes
    };
    let content = |images: &[(u64, u8)], revokes: &[u64], time| Content {
        images: images.iter().map(|(at, stamp)| (HIGH + at, image(*stamp, *at == 1))).collect(),
        revokes: revokes.iter().map(|at| HIGH + at).collect(),
        time,
    };
    vec![
        content(&[(0, 10), (1, 11), (2, 12)], &[], 100),
        content(&[(1, 21), (5, 25)], &[2, 77], 101),
        content(&[(2, 32)], &[], 102),
        content(&[(0, 40), (5, 45)], &[2], 103),
    ]
}

/// How far a change may go unnoticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unnoticed {
    /// Not at all.
    Never,
    /// One bit of one image.
    OneBit,
    /// It may make another log of it.
    Meaning,
}

struct Subject {
    log: RawLog,
    /// The state after each number of transactions: the blocks outside the log.
    states: Vec<Image>,
    /// Blocks that the intact log names.
    named: BTreeSet<u64>,
}

impl Subject {
    fn new(form: Form) -> Self {
        // Around the end of the log, from one run of its blocks to the other, and with ids that wrap.
        let mut log = RawLog::new(form, 1012, u32::MAX - 1);
        let contents = contents();
        contents.iter().for_each(|content| drop(log.transaction(content)));
        let states: Vec<_> = (0..=contents.len())
            .map(|count| {
                let mut image = log.image.clone();
                for (block, content) in replayed(&contents[..count]) {
                    image.write(block * 1024, &content);
                }
                image
            })
            .collect();
        let named = contents.iter().flat_map(|content| content.images.iter().map(|(block, _)| *block));
        Self { named: named.collect(), states, log }
    }

    /// `image` with the log of `with`, so that only what is outside it counts.
    fn outside(&self, image: &Image, with: &RawLog) -> Image {
        let mut image = image.clone();
        // Recovery writes nothing in the log but its superblock.
        image.write(with.place(0), &with.block(0));
        image
    }

    /// The number of transactions whose state `image` is, for a `log` that differs from the intact one.
    fn state(&self, image: &Image, log: &RawLog) -> Option<usize> {
        let image = self.outside(image, log);
        self.states.iter().position(|state| {
            let mut state = state.clone();
            // Only blocks of the damaged log itself differ from the intact one.
            for block in self.differing(log) {
                state.write(log.place(block), &log.block(block));
            }
            state == image
        })
    }

    fn differing(&self, log: &RawLog) -> Vec<u32> {
        let used = self.log.placed.iter().flat_map(common::raw_log::Placed::blocks).chain([0]);
        used.filter(|block| self.log.block(*block) != log.block(*block)).collect()
    }

    /// Panics unless nothing is changed but blocks that the intact log names, and the log's superblock.
    fn assert_contained(&self, log: &RawLog, image: &Image, only_named: bool, what: &str) {
        let outside = self.outside(image, log);
        for block in 0..common::DEVICE_BLOCKS {
            if log.content(&outside, block) != log.content(&log.image, block) {
                assert!(!log.owns(block), "{what}: block {block} of the log was written");
                assert!(!only_named || self.named.contains(&block), "{what}: block {block} was written");
            }
        }
    }

    /// Recovers a damaged log in both modes.
    async fn judge(&self, log: &RawLog, unnoticed: Unnoticed, what: &str) {
        let (result, image) = log.recover(Recovery::NORMAL).await;
        match result {
            Err(error) => {
                assert!(!error.to_string().is_empty(), "{what}");
                assert!(image == log.image, "{what}: a refused log was changed, or its file system");
            }
            Ok(report) => self.accept(log, &report, &image, unnoticed, what),
        }
        let (result, image) = log.recover(Recovery::SALVAGE).await;
        if let Ok(report) = result {
            if report.findings.is_empty() {
                self.accept(log, &report, &image, unnoticed, what);
            } else {
                self.assert_contained(log, &image, unnoticed != Unnoticed::Meaning, what);
            }
        }
    }

    fn accept(&self, log: &RawLog, report: &RecoveryReport, image: &Image, unnoticed: Unnoticed, what: &str) {
        match self.state(image, log) {
            Some(count) => assert_eq!(report.transactions as usize, count, "{what}"),
            None if unnoticed == Unnoticed::Meaning => self.assert_contained(log, image, false, what),
            None => {
                assert!(unnoticed == Unnoticed::OneBit, "{what}: a state that never was, {report:?}");
                assert_eq!(self.bits_from_the_last_state(image, log), 1, "{what}");
            }
        }
    }

    /// In how many bits the blocks outside the log differ from those after all transactions.
    fn bits_from_the_last_state(&self, image: &Image, log: &RawLog) -> u32 {
        let last = self.states.last().unwrap();
        (0..common::DEVICE_BLOCKS)
            .filter(|block| !log.owns(*block))
            .flat_map(|block| log.content(image, block).into_iter().zip(log.content(last, block)))
            .map(|(left, right)| (left ^ right).count_ones())
            .sum()
    }

    /// The bytes of log block `block` that its structure uses.
    fn used_bytes(&self, block: u32) -> BTreeSet<usize> {
        let mut used: BTreeSet<usize> = (0..32).chain(1020..1024).collect();
        if self.log.placed.iter().any(|placed| placed.images.contains(&block)) {
            return used;
        }
        let last = self.log.block(block).iter().take(1020).rposition(|byte| *byte != 0).unwrap_or(0);
        used.extend(0..last.max(60) + 17);
        used
    }
}

async fn flip_everything(form: Form) {
    let subject = Subject::new(form);
    let (result, image) = subject.log.recover(Recovery::NORMAL).await;
    assert_eq!(subject.state(&image, &subject.log), Some(4), "{:?}", result.unwrap());
    let mut random = fastrand::Rng::with_seed(7);
    let mut flips = 0;
    for placed in subject.log.placed.clone() {
        for block in placed.blocks() {
            let is_image = placed.images.contains(&block);
            let used = subject.used_bytes(block);
            for byte in 0..1024 {
                for bit in 0..8 {
                    // In CI also of the used bytes not all, where another form shares them.
                    let one_of = if !used.contains(&byte) {
                        80
                    } else if form.bit64 {
                        1
                    } else {
                        8
                    };
                    if !long_tests() && random.u8(..one_of) != 0 {
                        continue;
                    }
                    let mut log = subject.log.clone();
                    log.flip(block, byte, bit);
                    let unnoticed = match form.checksums {
                        Checksums::V2 if is_image => Unnoticed::OneBit,
                        Checksums::V1 if placed.revoke == Some(block) => Unnoticed::Meaning,
                        Checksums::None => Unnoticed::Meaning,
                        _ => Unnoticed::Never,
                    };
                    let what = format!("{form:?}: block {block}, byte {byte}, bit {bit}");
                    subject.judge(&log, unnoticed, &what).await;
                    flips += 1;
                }
            }
        }
    }
    assert!(flips > 2000, "{flips}");
}

#[tokio::test]
async fn any_flipped_bit_of_a_log_with_checksums_v3() {
    for bit64 in [true, false] {
        flip_everything(Form::new(Checksums::V3, bit64)).await;
    }
}

#[tokio::test]
async fn any_flipped_bit_of_a_log_with_checksums_v2() {
    for bit64 in [true, false] {
        flip_everything(Form::new(Checksums::V2, bit64)).await;
    }
}

#[tokio::test]
async fn any_flipped_bit_of_a_log_with_checksums_v1() {
    for bit64 in [true, false] {
        flip_everything(Form::new(Checksums::V1, bit64)).await;
    }
}

#[tokio::test]
async fn any_flipped_bit_of_a_log_without_checksums() {
    for bit64 in [true, false] {
        flip_everything(Form::new(Checksums::None, bit64)).await;
    }
}

/// Bits of the superblock as they lie there, and its fields with values that a writer could have meant, the
/// checksum made right.
#[tokio::test]
async fn any_field_of_the_superblock() {
    for form in Form::all() {
        let subject = Subject::new(form);
        let has_checksum = matches!(form.checksums, Checksums::V2 | Checksums::V3);
        let mut random = fastrand::Rng::with_seed(8);
        let mut flips = 0;
        for byte in 0..1024 {
            for bit in 0..8 {
                let has_meaning = matches!(byte, 0..0x60 | 0xfc..0x100);
                if !long_tests() && !has_meaning && random.u8(..20) != 0 {
                    continue;
                }
                let mut log = subject.log.clone();
                log.flip(0, byte, bit);
                // The bits that say how the rest is to be read are covered by no checksum where there is
                // none, nor where they say so themselves.
                let meaning = matches!(byte, 4..8 | 0x14..0x18 | 0x24..0x2c | 0x30..0x40);
                let unnoticed = if meaning && (!has_checksum || matches!(byte, 4..8 | 0x28..0x2c)) {
                    Unnoticed::Meaning
                } else {
                    Unnoticed::Never
                };
                let what = format!("{form:?}: superblock, byte {byte:#x}, bit {bit}");
                subject.judge(&log, unnoticed, &what).await;
                flips += 1;
            }
        }
        assert!(flips > 8 * 0x64, "{form:?}: {flips}");
        let nasty = [
            0,
            1,
            2,
            3,
            4,
            255,
            256,
            512,
            767,
            768,
            1010,
            1011,
            1012,
            1013,
            1015,
            1022,
            1023,
            1024,
            1025,
            2048,
            4096,
            65535,
            65536,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_fc00,
            0xffff_ffff,
            0xffff_fffe,
        ];
        for field in (0..0x100).step_by(4) {
            for value in nasty {
                let mut log = subject.log.clone();
                log.set_word(0, field, value);
                log.seal_superblock();
                // Where the ring lies, what its blocks look like and whose they are: each may make another
                // log of it.
                let unnoticed = match field {
                    4 | 0x14 | 0x24 | 0x28 | 0x30..0x40 => Unnoticed::Meaning,
                    _ => Unnoticed::Never,
                };
                let what = format!("{form:?}: superblock, field {field:#x}, value {value:#x}");
                subject.judge(&log, unnoticed, &what).await;
            }
        }
    }
}
