//! `ext4 journal remove`: removes the journal of a file system.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use ext4_core::environment::SystemEnvironment;
use ext4_tools::open::Access;
use ext4_writeback::remove_journal;

use crate::context::{Context, naming};

const EXAMPLES: &str = "\
Examples:
  ext4 journal remove disk.img
  ext4 --journal-device /dev/fast journal remove disk.img     also from the device's list of users";

/// Remove the journal of a file system that is not mounted
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Remove {
    /// Image file or block device
    image: PathBuf,
    /// Also if the journal needs recovery: its transactions are lost
    #[arg(short, long)]
    force: bool,
}

impl Remove {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let name = |error: ext4_core::Error| naming(&self.image, error.into());
        let device = context.opener.device(&self.image, Access::Write).map_err(name)?;
        let journal = context.opener.journal_device_of(&*device, Access::Write).await.map_err(name)?;
        remove_journal(device, journal, self.force, Arc::new(SystemEnvironment)).await.map_err(name)
    }
}
