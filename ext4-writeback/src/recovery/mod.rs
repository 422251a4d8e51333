//! Replay of fast commits (ext4_fc_replay) after a crash: applies their tags to the metadata in memory.
//!
//! Invariants:
//! - Nothing reaches the device from here: changes stay in the buffer cache, and [`finish_recovery`] hands
//!   all of them to the journal at once.
//! - Each block that a tag claims is kept from the allocator before the first tag is applied. Otherwise a
//!   directory that has to grow could take a block whose data the next tag gives to a file.
//! - Memory is bounded by the tags and by the metadata that they touch.

pub(crate) mod claims;
pub(crate) mod image;
pub(crate) mod names;
pub(crate) mod ranges;
pub(crate) mod settle;

use std::collections::BTreeSet;
use std::sync::Arc;

use ext4_core::format::inode::{FileType, Inode, InodeFlags};
use ext4_core::meta::orphan::Orphans;
use ext4_core::meta::{DirectTransaction, SuperblockInfo, inode_allocator, inode_table, xattr};
use ext4_core::{Error, InodeNumber, Result};
use ext4_journal::{FastCommit, FastCommitTag, FastCommits, Journal};

use crate::recovery::claims::Claims;

/// What a replay did, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// How many fast commits were applied.
    pub commits: usize,
    /// How many tags were applied.
    pub applied: usize,
    /// How many tags were skipped, because what they are for does not exist.
    pub passed_over: usize,
    /// How many inodes the tags left without a name; they were deleted.
    pub deleted: usize,
}

/// Ends the recovery of `journal`: applies `fast_commits`, which its [`Journal::recover`] found, to the file
/// system `info`, which was loaded after that, and makes the result durable. Load the file system again
/// afterwards.
///
/// # Errors
/// - Corrupt, naming the tag, if the tags contradict each other or the file system.
/// - Unsupported, naming the feature.
/// - Those of the devices.
///
/// The recovery can be done again after an error, from the beginning.
pub async fn finish_recovery(
    info: &Arc<SuperblockInfo>,
    journal: &Journal,
    fast_commits: &FastCommits,
) -> Result<ReplayReport> {
    let report = replay(info, fast_commits).await?;
    journal.finish_recovery(info.device(), info.cache.take_dirty()).await?;
    tracing::info!(?report, "fast commits replayed");
    Ok(report)
}

/// Applies `fast_commits` to `info` in memory: what changed is in its buffer cache
/// ([`ext4_core::meta::BufferCache::take_dirty`]). The file system is in the state of the last full commit,
/// and nothing else uses `info`.
///
/// # Errors
/// As [`finish_recovery`]. `info` must not be used after an error.
pub async fn replay(info: &Arc<SuperblockInfo>, fast_commits: &FastCommits) -> Result<ReplayReport> {
    let mut replay = Replay::new(info).await?;
    replay.claim(fast_commits).await?;
    for commit in &fast_commits.commits {
        replay.commit(commit).await?;
    }
    replay.finish().await
}

/// The result of a tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Applied,
    /// Skipped: what the tag is for does not exist.
    PassedOver,
}

/// A replay under way.
pub(crate) struct Replay<'a> {
    pub(crate) info: &'a SuperblockInfo,
    pub(crate) transaction: DirectTransaction,
    pub(crate) orphans: Orphans,
    pub(crate) claims: Claims,
    /// Inodes in use that have no name: deleted at the end unless they get one.
    pub(crate) nameless: BTreeSet<InodeNumber>,
    /// Inodes that have an image in the fast commit that is being applied, with the links it says.
    pub(crate) images: Vec<(InodeNumber, u16)>,
    report: ReplayReport,
}

impl<'a> Replay<'a> {
    async fn new(info: &'a Arc<SuperblockInfo>) -> Result<Self> {
        Ok(Self {
            info,
            transaction: DirectTransaction::new(Arc::clone(&info.cache)),
            orphans: Orphans::load(info).await?,
            claims: Claims::default(),
            nameless: BTreeSet::new(),
            images: Vec::new(),
            report: ReplayReport::default(),
        })
    }

    /// Keeps every block that a tag names from the allocator.
    async fn claim(&mut self, fast_commits: &FastCommits) -> Result<()> {
        for tag in fast_commits.tags() {
            if let FastCommitTag::AddRange { inode, extent } = tag {
                let claimed = self.claims.claim(self.info, &self.transaction, *inode, extent).await;
                claimed.map_err(|error| of_tag(tag, error))?;
            }
        }
        Ok(())
    }

    async fn commit(&mut self, commit: &FastCommit) -> Result<()> {
        self.report.commits += 1;
        self.images.clear();
        for (at, tag) in commit.tags.iter().enumerate() {
            let rest = commit.tags.get(at + 1..).unwrap_or_default();
            match self.tag(tag, rest).await.map_err(|error| of_tag(tag, error))? {
                Outcome::Applied => self.report.applied += 1,
                Outcome::PassedOver => {
                    tracing::debug!(%tag, "passed over: what it is about does not exist");
                    self.report.passed_over += 1;
                }
            }
        }
        // A fast commit is a complete state: an inode that has links in it has a name in it. If the inode
        // were deleted because it has no name, data that an fsync had reported durable would be lost
        // silently.
        match self.images.iter().find(|(inode, links)| *links > 0 && self.nameless.contains(inode)) {
            Some((inode, links)) => Err(Error::corrupt(
                format!("fast commit: inode {inode}"),
                format!("has {links} links and no name; a check can put it into lost+found"),
            )),
            None => Ok(()),
        }
    }

    /// Applies a tag; `rest` are the tags behind it in the same fast commit.
    async fn tag(&mut self, tag: &FastCommitTag, rest: &[FastCommitTag]) -> Result<Outcome> {
        match tag {
            FastCommitTag::Inode { inode, image } => self.image(*inode, image).await,
            FastCommitTag::AddRange { inode, extent } => {
                self.prepare(*inode, rest).await?;
                self.add_range(*inode, extent).await
            }
            FastCommitTag::DelRange { inode, logical, len } => {
                self.prepare(*inode, rest).await?;
                self.del_range(*inode, *logical, *len).await
            }
            FastCommitTag::Create(entry) => self.create(entry).await,
            FastCommitTag::Link(entry) => self.link(entry).await,
            FastCommitTag::Unlink(entry) => self.unlink(entry).await,
            FastCommitTag::Head { .. } | FastCommitTag::Pad { .. } | FastCommitTag::Tail { .. } => {
                Ok(Outcome::Applied)
            }
        }
    }

    /// Ranges come before the image of their inode, unless it was made under a name in the same fast commit:
    /// an inode without a name, or one whose number was used again, has to be made before its ranges are
    /// mapped.
    async fn prepare(&mut self, inode: InodeNumber, rest: &[FastCommitTag]) -> Result<()> {
        let ahead = rest.iter().find_map(|tag| match tag {
            FastCommitTag::Inode { inode: other, image } if *other == inode => Some(image),
            _ => None,
        });
        match ahead {
            Some(image) if self.is_new(inode, image).await? => self.image(inode, image).await.map(drop),
            _ => Ok(()),
        }
    }

    /// The inode, if its number is in use.
    pub(crate) async fn find(&self, number: InodeNumber) -> Result<Option<Inode>> {
        if number.0 == 0 || number.0 > self.info.inodes_count() {
            let problem = format!("is not within 1 to {}", self.info.inodes_count());
            return Err(Error::corrupt(format!("inode {number}"), problem));
        }
        if !inode_allocator::is_used(self.info, number).await? {
            return Ok(None);
        }
        let inode = inode_table::read_inode(self.info, number).await?;
        Ok((inode.mode != 0).then_some(inode))
    }

    /// Returns true for the number of an inode that cannot be a file.
    pub(crate) fn is_reserved(&self, number: InodeNumber) -> bool {
        number.0 < self.info.opened_superblock().first_ino && number != InodeNumber::ROOT
    }

    pub(crate) async fn write(&self, inode: &Inode) -> Result<()> {
        inode_table::write_inode(self.info, &self.transaction, inode).await
    }

    /// Deletes inodes that are left without a name, settles the claims, and puts the counts into the
    /// superblock.
    async fn finish(mut self) -> Result<ReplayReport> {
        for number in std::mem::take(&mut self.nameless) {
            if let Some(inode) = self.find(number).await? {
                // Such an inode may map a block twice, which settling the claims would have shown.
                self.delete(inode).await.map_err(|error| of(&format!("inode {number}"), error))?;
                self.report.deleted += 1;
            }
        }
        self.settle_claims().await?;
        self.info.store_free_counts(&self.transaction).await?;
        Ok(self.report)
    }

    /// Deletes an inode with its blocks and attributes.
    pub(crate) async fn delete(&mut self, mut inode: Inode) -> Result<()> {
        let number = inode.number;
        let attributes = if inode.file_acl.0 == 0 { 0 } else { self.info.cluster_sectors() };
        let maps_blocks = match inode.file_type() {
            Some(FileType::Regular) => !inode.flags.contains(InodeFlags::INLINE_DATA),
            Some(FileType::Directory | FileType::Symlink) => inode.sectors > attributes,
            _ => false,
        };
        if maps_blocks {
            self.unmap_all(&mut inode).await?;
        }
        xattr::release_block(self.info, &self.transaction, &mut inode).await?;
        self.orphans.remove(self.info, &self.transaction, &mut inode).await?;
        inode.size = 0;
        inode.links_count = 0;
        if !inode.flags.contains(InodeFlags::EXTENTS) {
            inode.i_block = [0; 60];
        }
        inode.dtime = u32::try_from(self.info.environment.now().seconds).unwrap_or(u32::MAX).max(1);
        self.write(&inode).await?;
        self.nameless.remove(&number);
        inode_allocator::free_inode(self.info, &self.transaction, number, inode.is_dir()).await
    }
}

/// Adds the name of the tag to an error.
fn of_tag(tag: &FastCommitTag, error: Error) -> Error {
    of(&tag.to_string(), error)
}

fn of(tag: &str, error: Error) -> Error {
    match error {
        Error::Corrupt(corrupt) => Error::corrupt(format!("fast commit: {tag}"), corrupt.to_string()),
        Error::Unsupported(what) => Error::Unsupported(format!("fast commit: {tag}: {what}")),
        Error::Posix { errno, context } => Error::posix(errno, format!("fast commit: {tag}: {context}")),
        error => error,
    }
}
