//! `ext4`: makes, fills, reads and changes ext4 file systems in image files and on block devices, without a
//! kernel mount.
//!
//! Each command has a file. This file has what all commands share: the global options, the runtime, printing
//! of errors.
//!
//! Exit code 0: done; 1: failed; 2: wrong usage; 3: done, but damaged parts were left out.
#![forbid(unsafe_code)]

mod cat;
mod context;
mod cp;
mod creation;
mod df;
mod extents;
mod info;
mod journal;
mod json;
mod ln;
mod ls;
mod mkdir;
mod mkfs;
mod mv;
mod output;
mod pack;
mod progress;
mod rm;
mod stat;
mod trim;
mod unpack;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use ext4_tools::mount_options::{self, MountOptionList};
use ext4_tools::open::{Backend, Opener};
use ext4_tools::size::parse_size;

use crate::context::{Context, ExitReason, usage};

const EXAMPLES: &str = "\
Examples:
  ext4 pack rootfs/ disk.img              make an image of the tree rootfs/
  ext4 ls -l disk.img:/etc                list a directory in an image
  ext4 cp motd disk.img:/etc/motd         copy a file into an image
  ext4 cp -r disk.img:/var/log logs       copy a tree out of an image
  ext4 unpack disk.img copy/              copy everything out of an image
  ext4 --offset 1M df whole-disk.img      a partition inside a disk image

A place inside an image or block device is written IMAGE:/path. `ext4 COMMAND --help` has examples.";

/// Makes, fills, reads and changes ext4 file systems in image files and on block devices; no mount, no root.
#[derive(Parser, Debug)]
#[command(name = "ext4", version, after_help = EXAMPLES, max_term_width = 100, disable_help_subcommand = true,
    after_long_help = format!("{EXAMPLES}\n\n{}", mount_options::HELP))]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Debug)]
struct Global {
    /// I/O backend for the target
    #[arg(long, global = true, value_enum, default_value_t = BackendName::Auto,
        help_heading = "Global options")]
    backend: BackendName,
    /// First byte of the file system in the target (K, M, G): a partition inside a disk image
    #[arg(long, global = true, value_name = "BYTES", value_parser = parse_size, default_value = "0",
        help_heading = "Global options")]
    offset: u64,
    /// Memory for the cache of file data and metadata
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_size, default_value = "256M",
        help_heading = "Global options")]
    cache: u64,
    /// Device of the external journal [default: found by its UUID in /dev/disk/by-uuid]
    #[arg(long, global = true, value_name = "PATH", help_heading = "Global options")]
    journal_device: Option<PathBuf>,
    /// Ignore the journal: read the file system without recovery (only for commands that read)
    #[arg(long, global = true, help_heading = "Global options")]
    noload: bool,
    /// Mount options as mount(8) takes them, for commands that mount: `ext4 --help` lists them
    // Not global: clap would drop those before the command if others follow it ([`parse`]).
    #[arg(short = 'o', long = "options", value_name = "OPTIONS", help_heading = "Global options",
        value_parser = MountOptionList::parse)]
    mount_options: Vec<MountOptionList>,
    /// Log to standard error: -v info, -vv debug, -vvv trace
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    verbose: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum BackendName {
    /// io_uring for block devices, ordinary I/O for files
    Auto,
    /// Ordinary I/O
    File,
    /// io_uring with direct I/O
    Uring,
}

impl From<BackendName> for Backend {
    fn from(name: BackendName) -> Self {
        match name {
            BackendName::Auto => Self::Auto,
            BackendName::File => Self::File,
            BackendName::Uring => Self::Uring,
        }
    }
}

#[derive(Subcommand, Debug)]
enum Command {
    Mkfs(mkfs::Mkfs),
    Pack(pack::Pack),
    Unpack(unpack::Unpack),
    Info(info::Info),
    Journal(journal::Journal),
    Ls(ls::Ls),
    Stat(stat::Stat),
    Cat(cat::Cat),
    Cp(cp::Cp),
    Mkdir(mkdir::Mkdir),
    Rm(rm::Rm),
    Mv(mv::Mv),
    Ln(ln::Ln),
    Df(df::Df),
    Extents(extents::Extents),
    Trim(trim::Trim),
}

impl Command {
    /// Returns true if the command does not mount the file system, so that mount options have no effect.
    fn takes_no_mount_options(&self) -> bool {
        matches!(self, Self::Mkfs(_) | Self::Info(_) | Self::Journal(_))
    }

    async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Mkfs(command) => command.run(context).await,
            Self::Pack(command) => command.run(context).await,
            Self::Unpack(command) => command.run(context).await,
            Self::Info(command) => command.run(context).await,
            Self::Journal(command) => command.run(context).await,
            Self::Ls(command) => command.run(context).await,
            Self::Stat(command) => command.run(context).await,
            Self::Cat(command) => command.run(context).await,
            Self::Cp(command) => command.run(context).await,
            Self::Mkdir(command) => command.run(context).await,
            Self::Rm(command) => command.run(context).await,
            Self::Mv(command) => command.run(context).await,
            Self::Ln(command) => command.run(context).await,
            Self::Df(command) => command.run(context).await,
            Self::Extents(command) => command.run(context).await,
            Self::Trim(command) => command.run(context).await,
        }
    }
}

/// Parses the command line. All `-o` options count, before the command and after it: were one dropped, `-o
/// ro` could be lost and the command could write.
fn parse() -> Cli {
    const OPTIONS: &str = "mount_options";
    fn with_options(command: clap::Command, option: &clap::Arg) -> clap::Command {
        command.mut_subcommands(|command| with_options(command.arg(option), option))
    }
    let command = Cli::command();
    let option = command.get_arguments().find(|argument| argument.get_id() == OPTIONS).cloned();
    let matches = option.iter().fold(command, with_options).get_matches();
    let mut parsed = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let mut at = &matches;
    while let Some((_, below)) = at.subcommand() {
        let options = below.get_many::<MountOptionList>(OPTIONS);
        parsed.global.mount_options.extend(options.into_iter().flatten().cloned());
        at = below;
    }
    parsed
}

fn main() -> ExitCode {
    let Cli { global, command } = parse();
    start_tracing(global.verbose);
    let mount_options = MountOptionList::joined(global.mount_options);
    if !mount_options.is_empty() && command.takes_no_mount_options() {
        return fail(&usage("-o: this command does not mount the file system"));
    }
    let cache = usize::try_from(global.cache).unwrap_or(usize::MAX);
    let context = Context {
        opener: Opener {
            backend: global.backend.into(),
            offset: global.offset,
            cache: cache.max(MIN_CACHE),
            journal_device: global.journal_device.or_else(|| mount_options.journal_path()),
            noload: global.noload || mount_options.noload(),
            mount_options,
        },
    };
    let workers = std::thread::available_parallelism().map_or(2, |count| count.get().max(2));
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return fail(&anyhow::Error::new(error).context("cannot start")),
        };
    let result = runtime.block_on(command.run(&context));
    // Does not wait for threads that still read ahead for a copy that failed.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// The smallest cache in bytes: a few of the largest folios and the metadata of a large directory.
const MIN_CACHE: usize = 8 << 20;

fn start_tracing(verbose: u8) {
    let level = match verbose {
        0 => return,
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("EXT4_LOG").unwrap_or_else(|_| level.into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// Prints the error in one line and returns the exit code.
fn fail(error: &anyhow::Error) -> ExitCode {
    if output::is_broken_pipe(error) {
        // The reader of standard output has closed it: that is not an error.
        return ExitCode::SUCCESS;
    }
    let text = format!("{error:#}").replace('\n', " ");
    eprintln!("ext4: {text}");
    error.downcast_ref::<ExitReason>().map_or(ExitCode::FAILURE, |reason| ExitCode::from(reason.code()))
}
