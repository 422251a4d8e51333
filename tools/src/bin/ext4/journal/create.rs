//! `ext4 journal create`: adds a journal to a file system, or replaces the one it has.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use ext4_core::environment::SystemEnvironment;
use ext4_tools::open::{Access, Opener};
use ext4_tools::size::parse_size;
use ext4_writeback::{ExternalJournal, NewJournalOptions, create_journal};

use crate::context::{Context, naming, usage};

const EXAMPLES: &str = "\
Examples:
  ext4 journal create disk.img                                with the default size of mke2fs
  ext4 journal create --size 64M disk.img                     resize the journal
  ext4 journal create --size 64M --fast-commit-size 1M disk.img
  ext4 journal create --external /dev/fast disk.img           all of /dev/fast becomes the journal";

/// Add a journal to a file system that is not mounted, or replace the one it has
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Create {
    /// Image file or block device
    image: PathBuf,
    /// Size of the journal [default: as mke2fs chooses by the file system's size]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "external")]
    size: Option<u64>,
    /// Size of the fast-commit area; sets the feature fast_commit
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    fast_commit_size: Option<u64>,
    /// Make PATH, an image file or block device, the journal; its contents are lost
    #[arg(long, value_name = "PATH")]
    external: Option<PathBuf>,
    /// Discard a journal that needs recovery, and the contents of the external device
    #[arg(short, long)]
    force: bool,
}

impl Create {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let name = |error: ext4_core::Error| naming(&self.image, error.into());
        let device = context.opener.device(&self.image, Access::Write).map_err(name)?;
        let superblock = ext4_core::meta::SuperblockInfo::read_superblock(&*device).await.map_err(name)?;
        let block = u64::from(superblock.block_size.bytes());
        let blocks =
            |size: u64| u32::try_from(size / block).map_err(|_| usage(format!("{size} bytes are too many")));
        let old_journal = context.opener.journal_device_of(&*device, Access::Write).await.map_err(name)?;
        let options = NewJournalOptions::new()
            .blocks(self.size.map(blocks).transpose()?)
            .fast_commit_blocks(self.fast_commit_size.map(blocks).transpose()?.unwrap_or(0))
            .external(self.external.as_deref().map(|path| external(&context.opener, path)).transpose()?)
            .force(self.force);
        create_journal(device, old_journal, &options, Arc::new(SystemEnvironment)).await.map_err(name)
    }
}

/// Opens the device that becomes an external journal.
fn external(opener: &Opener, path: &Path) -> anyhow::Result<ExternalJournal> {
    let device = opener.external_journal(path, Access::Write).with_context(|| path.display().to_string())?;
    let metadata = std::fs::metadata(path).with_context(|| path.display().to_string())?;
    let number = if metadata.file_type().is_block_device() { encoded(metadata.rdev()) } else { 0 };
    Ok(ExternalJournal { device, number })
}

/// A device number as the kernel encodes it in 32 bits (`new_encode_dev`): the low byte of the minor number,
/// twelve bits of the major number, the rest of the minor number.
fn encoded(device: u64) -> u32 {
    let part = |number: u64| u32::try_from(number).unwrap_or(0);
    let (major, minor) = (part(nix::sys::stat::major(device)), part(nix::sys::stat::minor(device)));
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xfff00) << 12
}
