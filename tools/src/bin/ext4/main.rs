//! `ext4`: make, fill, read and change ext4 file systems in image files and on block devices, without mounting them.
//!
//! One file for each command; this one knows what all of them share: the global options, the runtime, how errors are
//! said. Exit code 0: done; 1: failed; 2: wrong usage; 3: done, and something damaged was left out.
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

use crate::context::{Context, Salvaged, Usage, usage};

const EXAMPLES: &str = "\
Examples:
  ext4 pack rootfs/ disk.img              an image that holds the tree rootfs/
  ext4 ls -l disk.img:/etc                what is in it
  ext4 cp motd disk.img:/etc/motd         a file into it
  ext4 cp -r disk.img:/var/log logs       a tree out of it
  ext4 unpack disk.img copy/              everything
  ext4 --offset 1M df whole-disk.img      a partition inside a disk image

A place inside an image or block device is written IMAGE:/path. See `ext4 COMMAND --help` for examples of each.";

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
    /// What drives the target
    #[arg(long, global = true, value_enum, default_value_t = BackendName::Auto, help_heading = "Global options")]
    backend: BackendName,
    /// Where the file system starts in the target, in bytes (K, M, G): a partition inside a disk image
    #[arg(long, global = true, value_name = "BYTES", value_parser = parse_size, default_value = "0",
        help_heading = "Global options")]
    offset: u64,
    /// Memory for file data and metadata
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_size, default_value = "256M",
        help_heading = "Global options")]
    cache: u64,
    /// The device with the journal, where the file system has it on another; otherwise found by its UUID
    #[arg(long, global = true, value_name = "PATH", help_heading = "Global options")]
    journal_device: Option<PathBuf>,
    /// Read the file system as it lies, its journal ignored (only for commands that read)
    #[arg(long, global = true, help_heading = "Global options")]
    noload: bool,
    /// Mount options as mount(8) takes them, for commands that mount: `ext4 --help` lists them
    // Not global: clap would forget those before the command where there are others behind it ([`parse`]).
    #[arg(short = 'o', long = "options", value_name = "OPTIONS", help_heading = "Global options",
        value_parser = MountOptionList::parse)]
    mount_options: Vec<MountOptionList>,
    /// Tell on standard error what is being done; twice for more
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
    /// True for what looks at the device itself: no mount, and nothing that mount options could change.
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

/// What the command line says. `-o` may stand before a command and behind it, and all of them count: one that says `ro` is
/// not to be lost to another.
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
    // Threads that still read ahead for a copy that failed are not waited for.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// The least cache that makes sense: a few of the largest folios and the metadata of a large directory.
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

/// Says the error in one line and chooses the exit code.
fn fail(error: &anyhow::Error) -> ExitCode {
    if output::is_broken_pipe(error) {
        // Whoever read our output has seen enough.
        return ExitCode::SUCCESS;
    }
    let text = format!("{error:#}").replace('\n', " ");
    eprintln!("ext4: {text}");
    if error.downcast_ref::<Usage>().is_some() {
        ExitCode::from(2)
    } else if error.downcast_ref::<Salvaged>().is_some() {
        ExitCode::from(3)
    } else {
        ExitCode::FAILURE
    }
}
