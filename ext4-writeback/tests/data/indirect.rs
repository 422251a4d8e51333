//! Files mapped by indirect blocks: all levels of pointers, on ext2 and ext3 images, judged by e2fsck and the
//! kernel.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::common::*;
use ext4_core::device::MemoryDevice;
use ext4_core::device::simulated::Image;
use ext4_core::{Errno, InodeNumber};
use ext4_test_support::loop_device::KernelMount;
use ext4_test_support::settings::seed_or;
use ext4_test_support::tools::can_mount;
use ext4_writeback::{Credentials, File, Filesystem, MountOptions};

/// Arguments of mke2fs for file systems whose files have no extents.
const OLD: [(&str, &[&str]); 3] = [
    ("ext2", &["-t", "ext2"]),
    ("ext3", &["-t", "ext3"]),
    ("ext4 without extents", &["-O", "^extents,^64bit"]),
];

/// A file whose bytes are known block by block; the others are zeros.
#[derive(Clone, Default)]
struct Sparse {
    block_size: u64,
    size: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Sparse {
    fn new(block_size: u32) -> Self {
        Self { block_size: u64::from(block_size), ..Self::default() }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let size = self.block_size;
        for (at, byte) in (offset..).zip(data) {
            let block = self.blocks.entry(at / size).or_insert_with(|| vec![0; size as usize]);
            block[(at % size) as usize] = *byte;
        }
        self.size = self.size.max(offset + data.len() as u64);
    }

    fn resize(&mut self, size: u64) {
        if size < self.size {
            self.blocks.split_off(&size.div_ceil(self.block_size));
            if let Some(last) = self.blocks.get_mut(&(size / self.block_size)) {
                last[(size % self.block_size) as usize..].fill(0);
            }
        }
        self.size = size;
    }

    /// Checks every known block, those beside it, and the size, through `read`.
    fn places(&self) -> Vec<(u64, Vec<u8>)> {
        let mut places = BTreeMap::new();
        for block in self.blocks.keys() {
            for at in block.saturating_sub(1)..=block + 1 {
                let bytes = self.blocks.get(&at).cloned();
                let bytes = bytes.unwrap_or_else(|| vec![0; self.block_size as usize]);
                let offset = at * self.block_size;
                let len = self.size.saturating_sub(offset).min(self.block_size);
                places.insert(offset, bytes[..len as usize].to_vec());
            }
        }
        places.into_iter().collect()
    }

    async fn check(&self, file: &File) {
        assert_eq!(file.len(), self.size);
        for (offset, expected) in self.places() {
            let mut bytes = vec![0xee; expected.len()];
            assert_eq!(file.read_at(offset, &mut bytes).await.expect("reads"), bytes.len());
            assert!(bytes == expected, "at {offset} of {}", self.size);
        }
    }

    fn check_host(&self, file: &std::fs::File) {
        assert_eq!(file.metadata().expect("stat").len(), self.size);
        for (offset, expected) in self.places() {
            let mut bytes = vec![0xee; expected.len()];
            file.read_exact_at(&mut bytes, offset).expect("reads");
            assert!(bytes == expected, "the kernel at {offset} of {}", self.size);
        }
    }
}

/// The blocks where another level of pointers begins, and the last one they reach.
fn borders(block_size: u32) -> [u64; 4] {
    let pointers = u64::from(block_size / 4);
    let (single, double) = (12, 12 + pointers);
    let triple = double + pointers * pointers;
    [single, double, triple, (triple + pointers * pointers * pointers).min(1 << 32) - 1]
}

/// A place near a border of levels, or of two blocks of pointers.
fn offset(random: &mut fastrand::Rng, block_size: u32, limit: u64) -> u64 {
    let pointers = u64::from(block_size / 4);
    let [single, double, triple, _] = borders(block_size);
    let near = match random.u8(0..6) {
        0 => single,
        1 => double,
        2 => triple,
        3 => double + pointers * random.u64(0..4),
        4 => triple + pointers * pointers * random.u64(0..2) + pointers * random.u64(0..2),
        _ => 0,
    };
    let block = (near + random.u64(0..12)).saturating_sub(6);
    (block * u64::from(block_size) + random.u64(0..u64::from(block_size))).min(limit)
}

async fn random_sparse(seed: u64, block_size: u32, name: &str, features: &[&str], options: MountOptions) {
    println!("seed {seed}, {name} with blocks of {block_size}");
    let mut random = fastrand::Rng::with_seed(seed);
    // Beyond 2 GiB the kernel wants the feature large_file, which is set then.
    let image = make_image(24, block_size, features, 0xaa);
    let (mut device, mut fs) = mount_image(image, options.clone()).await;
    let mut file = create(&fs, "file").await;
    let mut model = Sparse::new(block_size);
    let limit = u64::MAX;
    for step in 0..250 {
        let at = offset(&mut random, block_size, limit);
        match random.u8(0..20) {
            0..11 => {
                let data = pattern(random.u64(..), at, random.usize(1..3 * block_size as usize));
                assert_eq!(file.write_at(at, &data).await.expect("writes"), data.len());
                model.write(at, &data);
            }
            11..14 => {
                file.set_len(at).await.expect("truncates");
                model.resize(at);
            }
            14 | 15 => file.sync_data().await.expect("syncs"),
            16 => file.start_writeback().await.expect("starts"),
            17 => model.check(&file).await,
            _ if step % 4 == 0 => {
                drop(file);
                let image = finish(&device, fs).await;
                (device, fs) = mount_image(image, options.clone()).await;
                file = open(&fs, "file").await;
                model.check(&file).await;
            }
            _ => {}
        }
    }
    model.check(&file).await;
    drop(file);
    let image = finish(&device, fs).await;
    let image =
        if can_mount() { kernel_has_its_turn(&mut random, block_size, image, &mut model) } else { image };
    let (device, fs) = mount_image(image, options).await;
    let before = fs.statfs().free_blocks;
    let file = open(&fs, "file").await;
    model.check(&file).await;
    let sectors = file.metadata().await.expect("stat").sectors;
    file.set_len(0).await.expect("cuts");
    drop(file);
    fs.sync().await.expect("syncs");
    assert_eq!(fs.statfs().free_blocks - before, sectors * 512 / u64::from(block_size), "pointers included");
    finish(&device, fs).await;
}

/// The kernel reads what we wrote, and changes it.
fn kernel_has_its_turn(
    random: &mut fastrand::Rng,
    block_size: u32,
    image: Image,
    model: &mut Sparse,
) -> Image {
    let kernel = KernelMount::of_image(&image);
    {
        let path = kernel.directory().join("file");
        let file = std::fs::File::options().read(true).write(true).open(path).expect("opens");
        model.check_host(&file);
        for _ in 0..20 {
            let at = offset(random, block_size, u64::MAX);
            if random.u8(0..5) == 0 {
                file.set_len(at).expect("truncates");
                model.resize(at);
            } else {
                let data = pattern(random.u64(..), at, random.usize(1..3 * block_size as usize));
                file.write_all_at(&data, at).expect("writes");
                model.write(at, &data);
            }
        }
    }
    let image = kernel.unmount();
    assert_clean(&image, "after the unmount");
    image
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sparse_files_of_all_levels_agree_with_a_model_and_the_kernel() {
    if !have_e2fsprogs() {
        return;
    }
    for (name, features) in OLD {
        for block_size in [1024, 4096] {
            for delayed_allocation in [true, false] {
                let options = options().delayed_allocation(delayed_allocation);
                random_sparse(seed_or(7), block_size, name, features, options).await;
            }
        }
    }
}

/// Directories that need several levels of pointers, long symlinks, hard links, renames, deletions: without
/// extents and without a journal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_file_system_is_fully_usable() {
    if !have_e2fsprogs() {
        return;
    }
    for (name, features) in OLD {
        println!("{name}");
        let (device, fs) = mount_image(make_image(32, 1024, features, 0), options()).await;
        let free = fs.statfs().free_blocks;
        let owner = || Credentials { mode: 0o755, ..Credentials::default() };
        let directory = fs.mkdir(InodeNumber::ROOT, b"directory", owner()).await.expect("makes");
        let long = |i: usize| format!("{i:04}{}", "x".repeat(200)).into_bytes();
        for i in 0..1500 {
            fs.create(directory, &long(i), owner()).await.expect("creates");
        }
        let target = "t".repeat(900);
        let link = fs.symlink(directory, b"link", target.as_bytes(), owner()).await.expect("links");
        assert_eq!(fs.readlink(link).await.expect("reads"), target.as_bytes());
        fs.write("/directory/data", pattern(1, 0, 900_000)).await.expect("writes");
        fs.sync().await.expect("syncs");
        let image = finish(&device, fs).await;
        if can_mount() {
            let kernel = KernelMount::of_image(&image);
            let root = kernel.directory();
            let data = std::fs::read(root.join("directory/data")).expect("reads");
            assert!(data == pattern(1, 0, 900_000));
            let found = std::fs::read_link(root.join("directory/link")).expect("reads");
            assert_eq!(found.to_str(), Some(target.as_str()));
            assert_eq!(std::fs::read_dir(root.join("directory")).expect("reads").count(), 1502);
            assert_clean(&kernel.unmount(), "after the kernel");
        }
        let (device, fs) = mount_image(image, options()).await;
        let directory = fs.lookup(InodeNumber::ROOT, b"directory").await.expect("is there");
        assert_eq!(fs.read("/directory/data").await.expect("reads"), pattern(1, 0, 900_000));
        for i in 0..1500 {
            fs.unlink(directory, &long(i)).await.expect("unlinks");
        }
        fs.unlink(directory, b"link").await.expect("unlinks");
        fs.unlink(directory, b"data").await.expect("unlinks");
        fs.rmdir(InodeNumber::ROOT, b"directory").await.expect("removes");
        fs.sync().await.expect("syncs");
        assert_eq!(fs.statfs().free_blocks, free);
        finish(&device, fs).await;
    }
}

#[tokio::test]
async fn a_file_of_indirect_blocks_ends_where_its_pointers_do() {
    if !have_e2fsprogs() {
        return;
    }
    let (device, fs) = mount_image(make_image(16, 1024, &["-t", "ext3"], 0), options()).await;
    let file = create(&fs, "file").await;
    let limit = (borders(1024)[3] + 1) * 1024;
    assert_eq!(file.set_len(limit + 1).await.expect_err("too long").errno(), Errno::EFBIG);
    assert_eq!(file.write_at(limit, b"x").await.expect_err("too far").errno(), Errno::EFBIG);
    assert_eq!(file.write_at(limit - 10, &[7; 100]).await.expect("as much as fits"), 10);
    file.sync_all().await.expect("syncs");
    assert_eq!(file.len(), limit);
    drop(file);
    let image = finish(&device, fs).await;
    if can_mount() {
        let kernel = KernelMount::of_image(&image);
        let path = kernel.directory().join("file");
        let file = std::fs::File::options().read(true).write(true).open(path).expect("opens");
        let mut bytes = [0; 10];
        file.read_exact_at(&mut bytes, limit - 10).expect("reads");
        assert_eq!(bytes, [7; 10]);
        assert!(file.set_len(limit + 1).is_err(), "the kernel's limit");
        drop(file);
        kernel.unmount();
    }
}

/// Fills the device with scattered blocks, each of which needs blocks of pointers; returns what was accepted.
async fn scatter(file: &File, from: u64, count: u64, stride: u64) -> Vec<u64> {
    let mut accepted = Vec::new();
    for i in 0..count {
        let at = from + i * stride;
        match file.write_at(at, &pattern(4, at, 1024)).await {
            Ok(_) => accepted.push(at),
            Err(error) => {
                assert_eq!(error.errno(), Errno::ENOSPC);
                break;
            }
        }
    }
    accepted
}

async fn holds(file: &File, at: u64) -> bool {
    let mut bytes = [0; 1024];
    file.read_at(at, &mut bytes).await.expect("reads");
    bytes[..] == pattern(4, at, 1024)
}

#[tokio::test]
async fn what_was_accepted_on_a_full_device_finds_its_pointers() {
    if !have_e2fsprogs() {
        return;
    }
    for delayed_allocation in [true, false] {
        let options = options().delayed_allocation(delayed_allocation);
        let image = make_image(16, 1024, &["-t", "ext3", "-m", "0"], 0);
        let (device, fs) = mount_image(image, options.clone()).await;
        let before = fs.statfs().free_blocks;
        let file = create(&fs, "file").await;
        let start = borders(1024)[2] * 1024;
        let accepted = scatter(&file, start, 100_000, 256 * 1024).await;
        assert!(accepted.len() > 4000, "{}", accepted.len());
        file.sync_all().await.expect("all of it finds its place");
        drop(file);
        let image = finish(&device, fs).await;
        let (device, fs) = mount_image(image, options).await;
        let file = open(&fs, "file").await;
        for at in &accepted {
            assert!(holds(&file, *at).await, "lost {at}");
        }
        file.set_len(0).await.expect("cuts");
        fs.sync().await.expect("syncs");
        assert_eq!(fs.statfs().free_blocks, before);
        drop(file);
        finish(&device, fs).await;
    }
}

/// Space that was there when the data was accepted is gone when its pointers are needed: what does not get
/// any is lost, reported, and leaves no trace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g_15_data_without_pointers_is_lost_and_reported() {
    if !have_e2fsprogs() {
        return;
    }
    let hour = std::time::Duration::from_secs(3600);
    // So much memory, and so little of it dirty, that the flusher leaves the scattered file alone.
    let options = options().commit_interval(Some(hour)).cache(128 << 20);
    let image = make_image(16, 1024, &["-t", "ext3", "-m", "0"], 0);
    let (device, fs): (Arc<MemoryDevice>, Filesystem) = mount_image(image, options.clone()).await;
    let before = fs.statfs().free_blocks;
    let file = create(&fs, "scattered").await;
    let start = borders(1024)[2] * 1024;
    // Each needs two blocks of pointers; more than what is kept back for metadata has.
    let accepted = scatter(&file, start, 240, 65_536 * 1024).await;
    assert_eq!(accepted.len(), 240);
    let dense = create(&fs, "dense").await;
    let mut at = 0;
    while let Ok(count) = dense.write_at(at, &pattern(5, at, 65_536)).await {
        at += count as u64;
        dense.sync_data().await.expect("its pointers came first");
    }
    let error = file.sync_all().await.expect_err("no room for pointers");
    assert_eq!(error.errno(), Errno::ENOSPC);
    dense.sync_all().await.expect("its pointers came first");
    drop((file, dense));
    let image = finish(&device, fs).await;
    let (device, fs) = mount_image(image, options).await;
    let file = open(&fs, "scattered").await;
    let mut lost = 0;
    for at in &accepted {
        let mut bytes = [0; 1024];
        file.read_at(*at, &mut bytes).await.expect("reads");
        lost += usize::from(bytes == [0; 1024]);
        assert!(bytes == [0; 1024] || bytes[..] == pattern(4, *at, 1024), "at {at}");
    }
    assert!(lost > 0 && lost < accepted.len(), "{lost}");
    drop(file);
    for name in [b"scattered".as_slice(), b"dense"] {
        fs.unlink(InodeNumber::ROOT, name).await.expect("unlinks");
    }
    fs.sync().await.expect("syncs");
    assert_eq!(fs.statfs().free_blocks, before);
    finish(&device, fs).await;
}
