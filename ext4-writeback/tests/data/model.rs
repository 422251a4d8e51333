//! Random operations against an array of bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::common::*;
use ext4_core::device::MemoryDevice;
use ext4_core::device::simulated::Image;
use ext4_writeback::file::SeekTarget;
use ext4_writeback::{File, Filesystem, MountOptions};

const FILES: usize = 4;
const MAX: u64 = 3 << 20;

struct World {
    random: fastrand::Rng,
    device: Arc<MemoryDevice>,
    fs: Option<Filesystem>,
    files: Vec<Option<File>>,
    model: Vec<Vec<u8>>,
    options: MountOptions,
}

impl World {
    async fn new(seed: u64, image: Image, options: MountOptions) -> Self {
        let (device, fs) = mount_image(image, options.clone()).await;
        let mut files = Vec::new();
        for i in 0..FILES {
            files.push(Some(create(&fs, &format!("file{i}")).await));
        }
        let model = vec![Vec::new(); FILES];
        Self { random: fastrand::Rng::with_seed(seed), device, fs: Some(fs), files, model, options }
    }

    fn offset(&mut self, len: u64) -> u64 {
        // Often at or near the end, often aligned, often small.
        let any = self.random.u64(0..MAX);
        match self.random.u8(0..8) {
            0..3 => len,
            3 => len.saturating_sub(self.random.u64(0..5000)),
            4 => (len + self.random.u64(0..9000)).min(MAX),
            5 => any & !4095,
            6 => any % 20_000,
            _ => any,
        }
    }

    fn length(&mut self) -> usize {
        match self.random.u8(0..8) {
            0..4 => self.random.usize(1..5000),
            4 => 4096,
            5 => 1024 * self.random.usize(1..64),
            6 => self.random.usize(1..100_000),
            _ => self.random.usize(1..1_000_000),
        }
    }

    fn file(&self, i: usize) -> &File {
        self.files[i].as_ref().expect("open")
    }

    async fn step(&mut self) {
        let i = self.random.usize(0..FILES);
        let len = self.model[i].len() as u64;
        match self.random.u8(0..100) {
            0..45 => {
                let offset = self.offset(len);
                let data = pattern(self.random.u64(..), offset, self.length());
                let count = self.file(i).write_at(offset, &data).await.expect("writes");
                assert_eq!(count, data.len());
                let end = offset as usize + data.len();
                if self.model[i].len() < end {
                    self.model[i].resize(end, 0);
                }
                self.model[i][offset as usize..end].copy_from_slice(&data);
            }
            45..75 => {
                let offset = self.offset(len);
                let mut bytes = vec![0xee; self.length()];
                let count = self.file(i).read_at(offset, &mut bytes).await.expect("reads");
                let start = (offset as usize).min(self.model[i].len());
                let end = (start + bytes.len()).min(self.model[i].len());
                assert_eq!(count, end - start, "at {offset}");
                assert!(bytes[..count] == self.model[i][start..end], "content at {offset}+{count}");
            }
            75..87 => {
                let size = self.offset(len);
                self.file(i).set_len(size).await.expect("truncates");
                self.model[i].resize(size as usize, 0);
            }
            87..93 => {
                let result = if self.random.bool() {
                    self.file(i).sync_all().await
                } else {
                    self.file(i).sync_data().await
                };
                result.expect("syncs");
            }
            93..95 => self.file(i).start_writeback().await.expect("starts"),
            95 => self.fs.as_ref().expect("mounted").sync().await.expect("syncs"),
            96..98 => self.check_seek(i).await,
            _ => {
                if self.random.u8(0..8) == 0 {
                    self.remount().await;
                }
            }
        }
        assert_eq!(self.file(i).len(), self.model[i].len() as u64);
    }

    /// What is said to be a hole reads as zeros.
    async fn check_seek(&mut self, i: usize) {
        let size = self.model[i].len() as u64;
        let mut at = 0;
        while at < size {
            let data = self.file(i).seek(at, SeekTarget::Data).await.expect("seeks").unwrap_or(size);
            assert!(self.model[i][at as usize..data as usize].iter().all(|byte| *byte == 0));
            if data == size {
                break;
            }
            at = self.file(i).seek(data, SeekTarget::Hole).await.expect("seeks").expect("the end is one");
            assert!(at > data);
        }
    }

    async fn check_all(&self) {
        for (i, model) in self.model.iter().enumerate() {
            assert!(content(self.file(i)).await == *model, "file {i}");
        }
    }

    async fn remount(&mut self) {
        self.files.clear();
        let fs = self.fs.take().expect("mounted");
        let image = finish(&self.device, fs).await;
        let (device, fs) = mount_image(image, self.options.clone()).await;
        for i in 0..FILES {
            self.files.push(Some(open(&fs, &format!("file{i}")).await));
        }
        self.device = device;
        self.fs = Some(fs);
        self.check_all().await;
    }
}

async fn run(seed: u64, block_size: u32, options: MountOptions, steps: usize) {
    run_on(seed, make_image(48, block_size, &[], 0xaa), block_size, options, steps).await;
}

/// Runs `steps` on an image with blocks of `block_size`.
pub async fn run_on(seed: u64, image: Image, block_size: u32, options: MountOptions, steps: usize) {
    println!("seed {seed}, blocks of {block_size}, {options:?}");
    let mut world = World::new(seed, image, options).await;
    for _ in 0..steps {
        world.step().await;
    }
    world.check_all().await;
    world.remount().await;
    // Nothing is promised to nobody, and nothing is lost.
    let before = world.fs.as_ref().expect("mounted").statfs().free_blocks;
    let mut freed = BTreeMap::new();
    for i in 0..FILES {
        freed.insert(i, world.file(i).attributes().await.expect("stat").sectors);
        world.file(i).set_len(0).await.expect("truncates");
    }
    let fs = world.fs.take().expect("mounted");
    fs.sync().await.expect("syncs");
    let sectors: u64 = freed.values().sum();
    assert_eq!(fs.statfs().free_blocks - before, sectors * 512 / u64::from(block_size));
    world.files.clear();
    finish(&world.device, fs).await;
}

pub fn seed() -> u64 {
    std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..1_000_000))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_agree_with_arrays_of_bytes() {
    if !have_tools() {
        return;
    }
    for block_size in [1024, 2048, 4096] {
        run(seed(), block_size, options(), 1500).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_agree_with_arrays_of_bytes_with_little_memory() {
    if !have_tools() {
        return;
    }
    for block_size in [1024, 4096] {
        let options = MountOptions { cache: 6 << 20, ..options() };
        run(seed(), block_size, options, 1000).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_agree_with_arrays_of_bytes_without_delayed_allocation() {
    if !have_tools() {
        return;
    }
    for block_size in [1024, 4096] {
        let options = MountOptions { delayed_allocation: false, ..options() };
        run(seed(), block_size, options, 1000).await;
    }
}

#[tokio::test]
async fn files_agree_with_arrays_of_bytes_without_a_flusher() {
    if !have_tools() {
        return;
    }
    let options = MountOptions { commit_interval: None, cache: 12 << 20, ..options() };
    run(seed(), 4096, options, 1000).await;
}

#[tokio::test]
async fn files_agree_with_arrays_of_bytes_without_a_journal() {
    if !have_tools() {
        return;
    }
    let (seed, options) = (seed(), options());
    println!("seed {seed}");
    let image = make_image(48, 4096, &["-O", "^has_journal"], 0xaa);
    let mut world = World::new(seed, image, options).await;
    for _ in 0..1000 {
        world.step().await;
    }
    world.remount().await;
}
