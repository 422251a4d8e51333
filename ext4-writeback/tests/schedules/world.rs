//! One schedule: tasks, a flusher that is awake, a recording device that reorders, and power cuts.

use std::fmt::Write as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ext4_core::InodeNumber;
use ext4_core::device::simulated::{DelayedDevice, Image, Recording, RecordingDevice};
use ext4_core::device::{BlockDevice, MemoryDevice};
use ext4_core::environment::{Runtime, Simulation};
use ext4_core::format::superblock::Superblock;
use ext4_writeback::{
    Allocation, Credentials, Error, File, Filesystem, MountOptions, RenameFlags, SyncRange,
};

use super::history::{Action, Expectation, FIRST_BYTE, History, Op};

const ROOT: InodeNumber = InodeNumber::ROOT;
/// How long the files are at first, in bytes: empty, in the middle of a block, and a few blocks.
const FIRST_LENGTHS: [u64; 3] = [0, 2_500, 9_000];
/// Writes begin below this byte.
const SPAN: u64 = 14_000;
/// What lies on the device before the file system is made.
const STALE: u8 = 0xaa;
/// Cuts of each schedule.
const CUTS: usize = 3;
/// One recovered state in so many is given to e2fsck.
const JUDGED_BY_E2FSCK: u64 = 97;

/// What a schedule is like.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    tasks: usize,
    steps: usize,
    files: usize,
    published: bool,
    delayed_allocation: bool,
    /// Bytes of dirty data at which the flusher begins: it is awake all the time.
    background: usize,
}

impl Weather {
    /// As `seed` says.
    pub fn of(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed ^ 0x3a7e);
        Self {
            tasks: random.usize(3..=8),
            steps: random.usize(2..=7),
            files: random.usize(1..=FIRST_LENGTHS.len()),
            published: random.u8(0..5) == 0,
            delayed_allocation: random.u8(0..6) != 0,
            background: 1024 << random.u8(0..5),
        }
    }
}

/// A file after recovery: its bytes, and the numbers of the names it has.
type Found = (Vec<u8>, Vec<u64>);

/// The image that every schedule begins with, and the inodes of its files.
pub struct World {
    image: Image,
    inodes: Vec<InodeNumber>,
}

fn name(file: usize, number: u64) -> Vec<u8> {
    format!("file{file}.{number}").into_bytes()
}

fn made_by_mke2fs() -> Option<Image> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), vec![STALE; 4 << 20]).expect("room");
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-b", "1024", "-m", "0", "-J", "size=1", "-N", "32"])
        .args(["-E", "nodiscard,lazy_itable_init=0"])
        .arg(file.path())
        .output();
    let Ok(output) = output else {
        assert!(std::env::var_os("CI").is_none(), "CI lacks e2fsprogs");
        eprintln!("skipped: there is no mkfs.ext4");
        return None;
    };
    assert!(output.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&output.stderr));
    Some(Image::from_file(file.path()).expect("the image"))
}

fn assert_clean(image: &Image, seed: u64) {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    image.to_file(file.path()).expect("room");
    let output = Command::new("e2fsck").arg("-fn").arg(file.path()).output().expect("e2fsck runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "SEED={seed}: e2fsck -fn: {said}");
}

fn simulated(world: &Simulation) -> MountOptions {
    MountOptions::new().runtime(Some(world.runtime())).environment(world.environment()).cache(1 << 20)
}

impl World {
    /// `None` without mke2fs, outside CI.
    pub fn new() -> Option<Self> {
        let memory = Arc::new(MemoryDevice::from_image(made_by_mke2fs()?));
        let world = Simulation::new(1);
        let (device, options) = (Arc::clone(&memory) as Arc<dyn BlockDevice>, simulated(&world));
        let inodes = world.run(async move {
            let fs = Filesystem::mount(device, options).await.expect("mounts");
            let mut inodes = Vec::new();
            for (i, len) in FIRST_LENGTHS.into_iter().enumerate() {
                let owner = Credentials { mode: 0o644, ..Credentials::default() };
                let number = fs.create(ROOT, &name(i, 0), owner).await.expect("creates");
                let file = fs.open(number).await.expect("opens");
                file.write_at(0, &vec![FIRST_BYTE; len as usize]).await.expect("writes");
                inodes.push(number);
            }
            fs.unmount().await.expect("unmounts");
            inodes
        });
        Some(Self { image: memory.image(), inodes: inodes.expect("it ends") })
    }

    /// One schedule with its cuts: how many were judged, or what was found.
    pub fn run(&self, seed: u64, weather: Weather) -> Result<u64, String> {
        let history = History::new();
        let recording = self.record(seed, weather, &history)?;
        let ops = history.ops();
        let start = recording.position_of("start").expect("it was mounted");
        let mut random = fastrand::Rng::with_seed(seed ^ 0xc07);
        let mut judged = 0;
        for cut in 0..CUTS {
            let position = random.usize(start..=recording.events().len());
            let image = match (cut, recording.cut_at(position)) {
                (0, cut) => cut.with_all(),
                (1, cut) => cut.with_none(),
                (_, cut) => cut.variant(seed),
            };
            let mut superblock = [0; 1024];
            image.read(1024, &mut superblock);
            if Superblock::parse(&superblock).is_err() {
                // Torn: two sectors, and the kernel's is no other.
                continue;
            }
            judged += 1;
            let found = self.recover(image, seed)?;
            self.judge(&ops, position, weather, &found).map_err(|violation| {
                format!(
                    "{weather:?}, cut {cut} after {position} events: {violation}\n{}",
                    report(&ops, position)
                )
            })?;
        }
        Ok(judged)
    }

    fn record(&self, seed: u64, weather: Weather, history: &Arc<History>) -> Result<Recording, String> {
        let world = Simulation::new(seed);
        let memory: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_image(self.image.clone()));
        let latency = Duration::from_micros(100);
        let delayed = Arc::new(DelayedDevice::new(memory, world.runtime(), latency, seed));
        let device = Arc::new(RecordingDevice::around(delayed, self.image.clone()));
        let options = simulated(&world)
            .allocation(if weather.published { Allocation::Publish } else { Allocation::Unwritten })
            .delayed_allocation(weather.delayed_allocation)
            .dirty_background_bytes(Some(weather.background))
            .writeback_interval(Duration::from_millis(2))
            .dirty_expiry(Duration::from_millis(3))
            .commit_interval(Some(Duration::from_millis(20)));
        let (recorded, tasks, history) = (Arc::clone(&device), world.clone(), Arc::clone(history));
        let inodes = self.inodes.clone();
        let ended = world.run_for(1_000_000, async move {
            let fs = Filesystem::mount(Arc::clone(&recorded) as _, options).await.expect("mounts");
            recorded.mark("start");
            let mut all = Vec::new();
            for number in 0..weather.tasks {
                let mut task = Task {
                    number,
                    fs: fs.clone(),
                    device: Arc::clone(&recorded),
                    history: Arc::clone(&history),
                    runtime: tasks.runtime(),
                    random: fastrand::Rng::with_seed(seed ^ (number as u64 + 1) << 32),
                    files: Vec::new(),
                    names: vec![0; weather.files],
                };
                let inodes = inodes[..weather.files].to_vec();
                all.push(tasks.spawn(&format!("task {number}"), async move {
                    for inode in inodes {
                        task.files.push(task.fs.open(inode).await?);
                    }
                    for _ in 0..weather.steps {
                        task.step().await?;
                    }
                    Ok::<(), Error>(())
                }));
            }
            for task in all {
                task.await.expect("no panic")?;
            }
            // Dropped as in a crash.
            Ok::<(), Error>(())
        });
        match ended {
            Ok(Ok(())) => Ok(device.recording()),
            Ok(Err(error)) => Err(format!("{weather:?}: {error}")),
            Err(stuck) => Err(format!("{weather:?}: {stuck}")),
        }
    }

    /// What each file holds after recovery, and under which of its names it is.
    fn recover(&self, image: Image, seed: u64) -> Result<Vec<Found>, String> {
        let world = Simulation::new(seed);
        let memory = Arc::new(MemoryDevice::from_image(image));
        let options = simulated(&world).commit_interval(None);
        let (device, inodes) = (Arc::clone(&memory) as Arc<dyn BlockDevice>, self.inodes.clone());
        let judged = seed.is_multiple_of(JUDGED_BY_E2FSCK);
        let found = world.run(async move {
            let fs = Filesystem::mount(device, options).await?;
            let mut found = Vec::new();
            for (i, inode) in inodes.into_iter().enumerate() {
                let file = fs.open(inode).await?;
                let mut bytes = vec![0; file.len() as usize];
                let count = file.read_at(0, &mut bytes).await?;
                bytes.truncate(count);
                let mut names = Vec::new();
                for number in 0..16 {
                    if fs.lookup(ROOT, &name(i, number)).await.is_ok_and(|found| found == inode) {
                        names.push(number);
                    }
                }
                found.push((bytes, names));
            }
            if judged {
                fs.unmount().await?;
            }
            Ok::<_, Error>(found)
        });
        let found =
            found.map_err(|stuck| format!("recovery: {stuck}"))?.map_err(|e| format!("recovery: {e}"))?;
        if judged {
            assert_clean(&memory.image(), seed);
        }
        Ok(found)
    }

    fn judge(&self, ops: &[Op], events: usize, weather: Weather, found: &[Found]) -> Result<(), String> {
        for (file, (bytes, names)) in found.iter().enumerate().take(weather.files) {
            let expected = Expectation::at(ops, file, FIRST_LENGTHS[file], events);
            expected.check(bytes).map_err(|violation| format!("file {file}: {violation}"))?;
            let allowed = expected.names();
            if names.len() != 1 || !allowed.contains(&names[0]) {
                return Err(format!("file {file}: it has the names {names:?}, not one of {allowed:?}"));
            }
        }
        Ok(())
    }
}

/// The calls up to a cut.
fn report(ops: &[Op], events: usize) -> String {
    let mut lines = String::new();
    for op in ops.iter().filter(|op| op.from_event <= events) {
        let _ = writeln!(
            lines,
            "  {:3}..{:<4} events {:4}..{:<5} task {} file {:?}: {:x?}",
            op.began,
            op.ended.map_or("?".into(), |ended| ended.to_string()),
            op.from_event,
            op.to_event.map_or("?".into(), |event| event.to_string()),
            op.task,
            op.file,
            op.action
        );
    }
    lines
}

struct Task {
    number: usize,
    fs: Filesystem,
    device: Arc<RecordingDevice>,
    history: Arc<History>,
    runtime: Arc<dyn Runtime>,
    random: fastrand::Rng,
    files: Vec<File>,
    /// Under which names the files are; only the first task renames.
    names: Vec<u64>,
}

impl Task {
    async fn noted<T>(
        &self,
        file: Option<usize>,
        action: Action,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let op = self.history.begin(self.number, file, action, self.device.position());
        let result = call.await;
        self.history.end(op, self.device.position());
        result
    }

    async fn step(&mut self) -> Result<(), Error> {
        let file = self.random.usize(0..self.files.len());
        let of = Some(file);
        let len = self.files[file].len();
        let offset = match self.random.u8(0..3) {
            0 => len.min(SPAN),
            1 => self.random.u64(0..SPAN),
            _ => self.random.u64(0..=len.min(SPAN)),
        };
        let count = if self.random.bool() { self.random.u64(1..700) } else { self.random.u64(1..5_000) };
        match self.random.u8(0..24) {
            0..9 => {
                let byte = self.history.byte();
                let write = Action::Write { range: offset..offset + count, byte };
                let data = vec![byte; count as usize];
                let handle = &self.files[file];
                let call = async {
                    let mut done = 0;
                    while done < data.len() {
                        done += handle.write_at(offset + done as u64, &data[done..]).await?;
                    }
                    Ok(())
                };
                self.noted(of, write, call).await
            }
            9..12 => {
                let size = if self.random.bool() { offset } else { self.random.u64(0..SPAN) };
                self.noted(of, Action::SetLen(size), self.files[file].set_len(size)).await
            }
            12..14 => self.noted(of, Action::Sync, self.files[file].sync_all()).await,
            14 => self.noted(of, Action::Sync, self.files[file].sync_data()).await,
            15..18 => self.noted(None, Action::Sync, self.fs.sync()).await,
            18 => {
                let flags = SyncRange::from_bits_truncate(self.random.u32(1..8));
                self.files[file].sync_file_range(offset, count, flags).await
            }
            19 => self.files[file].start_writeback().await,
            20 if self.number == 0 => {
                let (old, new) = (self.names[file], (self.names[file] + 1) % 16);
                self.names[file] = new;
                let (from, to) = (name(file, old), name(file, new));
                let call = self.fs.rename((ROOT, &from), (ROOT, &to), RenameFlags::default());
                self.noted(of, Action::Rename(new), call).await
            }
            _ => {
                let patience = Duration::from_micros(self.random.u64(1..4_000));
                self.runtime.sleep(patience).await;
                Ok(())
            }
        }
    }
}
