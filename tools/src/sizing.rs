//! The size of a file system that holds a given tree.
//!
//! The tree is measured first: blocks of data (holes not counted), of directories, extent trees, long
//! symlinks and extended attributes. Added are the metadata that mkfs writes, which depends on the size in
//! turn, and a margin. The estimate errs on the large side: an image that turns out too small has to be made
//! again. With bigalloc, every object that takes blocks takes whole clusters.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ext4_core::format::inode::FileType;
use ext4_core::meta::mkfs::default_journal_blocks;
use ext4_core::types::BlockSize;
use ext4_core::{Errno, Error};

use crate::copy::Node;
use crate::copy::host_source::{HostTree, data_runs};
use crate::display::escaped;

/// Block size and cluster size of a new file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Units {
    /// The unit of mapping.
    pub block_size: BlockSize,
    /// The unit of allocation, in blocks: 1 without bigalloc.
    pub cluster_blocks: u64,
}

impl Units {
    /// Blocks that are allocated for a run of `blocks` blocks.
    fn allocated(self, blocks: u64) -> u64 {
        blocks.next_multiple_of(self.cluster_blocks)
    }
}

/// The space that a tree needs, without the fixed metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Need {
    /// Blocks of data and of metadata of inodes.
    pub blocks: u64,
    /// Inodes, without those that every file system has.
    pub inodes: u64,
    /// Bytes of content, holes not counted.
    pub bytes: u64,
    /// Directory entries.
    pub entries: u64,
}

/// Bytes for attributes in a 256-byte inode: less 128 fixed, 32 extra, 4 magic and 4 at the end.
const XATTR_ROOM: usize = 256 - 128 - 32 - 8;
/// Bytes of an attribute block that cannot hold a value: its header, and the shortest entry.
const XATTR_HEADERS: usize = 32 + 16;
/// The longest symlink target in the inode, in bytes.
const FAST_SYMLINK: usize = 59;
/// Extents that fit into the inode.
const INLINE_EXTENTS: u64 = 4;
/// The longest unwritten extent, in blocks.
const LONGEST_EXTENT: u64 = 32_767;
/// Inodes 1 to 10 are reserved; 11 is lost+found.
const RESERVED_INODES: u64 = 11;

/// Measures `tree` for a file system with `units`.
///
/// # Errors
/// - `E2BIG`: an extended attribute does not fit into a block.
/// - The host's errors, with the path; also if a file cannot be read, before anything is written.
pub fn measure(tree: &HostTree, units: Units) -> anyhow::Result<Need> {
    let mut need = Need::default();
    let mut seen = std::collections::HashSet::new();
    let mut open: Vec<Directory> = Vec::new();
    tree.scan(|depth, path, node, metadata| {
        while open.len() > depth {
            need.blocks += open.pop().map_or(0, |directory| directory.blocks(units));
        }
        if let Some(parent) = open.last_mut() {
            parent.add(path.file_name().map_or(0, |name| name.len()));
        }
        need.entries += 1;
        if node.file_type == FileType::Directory {
            open.push(Directory::default());
        } else if node.identity.is_some_and(|identity| !seen.insert(identity)) {
            return Ok(());
        }
        need.inodes += 1;
        let (blocks, bytes) = object_need(path, node, metadata, units)?;
        need.blocks += blocks;
        need.bytes += bytes;
        Ok(())
    })?;
    for directory in open {
        need.blocks += directory.blocks(units);
    }
    Ok(need)
}

/// Blocks and bytes of content of one object, without the entries of a directory.
fn object_need(path: &Path, node: &Node, metadata: &Metadata, units: Units) -> anyhow::Result<(u64, u64)> {
    let block_size = units.block_size;
    let one = units.allocated(1);
    let mut blocks = 0;
    let mut bytes = 0;
    let in_inode: usize =
        node.xattrs.iter().map(|(name, value)| 16 + align(name.len()) + align(value.len())).sum();
    if in_inode > XATTR_ROOM {
        blocks += one;
    }
    let largest = node.xattrs.iter().max_by_key(|(_, value)| value.len());
    if let Some((name, value)) = largest.filter(|(_, value)| value.len() > block_size.len() - XATTR_HEADERS) {
        let what = format!("attribute {} of {} bytes", escaped(name), value.len());
        let problem = format!("{}: {what} does not fit into a block", path.display());
        return Err(Error::posix(Errno::E2BIG, problem).into());
    }
    match node.file_type {
        FileType::Symlink if node.target.len() > FAST_SYMLINK => blocks += one,
        FileType::Regular if node.size > 0 => {
            let whole = [(0, node.size)];
            let sparse = metadata.blocks().saturating_mul(512) < node.size;
            let runs = if sparse { data_runs(path, node.size)? } else { whole.to_vec() };
            let mut extents = 0;
            for (start, end) in &runs {
                let size = u64::from(block_size.bytes());
                let covered = end.div_ceil(size) - start / size;
                let cluster = size * units.cluster_blocks;
                blocks += (end.div_ceil(cluster) - start / cluster) * units.cluster_blocks;
                bytes += end - start;
                // One more for each long run: it may be allocated in two pieces.
                extents += covered.div_ceil(LONGEST_EXTENT) + u64::from(covered > 256);
            }
            if extents > INLINE_EXTENTS {
                let per_block = u64::from(block_size.bytes() - 16) / 12;
                // Leaves of a tree that grows at its end are full, except for the last; half full is the
                // worst case.
                blocks += ((extents * 2).div_ceil(per_block) + 1) * one;
            }
        }
        _ => {}
    }
    Ok((blocks, bytes))
}

/// The entries of one directory.
#[derive(Default)]
struct Directory {
    entries: u64,
    bytes: u64,
}

impl Directory {
    fn add(&mut self, name: usize) {
        self.entries += 1;
        self.bytes += (8 + align(name)) as u64;
    }

    /// The directory's blocks: one, or half-full leaves, as they are after a split, with their index blocks.
    fn blocks(&self, units: Units) -> u64 {
        let block_size = units.block_size;
        let room = u64::from(block_size.bytes()) - 12;
        if self.bytes + 24 <= room {
            return units.allocated(1);
        }
        let average = self.bytes.div_ceil(self.entries.max(1)).max(1);
        let leaves = self.entries.div_ceil((room / average / 2).max(1));
        let index = leaves.div_ceil(room / 8 / 2);
        // The directory's own extent tree.
        let nodes = leaves.div_ceil(u64::from(block_size.bytes()) / 24) + 1;
        units.allocated(1 + leaves + index) + nodes * units.allocated(1)
    }
}

fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

impl Need {
    /// Inodes for a file system that holds the tree, with some to spare.
    #[must_use]
    pub fn inodes_count(&self) -> u64 {
        self.inodes + self.inodes / 50 + RESERVED_INODES + 16
    }

    /// Blocks that have to be free in a fresh file system, with a margin: delayed allocation reserves more
    /// than is allocated, before it is known how well extents merge.
    #[must_use]
    pub fn free_blocks(&self, units: Units) -> u64 {
        self.blocks + self.blocks / 20 + 256.max(16 * units.cluster_blocks)
    }

    /// An estimate of the file system's size in bytes, rounded up to 1 MiB. `journal` is the size of the log
    /// in blocks; `None` means the default.
    #[must_use]
    pub fn size(&self, units: Units, journal: Option<u64>) -> u64 {
        let block = u64::from(units.block_size.bytes());
        let free = self.free_blocks(units);
        let tables = self.inodes_count().div_ceil(block / 256);
        let mut blocks = free + tables;
        for _ in 0..4 {
            let journal = journal.unwrap_or_else(|| default_journal_blocks(blocks).into());
            let groups = blocks.div_ceil(block * 8).max(1);
            // Descriptors, and reserved GDT blocks for 1,024 times the size, in each group with a copy.
            let descriptors =
                groups.div_ceil(block / 64) + (groups * 1024).div_ceil(block / 64).min(block / 4);
            // Bitmaps, and what is lost by rounding up each inode table.
            let fixed = groups * 4 + descriptors * copies(groups) + 64.max(16 * units.cluster_blocks);
            blocks = free + tables + journal + fixed + blocks / 400;
        }
        (blocks * block).next_multiple_of(1 << 20)
    }
}

/// The number of groups with a copy of superblock and descriptors: 0, 1 and the powers of 3, 5 and 7.
fn copies(groups: u64) -> u64 {
    let powers = [3_u64, 5, 7].map(|base| groups.saturating_sub(1).checked_ilog(base).unwrap_or(0));
    2 + powers.iter().map(|count| u64::from(*count)).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks_of(block_size: BlockSize) -> Units {
        Units { block_size, cluster_blocks: 1 }
    }

    #[test]
    fn with_bigalloc_everything_takes_whole_clusters() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("small"), b"x").unwrap();
        std::fs::write(directory.path().join("larger"), vec![1; 70_000]).unwrap();
        let units = Units { block_size: BlockSize::KIB_4, cluster_blocks: 16 };
        let need = measure(&HostTree::contents_of(directory.path()), units).unwrap();
        // One for the directory, one and two for the files.
        assert_eq!(need.blocks, 4 * 16);
    }

    #[test]
    fn holes_cost_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sparse");
        std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let need = measure(&HostTree::contents_of(directory.path()), blocks_of(BlockSize::KIB_4)).unwrap();
        assert_eq!((need.bytes, need.inodes), (0, 2));
        assert!(need.blocks < 16, "{need:?}");
    }

    #[test]
    fn further_names_cost_no_inode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("one");
        std::fs::write(&path, vec![1; 5000]).unwrap();
        std::fs::hard_link(&path, directory.path().join("two")).unwrap();
        let need = measure(&HostTree::contents_of(directory.path()), blocks_of(BlockSize::KIB_1)).unwrap();
        assert_eq!(need, Need { blocks: 6, inodes: 2, bytes: 5000, entries: 3 });
    }
}
