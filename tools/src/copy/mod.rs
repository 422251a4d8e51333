//! Copying trees: from the host into an image, out of one, from one image into another.
//!
//! ```text
//!   source (host_source, image_source)                 sink (image_sink, host_sink)
//!     walks in order, reads ahead ──► bounded queue of events ──► makes one object after the other
//!          └ contents of large files ──► a queue of chunks each ─────────┘
//! ```
//!
//! A source yields [`Event`]s depth first, the entries of each directory sorted by name, so that the same tree always
//! makes the same image. Reading runs ahead of writing; the queues bound how far.
//!
//! Invariant: memory is bounded by [`QUEUED_EVENTS`] small contents and [`READERS`] times [`QUEUED_CHUNKS`] chunks,
//! whatever the tree holds. The first file in the queue always has its reader running (readers are admitted in
//! order), so the sink never waits for a file whose reader waits for the sink.

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

/// Entries that a source may be ahead of the sink.
pub const QUEUED_EVENTS: usize = 64;
/// Chunks of one file that its reader may be ahead of the sink.
pub const QUEUED_CHUNKS: usize = 3;
/// Large files that are being read at a time.
pub const READERS: usize = 3;
/// The most bytes in one chunk.
pub const CHUNK: usize = 1 << 20;
/// Files up to this size travel inside their event, so that they cost no reader of their own.
pub const SMALL_FILE: u64 = 64 << 10;

/// What a copy keeps of one object of a tree, wherever it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub file_type: FileType,
    /// Permission bits with set-user-ID, set-group-ID and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes of a regular file.
    pub size: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Major and minor number of a device node.
    pub device: (u32, u32),
    /// Target of a symlink.
    pub target: Vec<u8>,
    /// Extended attributes, full names, sorted.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// By what its other names are known, where it has any: file system and inode number.
    pub identity: Option<(u64, u64)>,
}

/// One name of a tree.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name in its directory; empty for a root that is merged into an existing directory.
    pub name: Vec<u8>,
    /// The path in the source, for messages.
    pub path: Vec<u8>,
    /// What it names.
    pub node: Node,
}

/// A piece of a file's content; what no piece covers is a hole.
#[derive(Debug)]
pub struct Chunk {
    /// Where it starts in the file, in bytes.
    pub offset: u64,
    /// The bytes.
    pub data: Vec<u8>,
}

/// A regular file's content: pieces in ascending order.
#[derive(Debug)]
pub enum Content {
    /// All of it.
    Small(std::vec::IntoIter<Chunk>),
    /// As a reader finds it.
    Stream(mpsc::Receiver<anyhow::Result<Chunk>>),
}

impl Content {
    /// The next piece.
    ///
    /// # Errors
    /// The reader's.
    pub async fn next(&mut self) -> anyhow::Result<Option<Chunk>> {
        match self {
            Self::Small(chunks) => Ok(chunks.next()),
            Self::Stream(chunks) => chunks.recv().await.transpose(),
        }
    }
}

/// What a source meets on its way through a tree.
#[derive(Debug)]
pub enum Event {
    /// A directory begins; what it holds follows, then its [`Event::Leave`].
    Enter(Entry),
    /// The directory that was entered last is complete.
    Leave,
    /// A regular file.
    File(Entry, Content),
    /// A symlink, device node, FIFO or socket.
    Special(Entry),
    /// Another name of an object met before; [`Node::identity`] says which.
    Link(Entry),
}

/// The events of a walk, in order; the first error ends it.
pub type Events = mpsc::Receiver<anyhow::Result<Event>>;

/// What a copy carries over besides content, type and permission bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Preserve {
    /// All mode bits as they are; otherwise permission bits less the umask.
    pub mode: bool,
    /// Owner and group.
    pub owner: bool,
    /// Access and modification times.
    pub times: bool,
    /// Extended attributes.
    pub xattrs: bool,
}

impl Preserve {
    /// Everything.
    pub const ALL: Self = Self { mode: true, owner: true, times: true, xattrs: true };
    /// Nothing.
    pub const NONE: Self = Self { mode: false, owner: false, times: false, xattrs: false };
}

/// Who is told how a copy goes.
pub trait Report: Send + Sync {
    /// So many more bytes of content were written.
    fn bytes(&self, count: u64);
    /// An entry is complete.
    fn entry(&self, path: &[u8]);
    /// Something could not be carried over.
    fn warning(&self, text: &str);
    /// The file is durable: it is whole after any crash from now on.
    fn durable(&self, path: &[u8]);
}

/// What a copy made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Everything else, further names of files included.
    pub others: u64,
    /// Bytes of content written, holes not counted.
    pub bytes: u64,
}

impl Totals {
    /// Names of all kinds.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.files + self.directories + self.others
    }
}

/// Where a copy goes. Calls come in the order of the events.
pub trait Sink: Send {
    /// Makes a directory, or takes one that is there, and goes into it.
    fn enter(&mut self, entry: &Entry) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// Completes the directory entered last: its times, now that nothing is added to it any more.
    fn leave(&mut self, report: &dyn Report) -> impl Future<Output = anyhow::Result<()>> + Send;
    /// Makes a regular file.
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
    /// Makes another name of an object made before.
    fn link(&mut self, entry: &Entry) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// Carries `events` out on `sink`.
///
/// # Errors
/// The first of source or sink, with the path it concerns.
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

/// The errno at the bottom of an error, where there is one.
#[must_use]
pub fn errno_of(error: &anyhow::Error) -> Option<ext4_core::Errno> {
    error.chain().find_map(|cause| cause.downcast_ref::<ext4_core::Error>()).map(ext4_core::Error::errno)
}
