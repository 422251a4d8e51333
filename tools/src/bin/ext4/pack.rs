//! `ext4 pack`: makes an image of a directory tree.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use ext4_core::meta::mkfs::MkfsOptions;
use ext4_core::types::BlockSize;
use ext4_core::{Errno, InodeNumber, Timestamp};
use ext4_tools::copy::host_source::HostTree;
use ext4_tools::copy::image_sink::{ImageSink, ImageSinkOptions};
use ext4_tools::copy::{Preserve, Totals, copy, errno_of};
use ext4_tools::size::{human_size, parse_size};
use ext4_tools::sizing::{Need, Units, measure};
use ext4_writeback::mkfs;
use ext4_writeback::{Filesystem, MountOptions};
use serde::Serialize;

use crate::context::{Context, interruptible, naming, parse_owner, usage};
use crate::creation::{Creation, Destination, check_size};
use crate::output::{print_json, print_line};
use crate::progress::Progress;

const EXAMPLES: &str = "\
Examples:
  ext4 pack rootfs/ disk.img                   an image as large as needed
  ext4 pack --size 2G -L root rootfs/ disk.img
  ext4 pack --owner 0:0 build/ disk.img        everything belongs to root
  ext4 pack rootfs/ /dev/sdx1                  onto a block device, through io_uring
  SOURCE_DATE_EPOCH=0 ext4 pack -U 5e1f... -E hash_seed=5e1f... rootfs/ disk.img
                                               the same image byte for byte every time

The image gets its name when it is complete; until then an existing file of that name stays. The root
directory of the image gets the attributes of SOURCE itself.";

/// Make an image of a directory tree
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Pack {
    /// The directory
    source: PathBuf,
    /// Image file (replaced when the new one is complete) or block device
    target: PathBuf,
    /// Size of the file system [default: as large as needed; all of a block device]
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// Owner and group of everything, as numbers [default: the source's]
    #[arg(long, value_name = "UID:GID", value_parser = parse_owner)]
    owner: Option<(u32, u32)>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    creation: Creation,
}

/// Bytes written between two syncs of a reproducible image: well below the dirty limit at which the flusher
/// starts by itself.
const SYNC_EVERY: u64 = 16 << 20;
/// The smallest cache in bytes whose dirty limit is well above [`SYNC_EVERY`].
const REPRODUCIBLE_CACHE: usize = 128 << 20;
/// How often an image is made, each time larger, if the estimated size turns out too small.
const ATTEMPTS: u32 = 4;

#[derive(Serialize)]
struct Summary<'a> {
    target: &'a Path,
    image_bytes: u64,
    files: u64,
    directories: u64,
    others: u64,
    content_bytes: u64,
    seconds: f64,
}

impl Pack {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let started = Instant::now();
        if context.opener.mount_options.read_only() || context.opener.noload {
            return Err(usage("an image is not filled read-only"));
        }
        let metadata = std::fs::metadata(&self.source)
            .map_err(|source| ext4_core::Error::host("read", self.source.display().to_string(), &source))?;
        if !metadata.is_dir() {
            return Err(ext4_core::Error::posix(Errno::ENOTDIR, self.source.display().to_string()).into());
        }
        let options = self.creation.mkfs_options()?;
        let destination = Destination::choose(context, &self.target, self.creation.force).await?;
        let block_size = options.block_size.unwrap_or(BlockSize::KIB_4);
        let mut tree = HostTree::contents_of(&self.source);
        tree.exclude = vec![self.target.clone()];
        let units = Units { block_size, cluster_blocks: options.cluster_blocks(block_size) };
        let need = tokio::task::block_in_place(|| measure(&tree, units))?;

        let job = Job { pack: &self, context, destination, tree, need, units };
        let work = job.make(options);
        let (totals, size) = interruptible(work).await?;
        let seconds = started.elapsed().as_secs_f64();
        if self.json {
            return print_json(&Summary {
                target: &self.target,
                image_bytes: size,
                files: totals.files,
                directories: totals.directories,
                others: totals.others,
                content_bytes: totals.bytes,
                seconds,
            });
        }
        print_line(&format!(
            "{}: {} files, {} directories, {} others, {} in {seconds:.2} s; image of {}",
            self.target.display(),
            totals.files,
            totals.directories,
            totals.others,
            human_size(totals.bytes),
            human_size(size)
        ))
    }

    fn sink_options(&self, epoch: Option<Timestamp>) -> ImageSinkOptions {
        ImageSinkOptions {
            preserve: Preserve { owner: self.owner.is_none(), ..Preserve::ALL },
            owner: self.owner.unwrap_or_default(),
            umask: 0,
            latest: epoch,
            fresh: true,
            durable: false,
            sync_every: epoch.map(|_| SYNC_EVERY),
        }
    }
}

/// One tree to be written to one target.
struct Job<'a> {
    pack: &'a Pack,
    context: &'a Context,
    destination: Destination,
    tree: HostTree,
    need: Need,
    units: Units,
}

impl Job<'_> {
    /// Makes the file system and fills it, again with a larger size if the estimated size is too small.
    /// Returns the totals and the size in bytes.
    async fn make(&self, mut options: MkfsOptions) -> anyhow::Result<(Totals, u64)> {
        let Self { pack, destination, need, units, .. } = self;
        let block_size = units.block_size;
        let journal = pack.creation.journal_blocks(block_size)?;
        let given = pack.size.or(destination.limit());
        if let (Some(size), Some(limit)) = (pack.size, destination.limit())
            && size > limit
        {
            anyhow::bail!("{}: has only {limit} bytes, not {size}", pack.target.display());
        }
        let mut size = given.unwrap_or_else(|| need.size(*units, journal.map(u64::from)));
        check_size(size, Some(block_size))?;
        options.block_size = Some(block_size);
        options.journal_blocks = journal;
        options.reserved_percent = options.reserved_percent.or(Some(0.0));
        if options.inodes_count.is_none() && options.bytes_per_inode.is_none() {
            let fitting = need.inodes_count();
            let usual = if given.is_some() { size / 16384 } else { 0 };
            let count = u32::try_from(fitting.max(usual).min(u64::from(u32::MAX) - 1));
            options.inodes_count = Some(count.map_err(|_| usage("more files than a file system can hold"))?);
        }
        let mut attempt = 1;
        loop {
            options.blocks_count = destination.limit().map(|_| size / u64::from(block_size.bytes()));
            match self.fill(&options, size, given.is_none()).await {
                Err(error)
                    if given.is_none() && attempt < ATTEMPTS && errno_of(&error) == Some(Errno::ENOSPC) =>
                {
                    attempt += 1;
                    size = (size + size / 8 + (4 << 20)).next_multiple_of(1 << 20);
                    tracing::info!(size, "the image was too small; making a larger one");
                }
                Err(error) if errno_of(&error) == Some(Errno::ENOSPC) => {
                    return Err(error.context(format!(
                        "{}: {} are too small for the tree",
                        pack.target.display(),
                        human_size(size)
                    )));
                }
                result => return Ok((result?, size)),
            }
        }
    }

    /// Makes a file system of `size` bytes and fills it. `must_fit` is true if the size is an estimate.
    ///
    /// # Errors
    /// - `ENOSPC`: the tree does not fit.
    /// - Those of source and target.
    async fn fill(&self, options: &MkfsOptions, size: u64, must_fit: bool) -> anyhow::Result<Totals> {
        let Self { pack, context, destination, need, .. } = self;
        let (environment, epoch) = pack.creation.environment()?;
        let (device, temporary) = destination.open(&context.opener, size)?;
        mkfs(device.clone(), options, &*environment)
            .await
            .map_err(|error| naming(&pack.target, error.into()))?;
        let reproducible = epoch.is_some();
        let mut mount = MountOptions::new()
            .cache(if reproducible {
                context.opener.cache.max(REPRODUCIBLE_CACHE)
            } else {
                context.opener.cache
            })
            // No other program sees a temporary image before it is complete: nothing in it has to survive a
            // crash.
            .barrier(temporary.is_none())
            .commit_interval((temporary.is_none() && !reproducible).then_some(Duration::from_secs(5)))
            .erase_journal(temporary.is_some() || reproducible)
            .environment(environment);
        context.opener.mount_options.apply(&mut mount);
        let filesystem = Filesystem::mount(device.clone(), mount)
            .await
            .map_err(|error| naming(&pack.target, error.into()))?;
        if must_fit {
            let space = filesystem.statfs();
            if space.free_blocks < need.free_blocks(self.units) || space.free_inodes < need.inodes {
                filesystem.unmount().await?;
                return Err(ext4_core::Error::posix(Errno::ENOSPC, "the estimated size").into());
            }
        }
        let progress = Progress::with_total(need.bytes);
        let mut tree = self.tree.clone();
        tree.exclude.extend(temporary.iter().map(|temporary| temporary.path().to_path_buf()));
        let mut sink = ImageSink::new(filesystem.clone(), InodeNumber::ROOT, pack.sink_options(epoch));
        let mut events = tree.walk();
        let totals = copy(&mut events, &mut sink, &progress).await?;
        drop(sink);
        filesystem.unmount().await?;
        device.flush().await?;
        drop(device);
        drop(progress);
        if let Some(temporary) = temporary {
            temporary.persist()?;
        }
        Ok(totals)
    }
}
