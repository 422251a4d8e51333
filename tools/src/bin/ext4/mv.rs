//! `ext4 mv`: renames and moves within one image.

use clap::Args;
use ext4_core::format::inode::FileType;
use ext4_core::{Errno, Error};
use ext4_tools::open::{Access, identity};
use ext4_tools::target::{ImagePath, base_name};
use ext4_writeback::{Filesystem, RenameFlags};

use crate::context::{Context, image_path, usage};

const EXAMPLES: &str = "\
Examples:
  ext4 mv disk.img:/etc/motd disk.img:/etc/motd.old
  ext4 mv disk.img:/a disk.img:/b disk.img:/directory/

From one image to another: ext4 cp -a, then ext4 rm -r.";

/// Rename or move within an image
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Mv {
    /// What to move, and where to: a directory, or a new name
    #[arg(value_name = "IMAGE:/PATH", value_parser = image_path(), num_args = 2.., required = true)]
    places: Vec<ImagePath>,
    /// Do not replace an existing file
    #[arg(short, long)]
    no_clobber: bool,
}

impl Mv {
    pub async fn run(mut self, context: &Context) -> anyhow::Result<()> {
        let Some(to) = self.places.pop() else { return Err(usage("nothing to move")) };
        let image = identity(&to.image)?;
        for from in &self.places {
            if identity(&from.image)? != image {
                return Err(Error::posix(Errno::EXDEV, format!("{from} to {to}")).into());
            }
        }
        context
            .mounted(&to.image, Access::Write, async |filesystem| {
                for from in &self.places {
                    self.one(filesystem, from, &to).await?;
                }
                Ok(())
            })
            .await
    }

    async fn one(&self, filesystem: &Filesystem, from: &ImagePath, to: &ImagePath) -> anyhow::Result<()> {
        let (from_parent, from_name) = filesystem.resolve_parent(&from.path).await?;
        let existing = match filesystem.resolve(&to.path, true).await {
            Ok(inode) => Some(filesystem.attributes(inode).await?),
            Err(error) if error.errno() == Errno::ENOENT => None,
            Err(error) => return Err(error.into()),
        };
        let into = existing.filter(|found| found.file_type == FileType::Directory);
        let (to_parent, to_name) = match &into {
            Some(directory) => {
                let name = base_name(&from.path)
                    .ok_or_else(|| Error::posix(Errno::EBUSY, format!("{from} has no name")))?;
                (directory.inode, name)
            }
            None if self.places.len() > 1 || to.path.ends_with(b"/") => {
                return Err(Error::posix(Errno::ENOTDIR, to.to_string()).into());
            }
            None => filesystem.resolve_parent(&to.path).await?,
        };
        let flags = RenameFlags { no_replace: self.no_clobber, ..RenameFlags::default() };
        filesystem.rename((from_parent, from_name), (to_parent, to_name), flags).await?;
        Ok(())
    }
}
