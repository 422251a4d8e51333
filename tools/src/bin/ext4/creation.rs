//! Making a file system: options and destination, shared by `mkfs` and `pack`.
//!
//! Invariant: the name of an image file refers either to the file that had it before or to a complete image.
//! A new image is made under a temporary name and renamed. A block device, or a partition inside a disk image
//! (`--offset`), is written in place, after a check that it holds no known format.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use ext4_core::device::BlockDevice;
use ext4_core::environment::{Environment, FixedEnvironment, SystemEnvironment};
use ext4_core::format::features::Features;
use ext4_core::meta::mkfs::MkfsOptions;
use ext4_core::types::BlockSize;
use ext4_core::{Errno, Error, Timestamp};
use ext4_tools::open::{Access, Opener, TargetKind, target_kind};
use ext4_tools::signature;
use ext4_tools::size::parse_size;
use ext4_tools::temporary::TemporaryFile;

use crate::context::{Context, naming, parse_owner, usage};

/// Options of the new file system, named as those of mke2fs.
#[derive(Args, Debug)]
#[command(next_help_heading = "File system options")]
pub struct Creation {
    /// Block size: 1024, 2048 or 4096
    #[arg(short, long, value_name = "BYTES", value_parser = parse_block_size)]
    pub block_size: Option<BlockSize>,
    /// Cluster size with -O bigalloc [default: 16 blocks]
    #[arg(short = 'C', long, value_name = "BYTES", value_parser = parse_size)]
    pub cluster_size: Option<u64>,
    /// Volume label, up to 16 bytes
    #[arg(short = 'L', long, value_name = "LABEL", value_parser = parse_label)]
    pub label: Option<String>,
    /// UUID of the file system [default: random]
    #[arg(short = 'U', long, value_name = "UUID")]
    pub uuid: Option<uuid::Uuid>,
    /// Extended options: hash_seed=UUID, root_owner=UID:GID, separated by commas
    #[arg(short = 'E', long, value_name = "OPTIONS", value_parser = parse_extended, default_value = "",
        hide_default_value = true)]
    pub extended: Extended,
    /// Features to set, or to clear (^FEATURE), separated by commas
    #[arg(short = 'O', long, value_name = "FEATURES")]
    pub features: Option<String>,
    /// Number of inodes
    #[arg(short = 'N', long, value_name = "COUNT")]
    pub inodes: Option<u32>,
    /// Size of an inode
    #[arg(short = 'I', long, value_name = "BYTES")]
    pub inode_size: Option<u16>,
    /// Make one inode for each BYTES of the file system
    #[arg(short = 'i', long, value_name = "BYTES", value_parser = parse_size)]
    pub bytes_per_inode: Option<u64>,
    /// Size of the journal
    #[arg(short = 'J', long, value_name = "SIZE", value_parser = parse_size)]
    pub journal_size: Option<u64>,
    /// Percentage of blocks reserved for root
    #[arg(short = 'm', long, value_name = "PERCENT", value_parser = parse_percent)]
    pub reserved: Option<f64>,
    /// Overwrite an existing file system
    #[arg(long)]
    pub force: bool,
}

/// The extended options (`-E`).
#[derive(Clone, Debug, Default)]
pub struct Extended {
    /// Seed of the directory hashes.
    pub hash_seed: Option<uuid::Uuid>,
    /// Owner of the root directory.
    pub root_owner: Option<(u32, u32)>,
}

fn parse_block_size(text: &str) -> Result<BlockSize, String> {
    let size = parse_size(text)?;
    u32::try_from(size)
        .ok()
        .and_then(BlockSize::new)
        .filter(|size| *size <= BlockSize::KIB_4)
        .ok_or_else(|| format!("{size} is not 1024, 2048 or 4096"))
}

fn parse_label(text: &str) -> Result<String, String> {
    if text.len() > 16 { Err(format!("{} bytes, 16 at most", text.len())) } else { Ok(text.into()) }
}

fn parse_percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(percent) if (0.0..=50.0).contains(&percent) => Ok(percent),
        _ => Err("not a percentage from 0 to 50".into()),
    }
}

fn parse_extended(text: &str) -> Result<Extended, String> {
    let mut extended = Extended::default();
    for option in text.split(',').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').ok_or_else(|| format!("'{option}' is not NAME=VALUE"))?;
        match name {
            "hash_seed" => {
                extended.hash_seed = Some(value.parse().map_err(|_| format!("'{value}' is not a UUID"))?)
            }
            "root_owner" => extended.root_owner = Some(parse_owner(value)?),
            _ => return Err(format!("unknown extended option '{name}' (hash_seed, root_owner)")),
        }
    }
    Ok(extended)
}

impl Creation {
    /// The options for the library's mkfs.
    ///
    /// # Errors
    /// A usage error: an unknown feature, or a cluster of 4 GiB or more.
    pub fn mkfs_options(&self) -> anyhow::Result<MkfsOptions> {
        let features = match &self.features {
            None => None,
            Some(list) => {
                let mut features = Features::for_new_filesystem();
                features.apply(list).map_err(|error| usage(error.to_string()))?;
                Some(features)
            }
        };
        let cluster_size = self.cluster_size.map(u32::try_from).transpose();
        let cluster_size = cluster_size.map_err(|_| usage("-C: a cluster of 4 GiB or more"))?;
        Ok(MkfsOptions {
            block_size: self.block_size,
            cluster_size,
            inode_size: self.inode_size,
            bytes_per_inode: self.bytes_per_inode,
            inodes_count: self.inodes,
            features,
            reserved_percent: self.reserved,
            label: self.label.clone().unwrap_or_default().into_bytes(),
            uuid: self.uuid.map(uuid::Uuid::into_bytes),
            hash_seed: self.extended.hash_seed.map(uuid::Uuid::into_bytes),
            root_owner: self.extended.root_owner.unwrap_or_default(),
            ..MkfsOptions::default()
        })
    }

    /// The size of the log in blocks, or `None` if the default is to be used.
    ///
    /// # Errors
    /// A usage error: the size does not fit into 32 bits.
    pub fn journal_blocks(&self, block_size: BlockSize) -> anyhow::Result<Option<u32>> {
        let Some(size) = self.journal_size else { return Ok(None) };
        let blocks = u32::try_from(block_size.blocks_for(size));
        blocks.map(Some).map_err(|_| usage(format!("a journal of {size} bytes is too large")))
    }

    /// The source of time and randomness, and the time if it is fixed. If `SOURCE_DATE_EPOCH` is set, the
    /// clock always shows that time, and random numbers are derived from the UUID.
    ///
    /// # Errors
    /// A usage error: `SOURCE_DATE_EPOCH` is not a number.
    pub fn environment(&self) -> anyhow::Result<(Arc<dyn Environment>, Option<Timestamp>)> {
        let Some(epoch) = std::env::var_os("SOURCE_DATE_EPOCH") else {
            return Ok((Arc::new(SystemEnvironment), None));
        };
        let seconds = epoch.to_str().and_then(|text| text.trim().parse::<i64>().ok()).ok_or_else(|| {
            usage(format!("SOURCE_DATE_EPOCH={} is not a number of seconds", epoch.display()))
        })?;
        let now = Timestamp { seconds, nanoseconds: 0 };
        let uuid = self.uuid.map_or_else(
            || {
                let mut bytes = [0; 16];
                SystemEnvironment.random(&mut bytes);
                u128::from_le_bytes(bytes)
            },
            |uuid| uuid.as_u128(),
        );
        let [low, high] = [uuid as u64, (uuid >> 64) as u64];
        Ok((Arc::new(FixedEnvironment::new(now, low ^ high.rotate_left(1))), Some(now)))
    }
}

/// The destination of a new file system.
#[derive(Debug)]
pub enum Destination {
    /// An image file, written under a temporary name.
    Image(PathBuf),
    /// A block device or a part of a disk image, written in place, and its size in bytes.
    InPlace(PathBuf, u64),
}

impl Destination {
    /// Checks `target` before anything is written.
    ///
    /// # Errors
    /// - `target` cannot be opened for writing.
    /// - `target` is written in place, holds a known format, and `force` is false.
    pub async fn choose(context: &Context, target: &Path, force: bool) -> anyhow::Result<Self> {
        let kind = target_kind(target)?;
        let in_place = kind == TargetKind::BlockDevice || context.opener.offset > 0;
        if !in_place {
            if let TargetKind::File(_) = kind {
                // To replace a file needs no write permission on it; a write-protected file is refused all
                // the same.
                std::fs::OpenOptions::new()
                    .write(true)
                    .open(target)
                    .map_err(|source| Error::host("open", target.display().to_string(), &source))?;
            }
            return Ok(Self::Image(target.into()));
        }
        // Opened for writing and closed again, so that the error for a mounted or read-only device comes
        // first.
        let size = {
            let device =
                context.opener.device(target, Access::Write).map_err(|error| naming(target, error.into()))?;
            let found = if force { None } else { held_format(&device).await? };
            if let Some(found) = found {
                anyhow::bail!("{} holds {found} (use --force to write over it)", target.display());
            }
            device.geometry().size
        };
        Ok(Self::InPlace(target.into(), size))
    }

    /// The largest size in bytes, or `None` if there is no limit.
    pub fn limit(&self) -> Option<u64> {
        match self {
            Self::Image(_) => None,
            Self::InPlace(_, size) => Some(*size),
        }
    }

    /// Opens the destination for writing: an image is created with `size` bytes under a temporary name.
    ///
    /// # Errors
    /// Those of [`TemporaryFile::beside`], [`Opener::create`] and [`Opener::device`].
    pub fn open(
        &self,
        opener: &Opener,
        size: u64,
    ) -> anyhow::Result<(Arc<dyn BlockDevice>, Option<TemporaryFile>)> {
        match self {
            Self::Image(path) => {
                let temporary = TemporaryFile::beside(path)?;
                let device = opener.create(temporary.path(), size).map_err(|error| at(path, &error))?;
                Ok((device, Some(temporary)))
            }
            Self::InPlace(path, _) => {
                Ok((opener.device(path, Access::Write).map_err(|error| naming(path, error.into()))?, None))
            }
        }
    }
}

/// An error for the temporary file, with the final name in its place.
fn at(path: &Path, error: &Error) -> Error {
    Error::io("create", path.display().to_string(), error.errno())
}

/// The format that the device holds, by its signature; `None` if no known one is found.
async fn held_format(device: &Arc<dyn BlockDevice>) -> anyhow::Result<Option<&'static str>> {
    let geometry = device.geometry();
    let length = geometry.size.min(signature::EXAMINED) / u64::from(geometry.logical_block_size)
        * u64::from(geometry.logical_block_size);
    if length == 0 {
        return Ok(None);
    }
    Ok(signature::find(&device.read_at(0, usize::try_from(length)?).await?))
}

/// Checks that a file system of `size` bytes can be made.
///
/// # Errors
/// `EINVAL`: it has fewer than 64 blocks.
pub fn check_size(size: u64, block_size: Option<BlockSize>) -> anyhow::Result<()> {
    let block = u64::from(block_size.unwrap_or(BlockSize::KIB_1).bytes());
    if size / block < 64 {
        return Err(Error::posix(Errno::EINVAL, format!("{size} bytes are too few for a file system")).into());
    }
    Ok(())
}
