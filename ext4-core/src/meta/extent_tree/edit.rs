//! Changes of an extent tree, all by one primitive: replace some extents of a leaf by others. If they do not
//! fit, nodes are split from the leaf up to the first that has room, or the root moves down into a block and
//! the tree becomes one level deeper.
//!
//! Invariant: all blocks that a change needs are allocated first ([`Edit::allocate`]); what follows does not
//! wait. An allocation that fails gives back what it got.
//!
//! Splitting: a leaf that is appended to stays full and the new one starts with what is new, so that a file
//! written from front to back has full leaves; any other is cut in the middle.
//!
//! Credits of one replacement in a tree of depth d: d + 1 nodes that change, and for each of up to d + 1 new
//! nodes the node, and bitmap and descriptor of its group: 4 (d + 1) in all, plus the inode
//! ([`replace_credits`]).

use super::path::{self, Level};
use crate::error::{Errno, Error, Result};
use crate::format::extent::{
    Entry, Extent, IndexEntry, MAX_DEPTH, Node, NodeMut, NodeRange, ROOT_ENTRIES, block_entries,
};
use crate::format::inode::Inode;
use crate::meta::block_allocator::{self, AllocationRequest};
use crate::meta::{BlockKind, SuperblockInfo, Transaction};
use crate::types::{BlockNumber, LogicalBlock};

/// The fewest entries a node must have room for before it is split: one extent becomes up to four.
const MIN_SPLIT_ENTRIES: usize = 8;

/// A change of one inode's tree, standing at one leaf.
pub(super) struct Edit<'a> {
    pub info: &'a SuperblockInfo,
    pub transaction: &'a dyn Transaction,
    pub inode: &'a mut Inode,
    /// From the root to the leaf; never empty.
    pub levels: Vec<Level>,
}

/// What one [`Edit::replace`] may cost in a tree of `depth` levels below the root.
pub(super) fn replace_credits(depth: usize) -> u32 {
    u32::try_from(depth).unwrap_or(u32::from(MAX_DEPTH)).min(u32::from(MAX_DEPTH)) * 4 + 4 + 1
}

/// Returns true if `transaction` has `credits` left, or could get more.
pub(super) fn has_credits(transaction: &dyn Transaction, credits: u32) -> Result<bool> {
    Ok(transaction.credits() >= credits || transaction.extend(credits)?)
}

impl<'a> Edit<'a> {
    /// Stands at the leaf of `logical`.
    pub async fn find(
        info: &'a SuperblockInfo,
        transaction: &'a dyn Transaction,
        inode: &'a mut Inode,
        logical: LogicalBlock,
    ) -> Result<Self> {
        let levels = path::find(info, inode, logical).await?;
        Ok(Self { info, transaction, inode, levels })
    }

    /// Levels below the root.
    pub fn depth(&self) -> usize {
        self.levels.len() - 1
    }

    /// The leaf.
    pub fn leaf(&self) -> &Level {
        &self.levels[self.depth()]
    }

    /// Extent `at` of the leaf.
    pub fn extent(&self, at: usize) -> Result<Option<Extent>> {
        self.leaf().node(self.inode, |node| node.extent(at))
    }

    /// What `nodes` nodes add to i_blocks: each has a block, or a cluster, of its own.
    fn sectors(&self, nodes: usize) -> u64 {
        self.info.cluster_sectors() * nodes as u64
    }

    /// Changes the node of `level`.
    fn modify(&mut self, level: usize, f: impl FnOnce(&mut NodeMut<'_>)) -> Result<()> {
        match &self.levels[level].buffer {
            None => f(&mut NodeMut::new(&mut self.inode.i_block)),
            Some(buffer) => buffer.modify(self.transaction, |bytes| f(&mut NodeMut::new(bytes)))?,
        }
        Ok(())
    }

    /// Replaces extents `at..at + removed` of the leaf by `new`, which keep its order. The leaf must not end
    /// up empty: for that there is [`Edit::drop_leaf`]. Stands at the leaf that holds the first of `new`
    /// afterwards.
    ///
    /// # Errors
    /// `ENOSPC` if a node is needed and there is no block for it: nothing was changed.
    pub async fn replace(&mut self, at: usize, removed: usize, new: &[Extent]) -> Result<()> {
        let depth = self.depth();
        self.levels[depth].at = at;
        if self.leaf().count - removed + new.len() > self.leaf().max {
            self.make_room(removed, new).await?;
        }
        let leaf = self.depth();
        let at = self.levels[leaf].at;
        let entries: Vec<Entry> = new.iter().map(Extent::to_entry).collect();
        self.modify(leaf, |node| node.replace(at, removed, &entries))?;
        self.levels[leaf].count += new.len();
        self.levels[leaf].count -= removed;
        if at == 0 { self.raise_key(leaf) } else { Ok(()) }
    }

    /// Makes the keys above node `level` equal to its first entry.
    fn raise_key(&mut self, level: usize) -> Result<()> {
        let Some(first) = self.levels[level].node(self.inode, first_logical)? else { return Ok(()) };
        for above in (0..level).rev() {
            let at = self.levels[above].at;
            let key =
                self.levels[above].node(self.inode, |node| node.index(at).map(|entry| entry.logical))?;
            if key == Some(first) {
                break;
            }
            self.modify(above, |node| node.set_logical(at, first))?;
            if at != 0 {
                break;
            }
        }
        Ok(())
    }

    /// Splits nodes, or grows the tree, until the leaf has room for `new` in place of `removed` extents.
    async fn make_room(&mut self, removed: usize, new: &[Extent]) -> Result<()> {
        let leaf = self.depth();
        let full = |level: usize| {
            let Level { count, max, .. } = self.levels[level];
            if level == leaf { count - removed + new.len() > max } else { count + 1 > max }
        };
        // The topmost of the nodes that are full without a gap from the leaf upwards.
        let top = (0..=leaf).rev().take_while(|level| full(*level)).last().unwrap_or(leaf);
        let grow = top == 0;
        if grow && leaf >= usize::from(MAX_DEPTH) {
            return Err(Error::posix(
                Errno::EFBIG,
                format!("inode {}: the extent tree cannot become deeper", self.inode.number),
            ));
        }
        if let Some(small) = self.levels[1..].iter().find(|level| level.max < MIN_SPLIT_ENTRIES) {
            return Err(Error::corrupt(
                format!("inode {}: extent tree", self.inode.number),
                format!("a node has room for {} entries only", small.max),
            ));
        }
        let mut blocks = self.allocate(leaf + 1 - top).await?.into_iter();
        let mut next = move || blocks.next().expect("one block was allocated for each node");
        if grow {
            self.grow(next())?;
        }
        // What was at level n is at n + 1 if the tree grew; the old root now has room.
        let (first, leaf) = if grow { (2, leaf + 1) } else { (top, leaf) };
        for level in first..=leaf {
            self.split(level, next(), removed, new)?;
        }
        Ok(())
    }

    /// Allocates `count` blocks for nodes, near the leaf.
    async fn allocate(&mut self, count: usize) -> Result<Vec<BlockNumber>> {
        let goal = self.levels.iter().rev().find_map(|level| level.buffer.as_ref()).map(|near| near.block());
        let mut blocks = Vec::with_capacity(count);
        while blocks.len() < count {
            let request = AllocationRequest {
                goal,
                inode: self.inode.number,
                len: u32::try_from(count - blocks.len()).unwrap_or(1),
                reserved: false,
                metadata: true,
            };
            match block_allocator::allocate_blocks(self.info, self.transaction, &request).await {
                Ok((first, len)) => {
                    let bits = self.info.cluster_bits();
                    blocks.extend((0..u64::from(len)).map(|n| first.offset(n << bits)));
                }
                Err(error) => {
                    for block in blocks {
                        block_allocator::free_blocks(self.info, self.transaction, block, 1, false).await?;
                    }
                    return Err(error);
                }
            }
        }
        self.inode.sectors += self.sectors(count);
        Ok(blocks)
    }

    /// A new node in `block` with `entries`.
    fn create(&self, block: BlockNumber, depth: u16, entries: &[Entry]) -> Result<crate::meta::Buffer> {
        let kind = BlockKind::ExtentNode(self.info.owner(self.inode));
        let buffer = self.info.cache.create(self.transaction, block, kind)?;
        let max = block_entries(self.info.block_size().len());
        buffer.modify(self.transaction, |bytes| {
            let mut node = NodeMut::new(bytes);
            node.initialize(depth, max);
            node.replace(0, 0, entries);
        })?;
        Ok(buffer)
    }

    /// Moves the root's entries down into `block`.
    fn grow(&mut self, block: BlockNumber) -> Result<()> {
        let (depth, entries) =
            self.levels[0].node(self.inode, |node| (node.depth(), node.entries().to_vec()))?;
        let buffer = self.create(block, depth, &entries)?;
        let logical = entries.first().map(crate::format::extent::entry_logical).unwrap_or_default();
        let index = IndexEntry { logical, child: block }.to_entry();
        self.modify(0, |node| {
            node.initialize(depth + 1, ROOT_ENTRIES);
            node.replace(0, 0, &[index]);
        })?;
        self.levels[0].max = usize::from(block_entries(self.info.block_size().len()));
        self.levels[0].buffer = Some(buffer);
        let root =
            Level { buffer: None, at: 0, count: 1, max: usize::from(ROOT_ENTRIES), range: NodeRange::ROOT };
        self.levels.insert(0, root);
        Ok(())
    }

    /// Moves the upper part of the node of `level`, which is full, into `block`, and stands at the half in
    /// which the change goes on. Its parent has room.
    fn split(&mut self, level: usize, block: BlockNumber, removed: usize, new: &[Extent]) -> Result<()> {
        let is_leaf = level == self.depth();
        let Level { at, count, .. } = self.levels[level];
        let middle = count / 2;
        let cut = match is_leaf {
            // Appending: the new leaf starts with what is new.
            true if at + removed == count && at > 0 => at,
            // What is to be replaced stays together.
            true if at < middle && middle < at + removed => at + removed,
            // Appending to an index: the child that is being split, and its other half, start the new node.
            false if at + 1 == count => at,
            _ => middle,
        };
        let (depth, moved) =
            self.levels[level].node(self.inode, |node| (node.depth(), node.entries()[cut..].to_vec()))?;
        let logical = match moved.first() {
            Some(first) => crate::format::extent::entry_logical(first),
            None => new.first().map(|extent| extent.logical).unwrap_or_default(),
        };
        let buffer = self.create(block, depth, &moved)?;
        self.modify(level, |node| node.replace(cut, moved.len(), &[]))?;
        let index = IndexEntry { logical, child: block }.to_entry();
        let above = self.levels[level - 1].at + 1;
        self.modify(level - 1, |node| node.replace(above, 0, &[index]))?;
        self.levels[level - 1].count += 1;
        if at >= cut {
            self.levels[level - 1].at = above;
            let max = usize::from(block_entries(self.info.block_size().len()));
            let here = &mut self.levels[level];
            *here = Level { buffer: Some(buffer), at: at - cut, count: moved.len(), max, range: here.range };
        } else {
            self.levels[level].count = cut;
        }
        Ok(())
    }

    /// Takes the leaf, of which every extent is gone, out of the tree, and the nodes above that become empty;
    /// an empty tree has depth 0. Gives the blocks that are to be freed.
    pub fn drop_leaf(&mut self) -> Result<Vec<BlockNumber>> {
        let mut freed = Vec::new();
        let mut level = self.depth();
        while let Some(buffer) = &self.levels[level].buffer {
            freed.push(buffer.block());
            level -= 1;
            let at = self.levels[level].at;
            self.modify(level, |node| node.replace(at, 1, &[]))?;
            self.levels[level].count -= 1;
            if self.levels[level].count > 0 {
                if at == 0 {
                    self.raise_key(level)?;
                }
                return Ok(freed);
            }
        }
        self.modify(0, |node| node.initialize(0, ROOT_ENTRIES))?;
        Ok(freed)
    }

    /// Frees nodes that are out of the tree.
    pub async fn free_nodes(&mut self, blocks: &[BlockNumber]) -> Result<()> {
        for block in blocks {
            block_allocator::free_blocks(self.info, self.transaction, *block, 1, true).await?;
            self.inode.sectors = self.inode.sectors.saturating_sub(self.sectors(1));
        }
        Ok(())
    }
}

fn first_logical(node: Node<'_>) -> Option<LogicalBlock> {
    node.entries().first().map(crate::format::extent::entry_logical)
}

/// Pulls the root's only child up into the root while it fits there. It saves a block, and is left undone if
/// that would need credits that are not there.
pub(super) async fn collapse(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
) -> Result<()> {
    loop {
        let Some((depth, index)) = Node::new(&inode.i_block)
            .filter(|root| root.depth() > 0 && root.entries().len() == 1)
            .and_then(|root| Some((root.depth(), root.index(0)?)))
        else {
            return Ok(());
        };
        let range = NodeRange { start: index.logical, end: NodeRange::ROOT.end, is_root: false };
        let buffer = path::read_node(info, inode, index.child, depth - 1, &range).await?;
        let entries = buffer.read(|bytes| {
            let node = Node::new(bytes)?;
            (node.entries().len() <= usize::from(ROOT_ENTRIES)).then(|| node.entries().to_vec())
        });
        // The bitmap, the descriptor, the inode.
        let Some(entries) = entries else { return Ok(()) };
        if !has_credits(transaction, 3)? {
            return Ok(());
        }
        let mut root = NodeMut::new(&mut inode.i_block);
        root.initialize(depth - 1, ROOT_ENTRIES);
        root.replace(0, 0, &entries);
        drop(buffer);
        block_allocator::free_blocks(info, transaction, index.child, 1, true).await?;
        inode.sectors = inode.sectors.saturating_sub(info.cluster_sectors());
    }
}
