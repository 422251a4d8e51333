//! Directories that lie in their inode (`inline_data`).
//!
//! ```text
//!   i_block       [parent: 4 bytes][entries: 56 bytes]
//!   system.data   [entries, if there is a value]
//! ```
//!
//! `.` is not stored and `..` is a number. Each part is a chain of entries that reaches exactly to its end,
//! as in a block, without a tail: the inode's checksum covers it. The size of the directory is that of both
//! parts.
//!
//! Positions of listing are those that the entries have once they lie in a block, behind `.` and `..`. Moving
//! to a block copies both parts as they are, so that a position stays valid over it.
//!
//! Invariant: a change is made to a copy and stored whole, or not at all.
//!
//! Source: kernel documentation, "Inline Data"; "Inline Directories".

use super::{Directory, DirectoryEntry, NewEntry};
use crate::error::{Errno, Error, Result};
use crate::format::directory::leaf::{Found, Space};
use crate::format::directory::{Layout, Problem};
use crate::format::inode::{FileType, Inode};
use crate::meta::inline_data::{self, IN_BLOCK};
use crate::meta::{SuperblockInfo, Transaction};
use crate::types::InodeNumber;

/// Bytes of the parent's number.
const PARENT: usize = 4;
/// Bytes of `.` and `..` in a block, which come before all others there.
const DOTS: usize = 24;

/// What a name of an inline directory names.
pub(super) struct FoundInline {
    pub inode: InodeNumber,
    pub file_type: Option<FileType>,
}

/// Both parts, and in `bytes` where the entries of each lie.
struct Content {
    bytes: Vec<u8>,
}

impl Content {
    fn parent(&self) -> u32 {
        self.bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    /// The two chains of entries; the second may be empty.
    fn parts(&self) -> [&[u8]; 2] {
        let (first, second) = self.bytes.split_at(IN_BLOCK);
        [&first[PARENT..], second]
    }

    fn part_mut(&mut self, part: usize) -> &mut [u8] {
        let (first, second) = self.bytes.split_at_mut(IN_BLOCK);
        if part == 0 { &mut first[PARENT..] } else { second }
    }
}

/// Returns true if it made a new inode an empty directory that lies in it; false without the feature or
/// without room.
pub(super) fn initialize(info: &SuperblockInfo, directory: &mut Inode, parent: InodeNumber) -> Result<bool> {
    if !inline_data::may_become_inline(info, directory) {
        return Ok(false);
    }
    let layout =
        Layout::new(info.block_size(), info.features(), info.checksum_seed(), info.inodes_count(), directory);
    let mut bytes = parent.0.to_le_bytes().to_vec();
    bytes.resize(IN_BLOCK, 0);
    layout.fill_unused(&mut bytes[PARENT..]);
    if !inline_data::store(info, directory, &bytes)? {
        return Ok(false);
    }
    directory.size = IN_BLOCK as u64;
    Ok(true)
}

impl Directory<'_> {
    fn corrupt_inline(&self, inode: &Inode, problem: Problem) -> Error {
        Error::corrupt(format!("directory {}: in its inode", inode.number), problem)
    }

    fn content(&self, inode: &Inode) -> Result<Content> {
        let bytes = inline_data::data(inode)?;
        if bytes.len() as u64 != inode.size {
            let problem = format!("size {} is not that of its {} bytes", inode.size, bytes.len());
            return Err(self.corrupt_inline(inode, problem.into()));
        }
        let content = Content { bytes };
        let parent = content.parent();
        if parent == 0 || parent > self.info.inodes_count() {
            return Err(self.corrupt_inline(inode, format!("its parent is inode {parent}").into()));
        }
        Ok(content)
    }

    fn find_part(&self, inode: &Inode, content: &Content, name: &[u8]) -> Result<Option<(usize, Found)>> {
        for (part, bytes) in content.parts().into_iter().enumerate() {
            let found = self.layout.find(bytes, name);
            if let Some(found) = found.map_err(|problem| self.corrupt_inline(inode, problem))? {
                return Ok(Some((part, found)));
            }
        }
        Ok(None)
    }

    fn store_content(&self, inode: &mut Inode, content: &Content) -> Result<()> {
        if inline_data::store(self.info, inode, &content.bytes)? {
            return Ok(());
        }
        Err(self.corrupt_inline(inode, "its own bytes do not fit into it".into()))
    }

    /// Finds a name, `.` and `..` too.
    pub(super) fn locate_inline(&self, inode: &Inode, name: &[u8]) -> Result<Option<FoundInline>> {
        let content = self.content(inode)?;
        let dot = match name {
            b"." => Some(inode.number.0),
            b".." => Some(content.parent()),
            _ => None,
        };
        if let Some(number) = dot {
            let file_type = Some(FileType::Directory);
            return Ok(Some(FoundInline { inode: InodeNumber(number), file_type }));
        }
        let found = self.find_part(inode, &content, name)?;
        Ok(found
            .map(|(_, found)| FoundInline { inode: InodeNumber(found.inode), file_type: found.file_type }))
    }

    /// Adds a name if it has room, the room of the inode that the second part does not use yet included.
    /// False if it has none.
    pub(super) fn add_inline(&self, inode: &mut Inode, entry: &NewEntry<'_>) -> Result<bool> {
        let mut content = self.content(inode)?;
        let exists = || {
            let name = String::from_utf8_lossy(entry.name);
            Error::posix(Errno::EEXIST, format!("{name:?} in directory {}", inode.number))
        };
        if self.find_part(inode, &content, entry.name)?.is_some() {
            return Err(exists());
        }
        let capacity = inline_data::capacity(self.info, inode)?;
        if content.bytes.len() == IN_BLOCK && self.space_in_part(inode, &content, 0, entry)?.is_none() {
            if capacity < IN_BLOCK + Layout::entry_len(1) {
                return Ok(false);
            }
            content.bytes.resize(capacity, 0);
            self.layout.fill_unused(content.part_mut(1));
        }
        for part in [0, 1] {
            if content.parts()[part].is_empty() {
                continue;
            }
            let Some(offset) = self.space_in_part(inode, &content, part, entry)? else { continue };
            let area = content.part_mut(part);
            self.layout
                .insert(area, offset, entry.name, entry.inode, entry.file_type)
                .map_err(|problem| self.corrupt_inline(inode, problem))?;
            self.store_content(inode, &content)?;
            inode.size = content.bytes.len() as u64;
            return Ok(true);
        }
        Ok(false)
    }

    fn space_in_part(
        &self,
        inode: &Inode,
        content: &Content,
        part: usize,
        entry: &NewEntry<'_>,
    ) -> Result<Option<usize>> {
        let space = self.layout.find_space(content.parts()[part], entry.name);
        match space.map_err(|problem| self.corrupt_inline(inode, problem))? {
            Space::At(offset) => Ok(Some(offset)),
            Space::Full | Space::Exists(_) => Ok(None),
        }
    }

    /// Removes a name that is neither `.` nor `..`.
    pub(super) fn remove_inline(&self, inode: &mut Inode, name: &[u8]) -> Result<InodeNumber> {
        let mut content = self.content(inode)?;
        let (part, found) =
            self.find_part(inode, &content, name)?.ok_or_else(|| super::no_entry(inode, name))?;
        self.layout
            .remove(content.part_mut(part), &found)
            .map_err(|problem| self.corrupt_inline(inode, problem))?;
        self.store_content(inode, &content)?;
        Ok(InodeNumber(found.inode))
    }

    /// Makes a name, or `..`, name another inode.
    pub(super) fn replace_inline(
        &self,
        inode: &mut Inode,
        name: &[u8],
        target: InodeNumber,
        file_type: FileType,
    ) -> Result<()> {
        let mut content = self.content(inode)?;
        if name == b".." {
            content.bytes[..PARENT].copy_from_slice(&target.0.to_le_bytes());
        } else {
            let (part, found) =
                self.find_part(inode, &content, name)?.ok_or_else(|| super::no_entry(inode, name))?;
            self.layout.set_inode(content.part_mut(part), found.offset, target.0, file_type);
        }
        self.store_content(inode, &content)
    }

    /// As [`super::read`].
    pub(super) fn read_inline(
        &self,
        inode: &Inode,
        position: u64,
        max: usize,
    ) -> Result<Vec<DirectoryEntry>> {
        let content = self.content(inode)?;
        let skip = usize::try_from(position).unwrap_or(usize::MAX);
        let mut entries = Vec::new();
        let mut push = |name: &[u8], number, file_type, at: usize, next: usize| {
            if at >= skip && entries.len() < max {
                let (inode, next) = (InodeNumber(number), next as u64);
                entries.push(DirectoryEntry { name: name.to_vec(), inode, file_type, next });
            }
        };
        let dots = [(b".".as_slice(), inode.number.0, 0, 12), (b"..", content.parent(), 12, DOTS)];
        for (name, number, at, next) in dots {
            push(name, number, Some(FileType::Directory), at, next);
        }
        let mut start = DOTS;
        let mut damage = None;
        for part in content.parts() {
            for entry in self.layout.entries(part) {
                match entry {
                    Ok(entry) if entry.inode == 0 => {}
                    Ok(entry)
                        if entry.name.is_empty() || entry.name.iter().any(|b| matches!(b, b'/' | 0)) =>
                    {
                        damage = Some("a name that cannot be one".into());
                    }
                    Ok(entry) => {
                        let (at, next) = (start + entry.offset, start + entry.end());
                        push(entry.name, entry.inode, entry.file_type(), at, next);
                    }
                    Err(problem) => damage = Some(problem),
                }
                if damage.is_some() {
                    break;
                }
            }
            start += part.len();
        }
        match damage {
            Some(problem) if entries.is_empty() => Err(self.corrupt_inline(inode, problem)),
            _ => Ok(entries),
        }
    }

    /// Returns true if no name is stored.
    pub(super) fn is_empty_inline(&self, inode: &Inode) -> Result<bool> {
        let content = self.content(inode)?;
        for part in content.parts() {
            for entry in self.layout.entries(part) {
                let entry = entry.map_err(|problem| self.corrupt_inline(inode, problem))?;
                if entry.inode != 0 {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Moves the directory into one block. An error leaves it as it was.
    pub(super) async fn move_to_block(&self, transaction: &dyn Transaction, inode: &mut Inode) -> Result<()> {
        let content = self.content(inode)?;
        for part in content.parts() {
            let damaged = self.layout.entries(part).find_map(std::result::Result::err);
            if let Some(problem) = damaged {
                return Err(self.corrupt_inline(inode, problem));
            }
        }
        let before = inode.clone();
        let numbers = (inode.number.0, content.parent());
        inline_data::clear(self.info, inode)?;
        inode.size = 0;
        let (_, buffer) = match self.append(transaction, inode, self.leaf_kind()).await {
            Ok(appended) => appended,
            Err(error) => {
                *inode = before;
                return Err(error);
            }
        };
        buffer
            .modify(transaction, |block| self.layout.fill_from_areas(block, numbers, &content.parts()))?
            .map_err(|problem: Problem| self.corrupt_inline(&before, problem))
    }
}
