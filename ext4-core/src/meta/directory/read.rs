//! readdir: listing a directory, in the order of its blocks.
//!
//! A position is the byte of the directory behind the last entry that was returned. Nothing remembers that a
//! reader is listing: a position is looked up again each time, at the first entry that starts there or later.
//!
//! In a linear directory an entry never moves, so that one that is there all the time is returned exactly
//! once. In a hashed one, entries move to higher positions only (see the invariant of this room), so that it
//! is returned at least once, and again if its leaf was split behind the reader.

use std::ops::ControlFlow;

use super::Directory;
use crate::error::Result;
use crate::format::directory::leaf::Entry;
use crate::format::inode::{FileType, Inode};
use crate::meta::inline_data::is_inline;
use crate::meta::{Buffer, SuperblockInfo};
use crate::types::InodeNumber;

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirectoryEntry {
    /// The name: 1 to 255 bytes, neither `/` nor NUL in it.
    pub name: Vec<u8>,
    /// The inode.
    pub inode: InodeNumber,
    /// Its type, if the entry tells.
    pub file_type: Option<FileType>,
    /// Where to go on after this entry: pass to [`read`].
    pub next: u64,
}

/// Up to `max` entries from `position` on (0: the start), `.` and `..` included, in the order of the blocks;
/// none at the end. A position stays valid while entries are added and removed: an entry that is there all
/// the time is returned exactly once in a linear directory, at least once in a hashed one.
///
/// # Errors
/// - Corrupt, also for a name that cannot be one.
/// - Those of the device.
///
/// Entries before the damage are returned first.
pub async fn read(
    info: &SuperblockInfo,
    directory: &Inode,
    position: u64,
    max: usize,
) -> Result<Vec<DirectoryEntry>> {
    let this = Directory::new(info, directory)?;
    let bits = this.layout.block_size.bits();
    let Ok(first) = u32::try_from(position >> bits) else { return Ok(Vec::new()) };
    let mut entries = Vec::new();
    if max == 0 {
        return Ok(entries);
    }
    if is_inline(directory) {
        return this.read_inline(directory, position, max);
    }
    let walked = this
        .walk(directory, first, |logical, buffer| {
            let start = u64::from(logical) << bits;
            let skip = usize::try_from(position.saturating_sub(start)).unwrap_or(usize::MAX);
            this.for_each_name(directory, logical, buffer, |entry| {
                if entry.offset >= skip {
                    let end =
                        if entry.end() >= this.layout.leaf_len() { 1 << bits } else { entry.end() as u64 };
                    entries.push(DirectoryEntry {
                        name: entry.name.to_vec(),
                        inode: InodeNumber(entry.inode),
                        file_type: entry.file_type(),
                        next: start + end,
                    });
                    if entries.len() >= max {
                        return ControlFlow::Break(());
                    }
                }
                ControlFlow::Continue(())
            })
        })
        .await;
    match walked {
        Err(error) if entries.is_empty() => Err(error),
        _ => Ok(entries),
    }
}

/// Returns true if there is nothing but `.` and `..`.
///
/// # Errors
/// - Corrupt, also if one of the two is missing.
/// - Those of the device.
pub async fn is_empty(info: &SuperblockInfo, directory: &Inode) -> Result<bool> {
    let this = Directory::new(info, directory)?;
    if is_inline(directory) {
        return this.is_empty_inline(directory);
    }
    let mut dots = 0;
    let other = this
        .walk(directory, 0, |logical, buffer| {
            this.for_each_name(directory, logical, buffer, |entry| {
                if logical == 0 && (entry.name == b"." || entry.name == b"..") {
                    dots += 1;
                    return ControlFlow::Continue(());
                }
                ControlFlow::Break(())
            })
        })
        .await?;
    if dots != 2 {
        return Err(this.corrupt(directory, 0, "'.' or '..' is missing".into()));
    }
    Ok(other.is_none())
}

impl Directory<'_> {
    /// Gives `f` the entries of a block that are in use.
    fn for_each_name(
        &self,
        inode: &Inode,
        logical: u32,
        buffer: &Buffer,
        mut f: impl FnMut(&Entry<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        // The image is held, not the lock: a block has many entries, and `f` may allocate.
        let image = buffer.image();
        let Some(layout) = self.entries_layout(logical, &image) else {
            return Ok(ControlFlow::Continue(()));
        };
        for entry in layout.entries(&image) {
            let entry = entry.map_err(|problem| self.corrupt_block(inode, buffer, problem))?;
            if entry.inode == 0 {
                continue;
            }
            if entry.name.is_empty() || entry.name.iter().any(|byte| matches!(byte, b'/' | 0)) {
                let name = String::from_utf8_lossy(entry.name);
                let problem = format!("entry at {}: {name:?} is no name", entry.offset);
                return Err(self.corrupt_block(inode, buffer, problem.into()));
            }
            if f(&entry).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
