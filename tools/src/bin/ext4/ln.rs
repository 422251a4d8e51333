//! `ext4 ln`: makes a hard link or a symlink.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use ext4_core::{Errno, Error};
use ext4_tools::open::{Access, identity};
use ext4_tools::target::ImagePath;
use ext4_writeback::{Credentials, Filesystem};

use crate::context::{Context, caller, image_path, parse_owner};

const EXAMPLES: &str = "\
Examples:
  ext4 ln -s ../usr/bin/vim disk.img:/bin/vi
  ext4 ln disk.img:/etc/hosts disk.img:/etc/hosts.backup
  ext4 ln /etc/hosts disk.img:/etc/hosts.backup     the same: a path in that image";

/// Make links
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Ln {
    /// Target of the link: any text with -s, else a path in the same image
    target: OsString,
    /// The new name
    #[arg(value_name = "IMAGE:/PATH", value_parser = image_path())]
    link: ImagePath,
    /// Make a symlink
    #[arg(short, long)]
    symbolic: bool,
    /// Replace an existing file
    #[arg(short, long)]
    force: bool,
    /// Owner and group of a symlink, as numbers [default: yours]
    #[arg(long, value_name = "UID:GID", value_parser = parse_owner)]
    owner: Option<(u32, u32)>,
}

impl Ln {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut existing = self.target.as_bytes().to_vec();
        if let (false, Ok(place)) = (self.symbolic, ImagePath::parse(&self.target)) {
            if identity(&place.image)? != identity(&self.link.image)? {
                return Err(Error::posix(Errno::EXDEV, format!("{place} to {}", self.link)).into());
            }
            existing = place.path;
        }
        context
            .mounted(&self.link.image, Access::Write, async |filesystem| {
                self.link(filesystem, &existing).await
            })
            .await
    }

    async fn link(&self, filesystem: &Filesystem, target: &[u8]) -> anyhow::Result<()> {
        let (parent, name) = filesystem.resolve_parent(&self.link.path).await?;
        let inode = if self.symbolic { None } else { Some(filesystem.resolve(target, false).await?) };
        if self.force {
            match filesystem.lookup(parent, name).await {
                Ok(found) if Some(found) == inode => return Ok(()),
                Ok(_) => filesystem.unlink(parent, name).await?,
                Err(error) if error.errno() == Errno::ENOENT => {}
                Err(error) => return Err(error.into()),
            }
        }
        match inode {
            Some(inode) => filesystem.link(inode, parent, name).await?,
            None => {
                let (uid, gid) = self.owner.unwrap_or_else(caller);
                let credentials = Credentials { uid, gid, mode: 0o777 };
                filesystem.symlink(parent, name, self.target.as_bytes(), credentials).await?;
            }
        }
        Ok(())
    }
}
