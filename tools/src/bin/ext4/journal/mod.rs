//! `ext4 journal`: adding and removing the journal of a file system, without a mount.

mod create;
mod remove;

use clap::{Args, Subcommand};

use crate::context::Context;

const EXAMPLES: &str = "\
Examples:
  ext4 journal create disk.img            give it a journal, or another one
  ext4 journal remove disk.img            take it away";

/// Make and remove the journal
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Journal {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Create(create::Create),
    Remove(remove::Remove),
}

impl Journal {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self.command {
            Command::Create(command) => command.run(context).await,
            Command::Remove(command) => command.run(context).await,
        }
    }
}
