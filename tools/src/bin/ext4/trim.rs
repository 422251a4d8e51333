//! `ext4 trim`: discards the free blocks (FITRIM).

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
  ext4 trim disk.img                      free blocks take no space on the host any more
  ext4 trim --minimum 1M /dev/sdb1        only runs of free blocks of 1 MiB and more
  ext4 trim --from 1G --length 1G disk.img";

/// Discard the free blocks: an image file becomes sparse, a drive can reuse them
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Trim {
    /// Image file or block device
    image: PathBuf,
    /// First byte of the range (K, M, G)
    #[arg(long, value_name = "BYTES", value_parser = parse_size, default_value = "0")]
    from: u64,
    /// Length of the range [default: to the end of the file system]
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    length: Option<u64>,
    /// Do not discard shorter runs of free blocks
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
