//! `ext4 mkdir`: makes directories.

use clap::Args;
use ext4_core::format::inode::FileType;
use ext4_core::{Errno, Error, InodeNumber};
use ext4_tools::open::Access;
use ext4_tools::target::ImagePath;
use ext4_writeback::{Credentials, Filesystem};

use crate::context::{Context, caller, image_path, parse_mode, parse_owner, umask};

const EXAMPLES: &str = "\
Examples:
  ext4 mkdir disk.img:/srv
  ext4 mkdir -p -m 700 --owner 0:0 disk.img:/root/.ssh";

/// Make directories
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Mkdir {
    /// The new directory
    #[arg(value_name = "IMAGE:/PATH", value_parser = image_path())]
    place: ImagePath,
    /// Also make missing parents; no error if the directory exists
    #[arg(short, long)]
    parents: bool,
    /// Permissions in octal [default: 777 less the umask]
    #[arg(short, long, value_parser = parse_mode)]
    mode: Option<u16>,
    /// Owner and group, as numbers [default: yours]
    #[arg(long, value_name = "UID:GID", value_parser = parse_owner)]
    owner: Option<(u32, u32)>,
}

impl Mkdir {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        context
            .mounted(&self.place.image, Access::Write, async |filesystem| {
                if self.parents { self.with_parents(filesystem).await } else { self.one(filesystem).await }
            })
            .await
    }

    fn credentials(&self, mode: Option<u16>) -> Credentials {
        let (uid, gid) = self.owner.unwrap_or_else(caller);
        Credentials { uid, gid, mode: mode.unwrap_or(0o777 & !umask()) }
    }

    async fn one(&self, filesystem: &Filesystem) -> anyhow::Result<()> {
        let (parent, name) = filesystem.resolve_parent(&self.place.path).await?;
        filesystem.mkdir(parent, name, self.credentials(self.mode)).await?;
        Ok(())
    }

    async fn with_parents(&self, filesystem: &Filesystem) -> anyhow::Result<()> {
        let path = &self.place.path;
        let ends: Vec<usize> = (1..=path.len())
            .filter(|end| path[end - 1] != b'/' && path.get(*end).is_none_or(|next| *next == b'/'))
            .collect();
        for (number, end) in ends.iter().enumerate() {
            let last = number + 1 == ends.len();
            let made = self.ensure(filesystem, &path[..*end], if last { self.mode } else { None }).await?;
            tracing::debug!(inode = made.0, "directory");
        }
        Ok(())
    }

    async fn ensure(
        &self,
        filesystem: &Filesystem,
        path: &[u8],
        mode: Option<u16>,
    ) -> anyhow::Result<InodeNumber> {
        match filesystem.resolve(path, true).await {
            Ok(inode) if filesystem.attributes(inode).await?.file_type == FileType::Directory => Ok(inode),
            Ok(_) => Err(Error::posix(Errno::ENOTDIR, String::from_utf8_lossy(path)).into()),
            Err(error) if error.errno() == Errno::ENOENT => {
                let (parent, name) = filesystem.resolve_parent(path).await?;
                Ok(filesystem.mkdir(parent, name, self.credentials(mode)).await?)
            }
            Err(error) => Err(error.into()),
        }
    }
}
