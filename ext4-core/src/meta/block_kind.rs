//! Verifiers and checksums of metadata blocks, one pair for each kind of block (XFS calls the pair
//! `xfs_buf_ops`).
//!
//! A kind is named twice: by a [`Verifier`], which knows where the block was found and judges it on the way
//! in, and by a [`BlockKind`], a small value that stays with the buffer and seals the block (makes its
//! checksum right) on the way out.
//!
//! | kind | verified on the way in | sealed on the way out |
//! |---|---|---|
//! | superblock | magic, checksum, bounds, UUID of this file system | by `Superblock::to_bytes` |
//! | group descriptors | each checksum; the places known since the mount | each by `GroupDescriptor::write` |
//! | bitmaps | checksum, free count, fixed metadata in use | in the descriptor: `GroupState::modify_bitmap` |
//! | inode table | lies in its group's table; each inode when it is read | each inode by `Inode::serialize` |
//! | extent node | magic, checksum of its inode, order, bounds, ranges | by [`BlockKind::seal`] |
//! | indirect block | each pointer | no checksum on the device |
//! | directory leaf, index | chain of entries or keys, checksum of its inode | by [`BlockKind::seal`] |
//! | extended attributes | magic, checksum with its own block number, entries | by [`BlockKind::seal`] |
//! | orphan file | magic, checksum with its own block number | by [`BlockKind::seal`] |
//! | symlink | no NUL in the target | no checksum on the device |
//!
//! So there are three places for a checksum, and one owner of each. A checksum of the whole block is the
//! kind's. A record within a table (inode, group descriptor, superblock) is sealed by the function that
//! serialises it; sealing the whole block would also seal a neighbour that is damaged. A bitmap's checksum
//! lies in its group's descriptor and is computed under the group lock, which keeps the two together.
//!
//! Invariant: two values of [`BlockKind`] are equal only if one verifier's verdict holds for the other. The
//! value therefore names the owner (inode and generation, or group): a node of another file's tree is
//! verified again, and its checksum gives it away.

use crate::error::Result;
use crate::format::directory::Layout;
use crate::format::directory::index::IndexKind;
use crate::format::extent::NodeMut;
use crate::format::inode::{Inode, inode_seed};
use crate::format::{orphan_file, xattr};
use crate::types::{BlockNumber, GroupNumber, InodeNumber};

/// The inode that a block belongs to, as far as the block's checksum depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// The inode.
    pub inode: InodeNumber,
    /// `i_generation` of the inode.
    pub generation: u32,
    /// The seed of the file system's checksums; `None` without metadata_csum.
    pub seed: Option<u32>,
}

impl Owner {
    /// `inode` as the owner of a block, in a file system with checksum seed `seed` (`None` without
    /// metadata_csum).
    #[must_use]
    pub fn new(inode: &Inode, seed: Option<u32>) -> Self {
        Self { inode: inode.number, generation: inode.generation, seed }
    }

    /// The seed of the checksums of the inode's blocks; `None` without metadata_csum.
    #[must_use]
    pub fn checksum_seed(&self) -> Option<u32> {
        self.seed.map(|seed| inode_seed(seed, self.inode, self.generation))
    }
}

/// What a metadata block holds, with everything that sealing it takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockKind {
    /// Bytes without a meaning: a block that has not been verified, or a test's.
    Opaque,
    /// The primary superblock.
    Superblock,
    /// Group descriptors.
    GroupDescriptors {
        /// The group of the first one.
        first: GroupNumber,
    },
    /// The block bitmap of a group.
    BlockBitmap(GroupNumber),
    /// The inode bitmap of a group.
    InodeBitmap(GroupNumber),
    /// A block of the inode table of a group.
    InodeTable(GroupNumber),
    /// A node of the extent tree of an inode.
    ExtentNode(Owner),
    /// Block pointers of an indirect-mapped inode.
    Indirect(InodeNumber),
    /// Directory entries.
    DirectoryLeaf(Layout),
    /// The root or a node of a hashed directory's index.
    DirectoryIndex(Layout, IndexKind),
    /// Extended attributes.
    ExtendedAttributes {
        /// The seed of the file system's checksums; `None` without metadata_csum.
        seed: Option<u32>,
    },
    /// A block of the orphan file.
    OrphanFile {
        /// The seed of the orphan file's checksums; `None` without metadata_csum.
        seed: Option<u32>,
    },
    /// The target of a symlink that does not fit in its inode.
    Symlink {
        /// The symlink.
        inode: InodeNumber,
        /// Bytes of the target, without its NUL.
        len: usize,
    },
}

impl BlockKind {
    /// Makes the checksum of a block right that is in the block and covers all of it; no-op for all other
    /// kinds (see the table of this module) and without metadata_csum. `block` is where the block lies,
    /// `bytes` all of it.
    pub fn seal(&self, block: BlockNumber, bytes: &mut [u8]) {
        match self {
            Self::ExtentNode(owner) => {
                if let Some(seed) = owner.checksum_seed() {
                    NodeMut::new(bytes).set_checksum(seed);
                }
            }
            Self::DirectoryLeaf(layout) => layout.set_leaf_checksum(bytes),
            Self::DirectoryIndex(layout, kind) => layout.set_index_checksum(bytes, *kind),
            Self::ExtendedAttributes { seed } => xattr::set_block_checksum(bytes, block, *seed),
            Self::OrphanFile { seed } => orphan_file::set_checksum(bytes, block, *seed),
            // Sealed record by record.
            Self::Superblock | Self::GroupDescriptors { .. } | Self::InodeTable(_) => {}
            // Sealed in the group's descriptor.
            Self::BlockBitmap(_) | Self::InodeBitmap(_) => {}
            // Without a checksum.
            Self::Indirect(_) | Self::Symlink { .. } | Self::Opaque => {}
        }
    }
}

/// Judges a block of one kind on the way in from the device.
pub trait Verifier {
    /// What a block that passes holds. Cheap: it is asked for on each read, cached or not.
    fn kind(&self) -> BlockKind;

    /// Checks the block that lies at `block` and has content `bytes`: magic, checksum if the file system has
    /// them, bounds, own location. Called without the buffer's lock.
    ///
    /// # Errors
    /// Corrupt: what and where, what was found and what was expected.
    fn verify(&self, block: BlockNumber, bytes: &[u8]) -> Result<()>;
}

/// The verifier of blocks whose content has no meaning to their reader: for tests of a journal, which carries
/// blocks of every kind. It lets everything pass, and changes are not sealed.
#[derive(Clone, Copy, Debug)]
pub struct Opaque;

impl Verifier for Opaque {
    fn kind(&self) -> BlockKind {
        BlockKind::Opaque
    }

    fn verify(&self, _block: BlockNumber, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
}
