//! The sink that makes a tree inside a mounted file system.

use std::collections::HashMap;

use ext4_core::format::inode::FileType;
use ext4_core::meta::xattr::SetMode;
use ext4_core::{Errno, Error, InodeNumber, Result, Timestamp};
use ext4_writeback::{Attributes, Credentials, Filesystem, NewInode, SetAttributes, Times};

use super::{Content, Entry, Node, Preserve, Report, Sink};

/// How an [`ImageSink`] makes objects.
#[derive(Clone, Copy, Debug)]
pub struct ImageSinkOptions {
    /// The attributes that are preserved.
    pub preserve: Preserve,
    /// Owner and group of new objects, if those of the source are not preserved.
    pub owner: (u32, u32),
    /// Permission bits that are cleared, if the mode is not preserved.
    pub umask: u16,
    /// If set, later times become this time, and access times become modification times: the convention of
    /// reproducible builds for `SOURCE_DATE_EPOCH`.
    pub latest: Option<Timestamp>,
    /// True if the file system is empty: only names in the root directory are looked up before an object is
    /// made.
    pub fresh: bool,
    /// True if each complete file is made durable by fsync, and reported.
    pub durable: bool,
    /// If set, the file system is synced each time this many bytes were written, and at no other time:
    /// without a commit timer, the same tree makes the same image.
    pub sync_every: Option<u64>,
}

/// Makes a tree below a directory of a mounted file system.
#[derive(Debug)]
pub struct ImageSink {
    filesystem: Filesystem,
    options: ImageSinkOptions,
    /// The path of directories from the target to the current directory.
    directories: Vec<Level>,
    links: HashMap<(u64, u64), InodeNumber>,
    gathered: u64,
}

#[derive(Debug)]
struct Level {
    inode: InodeNumber,
    /// Attributes that are set when the directory is complete; `None` if the directory keeps its own.
    node: Option<Node>,
    /// True if the directory has the set-group-ID bit: new objects in it get its group.
    lends_group: bool,
}

/// Bytes that one directory entry counts in [`ImageSinkOptions::sync_every`].
const ENTRY_COST: u64 = 4096;
/// `S_ISGID`.
const SET_GROUP_ID: u16 = 0o2000;

impl ImageSink {
    /// A sink that makes its root in (or merges it into) `directory`.
    #[must_use]
    pub fn new(filesystem: Filesystem, directory: InodeNumber, options: ImageSinkOptions) -> Self {
        Self {
            filesystem,
            options,
            directories: vec![Level { inode: directory, node: None, lends_group: true }],
            links: HashMap::new(),
            gathered: 0,
        }
    }

    fn parent(&self) -> InodeNumber {
        self.directories.last().map_or(InodeNumber::ROOT, |level| level.inode)
    }

    /// Attributes of `name` in the current directory, or `None` if there is no such name.
    async fn existing(&self, name: &[u8]) -> Result<Option<Attributes>> {
        // A fresh file system has only the names that mkfs made in the root directory.
        if self.options.fresh && self.parent() != InodeNumber::ROOT {
            return Ok(None);
        }
        match self.filesystem.lookup(self.parent(), name).await {
            Ok(inode) => Ok(Some(self.filesystem.attributes(inode).await?)),
            Err(error) if error.errno() == Errno::ENOENT => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Unlinks `name`, if it exists, so that another object can be made there.
    ///
    /// # Errors
    /// - `EISDIR`: it is a directory.
    /// - Those of lookup and unlink.
    async fn clear(&self, name: &[u8]) -> Result<()> {
        match self.existing(name).await? {
            Some(found) if found.file_type == FileType::Directory => {
                Err(Error::posix(Errno::EISDIR, "cannot replace a directory"))
            }
            Some(_) => self.filesystem.unlink(self.parent(), name).await,
            None => Ok(()),
        }
    }

    fn credentials(&self, node: &Node) -> Credentials {
        let (uid, gid) = if self.options.preserve.owner { (node.uid, node.gid) } else { self.options.owner };
        let mode =
            if self.options.preserve.mode { node.mode } else { node.mode & 0o777 & !self.options.umask };
        Credentials { uid, gid, mode }
    }

    /// Access and modification time for the copy of `node`.
    fn times(&self, node: &Node) -> (Timestamp, Timestamp) {
        match self.options.latest {
            Some(latest) => (node.mtime.min(latest), node.mtime.min(latest)),
            None => (node.atime, node.mtime),
        }
    }

    /// The attributes to set after an object was made: it may have got the group of a set-group-ID parent,
    /// and writing has changed its times.
    fn attributes(&self, node: &Node) -> SetAttributes {
        let Credentials { uid, gid, mode } = self.credentials(node);
        let mut changes = SetAttributes::new().mode(mode);
        if node.file_type == FileType::Symlink {
            changes.mode = None;
        }
        // An object that existed before the copy keeps its owner, except the root directory of a fresh file
        // system.
        if self.options.preserve.owner || self.options.fresh {
            (changes.uid, changes.gid) = (Some(uid), Some(gid));
        }
        if self.options.preserve.times {
            let (atime, mtime) = self.times(node);
            (changes.atime, changes.mtime) = (Some(atime), Some(mtime));
        }
        changes
    }

    /// Makes a new object `name` in the current directory, with all preserved attributes.
    async fn make(&self, name: &[u8], node: &Node) -> Result<InodeNumber> {
        let mut credentials = self.credentials(node);
        if node.file_type == FileType::Directory {
            // Set when the directory is complete: until then the bit would change the group of new entries.
            credentials.mode &= !SET_GROUP_ID;
        }
        let now = self.filesystem.now();
        let times = self.options.preserve.times.then(|| {
            let (atime, mtime) = self.times(node);
            Times { atime, mtime, ctime: now, crtime: Some(now) }
        });
        let new = NewInode::new(node.file_type, credentials)
            .device(node.device)
            .target(node.target.clone())
            .times(times)
            .xattrs(if self.options.preserve.xattrs { node.xattrs.clone() } else { Vec::new() });
        let inode = self.filesystem.create_with(self.parent(), name, new).await?;
        let lends_group = self.directories.last().is_some_and(|level| level.lends_group);
        if lends_group && self.options.preserve.owner && node.file_type != FileType::Directory {
            self.filesystem.set_attributes(inode, &self.attributes(node)).await?;
        }
        Ok(inode)
    }

    async fn set_xattrs(&self, inode: InodeNumber, node: &Node) -> Result<()> {
        if self.options.preserve.xattrs {
            for (name, value) in &node.xattrs {
                self.filesystem.setxattr(inode, name, value, SetMode::Any).await.map_err(|error| {
                    Error::posix(
                        error.errno(),
                        format!("attribute {} of {} bytes", crate::display::escaped(name), value.len()),
                    )
                })?;
            }
        }
        Ok(())
    }

    /// Records the inode of a new object under its identity in the source, for later hard links.
    fn remember(&mut self, inode: InodeNumber, node: &Node) {
        if let Some(identity) = node.identity {
            self.links.insert(identity, inode);
        }
    }

    async fn gather(&mut self, bytes: u64) -> Result<()> {
        self.gathered += bytes;
        if self.options.sync_every.is_some_and(|limit| self.gathered >= limit) {
            self.gathered = 0;
            self.filesystem.sync().await?;
        }
        Ok(())
    }
}

impl Sink for ImageSink {
    async fn enter(&mut self, entry: &Entry) -> anyhow::Result<()> {
        let node = &entry.node;
        let existing = if entry.name.is_empty() {
            Some(self.filesystem.attributes(self.parent()).await?)
        } else {
            self.existing(&entry.name).await?
        };
        let level = match existing {
            Some(found) if found.file_type == FileType::Directory => {
                self.set_xattrs(found.inode, node).await?;
                // An existing directory keeps its attributes unless all of them are preserved.
                let becomes = self.options.preserve.mode.then(|| node.clone());
                Level { inode: found.inode, node: becomes, lends_group: found.mode & SET_GROUP_ID != 0 }
            }
            Some(_) => {
                return Err(Error::posix(Errno::ENOTDIR, "cannot replace a file by a directory").into());
            }
            None => {
                let inode = self.make(&entry.name, node).await?;
                Level { inode, node: Some(node.clone()), lends_group: false }
            }
        };
        self.directories.push(level);
        self.gather(ENTRY_COST).await?;
        Ok(())
    }

    async fn leave(&mut self, _report: &dyn Report) -> anyhow::Result<()> {
        if let Some(Level { inode, node: Some(node), .. }) = self.directories.pop() {
            self.filesystem.set_attributes(inode, &self.attributes(&node)).await?;
        }
        Ok(())
    }

    async fn file(
        &mut self,
        entry: &Entry,
        content: &mut Content,
        report: &dyn Report,
    ) -> anyhow::Result<u64> {
        let node = &entry.node;
        let existing = self.existing(&entry.name).await?;
        let replaced = existing.filter(|found| found.file_type == FileType::Regular);
        let inode = match &replaced {
            Some(found) => found.inode,
            None => {
                self.clear(&entry.name).await?;
                self.make(&entry.name, node).await?
            }
        };
        let mut first = content.next().await?;
        let mut bytes = 0;
        if first.is_some() || node.size > 0 || replaced.is_some() || self.options.durable {
            let file = self.filesystem.open(inode).await?;
            if replaced.is_some() {
                file.set_len(0).await?;
                self.set_xattrs(inode, node).await?;
            }
            while let Some(chunk) = first {
                let mut written = 0;
                while written < chunk.data.len() {
                    written += file.write_at(chunk.offset + written as u64, &chunk.data[written..]).await?;
                }
                bytes += chunk.data.len() as u64;
                report.bytes(chunk.data.len() as u64);
                self.gather(chunk.data.len() as u64).await?;
                first = content.next().await?;
            }
            if file.len() < node.size {
                file.set_len(node.size).await?;
            }
            if self.options.preserve.times || replaced.is_some() && self.options.preserve.mode {
                self.filesystem.set_attributes(inode, &self.attributes(node)).await?;
            }
            if self.options.durable {
                file.sync_all().await?;
                report.durable(&entry.path);
            }
        }
        self.remember(inode, node);
        self.gather(ENTRY_COST).await?;
        Ok(bytes)
    }

    async fn special(&mut self, entry: &Entry, _report: &dyn Report) -> anyhow::Result<()> {
        self.clear(&entry.name).await?;
        let inode = self.make(&entry.name, &entry.node).await?;
        self.remember(inode, &entry.node);
        self.gather(ENTRY_COST).await?;
        Ok(())
    }

    async fn link(&mut self, entry: &Entry) -> anyhow::Result<()> {
        self.clear(&entry.name).await?;
        let inode = entry.node.identity.and_then(|identity| self.links.get(&identity).copied());
        let inode = inode.ok_or_else(|| Error::posix(Errno::ENOENT, "its other name was not copied"))?;
        self.filesystem.link(inode, self.parent(), &entry.name).await?;
        self.gather(ENTRY_COST).await?;
        Ok(())
    }
}
