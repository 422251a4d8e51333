//! `ext4 ls`: lists directories.

use std::io::Write;

use clap::Args;
use ext4_core::InodeNumber;
use ext4_core::format::inode::FileType;
use ext4_tools::copy::image_source::list;
use ext4_tools::display::{escaped, mode_string, short_time};
use ext4_tools::open::Access;
use ext4_tools::target::{ImagePath, join};
use ext4_writeback::{Attributes, Filesystem};
use serde::Serialize;

use crate::context::{Context, image_path};
use crate::json::Inode;
use crate::output::{print_json, shown, stdout};

const EXAMPLES: &str = "\
Examples:
  ext4 ls disk.img:/
  ext4 ls -l disk.img:/etc
  ext4 ls -R --json /dev/sdx1:/var | jq .";

/// List a directory
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Ls {
    /// Directory (or file) in an image
    #[arg(value_name = "IMAGE:/PATH", value_parser = image_path())]
    place: ImagePath,
    /// One line for each name, with mode, links, owner, group, size and modification time
    #[arg(short, long)]
    long: bool,
    /// Also names that begin with a dot
    #[arg(short, long)]
    all: bool,
    /// List subdirectories recursively
    #[arg(short = 'R', long)]
    recursive: bool,
    /// List a directory itself, not its contents
    #[arg(short, long)]
    directory: bool,
    /// As JSON: a list of directories with their entries
    #[arg(long)]
    json: bool,
}

/// A name and the attributes of its inode.
struct Row {
    name: Vec<u8>,
    attributes: Attributes,
    target: Option<Vec<u8>>,
}

#[derive(Serialize)]
struct Listing {
    directory: String,
    entries: Vec<Inode>,
}

impl Ls {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        context.mounted(&self.place.image, Access::Read, async |filesystem| self.list(filesystem).await).await
    }

    async fn list(&self, filesystem: &Filesystem) -> anyhow::Result<()> {
        let path = &self.place.path;
        let mut root = filesystem.resolve(path, false).await?;
        let mut attributes = filesystem.attributes(root).await?;
        if attributes.file_type == FileType::Symlink && !self.long && !self.directory {
            root = filesystem.resolve(path, true).await?;
            attributes = filesystem.attributes(root).await?;
        }
        if attributes.file_type != FileType::Directory || self.directory {
            let rows = vec![row(filesystem, path.clone(), root).await?];
            return if self.json { print_json(&[listing(path, &rows)]) } else { self.print(&rows) };
        }
        let mut listings = Vec::new();
        let mut pending = vec![(path.clone(), root, Vec::new())];
        let mut first = true;
        while let Some((path, directory, mut above)) = pending.pop() {
            let rows = self.rows(filesystem, directory).await?;
            if self.json {
                listings.push(listing(&path, &rows));
            } else {
                if self.recursive {
                    let mut out = stdout();
                    out.write_all(if first { b"" } else { b"\n" })?;
                    out.write_all(&shown(&path))?;
                    out.write_all(b":\n")?;
                    out.flush()?;
                }
                self.print(&rows)?;
            }
            first = false;
            if self.recursive {
                above.push(directory);
                for row in rows.iter().rev() {
                    let inode = row.attributes.inode;
                    let below = row.attributes.file_type == FileType::Directory
                        && row.name != b"."
                        && row.name != b"..";
                    if below && above.contains(&inode) {
                        anyhow::bail!("{}: the directory contains itself", escaped(&join(&path, &row.name)));
                    }
                    if below {
                        pending.push((join(&path, &row.name), inode, above.clone()));
                    }
                }
            }
        }
        if self.json {
            print_json(&listings)?;
        }
        Ok(())
    }

    async fn rows(&self, filesystem: &Filesystem, directory: InodeNumber) -> anyhow::Result<Vec<Row>> {
        let mut names = list(filesystem, directory).await?;
        if self.all {
            names.push((b".".to_vec(), directory));
            names.push((b"..".to_vec(), filesystem.lookup(directory, b"..").await?));
        } else {
            names.retain(|(name, _)| !name.starts_with(b"."));
        }
        names.sort();
        let mut rows = Vec::with_capacity(names.len());
        for (name, inode) in names {
            rows.push(row(filesystem, name, inode).await?);
        }
        Ok(rows)
    }

    fn print(&self, rows: &[Row]) -> anyhow::Result<()> {
        let mut out = stdout();
        if !self.long {
            for row in rows {
                out.write_all(&shown(&row.name))?;
                out.write_all(b"\n")?;
            }
            out.flush()?;
            return Ok(());
        }
        let columns: Vec<[String; 4]> = rows
            .iter()
            .map(|Row { attributes, .. }| {
                let size = match attributes.device {
                    Some((major, minor)) => format!("{major}, {minor}"),
                    None => attributes.size.to_string(),
                };
                [attributes.links.to_string(), attributes.uid.to_string(), attributes.gid.to_string(), size]
            })
            .collect();
        let widths: Vec<usize> =
            (0..4).map(|at| columns.iter().map(|row| row[at].len()).max().unwrap_or(0)).collect();
        for (row, columns) in rows.iter().zip(&columns) {
            write!(out, "{}", mode_string(row.attributes.file_type, row.attributes.mode))?;
            for (column, width) in columns.iter().zip(&widths) {
                write!(out, " {column:>width$}")?;
            }
            write!(out, " {} ", short_time(row.attributes.mtime))?;
            out.write_all(&shown(&row.name))?;
            if let Some(target) = &row.target {
                out.write_all(b" -> ")?;
                out.write_all(&shown(target))?;
            }
            out.write_all(b"\n")?;
        }
        out.flush()?;
        Ok(())
    }
}

async fn row(filesystem: &Filesystem, name: Vec<u8>, inode: InodeNumber) -> anyhow::Result<Row> {
    let attributes = filesystem.attributes(inode).await?;
    let target = match attributes.file_type {
        FileType::Symlink => Some(filesystem.readlink(inode).await?),
        _ => None,
    };
    Ok(Row { name, attributes, target })
}

fn listing(path: &[u8], rows: &[Row]) -> Listing {
    let entry = |row: &Row| Inode::new(&row.name, &row.attributes, row.target.as_deref());
    Listing {
        directory: String::from_utf8_lossy(path).into_owned(),
        entries: rows.iter().map(entry).collect(),
    }
}
