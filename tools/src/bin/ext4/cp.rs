//! `ext4 cp`: copies files and trees into an image, out of an image, or from one image to another.

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use ext4_core::format::inode::FileType;
use ext4_core::{Errno, Error, InodeNumber, Timestamp};
use ext4_tools::copy::host_sink::HostSink;
use ext4_tools::copy::host_source::HostTree;
use ext4_tools::copy::image_sink::{ImageSink, ImageSinkOptions};
use ext4_tools::copy::image_source::ImageTree;
use ext4_tools::copy::{CHUNK, Chunk, Content, Entry, Event, Events, Node, Preserve, QUEUED_CHUNKS, copy};
use ext4_tools::open::{Access, identity};
use ext4_tools::target::{ImagePath, Place, base_name};
use ext4_writeback::Filesystem;
use tokio::sync::mpsc;

use crate::cat;
use crate::context::{Context, caller, finish, parse_owner, place, umask, usage};
use crate::progress::Progress;

const EXAMPLES: &str = "\
Examples:
  ext4 cp motd disk.img:/etc/motd             into an image
  ext4 cp -r site disk.img:/srv/www           a tree
  ext4 cp -r site/. disk.img:/srv/www         its contents, into an existing directory
  ext4 cp -a disk.img:/home backup/           out of an image, with owners, times and attributes
  ext4 cp -a old.img:/etc new.img:/           from one image to another
  ext4 cp - disk.img:/etc/issue < text        standard input
  ext4 cp disk.img:/etc/fstab - | grep root   standard output

A path of the host with a colon before a slash is written ./a:b (only \":/\" separates).";

/// Copy files and trees between the host and images
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Cp {
    /// What to copy, and where to: a path, IMAGE:/path, or - for standard input or output
    #[arg(value_name = "PLACE", value_parser = place(), num_args = 2.., required = true)]
    places: Vec<Place>,
    /// Copy directories with their contents
    #[arg(short, long)]
    recursive: bool,
    /// Keep mode, owner and times
    #[arg(short, long)]
    preserve: bool,
    /// Keep everything: -r -p and extended attributes
    #[arg(short, long)]
    archive: bool,
    /// Owner and group of new objects in an image, as numbers [default: yours; the source's with -p]
    #[arg(long, value_name = "UID:GID", value_parser = parse_owner)]
    owner: Option<(u32, u32)>,
    /// Make each file durable (fsync) before the next one
    #[arg(long)]
    sync: bool,
    /// Print `durable PATH` when a file survives any later crash; implies --sync
    #[arg(long)]
    report_durable: bool,
}

/// The mounted images. An image that is given under several names is mounted once.
struct Mounts<'c> {
    context: &'c Context,
    mounted: HashMap<PathBuf, Filesystem>,
    target: Option<PathBuf>,
}

impl<'c> Mounts<'c> {
    fn new(context: &'c Context, target: &Place) -> anyhow::Result<Self> {
        let target = match target {
            Place::Image(place) => Some(identity(&place.image)?),
            _ => None,
        };
        Ok(Self { context, mounted: HashMap::new(), target })
    }

    /// The file system on `image` and its number. The target of the copy is mounted for writing, sources
    /// read-only.
    async fn get(&mut self, image: &Path) -> anyhow::Result<(Filesystem, u64)> {
        let key = identity(image)?;
        if !self.mounted.contains_key(&key) {
            let access = if self.target.as_ref() == Some(&key) { Access::Write } else { Access::Read };
            let filesystem = self.context.mount(image, access).await?;
            self.mounted.insert(key.clone(), filesystem);
        }
        // Inode numbers of different images are told apart by this number when hard links are recorded.
        let number = self.mounted.keys().position(|other| *other == key).unwrap_or_default() as u64;
        self.mounted
            .get(&key)
            .map(|filesystem| (filesystem.clone(), number))
            .with_context(|| image.display().to_string())
    }
}

/// The destination of one source.
struct Destination {
    name: Vec<u8>,
    sink: Target,
}

enum Target {
    Host(PathBuf),
    Image(Filesystem, InodeNumber),
}

impl Cp {
    pub async fn run(mut self, context: &Context) -> anyhow::Result<()> {
        let Some(to) = self.places.pop() else { return Err(usage("nothing to copy")) };
        let from = std::mem::take(&mut self.places);
        self.check(&from, &to)?;
        let mut mounts = Mounts::new(context, &to)?;
        let progress = Progress::counter().reporting_durable(self.report_durable);
        let mut result = Ok(());
        for source in &from {
            result = self.one(&mut mounts, source, &to, from.len() > 1, &progress).await;
            if result.is_err() {
                break;
            }
        }
        for (image, filesystem) in mounts.mounted.drain() {
            result = finish(filesystem, &image, result).await;
        }
        result
    }

    fn check(&self, from: &[Place], to: &Place) -> anyhow::Result<()> {
        let in_image = |place: &Place| matches!(place, Place::Image(_));
        if !in_image(to) && from.iter().any(|place| !in_image(place)) {
            return Err(usage("no place inside an image (IMAGE:/path) on one of the sides"));
        }
        if from.len() > 1 && (*to == Place::Standard || from.contains(&Place::Standard)) {
            return Err(usage("- copies one file"));
        }
        Ok(())
    }

    async fn one(
        &self,
        mounts: &mut Mounts<'_>,
        from: &Place,
        to: &Place,
        several: bool,
        progress: &Progress,
    ) -> anyhow::Result<()> {
        if let (Place::Image(from), Place::Standard) = (from, to) {
            let (filesystem, _) = mounts.get(&from.image).await?;
            return cat::print(&filesystem, from).await;
        }
        let destination = self.destination(mounts, from, to, several).await?;
        let mut events = self.events(mounts, from, &destination).await?;
        match destination.sink {
            Target::Host(directory) => {
                let mut sink = HostSink::new(&directory, self.preserved(), umask(), true)?;
                copy(&mut events, &mut sink, progress).await?;
            }
            Target::Image(filesystem, directory) => {
                let mut sink = ImageSink::new(filesystem, directory, self.sink_options());
                copy(&mut events, &mut sink, progress).await?;
            }
        }
        Ok(())
    }

    fn preserved(&self) -> Preserve {
        let most = self.preserve || self.archive;
        Preserve { mode: most, owner: most && self.owner.is_none(), times: most, xattrs: self.archive }
    }

    fn sink_options(&self) -> ImageSinkOptions {
        ImageSinkOptions {
            preserve: self.preserved(),
            owner: self.owner.unwrap_or_else(caller),
            umask: umask(),
            latest: None,
            fresh: false,
            durable: self.sync || self.report_durable,
            sync_every: None,
        }
    }

    /// The destination as cp(1) chooses it: in an existing directory under the source's name, else under the
    /// given name.
    async fn destination(
        &self,
        mounts: &mut Mounts<'_>,
        from: &Place,
        to: &Place,
        several: bool,
    ) -> anyhow::Result<Destination> {
        let source_name = match from {
            Place::Host(path) => base_name(path.as_os_str().as_bytes()),
            Place::Image(place) => base_name(&place.path),
            Place::Standard => None,
        };
        match to {
            Place::Standard => Err(usage("standard output takes one file out of an image")),
            Place::Host(path) => {
                if path.is_dir() {
                    let name = source_name.unwrap_or_default().to_vec();
                    return Ok(Destination { name, sink: Target::Host(path.clone()) });
                }
                let name =
                    path.file_name().filter(|_| !several && (self.recursive() || !ends_with_slash(path)));
                let name = name.ok_or_else(|| Error::posix(Errno::ENOTDIR, path.display().to_string()))?;
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                let directory = parent.unwrap_or(Path::new(".")).to_path_buf();
                Ok(Destination { name: name.as_bytes().to_vec(), sink: Target::Host(directory) })
            }
            Place::Image(place) => {
                let (filesystem, _) = mounts.get(&place.image).await?;
                let existing = match filesystem.resolve(&place.path, true).await {
                    Ok(inode) => Some((inode, filesystem.attributes(inode).await?.file_type)),
                    Err(error) if error.errno() == Errno::ENOENT => None,
                    Err(error) => return Err(error.into()),
                };
                let (directory, name) = match existing {
                    Some((inode, FileType::Directory)) => {
                        if *from == Place::Standard {
                            return Err(usage(format!("{place} is a directory: name the file in it")));
                        }
                        (inode, source_name.unwrap_or_default().to_vec())
                    }
                    _ if several => return Err(Error::posix(Errno::ENOTDIR, place.to_string()).into()),
                    _ => {
                        let (parent, name) = filesystem.resolve_parent(&place.path).await?;
                        (parent, name.to_vec())
                    }
                };
                Ok(Destination { name, sink: Target::Image(filesystem, directory) })
            }
        }
    }

    fn recursive(&self) -> bool {
        self.recursive || self.archive
    }

    async fn events(
        &self,
        mounts: &mut Mounts<'_>,
        from: &Place,
        destination: &Destination,
    ) -> anyhow::Result<Events> {
        match from {
            Place::Standard => Ok(standard_input(destination.name.clone())),
            Place::Host(path) => {
                let metadata = if self.recursive() { path.symlink_metadata() } else { path.metadata() };
                let metadata =
                    metadata.map_err(|source| Error::host("read", path.display().to_string(), &source))?;
                if metadata.is_dir() && !self.recursive() {
                    return Err(Error::posix(Errno::EISDIR, format!("{} (use -r)", path.display())).into());
                }
                let tree = HostTree {
                    root: path.clone(),
                    name: destination.name.clone(),
                    follow_root: !self.recursive(),
                    recursive: self.recursive(),
                    xattrs: self.archive,
                    exclude: Vec::new(),
                };
                Ok(tree.walk())
            }
            Place::Image(place) => {
                let (filesystem, number) = mounts.get(&place.image).await?;
                let root = filesystem.resolve(&place.path, !self.recursive()).await?;
                let what = filesystem.attributes(root).await?.file_type;
                if what == FileType::Directory && !self.recursive() {
                    return Err(Error::posix(Errno::EISDIR, format!("{place} (use -r)")).into());
                }
                if let Target::Image(target, directory) = &destination.sink
                    && what == FileType::Directory
                    && mounts.target.as_ref() == Some(&identity(&place.image)?)
                {
                    refuse_into_itself(target, root, *directory, place).await?;
                }
                let tree = ImageTree {
                    filesystem,
                    root,
                    path: place.path.clone(),
                    name: destination.name.clone(),
                    xattrs: self.archive,
                    number,
                };
                Ok(tree.walk())
            }
        }
    }
}

/// Returns true if `path` ends with a slash: `cp file dir/` fails if dir does not exist; `cp -r tree dir/`
/// makes it.
fn ends_with_slash(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/")
}

/// Fails if `directory` is `source` or lies below it: a copy of a directory into itself would never end.
///
/// # Errors
/// - `EINVAL`: the directory lies in the source.
/// - Corrupt: the directory is not below the root.
async fn refuse_into_itself(
    filesystem: &Filesystem,
    source: InodeNumber,
    mut directory: InodeNumber,
    place: &ImagePath,
) -> anyhow::Result<()> {
    /// More levels than any path has, so that the walk up ends also if `..` entries of a damaged image form a
    /// cycle.
    const MOST_LEVELS: usize = 1 << 16;
    for _ in 0..MOST_LEVELS {
        if directory == source {
            return Err(Error::posix(Errno::EINVAL, format!("{place}: cannot be copied into itself")).into());
        }
        if directory == InodeNumber::ROOT {
            return Ok(());
        }
        directory = filesystem.lookup(directory, b"..").await?;
    }
    Err(Error::corrupt(format!("directory inode {directory}"), "is not below the root").into())
}

/// The events of a tree of one file with the content of standard input.
fn standard_input(name: Vec<u8>) -> Events {
    let (sender, receiver) = mpsc::channel(1);
    let (chunks, content) = mpsc::channel(QUEUED_CHUNKS);
    let now = Timestamp::default();
    let node = Node {
        file_type: FileType::Regular,
        mode: 0o666,
        uid: 0,
        gid: 0,
        size: 0,
        atime: now,
        mtime: now,
        device: (0, 0),
        target: Vec::new(),
        xattrs: Vec::new(),
        identity: None,
    };
    let entry = Entry { name, path: b"-".to_vec(), node };
    // The queue has room for one event: this does not wait.
    let _ = sender.try_send(Ok(Event::File(entry, Content::Stream(content))));
    tokio::task::spawn_blocking(move || {
        let mut input = std::io::stdin().lock();
        let mut offset = 0;
        loop {
            let mut data = Vec::with_capacity(CHUNK);
            match input.by_ref().take(CHUNK as u64).read_to_end(&mut data) {
                Ok(0) => return,
                Ok(count) => {
                    if chunks.blocking_send(Ok(Chunk { offset, data })).is_err() {
                        return;
                    }
                    offset += count as u64;
                }
                Err(source) => {
                    let error = Error::host("read", "standard input", &source);
                    let _ = chunks.blocking_send(Err(error.into()));
                    return;
                }
            }
        }
    });
    receiver
}
