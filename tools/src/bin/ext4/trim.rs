//! `ext4 trim`: tell the device which blocks are free.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use ext4_tools::open::Access;
use ext4_tools::size::parse_size;
use serde::Serialize;

use crate::context::Context;
use crate::output::{print_json, stdout};

const EXAMPLES: &str = "\
Examples:
  ext4 trim disk.img                      an image file takes no more room than what is in it
  ext4 trim --minimum 1M /dev/sdb1        only longer runs of free blocks
  ext4 trim --from 1G --length 1G disk.img";

/// Discard the free blocks: an image file becomes sparse there, a drive need not keep them
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Trim {
    /// Image file or block device
    image: PathBuf,
    /// Where in the file system to begin, in bytes (K, M, G)
    #[arg(long, value_name = "BYTES", value_parser = parse_size, default_value = "0")]
    from: u64,
    /// How much of the file system to look at; otherwise all of the rest
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    length: Option<u64>,
    /// Leave shorter runs of free blocks alone
    #[arg(long, value_name = "BYTES", value_parser = parse_size, default_value = "0")]
    minimum: u64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    filesystem: String,
    trimmed_bytes: u64,
}

impl Trim {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let end = self.length.map_or(u64::MAX, |length| self.from.saturating_add(length));
        let trimmed_bytes = context
            .mounted(&self.image, Access::Write, async |filesystem| {
                Ok(filesystem.trim(self.from..end, self.minimum).await?)
            })
            .await?;
        let report = Report { filesystem: self.image.display().to_string(), trimmed_bytes };
        if self.json {
            return print_json(&report);
        }
        let mut out = stdout();
        writeln!(out, "{}: {trimmed_bytes} bytes were trimmed", report.filesystem)?;
        out.flush()?;
        Ok(())
    }
}
