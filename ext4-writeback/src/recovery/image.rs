//! INODE (EXT4_FC_TAG_INODE): an inode as the inode table had it when the fast commit was made.
//!
//! | field | from |
//! |---|---|
//! | type, owner, times, flags, size, generation, version | the image |
//! | i_block | target of a fast symlink, device number, inline data: the image; a mapping: the inode here |
//! | links | names, see `names.rs` |
//! | i_blocks | the blocks that are mapped here |
//! | block of attributes | the inode here; the image says the same, as no tag can change it |
//! | attributes in the inode | the inode here: the image ends before them, unless there is inline data |
//! | size and index of a directory | the inode here: its blocks are made by the replay of its names |
//! | dtime | the orphan list |
//!
//! Invariant: an image changes neither the type of an inode nor the kind of its mapping while the inode has
//! blocks. Otherwise blocks would lose their owner, or the content of a directory would become that of a
//! file.

use ext4_core::format::features::{Incompat, RoCompat};
use ext4_core::format::inode::{FAST_SYMLINK_SIZE, FileType, Inode, InodeFlags, InodeLayout};
use ext4_core::meta::{extent_tree, inode_allocator, inode_table};
use ext4_core::{Error, InodeNumber, Result};

use crate::recovery::{Outcome, Replay};

/// The bytes of i_block in an inode.
const I_BLOCK: std::ops::Range<usize> = 40..100;

impl Replay<'_> {
    /// Applies the image to its inode.
    pub(crate) async fn image(&mut self, number: InodeNumber, image: &[u8]) -> Result<Outcome> {
        if self.is_reserved(number) {
            // A quota file, perhaps: its content went through the log.
            return Ok(Outcome::PassedOver);
        }
        let mut old = self.find(number).await?;
        if self.is_new(number, image).await?
            && let Some(former) = old.take()
        {
            self.delete(former).await?;
        }
        let slot = match &old {
            Some(_) => inode_table::read_slot(self.info, number).await?,
            None => vec![0; usize::from(self.info.inode_size())],
        };
        let said = parse(number, &slot, image, &self.info.inode_layout())?;
        self.images.push((number, said.links_count));
        let inode = match old {
            Some(old) => self.changed(&old, said)?,
            None => {
                let inode = self.made(said)?;
                if !inode_allocator::is_used(self.info, number).await? {
                    let is_directory = inode.is_dir();
                    inode_allocator::mark_used(self.info, &self.transaction, number, is_directory).await?;
                }
                self.nameless.insert(number);
                inode
            }
        };
        self.write(&inode).await?;
        Ok(Outcome::Applied)
    }

    /// Returns true if `image` is of another inode than the one that has its number now: the number is free,
    /// or its inode has lost its last name and has another generation than the image.
    pub(crate) async fn is_new(&self, number: InodeNumber, image: &[u8]) -> Result<bool> {
        if self.is_reserved(number) {
            return Ok(false);
        }
        let Some(old) = self.find(number).await? else { return Ok(true) };
        if !self.nameless.contains(&number) && old.links_count > 0 {
            return Ok(false);
        }
        let slot = vec![0; usize::from(self.info.inode_size())];
        let said = parse(number, &slot, image, &self.info.inode_layout())?;
        Ok(said.generation != old.generation)
    }

    /// A new inode from its image.
    fn made(&self, said: Inode) -> Result<Inode> {
        let number = said.number;
        if said.file_acl.0 != 0 {
            return Err(Error::corrupt(format!("inode {number}"), "is new and has attributes in a block"));
        }
        let mut inode = Inode { links_count: 0, sectors: 0, dtime: 0, is_new: true, ..said };
        inode.flags.remove(InodeFlags::HUGE_FILE);
        if inode.is_dir() {
            // Its blocks come with its names.
            inode.flags.remove(InodeFlags::INDEX | InodeFlags::INLINE_DATA | InodeFlags::EXTENTS);
            inode.i_block = [0; 60];
            inode.size = 0;
        } else if inode.flags.contains(InodeFlags::EXTENTS) {
            extent_tree::initialize(&mut inode);
        } else if inode.flags.contains(InodeFlags::INLINE_DATA) {
            if !self.info.features().incompat.contains(Incompat::INLINE_DATA) {
                return Err(Error::corrupt(format!("inode {number}"), "inline data, without the feature"));
            }
        } else if maps_by_pointers(&inode) && inode.i_block != [0; 60] {
            return Err(indirect(number));
        }
        Ok(inode)
    }

    /// `old` as its image changes it.
    fn changed(&self, old: &Inode, said: Inode) -> Result<Inode> {
        let number = old.number;
        let wrong = |problem: String| Error::corrupt(format!("inode {number}"), problem);
        if old.file_type() != said.file_type() {
            return Err(wrong(format!("mode {:#o} becomes {:#o}", old.mode, said.mode)));
        }
        if old.generation != said.generation && self.info.features().metadata_csum() {
            // The generation is part of the checksums of all blocks of the inode, and cannot be changed.
            return Err(wrong(format!("generation {} becomes {}", old.generation, said.generation)));
        }
        if old.file_acl != said.file_acl {
            return Err(wrong(format!("attributes move from block {} to {}", old.file_acl, said.file_acl)));
        }
        if old.extra_isize != said.extra_isize && old.xattr_area.iter().any(|byte| *byte != 0) {
            return Err(wrong("its fixed fields grow over its attributes".into()));
        }
        let mut inode = Inode {
            links_count: old.links_count,
            sectors: old.sectors,
            dtime: old.dtime,
            i_block: old.i_block,
            ..said.clone()
        };
        let mapping = InodeFlags::EXTENTS | InodeFlags::INLINE_DATA;
        if old.is_dir() {
            let kept = mapping | InodeFlags::INDEX;
            inode.flags = said.flags.difference(kept).union(old.flags.intersection(kept));
            inode.size = old.size;
        } else if said.flags.contains(InodeFlags::EXTENTS) {
            if !old.flags.contains(InodeFlags::EXTENTS) {
                // Data that the inode held has moved to a block; a file with pointers would lose its blocks.
                if !old.flags.contains(InodeFlags::INLINE_DATA) && old.i_block != [0; 60] {
                    return Err(indirect(number));
                }
                extent_tree::initialize(&mut inode);
            }
        } else if old.flags.contains(InodeFlags::EXTENTS) {
            return Err(wrong("is no longer mapped by extents".into()));
        } else if maps_by_pointers(&said) && !said.flags.contains(InodeFlags::INLINE_DATA) {
            if said.i_block != old.i_block {
                return Err(indirect(number));
            }
        } else {
            inode.i_block = said.i_block;
        }
        Ok(inode)
    }
}

/// Returns true if `i_block`, of an inode without extents or inline data, points to blocks.
fn maps_by_pointers(inode: &Inode) -> bool {
    match inode.file_type() {
        Some(FileType::Regular | FileType::Directory) => true,
        Some(FileType::Symlink) => inode.size >= FAST_SYMLINK_SIZE,
        _ => false,
    }
}

fn indirect(number: InodeNumber) -> Error {
    Error::Unsupported(format!("inode {number} is mapped by indirect blocks, which fast commits do not log"))
}

/// The inode that `image`, laid over the bytes of its `slot`, makes. The checksum of the image covers bytes
/// that are not part of the image, so that of the fast commit has to suffice.
fn parse(number: InodeNumber, slot: &[u8], image: &[u8], layout: &InodeLayout) -> Result<Inode> {
    let wrong = |problem: String| Error::corrupt(format!("inode {number}"), problem);
    let mut bytes = slot.to_vec();
    match bytes.get_mut(..image.len()) {
        Some(start) if image.len() >= I_BLOCK.end => start.copy_from_slice(image),
        _ => return Err(wrong(format!("an image of {} bytes", image.len()))),
    }
    let mut layout = *layout;
    layout.features.ro_compat.remove(RoCompat::METADATA_CSUM);
    let inode = Inode::parse(&bytes, number, &layout)?;
    if inode.file_type().is_none() {
        return Err(wrong(format!("mode {:#o}", inode.mode)));
    }
    if inode.flags.contains(InodeFlags::EXTENTS | InodeFlags::INLINE_DATA) {
        return Err(wrong("is mapped by extents and holds its data".into()));
    }
    Ok(inode)
}
