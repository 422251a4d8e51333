//! The journal's inode: making it, taking it away, the copy of its mapping in the superblock.
//!
//! Invariants:
//! - The blocks of a new log are zeros but for the journal superblock, on the device, before anything names
//!   them a journal. Were old blocks of another log left there, recovery could take them for this one's.
//! - The copy in the superblock (`s_jnl_blocks`) and the inode say the same.
//!
//! Source of the inode's form: e2fsprogs, `ext2fs_add_journal_inode`; of the copy: kernel documentation,
//! "Super Block".

use super::block_allocator::AllocationRequest;
use super::extent_tree::{self, Removal};
use super::inode_allocator::free_inode;
use super::{SuperblockInfo, Transaction, block_map, inode_table};
use crate::device::{AlignedBuffer, BioFlags, BlockDevice, Segment};
use crate::error::{Errno, Error, Result};
use crate::format::features::{Compat, Incompat, RoCompat};
use crate::format::inode::{FileType, Inode};
use crate::types::{BlockNumber, InodeNumber, LogicalBlock};

/// `s_jnl_backup_type`: `s_jnl_blocks` holds i_block and size of the journal's inode.
pub const JOURNAL_BACKUP_BLOCKS: u8 = 1;

/// Makes the reserved inode 8 a journal of `blocks` blocks, whose first holds `superblock`. The log's own
/// blocks go to the device at once; flush it, then write what `transaction` holds. Returns what
/// `s_jnl_blocks` is to hold.
///
/// # Errors
/// - `ENOSPC` if there is no free space.
/// - `EBUSY` if the inode is in use.
/// - Unsupported without extents.
/// - Those of the device and of the transaction.
pub async fn create(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    blocks: u32,
    superblock: &[u8],
) -> Result<[u32; 17]> {
    let number = InodeNumber::JOURNAL;
    if !info.features().incompat.contains(Incompat::EXTENTS) {
        return Err(Error::Unsupported("making a journal in a file system without feature extent".into()));
    }
    // A slot that was never written has no checksum: then nothing is in it.
    if let Ok(inode) = inode_table::read_inode(info, number).await
        && (inode.links_count > 0 || inode.sectors > 0)
    {
        return Err(Error::posix(Errno::EBUSY, "inode 8 is in use without being a journal: check first"));
    }
    let mode = FileType::Regular.mode_bits() | 0o600;
    let mut inode = info.new_inode(number, mode, info.environment.now());
    let runs = fill(info, transaction, &mut inode, blocks, middle(info)).await?;
    let bits = info.block_size().bits();
    let device = &**info.device();
    for (first, len) in &runs {
        zero(device, first.0 << bits, (first.0 + u64::from(*len)) << bits).await?;
    }
    if let Some((first, _)) = runs.first() {
        let mut content = AlignedBuffer::zeroed(info.block_size().len())?;
        let len = superblock.len().min(content.len());
        content[..len].copy_from_slice(&superblock[..len]);
        device.write_at(first.0 << bits, vec![Segment::Owned(content)], BioFlags::META).await?;
    }
    inode_table::write_inode(info, transaction, &inode).await?;
    Ok(backup(&inode))
}

/// Frees the blocks of the journal's inode, and the inode.
///
/// # Errors
/// - Corrupt if what is read contradicts itself.
/// - Those of the device and of the transaction.
pub async fn remove(info: &SuperblockInfo, transaction: &dyn Transaction) -> Result<()> {
    let mut inode = inode_table::read_inode(info, InodeNumber::JOURNAL).await?;
    let all = (LogicalBlock(0), LogicalBlock::MAX);
    while block_map::remove(info, transaction, &mut inode, all.0, all.1).await? == Removal::More {
        // Another lot of it.
    }
    let free = Inode::free(InodeNumber::JOURNAL, &info.inode_layout());
    inode_table::write_inode(info, transaction, &free).await
}

/// Frees the orphan file, as part of one transaction: without a journal there must be none (e2fsck clears it
/// then). No inode may be in it.
///
/// # Errors
/// - Unsupported if one transaction has no room for it.
/// - Corrupt if what is read contradicts itself.
/// - Those of the device and of the transaction.
pub async fn remove_orphan_file(info: &SuperblockInfo, transaction: &dyn Transaction) -> Result<()> {
    let number = InodeNumber(info.superblock().orphan_file_inum);
    let mut inode = inode_table::read_inode(info, number).await?;
    let removal =
        block_map::remove(info, transaction, &mut inode, LogicalBlock(0), LogicalBlock::MAX).await?;
    if removal == Removal::More {
        return Err(Error::Unsupported(format!("removing orphan file {number}: it is too scattered")));
    }
    inode.size = 0;
    inode.links_count = 0;
    inode.dtime = u32::try_from(info.environment.now().seconds).unwrap_or(u32::MAX).max(1);
    inode_table::write_inode(info, transaction, &inode).await?;
    free_inode(info, transaction, number, false).await?;
    info.modify_superblock(transaction, &mut |superblock| {
        superblock.orphan_file_inum = 0;
        superblock.features.compat.remove(Compat::ORPHAN_FILE);
        superblock.features.ro_compat.remove(RoCompat::ORPHAN_PRESENT);
    })
    .await
}

/// Allocates `count` blocks for `inode` and maps them from its start on; the runs. Its size follows.
pub(super) async fn fill(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    inode: &mut Inode,
    count: u32,
    mut goal: Option<BlockNumber>,
) -> Result<Vec<(BlockNumber, u32)>> {
    extent_tree::initialize(inode);
    let mut runs = Vec::new();
    let mut done = 0;
    while done < count {
        let request = AllocationRequest {
            goal,
            inode: inode.number,
            len: count - done,
            reserved: false,
            metadata: true,
        };
        let new = extent_tree::allocate(info, transaction, inode, LogicalBlock(done), &request).await?;
        let (first, len) = (new.physical, new.len);
        extent_tree::insert(info, transaction, inode, LogicalBlock(done), first, len, false).await?;
        runs.push((first, len));
        goal = Some(first.offset(u64::from(len)));
        done += len;
    }
    inode.size = u64::from(count) << info.block_size().bits();
    inode.links_count = 1;
    Ok(runs)
}

/// The group in the middle of the device, from which a journal is never far. Source: e2fsprogs,
/// `get_midpoint_journal_block`.
fn middle(info: &SuperblockInfo) -> Option<BlockNumber> {
    let superblock = info.opened_superblock();
    let (mut group, _) = superblock.group_of_block(BlockNumber(superblock.blocks_count / 2))?;
    let per_flex = superblock.groups_per_flex();
    if group.0 > per_flex {
        group.0 -= group.0 % per_flex;
    }
    Some(superblock.group_first_block(group))
}

/// What `s_jnl_blocks` holds of `inode`: i_block, then the high and the low half of the size.
fn backup(inode: &Inode) -> [u32; 17] {
    let mut copy = [0; 17];
    for (word, bytes) in copy.iter_mut().zip(inode.i_block.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    // The size's halves: the casts take one each.
    copy[15] = (inode.size >> 32) as u32;
    copy[16] = inode.size as u32;
    copy
}

/// Makes the device's range read as zeros, also if it is not a multiple of the device's sectors.
pub(super) async fn zero(device: &dyn BlockDevice, start: u64, end: u64) -> Result<()> {
    let sector = u64::from(device.geometry().logical_block_size);
    let (start, end) = (start / sector * sector, end.next_multiple_of(sector).min(device.geometry().size));
    if start < end { device.write_zeroes(start, end - start).await } else { Ok(()) }
}
