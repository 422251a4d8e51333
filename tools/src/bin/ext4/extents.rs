//! `ext4 extents`: shows the extents of a file.

use std::io::Write;

use clap::Args;
use ext4_core::format::inode::FileType;
use ext4_core::meta::extent_tree::MappingState;
use ext4_core::{Errno, Error};
use ext4_tools::display::escaped;
use ext4_tools::open::Access;
use ext4_tools::target::ImagePath;
use serde::Serialize;

use crate::context::{Context, image_path};
use crate::json::Inline;
use crate::output::{print_json, stdout};

const EXAMPLES: &str = "\
Examples:
  ext4 extents disk.img:/var/log/syslog
  ext4 extents --json disk.img:/swapfile | jq '.extents | length'";

/// Show the extents of a file, or its inline data
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Extents {
    /// A file in an image
    #[arg(value_name = "IMAGE:/PATH", value_parser = image_path())]
    place: ImagePath,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    flags: Vec<&'static str>,
}

#[derive(Serialize)]
struct Report {
    size: u64,
    block_size: u32,
    extents: Vec<Extent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inline: Option<Inline>,
}

impl Extents {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let report = context
            .mounted(&self.place.image, Access::Read, async |filesystem| {
                let inode = filesystem.resolve(&self.place.path, true).await?;
                if filesystem.attributes(inode).await?.file_type != FileType::Regular {
                    return Err(
                        Error::posix(Errno::EINVAL, format!("{}: not a regular file", self.place)).into()
                    );
                }
                let file = filesystem.open(inode).await?;
                let mappings = file.extents().await?;
                let block_size = filesystem.statfs().block_size;
                let blocks = file.len().div_ceil(block_size.into());
                let extents = mappings.iter().filter_map(|mapping| {
                    let (physical, unwritten) = match mapping.state {
                        MappingState::Hole => return None,
                        MappingState::Written(block) => (block, false),
                        MappingState::Unwritten(block) => (block, true),
                    };
                    let (logical, length) = (u64::from(mapping.logical), u64::from(mapping.len));
                    let mut flags = Vec::new();
                    if unwritten {
                        flags.push("unwritten");
                    }
                    if logical + length >= blocks {
                        flags.push("eof");
                    }
                    Some(Extent { logical, physical: physical.0, length, flags })
                });
                let mut extents: Vec<Extent> = extents.collect();
                if let Some(last) = extents.last_mut() {
                    last.flags.insert(0, "last");
                }
                let inline = file.inline_extent().await?.map(Inline::from);
                Ok(Report { size: file.len(), block_size, extents, inline })
            })
            .await?;
        if self.json { print_json(&report) } else { self.print(&report) }
    }

    /// Prints the table of `filefrag -v`.
    fn print(&self, report: &Report) -> anyhow::Result<()> {
        let mut out = stdout();
        let name = escaped(&self.place.path);
        writeln!(
            out,
            "File size of {name} is {} ({} blocks of {} bytes)",
            report.size,
            report.size.div_ceil(report.block_size.into()),
            report.block_size
        )?;
        writeln!(out, " ext:     logical_offset:        physical_offset: length:   expected: flags:")?;
        let mut expected = None;
        let mut pieces = 0;
        for (number, extent) in report.extents.iter().enumerate() {
            // The block that would continue the previous extent, if this one does not begin there.
            let jump = expected.filter(|expected| *expected != extent.physical);
            pieces += u64::from(number == 0 || jump.is_some());
            writeln!(
                out,
                "{number:4}: {:8}..{:8}: {:10}..{:10}: {:6}: {:>10}  {}",
                extent.logical,
                extent.logical + extent.length - 1,
                extent.physical,
                extent.physical + extent.length - 1,
                extent.length,
                jump.map(|expected| format!("{expected}:")).unwrap_or_default(),
                extent.flags.join(",")
            )?;
            expected = Some(extent.physical + extent.length);
        }
        if let Some(inline) = &report.inline {
            writeln!(out, "{inline}")?;
        }
        writeln!(out, "{name}: {pieces} extent{} found", if pieces == 1 { "" } else { "s" })?;
        out.flush()?;
        Ok(())
    }
}
