//! The inode table: inodes read from their slots and written back (`ext4_iget`, `ext4_do_update_inode`).
//!
//! Several inodes share one block, and so one [`Buffer`]: a block of the table is not verified as a whole,
//! each inode is verified on every read.
//!
//! Invariant: a slot that was never used (its group's table may not even have been zeroed yet) reads as a
//! free inode, whatever bytes lie there. Were they parsed, an old file system's inodes would shine through.
//!
//! Locks: none of its own; two writers of one inode are kept apart by the inode's lock above.

use zerocopy::FromBytes;

use super::{BlockKind, Buffer, SuperblockInfo, Transaction, Verifier};
use crate::error::{Error, Result};
use crate::format::extent::Node;
use crate::format::features::RoCompat;
use crate::format::group_descriptor::GroupFlags;
use crate::format::inode::{FileType, Inode, InodeLayout, RawInode};
use crate::types::{BlockNumber, GroupNumber, InodeNumber, Timestamp};

/// How many blocks of the table are read together if one is needed (the kernel's `inode_readahead_blks` is
/// 32).
const READ_AHEAD_BLOCKS: u64 = 16;
/// s_creator_os of Linux.
const OS_LINUX: u32 = 0;
/// s_creator_os of the Hurd.
const OS_HURD: u32 = 1;
/// The bytes of an inode without its extra fields.
const RAW_INODE_SIZE: usize = size_of::<RawInode>();
/// The largest size of a file before the file system says that it has large files.
const MAX_SMALL_FILE: u64 = 0x7fff_ffff;

/// Reads and verifies an inode. A free one (no links and a deletion time, or mode 0) is returned too: the
/// caller decides.
///
/// # Errors
/// - Corrupt: a number out of range, a wrong checksum or extra size, attributes in a block that is none of a
///   file's.
/// - Those of the device.
pub async fn read_inode(info: &SuperblockInfo, number: InodeNumber) -> Result<Inode> {
    let (block, offset) = info.inode_location(number).await?;
    let layout = info.inode_layout();
    if info.was_never_used(number)? {
        return Ok(Inode { is_new: false, ..Inode::free(number, &layout) });
    }
    let buffer = read_table_block(info, number, block).await?;
    let inode =
        buffer.read(|bytes| Inode::parse(bytes.get(offset..).unwrap_or_default(), number, &layout))?;
    if inode.file_acl.0 != 0 && !inode.is_free() && !info.is_data_range(inode.file_acl, 1) {
        return Err(Error::corrupt(
            format!("inode {number}"),
            format!("attributes in block {}, no place for them", inode.file_acl),
        ));
    }
    Ok(inode)
}

/// Writes an inode into its slot with its checksum, as part of `transaction`.
///
/// # Errors
/// - Corrupt: a number out of range.
/// - `EFBIG` if the block count cannot be stored.
/// - Those of the device and of the transaction.
///
/// Nothing was changed then.
pub async fn write_inode(info: &SuperblockInfo, transaction: &dyn Transaction, inode: &Inode) -> Result<()> {
    let (block, offset) = info.inode_location(inode.number).await?;
    let layout = info.inode_layout();
    if inode.size > MAX_SMALL_FILE
        && inode.file_type() == Some(FileType::Regular)
        && !layout.features.ro_compat.contains(RoCompat::LARGE_FILE)
    {
        announce_large_files(info, transaction).await?;
    }
    let buffer = read_table_block(info, inode.number, block).await?;
    buffer.modify(transaction, |bytes| {
        let slot = bytes.get_mut(offset..).unwrap_or_default();
        // See `super::orphan`: while an inode is on the list of orphans its copy does not decide the link.
        match info.orphan_links.dtime(inode.number) {
            Some(dtime) if dtime != inode.dtime => Inode { dtime, ..inode.clone() }.serialize(slot, &layout),
            _ => inode.serialize(slot, &layout),
        }
    })?
}

/// The bytes of an inode's slot as they lie there, unverified; zeros for one that was never used.
///
/// # Errors
/// - Corrupt for a number out of range.
/// - Those of the device.
pub async fn read_slot(info: &SuperblockInfo, number: InodeNumber) -> Result<Vec<u8>> {
    let (block, offset) = info.inode_location(number).await?;
    let size = usize::from(info.inode_size());
    if info.was_never_used(number)? {
        return Ok(vec![0; size]);
    }
    let buffer = read_table_block(info, number, block).await?;
    Ok(buffer.read(|bytes| bytes.get(offset..offset + size).unwrap_or_default().to_vec()))
}

/// Makes a slot that was never used that of a free inode.
pub(super) async fn clear_slot(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    number: InodeNumber,
) -> Result<()> {
    let (block, offset) = info.inode_location(number).await?;
    let size = usize::from(info.inode_size());
    let buffer = read_table_block(info, number, block).await?;
    buffer.modify(transaction, |bytes| bytes.get_mut(offset..offset + size).unwrap_or_default().fill(0))
}

/// An inode's bytes in its table, as the transaction that runs has them.
#[derive(Clone, Debug)]
pub struct Slot {
    buffer: Buffer,
    offset: usize,
    size: usize,
}

impl Slot {
    /// How long it is: s_inode_size.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The fixed fields: 128 bytes and the extra ones in use. What is kept in the inode behind them is left
    /// out.
    #[must_use]
    pub fn fixed_fields(&self) -> Vec<u8> {
        self.buffer.read(|block| {
            let slot = block.get(self.offset..).and_then(|rest| rest.get(..self.size)).unwrap_or_default();
            slot.get(..fixed_len(slot)).unwrap_or_default().to_vec()
        })
    }

    /// Returns true if nothing of an earlier inode could be taken for the next one's if its fixed fields were
    /// written over the slot, with `extra_isize` bytes of extra ones, and the rest was not: no links, no
    /// extents, no attributes.
    #[must_use]
    pub fn is_blank(&self, extra_isize: u16) -> bool {
        self.buffer.read(|block| {
            let slot = block.get(self.offset..).and_then(|rest| rest.get(..self.size)).unwrap_or_default();
            let Ok((raw, _)) = RawInode::ref_from_prefix(slot) else { return false };
            let maps = Node::new(&raw.i_block).is_some_and(|root| !root.entries().is_empty());
            let fixed = RAW_INODE_SIZE.saturating_add(usize::from(extra_isize));
            let rest = slot.get(fixed..).unwrap_or_default();
            raw.i_links_count.get() == 0 && !maps && rest.iter().all(|byte| *byte == 0)
        })
    }
}

/// The length of the fixed fields of the inode in `slot`.
fn fixed_len(slot: &[u8]) -> usize {
    let extra = slot.get(RAW_INODE_SIZE..).and_then(|rest| rest.first_chunk());
    let extra = extra.map_or(0, |size| usize::from(u16::from_le_bytes(*size)));
    RAW_INODE_SIZE.saturating_add(extra).min(slot.len())
}

/// The slot of inode `number`, read if it is not in memory.
///
/// # Errors
/// - Corrupt: a number out of range.
/// - Those of the device.
pub async fn slot(info: &SuperblockInfo, number: InodeNumber) -> Result<Slot> {
    let (block, offset) = info.inode_location(number).await?;
    let buffer = read_table_block(info, number, block).await?;
    Ok(Slot { buffer, offset, size: usize::from(info.inode_size()) })
}

/// Changes the `dtime` of an inode in its slot, also if copies of it are in memory: a link of the list of
/// orphans.
///
/// # Errors
/// Corrupt, those of the device and the transaction.
pub(super) async fn write_dtime(
    info: &SuperblockInfo,
    transaction: &dyn Transaction,
    number: InodeNumber,
    dtime: u32,
) -> Result<()> {
    let (block, offset) = info.inode_location(number).await?;
    let layout = info.inode_layout();
    let buffer = read_table_block(info, number, block).await?;
    buffer.modify(transaction, |bytes| {
        let slot = bytes.get_mut(offset..).unwrap_or_default();
        let inode = Inode::parse(slot, number, &layout)?;
        Inode { dtime, ..inode }.serialize(slot, &layout)
    })?
}

/// The first file over 2 GiB in a file system that was made without `large_file`.
async fn announce_large_files(info: &SuperblockInfo, transaction: &dyn Transaction) -> Result<()> {
    if info.superblock().features.ro_compat.contains(RoCompat::LARGE_FILE) {
        return Ok(());
    }
    info.modify_superblock(transaction, &mut |superblock| {
        superblock.features.ro_compat.insert(RoCompat::LARGE_FILE);
    })
    .await
}

/// The block of the table that holds `number`; a miss reads its neighbours too, which a walk of a directory
/// will ask for next.
async fn read_table_block(info: &SuperblockInfo, number: InodeNumber, block: BlockNumber) -> Result<Buffer> {
    if !info.cache.contains(block) {
        let (before, behind) = neighbours(info, number);
        let first = BlockNumber(block.0.saturating_sub(before));
        info.cache.prefetch(first, u32::try_from(before).unwrap_or(0));
        info.cache.prefetch(block.offset(1), u32::try_from(behind).unwrap_or(0));
    }
    info.cache.read(block, &TableVerifier { info, group: info.group_of_inode(number) }).await
}

/// The verifier of a block of an inode table: it lies in the table of its group, whose descriptor is good.
/// The inodes in it are verified one by one, when they are read: a damaged one does not take its neighbours
/// with it.
struct TableVerifier<'a> {
    info: &'a SuperblockInfo,
    group: GroupNumber,
}

impl Verifier for TableVerifier<'_> {
    fn kind(&self) -> BlockKind {
        BlockKind::InodeTable(self.group)
    }

    fn verify(&self, block: BlockNumber, bytes: &[u8]) -> Result<()> {
        let what = || format!("block {block}: inode table of group {}", self.group);
        let group = self.info.group(self.group)?;
        let (first, count) = (group.inode_table, self.info.fixed.inode_table_blocks());
        let lies_in_table = first <= block && block < first.offset(u64::from(count));
        if group.bad_descriptor || !lies_in_table {
            return Err(Error::corrupt(what(), format!("is not in blocks {first}+{count}")));
        }
        if bytes.len() != self.info.block_size().len() {
            return Err(Error::corrupt(what(), format!("{} bytes are no block", bytes.len())));
        }
        Ok(())
    }
}

/// How many blocks of the same group's table lie before and behind that of `number`, within an aligned
/// window.
fn neighbours(info: &SuperblockInfo, number: InodeNumber) -> (u64, u64) {
    let in_group = u64::from(info.fixed.inodes_per_group);
    let index = u64::from(number.0.saturating_sub(1)) % in_group.max(1);
    let size = u64::from(info.inode_size());
    let block_size = u64::from(info.block_size().bytes());
    let block = index * size / block_size;
    let blocks = (in_group * size).div_ceil(block_size);
    let start = block - block % READ_AHEAD_BLOCKS;
    let end = (start + READ_AHEAD_BLOCKS).min(blocks).max(block + 1);
    (block - start, end - block - 1)
}

impl SuperblockInfo {
    /// What the bytes of an inode depend on besides the inode.
    #[must_use]
    pub fn inode_layout(&self) -> InodeLayout {
        let fixed = &self.fixed;
        let cluster_bits = if fixed.features.ro_compat.contains(RoCompat::BIGALLOC) {
            fixed.log_cluster_size.saturating_add(10)
        } else {
            self.block_size().bits()
        };
        InodeLayout {
            features: fixed.features,
            inode_size: fixed.inode_size,
            block_size: self.block_size(),
            cluster_sectors: 1 << cluster_bits.saturating_sub(9).min(32),
            checksum_seed: self.checksum_seed(),
            linux: fixed.creator_os == OS_LINUX,
            hurd: fixed.creator_os == OS_HURD,
        }
    }

    /// An inode that was just allocated, with the extra size this file system wants. See [`Inode::new`].
    #[must_use]
    pub fn new_inode(&self, number: InodeNumber, mode: u16, now: Timestamp) -> Inode {
        Inode::new(number, mode, &self.inode_layout(), self.fixed.want_extra_isize, now)
    }

    /// Returns true if the slot of `number` lies in the part of its group's table that was never used, and
    /// may never have been written at all.
    fn was_never_used(&self, number: InodeNumber) -> Result<bool> {
        if !self.features().group_checksums() {
            return Ok(false);
        }
        let descriptor = self.group_descriptor(self.group_of_inode(number))?;
        let in_group = self.fixed.inodes_per_group;
        let index = number.0.saturating_sub(1) % in_group.max(1);
        Ok(descriptor.flags.contains(GroupFlags::INODE_UNINIT)
            || index >= in_group.saturating_sub(descriptor.itable_unused))
    }
}
