//! `ext4 rm`: removes files and directories.

use clap::Args;
use ext4_core::format::inode::FileType;
use ext4_core::{Errno, Error, InodeNumber};
use ext4_tools::copy::image_source::list;
use ext4_tools::open::Access;
use ext4_tools::target::ImagePath;
use ext4_writeback::Filesystem;

use crate::context::{Context, image_path};

const EXAMPLES: &str = "\
Examples:
  ext4 rm disk.img:/etc/hostname
  ext4 rm -r disk.img:/var/cache
  ext4 rm -f disk.img:/tmp/lock           no error if it does not exist";

/// Remove files and directories
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Rm {
    /// Files and directories to remove
    #[arg(value_name = "IMAGE:/PATH", value_parser = image_path(), required = true)]
    places: Vec<ImagePath>,
    /// Remove directories with their contents
    #[arg(short, long)]
    recursive: bool,
    /// Ignore names that do not exist
    #[arg(short, long)]
    force: bool,
}

impl Rm {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        for place in &self.places {
            context
                .mounted(&place.image, Access::Write, async |filesystem| self.remove(filesystem, place).await)
                .await?;
        }
        Ok(())
    }

    async fn remove(&self, filesystem: &Filesystem, place: &ImagePath) -> anyhow::Result<()> {
        let inode = match filesystem.resolve(&place.path, false).await {
            Err(error) if self.force && error.errno() == Errno::ENOENT => return Ok(()),
            result => result?,
        };
        if inode == InodeNumber::ROOT {
            return Err(Error::posix(Errno::EBUSY, format!("{place} is the root directory")).into());
        }
        let (parent, name) = filesystem.resolve_parent(&place.path).await?;
        if filesystem.attributes(inode).await?.file_type != FileType::Directory {
            return Ok(filesystem.unlink(parent, name).await?);
        }
        if !self.recursive {
            return Err(Error::posix(Errno::EISDIR, format!("{place} (use -r)")).into());
        }
        remove_tree(filesystem, parent, name.to_vec(), inode).await
    }
}

/// Removes a directory with its contents, the deepest first.
pub async fn remove_tree(
    filesystem: &Filesystem,
    parent: InodeNumber,
    name: Vec<u8>,
    inode: InodeNumber,
) -> anyhow::Result<()> {
    // Each level: the parent, the name in it, the directory, its remaining entries.
    let mut stack = vec![(parent, name, inode, list(filesystem, inode).await?)];
    while let Some((_, _, directory, entries)) = stack.last_mut() {
        let directory = *directory;
        if let Some((name, inode)) = entries.pop() {
            if filesystem.attributes(inode).await?.file_type != FileType::Directory {
                filesystem.unlink(directory, &name).await?;
            } else if stack.iter().any(|(_, _, above, _)| *above == inode) {
                return Err(Error::corrupt(format!("directory inode {inode}"), "contains itself").into());
            } else {
                let below = list(filesystem, inode).await?;
                stack.push((directory, name, inode, below));
            }
        } else if let Some((parent, name, ..)) = stack.pop() {
            filesystem.rmdir(parent, &name).await?;
        }
    }
    Ok(())
}
