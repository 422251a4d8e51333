//! `ext4 stat`: shows the attributes of an inode.

use std::io::Write;

use clap::Args;
use ext4_core::format::inode::FileType;
use ext4_tools::display::{escaped, full_time, mode_string, type_name};
use ext4_tools::open::Access;
use ext4_tools::target::ImagePath;
use ext4_writeback::Attributes;
use serde::Serialize;

use crate::context::{Context, image_path};
use crate::json::{Inline, Inode};
use crate::output::{print_json, shown, stdout};

const EXAMPLES: &str = "\
Examples:
  ext4 stat disk.img:/etc/passwd
  ext4 stat -L disk.img:/vmlinuz          the target of a symlink
  ext4 stat --json disk.img:/ | jq .mtime";

/// Show an inode's attributes
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Stat {
    /// A path in an image
    #[arg(value_name = "IMAGE:/PATH", value_parser = image_path())]
    place: ImagePath,
    /// Follow a symlink
    #[arg(short = 'L', long)]
    dereference: bool,
    /// As JSON, with extended attributes
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Full {
    #[serde(flatten)]
    inode: Inode,
    /// Values in hexadecimal.
    xattrs: std::collections::BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inline: Option<Inline>,
}

impl Stat {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let (attributes, target, xattrs, inline, block_size) = context
            .mounted(&self.place.image, Access::Read, async |filesystem| {
                let inode = filesystem.resolve(&self.place.path, self.dereference).await?;
                let attributes = filesystem.attributes(inode).await?;
                let target = match attributes.file_type {
                    FileType::Symlink => Some(filesystem.readlink(inode).await?),
                    _ => None,
                };
                let mut xattrs = std::collections::BTreeMap::new();
                for name in filesystem.listxattr(inode).await? {
                    let value = filesystem.getxattr(inode, &name).await?;
                    let hex = value.iter().map(|byte| format!("{byte:02x}")).collect();
                    xattrs.insert(escaped(&name), hex);
                }
                let inline = filesystem.inline_extent(inode).await?.map(Inline::from);
                Ok((attributes, target, xattrs, inline, filesystem.statfs().block_size))
            })
            .await?;
        if self.json {
            let inode = Inode::new(&self.place.path, &attributes, target.as_deref());
            return print_json(&Full { inode, xattrs, inline });
        }
        let mut out = stdout();
        out.write_all(b"  File: ")?;
        out.write_all(&shown(&self.place.path))?;
        if let Some(target) = target {
            out.write_all(b" -> ")?;
            out.write_all(&shown(&target))?;
        }
        out.write_all(b"\n")?;
        print(&mut out, &attributes, block_size)?;
        if let Some(inline) = inline {
            writeln!(out, "{inline}")?;
        }
        for name in xattrs.keys() {
            writeln!(out, " Xattr: {name}")?;
        }
        out.flush()?;
        Ok(())
    }
}

fn print(out: &mut impl Write, attributes: &Attributes, block_size: u32) -> anyhow::Result<()> {
    writeln!(
        out,
        "  Size: {:<15} Blocks: {:<10} IO Block: {block_size:<6} {}",
        attributes.size,
        attributes.sectors,
        type_name(attributes.file_type, attributes.size)
    )?;
    write!(out, " Inode: {:<15} Links: {}", attributes.inode, attributes.links)?;
    if let Some((major, minor)) = attributes.device {
        write!(out, "     Device type: {major},{minor}")?;
    }
    writeln!(
        out,
        "\nAccess: ({:04o}/{})  Uid: {:>5}   Gid: {:>5}   Flags: {:#x}   Generation: {}",
        attributes.mode & 0o7777,
        mode_string(attributes.file_type, attributes.mode),
        attributes.uid,
        attributes.gid,
        attributes.flags.bits(),
        attributes.generation
    )?;
    writeln!(out, "Access: {}", full_time(attributes.atime))?;
    writeln!(out, "Modify: {}", full_time(attributes.mtime))?;
    writeln!(out, "Change: {}", full_time(attributes.ctime))?;
    writeln!(out, " Birth: {}", attributes.crtime.map_or_else(|| "-".into(), full_time))?;
    Ok(())
}
