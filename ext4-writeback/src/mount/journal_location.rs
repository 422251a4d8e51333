//! The journal's location: by its inode, by the superblock's copy of that inode's mapping, or on a device of
//! its own.
//!
//! Invariants:
//! - An external journal is the one that the superblock names: the device's UUID is s_journal_uuid, and this
//!   file system is the only user of the journal. If the log of another file system were replayed, its blocks
//!   would overwrite this one's.
//! - A journal in an inode is mapped in full, by blocks that a file may have. If one of them were fixed
//!   metadata, the first commit would overwrite it.
//!
//! Source: the kernel's `ext4_get_journal_blkdev` and `ext4_open_inode_journal`.

use std::sync::Arc;

use ext4_core::device::BlockDevice;
use ext4_core::format::features::{Compat, Incompat};
use ext4_core::format::inode::{FileType, Inode, InodeFlags, InodeLayout};
use ext4_core::format::superblock::{JournalDevice, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, Superblock};
use ext4_core::meta::extent_tree::MappingState;
use ext4_core::meta::{SuperblockInfo, block_map, inode_table};
use ext4_core::{BlockNumber, Errno, Error, InodeNumber, LogicalBlock, Result, Timestamp};
use ext4_journal::external_superblock_block;
use ext4_journal::{JournalHeader, JournalLocation};

/// Returns true if the file system has an external journal: one on a device of its own.
#[must_use]
pub fn has_external_journal(superblock: &Superblock) -> bool {
    superblock.features.compat.contains(Compat::HAS_JOURNAL) && superblock.journal_inum == 0
}

/// The error for an external journal without a device given.
pub(crate) fn device_is_missing(superblock: &Superblock) -> Error {
    let uuid = uuid::Uuid::from_bytes(superblock.journal_uuid);
    let context =
        format!("journal_dev: the journal is on another device, with UUID {uuid}, which was not given");
    Error::posix(Errno::ENXIO, context)
}

/// Where the journal's blocks lie. `device` is the journal device, for a file system with an external
/// journal.
///
/// # Errors
/// - `ENXIO`: the journal is external, and `device` is `None`.
/// - `EINVAL`: `device` is not the journal of this file system.
/// - `EOPNOTSUPP`: the journal has several users.
/// - `EIO`, `EUCLEAN`: a device, or what it holds.
pub(crate) async fn locate(
    info: &SuperblockInfo,
    device: Option<&Arc<dyn BlockDevice>>,
) -> Result<JournalLocation> {
    let superblock = info.superblock();
    if has_external_journal(&superblock) {
        let device = device.ok_or_else(|| device_is_missing(&superblock))?;
        return on_device(device, &superblock).await;
    }
    let number = InodeNumber(superblock.journal_inum);
    let by_inode = async {
        let inode = inode_table::read_inode(info, number).await?;
        runs(info, &inode).await
    };
    let runs = match by_inode.await {
        Err(error) if error.is_corrupt() => {
            let Some(inode) = backup(&superblock, number) else { return Err(error) };
            tracing::warn!(%error, "the journal's inode is damaged; its copy in the superblock is used");
            runs(info, &inode).await?
        }
        runs => runs?,
    };
    let (device, block_size) = (Arc::clone(info.device()), info.block_size());
    Ok(JournalLocation { device, block_size, runs, superblock: 0 })
}

/// The location of the external journal on `device`, checked to be that of the file system with `superblock`.
async fn on_device(device: &Arc<dyn BlockDevice>, superblock: &Superblock) -> Result<JournalLocation> {
    let found = read_journal_device(&**device).await?;
    let uuid = |bytes| uuid::Uuid::from_bytes(bytes);
    let wrong = |problem: String| Error::posix(Errno::EINVAL, format!("journal device: {problem}"));
    if found.uuid != superblock.journal_uuid {
        let (there, wanted) = (uuid(found.uuid), uuid(superblock.journal_uuid));
        return Err(wrong(format!("its UUID is {there}, the file system's journal has {wanted}")));
    }
    let block_size = superblock.block_size;
    if found.block_size != block_size {
        let (there, wanted) = (found.block_size.bytes(), block_size.bytes());
        return Err(wrong(format!("its blocks have {there} bytes, the file system's {wanted}")));
    }
    let available = u32::try_from(found.blocks_count).unwrap_or(u32::MAX);
    let place = external_superblock_block(block_size);
    let header = read_block(&**device, BlockNumber(place.into()), &found).await?;
    let header = JournalHeader::parse(&header, block_size, available)?;
    if header.users != 1 {
        return Err(Error::Unsupported(format!("a journal for {} file systems", header.users)));
    }
    if header.user_list != [superblock.uuid] {
        let users: Vec<String> = header.user_list.iter().map(|user| uuid(*user).to_string()).collect();
        let (this, users) = (uuid(superblock.uuid), users.join(", "));
        return Err(wrong(format!("it is the journal of file system {users}, not of {this}")));
    }
    let device = Arc::clone(device);
    // Log blocks are counted from the start of the device.
    let runs = vec![(BlockNumber(0), available)];
    Ok(JournalLocation { device, block_size, runs, superblock: place })
}

/// The superblock of a journal device.
///
/// # Errors
/// - `EUCLEAN`: the device is no journal device.
/// - `EIO`: the device failed.
pub(crate) async fn read_journal_device(device: &dyn BlockDevice) -> Result<JournalDevice> {
    let geometry = device.geometry();
    let end = SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE as u64;
    let len = end.next_multiple_of(u64::from(geometry.logical_block_size));
    if len > geometry.size {
        let problem = format!("the device has only {} bytes", geometry.size);
        return Err(Error::corrupt("journal device: superblock", problem));
    }
    // A few sectors.
    let content = device.read_at(0, len as usize).await?;
    JournalDevice::parse(&content[SUPERBLOCK_OFFSET as usize..end as usize])
}

/// One block of a journal device.
pub(crate) async fn read_block(
    device: &dyn BlockDevice,
    block: BlockNumber,
    journal: &JournalDevice,
) -> Result<Vec<u8>> {
    let (size, available) = (journal.block_size, device.geometry().size);
    match block.byte(size) {
        Some(byte) if byte + u64::from(size.bytes()) <= available => {
            Ok(device.read_at(byte, size.len()).await?.to_vec())
        }
        _ => Err(Error::corrupt(
            "journal device",
            format!("block {block} lies outside the device of {available} bytes"),
        )),
    }
}

/// The runs of blocks of the journal's inode.
///
/// # Errors
/// `EUCLEAN`: a block of it is not mapped, or is one that no file can have.
pub(crate) async fn runs(info: &SuperblockInfo, inode: &Inode) -> Result<Vec<(BlockNumber, u32)>> {
    let wrong = |problem: String| Error::corrupt(format!("inode {}: journal", inode.number), problem);
    if inode.links_count == 0 || inode.file_type() != Some(FileType::Regular) {
        return Err(wrong(format!("mode {:#o}, {} links", inode.mode, inode.links_count)));
    }
    let blocks = u32::try_from(inode.size >> info.block_size().bits())
        .ok()
        .filter(|blocks| u64::from(*blocks) < info.blocks_count())
        .ok_or_else(|| wrong(format!("{} bytes", inode.size)))?;
    let mut runs: Vec<(BlockNumber, u32)> = Vec::new();
    let mut logical = 0;
    while logical < blocks {
        let mapping = block_map::lookup(info, inode, LogicalBlock(logical)).await?;
        let len = mapping.len.min(blocks - logical).max(1);
        let MappingState::Written(first) = mapping.state else {
            return Err(wrong(format!("block {logical} of it is {:?}", mapping.state)));
        };
        if !info.is_data_range(first, u64::from(len)) {
            return Err(wrong(format!("block {logical} of it is block {first}, which no file can have")));
        }
        match runs.last_mut() {
            Some((start, count)) if start.offset(u64::from(*count)) == first => *count += len,
            _ => runs.push((first, len)),
        }
        logical += len;
    }
    Ok(runs)
}

/// The journal's inode, by the superblock's copy of it; `None` without one. Source: kernel documentation,
/// "Super Block" (s_jnl_blocks: i_block, then the high and the low half of the size).
fn backup(superblock: &Superblock, number: InodeNumber) -> Option<Inode> {
    if superblock.jnl_backup_type != 1 {
        return None;
    }
    let layout = InodeLayout {
        features: superblock.features,
        inode_size: 128,
        block_size: superblock.block_size,
        cluster_sectors: superblock.block_size.sectors(),
        checksum_seed: 0,
        linux: true,
        hurd: false,
    };
    let mut inode = Inode::new(number, 0o100600, &layout, 0, Timestamp::default());
    inode.links_count = 1;
    let [words @ .., high, low] = superblock.jnl_blocks;
    inode.size = u64::from(high) << 32 | u64::from(low);
    for (bytes, word) in inode.i_block.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    // The copy maps by extents if it begins with the magic of an extent header.
    let extents = superblock.features.incompat.contains(Incompat::EXTENTS);
    inode.flags.set(InodeFlags::EXTENTS, extents && inode.i_block[..2] == [0x0a, 0xf3]);
    Some(inode)
}
