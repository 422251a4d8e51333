//! `ext4 mkfs`: makes an empty file system.

use std::path::PathBuf;

use clap::Args;
use ext4_tools::open::{TargetKind, target_kind};
use ext4_tools::size::{human_size, parse_size};
use ext4_writeback::mkfs;

use crate::context::{Context, interruptible, naming, usage};
use crate::creation::{Creation, Destination, check_size};
use crate::output::print_line;

const EXAMPLES: &str = "\
Examples:
  ext4 mkfs disk.img 1G                       an image of 1 GiB
  ext4 mkfs -b 1024 -L boot boot.img 64M
  ext4 mkfs -O ^has_journal scratch.img 10G
  ext4 mkfs /dev/sdx1                         all of a block device
  ext4 --offset 1M mkfs whole-disk.img 512M   a partition inside a disk image

An image file gets its name when it is complete. A device that holds a file system or another known format is
refused without --force.";

/// Make an empty file system
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Mkfs {
    /// Image file or block device
    target: PathBuf,
    /// Size of the file system [default: all of an existing image or device]
    #[arg(value_parser = parse_size)]
    size: Option<u64>,
    #[command(flatten)]
    creation: Creation,
}

impl Mkfs {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut options = self.creation.mkfs_options()?;
        let (environment, _) = self.creation.environment()?;
        let destination = Destination::choose(context, &self.target, self.creation.force).await?;
        let kind = target_kind(&self.target)?;
        if matches!((&destination, kind), (Destination::Image(_), TargetKind::File(_)))
            && !self.creation.force
            && context.opener.superblock(&self.target).await.is_ok()
        {
            anyhow::bail!(
                "{} holds an ext4 file system (use --force to write over it)",
                self.target.display()
            );
        }
        let size = match (self.size, destination.limit(), kind) {
            (Some(size), Some(limit), _) if size > limit => {
                anyhow::bail!("{}: has only {limit} bytes, not {size}", self.target.display());
            }
            (Some(size), ..) => size,
            (None, Some(limit), _) => limit,
            (None, None, TargetKind::File(size)) => size,
            (None, None, _) => {
                return Err(usage(format!("{}: give a SIZE for a new image", self.target.display())));
            }
        };
        check_size(size, options.block_size)?;
        // The size of the log in blocks depends on the block size: the default one, if none is given.
        let block_size = options.block_size.unwrap_or(ext4_core::types::BlockSize::KIB_4);
        options.journal_blocks = self.creation.journal_blocks(block_size)?;
        if options.journal_blocks.is_some() {
            options.block_size = Some(block_size);
        }
        if destination.limit().is_some() {
            let unit = u64::from(options.block_size.map_or(4096, ext4_core::BlockSize::bytes));
            options.blocks_count = self.size.map(|size| size / unit);
            if options.blocks_count.is_some() {
                options.block_size = options.block_size.or(Some(ext4_core::BlockSize::KIB_4));
            }
        }
        interruptible(async {
            let (device, temporary) = destination.open(&context.opener, size)?;
            mkfs(device, &options, &*environment)
                .await
                .map_err(|error| naming(&self.target, error.into()))?;
            if let Some(temporary) = temporary {
                temporary.persist()?;
            }
            Ok(())
        })
        .await?;
        print_line(&format!("{}: ext4 file system of {}", self.target.display(), human_size(size)))
    }
}
