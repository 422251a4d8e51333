//! CREAT, LINK and UNLINK (EXT4_FC_TAG_*): names in directories, and the link counts that follow from them.
//!
//! Invariant: a link count is what the names say. A tag that adds no name, because its directory is gone,
//! adds no link; a tag that removes no name, because the name is missing or belongs to another inode, removes
//! no link.
//!
//! No tag has the times of directories. A directory whose names change gets the time of the replay, as in the
//! kernel.

use ext4_core::format::inode::{FileType, Inode};
use ext4_core::meta::directory;
use ext4_core::{Error, InodeNumber, Result};
use ext4_journal::FastCommitEntry;

use crate::recovery::{Outcome, Replay};
use ext4_core::meta::links::names_changed;
use ext4_core::meta::links::{add_subdirectory, remove_subdirectory};

impl Replay<'_> {
    /// CREAT: the inode, which an earlier image has described, was made under this name.
    pub(crate) async fn create(&mut self, entry: &FastCommitEntry) -> Result<Outcome> {
        let Some(mut inode) = self.find(entry.inode).await? else {
            return Err(Error::corrupt(format!("inode {}", entry.inode), "no tag before says what it is"));
        };
        let Some(mut parent) = self.directory(entry).await? else { return Ok(Outcome::PassedOver) };
        if !inode.is_dir() {
            return self.add_name(parent, inode, entry).await;
        }
        if self.name(&parent, entry).await? == Some(inode.number) {
            return Ok(Outcome::Applied);
        }
        if inode.links_count != 0 || inode.size != 0 {
            return Err(Error::corrupt(format!("directory {}", inode.number), "has a place already"));
        }
        directory::initialize(self.info, &self.transaction, &mut inode, parent.number).await?;
        inode.links_count = 1;
        // Its entry in the parent is the second link.
        self.write(&inode).await?;
        add_subdirectory(&mut parent);
        self.add_name(parent, inode, entry).await
    }

    /// LINK: the inode got this name.
    pub(crate) async fn link(&mut self, entry: &FastCommitEntry) -> Result<Outcome> {
        let Some(inode) = self.find(entry.inode).await? else { return Ok(Outcome::PassedOver) };
        if inode.is_dir() {
            return Err(Error::corrupt(format!("inode {}", inode.number), "is a directory"));
        }
        match self.directory(entry).await? {
            Some(parent) => self.add_name(parent, inode, entry).await,
            None => Ok(Outcome::PassedOver),
        }
    }

    /// Adds a name and a link. Writes both inodes.
    async fn add_name(
        &mut self,
        mut parent: Inode,
        mut inode: Inode,
        entry: &FastCommitEntry,
    ) -> Result<Outcome> {
        if self.is_reserved(inode.number) {
            return Err(Error::corrupt(format!("inode {}", inode.number), "is reserved"));
        }
        match self.name(&parent, entry).await? {
            Some(found) if found == inode.number => return Ok(Outcome::Applied),
            Some(found) => {
                let problem = format!("the name is that of inode {found}");
                return Err(Error::corrupt(format!("directory {}", parent.number), problem));
            }
            None => {}
        }
        let file_type = inode.file_type().unwrap_or(FileType::Regular);
        let (info, transaction) = (self.info, &self.transaction);
        directory::add(info, transaction, &mut parent, &entry.name, inode.number, file_type).await?;
        names_changed(&mut parent, info.environment.now());
        self.write(&parent).await?;
        inode.links_count = inode
            .links_count
            .checked_add(1)
            .ok_or_else(|| Error::corrupt(format!("inode {}", inode.number), "has too many links"))?;
        if self.nameless.remove(&inode.number) {
            // A file that was made without a name is an orphan until it has one.
            self.orphans.remove(info, transaction, &mut inode).await?;
        }
        self.write(&inode).await?;
        Ok(Outcome::Applied)
    }

    /// UNLINK: the inode lost this name.
    pub(crate) async fn unlink(&mut self, entry: &FastCommitEntry) -> Result<Outcome> {
        let Some(mut parent) = self.directory(entry).await? else { return Ok(Outcome::PassedOver) };
        if self.name(&parent, entry).await? != Some(entry.inode) {
            return Ok(Outcome::PassedOver);
        }
        let wrong = |problem: &str| Error::corrupt(format!("inode {}", entry.inode), problem);
        if entry.inode == InodeNumber::ROOT || self.is_reserved(entry.inode) || entry.inode == parent.number {
            return Err(wrong("cannot lose its name"));
        }
        let mut inode = self.find(entry.inode).await?.ok_or_else(|| wrong("has a name and is free"))?;
        let is_directory = inode.is_dir();
        if is_directory && !directory::is_empty(self.info, &inode).await? {
            return Err(wrong("is a directory that is not empty"));
        }
        directory::remove(self.info, &self.transaction, &mut parent, &entry.name).await?;
        names_changed(&mut parent, self.info.environment.now());
        if is_directory {
            remove_subdirectory(&mut parent);
        }
        self.write(&parent).await?;
        inode.links_count = if is_directory { 0 } else { inode.links_count.saturating_sub(1) };
        if inode.links_count == 0 {
            self.nameless.insert(inode.number);
        }
        self.write(&inode).await?;
        Ok(Outcome::Applied)
    }

    /// The directory of `entry`, if it exists.
    async fn directory(&self, entry: &FastCommitEntry) -> Result<Option<Inode>> {
        if matches!(&*entry.name, b"." | b"..") || entry.name.iter().any(|byte| matches!(byte, b'/' | 0)) {
            return Err(Error::corrupt("name", "no tag can make or remove it"));
        }
        let Some(parent) = self.find(entry.parent).await? else { return Ok(None) };
        // A directory that was removed, or that was made and has no name yet.
        if parent.links_count == 0 {
            return Ok(None);
        }
        if !parent.is_dir() || self.is_reserved(entry.parent) {
            return Err(Error::corrupt(format!("inode {}", entry.parent), "is no directory with names"));
        }
        Ok(Some(parent))
    }

    /// The inode that the name of `entry` leads to now.
    async fn name(&self, parent: &Inode, entry: &FastCommitEntry) -> Result<Option<InodeNumber>> {
        let found = directory::lookup(self.info, parent, &entry.name).await?;
        Ok(found.map(|(number, _)| number))
    }
}
