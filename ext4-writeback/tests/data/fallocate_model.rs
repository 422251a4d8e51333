//! All modes of fallocate, among writes and truncations, against an array of bytes.

use std::sync::Arc;

use super::common::*;
use ext4_core::Errno;
use ext4_core::device::MemoryDevice;
use ext4_core::device::simulated::Image;
use ext4_core::meta::extent_tree::MappingState;
use ext4_writeback::file::SeekTarget;
use ext4_writeback::options::Allocation;
use ext4_writeback::{FallocateMode, File, Filesystem, MountOptions};

const MAX: u64 = 1 << 20;

const MODES: [FallocateMode; 7] = [
    FallocateMode::Allocate,
    FallocateMode::AllocateKeepSize,
    FallocateMode::PunchHole,
    FallocateMode::ZeroRange,
    FallocateMode::ZeroRangeKeepSize,
    FallocateMode::CollapseRange,
    FallocateMode::InsertRange,
];

/// What the mode does to bytes; the error where it must fail.
fn apply(
    model: &mut Vec<u8>,
    mode: FallocateMode,
    offset: usize,
    len: usize,
    block: usize,
) -> Result<(), Errno> {
    let size = model.len();
    let end = offset + len;
    let mut zero = |grow: bool| {
        let inside = end.min(size);
        if offset < inside {
            model[offset..inside].fill(0);
        }
        if grow && end > size {
            model.resize(end, 0);
        }
    };
    match mode {
        _ if len == 0 => return Err(Errno::EINVAL),
        FallocateMode::Allocate if end > size => model.resize(end, 0),
        FallocateMode::Allocate | FallocateMode::AllocateKeepSize => {}
        FallocateMode::PunchHole | FallocateMode::ZeroRangeKeepSize => zero(false),
        FallocateMode::ZeroRange => zero(true),
        FallocateMode::CollapseRange | FallocateMode::InsertRange
            if !offset.is_multiple_of(block) || !len.is_multiple_of(block) =>
        {
            return Err(Errno::EINVAL);
        }
        FallocateMode::CollapseRange if end >= size => return Err(Errno::EINVAL),
        FallocateMode::CollapseRange => drop(model.drain(offset..end)),
        FallocateMode::InsertRange if offset >= size => return Err(Errno::EINVAL),
        FallocateMode::InsertRange => drop(model.splice(offset..offset, std::iter::repeat_n(0, len))),
    }
    Ok(())
}

struct World {
    random: fastrand::Rng,
    device: Arc<MemoryDevice>,
    fs: Option<Filesystem>,
    file: Option<File>,
    /// Blocks that another file has, so that the file's do not always follow each other.
    other: Option<File>,
    model: Vec<u8>,
    block: usize,
    options: MountOptions,
}

impl World {
    async fn new(seed: u64, image: Image, block: usize, options: MountOptions) -> Self {
        let (device, fs) = mount_image(image, options.clone()).await;
        let (file, other) = (Some(create(&fs, "file").await), Some(create(&fs, "other").await));
        let random = fastrand::Rng::with_seed(seed);
        Self { random, device, fs: Some(fs), file, other, model: Vec::new(), block, options }
    }

    fn file(&self) -> &File {
        self.file.as_ref().expect("open")
    }

    fn range(&mut self) -> (usize, usize) {
        let size = self.model.len();
        let offset = match self.random.u8(0..6) {
            0 => size.saturating_sub(self.random.usize(0..6000)),
            1 => size,
            2 => self.random.usize(0..20_000),
            _ => self.random.usize(0..=size + 5000),
        };
        let len = match self.random.u8(0..6) {
            0 => self.random.usize(0..100),
            1..4 => self.random.usize(0..30_000),
            _ => self.random.usize(0..200_000),
        };
        // Mostly whole blocks: the other half of collapses would fail otherwise.
        if self.random.u8(0..10) < 6 {
            (offset / self.block * self.block, len / self.block * self.block)
        } else {
            (offset, len)
        }
    }

    async fn fallocate(&mut self) -> String {
        let (offset, len) = self.range();
        let mode = MODES[self.random.usize(0..MODES.len())];
        if mode == FallocateMode::InsertRange && self.model.len() + len > MAX as usize {
            return String::new();
        }
        let expected = apply(&mut self.model, mode, offset, len, self.block);
        let found = self.file().fallocate(mode, offset as u64, len as u64).await;
        assert_eq!(
            found.as_ref().map_err(|error| error.errno()),
            expected.as_ref().map_err(|errno| *errno),
            "{mode:?} {offset}+{len} of {}: {found:?}",
            self.model.len()
        );
        if expected.is_ok() {
            self.check_mapped(mode, offset, len).await;
        }
        format!("{mode:?} {offset}+{len}")
    }

    /// What was allocated is mapped, what was punched is not.
    async fn check_mapped(&mut self, mode: FallocateMode, offset: usize, len: usize) {
        if self.random.u8(0..4) != 0 {
            return;
        }
        let extents = self.file().extents().await.expect("maps");
        let covers = |block: usize| {
            extents.iter().find(|map| {
                (map.logical.0 as usize..map.logical.0 as usize + map.len as usize).contains(&block)
            })
        };
        let (first, last) = (offset.div_ceil(self.block), (offset + len) / self.block);
        for block in first..last {
            match mode {
                FallocateMode::Allocate | FallocateMode::AllocateKeepSize => {
                    assert!(covers(block).is_some(), "block {block}: {extents:?}");
                }
                FallocateMode::ZeroRange | FallocateMode::ZeroRangeKeepSize => {
                    let state = covers(block).map(|map| map.state);
                    assert!(matches!(state, Some(MappingState::Unwritten(_))), "block {block}: {extents:?}");
                }
                FallocateMode::PunchHole if (block + 1) * self.block <= self.model.len() => {
                    assert!(covers(block).is_none(), "block {block}: {extents:?}");
                }
                _ => {}
            }
        }
    }

    async fn step(&mut self) {
        let what = match self.random.u8(0..100) {
            0..30 => {
                let (offset, len) = self.range();
                let data = pattern(self.random.u64(..), offset as u64, len);
                assert_eq!(self.file().write_at(offset as u64, &data).await.expect("writes"), len);
                if len > 0 && self.model.len() < offset + len {
                    self.model.resize(offset + len, 0);
                }
                if len > 0 {
                    self.model[offset..offset + len].copy_from_slice(&data);
                }
                format!("write {offset}+{len}")
            }
            30..75 => self.fallocate().await,
            75..80 => {
                let (size, _) = self.range();
                self.file().set_len(size as u64).await.expect("truncates");
                self.model.resize(size, 0);
                format!("truncate {size}")
            }
            80..86 => {
                self.file().sync_data().await.expect("syncs");
                "sync".into()
            }
            86..93 => {
                self.file().start_writeback().await.expect("starts");
                "writeback".into()
            }
            93..96 => {
                let other = self.other.as_ref().expect("open");
                let at = self.random.u64(0..200) * 8192;
                other.write_at(at, &[7; 4096]).await.expect("writes");
                other.sync_all().await.expect("syncs");
                "other".into()
            }
            96..99 => {
                self.check_seek().await;
                "seek".into()
            }
            _ => {
                self.remount().await;
                "remount".into()
            }
        };
        assert_eq!(self.file().len(), self.model.len() as u64, "{what}");
        self.check(&what).await;
    }

    async fn check(&self, what: &str) {
        let found = content(self.file()).await;
        if let Some(at) = found.iter().zip(&self.model).position(|(found, expected)| found != expected) {
            panic!(
                "after {what}: {:#x} in place of {:#x} at {at} of {}",
                found[at],
                self.model[at],
                found.len()
            );
        }
    }

    /// What is said to be a hole reads as zeros.
    async fn check_seek(&self) {
        let size = self.model.len() as u64;
        let mut at = 0;
        while at < size {
            let data = self.file().seek(at, SeekTarget::Data).await.expect("seeks").unwrap_or(size);
            assert!(self.model[at as usize..data as usize].iter().all(|byte| *byte == 0), "{at}..{data}");
            if data == size {
                break;
            }
            at = self.file().seek(data, SeekTarget::Hole).await.expect("seeks").expect("the end is one");
            assert!(at > data);
        }
    }

    async fn remount(&mut self) {
        (self.file, self.other) = (None, None);
        let fs = self.fs.take().expect("mounted");
        let image = finish(&self.device, fs).await;
        let (device, fs) = mount_image(image, self.options.clone()).await;
        (self.file, self.other) = (Some(open(&fs, "file").await), Some(open(&fs, "other").await));
        (self.device, self.fs) = (device, Some(fs));
        self.check("remount").await;
    }
}

/// Says how to run it again, where it ends in a panic.
struct Told(String);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

async fn run(block: usize, mkfs: &[&str], options: MountOptions, steps: usize) {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let _told = Told(format!("SEED={seed}, blocks of {block}, {mkfs:?}, {options:?}"));
    let mut world = World::new(seed, make_image(32, block as u32, mkfs, 0xaa), block, options).await;
    for _ in 0..steps {
        world.step().await;
    }
    world.remount().await;
    // Nothing is promised to nobody, and nothing is lost.
    world.file().set_len(0).await.expect("truncates");
    let fs = world.fs.as_ref().expect("mounted");
    fs.sync().await.expect("syncs");
    assert_eq!(world.file().attributes().await.expect("stat").sectors, 0);
    world.model.clear();
    world.remount().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_modes_agree_with_an_array_of_bytes() {
    if !have_tools() {
        return;
    }
    for block in [1024, 2048, 4096] {
        run(block, &[], options(), 1000).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_modes_agree_with_an_array_of_bytes_without_delayed_allocation() {
    if !have_tools() {
        return;
    }
    for block in [1024, 2048, 4096] {
        run(block, &[], MountOptions { delayed_allocation: false, ..options() }, 600).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_modes_agree_with_an_array_of_bytes_with_direct_publication() {
    if !have_tools() {
        return;
    }
    for block in [1024, 4096] {
        run(block, &[], MountOptions { allocation: Allocation::Publish, ..options() }, 600).await;
    }
}

#[tokio::test]
async fn all_modes_agree_with_an_array_of_bytes_with_little_memory_and_with_fast_commits() {
    if !have_tools() {
        return;
    }
    run(1024, &["-O", "fast_commit"], MountOptions { cache: 6 << 20, ..options() }, 600).await;
    run(4096, &["-O", "^has_journal"], MountOptions { cache: 6 << 20, ..options() }, 600).await;
}
