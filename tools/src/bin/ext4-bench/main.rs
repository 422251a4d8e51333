//! `ext4-bench`: speed, side by side in one run: ours, the raw device (fio, the limit), the kernel's ext4 (what a user
//! would take instead). The figures of one machine on one day mean little; the ratios are the claim.
//!
//! | file | holds |
//! |---|---|
//! | `guard.rs` | refusing to write over what is in use |
//! | `workload.rs` | what is measured |
//! | `backend.rs` | suite `backend`: the devices alone |
//! | `data.rs` | suite `data`: the whole stack |
//! | `journal.rs` | suite `journal`: small things made durable |
//! | `ours.rs` | our file system |
//! | `kernel.rs` | the kernel's ext4 |
//! | `fio.rs` | the yardstick |
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
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use ext4_tools::mount_options::MountOptionList;
use ext4_tools::size::parse_size;

use crate::report::Report;

const EXAMPLES: &str = "\
Examples:
  ext4-bench run --suite backend --device /dev/nvme1n1          the device through each backend, beside fio
  ext4-bench run --suite data --device /dev/loop7 --json        the whole stack, beside the kernel's ext4 and fio
  ext4-bench run --suite data --device /dev/loop7 --only write-fsync --size 256M
  ext4-bench run --suite data --device /dev/loop7 -o alloc=publish
  ext4-bench run --suite journal --device /dev/loop7            fsync after each append, and creating many files

The device is written over. One that holds a file system or a partition table is refused without --force, one that is
mounted always. fio (Debian: apt install fio) is the yardstick; the kernel's ext4 is measured when run as root.";

/// Measures the backends and the whole stack against the raw device and the kernel's ext4.
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
    /// The journal: appends with fsync by 1 to 64 tasks, creating many files
    Journal,
}

#[derive(Args, Debug)]
struct RunArguments {
    /// What is measured
    #[arg(long, value_enum)]
    suite: Suite,
    /// The block device or image file, which is written over
    #[arg(long, value_name = "DEV")]
    device: PathBuf,
    /// How many bytes each workload covers
    #[arg(long, value_name = "BYTES", value_parser = parse_size, default_value = "1G")]
    size: u64,
    /// How often everything is measured; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only workloads whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Mount options of our side, as mount(8) takes them (suites data and journal); `ext4 --help` lists them
    #[arg(short = 'o', long = "options", value_name = "OPTIONS", value_parser = MountOptionList::parse)]
    mount_options: Vec<MountOptionList>,
    /// A list of JSON objects instead of a table
    #[arg(long)]
    json: bool,
    /// Write over a file system or partition table
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
    anyhow::ensure!(!mount_options.read_only() && !mount_options.noload(), "-o: what is measured is written");
    let target = workload::Target { device: arguments.device.clone(), size, available, mount_options };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let only = |name: &str| arguments.only.as_ref().is_none_or(|text| name.contains(text.as_str()));
    let mut report = Report::new(!arguments.json);
    match arguments.suite {
        Suite::Backend => backend::run(&runtime, &target, arguments.rounds, &only, &mut report)?,
        Suite::Data => data::run(&runtime, &target, arguments.rounds, &only, &mut report)?,
        Suite::Journal => journal::run(&runtime, &target, arguments.rounds, &only, &mut report)?,
    }
    report.print(arguments.json)
}
