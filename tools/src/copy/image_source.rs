//! The source that walks a tree inside a mounted file system and reads its files ahead of the sink.
//!
//! The walk ends for any image: a directory that is its own ancestor is reported as corrupt. A corrupt image
//! can still name one directory several times, so that the walk visits it several times.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::Context;
use ext4_core::format::inode::FileType;
use ext4_core::{Errno, Error, InodeNumber};
use ext4_writeback::SeekTarget;
use ext4_writeback::{Attributes, File, Filesystem};
use tokio::sync::{Semaphore, mpsc};

use super::{
    CHUNK, Chunk, Content, Entry, Event, Events, Node, QUEUED_CHUNKS, QUEUED_EVENTS, READERS, SMALL_FILE,
};
use crate::display::escaped;
use crate::target::join;

/// Directory entries read in one call.
const READDIR_BATCH: usize = 1024;

/// A directory on the path from the root to the current object.
struct Level {
    inode: InodeNumber,
    path: Vec<u8>,
    /// Entries that are still to be visited, in reverse order.
    remaining: Vec<(Vec<u8>, InodeNumber)>,
}

/// A tree inside a mounted file system, and how to walk it.
#[derive(Clone, Debug)]
pub struct ImageTree {
    /// The file system.
    pub filesystem: Filesystem,
    /// The root of the tree: a directory, or any single object.
    pub root: InodeNumber,
    /// The root's path, for messages.
    pub path: Vec<u8>,
    /// The name in the root's event; empty to merge the root into an existing directory.
    pub name: Vec<u8>,
    /// True if extended attributes are read.
    pub xattrs: bool,
    /// A number of this file system, different for each source of a copy: the first part of
    /// [`Node::identity`].
    pub number: u64,
}

impl ImageTree {
    /// Starts the walk. Has to be called within a tokio runtime.
    #[must_use]
    pub fn walk(self) -> Events {
        let (sender, receiver) = mpsc::channel(QUEUED_EVENTS);
        tokio::spawn(async move {
            if let Err(error) = self.run(&sender).await {
                let _ = sender.send(Err(error)).await;
            }
        });
        receiver
    }

    async fn run(&self, sender: &mpsc::Sender<anyhow::Result<Event>>) -> anyhow::Result<()> {
        let readers = Arc::new(Semaphore::new(READERS));
        let mut seen = HashSet::new();
        // The directories from the root to the current object.
        let mut stack: Vec<Level> = Vec::new();
        let mut next = Some((self.name.clone(), self.path.clone(), self.root));
        loop {
            let Some((name, path, inode)) = next.take() else {
                let Some(level) = stack.last_mut() else { return Ok(()) };
                match level.remaining.pop() {
                    Some((name, inode)) => next = Some((name.clone(), join(&level.path, &name), inode)),
                    None => {
                        stack.pop();
                        send(sender, Event::Leave).await?;
                    }
                }
                continue;
            };
            let node = self.node(inode).await.with_context(|| escaped(&path))?;
            let entry = Entry { name, path: path.clone(), node };
            match entry.node.file_type {
                FileType::Directory => {
                    if stack.iter().any(|above| above.inode == inode) {
                        let what = format!("directory inode {inode} at {}", escaped(&path));
                        return Err(Error::corrupt(what, "contains itself").into());
                    }
                    let mut remaining =
                        list(&self.filesystem, inode).await.with_context(|| escaped(&path))?;
                    remaining.sort_by(|left, right| right.0.cmp(&left.0));
                    send(sender, Event::Enter(entry)).await?;
                    stack.push(Level { inode, path, remaining });
                }
                _ if entry.node.identity.is_some_and(|identity| !seen.insert(identity)) => {
                    send(sender, Event::Link(entry)).await?;
                }
                FileType::Regular => {
                    let content =
                        self.content(inode, &entry, &readers).await.with_context(|| escaped(&path))?;
                    send(sender, Event::File(entry, content)).await?;
                }
                _ => send(sender, Event::Special(entry)).await?,
            }
        }
    }

    async fn node(&self, inode: InodeNumber) -> anyhow::Result<Node> {
        let attributes = self.filesystem.attributes(inode).await?;
        let mut xattrs = Vec::new();
        if self.xattrs {
            for name in self.filesystem.listxattr(inode).await? {
                let value = self.filesystem.getxattr(inode, &name).await?;
                xattrs.push((name, value));
            }
            xattrs.sort();
        }
        let target = match attributes.file_type {
            FileType::Symlink => self.filesystem.readlink(inode).await?,
            _ => Vec::new(),
        };
        Ok(self.node_of(&attributes, target, xattrs))
    }

    fn node_of(&self, attributes: &Attributes, target: Vec<u8>, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Node {
        let regular = attributes.file_type == FileType::Regular;
        let shared = attributes.links > 1 && attributes.file_type != FileType::Directory;
        Node {
            file_type: attributes.file_type,
            mode: attributes.mode & 0o7777,
            uid: attributes.uid,
            gid: attributes.gid,
            size: if regular { attributes.size } else { 0 },
            atime: attributes.atime,
            mtime: attributes.mtime,
            device: attributes.device.unwrap_or_default(),
            target,
            xattrs,
            identity: shared.then_some((self.number, attributes.inode.into())),
        }
    }

    async fn content(
        &self,
        inode: InodeNumber,
        entry: &Entry,
        readers: &Arc<Semaphore>,
    ) -> anyhow::Result<Content> {
        let size = entry.node.size;
        if size == 0 {
            return Ok(Content::Small(Vec::new().into_iter()));
        }
        let file = self.filesystem.open(inode).await?;
        let (sender, mut receiver) = mpsc::channel(QUEUED_CHUNKS);
        if size <= SMALL_FILE {
            // One chunk for each run of data: a small file may have more of them than the queue holds.
            let (read, chunks) = tokio::join!(read_file(&file, size, sender), async {
                let mut chunks = Vec::new();
                while let Some(chunk) = receiver.recv().await {
                    chunks.push(chunk);
                }
                chunks
            });
            read?;
            let chunks = chunks.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
            return Ok(Content::Small(chunks.into_iter()));
        }
        let permit = Arc::clone(readers).acquire_owned().await?;
        tokio::spawn(async move {
            let _permit = permit;
            let failures = sender.clone();
            if let Err(error) = read_file(&file, size, sender).await {
                let _ = failures.send(Err(error)).await;
            }
        });
        Ok(Content::Stream(receiver))
    }
}

/// Reads a file in chunks into `sender`, without the holes, until the receiver is closed.
async fn read_file(
    file: &File,
    size: u64,
    sender: mpsc::Sender<anyhow::Result<Chunk>>,
) -> anyhow::Result<()> {
    let mut next = 0;
    while next < size {
        let Some(start) = seek(file, next, SeekTarget::Data).await? else { return Ok(()) };
        let end = seek(file, start, SeekTarget::Hole).await?.unwrap_or(size).min(size);
        let mut offset = start;
        while offset < end {
            let boundary = (offset / CHUNK as u64 + 1) * CHUNK as u64;
            let want = usize::try_from(boundary.min(end) - offset).unwrap_or(CHUNK);
            let mut data = vec![0; want];
            let count = file.read_at(offset, &mut data).await?;
            data.truncate(count);
            if count == 0 || sender.send(Ok(Chunk { offset, data })).await.is_err() {
                return Ok(());
            }
            offset += count as u64;
        }
        next = end.max(start + 1);
    }
    Ok(())
}

async fn seek(file: &File, offset: u64, target: SeekTarget) -> anyhow::Result<Option<u64>> {
    match file.seek(offset, target).await {
        Err(error) if error.errno() == Errno::ENXIO => Ok(None),
        result => Ok(result?),
    }
}

async fn send(sender: &mpsc::Sender<anyhow::Result<Event>>, event: Event) -> anyhow::Result<()> {
    sender.send(Ok(event)).await.context("the copy has ended")
}

/// All entries of a directory except `.` and `..`, in the order of readdir.
///
/// # Errors
/// - Those of readdir.
/// - Corrupt: a name is empty, or contains a slash or a zero byte.
pub async fn list(
    filesystem: &Filesystem,
    directory: InodeNumber,
) -> ext4_core::Result<Vec<(Vec<u8>, InodeNumber)>> {
    let mut names = Vec::new();
    let mut position = 0;
    loop {
        let batch = filesystem.readdir(directory, position, READDIR_BATCH).await?;
        let Some(last) = batch.last() else { return Ok(names) };
        position = last.next;
        for entry in batch {
            if entry.name == b"." || entry.name == b".." {
                continue;
            }
            // The name becomes one component of a path of the host: a slash in it could lead out of the
            // target.
            if entry.name.is_empty() || entry.name.iter().any(|byte| *byte == b'/' || *byte == 0) {
                let what = format!("directory inode {directory}");
                return Err(Error::corrupt(what, format!("the name {:?}", escaped(&entry.name))));
            }
            names.push((entry.name, entry.inode));
        }
    }
}
