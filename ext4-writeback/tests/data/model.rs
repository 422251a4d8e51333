//! Random operations against an array of bytes, many of them, in every mode of the data path.
//!
//! Files are small and so are most transfers, so that the operations meet in the same blocks and folios. Now
//! and then the file system is unmounted and judged by e2fsck, with garbage put behind the ends of its files
//! (an append that got to the device without its size leaves some); now and then it crashes.
//!
//! After a crash each file is as it was when it was last synced, or newer: of a size that it had since, each
//! byte zero or something that was written there since. A file that was not changed since its sync is exactly
//! as it was.
//!
//! Seeds are fixed, and printed when a world fails; `SEED=n` runs another one, `EXT4_LONG_TESTS=1` many.

use std::sync::Arc;

use super::common::*;
use ext4_core::Errno;
use ext4_core::device::simulated::Image;
use ext4_core::device::{AlignedBuffer, MemoryDevice};
use ext4_core::meta::extent_tree::{Mapping, MappingState};
use ext4_test_support::settings::seeds;
use ext4_writeback::SeekTarget;
use ext4_writeback::{FallocateMode, File, Filesystem, MountOptions, SyncRange};

const FILES: usize = 4;
/// Files end here or before.
const MAX: u64 = 400_000;
/// The garbage behind the ends of files: even, as no byte is that is written.
const GARBAGE: u8 = 0x66;

/// What changed in a file since its last sync.
#[derive(Debug)]
enum Change {
    Written {
        at: usize,
        data: Vec<u8>,
    },
    Resized(usize),
    /// Blocks moved: a crash half way may show any mix of what was before and after, with a hole in between.
    Moved(Vec<u8>),
}

/// The expected content of a file.
#[derive(Debug, Default)]
struct Model {
    bytes: Vec<u8>,
    synced: Vec<u8>,
    since: Vec<Change>,
}

impl Model {
    fn write(&mut self, at: usize, data: Vec<u8>) {
        if self.bytes.len() < at + data.len() {
            self.bytes.resize(at + data.len(), 0);
        }
        self.bytes[at..at + data.len()].copy_from_slice(&data);
        self.since.push(Change::Written { at, data });
    }

    fn resize(&mut self, len: usize) {
        self.bytes.resize(len, 0);
        self.since.push(Change::Resized(len));
    }

    fn zero(&mut self, range: std::ops::Range<usize>) {
        let range = range.start.min(self.bytes.len())..range.end.min(self.bytes.len());
        self.write(range.start, vec![0; range.len()]);
    }

    fn moved(&mut self, bytes: Vec<u8>) {
        self.bytes.clone_from(&bytes);
        self.since.push(Change::Moved(bytes));
    }

    fn sync(&mut self) {
        self.synced.clone_from(&self.bytes);
        self.since.clear();
    }

    /// Panics if `found` is not what a crash may leave; goes on from there.
    fn crash(&mut self, found: Vec<u8>, what: &str) {
        if self.since.is_empty() {
            assert!(found == self.bytes, "{what}: synced, and not as it was");
        }
        let (mut least, mut most) = (self.synced.len(), self.synced.len());
        let mut values: Vec<[u64; 4]> = vec![[0; 4]; found.len()];
        let mut allow = |at: usize, byte: u8| {
            if let Some(set) = values.get_mut(at) {
                set[usize::from(byte / 64)] |= 1 << (byte % 64);
            }
        };
        for (at, byte) in self.synced.iter().enumerate() {
            allow(at, *byte);
        }
        let (mut len, mut moved) = (self.synced.len(), false);
        // By how far a byte that is written now may be found before its own place, for each number of
        // the latest moves that the crash undoes: the data of a block that was moved is overwritten in place,
        // as in the kernel, and goes to the device without waiting for the move to be durable.
        let mut undone: Vec<usize> = vec![0];
        // Below this every state since the sync had its bytes: no zeros but where they were written.
        for change in &self.since {
            match change {
                Change::Written { at, data } => {
                    for by in &undone {
                        let found = |i: usize| (at + i).wrapping_sub(*by);
                        data.iter().enumerate().for_each(|(i, byte)| allow(found(i), *byte));
                    }
                    len = len.max(at + data.len());
                }
                Change::Resized(to) => len = *to,
                Change::Moved(bytes) => {
                    bytes.iter().enumerate().for_each(|(at, byte)| allow(at, *byte));
                    let by = bytes.len().wrapping_sub(len);
                    undone =
                        std::iter::once(0).chain(undone.iter().map(|sum| sum.wrapping_add(by))).collect();
                    len = bytes.len();
                    moved = true;
                }
            }
            (least, most) = (least.min(len), most.max(len));
        }
        assert!((least..=most).contains(&found.len()), "{what}: {} of {least} to {most} bytes", found.len());
        for (at, byte) in found.iter().enumerate() {
            let allowed = values[at][usize::from(byte / 64)] & 1 << (byte % 64) != 0;
            // A byte of the synced file that was neither cut off nor written since stays what it was.
            let zero =
                *byte == 0 && (moved || at >= least || self.synced.get(at).is_none_or(|old| *old == 0));
            assert!(allowed || zero, "{what}: {byte:#x} at {at} of {}", found.len());
        }
        self.bytes = found;
        self.sync();
    }
}

/// The file system and the options of a run.
#[derive(Clone)]
pub struct Form {
    name: &'static str,
    block_size: u32,
    /// Further arguments of mkfs.ext4.
    pub features: &'static [&'static str],
    pub options: MountOptions,
}

impl Form {
    /// Files are mapped by extents: blocks can be preallocated and moved.
    fn has_extents(&self) -> bool {
        !self.features.iter().any(|feature| ["ext2", "ext3", "^extents"].contains(feature))
    }

    fn has_journal(&self) -> bool {
        !self.features.contains(&"^has_journal")
    }

    /// Bytes of what is allocated at a time.
    fn unit(&self) -> usize {
        let clusters = self.features.windows(2).find(|pair| pair[0] == "-C");
        clusters.map_or(self.block_size as usize, |pair| pair[1].parse().expect("bytes"))
    }
}

struct World {
    random: fastrand::Rng,
    form: Form,
    device: Arc<MemoryDevice>,
    fs: Option<Filesystem>,
    files: Vec<File>,
    model: Vec<Model>,
}

impl World {
    async fn new(seed: u64, image: Image, form: Form) -> Self {
        let (device, fs) = mount_image(image, form.options.clone()).await;
        let mut files = Vec::new();
        for i in 0..FILES {
            files.push(create(&fs, &format!("file{i}")).await);
        }
        fs.sync().await.expect("syncs");
        let model = (0..FILES).map(|_| Model::default()).collect();
        Self { random: fastrand::Rng::with_seed(seed), form, device, fs: Some(fs), files, model }
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
        match self.random.u8(0..16) {
            0..10 => self.random.usize(1..3000),
            10 => 4096,
            11 => 1024 * self.random.usize(1..16),
            12..15 => self.random.usize(1..20_000),
            _ => self.random.usize(1..200_000),
        }
    }

    fn fs(&self) -> &Filesystem {
        self.fs.as_ref().expect("mounted")
    }

    async fn step(&mut self) {
        let i = self.random.usize(0..FILES);
        let len = self.model[i].bytes.len() as u64;
        match self.random.u16(0..1000) {
            0..60 => self.fallocate(i).await,
            60..100 => self.direct(i).await,
            100..140 => self.store(i).await,
            140..460 => {
                let offset = self.offset(len).min(MAX);
                let data = pattern(self.random.u64(..), offset, self.length());
                let count = self.files[i].write_at(offset, &data).await.expect("writes");
                assert_eq!(count, data.len());
                self.model[i].write(offset as usize, data);
            }
            460..730 => {
                let offset = self.offset(len);
                let mut bytes = vec![0xee; self.length()];
                let count = self.files[i].read_at(offset, &mut bytes).await.expect("reads");
                let model = &self.model[i].bytes;
                let start = (offset as usize).min(model.len());
                let end = (start + bytes.len()).min(model.len());
                assert_eq!(count, end - start, "at {offset}");
                assert!(bytes[..count] == model[start..end], "content at {offset}+{count}");
            }
            730..860 => {
                let size = self.offset(len);
                self.files[i].set_len(size).await.expect("truncates");
                self.model[i].resize(size as usize);
            }
            860..920 => {
                if self.random.bool() {
                    self.files[i].sync_all().await
                } else {
                    self.files[i].sync_data().await
                }
                .expect("syncs");
                self.model[i].sync();
            }
            920..930 => self.files[i].start_writeback().await.expect("starts"),
            930..950 => {
                let (offset, len) = (self.offset(len), self.length() as u64);
                let flags = if self.random.bool() { SyncRange::WRITE } else { SyncRange::all() };
                self.files[i].sync_file_range(offset, len, flags).await.expect("goes to the device");
            }
            950..955 => {
                self.fs().sync().await.expect("syncs");
                self.model.iter_mut().for_each(Model::sync);
            }
            955..985 => self.check_seek(i).await,
            985..995 => {
                if self.random.u8(0..8) == 0 {
                    self.remount().await;
                }
            }
            _ => {
                // Without a journal a crash may leave anything.
                if self.random.u8(0..4) == 0 && self.form.has_journal() {
                    self.crash().await;
                }
            }
        }
        assert_eq!(self.files[i].len(), self.model[i].bytes.len() as u64);
    }

    async fn fallocate(&mut self, i: usize) {
        let size = self.model[i].bytes.len();
        let unit = self.form.unit();
        let (mut at, mut len) = (self.offset(size as u64).min(MAX) as usize, self.length());
        let mode = match self.random.u8(0..if self.form.has_extents() { 7 } else { 1 }) {
            0 => FallocateMode::PunchHole,
            1 => FallocateMode::ZeroRange,
            2 => FallocateMode::ZeroRangeKeepSize,
            3 => FallocateMode::Allocate,
            4 => FallocateMode::AllocateKeepSize,
            5 => FallocateMode::CollapseRange,
            _ => FallocateMode::InsertRange,
        };
        let moves = matches!(mode, FallocateMode::CollapseRange | FallocateMode::InsertRange);
        if moves || self.random.bool() {
            (at, len) = (at / unit * unit, len.next_multiple_of(unit));
        }
        let done = self.files[i].fallocate(mode, at as u64, len as u64).await;
        let refused = match mode {
            FallocateMode::CollapseRange => at + len >= size,
            FallocateMode::InsertRange => at >= size,
            _ => false,
        };
        if refused {
            assert_eq!(done.expect_err("reaches the end").errno(), Errno::EINVAL);
            return;
        }
        done.expect("fallocates");
        let model = &mut self.model[i];
        let mut bytes = model.bytes.clone();
        match mode {
            FallocateMode::PunchHole | FallocateMode::ZeroRangeKeepSize | FallocateMode::ZeroRange => {
                model.zero(at..at + len);
            }
            FallocateMode::Allocate | FallocateMode::AllocateKeepSize => {}
            FallocateMode::CollapseRange => {
                bytes.drain(at..at + len);
                model.moved(bytes);
            }
            FallocateMode::InsertRange => {
                bytes.splice(at..at, std::iter::repeat_n(0, len));
                model.moved(bytes);
            }
        }
        let grows = matches!(mode, FallocateMode::Allocate | FallocateMode::ZeroRange);
        if grows && size < at + len {
            model.resize(at + len);
        }
        if self.random.u8(0..8) == 0 {
            self.check_mapped(i, mode, at, at + len).await;
        }
        let model = &mut self.model[i];
        if model.bytes.len() > 2 * MAX as usize {
            self.files[i].set_len(MAX).await.expect("truncates");
            model.resize(MAX as usize);
        }
    }

    /// Fails the test unless allocated blocks are mapped and punched ones are not.
    async fn check_mapped(&self, i: usize, mode: FallocateMode, from: usize, to: usize) {
        let block = self.form.block_size as usize;
        let extents = self.files[i].extents().await.expect("maps");
        let state = |at: usize| {
            let covers = |map: &&Mapping| (at as u32).wrapping_sub(map.logical.0) < map.len;
            extents.iter().find(covers).map(|map| map.state)
        };
        for at in from.div_ceil(block)..to / block {
            let state = state(at);
            let right = match mode {
                FallocateMode::Allocate | FallocateMode::AllocateKeepSize => state.is_some(),
                FallocateMode::ZeroRange | FallocateMode::ZeroRangeKeepSize => {
                    matches!(state, Some(MappingState::Unwritten(_)))
                }
                // Blocks behind the end are left to truncation.
                FallocateMode::PunchHole => state.is_none() || (at + 1) * block > self.model[i].bytes.len(),
                FallocateMode::CollapseRange | FallocateMode::InsertRange => true,
            };
            assert!(right, "{mode:?} {from}..{to}: block {at} is {state:?}");
        }
    }

    /// A direct transfer.
    async fn direct(&mut self, i: usize) {
        let unit = u64::from(self.files[i].direct_alignment());
        let size = self.model[i].bytes.len() as u64;
        let offset = self.offset(size).min(MAX) / unit * unit;
        let len = self.length().next_multiple_of(unit as usize);
        if self.random.bool() {
            let data = pattern(self.random.u64(..), offset, len);
            let buffer = AlignedBuffer::copied(&data).expect("memory");
            let (count, _) = self.files[i].write_direct(offset, buffer).await;
            assert_eq!(count.expect("writes"), len);
            self.model[i].write(offset as usize, data);
        } else {
            let buffer = AlignedBuffer::zeroed(len).expect("memory");
            let (count, buffer) = self.files[i].read_direct(offset, buffer).await;
            let count = count.expect("reads");
            let model = &self.model[i].bytes;
            let start = (offset as usize).min(model.len());
            assert_eq!(count, (start + len).min(model.len()) - start);
            assert!(buffer[..count] == model[start..start + count], "direct content at {offset}+{count}");
        }
    }

    /// A store into the file as memory.
    async fn store(&mut self, i: usize) {
        let size = self.model[i].bytes.len() as u64;
        let (offset, len) = (self.offset(size), self.length());
        if offset >= size {
            let error = self.files[i].map_write(offset, len).await.expect_err("behind the end");
            assert_eq!(error.errno(), Errno::ENXIO);
            return;
        }
        let mut mapped = self.files[i].map_write(offset, len).await.expect("maps");
        let at = offset as usize;
        assert!(mapped[..] == self.model[i].bytes[at..at + mapped.len()], "mapped content at {offset}");
        if self.random.u8(0..4) == 0 {
            return;
        }
        let data = pattern(self.random.u64(..), offset, mapped.len());
        mapped.copy_from_slice(&data);
        assert_eq!(mapped.commit().await.expect("stores"), data.len());
        self.model[i].write(at, data);
    }

    /// Fails the test unless holes read as zeros.
    async fn check_seek(&mut self, i: usize) {
        let size = self.model[i].bytes.len() as u64;
        let mut at = 0;
        while at < size {
            let data = self.files[i].seek(at, SeekTarget::Data).await.expect("seeks").unwrap_or(size);
            assert!(self.model[i].bytes[at as usize..data as usize].iter().all(|byte| *byte == 0));
            if data == size {
                break;
            }
            at = self.files[i].seek(data, SeekTarget::Hole).await.expect("seeks").expect("the end is one");
            // Blocks that are allocated without data beside some that are on their way count as data until
            // those are there: writeback that ends in between makes a hole of them.
            assert!(at >= data);
            if at == data {
                break;
            }
        }
    }

    async fn check_all(&self) {
        for (i, model) in self.model.iter().enumerate() {
            assert!(content(&self.files[i]).await == model.bytes, "file {i}");
        }
    }

    async fn mount(&mut self, image: Image) {
        let (device, fs) = mount_image(image, self.form.options.clone()).await;
        for i in 0..FILES {
            self.files.push(open(&fs, &format!("file{i}")).await);
        }
        self.device = device;
        self.fs = Some(fs);
    }

    /// Where on the device the unaligned ends of files lie that are written there, and how many bytes follow.
    async fn ends(&self) -> Vec<(u64, u64)> {
        let block_size = u64::from(self.form.block_size);
        let mut ends = Vec::new();
        for file in &self.files {
            let (size, within) = (file.len(), file.len() % block_size);
            let last = size / block_size;
            for extent in file.extents().await.expect("maps") {
                let first = u64::from(extent.logical.0);
                if let MappingState::Written(block) = extent.state
                    && within > 0
                    && (first..first + u64::from(extent.len)).contains(&last)
                {
                    ends.push(((block.0 + last - first) * block_size + within, block_size - within));
                }
            }
        }
        ends
    }

    async fn remount(&mut self) {
        let ends = self.ends().await;
        self.files.clear();
        let fs = self.fs.take().expect("mounted");
        let mut image = finish(&self.device, fs).await;
        for (at, len) in ends {
            image.fill(at, len, GARBAGE);
        }
        self.mount(image).await;
        self.check_all().await;
        self.model.iter_mut().for_each(Model::sync);
    }

    /// A crash: the device stays as it is at this moment, and is mounted again.
    async fn crash(&mut self) {
        let image = self.device.image();
        self.files.clear();
        self.fs = None;
        self.mount(image).await;
        for i in 0..FILES {
            let found = content(&self.files[i]).await;
            self.model[i].crash(found, &format!("file {i} after a crash"));
        }
    }
}

/// Says which world it was when it fails.
struct Told(String);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this world failed: {}", self.0);
        }
    }
}

async fn run(seed: u64, form: &Form, steps: usize) {
    let _told = Told(format!("SEED={seed} {} blocks of {}", form.name, form.block_size));
    let features = [&["-J", "size=4"][..], form.features].concat();
    let features = if form.has_journal() { &features[..] } else { &features[2..] };
    let image = make_image(24, form.block_size, features, 0xaa);
    let mut world = World::new(seed, image, form.clone()).await;
    for _ in 0..steps {
        world.step().await;
    }
    world.check_all().await;
    world.remount().await;
    // Nothing stays reserved, and nothing is lost.
    let before = world.fs().statfs().free_blocks;
    let mut sectors = 0;
    for file in &world.files {
        sectors += file.metadata().await.expect("stat").sectors;
        file.set_len(0).await.expect("truncates");
    }
    world.files.clear();
    let fs = world.fs.take().expect("mounted");
    fs.sync().await.expect("syncs");
    assert_eq!(fs.statfs().free_blocks - before, sectors * 512 / u64::from(form.block_size));
    finish(&world.device, fs).await;
}

/// How many steps a form is run for, and with which seeds.
pub async fn worlds(forms: &[Form], steps: usize) {
    if !have_e2fsprogs() {
        return;
    }
    let seeds = seeds(1..=2, 1..40);
    for form in forms {
        for seed in &seeds {
            run(*seed, form, steps / 2).await;
        }
    }
}

/// `name` on file systems with blocks of each of `block_sizes`.
pub fn forms(name: &'static str, block_sizes: &[u32], options: MountOptions) -> Vec<Form> {
    let form =
        |block_size: &u32| Form { name, block_size: *block_size, features: &[], options: options.clone() };
    block_sizes.iter().map(form).collect()
}

/// Steps of each form in CI; all of them together make more than 200,000.
pub const STEPS: usize = 12_000;

#[tokio::test]
async fn files_agree_with_arrays_of_bytes() {
    worlds(&forms("delayed", &[1024, 2048, 4096], options()), STEPS).await;
}

#[tokio::test]
async fn files_agree_with_arrays_of_bytes_in_clusters() {
    let nodelalloc = options().delayed_allocation(false);
    let form = |name, block_size, features, options: &MountOptions| Form {
        name,
        block_size,
        features,
        options: options.clone(),
    };
    let forms = [
        form("clusters of 16", 1024, &["-O", "bigalloc", "-C", "16384"], &options()),
        form("clusters of 16", 4096, &["-O", "bigalloc", "-C", "65536"], &options()),
        form("clusters of 4", 4096, &["-O", "bigalloc", "-C", "16384"], &nodelalloc),
        form(
            "clusters of 64, fast commits",
            1024,
            &["-O", "bigalloc,fast_commit", "-C", "65536"],
            &options(),
        ),
    ];
    worlds(&forms, STEPS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_agree_with_arrays_of_bytes_on_two_threads() {
    worlds(&forms("two threads", &[1024, 4096], options()), STEPS).await;
}

#[tokio::test]
async fn files_agree_with_arrays_of_bytes_with_little_memory() {
    let options = options().cache(3 << 20);
    worlds(&forms("little memory", &[1024, 4096], options), STEPS).await;
}

#[tokio::test]
async fn files_agree_with_arrays_of_bytes_without_delayed_allocation() {
    let options = options().delayed_allocation(false);
    worlds(&forms("nodelalloc", &[1024, 4096], options), STEPS).await;
}

#[tokio::test]
async fn files_agree_with_arrays_of_bytes_without_a_flusher() {
    let options = options().commit_interval(None).cache(6 << 20);
    worlds(&forms("no flusher", &[4096], options), STEPS).await;
}

#[tokio::test]
async fn files_agree_with_arrays_of_bytes_with_fast_commits() {
    let mut forms = forms("fast commits", &[1024, 4096], options());
    forms.iter_mut().for_each(|form| form.features = &["-O", "fast_commit"]);
    worlds(&forms, STEPS).await;
}

#[tokio::test]
async fn files_with_inline_data_agree_with_arrays_of_bytes() {
    let mut forms = forms("inline data", &[4096], options());
    forms.iter_mut().for_each(|form| form.features = &["-O", "inline_data"]);
    worlds(&forms, STEPS).await;
    let mut forms = super::model::forms("inline data in clusters", &[1024, 4096], options());
    forms.iter_mut().for_each(|form| form.features = &["-O", "inline_data,bigalloc", "-C", "16384"]);
    worlds(&forms, STEPS).await;
}

#[tokio::test]
async fn files_agree_with_arrays_of_bytes_without_a_journal() {
    let mut forms = forms("no journal", &[4096], options());
    forms.iter_mut().for_each(|form| form.features = &["-O", "^has_journal"]);
    worlds(&forms, STEPS).await;
}
