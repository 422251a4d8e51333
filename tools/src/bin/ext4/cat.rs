//! `ext4 cat`: writes files of an image to standard output.

use std::io::Write;

use clap::Args;
use ext4_core::format::inode::FileType;
use ext4_core::{Errno, Error};
use ext4_tools::open::Access;
use ext4_tools::target::ImagePath;
use ext4_writeback::Filesystem;

use crate::context::{Context, image_path};
use crate::output::stdout;

const EXAMPLES: &str = "\
Examples:
  ext4 cat disk.img:/etc/hostname
  ext4 cat /dev/sdx1:/var/log/syslog | less";

/// Write files to standard output
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Cat {
    /// Files in images
    #[arg(value_name = "IMAGE:/PATH", value_parser = image_path(), required = true)]
    places: Vec<ImagePath>,
}

/// Bytes read at a time.
const BUFFER: usize = 1 << 20;

impl Cat {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        for place in &self.places {
            context
                .mounted(&place.image, Access::Read, async |filesystem| print(filesystem, place).await)
                .await?;
        }
        Ok(())
    }
}

/// Writes one file to standard output.
pub async fn print(filesystem: &Filesystem, place: &ImagePath) -> anyhow::Result<()> {
    let inode = filesystem.resolve(&place.path, true).await?;
    let what = filesystem.attributes(inode).await?.file_type;
    if what != FileType::Regular {
        let errno = if what == FileType::Directory { Errno::EISDIR } else { Errno::EINVAL };
        return Err(Error::posix(errno, place.to_string()).into());
    }
    let file = filesystem.open(inode).await?;
    let mut buffer = vec![0; BUFFER];
    let mut offset = 0;
    loop {
        let count = file.read_at(offset, &mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let mut out = stdout();
        out.write_all(&buffer[..count])?;
        out.flush()?;
        offset += count as u64;
    }
}
