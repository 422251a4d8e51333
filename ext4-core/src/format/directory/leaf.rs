//! The entries of a directory block: walking over them, searching, adding, removing.
//!
//! Each entry is checked as it is walked over, with the checks of the kernel's `ext4_check_dir_entry`, so
//! that a block that was verified once and one that was not are equally safe to walk.
//!
//! Changing functions leave the checksum wrong; [`Layout::set_leaf_checksum`] is the last call of a change.
//!
//! Source: kernel documentation, "Directory Entries": Linear (Classic) Directories.

use alloc::format;

use zerocopy::{FromBytes, IntoBytes};

use super::{ENTRY_HEAD, Layout, Problem, RawEntry, RawTail, TAIL_FILE_TYPE, TAIL_LEN};
use crate::checksum::crc32c;
use crate::format::inode::FileType;

/// One entry of a block, borrowed from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// The byte of the block at which it starts.
    pub offset: usize,
    /// Bytes to the next entry.
    pub rec_len: usize,
    /// The inode it names; 0 for an unused entry.
    pub inode: u32,
    /// The name.
    pub name: &'a [u8],
    /// The byte that tells the inode's type.
    pub type_byte: u8,
}

impl Entry<'_> {
    /// The inode's type, if the entry tells.
    #[must_use]
    pub fn file_type(&self) -> Option<FileType> {
        FileType::from_directory_byte(self.type_byte)
    }

    /// The byte behind it.
    #[must_use]
    pub fn end(&self) -> usize {
        self.offset.saturating_add(self.rec_len)
    }

    /// Bytes of it that are in use.
    #[must_use]
    pub fn used(&self) -> usize {
        if self.inode == 0 { 0 } else { Layout::entry_len(self.name.len()) }
    }
}

/// The entries of a block in order; ends behind the first that is wrong.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    layout: Layout,
    /// The part of the block that holds entries.
    area: &'a [u8],
    offset: usize,
}

impl<'a> Entries<'a> {
    fn parse(&self) -> Result<Entry<'a>, Problem> {
        let offset = self.offset;
        let wrong = |problem: alloc::string::String| Problem::from(format!("entry at {offset}: {problem}"));
        let rest = self.area.get(offset..).unwrap_or_default();
        let (head, behind) = RawEntry::ref_from_prefix(rest)
            .map_err(|_| wrong(format!("only {} bytes are left", rest.len())))?;
        let rec_len = self.layout.decode_rec_len(head.rec_len.get());
        let name_len = usize::from(head.name_len);
        if !rec_len.is_multiple_of(4) {
            return Err(wrong(format!("rec_len {rec_len} is no multiple of 4")));
        }
        if rec_len < Layout::entry_len(name_len.max(1)) {
            return Err(wrong(format!("rec_len {rec_len} is too small for a name of {name_len}")));
        }
        if rec_len > rest.len() {
            return Err(wrong(format!("rec_len {rec_len} crosses the end of {} bytes", self.area.len())));
        }
        let left = rest.len().saturating_sub(rec_len);
        if left != 0 && left < Layout::entry_len(1) {
            return Err(wrong(format!("rec_len {rec_len} leaves {left} bytes, too few for an entry")));
        }
        let inode = head.inode.get();
        if inode > self.layout.inodes_count {
            return Err(wrong(format!("inode {inode} is past the last, {}", self.layout.inodes_count)));
        }
        let type_byte = if self.layout.filetype { head.file_type } else { 0 };
        let name = behind.get(..name_len).unwrap_or_default();
        Ok(Entry { offset, rec_len, inode, name, type_byte })
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.area.len() {
            return None;
        }
        let entry = self.parse();
        self.offset = match &entry {
            Ok(entry) => entry.end(),
            Err(_) => self.area.len(),
        };
        Some(entry)
    }
}

/// Where a new name can go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// Behind, or in place of, the entry at this byte.
    At(usize),
    /// Nowhere in this block.
    Full,
    /// The name is there already; it names this inode.
    Exists(u32),
}

/// Where a name was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The byte of the block at which the entry starts.
    pub offset: usize,
    /// The byte at which the entry before it starts, if it is not the first.
    pub previous: Option<usize>,
    /// The inode it names; not 0.
    pub inode: u32,
    /// The inode's type, if the entry tells.
    pub file_type: Option<FileType>,
}

impl Layout {
    /// The entries of a block, unused ones included.
    #[must_use]
    pub fn entries<'a>(&self, block: &'a [u8]) -> Entries<'a> {
        let area = block.get(..self.leaf_len()).unwrap_or(block);
        Entries { layout: *self, area, offset: 0 }
    }

    /// The verifier of a leaf, or of any block of a linear directory: tail, checksum, each entry.
    ///
    /// # Errors
    /// The first thing that is wrong, in words.
    pub fn verify_leaf(&self, block: &[u8]) -> Result<(), Problem> {
        self.check_len(block)?;
        if let Some(seed) = self.checksum_seed {
            let (covered, tail) =
                RawTail::ref_from_suffix(block).map_err(|_| Problem::from("no room for a tail"))?;
            if tail.det_reserved_zero1 != 0
                || usize::from(tail.det_rec_len.get()) != TAIL_LEN
                || tail.det_reserved_zero2 != 0
                || tail.det_reserved_ft != TAIL_FILE_TYPE
            {
                return Err("no checksum tail at the end".into());
            }
            let (found, expected) = (tail.det_checksum.get(), crc32c(seed, covered));
            if found != expected {
                return Err(format!("checksum {found:#010x} is not {expected:#010x}").into());
            }
        }
        self.entries(block).try_for_each(|entry| entry.map(|_| ()))
    }

    /// Checks that the first block of a linear directory begins with `.` and `..`; returns what `..` names.
    ///
    /// # Errors
    /// The first thing that is wrong, in words.
    pub fn check_first_leaf(&self, block: &[u8], directory: u32) -> Result<u32, Problem> {
        let mut entries = self.entries(block);
        let (dot, dotdot) = (entries.next().transpose()?, entries.next().transpose()?);
        if !dot.is_some_and(|entry| entry.name == b"." && entry.inode == directory) {
            return Err(format!("the first entry is not '.' of inode {directory}").into());
        }
        match dotdot {
            Some(entry) if entry.name == b".." && entry.inode != 0 => Ok(entry.inode),
            _ => Err("the second entry is not '..'".into()),
        }
    }

    /// Finds `name` in a block.
    ///
    /// # Errors
    /// What is wrong with an entry before it.
    pub fn find(&self, block: &[u8], name: &[u8]) -> Result<Option<Found>, Problem> {
        let mut previous = None;
        for entry in self.entries(block) {
            let entry = entry?;
            if entry.inode != 0 && entry.name == name {
                let Entry { offset, inode, .. } = entry;
                return Ok(Some(Found { offset, previous, inode, file_type: entry.file_type() }));
            }
            previous = Some(entry.offset);
        }
        Ok(None)
    }

    /// Where `name` could be added: the first entry with enough slack behind it.
    ///
    /// # Errors
    /// What is wrong with an entry before that.
    pub fn find_space(&self, block: &[u8], name: &[u8]) -> Result<Space, Problem> {
        let needed = Self::entry_len(name.len());
        for entry in self.entries(block) {
            let entry = entry?;
            if entry.inode != 0 && entry.name == name {
                return Ok(Space::Exists(entry.inode));
            }
            if entry.rec_len.saturating_sub(entry.used()) >= needed {
                return Ok(Space::At(entry.offset));
            }
        }
        Ok(Space::Full)
    }

    /// Writes an entry of `rec_len` bytes at `offset`; no-op if it would not lie in the block.
    pub(super) fn put(
        &self,
        block: &mut [u8],
        offset: usize,
        rec_len: usize,
        name: &[u8],
        inode: u32,
        file_type: u8,
    ) {
        let head = RawEntry {
            inode: inode.into(),
            rec_len: self.encode_rec_len(rec_len).into(),
            name_len: u8::try_from(name.len()).unwrap_or(u8::MAX),
            file_type: if self.filetype { file_type } else { 0 },
        };
        let end = offset.saturating_add(Self::entry_len(name.len()));
        let Some(target) = block.get_mut(offset..end) else { return };
        let Some((first, rest)) = target.split_at_mut_checked(ENTRY_HEAD) else { return };
        first.copy_from_slice(head.as_bytes());
        rest.fill(0);
        if let Some(target) = rest.get_mut(..name.len()) {
            target.copy_from_slice(name);
        }
    }

    fn set_rec_len(&self, block: &mut [u8], offset: usize, rec_len: usize) {
        let raw = self.encode_rec_len(rec_len);
        if let Some((head, _)) =
            block.get_mut(offset..).and_then(|bytes| RawEntry::mut_from_prefix(bytes).ok())
        {
            head.rec_len = raw.into();
        }
    }

    /// The entry at `offset`, by itself.
    fn entry_at<'a>(&self, block: &'a [u8], offset: usize) -> Result<Entry<'a>, Problem> {
        let mut entries = self.entries(block);
        entries.offset = offset;
        entries.parse()
    }

    /// Adds a name where [`Layout::find_space`] said: takes the slack behind the entry there, or the whole
    /// entry if it is unused.
    ///
    /// # Errors
    /// - The entry is damaged or has too little room.
    /// - The block is unchanged then.
    pub fn insert(
        &self,
        block: &mut [u8],
        offset: usize,
        name: &[u8],
        inode: u32,
        file_type: FileType,
    ) -> Result<(), Problem> {
        let entry = self.entry_at(block, offset)?;
        let (used, rec_len) = (entry.used(), entry.rec_len);
        let left = rec_len.saturating_sub(used);
        if left < Self::entry_len(name.len()) {
            return Err(
                format!("entry at {offset}: {left} bytes have no room for a name of {}", name.len()).into()
            );
        }
        if used != 0 {
            self.set_rec_len(block, offset, used);
        }
        self.put(block, offset.saturating_add(used), left, name, inode, file_type.directory_byte());
        Ok(())
    }

    /// Removes what [`Layout::find`] found: the entry before it takes its room; the first of a block becomes
    /// unused. Its bytes are wiped.
    ///
    /// # Errors
    /// - An entry is damaged.
    /// - The block is unchanged then.
    pub fn remove(&self, block: &mut [u8], found: &Found) -> Result<(), Problem> {
        let entry = self.entry_at(block, found.offset)?;
        let (start, end) = (entry.offset, entry.end());
        let wiped = match found.previous {
            Some(previous) => {
                let before = self.entry_at(block, previous)?;
                if before.end() != start {
                    return Err(
                        format!("entry at {previous} ends at {}, not at {start}", before.end()).into()
                    );
                }
                self.set_rec_len(block, previous, end.saturating_sub(previous));
                block.get_mut(start..end)
            }
            None => {
                let rec_len = entry.rec_len;
                self.put(block, start, rec_len, &[], 0, 0);
                block.get_mut(start.saturating_add(ENTRY_HEAD)..end)
            }
        };
        wiped.unwrap_or_default().fill(0);
        Ok(())
    }

    /// Makes the entry at `offset` name another inode.
    pub fn set_inode(&self, block: &mut [u8], offset: usize, inode: u32, file_type: FileType) {
        if let Some((head, _)) =
            block.get_mut(offset..).and_then(|bytes| RawEntry::mut_from_prefix(bytes).ok())
        {
            head.inode = inode.into();
            if self.filetype {
                head.file_type = file_type.directory_byte();
            }
        }
    }

    /// Fills `block` with the given entries (name, inode, type byte), one behind the other; the last takes
    /// all the room that is left. With none, one unused entry covers it all. The tail is made, its checksum
    /// is not.
    ///
    /// # Errors
    /// - The entries do not fit.
    /// - The content of the block is undefined then.
    pub fn fill_leaf<'e>(
        &self,
        block: &mut [u8],
        entries: impl Iterator<Item = (&'e [u8], u32, u8)>,
    ) -> Result<(), Problem> {
        self.check_len(block)?;
        let end = self.leaf_len();
        block.fill(0);
        self.put_tail(block);
        let (mut last, mut offset) = (0, 0);
        for (name, inode, file_type) in entries {
            let len = Self::entry_len(name.len());
            if end.saturating_sub(offset) < len {
                return Err(format!("{end} bytes are too few for the entries").into());
            }
            self.put(block, offset, len, name, inode, file_type);
            last = offset;
            offset = offset.saturating_add(len);
        }
        if offset == 0 {
            self.put(block, 0, end, &[], 0, 0);
        } else {
            self.set_rec_len(block, last, end.saturating_sub(last));
        }
        Ok(())
    }

    /// As [`Layout::fill_leaf`], but the room that is left comes before the first entry: no entry comes to
    /// lie lower than it did in a block that held these entries in this order.
    ///
    /// # Errors
    /// - The entries do not fit.
    /// - The content of the block is undefined then.
    pub fn fill_leaf_from_end<'e>(
        &self,
        block: &mut [u8],
        entries: impl Iterator<Item = (&'e [u8], u32, u8)> + Clone,
    ) -> Result<(), Problem> {
        let lens = entries.clone().map(|(name, _, _)| Self::entry_len(name.len()));
        let used = lens.fold(0_usize, usize::saturating_add);
        let free = self.leaf_len().saturating_sub(used);
        if used == 0 || free < Self::entry_len(1) {
            return self.fill_leaf(block, entries);
        }
        self.check_len(block)?;
        block.fill(0);
        self.put_tail(block);
        self.put(block, 0, free, &[], 0, 0);
        let mut offset = free;
        for (name, inode, file_type) in entries {
            let len = Self::entry_len(name.len());
            self.put(block, offset, len, name, inode, file_type);
            offset = offset.saturating_add(len);
        }
        Ok(())
    }

    /// One unused entry over all of `area`, which is cleared.
    pub fn fill_unused(&self, area: &mut [u8]) {
        area.fill(0);
        self.put(area, 0, area.len(), &[], 0, 0);
    }

    /// Lets the last entry of the first `used` bytes of `area` reach to its end.
    ///
    /// # Errors
    /// - An entry is damaged.
    /// - Nothing is changed then.
    pub fn extend_last(&self, area: &mut [u8], used: usize) -> Result<(), Problem> {
        let mut last = 0;
        for entry in self.entries(area.get(..used).unwrap_or_default()) {
            last = entry?.offset;
        }
        let len = area.len().saturating_sub(last);
        self.set_rec_len(area, last, len);
        Ok(())
    }

    /// Fills `block` with `.`, `..` and, at `parts`' places behind these, entries as they lie in areas
    /// without the two: none moves but by the length of `.` and `..`. The last reaches to the end. The tail
    /// is made, its checksum is not.
    ///
    /// # Errors
    /// - The entries do not fit, or are damaged.
    /// - The content of the block is undefined then.
    pub fn fill_from_areas(
        &self,
        block: &mut [u8],
        (directory, parent): (u32, u32),
        parts: &[&[u8]],
    ) -> Result<(), Problem> {
        self.check_len(block)?;
        block.fill(0);
        self.put_tail(block);
        let (end, kind) = (self.leaf_len(), FileType::Directory.directory_byte());
        let (dot, dotdot) = (Self::entry_len(1), Self::entry_len(2));
        self.put(block, 0, dot, b".", directory, kind);
        self.put(block, dot, dotdot, b"..", parent, kind);
        let mut at = dot.saturating_add(dotdot);
        for part in parts {
            let next = at.saturating_add(part.len());
            match block.get_mut(at..next) {
                Some(target) if next <= end => target.copy_from_slice(part),
                _ => return Err(format!("{end} bytes are too few for the entries").into()),
            }
            at = next;
        }
        match block.get_mut(..end) {
            Some(area) => self.extend_last(area, at),
            None => Err("no room for entries".into()),
        }
    }

    fn put_tail(&self, block: &mut [u8]) {
        if self.checksum_seed.is_none() {
            return;
        }
        if let Ok((_, tail)) = RawTail::mut_from_suffix(block) {
            *tail = RawTail {
                det_reserved_zero1: 0.into(),
                det_rec_len: 12.into(),
                det_reserved_zero2: 0,
                det_reserved_ft: TAIL_FILE_TYPE,
                det_checksum: 0.into(),
            };
        }
    }

    /// Makes the checksum of a leaf right; no-op without metadata_csum.
    pub fn set_leaf_checksum(&self, block: &mut [u8]) {
        if let (Some(seed), Ok((covered, tail))) = (self.checksum_seed, RawTail::mut_from_suffix(block)) {
            tail.det_checksum = crc32c(seed, covered).into();
        }
    }
}
