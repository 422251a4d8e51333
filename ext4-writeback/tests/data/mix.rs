//! The operations of the stress tests: every kind of read and change of a file there is, chosen by chance.
//!
//! Every byte that is written is odd, and every byte that was on the device before is even: a reader that
//! sees an even byte other than zero has found bytes that were never written to a file.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::common::*;
use ext4_core::device::AlignedBuffer;
use ext4_core::environment::Runtime;
use ext4_core::{Errno, InodeNumber};
use ext4_writeback::{Credentials, Error, FallocateMode, File, Filesystem, OpenOptions, SyncMode, SyncRange};

const ROOT: InodeNumber = InodeNumber::ROOT;
const MODES: [FallocateMode; 7] = [
    FallocateMode::Allocate,
    FallocateMode::AllocateKeepSize,
    FallocateMode::PunchHole,
    FallocateMode::ZeroRange,
    FallocateMode::ZeroRangeKeepSize,
    FallocateMode::CollapseRange,
    FallocateMode::InsertRange,
];

/// The place and the length of changes.
#[derive(Clone, Copy)]
pub struct Scale {
    /// A change begins below this byte of the file.
    pub span: u64,
    /// A change has so many bytes at most.
    pub most: usize,
    pub block_size: u64,
}

/// One task's part of the stress.
pub struct Mix {
    pub fs: Filesystem,
    pub names: Arc<Vec<String>>,
    pub scale: Scale,
    pub seed: u64,
    pub random: fastrand::Rng,
    /// The runtime of the simulation, or `None` for tokio's.
    pub runtime: Option<Arc<dyn Runtime>>,
}

fn assert_own(bytes: &[u8], what: &str) {
    let strange = bytes.iter().position(|byte| byte & 1 == 0 && *byte != 0);
    assert!(strange.is_none(), "{what}: {:#x} was never written", bytes[strange.unwrap_or(0)]);
}

/// Errors of `kinds` are expected answers, no failures.
fn answered<T>(result: Result<T, Error>, kinds: &[Errno]) -> Result<(), Error> {
    match result {
        Err(error) if !kinds.contains(&error.errno()) => Err(error),
        _ => Ok(()),
    }
}

impl Mix {
    fn name(&mut self) -> String {
        self.names[self.random.usize(0..self.names.len())].clone()
    }

    /// `None` while the file is being replaced.
    async fn open(&mut self, name: &str, options: OpenOptions) -> Option<File> {
        let number = self.fs.lookup(ROOT, name.as_bytes()).await.ok()?;
        self.fs.open_with(number, options).await.ok()
    }

    async fn patience(&self, time: Duration) {
        match &self.runtime {
            Some(runtime) => runtime.sleep(time).await,
            None => tokio::time::sleep(time).await,
        }
    }

    /// Carries out one operation, which `note` is told before. Errors that are an answer to what was asked
    /// are none; those of the device and of its space are.
    pub async fn step(&mut self, note: impl Fn(String)) -> Result<(), Error> {
        let name = self.name();
        let mut options = OpenOptions::default();
        match self.random.u8(0..12) {
            0 => options.sync = SyncMode::Data,
            1 => options.sync = SyncMode::All,
            2 => options.append = true,
            _ => {}
        }
        let Some(file) = self.open(&name, options).await else { return Ok(()) };
        let Scale { span, most, block_size } = self.scale;
        let (offset, len) = (self.random.u64(0..span), self.random.usize(1..most));
        let sector = |at: u64| at & !511;
        let kind = self.random.u8(0..40);
        let seed = self.seed;
        let said = |what: &str| note(format!("{what} of {len} at {offset} of {name}"));
        // An opener that waits for the lock of a file while it is deleted gets an error.
        let gone = Errno::ENOENT;
        match kind {
            0..7 => {
                said("write");
                let at = if options.append { file.len() } else { offset };
                if at > 2 * span {
                    return answered(file.set_len(offset).await, &[gone]);
                }
                answered(file.write_at(at, &pattern(seed, at, len)).await, &[gone])
            }
            7..10 => {
                said("append");
                let at = file.len().min(span);
                answered(file.write_at(at, &pattern(seed, at, len)).await, &[gone])
            }
            10..13 => {
                said("read");
                let mut bytes = vec![0; len];
                let count = file.read_at(offset, &mut bytes).await?;
                assert_own(&bytes[..count], "read");
                Ok(())
            }
            13..15 => {
                said("truncation");
                answered(file.set_len(offset).await, &[gone])
            }
            15..21 => {
                let mode = MODES[self.random.usize(0..MODES.len())];
                said(&format!("fallocate {mode:?}"));
                let (mut at, mut count) = (offset, len as u64);
                if matches!(mode, FallocateMode::CollapseRange | FallocateMode::InsertRange) {
                    (at, count) = (at - at % block_size, (count / 4).next_multiple_of(block_size));
                    if mode == FallocateMode::InsertRange && file.len() > span {
                        return Ok(());
                    }
                }
                // Past the end nothing is collapsed or inserted; files without extents are punched only.
                let answers = [gone, Errno::EINVAL, Errno::EOPNOTSUPP];
                answered(file.fallocate(mode, at, count).await, &answers)
            }
            21..24 => {
                said("direct write");
                let at = sector(offset);
                let data = pattern(seed, at, (len + 511) & !511);
                let buffer = AlignedBuffer::copied(&data)?;
                // An append goes to the end, wherever that is.
                let answers: &[_] = if options.append { &[gone, Errno::EINVAL] } else { &[gone] };
                answered(file.write_direct(at, buffer).await.0, answers)
            }
            24..26 => {
                said("direct read");
                let buffer = AlignedBuffer::zeroed((len + 511) & !511)?;
                let (count, bytes) = file.read_direct(sector(offset), buffer).await;
                assert_own(&bytes[..count?], "direct read");
                Ok(())
            }
            26..29 => {
                said("store");
                let mapped = match file.map_write(offset, len).await {
                    Ok(mapped) => mapped,
                    Err(error) => return answered(Err::<(), _>(error), &[gone, Errno::ENXIO]),
                };
                assert_own(&mapped, "mapped for a store");
                let mut mapped = mapped;
                let at = mapped.offset();
                let count = mapped.len();
                mapped.copy_from_slice(&pattern(seed, at, count));
                if self.random.bool() {
                    self.patience(Duration::from_micros(50)).await;
                }
                if self.random.u8(0..4) == 0 {
                    // Dropped without a commit.
                    return Ok(());
                }
                answered(mapped.commit().await, &[gone])
            }
            29 => {
                said("view");
                match file.map_read(offset, len).await {
                    Ok(view) => {
                        assert_own(&view, "view");
                        let before = view.to_vec();
                        self.patience(Duration::from_micros(50)).await;
                        assert!(*view == before[..], "a view changed");
                        Ok(())
                    }
                    Err(error) => answered(Err::<(), _>(error), &[Errno::ENXIO, Errno::EAGAIN]),
                }
            }
            30..32 => {
                let from = self.name();
                said(&format!("copy from {from}"));
                let Some(source) = self.open(&from, OpenOptions::default()).await else { return Ok(()) };
                let start = self.random.u64(0..span);
                // A range onto itself; a file that is open for appending.
                let answers = [gone, Errno::EINVAL, Errno::EBADF];
                answered(file.copy_file_range(&source, start, offset, len as u64).await, &answers)
            }
            32..34 => {
                let flags = SyncRange::from_bits_truncate(self.random.u32(1..8));
                said(&format!("sync_range {flags:?}"));
                file.sync_file_range(offset, len as u64, flags).await
            }
            34 => {
                said("fdatasync");
                file.sync_data().await
            }
            35 => {
                said("fsync");
                file.sync_all().await
            }
            36 => {
                said("writeback");
                file.start_writeback().await
            }
            37 => {
                said("fsync, given up,");
                let given = Duration::from_micros(self.random.u64(0..300));
                tokio::select! {
                    biased;
                    _ = file.sync_all() => {}
                    () = self.patience(given) => {}
                }
                Ok(())
            }
            38 => {
                said("write, given up,");
                let given = Duration::from_micros(self.random.u64(0..50));
                let data = pattern(seed, offset, len);
                tokio::select! {
                    biased;
                    _ = file.write_at(offset, &data) => {}
                    () = self.patience(given) => {}
                }
                Ok(())
            }
            _ => {
                said("replacement");
                answered(self.fs.unlink(ROOT, name.as_bytes()).await, &[gone])?;
                let owner = Credentials { mode: 0o644, ..Credentials::default() };
                answered(self.fs.create(ROOT, name.as_bytes(), owner).await, &[Errno::EEXIST])
            }
        }
    }
}

/// Seconds without anything begun after which a stress hangs.
const PATIENCE: u32 = 90;

/// Sees to it that a test that hangs ends, and says what every task was doing. The seconds it counts are
/// those in which this process had its turn.
pub struct Watch {
    doing: Mutex<BTreeMap<usize, String>>,
    begun: AtomicU64,
}

impl Watch {
    /// Watches from now on. The future that is returned resolves, with a description, if every task stands
    /// still; if that does not end the test, the process ends.
    pub fn begin() -> (Arc<Self>, tokio::sync::oneshot::Receiver<String>) {
        let watch = Arc::new(Self { doing: Mutex::default(), begun: AtomicU64::new(0) });
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let mut sender = Some(sender);
        let watched = Arc::downgrade(&watch);
        std::thread::spawn(move || {
            let (mut seen, mut still) = (0, 0);
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let Some(watching) = watched.upgrade() else { return };
                let now = watching.begun.load(Ordering::Acquire);
                still = if now == seen { still + 1 } else { 0 };
                seen = now;
                if still == PATIENCE {
                    let said = watching.description();
                    // Not to what the test harness keeps to itself.
                    let _ = writeln!(std::io::stderr(), "{said}");
                    if let Some(sender) = sender.take() {
                        let _ = sender.send(said);
                    }
                }
                if still == 2 * PATIENCE {
                    std::process::abort();
                }
            }
        });
        (watch, receiver)
    }

    /// `task` begins an operation.
    pub fn note(&self, task: usize, what: String) {
        self.doing.lock().expect("no panic").insert(task, what);
        self.begun.fetch_add(1, Ordering::AcqRel);
    }

    /// `task` has no more operations.
    pub fn note_end(&self, task: usize) {
        self.doing.lock().expect("no panic").remove(&task);
        self.begun.fetch_add(1, Ordering::AcqRel);
    }

    /// What every task is doing.
    pub fn description(&self) -> String {
        let doing = self.doing.lock().expect("no panic");
        let lines: Vec<_> = doing.iter().map(|(task, what)| format!("  task {task}: {what}")).collect();
        format!("nothing has begun for {PATIENCE} seconds:\n{}", lines.join("\n"))
    }
}
