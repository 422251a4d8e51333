//! `ext4 journal`: shows, replays, makes and removes the journal of a file system that is not mounted.

mod create;
mod dump;
mod remove;
mod replay;
mod stat;

use clap::{Args, Subcommand};

use crate::context::Context;

const EXAMPLES: &str = "\
Examples:
  ext4 journal stat disk.img              size and state of the log
  ext4 journal dump disk.img              every transaction in the log
  ext4 journal replay --check disk.img    what a replay would do
  ext4 journal replay disk.img            replay the log
  ext4 journal create disk.img            add a journal, or replace it
  ext4 journal remove disk.img            remove the journal";

/// Show, check, replay, make and remove the journal
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Journal {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Dump(dump::Dump),
    Stat(stat::Stat),
    Replay(replay::Replay),
    Create(create::Create),
    Remove(remove::Remove),
}

impl Journal {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self.command {
            Command::Dump(command) => command.run(context).await,
            Command::Stat(command) => command.run(context).await,
            Command::Replay(command) => command.run(context).await,
            Command::Create(command) => command.run(context).await,
            Command::Remove(command) => command.run(context).await,
        }
    }
}
