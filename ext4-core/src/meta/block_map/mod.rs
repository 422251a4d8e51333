//! Block mapping (`ext4_map_blocks`): what lies at a place of a file, whether it is mapped by extents or by
//! indirect blocks.
//!
//! | file | what |
//! |---|---|
//! | here | looking up, and unmapping from the end of a range to its start |
//! | `insert` | mapping, and where the blocks for it would best lie |
//!
//! Invariants:
//! - Every pointer is checked before it is followed: it must name a block that may belong to a file. A walk
//!   takes at most three steps down, so a block that points to itself ends as a wrong mapping, not as a loop.
//! - A block of pointers stops naming blocks before they are freed, and is freed once it names none.
//!
//! Locks: as [`super::extent_tree`].

mod insert;

use super::block_allocator;
use super::extent_tree::{self, Mapping, MappingState, Removal};
use super::{BlockKind, Buffer, SuperblockInfo, Transaction, Verifier};
use crate::error::{Errno, Error, Result};
use crate::format::indirect::{
    BlockPath, DIRECT, POINTERS, clear_pointers, pointer, pointers_per_block, reach, subtree_span,
};
use crate::format::inode::{Inode, InodeFlags};
use crate::types::{BlockNumber, InodeNumber, LogicalBlock};

pub use insert::{ADDRESSABLE, allocation_goal, insert, max_blocks, prepare};

/// What lies at `logical` of any inode with mapped blocks. The answer starts at `logical` exactly; as long as
/// neighbouring pointers go on it is one answer.
///
/// # Errors
/// - Corrupt if the mapping is damaged.
/// - `EFBIG` past the last logical block.
/// - Unsupported for data in the inode.
/// - Those of the device.
pub async fn lookup(info: &SuperblockInfo, inode: &Inode, logical: LogicalBlock) -> Result<Mapping> {
    refuse_inline_data(inode)?;
    if inode.uses_extents() {
        return extent_tree::lookup(info, inode, logical).await;
    }
    if logical > LogicalBlock::MAX {
        return Err(Error::posix(Errno::EFBIG, format!("inode {}: block {logical}", inode.number)));
    }
    let rest = u64::from(u32::MAX - logical.0);
    let Some(path) = BlockPath::new(info.block_size(), logical) else {
        return Ok(mapping(logical, rest, MappingState::Hole));
    };
    let mut node = Pointers::root(inode, &path);
    for below in (0..path.levels).rev() {
        let child = node.get(inode, node.at);
        if child.0 == 0 {
            // Nothing below: a hole to the end of what this pointer covers, and of its empty neighbours.
            let span = subtree_span(info.block_size(), below + 1);
            let covered = offset_in(info, logical, below + 1);
            let neighbours = u64::from(node.run(inode, |_, next| next.0 == 0));
            let len = span.saturating_mul(neighbours).saturating_sub(covered).min(rest);
            return Ok(mapping(logical, len, MappingState::Hole));
        }
        node = Pointers::read(info, inode, child, path.pointers[path.levels - below]).await?;
    }
    let first = node.get(inode, node.at);
    let (state, len) = if first.0 == 0 {
        (MappingState::Hole, node.run(inode, |_, next| next.0 == 0))
    } else {
        if !info.is_data_range(first, 1) {
            return Err(wild_pointer(inode, first));
        }
        let len = node.run(inode, |n, next| next == first.offset(u64::from(n)));
        // The run is checked as a whole if it can be; a pointer further on that is wrong ends it.
        let len = if info.is_data_range(first, u64::from(len)) { len } else { 1 };
        (MappingState::Written(first), len)
    };
    Ok(mapping(logical, u64::from(len).min(rest), state))
}

/// Unmaps and frees the blocks of `first..=last` of any inode, from the end of the range to its start. As
/// [`extent_tree::remove`].
///
/// # Errors
/// - Corrupt if the mapping is damaged.
/// - Unsupported for data in the inode.
/// - Those of the device.
pub async fn remove(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    first: LogicalBlock,
    last: LogicalBlock,
) -> Result<Removal> {
    refuse_inline_data(inode)?;
    if inode.uses_extents() {
        return extent_tree::remove(info, transaction, inode, first, last).await;
    }
    refuse_clusters(info, inode.number)?;
    let before = (inode.i_block, inode.sectors);
    let result = remove_indirect(info, transaction, inode, first, last.min(LogicalBlock::MAX)).await;
    if result.is_err() && before != (inode.i_block, inode.sectors) {
        super::inode_table::write_inode(info, transaction, inode).await?;
    }
    result
}

async fn remove_indirect(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    first: LogicalBlock,
    last: LogicalBlock,
) -> Result<Removal> {
    let mut to = Some(last);
    while let Some(last) = to.filter(|last| *last >= first) {
        let Some(path) = BlockPath::new(info.block_size(), last) else {
            to = Some(last_reachable(info));
            continue;
        };
        match remove_before(info, transaction, inode, first, last, &path).await? {
            Step::Next(next) => to = next,
            Step::NoCredits => return Ok(Removal::More),
        }
    }
    Ok(Removal::Done)
}

/// Fails with bigalloc, with which every file is mapped by extents (the kernel's `ext4_ind_map_blocks`
/// allocates none either).
///
/// # Errors
/// Unsupported.
pub fn refuse_clusters(info: &SuperblockInfo, inode: InodeNumber) -> Result<()> {
    if info.cluster_bits() == 0 {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "inode {inode} is mapped by indirect blocks: with bigalloc it can only be read"
    )))
}

fn refuse_inline_data(inode: &Inode) -> Result<()> {
    if inode.flags.contains(InodeFlags::INLINE_DATA) {
        return Err(Error::Unsupported(format!(
            "inode {} holds its data itself (inline_data)",
            inode.number
        )));
    }
    Ok(())
}

fn mapping(logical: LogicalBlock, len: u64, state: MappingState) -> Mapping {
    Mapping { logical, len: u32::try_from(len).unwrap_or(u32::MAX).max(1), state }
}

fn wild_pointer(inode: &Inode, block: BlockNumber) -> Error {
    Error::corrupt(
        format!("inode {}: block map", inode.number),
        format!("a pointer to block {block}, no place for a file"),
    )
}

/// The last logical block a block map reaches.
fn last_reachable(info: &SuperblockInfo) -> LogicalBlock {
    let last = reach(info.block_size()).saturating_sub(1);
    LogicalBlock(u32::try_from(last).unwrap_or(u32::MAX)).min(LogicalBlock::MAX)
}

/// How far `logical` is from the start of the subtree of `levels` it lies in.
fn offset_in(info: &SuperblockInfo, logical: LogicalBlock, levels: usize) -> u64 {
    let block_size = info.block_size();
    let mut rest = u64::from(logical.0).saturating_sub(u64::from(DIRECT));
    for above in 1..=3 {
        let span = subtree_span(block_size, above);
        if rest < span {
            break;
        }
        rest -= span;
    }
    rest & (subtree_span(block_size, levels) - 1)
}

/// One array of pointers on a walk: the inode's, or a block.
struct Pointers {
    buffer: Option<Buffer>,
    /// The pointer the walk takes.
    at: u32,
    /// How many pointers of the array are of the same kind as this one: those of the block, or in the inode
    /// the direct ones, or just the one to a subtree.
    end: u32,
}

/// The last pointer in front of the walk's that is not zero, and its number.
fn before_in_array(inode: &Inode, node: &Pointers) -> Option<(u32, BlockNumber)> {
    let at = node.last_used(inode, 0, node.at.checked_sub(1)?)?;
    Some((at, node.get(inode, at)))
}

/// Reads a block of pointers of `inode` and verifies that each names a block a file may have.
async fn read_pointers(info: &SuperblockInfo, inode: &Inode, block: BlockNumber) -> Result<Buffer> {
    if !info.is_data_range(block, 1) {
        return Err(wild_pointer(inode, block));
    }
    info.cache.read(block, &PointersVerifier { info, inode: inode.number }).await
}

/// The verifier of a block of pointers: each is zero or names a block that a file may have. Such a block has
/// no checksum.
struct PointersVerifier<'a> {
    info: &'a SuperblockInfo,
    inode: InodeNumber,
}

impl Verifier for PointersVerifier<'_> {
    fn kind(&self) -> BlockKind {
        BlockKind::Indirect(self.inode)
    }

    fn verify(&self, block: BlockNumber, bytes: &[u8]) -> Result<()> {
        let wild = (0..pointers_per_block(self.info.block_size()))
            .map(|at| pointer(bytes, at))
            .find(|pointer| pointer.0 != 0 && !self.info.is_data_range(*pointer, 1));
        match wild {
            Some(wild) => Err(Error::corrupt(
                format!("inode {}: block {block} of pointers", self.inode),
                format!("points to block {wild}, no place for a file"),
            )),
            None => Ok(()),
        }
    }
}

impl Pointers {
    fn root(_inode: &Inode, path: &BlockPath) -> Self {
        let at = path.pointers[0];
        Self { buffer: None, at, end: if at < DIRECT { DIRECT } else { at + 1 } }
    }

    /// Reads a block of pointers.
    async fn read(info: &SuperblockInfo, inode: &Inode, block: BlockNumber, at: u32) -> Result<Self> {
        let buffer = read_pointers(info, inode, block).await?;
        Ok(Self { buffer: Some(buffer), at, end: pointers_per_block(info.block_size()) })
    }

    fn look<R>(&self, inode: &Inode, f: impl FnOnce(&[u8]) -> R) -> R {
        match &self.buffer {
            None => f(&inode.i_block),
            Some(buffer) => buffer.read(f),
        }
    }

    fn get(&self, inode: &Inode, at: u32) -> BlockNumber {
        self.look(inode, |bytes| pointer(bytes, at))
    }

    /// How many pointers from the walk's on `belong`: (how far from it, the pointer).
    fn run(&self, inode: &Inode, belong: impl Fn(u32, BlockNumber) -> bool) -> u32 {
        self.look(inode, |bytes| {
            let rest = (self.at + 1..self.end).zip(1..);
            rest.take_while(|(at, n)| belong(*n, pointer(bytes, *at))).count() as u32 + 1
        })
    }

    /// The last pointer at `low..=high` that is not zero.
    fn last_used(&self, inode: &Inode, low: u32, high: u32) -> Option<u32> {
        self.look(inode, |bytes| (low..=high).rev().find(|at| pointer(bytes, *at).0 != 0))
    }

    fn clear(&self, transaction: &dyn Transaction, inode: &mut Inode, at: u32, count: u32) -> Result<()> {
        match &self.buffer {
            None => clear_pointers(&mut inode.i_block, at, count),
            Some(buffer) => buffer.modify(transaction, |bytes| clear_pointers(bytes, at, count))?,
        }
        Ok(())
    }

    fn is_empty(&self, inode: &Inode) -> bool {
        let pointers = if self.buffer.is_none() { POINTERS } else { self.end };
        self.last_used(inode, 0, pointers - 1).is_none()
    }
}

enum Step {
    /// Nothing is mapped behind this block any more; `None`: nothing before it either.
    Next(Option<LogicalBlock>),
    /// There are no credits to go on.
    NoCredits,
}

/// Frees what the array of pointers to data that holds `last` maps in `first..=last`, and the blocks of
/// pointers that become empty by it.
async fn remove_before(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    first: LogicalBlock,
    last: LogicalBlock,
    path: &BlockPath,
) -> Result<Step> {
    let before = |block: LogicalBlock, count: u64| {
        let start = u64::from(block.0).saturating_sub(count);
        start.checked_sub(1).and_then(|last| u32::try_from(last).ok()).map(LogicalBlock)
    };
    let mut nodes = vec![Pointers::root(inode, path)];
    for below in (0..path.levels).rev() {
        let node = &nodes[nodes.len() - 1];
        let child = node.get(inode, node.at);
        if child.0 == 0 {
            // Nothing below: on in front of this subtree, and of the empty ones before it.
            let span = subtree_span(info.block_size(), below + 1);
            let low = if node.buffer.is_none() { node.at } else { 0 };
            let used = node.last_used(inode, low, node.at);
            let skipped = u64::from(node.at - used.map_or(low, |used| used + 1));
            let offset = offset_in(info, last, below + 1);
            return Ok(Step::Next(before(last, offset + span * skipped)));
        }
        nodes.push(Pointers::read(info, inode, child, path.pointers[path.levels - below]).await?);
    }
    let depth = u32::try_from(path.levels).unwrap_or(3);
    let leaf = &nodes[nodes.len() - 1];
    // The array's own range of logical blocks starts at `last - at`.
    let low = leaf.at.saturating_sub(last.0 - first.0);
    let mut high = leaf.at;
    while let Some(used) = leaf.last_used(inode, low, high) {
        // A run of blocks that follow each other on the device, back to front.
        let end = leaf.get(inode, used);
        let mut start = used;
        while start > low
            && leaf.get(inode, start - 1).0.checked_add(u64::from(used - start) + 1) == Some(end.0)
        {
            start -= 1;
        }
        let count = used - start + 1;
        let begin = leaf.get(inode, start);
        // The array, the inode, bitmap and descriptor of the run's groups; the same for each block of
        // pointers.
        let groups = 1 + info.group_of_block(end).0.saturating_sub(info.group_of_block(begin).0);
        let needed = 2 + 2 * groups + 3 * depth;
        if transaction.credits() < needed && !transaction.extend(needed)? {
            return Ok(Step::NoCredits);
        }
        leaf.clear(transaction, inode, start, count)?;
        free(info, transaction, inode, begin, u64::from(count), extent_tree::holds_metadata(inode)).await?;
        match start.checked_sub(1) {
            Some(next) if start > low => high = next,
            _ => break,
        }
    }
    let next = before(last, u64::from(leaf.at - low));
    // Blocks of pointers that name nothing any more, from the lowest up.
    while let Some(node) = nodes.pop() {
        let Some(buffer) = &node.buffer else { break };
        if !node.is_empty(inode) {
            break;
        }
        let block = buffer.block();
        let Some(parent) = nodes.last() else { break };
        let needed = 4 + 3 * depth;
        if transaction.credits() < needed && !transaction.extend(needed)? {
            return Ok(Step::NoCredits);
        }
        parent.clear(transaction, inode, parent.at, 1)?;
        drop(node);
        free(info, transaction, inode, block, 1, true).await?;
    }
    Ok(Step::Next(next))
}

async fn free(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    first: BlockNumber,
    count: u64,
    metadata: bool,
) -> Result<()> {
    block_allocator::free_blocks(info, transaction, first, count, metadata).await?;
    inode.sectors = inode.sectors.saturating_sub(count.saturating_mul(info.block_size().sectors()));
    Ok(())
}
