//! `ext4 unpack`: copies the tree of an image into a directory.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use ext4_core::{Error, InodeNumber};
use ext4_tools::copy::host_sink::HostSink;
use ext4_tools::copy::image_source::ImageTree;
use ext4_tools::copy::{Preserve, copy};
use ext4_tools::open::Access;
use ext4_tools::size::human_size;

use crate::context::{Context, umask};
use crate::output::print_line;
use crate::progress::Progress;

const EXAMPLES: &str = "\
Examples:
  ext4 unpack disk.img copy/             the whole tree into copy/, which is made if it does not exist
  ext4 unpack /dev/sdx1 copy/            from a block device
  ext4 --offset 1M unpack disk.img out/  from a partition inside a disk image

Owners and device nodes need root. For a part of the tree: ext4 cp -a IMAGE:/path DIR";

/// Copy the tree of an image into a directory
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Unpack {
    /// Image file or block device
    image: PathBuf,
    /// The directory; made if it does not exist
    directory: PathBuf,
}

impl Unpack {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let started = Instant::now();
        let progress = Progress::counter();
        let totals = context
            .mounted(&self.image, Access::Read, async |filesystem| {
                std::fs::create_dir_all(&self.directory)
                    .map_err(|source| Error::host("create", self.directory.display().to_string(), &source))?;
                let tree = ImageTree {
                    filesystem: filesystem.clone(),
                    root: InodeNumber::ROOT,
                    path: b"/".to_vec(),
                    name: Vec::new(),
                    xattrs: true,
                    number: 0,
                };
                let mut sink = HostSink::new(&self.directory, Preserve::ALL, umask(), false)?;
                copy(&mut tree.walk(), &mut sink, &progress).await
            })
            .await?;
        drop(progress);
        print_line(&format!(
            "{}: {} files, {} directories, {} others, {} in {:.2} s",
            self.directory.display(),
            totals.files,
            totals.directories,
            totals.others,
            human_size(totals.bytes),
            started.elapsed().as_secs_f64()
        ))
    }
}
