//! `ext4 df`: shows free space and inodes.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use ext4_tools::open::Access;
use serde::Serialize;

use crate::context::Context;
use crate::output::{print_json, stdout};

const EXAMPLES: &str = "\
Examples:
  ext4 df disk.img
  ext4 df --json /dev/sdx1 | jq .available_bytes";

/// Show free space and inodes
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Df {
    /// Image file or block device
    image: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Space {
    filesystem: String,
    block_size: u32,
    bytes: u64,
    used_bytes: u64,
    free_bytes: u64,
    available_bytes: u64,
    inodes: u64,
    used_inodes: u64,
    free_inodes: u64,
}

impl Df {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let space =
            context.mounted(&self.image, Access::Read, async |filesystem| Ok(filesystem.statfs())).await?;
        let unit = u64::from(space.block_size);
        let space = Space {
            filesystem: self.image.display().to_string(),
            block_size: space.block_size,
            bytes: space.blocks * unit,
            used_bytes: space.blocks.saturating_sub(space.free_blocks) * unit,
            free_bytes: space.free_blocks * unit,
            available_bytes: space.available_blocks * unit,
            inodes: space.inodes,
            used_inodes: space.inodes.saturating_sub(space.free_inodes),
            free_inodes: space.free_inodes,
        };
        if self.json {
            return print_json(&space);
        }
        let mut out = stdout();
        let width = space.filesystem.len().max(10);
        writeln!(
            out,
            "{:<width$} {:>12} {:>12} {:>12} {:>4} {:>10} {:>10} {:>10} {:>5}",
            "Filesystem", "1K-blocks", "Used", "Available", "Use%", "Inodes", "IUsed", "IFree", "IUse%"
        )?;
        writeln!(
            out,
            "{:<width$} {:>12} {:>12} {:>12} {:>3}% {:>10} {:>10} {:>10} {:>4}%",
            space.filesystem,
            space.bytes >> 10,
            space.used_bytes >> 10,
            space.available_bytes >> 10,
            percent(space.used_bytes, space.used_bytes + space.available_bytes),
            space.inodes,
            space.used_inodes,
            space.free_inodes,
            percent(space.used_inodes, space.inodes)
        )?;
        out.flush()?;
        Ok(())
    }
}

/// `part` of `whole` in percent, rounded up as df(1) does.
fn percent(part: u64, whole: u64) -> u64 {
    (part * 100).div_ceil(whole.max(1))
}
