//! Files that hold their data themselves (`inline_data`): reading, writing, cutting, and moving the data to a block.
//!
//! ```text
//!   empty ── first bytes that fit ──► inline ── what does not fit, or fallocate ──► mapped
//!                                     │   ▲
//!                                     └───┘ write, truncate: one handle each
//! ```
//!
//! The inode is the only copy: what is read comes from it, not from the page cache, which holds nothing of such a file. A
//! write changes bytes and size in one handle, so a crash shows it whole or not at all, and fsync has a transaction to
//! wait for.
//!
//! Moving to a block: a block is picked in memory ([`crate::iomap::preallocation`] has the argument), the data is written to it,
//! and then one handle takes the data out of the inode, maps the block as written and marks it in use. A crash before
//! its commit leaves the data in the inode; after it, in the block, which every commit flushes before it is valid. There
//! is no state in between, and nothing unwritten. With bigalloc a whole cluster is picked: a file that is inline has none
//! yet, and the block is the first of its file as of its cluster.
//!
//! Locks: who changes the data or moves it holds `rwlock` and `invalidate_lock` for writing, also when the future of the
//! caller is dropped ([`crate::base::operation_lock`]); then `inode`, under the handle. Nobody fills folios meanwhile, and who comes later
//! looks at [`InodeInfo::is_inline`] under `invalidate_lock`.
//!
//! Fast commits: an inline inode has no tag that all replay alike, so its transaction is committed in full.

use crate::inode::log::log_inode;
use crate::io::drop_folios;
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
use crate::volume::Volume;
use crate::volume::fast_commit::reason::Reason;
use crate::volume::handle::Handle;
use crate::writeback::Engine;

/// Where `i_block` lies in an inode.
const I_BLOCK: u64 = 40;

/// Data that an inode holds itself, as fiemap tells of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InlineExtent {
    /// The byte of the device at which it begins. Not aligned, and not all of it lies behind one another: 60 bytes do.
    pub physical: u64,
    /// How many bytes of the file it is (of a directory: of its entries).
    pub len: u64,
    /// The byte of the device at which byte 60 lies and all behind it, where there are so many.
    pub rest: Option<u64>,
}

/// Where the inode holds the data of its file or directory; `None` if it does not.
pub(crate) async fn extent_of(volume: &Volume, inode: &InodeInfo) -> Result<Option<InlineExtent>> {
    let disk = inode.inode.read().await;
    if !inline_data::is_inline(&disk) {
        return Ok(None);
    }
    let len = bytes_of(&disk)?.len() as u64;
    let (block, offset) = volume.info.inode_location(inode.number).await?;
    let start = (block.0 << volume.info.block_size().bits()) + offset as u64;
    let rest = inline_data::rest(&disk)?.filter(|_| len > inline_data::IN_BLOCK as u64);
    Ok(Some(InlineExtent { physical: start + I_BLOCK, len, rest: rest.map(|(at, _)| start + at as u64) }))
}

/// Where the bytes that the inode holds end, none behind i_size; `None` where it holds none.
pub(crate) async fn data_end(inode: &InodeInfo) -> Result<Option<u64>> {
    let disk = inode.inode.read().await;
    if !inline_data::is_inline(&disk) {
        return Ok(None);
    }
    Ok(Some((inline_data::data(&disk)?.len() as u64).min(disk.size)))
}

/// Reads at `position`, as far as the file goes. `None` where it does not hold its data itself.
pub(crate) async fn read(inode: &InodeInfo, position: u64, buffer: &mut [u8]) -> Result<Option<usize>> {
    read_from(&*inode.inode.read().await, position, buffer)
}

/// The same, of an inode that is at hand.
pub(crate) fn read_from(disk: &Inode, position: u64, buffer: &mut [u8]) -> Result<Option<usize>> {
    if !inline_data::is_inline(disk) {
        return Ok(None);
    }
    let data = inline_data::data(disk)?;
    let left = usize::try_from(disk.size.saturating_sub(position)).unwrap_or(usize::MAX);
    let count = left.min(buffer.len());
    let there = usize::try_from(position).ok().and_then(|at| data.get(at..)).unwrap_or_default();
    let buffer = &mut buffer[..count];
    let copied = there.len().min(count);
    buffer[..copied].copy_from_slice(&there[..copied]);
    // The kernel extends such a file without storing zeros.
    buffer[copied..].fill(0);
    Ok(Some(count))
}

/// The file's bytes that the inode holds: none behind its size.
fn bytes_of(disk: &Inode) -> Result<Vec<u8>> {
    let mut bytes = inline_data::data(disk)?;
    bytes.truncate(usize::try_from(disk.size).unwrap_or(usize::MAX));
    Ok(bytes)
}

/// Writes into the inode where `data` fits. False where it does not: then the inode holds nothing any more, and the
/// caller goes on. The caller holds `rwlock` for writing.
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
            // Nothing of it is dirty, as it has no bytes; a block of zeros may be there, which somebody read.
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

/// One handle: bytes and size. False where they do not fit.
async fn write_here(
    engine: &Arc<Engine>,
    inode: &Arc<InodeInfo>,
    position: u64,
    data: &[u8],
) -> Result<bool> {
    let handle = engine.volume.begin_tracked(credits::INODE, "write inline data").await?;
    let mut disk = inode.inode.write().await;
    let mut bytes = if inline_data::is_inline(&disk) {
        bytes_of(&disk)?
    } else if inline_data::may_become_inline(&engine.volume.info, &disk) {
        Vec::new()
    } else {
        return Ok(false);
    };
    let end = position + data.len() as u64;
    let size = disk.size.max(end);
    if size > inline_data::capacity(&engine.volume.info, &disk)? as u64 {
        return Ok(false);
    }
    let start = (end as usize) - data.len();
    bytes.resize(size as usize, 0);
    bytes[start..end as usize].copy_from_slice(data);
    put(engine, &handle, inode, &mut disk, &bytes).await
}

/// Makes `bytes` all of the file, and logs it. False where they do not fit.
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
    let now = engine.volume.now();
    disk.mtime = now;
    disk.ctime = now;
    set_sizes(inode, disk, bytes.len() as u64);
    log_inode(&engine.volume, handle, inode, disk, true).await?;
    Ok(true)
}

/// The file is inline and has `size` bytes, here and on the device.
fn set_sizes(inode: &InodeInfo, disk: &mut Inode, size: u64) {
    disk.size = size;
    // The kind before the size: who sees bytes must see where they are.
    inode.inline.store(true, Ordering::Release);
    inode.completion.set_disk_size(size);
    inode.size.store(size, Ordering::SeqCst);
}

/// Cuts or extends the data within the inode. False where the file is mapped, by now perhaps: then the caller goes on. The
/// caller holds `rwlock` for writing, and runs it to its end.
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
        let mut disk = inode.inode.write().await;
        if size <= inline_data::capacity(&engine.volume.info, &disk)? as u64 {
            let mut bytes = bytes_of(&disk)?;
            bytes.resize(size as usize, 0);
            put(engine, &handle, inode, &mut disk, &bytes).await?
        } else {
            false
        }
    };
    if !stored {
        convert_out(engine, inode).await?;
    }
    Ok(stored)
}

/// Finishes a truncation of inline data that the kernel began: what lies behind the size goes, and the inode is no orphan
/// any more.
///
/// # Errors
/// Corrupt; those of the journal and of the device.
pub(crate) async fn resume(engine: &Arc<Engine>, inode: &Arc<InodeInfo>) -> Result<()> {
    let handle = engine
        .volume
        .begin_ineligible(credits::ORPHAN + credits::INODE, "truncate inline data", Reason::Orphan)
        .await?;
    let mut disk = inode.inode.write().await;
    let bytes = bytes_of(&disk)?;
    inline_data::store(&engine.volume.info, &mut disk, &bytes)?;
    engine.volume.orphans.remove(&engine.volume.info, &handle, &mut disk).await?;
    log_inode(&engine.volume, &handle, inode, &disk, true).await
}

/// As [`convert_out`], to its end whatever becomes of the caller, who holds `rwlock` for writing.
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

/// Moves the data of a file to a block where the inode holds it; a file that is mapped stays as it is. Size and content
/// are the same afterwards. The caller holds `rwlock` for writing and no handle, and runs it to its end.
///
/// # Errors
/// `ENOSPC`, then nothing has changed; corrupt; those of the journal and of the device.
pub(crate) async fn convert_out(engine: &Arc<Engine>, inode: &Arc<InodeInfo>) -> Result<()> {
    if !inode.is_inline() {
        return Ok(());
    }
    // Rare, and large as a future: apart from those that await it.
    Box::pin(convert(engine, inode)).await
}

async fn convert(engine: &Arc<Engine>, inode: &Arc<InodeInfo>) -> Result<()> {
    let _dropping = inode.invalidate_lock.write().await;
    if !inode.is_inline() {
        return Ok(());
    }
    drop_folios::drop_folios(engine, inode, 0..u64::MAX).await;
    let bytes = bytes_of(&*inode.inode.read().await)?;
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
    let extents =
        engine.volume.info.features().incompat.contains(ext4_core::format::features::Incompat::EXTENTS);
    let below = if extents { BlockNumber(u64::MAX) } else { block_map::ADDRESSABLE };
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
    engine.volume.info.device().write_at(block.0 << size.bits(), segments, BioFlags::SYNC).await
}

/// One handle: the inode holds nothing any more, and maps the picked `block`, where there is one.
async fn publish(engine: &Arc<Engine>, inode: &Arc<InodeInfo>, block: Option<BlockNumber>) -> Result<()> {
    let info = &engine.volume.info;
    let credits = credits::EXTENT + credits::ALLOCATE_BLOCKS + credits::INODE;
    // Not tracked: that `system.data` went has no tag.
    let handle = engine.volume.begin_ineligible(credits, "convert inline data", Reason::Mapping).await?;
    let mut disk = inode.inode.write().await;
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
        inode.extent_status.set(first..first + 1, Status::Written(block));
    }
    tracing::debug!(inode = inode.number.0, ?block, "ext4_convert_inline_data");
    log_inode(&engine.volume, &handle, inode, &disk, true).await
}
