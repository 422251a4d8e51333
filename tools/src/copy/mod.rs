//! Copying trees: from the host into an image, out of an image, from one image into another.
//!
//! ```text
//!   source (host_source, image_source)                 sink (image_sink, host_sink)
//!     walks in order, reads ahead ──► bounded queue of events ──► makes one object after the other
//!          └ contents of large files ──► a queue of chunks each ─────────┘
//! ```
//!
//! A source yields [`Event`]s depth first, the entries of each directory sorted by name, so that the same
//! tree always makes the same image. Reading runs ahead of writing; the queues bound how far.
//!
//! Invariants:
//! - Content in memory is bounded by [`QUEUED_EVENTS`] small files and [`READERS`] times [`QUEUED_CHUNKS`]
//!   chunks, for any tree.
//! - The reader of the first file in the queue is always running (readers are admitted in order), so that the
//!   sink never waits for a file whose reader waits for the sink.

pub mod host_sink;
pub mod host_source;
pub mod image_sink;
pub mod image_source;

use std::future::Future;

use anyhow::Context;
use ext4_core::Timestamp;
use ext4_core::format::inode::FileType;
use tokio::sync::mpsc;

use crate::display::escaped;

/// Events in the queue between source and sink.
pub const QUEUED_EVENTS: usize = 64;
/// Chunks in the queue of one large file.
pub const QUEUED_CHUNKS: usize = 3;
/// Large files that are read at a time.
pub const READERS: usize = 3;
/// The largest chunk, in bytes.
pub const CHUNK: usize = 1 << 20;
/// The largest small file, in bytes. The content of a small file is in its event: it needs no reader.
pub const SMALL_FILE: u64 = 64 << 10;

/// Attributes of one object of a tree, on the host or in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// File type.
    pub file_type: FileType,
    /// Permission bits with set-user-ID, set-group-ID and sticky bit.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes of a regular file.
    pub size: u64,
    /// Access time.
    pub atime: Timestamp,
    /// Modification time.
    pub mtime: Timestamp,
    /// Major and minor number of a device node.
    pub device: (u32, u32),
    /// Target of a symlink.
    pub target: Vec<u8>,
    /// Extended attributes with full names, sorted.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// File system and inode number, if the object has other names (hard links).
    pub identity: Option<(u64, u64)>,
}

/// A directory entry of a tree.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name in its directory; empty for a root that is merged into an existing directory.
    pub name: Vec<u8>,
    /// The path in the source, for messages.
    pub path: Vec<u8>,
    /// The object that the name refers to.
    pub node: Node,
}

/// A piece of a file's content. Ranges of the file that no chunk covers are holes.
#[derive(Debug)]
pub struct Chunk {
    /// First byte in the file.
    pub offset: u64,
    /// The bytes.
    pub data: Vec<u8>,
}

/// The content of a regular file: chunks in ascending order.
#[derive(Debug)]
pub enum Content {
    /// All chunks of a small file.
    Small(std::vec::IntoIter<Chunk>),
    /// Chunks from the reader of a large file.
    Stream(mpsc::Receiver<anyhow::Result<Chunk>>),
}

impl Content {
    /// Returns the next chunk, or `None` at the end.
    ///
    /// # Errors
    /// The reader's error.
    pub async fn next(&mut self) -> anyhow::Result<Option<Chunk>> {
        match self {
            Self::Small(chunks) => Ok(chunks.next()),
            Self::Stream(chunks) => chunks.recv().await.transpose(),
        }
    }
}

/// A step of a source's walk through a tree.
#[derive(Debug)]
pub enum Event {
    /// A directory begins. Its entries follow, then its [`Event::Leave`].
    Enter(Entry),
    /// The directory entered last is complete.
    Leave,
    /// A regular file.
    File(Entry, Content),
    /// A symlink, device node, FIFO or socket.
    Special(Entry),
    /// Another name (hard link) of an earlier object, with the same [`Node::identity`].
    Link(Entry),
}

/// The events of a walk, in order. The first error is the last event.
pub type Events = mpsc::Receiver<anyhow::Result<Event>>;

/// The attributes that a copy preserves, besides content, type and permission bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Preserve {
    /// True if all mode bits are preserved; otherwise permission bits less the umask.
    pub mode: bool,
    /// True if owner and group are preserved.
    pub owner: bool,
    /// True if access and modification times are preserved.
    pub times: bool,
    /// True if extended attributes are preserved.
    pub xattrs: bool,
}

impl Preserve {
    /// Everything.
    pub const ALL: Self = Self { mode: true, owner: true, times: true, xattrs: true };
    /// Nothing.
    pub const NONE: Self = Self { mode: false, owner: false, times: false, xattrs: false };
}

/// The receiver of a copy's progress.
pub trait Report: Send + Sync {
    /// `count` more bytes of content were written.
    fn bytes(&self, count: u64);
    /// The entry at `path` is complete.
    fn entry(&self, path: &[u8]);
    /// An attribute or object could not be copied; `text` says which and why.
    fn warning(&self, text: &str);
    /// The file at `path` is durable: it is whole after any later crash.
    fn durable(&self, path: &[u8]);
}

/// The objects that a copy made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// All other objects, and further names of files.
    pub others: u64,
    /// Bytes of content written, holes not counted.
    pub bytes: u64,
}

impl Totals {
    /// Directory entries of all kinds.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.files + self.directories + self.others
    }
}

/// The target of a copy. [`copy`] calls one method for each event, in order.
pub trait Sink: Send {
    /// Makes a directory, or takes the existing one, and makes it the current directory.
    fn enter(&mut self, entry: &Entry) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// Completes the directory entered last: sets its attributes, since nothing more is added to it.
    fn leave(&mut self, report: &dyn Report) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// Makes a regular file; returns the number of bytes of content written.
    fn file(
        &mut self,
        entry: &Entry,
        content: &mut Content,
        report: &dyn Report,
    ) -> impl Future<Output = anyhow::Result<u64>> + Send;
    /// Makes a symlink, device node, FIFO or socket.
    fn special(
        &mut self,
        entry: &Entry,
        report: &dyn Report,
    ) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// Makes another name (hard link) of an earlier object.
    fn link(&mut self, entry: &Entry) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// Applies `events` to `sink`.
///
/// # Errors
/// The first error of source or sink, with the path it concerns.
pub async fn copy<S: Sink>(events: &mut Events, sink: &mut S, report: &dyn Report) -> anyhow::Result<Totals> {
    let mut totals = Totals::default();
    while let Some(event) = events.recv().await {
        match event? {
            Event::Enter(entry) => {
                sink.enter(&entry).await.with_context(|| escaped(&entry.path))?;
                totals.directories += 1;
                report.entry(&entry.path);
            }
            Event::Leave => sink.leave(report).await?,
            Event::File(entry, mut content) => {
                let bytes = sink.file(&entry, &mut content, report).await;
                totals.bytes += bytes.with_context(|| escaped(&entry.path))?;
                totals.files += 1;
                report.entry(&entry.path);
            }
            Event::Special(entry) => {
                sink.special(&entry, report).await.with_context(|| escaped(&entry.path))?;
                totals.others += 1;
                report.entry(&entry.path);
            }
            Event::Link(entry) => {
                sink.link(&entry).await.with_context(|| escaped(&entry.path))?;
                totals.others += 1;
                report.entry(&entry.path);
            }
        }
    }
    Ok(totals)
}

/// The errno in the chain of an error, or `None` if there is none.
#[must_use]
pub fn errno_of(error: &anyhow::Error) -> Option<ext4_core::Errno> {
    error.chain().find_map(|cause| cause.downcast_ref::<ext4_core::Error>()).map(ext4_core::Error::errno)
}
