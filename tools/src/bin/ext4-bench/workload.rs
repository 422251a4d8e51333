//! What is measured, in words that every subject can carry out.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use ext4_tools::mount_options::MountOptionList;
use nix::sys::resource::{UsageWho, getrusage};

/// What is written over.
#[derive(Clone, Debug)]
pub struct Target {
    /// The block device or image file.
    pub device: PathBuf,
    /// How many bytes each workload covers.
    pub size: u64,
    /// How many bytes there are.
    pub available: u64,
    /// How our file system is mounted there.
    pub mount_options: MountOptionList,
}

/// Transfers of one kind.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Its name in the report.
    pub name: String,
    /// Bytes of one transfer.
    pub block_size: u64,
    /// Transfers in flight.
    pub depth: u32,
    /// Writes, or reads.
    pub write: bool,
    /// At random places, or one after the other.
    pub random: bool,
    /// The places lie in the first bytes of the device, so many.
    pub range: u64,
    /// Bytes in all.
    pub bytes: u64,
    /// When what is written is made durable.
    pub fsync: Fsync,
}

/// When a workload makes durable what it wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fsync {
    /// It does not.
    Never,
    /// Once, at the end of all.
    AtTheEnd,
    /// After each transfer.
    Each,
}

impl Target {
    /// Writes over the first `bytes` bytes, so that nobody's first touch of the device's memory is measured.
    ///
    /// # Errors
    /// Those of the device.
    pub fn touch(&self, bytes: u64) -> anyhow::Result<()> {
        let file = std::fs::OpenOptions::new().write(true).open(&self.device).context("open the device")?;
        let zeros = vec![0_u8; 1 << 20];
        for at in (0..bytes).step_by(zeros.len()) {
            file.write_all_at(&zeros, at).context("write over the device")?;
        }
        file.sync_all().context("write over the device")
    }
}

impl Workload {
    /// Transfers in all.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.bytes / self.block_size
    }
}

/// What the report says of a workload, whatever kind it is.
#[derive(Clone, Debug)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// Bytes of one operation.
    pub block_size: u64,
    /// Bytes in all.
    pub bytes: u64,
    /// Operations in all.
    pub operations: u64,
}

impl From<&Workload> for Description {
    fn from(workload: &Workload) -> Self {
        Self {
            name: workload.name.clone(),
            block_size: workload.block_size,
            bytes: workload.bytes,
            operations: workload.operations(),
        }
    }
}

/// What one run took.
#[derive(Clone, Copy, Debug)]
pub struct Measurement {
    /// Wall clock.
    pub seconds: f64,
    /// Processor time of the process that calls, user and system, and of the kernel's own threads.
    pub cpu_seconds: f64,
    /// What the journal cost, where there is one and it tells.
    pub traffic: Option<Traffic>,
}

/// What making things durable cost.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Bytes written to the log and to the fast-commit area.
    pub journal_bytes: f64,
    /// Flushes that the block device carried out.
    pub flushes: f64,
}

/// Wall clock, and the processor time of this process and of the kernel's threads.
#[derive(Debug)]
pub struct Stopwatch {
    start: std::time::Instant,
    cpu: Duration,
    kernel: KernelThreads,
}

impl Stopwatch {
    /// Starts.
    #[must_use]
    pub fn start() -> Self {
        Self { kernel: KernelThreads::now(), cpu: cpu_time(), start: std::time::Instant::now() }
    }

    /// Stops.
    #[must_use]
    pub fn stop(&self) -> Measurement {
        let seconds = self.start.elapsed().as_secs_f64();
        let process = cpu_time().saturating_sub(self.cpu).as_secs_f64();
        Measurement { seconds, cpu_seconds: process + self.kernel.seconds_since(), traffic: None }
    }
}

/// How long each of the kernel's own threads has run: flushers, completion workers, the loop device's, jbd2.
#[derive(Debug)]
pub struct KernelThreads(BTreeMap<i32, u64>);

impl KernelThreads {
    /// Up to now. Threads that cannot be looked at are left out.
    #[must_use]
    pub fn now() -> Self {
        let Ok(processes) = std::fs::read_dir("/proc") else { return Self(BTreeMap::new()) };
        let threads = processes.flatten().filter_map(|process| {
            let number: i32 = process.file_name().to_str()?.parse().ok()?;
            // Kernel threads have no executable and no arguments.
            let arguments = std::fs::read(process.path().join("cmdline")).ok()?;
            if !arguments.is_empty() {
                return None;
            }
            // Nanoseconds on a processor. Source: kernel documentation, "Scheduler Statistics", /proc/<pid>/schedstat.
            let figures = std::fs::read_to_string(process.path().join("schedstat")).ok()?;
            Some((number, figures.split_ascii_whitespace().next()?.parse().ok()?))
        });
        Self(threads.collect())
    }

    /// Seconds of processor time that they took since, those that have begun meanwhile included.
    #[must_use]
    pub fn seconds_since(&self) -> f64 {
        let now = Self::now();
        let nanoseconds: u64 = now
            .0
            .iter()
            .map(|(number, ran)| ran.saturating_sub(self.0.get(number).copied().unwrap_or(0)))
            .sum();
        nanoseconds as f64 / 1e9
    }
}

fn cpu_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    [usage.user_time(), usage.system_time()]
        .map(|time| {
            let part = |value: i64| u64::try_from(value).unwrap_or(0);
            Duration::from_secs(part(time.tv_sec())) + Duration::from_micros(part(time.tv_usec()))
        })
        .iter()
        .sum()
}
