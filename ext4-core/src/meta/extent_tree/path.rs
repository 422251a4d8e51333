//! Paths in an extent tree (`ext4_find_extent`): from the root to the leaf of a logical block.
//!
//! Invariant: every node is verified when it is read (magic, checksum, order, ranges on the device), and its
//! depth and place are checked again on each visit, because a damaged tree may reach a good node of another
//! file.

use crate::error::{Error, Result};
use crate::format::extent::{
    Extent, IndexEntry, MAX_DEPTH, Node, NodeRange, ROOT_ENTRIES, block_entries, checksums,
};
use crate::format::inode::Inode;
use crate::meta::{BlockKind, Buffer, Owner, SuperblockInfo, Verifier};
use crate::types::{BlockNumber, InodeNumber, LogicalBlock};

/// One node on the way.
pub(super) struct Level {
    /// The node's block; `None` for the root.
    pub buffer: Option<Buffer>,
    /// Above the leaf: the entry taken. In the leaf: how many extents start at or before the block looked
    /// for.
    pub at: usize,
    /// How many entries the node has.
    pub count: usize,
    /// How many fit.
    pub max: usize,
    /// What the parent leaves to the node.
    pub range: NodeRange,
}

/// What lies around a logical block, in its leaf.
pub(super) struct Place {
    /// The last extent that starts at or before it.
    pub before: Option<Extent>,
    /// The next extent of the same leaf.
    pub after: Option<Extent>,
    /// Where the next leaf starts, or the end of all files.
    pub end: LogicalBlock,
}

fn damaged(inode: InodeNumber, block: Option<BlockNumber>, problem: impl Into<String>) -> Error {
    let place = block.map_or_else(|| "root".to_owned(), |block| format!("block {block}"));
    Error::corrupt(format!("inode {inode}: extent tree {place}"), problem)
}

impl Level {
    /// Calls `f` with the node.
    pub fn node<R>(&self, inode: &Inode, f: impl FnOnce(Node<'_>) -> R) -> Result<R> {
        look(inode, self.buffer.as_ref(), f)
    }
}

fn look<R>(inode: &Inode, buffer: Option<&Buffer>, f: impl FnOnce(Node<'_>) -> R) -> Result<R> {
    let short = || damaged(inode.number, buffer.map(Buffer::block), "no room for a header");
    match buffer {
        None => Node::new(&inode.i_block).map(f),
        Some(buffer) => buffer.read(|bytes| Node::new(bytes).map(f)),
    }
    .ok_or_else(short)
}

/// Verifies the root; gives its depth.
fn root_depth(info: &SuperblockInfo, inode: &Inode) -> Result<u16> {
    if !inode.uses_extents() {
        return Err(Error::Unsupported(format!(
            "inode {} is mapped by indirect blocks: it can be read and freed, but not extended",
            inode.number
        )));
    }
    look(inode, None, |node| {
        let depth = node.depth();
        if depth > MAX_DEPTH {
            return Err(format!("depth {depth} is over {MAX_DEPTH}"));
        }
        node.verify(ROOT_ENTRIES, depth, &NodeRange::ROOT, |first, count| info.is_data_range(first, count))?;
        Ok(depth)
    })?
    .map_err(|problem| damaged(inode.number, None, problem))
}

/// Reads the node of `inode` at `block`, `depth` levels above the leaves, which maps `range`.
pub(super) async fn read_node(
    info: &SuperblockInfo,
    inode: &Inode,
    block: BlockNumber,
    depth: u16,
    range: &NodeRange,
) -> Result<Buffer> {
    let buffer =
        info.cache.read(block, &NodeVerifier { info, owner: info.owner(inode), depth, range }).await?;
    look(inode, Some(&buffer), |node| node.verify_place(depth, range))?
        .map_err(|problem| damaged(inode.number, Some(block), problem))?;
    Ok(buffer)
}

/// The verifier of a node in a block: everything that the node, its parent and its inode say of it.
struct NodeVerifier<'a> {
    info: &'a SuperblockInfo,
    owner: Owner,
    depth: u16,
    range: &'a NodeRange,
}

impl Verifier for NodeVerifier<'_> {
    fn kind(&self) -> BlockKind {
        BlockKind::ExtentNode(self.owner)
    }

    fn verify(&self, block: BlockNumber, bytes: &[u8]) -> Result<()> {
        let fail = |problem: String| damaged(self.owner.inode, Some(block), problem);
        let node = Node::new(bytes).ok_or_else(|| fail("no room for a header".to_owned()))?;
        node.verify(block_entries(bytes.len()), self.depth, self.range, |first, count| {
            self.info.is_data_range(first, count)
        })
        .map_err(fail)?;
        if let Some(seed) = self.owner.checksum_seed() {
            let (found, expected) =
                checksums(bytes, seed).ok_or_else(|| fail("no room for a checksum".to_owned()))?;
            if found != expected {
                return Err(fail(format!("checksum {found:#x} is not {expected:#x}")));
            }
        }
        Ok(())
    }
}

/// Walks from the root to the leaf of `logical` and shows each node to `visit`.
async fn descend(
    info: &SuperblockInfo,
    inode: &Inode,
    logical: LogicalBlock,
    mut visit: impl FnMut(Level) + Send,
) -> Result<()> {
    if logical > LogicalBlock::MAX {
        return Err(Error::posix(
            crate::Errno::EFBIG,
            format!("inode {}: block {logical} is past the last one", inode.number),
        ));
    }
    let mut depth = root_depth(info, inode)?;
    let mut buffer = None;
    let mut range = NodeRange::ROOT;
    loop {
        let (at, count, max, child) = look(inode, buffer.as_ref(), |node| {
            let position = node.position(logical);
            let (count, max) = (node.entries().len(), node.max());
            if depth == 0 {
                return (position, count, max, None);
            }
            // A block before the first entry belongs to the first child.
            let at = position.saturating_sub(1);
            let end = node.index(at + 1).map_or(range.end, |next| next.logical);
            (at, count, max, node.index(at).map(|entry| (entry, end)))
        })?;
        let block = buffer.as_ref().map(Buffer::block);
        visit(Level { buffer, at, count, max, range });
        match child {
            Some((IndexEntry { logical: start, child }, end)) => {
                depth -= 1;
                range = NodeRange { start, end, is_root: false };
                buffer = Some(read_node(info, inode, child, depth, &range).await?);
            }
            None if depth == 0 => return Ok(()),
            None => return Err(damaged(inode.number, block, "no entries above the leaves")),
        }
    }
}

/// The whole way to `logical`, root first.
pub(super) async fn find(info: &SuperblockInfo, inode: &Inode, logical: LogicalBlock) -> Result<Vec<Level>> {
    let mut levels = Vec::with_capacity(4);
    descend(info, inode, logical, |level| levels.push(level)).await?;
    Ok(levels)
}

/// What lies around `logical`.
pub(super) async fn locate(info: &SuperblockInfo, inode: &Inode, logical: LogicalBlock) -> Result<Place> {
    let mut leaf = None;
    descend(info, inode, logical, |level| leaf = Some(level)).await?;
    let leaf = leaf.expect("a walk shows at least the root");
    leaf.node(inode, |node| Place {
        before: leaf.at.checked_sub(1).and_then(|at| node.extent(at)),
        after: node.extent(leaf.at),
        end: leaf.range.end,
    })
}

/// The node blocks of the tree, level by level.
///
/// Bounded by the tree itself: within a level the keys of the nodes rise, and a node starts at its key, so
/// that no node is met twice.
pub(super) async fn node_blocks(info: &SuperblockInfo, inode: &Inode) -> Result<Vec<BlockNumber>> {
    let mut depth = root_depth(info, inode)?;
    let mut blocks = Vec::new();
    let mut level = look(inode, None, |node| children(node, &NodeRange::ROOT))?;
    while depth > 0 {
        depth -= 1;
        let mut below = Vec::new();
        for (block, range) in level {
            let buffer = read_node(info, inode, block, depth, &range).await?;
            blocks.push(block);
            below.extend(look(inode, Some(&buffer), |node| children(node, &range))?);
        }
        level = below;
    }
    Ok(blocks)
}

fn children(node: Node<'_>, range: &NodeRange) -> Vec<(BlockNumber, NodeRange)> {
    if node.depth() == 0 {
        return Vec::new();
    }
    let entry = |at: usize| node.index(at);
    let child = |at: usize| {
        let IndexEntry { logical: start, child } = entry(at)?;
        let end = entry(at + 1).map_or(range.end, |next| next.logical);
        Some((child, NodeRange { start, end, is_root: false }))
    };
    (0..node.entries().len()).filter_map(child).collect()
}
