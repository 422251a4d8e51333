//! What is measured, in words that every subject can carry out.

use std::path::PathBuf;
use std::time::Duration;

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
    /// What is written is durable at the end.
    pub durable: bool,
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
    /// Processor time of the process that submits, user and system.
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

/// Wall clock and this process's processor time.
#[derive(Debug)]
pub struct Stopwatch {
    start: std::time::Instant,
    cpu: Duration,
}

impl Stopwatch {
    /// Starts.
    #[must_use]
    pub fn start() -> Self {
        Self { cpu: cpu_time(), start: std::time::Instant::now() }
    }

    /// Stops.
    #[must_use]
    pub fn stop(&self) -> Measurement {
        Measurement {
            seconds: self.start.elapsed().as_secs_f64(),
            cpu_seconds: cpu_time().saturating_sub(self.cpu).as_secs_f64(),
            traffic: None,
        }
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
