//! The flusher and the throttle in a world with a clock of its own, on a device that moves so many bytes a
//! second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ext4_core::InodeNumber;
use ext4_core::device::{BlockDevice, Geometry, MemoryDevice, Operation, Plug};
use ext4_core::environment::{Runtime, Simulation, SystemEnvironment};
use ext4_core::meta::mkfs::MkfsOptions;
use parking_lot::Mutex;

use crate::base::options::MountOptions;
use crate::file::File;
use crate::filesystem::Filesystem;
use crate::mount::mkfs::mkfs;
use crate::namespace::new_inode::Credentials;

/// A device that does one write after another, each as long as its bytes take; other operations take no time.
struct SlowDevice {
    inner: Arc<dyn BlockDevice>,
    runtime: Arc<dyn Runtime>,
    bytes_per_second: u64,
    free: Mutex<Duration>,
}

impl std::fmt::Debug for SlowDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlowDevice").finish_non_exhaustive()
    }
}

impl BlockDevice for SlowDevice {
    fn geometry(&self) -> &Geometry {
        self.inner.geometry()
    }

    fn submit(&self, plug: Plug) {
        for bio in plug {
            if bio.operation != Operation::Write {
                self.inner.submit(vec![bio]);
                continue;
            }
            let takes = Duration::from_nanos(bio.len * 1_000_000_000 / self.bytes_per_second);
            let now = self.runtime.monotonic();
            let ends = {
                let mut free = self.free.lock();
                *free = (*free).max(now) + takes;
                *free
            };
            let (inner, sleep) = (Arc::clone(&self.inner), self.runtime.sleep(ends.saturating_sub(now)));
            self.runtime.spawn(Box::pin(async move {
                sleep.await;
                inner.submit(vec![bio]);
            }));
        }
    }
}

const MIB: usize = 1 << 20;

struct World {
    simulation: Simulation,
    runtime: Arc<dyn Runtime>,
    memory: Arc<MemoryDevice>,
    device: Arc<dyn BlockDevice>,
}

impl World {
    fn new(seed: u64, mib_per_second: u64) -> Self {
        let simulation = Simulation::new(seed);
        let runtime = simulation.runtime();
        let memory = Arc::new(MemoryDevice::new(256 << 20));
        let device = Arc::new(SlowDevice {
            inner: Arc::clone(&memory) as _,
            runtime: Arc::clone(&runtime),
            bytes_per_second: mib_per_second << 20,
            free: Mutex::default(),
        });
        Self { simulation, runtime, memory, device }
    }

    fn options(&self) -> MountOptions {
        MountOptions {
            cache: 96 << 20,
            dirty_background_bytes: Some(8 << 20),
            dirty_bytes: Some(32 << 20),
            runtime: Some(self.simulation.runtime()),
            environment: self.simulation.environment(),
            ..MountOptions::default()
        }
    }

    /// Makes a file system on the memory below, without delay, and mounts it over the slow device.
    async fn mount(
        memory: Arc<MemoryDevice>,
        device: Arc<dyn BlockDevice>,
        options: MountOptions,
    ) -> Filesystem {
        mkfs(memory as _, &MkfsOptions::default(), &SystemEnvironment).await.expect("makes a file system");
        Filesystem::mount(device, options).await.expect("mounts")
    }

    fn run<F: Future<Output = ()> + Send + 'static>(
        &self,
        options: MountOptions,
        test: impl FnOnce(Filesystem, Arc<dyn Runtime>) -> F + Send + 'static,
    ) {
        let (memory, device) = (Arc::clone(&self.memory), Arc::clone(&self.device));
        let runtime = Arc::clone(&self.runtime);
        self.simulation
            .run_for(50_000_000, async move {
                let fs = Self::mount(memory, device, options).await;
                test(fs.clone(), runtime).await;
                fs.unmount().await.expect("unmounts");
            })
            .unwrap_or_else(|stuck| panic!("{stuck}"));
        crate::testing::assert_clean(&self.memory);
    }
}

async fn create(fs: &Filesystem, name: &str) -> File {
    let owner = Credentials { mode: 0o644, ..Credentials::default() };
    let number = fs.create(InodeNumber::ROOT, name.as_bytes(), owner).await.expect("creates");
    fs.open(number).await.expect("opens")
}

async fn write(file: &File, start: usize, len: usize) {
    for at in (start..start + len).step_by(64 << 10) {
        file.write_at(at as u64, &[7; 64 << 10]).await.expect("writes");
    }
}

/// Lets time pass in small steps: this scheduler may fire a timer, and jump to its time, before the tasks
/// that an earlier timer woke have run. So up to some seconds more may pass.
async fn pass_time(runtime: &Arc<dyn Runtime>, seconds: u64) {
    let end = runtime.monotonic() + Duration::from_secs(seconds);
    while runtime.monotonic() < end {
        runtime.sleep(Duration::from_millis(50)).await;
    }
}

fn is_dirty(file: &File) -> bool {
    file.inode.pages.is_dirty_folios()
}

#[test]
fn old_data_is_written_whole_and_young_data_is_left_alone() {
    let world = World::new(1, 1000);
    let options = MountOptions {
        dirty_background_bytes: Some(28 << 20),
        dirty_expiry: Duration::from_secs(300),
        ..world.options()
    };
    world.run(options, |fs, runtime| async move {
        let (old, young) = (create(&fs, "old").await, create(&fs, "young").await);
        // More than a turn of the flusher.
        write(&old, 0, 20 * MIB).await;
        pass_time(&runtime, 250).await;
        assert!(is_dirty(&old));
        write(&young, 0, MIB).await;
        pass_time(&runtime, 70).await;
        assert!(!is_dirty(&old), "older than 300 s, looked at every 5 s");
        assert!(is_dirty(&young));
        assert_eq!(fs.counters().bytes, 20 << 20);
        pass_time(&runtime, 260).await;
        assert!(!is_dirty(&young));
    });
}

#[test]
fn nothing_is_written_below_the_background_limit_and_half_of_it_stays_above() {
    let world = World::new(2, 1000);
    world.run(world.options(), |fs, runtime| async move {
        let file = create(&fs, "file").await;
        write(&file, 0, 7 * MIB).await;
        pass_time(&runtime, 20).await;
        assert_eq!(fs.counters().bytes, 0);
        write(&file, 7 * MIB, 5 * MIB).await;
        pass_time(&runtime, 1).await;
        assert!(fs.counters().bytes >= 8 << 20, "{:?}", fs.counters());
        assert!(fs.inner.engine.dirty.dirty_bytes() <= 4 << 20);
    });
}

#[test]
fn a_small_file_does_not_wait_for_a_large_one() {
    let world = World::new(3, 50);
    let options = MountOptions { dirty_background_bytes: Some(30 << 20), ..world.options() };
    world.run(options, |fs, runtime| async move {
        let (large, small) = (create(&fs, "large").await, create(&fs, "small").await);
        write(&large, 0, 28 * MIB).await;
        write(&small, 0, MIB).await;
        fs.inner.engine.dirty.kick_everything();
        let began = runtime.monotonic();
        while small.inode.completion.disk_size() == 0 {
            runtime.sleep(Duration::from_millis(5)).await;
        }
        let small_took = runtime.monotonic() - began;
        while is_dirty(&large) || large.inode.completion.disk_size() < 28 << 20 {
            runtime.sleep(Duration::from_millis(5)).await;
        }
        let large_took = runtime.monotonic() - began;
        // The small file gets its turn when the large one has had eight of its 28 MiB.
        assert!(small_took * 2 < large_took, "{small_took:?} of {large_took:?}");
    });
}

#[test]
fn k_49_a_file_made_longer_is_that_after_a_commit_interval() {
    for dirty_elsewhere in [false, true] {
        let world = World::new(4, 1000);
        let memory = Arc::clone(&world.memory);
        let seen = Arc::new(AtomicU64::new(0));
        let result = Arc::clone(&seen);
        world.run(world.options(), move |fs, runtime| async move {
            let file = create(&fs, "file").await;
            file.write_at(0, &[1; 3000]).await.expect("writes");
            file.sync_all().await.expect("syncs");
            if dirty_elsewhere {
                file.write_at(8192, &[2; 3000]).await.expect("writes");
            }
            file.set_len(20_000).await.expect("extends");
            pass_time(&runtime, 6).await;
            let copy: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_image(memory.image()));
            let options =
                MountOptions { commit_interval: None, runtime: Some(runtime), ..MountOptions::default() };
            let fs = Filesystem::mount(copy, options).await.expect("mounts");
            let number = fs.lookup(InodeNumber::ROOT, b"file").await.expect("is there");
            let file = fs.open(number).await.expect("opens");
            let mut bytes = vec![9; 20_000];
            file.read_at(0, &mut bytes).await.expect("reads");
            assert!(bytes[3000..4096].iter().all(|byte| *byte == 0));
            result.store(file.len(), Ordering::SeqCst);
        });
        assert_eq!(seen.load(Ordering::SeqCst), 20_000, "dirty elsewhere: {dirty_elsewhere}");
    }
}

/// Writes the first 24 MiB of `file` over and over, `unit` bytes at a time; returns how many bytes were
/// written, and how long the longest write took.
async fn write_on(
    file: File,
    unit: usize,
    runtime: Arc<dyn Runtime>,
    stop: Arc<AtomicBool>,
) -> (u64, Duration) {
    let data = vec![3; unit];
    let (mut written, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let began = runtime.monotonic();
        let at = written % (24 << 20);
        file.write_at(at, &data).await.expect("writes");
        written += unit as u64;
        longest = longest.max(runtime.monotonic() - began);
        // A writer that only copies takes no simulated time, and lets no other task run.
        runtime.sleep(Duration::from_micros(unit as u64 >> 12)).await;
    }
    (written, longest)
}

#[test]
fn writers_are_throttled_to_equal_shares_of_what_the_device_takes() {
    const SECONDS: u64 = 10;
    const RATE: u64 = 64;
    let world = World::new(5, RATE);
    let simulation = world.simulation.clone();
    world.run(world.options(), move |fs, runtime| async move {
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for (name, unit) in [("large", 1 << 20), ("middle", 64 << 10), ("small", 16 << 10)] {
            let file = create(&fs, name).await;
            writers
                .push(simulation.spawn(name, write_on(file, unit, Arc::clone(&runtime), Arc::clone(&stop))));
        }
        let mut most = 0;
        for _ in 0..SECONDS * 100 {
            runtime.sleep(Duration::from_millis(10)).await;
            most = most.max(fs.inner.engine.dirty.dirty_bytes());
        }
        stop.store(true, Ordering::Relaxed);
        let mut rates = Vec::new();
        for writer in writers {
            let (bytes, longest) = writer.await.expect("ends");
            rates.push((bytes >> 20) / SECONDS);
            assert!(longest < Duration::from_secs(2), "a write took {longest:?}");
        }
        println!("MiB/s {rates:?}, most dirty {} MiB, {:?}", most >> 20, fs.counters());
        // One folio of 2 MiB for each writer beyond the limit.
        assert!(most <= (32 << 20) + (3 << 21), "{most}");
        let (least, greatest) = (rates.iter().min().expect("some"), rates.iter().max().expect("some"));
        assert!(greatest <= &(least * 2), "{rates:?}");
        let sum: u64 = rates.iter().sum();
        assert!((RATE / 2..=RATE * 3 / 2).contains(&sum), "{rates:?} of {RATE} MiB/s");
        assert!(fs.counters().throttled_nanoseconds > 0);
    });
}
