//! Inline data (`inline_data`): files whose inode holds their bytes. Reading, writing, truncating, and moving
//! the bytes out to a block.
//!
//! ```text
//!   empty ── first bytes that fit ──► inline ── bytes that do not fit, or fallocate ──► mapped
//!                                     │   ▲
//!                                     └───┘ write, truncate: one handle each
//! ```
//!
//! The inode is the only copy: reads are served from the inode, and the page cache holds nothing of such a
//! file. A write changes bytes and size in one handle, so a crash shows all of the write or nothing of it,
//! and fsync has a transaction to wait for.
//!
//! Moving to a block: a block is picked in memory ([`crate::iomap::preallocation`] has the argument), the
//! bytes are written to it, and then one handle takes the bytes out of the inode, maps the block as written
//! and marks it in use. A crash before the commit of that handle leaves the bytes in the inode; a crash after
//! it finds them in the block, as every commit flushes the device before it is valid. There is no state in
//! between, and no unwritten block. With bigalloc a whole cluster is picked: an inline file has none yet, and
//! the block is the first of the file and of the cluster.
//!
//! Locks: a task that changes the bytes or moves them holds `rwlock` and `invalidate_lock` for writing, also
//! if the caller's future is dropped ([`crate::base::operation_lock`]); then `inode`, under the handle. No
//! folio is filled meanwhile, and a reader that comes later checks [`InodeInfo::is_inline`] under
//! `invalidate_lock`.
//!
//! Fast commits: no tag for an inline inode is replayed alike by all implementations, so its transaction is
//! committed in full.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)
)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ext4_core::device::{AlignedBuffer, BioFlags, Segment};
use ext4_core::format::inode::Inode;
use ext4_core::meta::block_allocator::AllocationRequest;
use ext4_core::meta::block_allocator::picked::{pick_clusters, return_picked, use_picked};
use ext4_core::meta::{block_map, credits, extent_tree, inline_data};
use ext4_core::{BlockNumber, Errno, Error, LogicalBlock, Result};

use crate::cache::extent_status::status::Status;
use crate::inode::InodeInfo;
use crate::inode::locks::under_locks;
use crate::inode::log::log_inode;
use crate::io::drop_folios;
use crate::volume::Volume;
use crate::volume::fast_commit::reason::Reason;
use crate::volume::handle::Handle;
use crate::writeback::Engine;

/// The byte of an inode at which `i_block` begins.
const I_BLOCK: u64 = 40;

const ORPHAN_CREDITS: u32 = credits::ORPHAN + credits::INODE;

/// Credits to map one block, mark it in use and log the inode.
const PUBLISH_CREDITS: u32 = credits::EXTENT + credits::ALLOCATE_BLOCKS + credits::INODE;

/// Inline data as fiemap reports it: bytes of a file that lie in its inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InlineExtent {
    /// The byte of the device at which the data begins. It is not aligned, and only the first 60 bytes are
    /// contiguous.
    pub physical: u64,
    /// The length of the data in bytes of the file (of a directory: of its entries).
    pub len: u64,
    /// The byte of the device at which byte 60 of the data and all behind it lie; `None` if the data is not
    /// longer than 60 bytes.
    pub rest: Option<u64>,
}

/// fiemap: where the inode holds the data of its file or directory; `None` if the data is not inline.
///
/// # Errors
/// Corrupt: the inode's place or its inline data is not valid.
pub(crate) async fn extent_of(volume: &Volume, inode: &InodeInfo) -> Result<Option<InlineExtent>> {
    let disk = inode.on_disk.read().await;
    if !inline_data::is_inline(&disk) {
        return Ok(None);
    }
    let len = bytes_of(&disk)?.len() as u64;
    let (block, offset) = volume.info.inode_location(inode.number).await?;
    let outside =
        || Error::corrupt(format!("inode {}", inode.number), "it lies behind byte 2^64 of the device");
    let start = block.byte(volume.info.block_size()).and_then(|byte| byte.checked_add(offset as u64));
    let start = start.ok_or_else(outside)?;
    let place = |within: u64| start.checked_add(within).ok_or_else(outside);
    let rest = inline_data::rest(&disk)?.filter(|_| len > inline_data::IN_BLOCK as u64);
    let rest = rest.map(|(at, _)| place(at as u64)).transpose()?;
    Ok(Some(InlineExtent { physical: place(I_BLOCK)?, len, rest }))
}

/// SEEK_HOLE: the byte at which the inline data ends, i_size at most; `None` if the file is not inline.
///
/// # Errors
/// Corrupt: the inline data is not valid.
pub(crate) async fn data_end(inode: &InodeInfo) -> Result<Option<u64>> {
    let disk = inode.on_disk.read().await;
    if !inline_data::is_inline(&disk) {
        return Ok(None);
    }
    Ok(Some((inline_data::data(&disk)?.len() as u64).min(disk.size)))
}

/// Reads inline data at byte `position` into `buffer`, up to i_size. Returns how many bytes; `None` if the
/// file is not inline.
///
/// # Errors
/// Corrupt: the inline data is not valid.
pub(crate) async fn read(inode: &InodeInfo, position: u64, buffer: &mut [u8]) -> Result<Option<usize>> {
    read_from(&*inode.on_disk.read().await, position, buffer)
}

/// As [`read`], of an inode that the caller has locked.
pub(crate) fn read_from(disk: &Inode, position: u64, buffer: &mut [u8]) -> Result<Option<usize>> {
    if !inline_data::is_inline(disk) {
        return Ok(None);
    }
    let data = inline_data::data(disk)?;
    let left = usize::try_from(disk.size.saturating_sub(position)).unwrap_or(usize::MAX);
    let count = left.min(buffer.len());
    let there = usize::try_from(position).ok().and_then(|at| data.get(at..)).unwrap_or_default();
    let there = there.get(..count).unwrap_or(there);
    let (buffer, _) = buffer.split_at_mut(count);
    let (stored, behind) = buffer.split_at_mut(there.len());
    stored.copy_from_slice(there);
    // The kernel extends such a file without storing zeros.
    behind.fill(0);
    Ok(Some(count))
}

/// The inline data of `disk`, without bytes behind its size.
fn bytes_of(disk: &Inode) -> Result<Vec<u8>> {
    let mut bytes = inline_data::data(disk)?;
    bytes.truncate(usize::try_from(disk.size).unwrap_or(usize::MAX));
    Ok(bytes)
}

/// Writes `data` at byte `position` into the inode. Returns true if it fits; otherwise the file is mapped, or
/// has been moved to a block, and the caller writes through the page cache. The caller holds `rwlock` for
/// writing.
///
/// # Errors
/// Those of [`convert_out`].
pub(crate) async fn write(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
    data: &[u8],
) -> Result<bool> {
    let end = position.saturating_add(data.len() as u64);
    let fits_at_all = end <= u64::from(engine.volume.info.inode_size());
    let may_become = fits_at_all && inode.size() == 0 && is_enabled(engine);
    if !inode.is_inline() && !may_become {
        return Ok(false);
    }
    let data = if fits_at_all { data.to_vec() } else { Vec::new() };
    let (shared, owned) = (Arc::clone(engine), Arc::clone(inode));
    under_locks(&engine.volume, inode, async move {
        let dropping = owned.invalidate_lock.write().await;
        if !owned.is_inline() {
            // No folio of an empty file is dirty; a reader may have left a folio of zeros.
            drop_folios::drop_folios(&shared, &owned, 0..u64::MAX).await;
        }
        let written = fits_at_all && write_here(&shared, &owned, position, &data).await?;
        drop(dropping);
        if !written {
            convert_out(&shared, &owned).await?;
        }
        Ok(written)
    })
    .await
}

fn is_enabled(engine: &Engine) -> bool {
    engine.volume.info.features().incompat.contains(ext4_core::format::features::Incompat::INLINE_DATA)
}

/// Changes bytes and size in one handle. Returns true if they fit into the inode.
async fn write_here(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
    data: &[u8],
) -> Result<bool> {
    let handle = engine.volume.begin_tracked(credits::INODE, "write inline data").await?;
    let mut disk = inode.on_disk.write().await;
    let mut bytes = if inline_data::is_inline(&disk) {
        bytes_of(&disk)?
    } else if inline_data::may_become_inline(&engine.volume.info, &disk) {
        Vec::new()
    } else {
        return Ok(false);
    };
    let (Ok(start), Ok(size)) = (usize::try_from(position), usize::try_from(disk.size)) else {
        return Ok(false);
    };
    let end = start.saturating_add(data.len());
    let size = size.max(end);
    if size > inline_data::capacity(&engine.volume.info, &disk)? {
        return Ok(false);
    }
    bytes.resize(size, 0);
    let Some(changed) = bytes.get_mut(start..end) else { return Ok(false) };
    changed.copy_from_slice(data);
    put(engine, &handle, inode, &mut disk, &bytes).await
}

/// Replaces the inline data by `bytes` and logs the inode. Returns true if they fit.
async fn put(
    engine: &Engine,
    handle: &Handle,
    inode: &InodeInfo,
    disk: &mut Inode,
    bytes: &[u8],
) -> Result<bool> {
    if !inline_data::store(&engine.volume.info, disk, bytes)? {
        return Ok(false);
    }
    disk.stamp_change(engine.volume.now());
    set_sizes(inode, disk, bytes.len() as u64);
    log_inode(&engine.volume, handle, inode, disk, true).await?;
    Ok(true)
}

/// Marks the inode as inline with `size` bytes: i_size and i_disksize.
fn set_sizes(inode: &InodeInfo, disk: &mut Inode, size: u64) {
    disk.size = size;
    // The kind before the size: a task that sees the size must see where the bytes are.
    inode.inline.store(true, Ordering::Release);
    inode.completion.set_disk_size(size);
    inode.size.store(size, Ordering::SeqCst);
}

/// Truncates or extends inline data to `size` bytes. Returns true if that was done; otherwise the file is
/// mapped, or has been moved to a block, and the caller truncates it as such. The caller holds `rwlock` for
/// writing, and runs this to its end.
///
/// # Errors
/// Those of [`convert_out`].
pub(crate) async fn set_size(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, size: u64) -> Result<bool> {
    if !inode.is_inline() {
        return Ok(false);
    }
    let stored = {
        let _dropping = inode.invalidate_lock.write().await;
        let handle = engine.volume.begin_tracked(credits::INODE, "truncate inline data").await?;
        let mut disk = inode.on_disk.write().await;
        let capacity = inline_data::capacity(&engine.volume.info, &disk)?;
        match usize::try_from(size) {
            Ok(size) if size <= capacity => {
                let mut bytes = bytes_of(&disk)?;
                bytes.resize(size, 0);
                put(engine, &handle, inode, &mut disk, &bytes).await?
            }
            _ => false,
        }
    };
    if !stored {
        convert_out(engine, inode).await?;
    }
    Ok(stored)
}

/// Orphan processing: finishes a truncation of inline data that the kernel began. Bytes behind the size are
/// removed, and the inode leaves the orphan list.
///
/// # Errors
/// Corrupt: the inline data is not valid. Those of the journal and of the device.
pub(crate) async fn resume(engine: &Arc<Engine>, inode: &Arc<InodeInfo>) -> Result<()> {
    let handle =
        engine.volume.begin_ineligible(ORPHAN_CREDITS, "truncate inline data", Reason::Orphan).await?;
    let mut disk = inode.on_disk.write().await;
    let bytes = bytes_of(&disk)?;
    inline_data::store(&engine.volume.info, &mut disk, &bytes)?;
    engine.volume.orphans.remove(&engine.volume.info, &handle, &mut disk).await?;
    log_inode(&engine.volume, &handle, inode, &disk, true).await
}

/// As [`convert_out`], and runs to its end if the caller's future is dropped. The caller holds `rwlock` for
/// writing.
///
/// # Errors
/// As [`convert_out`].
pub(crate) async fn move_out(engine: &Arc<Engine>, inode: &Arc<InodeInfo>) -> Result<()> {
    if !inode.is_inline() {
        return Ok(());
    }
    let (shared, owned) = (Arc::clone(engine), Arc::clone(inode));
    under_locks(&engine.volume, inode, async move { convert_out(&shared, &owned).await }).await
}

/// Moves inline data to a block; a mapped file stays as it is. Size and content are the same afterwards. The
/// caller holds `rwlock` for writing and no handle, and runs this to its end.
///
/// # Errors
/// - `ENOSPC`: there is no free block; nothing has changed.
/// - Corrupt: the inline data is not valid.
/// - Those of the journal and of the device.
pub(crate) async fn convert_out(engine: &Arc<Engine>, inode: &Arc<InodeInfo>) -> Result<()> {
    if !inode.is_inline() {
        return Ok(());
    }
    // Rare, and a large future: boxed, so that its callers' futures stay small.
    Box::pin(convert(engine, inode)).await
}

async fn convert(engine: &Arc<Engine>, inode: &Arc<InodeInfo>) -> Result<()> {
    let _dropping = inode.invalidate_lock.write().await;
    if !inode.is_inline() {
        return Ok(());
    }
    drop_folios::drop_folios(engine, inode, 0..u64::MAX).await;
    let bytes = bytes_of(&*inode.on_disk.read().await)?;
    if bytes.is_empty() {
        return publish(engine, inode, None).await;
    }
    match move_to_block(engine, inode, &bytes).await {
        Err(error) if error.errno() == Errno::ENOSPC && engine.volume.commit_for_space().await? => {
            move_to_block(engine, inode, &bytes).await
        }
        result => result,
    }
}

async fn move_to_block(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, bytes: &[u8]) -> Result<()> {
    engine.volume.info.reserve_blocks(1)?;
    let request =
        AllocationRequest { goal: None, inode: inode.number, len: 1, reserved: true, metadata: false };
    let has_extents =
        engine.volume.info.features().incompat.contains(ext4_core::format::features::Incompat::EXTENTS);
    let below = if has_extents { BlockNumber(u64::MAX) } else { block_map::ADDRESSABLE };
    let block = match pick_clusters(&engine.volume.info, &request, below).await {
        Ok((block, _)) => block,
        Err(error) => {
            engine.volume.info.release_reserved_blocks(1);
            return Err(error);
        }
    };
    let moved = match write_block(engine, block, bytes).await {
        Ok(()) => publish(engine, inode, Some(block)).await,
        Err(error) => Err(error),
    };
    if moved.is_err() && inode.is_inline() {
        return_picked(&engine.volume.info, block, 1);
        engine.volume.info.release_reserved_blocks(1);
    }
    moved
}

async fn write_block(engine: &Engine, block: BlockNumber, bytes: &[u8]) -> Result<()> {
    let size = engine.volume.info.block_size();
    let mut content = bytes.to_vec();
    if content.len() > size.len() {
        return Err(Error::corrupt("inline data", format!("{} bytes, more than a block", content.len())));
    }
    content.resize(size.len(), 0);
    let segments = vec![Segment::Owned(AlignedBuffer::copied(&content)?)];
    let place = block.byte(size);
    let place = place.ok_or_else(|| Error::corrupt(format!("block {block}"), "it lies behind byte 2^64"))?;
    engine.volume.info.device().write_at(place, segments, BioFlags::SYNC).await
}

/// In one handle: takes the inline data out of the inode and maps the picked `block`, if there is one.
async fn publish(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, block: Option<BlockNumber>) -> Result<()> {
    let info = &engine.volume.info;
    // Not tracked: no fast commit tag says that `system.data` was removed.
    let handle =
        engine.volume.begin_ineligible(PUBLISH_CREDITS, "convert inline data", Reason::Mapping).await?;
    let mut disk = inode.on_disk.write().await;
    let before = disk.clone();
    inline_data::clear(info, &mut disk)?;
    let first = LogicalBlock(0);
    let mapped = match block {
        None => Ok(()),
        Some(block) if disk.uses_extents() => {
            extent_tree::insert(info, &handle, &mut disk, first, block, 1, false).await
        }
        Some(block) => block_map::insert(info, &handle, &mut disk, first, block, 1).await.map(|_| ()),
    };
    if let Err(error) = mapped {
        *disk = before;
        return Err(error);
    }
    inode.extent_status.remove(first..LogicalBlock::END);
    inode.inline.store(false, Ordering::Release);
    if let Some(block) = block {
        if let Err(error) = use_picked(info, &handle, block, 1).await {
            if let Some(journal) = &engine.volume.journal {
                journal.abort(&error);
            }
            return Err(error);
        }
        inode.extent_status.set(first..first.offset(1), Status::Written(block));
    }
    tracing::debug!(inode = inode.number.0, ?block, "ext4_convert_inline_data");
    log_inode(&engine.volume, &handle, inode, &disk, true).await
}
