//! A log made byte by byte, after the documentation and not with our own writer: what jbd2 could have left
//! behind, in every form, and damaged at will.
//!
//! Source: kernel documentation, "Journal (jbd2)".
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses some of it, and a test may panic")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use ext4_core::checksum::{crc32_be, crc32c};
use ext4_core::device::simulated::Image;
use ext4_core::device::{BlockDevice, MemoryDevice};
use ext4_core::{BlockNumber, BlockSize, Result};
use ext4_journal::{Journal, JournalLocation, Recovery, RecoveryReport};

use super::{open_with, options};

/// The log's magic number, as its bytes lie there.
pub const MAGIC: [u8; 4] = [0xc0, 0x3b, 0x39, 0x98];
pub const UUID: [u8; 16] = [7; 16];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksums {
    None,
    V1,
    V2,
    V3,
}

/// What the features make of a log.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub checksums: Checksums,
    pub bit64: bool,
    pub async_commit: bool,
    pub block_size: usize,
}

impl Form {
    pub const fn new(checksums: Checksums, bit64: bool) -> Self {
        Self { checksums, bit64, async_commit: false, block_size: 1024 }
    }

    pub fn all() -> impl Iterator<Item = Self> {
        [Checksums::None, Checksums::V1, Checksums::V2, Checksums::V3]
            .into_iter()
            .flat_map(|checksums| [false, true].map(|bit64| Self::new(checksums, bit64)))
    }

    fn has_block_checksums(&self) -> bool {
        matches!(self.checksums, Checksums::V2 | Checksums::V3)
    }

    pub fn tag_size(&self) -> usize {
        match (self.checksums, self.bit64) {
            (Checksums::V3, _) => 16,
            (Checksums::V2, false) => 10,
            (Checksums::V2, true) => 14,
            (_, false) => 8,
            (_, true) => 12,
        }
    }
}

/// Where a transaction's blocks lie in the log.
#[derive(Clone, Debug)]
pub struct Placed {
    pub id: u32,
    pub revoke: Option<u32>,
    pub descriptor: Option<u32>,
    pub images: Vec<u32>,
    pub commit: Option<u32>,
}

impl Placed {
    /// Every block of it.
    pub fn blocks(&self) -> Vec<u32> {
        let ends = [self.revoke, self.descriptor, self.commit];
        ends.into_iter().flatten().chain(self.images.iter().copied()).collect()
    }
}

/// What a transaction holds.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pub images: Vec<(u64, Vec<u8>)>,
    pub revokes: Vec<u64>,
    pub time: u64,
}

/// A device of `blocks` blocks with a log of `log` in it, and what it is to hold.
#[derive(Clone)]
pub struct RawLog {
    pub form: Form,
    pub image: Image,
    pub runs: Vec<(u64, u32)>,
    pub head: u32,
    pub sequence: u32,
    pub placed: Vec<Placed>,
    seed: u32,
    /// The crc32 over what the transaction being written has put into the log.
    running: u32,
}

impl RawLog {
    /// In the device of the other tests ([`super::LOG`], [`super::DEVICE_BLOCKS`]): the log begins at block
    /// `start` with transaction `sequence`.
    pub fn new(form: Form, start: u32, sequence: u32) -> Self {
        Self::sized(form, start, sequence, super::DEVICE_BLOCKS, &super::LOG)
    }

    pub fn sized(form: Form, start: u32, sequence: u32, blocks: u64, runs: &[(u64, u32)]) -> Self {
        let mut log = Self {
            form,
            image: Image::zeroed(blocks * form.block_size as u64),
            runs: runs.to_vec(),
            head: start,
            sequence,
            placed: Vec::new(),
            seed: crc32c(!0, &UUID),
            running: !0,
        };
        let mut superblock = vec![0; form.block_size];
        put(&mut superblock, 0, u32::from_be_bytes(MAGIC));
        put(&mut superblock, 4, 4);
        put(&mut superblock, 0x0c, u32::try_from(form.block_size).unwrap());
        put(&mut superblock, 0x10, log.len());
        put(&mut superblock, 0x14, 1);
        put(&mut superblock, 0x18, sequence);
        put(&mut superblock, 0x1c, start);
        put(&mut superblock, 0x24, u32::from(form.checksums == Checksums::V1));
        let incompat = 1
            | u32::from(form.bit64) << 1
            | u32::from(form.async_commit) << 2
            | u32::from(form.checksums == Checksums::V2) << 3
            | u32::from(form.checksums == Checksums::V3) << 4;
        put(&mut superblock, 0x28, incompat);
        superblock[0x30..0x40].copy_from_slice(&UUID);
        put(&mut superblock, 0x40, 1);
        if form.has_block_checksums() {
            superblock[0x50] = 4;
        }
        log.set_block(0, &superblock);
        log.seal_superblock();
        log
    }

    /// The same log on a device that holds `image`.
    pub fn with_image(&self, image: Image) -> Self {
        Self { image, ..self.clone() }
    }

    /// Blocks of the log.
    pub fn len(&self) -> u32 {
        self.runs.iter().map(|(_, count)| count).sum()
    }

    /// Where log block `block` lies on the device, in bytes.
    pub fn place(&self, block: u32) -> u64 {
        let mut left = block;
        for (first, count) in &self.runs {
            if left < *count {
                return (first + u64::from(left)) * self.form.block_size as u64;
            }
            left -= count;
        }
        panic!("no log block {block}");
    }

    pub fn block(&self, block: u32) -> Vec<u8> {
        let mut bytes = vec![0; self.form.block_size];
        self.image.read(self.place(block), &mut bytes);
        bytes
    }

    pub fn set_block(&mut self, block: u32, bytes: &[u8]) {
        self.image.write(self.place(block), bytes);
    }

    pub fn flip(&mut self, block: u32, byte: usize, bit: u8) {
        let mut bytes = self.block(block);
        bytes[byte] ^= 1 << bit;
        self.set_block(block, &bytes);
    }

    /// Sets a big-endian word of a log block, with no checksum made right.
    pub fn set_word(&mut self, block: u32, at: usize, value: u32) {
        let mut bytes = self.block(block);
        put(&mut bytes, at, value);
        self.set_block(block, &bytes);
    }

    /// Makes the superblock's checksum right.
    pub fn seal_superblock(&mut self) {
        let mut block = self.block(0);
        put(&mut block, 0xfc, 0);
        let features = u32::from_be_bytes(block[0x28..0x2c].try_into().unwrap());
        if features & 0x18 != 0 {
            let checksum = crc32c(!0, &block[..1024]);
            put(&mut block, 0xfc, checksum);
        }
        self.set_block(0, &block);
    }

    /// Makes the checksum at the end of a descriptor or revoke block right.
    pub fn seal_tail(&mut self, block: u32) {
        let mut bytes = self.block(block);
        self.seal_bytes(&mut bytes);
        self.set_block(block, &bytes);
    }

    fn seal_bytes(&self, bytes: &mut [u8]) {
        if self.form.has_block_checksums() {
            let tail = bytes.len() - 4;
            put(bytes, tail, 0);
            let checksum = crc32c(self.seed, bytes);
            put(bytes, tail, checksum);
        }
    }

    /// Makes the checksum of a commit block right.
    pub fn seal_commit(&mut self, block: u32) {
        let mut bytes = self.block(block);
        if self.form.has_block_checksums() {
            put(&mut bytes, 0x10, 0);
            let checksum = crc32c(self.seed, &bytes);
            put(&mut bytes, 0x10, checksum);
        }
        self.set_block(block, &bytes);
    }

    fn header(&self, kind: u32) -> Vec<u8> {
        let mut block = vec![0; self.form.block_size];
        put(&mut block, 0, u32::from_be_bytes(MAGIC));
        put(&mut block, 4, kind);
        put(&mut block, 8, self.sequence);
        block
    }

    fn append(&mut self, bytes: &[u8]) -> u32 {
        let at = self.head;
        self.set_block(at, bytes);
        self.head += 1;
        if self.head == self.len() {
            self.head = 1;
        }
        at
    }

    /// Writes a transaction: revokes, then images, then its commit block.
    pub fn transaction(&mut self, content: &Content) -> Placed {
        let mut placed = self.uncommitted(content);
        placed.commit = Some(self.commit(content.time));
        self.placed.pop();
        self.placed.push(placed.clone());
        placed
    }

    /// A transaction whose commit block never came.
    pub fn uncommitted(&mut self, content: &Content) -> Placed {
        self.running = !0;
        let mut placed =
            Placed { id: self.sequence, revoke: None, descriptor: None, images: Vec::new(), commit: None };
        if !content.revokes.is_empty() {
            placed.revoke = Some(self.revoke_block(&content.revokes));
        }
        if !content.images.is_empty() {
            let (descriptor, images) = self.descriptor(&content.images);
            placed.descriptor = Some(descriptor);
            placed.images = images;
        }
        self.placed.push(placed.clone());
        placed
    }

    fn revoke_block(&mut self, revokes: &[u64]) -> u32 {
        let mut block = self.header(5);
        let size = if self.form.bit64 { 8 } else { 4 };
        put(&mut block, 12, u32::try_from(16 + revokes.len() * size).unwrap());
        for (index, revoked) in revokes.iter().enumerate() {
            let at = 16 + index * size;
            block[at..at + size].copy_from_slice(&revoked.to_be_bytes()[8 - size..]);
        }
        self.seal_bytes(&mut block);
        self.append(&block)
    }

    fn descriptor(&mut self, images: &[(u64, Vec<u8>)]) -> (u32, Vec<u32>) {
        let mut block = self.header(1);
        let mut at = 12;
        let mut logged = Vec::new();
        for (index, (target, image)) in images.iter().enumerate() {
            let mut image = image.clone();
            let escaped = image[..4] == MAGIC;
            if escaped {
                image[..4].fill(0);
            }
            let last = index + 1 == images.len();
            let flags = u32::from(escaped) | u32::from(index > 0) << 1 | u32::from(last) << 3;
            let checksum = crc32c(crc32c(self.seed, &self.sequence.to_be_bytes()), &image);
            let (low, high) = (*target as u32, (target >> 32) as u32);
            put(&mut block, at, low);
            if self.form.checksums == Checksums::V3 {
                put(&mut block, at + 4, flags);
                put(&mut block, at + 8, high);
                put(&mut block, at + 12, checksum);
            } else {
                let sum = if self.form.checksums == Checksums::V2 { checksum & 0xffff } else { 0 };
                put(&mut block, at + 4, sum << 16 | flags);
                if self.form.bit64 {
                    put(&mut block, at + 8, high);
                }
            }
            at += self.form.tag_size();
            if index == 0 {
                block[at..at + 16].copy_from_slice(&UUID);
                at += 16;
            }
            logged.push(image);
        }
        let room = self.form.block_size - if self.form.has_block_checksums() { 4 } else { 0 };
        assert!(at <= room, "too many tags for one descriptor");
        self.seal_bytes(&mut block);
        self.running = crc32_be(self.running, &block);
        let descriptor = self.append(&block);
        let mut blocks = Vec::new();
        for image in logged {
            self.running = crc32_be(self.running, &image);
            blocks.push(self.append(&image));
        }
        (descriptor, blocks)
    }

    fn commit(&mut self, time: u64) -> u32 {
        let mut block = self.header(2);
        if self.form.checksums == Checksums::V1 {
            block[12] = 1;
            block[13] = 4;
            put(&mut block, 0x10, self.running);
        }
        block[0x30..0x38].copy_from_slice(&time.to_be_bytes());
        let at = self.append(&block);
        self.seal_commit(at);
        self.sequence = self.sequence.wrapping_add(1);
        at
    }

    pub fn location(&self, device: &Arc<dyn BlockDevice>) -> JournalLocation {
        JournalLocation {
            device: Arc::clone(device),
            block_size: BlockSize::new(u32::try_from(self.form.block_size).unwrap()).unwrap(),
            runs: self.runs.iter().map(|(block, count)| (BlockNumber(*block), *count)).collect(),
            superblock: 0,
        }
    }

    /// What recovery answers, and the device after it.
    pub async fn recover(&self, mode: Recovery) -> (Result<RecoveryReport>, Image) {
        let memory = Arc::new(MemoryDevice::from_image(self.image.clone()));
        let device: Arc<dyn BlockDevice> = Arc::clone(&memory) as _;
        let result = match open_with(self.location(&device), options()).await {
            Ok(journal) => journal.recover_with(&device, mode).await,
            Err(error) => Err(error),
        };
        (result, memory.image())
    }

    /// The journal of this device.
    pub async fn open(&self) -> Result<Arc<Journal>> {
        let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_image(self.image.clone()));
        open_with(self.location(&device), options()).await
    }

    /// The content of block `number` of `image`.
    pub fn content(&self, image: &Image, number: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.form.block_size];
        image.read(number * self.form.block_size as u64, &mut bytes);
        bytes
    }

    /// The blocks outside the log in which `image` differs from this device.
    pub fn changed(&self, image: &Image) -> Vec<u64> {
        let blocks = self.image.len() / self.form.block_size as u64;
        (0..blocks)
            .filter(|block| !self.owns(*block))
            .filter(|block| self.content(image, *block) != self.content(&self.image, *block))
            .collect()
    }

    pub fn owns(&self, block: u64) -> bool {
        let run = |(first, count): &(u64, u32)| -> Range<u64> { *first..first + u64::from(*count) };
        self.runs.iter().any(|one| run(one).contains(&block))
    }
}

/// What the transactions `contents[..count]` make of blocks that were zeros: by the rules of the log, not by
/// ours. A revoke hides the images of its own transaction and of all before it.
pub fn replayed(contents: &[Content]) -> BTreeMap<u64, Vec<u8>> {
    let mut blocks = BTreeMap::new();
    for (index, content) in contents.iter().enumerate() {
        for (block, image) in &content.images {
            if !contents[index..].iter().any(|later| later.revokes.contains(block)) {
                blocks.insert(*block, image.clone());
            }
        }
    }
    blocks
}

pub fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}
