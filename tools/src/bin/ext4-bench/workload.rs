//! Workloads that every subject can carry out, and the measurement of time and traffic.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};

/// A workload of transfers of one kind.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The name in the report.
    pub name: String,
    /// Bytes of one transfer.
    pub block_size: u64,
    /// Transfers in flight.
    pub depth: u32,
    /// True for writes, false for reads.
    pub write: bool,
    /// True for random offsets, false for ascending ones.
    pub random: bool,
    /// Size in bytes of the range of the transfers, which begins at byte 0.
    pub range: u64,
    /// Total bytes of all transfers.
    pub bytes: u64,
    /// When written data is made durable.
    pub fsync: Fsync,
}

/// When a workload makes its data durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fsync {
    /// Never.
    Never,
    /// Once, after the last transfer.
    AtTheEnd,
    /// After each transfer.
    Each,
}

impl Workload {
    /// The number of transfers.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.bytes / self.block_size
    }
}

/// The description of a workload of any kind, for the report.
#[derive(Clone, Debug)]
pub struct Description {
    /// The name.
    pub name: String,
    /// Bytes of one operation.
    pub block_size: u64,
    /// Total bytes.
    pub bytes: u64,
    /// Number of operations.
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

/// The result of one run.
#[derive(Clone, Copy, Debug)]
pub struct Measurement {
    /// Wall-clock time in seconds.
    pub seconds: f64,
    /// Processor time in seconds: of the calling process, user and system, and of the kernel's own threads.
    pub cpu_seconds: f64,
    /// The traffic of the journal, if it is known.
    pub traffic: Option<Traffic>,
}

/// The traffic that makes data durable.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Bytes written to the log and to the fast-commit area.
    pub journal_bytes: f64,
    /// Flushes that the block device carried out.
    pub flushes: f64,
}

/// A clock of wall-clock time, and of the processor time of this process and of the kernel's threads.
#[derive(Debug)]
pub struct Stopwatch {
    start: std::time::Instant,
    cpu: Duration,
    kernel: KernelThreads,
}

impl Stopwatch {
    /// Starts the clock.
    #[must_use]
    pub fn start() -> Self {
        Self { kernel: KernelThreads::now(), cpu: cpu_time(), start: std::time::Instant::now() }
    }

    /// Returns the times since the start.
    #[must_use]
    pub fn stop(&self) -> Measurement {
        let seconds = self.start.elapsed().as_secs_f64();
        let process = cpu_time().saturating_sub(self.cpu).as_secs_f64();
        Measurement { seconds, cpu_seconds: process + self.kernel.seconds_since(), traffic: None }
    }
}

/// Processor time in nanoseconds of each of the kernel's own threads: flushers, completion workers, loop
/// devices, jbd2.
#[derive(Debug)]
pub struct KernelThreads(BTreeMap<i32, u64>);

impl KernelThreads {
    /// The times up to now. Threads whose times cannot be read are left out.
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
            // Source: kernel documentation, "Scheduler Statistics", /proc/<pid>/schedstat.
            let figures = std::fs::read_to_string(process.path().join("schedstat")).ok()?;
            Some((number, figures.split_ascii_whitespace().next()?.parse().ok()?))
        });
        Self(threads.collect())
    }

    /// Seconds of processor time since then, including threads that have started since.
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
