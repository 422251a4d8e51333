//! Credits: how many blocks an operation may change, at most, which it asks of the journal before it starts.
//!
//! The figures are worst cases per part; an operation adds up its parts. They do not depend on how long an
//! extent is.

/// One allocation of a run of blocks: bitmaps and descriptors of the two groups a run can touch, and the
/// superblock.
pub const ALLOCATE_BLOCKS: u32 = 5;
/// Logging an inode.
pub const INODE: u32 = 1;
/// Inserting or converting one extent: a split at each of five levels (the new node, the old one, bitmap and
/// descriptor of its group), twice as a conversion may split both ends, the inode.
pub const EXTENT: u32 = 2 * 5 * 4 + INODE;
/// Mapping blocks in one array of pointers: three new blocks of pointers with the bitmap and the descriptor
/// of each, the block or inode that points to them.
pub const POINTERS: u32 = 3 * 3 + INODE + 1;
/// Allocating an inode: its bitmap, the group descriptor, the block bitmap of a group that is first used, the
/// inode.
pub const ALLOCATE_INODE: u32 = 3 + INODE + 1;
/// Adding a name: a leaf split through three levels of index, each with a block to allocate.
pub const ADD_NAME: u32 = 3 * 2 + 4 * (ALLOCATE_BLOCKS + 2) + EXTENT;
/// Removing a name.
pub const REMOVE_NAME: u32 = 2;
/// Setting an extended attribute: the inode, a new block and the old one's release.
pub const XATTR: u32 = INODE + 2 * (ALLOCATE_BLOCKS + 1);
/// Putting an inode on the orphan list or file, or taking it off: superblock, previous inode, orphan file
/// block.
pub const ORPHAN: u32 = 4;
/// One step of freeing a file's blocks: some leaf and index blocks, bitmaps and descriptors of a few groups.
pub const FREE_STEP: u32 = 32;
