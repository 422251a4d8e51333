//! `ext4-bench`: benchmarks, side by side in one run: our stack, the raw device (by fio, the limit) and the
//! kernel's ext4 (the alternative). The figures of one machine on one day mean little; the ratios are the
//! claim.
//!
//! | file | holds |
//! |---|---|
//! | `guard.rs` | the check that the device may be overwritten |
//! | `session.rs` | the target and the choice of workloads, for all suites |
//! | `workload.rs` | workloads, clocks, measurements |
//! | `backend.rs` | suite `backend`: the devices alone |
//! | `data/` | suite `data`: reads and writes of a file |
//! | `journal.rs` | suite `journal`: commits of small changes |
//! | `ours.rs` | our file system |
//! | `kernel.rs` | the kernel's ext4 |
//! | `fio.rs` | fio, on the raw device and on the kernel's ext4 |
//! | `report.rs` | rounds, medians, ratios, table and JSON |
#![forbid(unsafe_code)]

mod backend;
mod data;
mod fio;
mod guard;
mod journal;
mod kernel;
mod ours;
mod report;
mod session;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use ext4_tools::mount_options::MountOptionList;
use ext4_tools::size::parse_size;

use crate::report::Report;
use crate::session::{Session, Target};

const EXAMPLES: &str = "\
Examples:
  ext4-bench run --suite backend --device /dev/nvme1n1     each backend, and fio
  ext4-bench run --suite data --device /dev/loop7 --json   our stack, the kernel's ext4, and fio
  ext4-bench run --suite data --device /dev/loop7 --only write-fsync --size 256M
  ext4-bench run --suite data --device /dev/loop7 -o alloc=publish
  ext4-bench run --suite journal --device /dev/loop7       appends with fsync, and creating many files

The device is overwritten. A device that holds a file system or a partition table is refused without --force,
a mounted device always. Needs fio (Debian: apt install fio); the kernel's ext4 is measured if run as root.";

/// Measures the backends and the whole stack, beside the raw device and the kernel's ext4.
#[derive(Parser, Debug)]
#[command(name = "ext4-bench", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a suite
    #[command(after_help = EXAMPLES)]
    Run(RunArguments),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Suite {
    /// The devices alone: sequential and random transfers through each backend
    Backend,
    /// The whole stack: writing a file, cached and durable
    Data,
    /// The journal: appends with fsync by 1 to 64 tasks, and creating many files
    Journal,
}

#[derive(Args, Debug)]
struct RunArguments {
    /// The suite to run
    #[arg(long, value_enum)]
    suite: Suite,
    /// The block device or image file, which is overwritten
    #[arg(long, value_name = "DEV")]
    device: PathBuf,
    /// Bytes that each workload covers
    #[arg(long, value_name = "BYTES", value_parser = parse_size, default_value = "1G")]
    size: u64,
    /// Number of rounds; the report shows the median
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only workloads whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Mount options for our file system (suites data and journal); `ext4 --help` lists them
    #[arg(short = 'o', long = "options", value_name = "OPTIONS", value_parser = MountOptionList::parse)]
    mount_options: Vec<MountOptionList>,
    /// A list of JSON objects instead of a table
    #[arg(long)]
    json: bool,
    /// Overwrite a file system or partition table
    #[arg(long)]
    force: bool,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let Command::Run(arguments) = Cli::parse().command;
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ext4-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &RunArguments) -> anyhow::Result<()> {
    if arguments.suite != Suite::Journal {
        fio::check()?;
    }
    let available = guard::check(&arguments.device, arguments.force)?;
    let unit = 4 << 20;
    let size = arguments.size.min(available) / unit * unit;
    anyhow::ensure!(size >= unit, "{} holds less than 4 MiB", arguments.device.display());
    let mount_options = MountOptionList::joined(arguments.mount_options.clone());
    anyhow::ensure!(
        arguments.suite != Suite::Backend || mount_options.is_empty(),
        "-o: the suite backend mounts nothing"
    );
    anyhow::ensure!(
        !mount_options.read_only() && !mount_options.noload(),
        "-o: the suites write: ro and noload do not fit"
    );
    let target = Target { device: arguments.device.clone(), size, available, mount_options };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let session = Session { runtime, target, rounds: arguments.rounds, only: arguments.only.clone() };
    let mut report = Report::new(!arguments.json);
    match arguments.suite {
        Suite::Backend => backend::run(&session, &mut report)?,
        Suite::Data => data::run(&session, &mut report)?,
        Suite::Journal => journal::run(&session, &mut report)?,
    }
    report.print(arguments.json)
}
