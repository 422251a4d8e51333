//! Adding, removing and resizing the journal of an unmounted file system (`tune2fs -O has_journal`).
//!
//! ```text
//!   add      not valid ─► log zeroed, its superblock ─► bitmaps, inode 8 ─► has_journal, valid
//!   remove   no journal, not valid ─► bitmaps, inode 8 ─► valid
//!   resize   remove, then add
//!   on a device of its own: that device whole ─► has_journal with its UUID; and back
//! ```
//!
//! Each arrow is a flush. There is no journal that makes several blocks change together, so safety comes from
//! the order.
//!
//! Invariants:
//! - At every moment of a crash, the superblock names a journal only if all of it is on the device. In
//!   between the file system is a whole one without a journal that is not marked as valid: every checker and
//!   kernel accepts it. What is left behind are blocks in use by no file, or an inode 8 without use, which
//!   `e2fsck -p` frees without a question.
//! - An orphan file is removed before the journal, in a transaction of it; if a new journal follows, it
//!   stays.
//! - A file system whose log is not empty is left alone, unless the log is to be discarded (`force`).
//! - The whole new journal is known to fit before the old one is removed.
//!
//! Source: the order of tune2fs, made safe: e2fsprogs, `add_journal`, `remove_journal_inode`.

use std::sync::Arc;

use ext4_core::device::{AlignedBuffer, BioFlags, BlockDevice, Segment};
use ext4_core::environment::Environment;
use ext4_core::format::features::{Compat, Incompat};
use ext4_core::format::superblock::{
    JournalDevice, STATE_ERROR, STATE_VALID, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, Superblock,
};
use ext4_core::meta::mkfs::{check_journal_blocks, default_journal_blocks};
use ext4_core::meta::orphan::Orphans;
use ext4_core::meta::{DirectTransaction, SuperblockInfo, journal_inode};
use ext4_core::{BlockNumber, BlockSize, Errno, Error, GroupNumber, InodeNumber, Result};
use ext4_journal::JournalHeader;
use ext4_journal::{NewJournal, attach_user, detach_user, external_superblock_block};

use crate::base::options::{MountOptions, setters};
use crate::filesystem::Filesystem;
use crate::mount::journal_location;
use crate::mount::journal_location::{has_external_journal, read_journal_device};

/// Bytes of metadata cache for a change of the journal.
const CACHE: usize = 64 << 20;

/// Credits to free an orphan file of the largest size, 512 blocks.
const ORPHAN_FILE_CREDITS: u32 = 200;

/// The journal that a file system is to get: for [`create_journal`].
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct NewJournalOptions {
    /// File-system blocks of the journal, without the fast-commit area. `None`: by the file system's size, as
    /// mke2fs does; an external journal always has the whole device.
    pub blocks: Option<u32>,
    /// File-system blocks of the fast-commit area besides; more than 0 turns the feature `fast_commit` on.
    pub fast_commit_blocks: u32,
    /// The journal device, for an external journal.
    pub external: Option<ExternalJournal>,
    /// True if a log that is not empty is discarded, and what lies on the journal device is overwritten.
    pub force: bool,
}

impl NewJournalOptions {
    /// A journal inside the file system, as large as mke2fs makes one, without fast commits.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

setters! {
    NewJournalOptions:
    blocks: Option<u32>,
    fast_commit_blocks: u32,
    external: Option<ExternalJournal>,
    force: bool,
}

/// A journal device: a device that becomes an external journal.
#[derive(Clone, Debug)]
pub struct ExternalJournal {
    /// The device.
    pub device: Arc<dyn BlockDevice>,
    /// Its device number for s_journal_dev, by which the kernel looks for it first; 0 if it has none.
    pub number: u32,
}

/// Gives the unmounted file system on `device` a journal; a journal that it has is removed first.
/// `old_journal` is the device of that one, if it is external and at hand.
///
/// # Errors
/// - `EINVAL`: a size that a journal cannot have, or a size for an external journal.
/// - `ENOSPC`: no room for the journal.
/// - `EBUSY`: the log has to be recovered, or the file system was not unmounted cleanly, has errors or
///   orphans.
/// - `EEXIST`: a file system, or the journal of another one, is on the journal device.
/// - `EROFS`: a device cannot be written.
/// - `EOPNOTSUPP`: a file system without extents, or with feature `mmp`.
/// - `EIO`, `EUCLEAN`: a device, or what it holds.
pub async fn create_journal(
    device: Arc<dyn BlockDevice>,
    old_journal: Option<Arc<dyn BlockDevice>>,
    options: &NewJournalOptions,
    environment: Arc<dyn Environment>,
) -> Result<()> {
    let info = open(&device, &environment).await?;
    check_quiet(&info, options.force).await?;
    let superblock = info.superblock();
    let fast_commits = options.fast_commit_blocks > 0
        || options.external.is_none() && superblock.features.compat.contains(Compat::FAST_COMMIT);
    let plan = match &options.external {
        Some(external) => Plan::External(check_external(external, superblock.block_size, options).await?),
        None => Plan::Inode(check_inode(&info, options).await?),
    };
    drop(info);
    if superblock.features.compat.contains(Compat::HAS_JOURNAL) {
        // Not marked as valid until the new journal is there.
        take_away(&device, old_journal, options.force, 0, &environment).await?;
    }
    let info = open(&device, &environment).await?;
    let valid = superblock.state & STATE_VALID;
    let added = Added { fast_commit_blocks: options.fast_commit_blocks, fast_commits, valid };
    match (plan, &options.external) {
        (Plan::Inode(blocks), _) => add_inode(&info, blocks, &added).await,
        (Plan::External(blocks), Some(external)) => add_external(&info, external, blocks, &added).await,
        (Plan::External(_), None) => unreachable!("planned for a device that was given"),
    }
}

/// The features and the state of the file system after the new journal is there.
struct Added {
    fast_commit_blocks: u32,
    /// True if the feature `fast_commit` is on.
    fast_commits: bool,
    /// `STATE_VALID` if the file system had it, else 0.
    valid: u16,
}

/// Removes the journal of the unmounted file system on `device`. `journal_device` is the device of an
/// external journal; if it is not given, that device is left as it is. With `force` a log that is not empty
/// is discarded.
///
/// # Errors
/// - `EINVAL`: the file system has no journal.
/// - Those of [`create_journal`].
pub async fn remove_journal(
    device: Arc<dyn BlockDevice>,
    journal_device: Option<Arc<dyn BlockDevice>>,
    force: bool,
    environment: Arc<dyn Environment>,
) -> Result<()> {
    let info = open(&device, &environment).await?;
    let superblock = info.superblock();
    let (features, valid) = (superblock.features, superblock.state & STATE_VALID);
    if !features.compat.contains(Compat::HAS_JOURNAL) {
        return Err(Error::posix(Errno::EINVAL, "the file system has no journal"));
    }
    check_quiet(&info, force).await?;
    drop(info);
    let orphan_file = features.compat.contains(Compat::ORPHAN_FILE);
    let thrown_away = features.incompat.contains(Incompat::RECOVER);
    if orphan_file && !thrown_away {
        // While there is a journal, which makes it atomic.
        let options = MountOptions {
            journal_device: journal_device.clone(),
            commit_interval: None,
            environment: Arc::clone(&environment),
            ..MountOptions::default()
        };
        let filesystem = Filesystem::mount(Arc::clone(&device), options).await?;
        let removed = drop_orphan_file(&filesystem).await;
        filesystem.unmount().await.and(removed)?;
    }
    take_away(&device, journal_device, force, valid, &environment).await?;
    if orphan_file && thrown_away {
        let info = open(&device, &environment).await?;
        let transaction = DirectTransaction::new(Arc::clone(&info.cache));
        journal_inode::remove_orphan_file(&info, &transaction).await?;
        info.cache.write_dirty().await?;
        info.device().flush().await?;
        write_copies(&info).await?;
    }
    Ok(())
}

async fn drop_orphan_file(filesystem: &Filesystem) -> Result<()> {
    let inner = &filesystem.inner;
    // The orphan file's blocks lie in a few groups: a bitmap and a descriptor each.
    let most = inner.volume.journal.as_ref().map_or(u32::MAX, |journal| journal.max_credits());
    let handle = inner.volume.begin(most.min(ORPHAN_FILE_CREDITS), "remove the orphan file").await?;
    journal_inode::remove_orphan_file(&inner.volume.info, &handle).await
}

/// Removes the journal; an orphan file stays. `valid` is `STATE_VALID` if the file system is to be marked so
/// then, else 0.
async fn take_away(
    device: &Arc<dyn BlockDevice>,
    journal_device: Option<Arc<dyn BlockDevice>>,
    force: bool,
    valid: u16,
    environment: &Arc<dyn Environment>,
) -> Result<()> {
    let info = open(device, environment).await?;
    let superblock = info.superblock();
    check_quiet(&info, force).await?;
    let external = has_external_journal(&superblock);
    if !external && superblock.journal_inum != InodeNumber::JOURNAL.0 {
        return Err(Error::Unsupported(format!("removing a journal in inode {}", superblock.journal_inum)));
    }
    // Fails if the given device is not this file system's journal, which would be changed otherwise.
    if let (true, Some(journal)) = (external, &journal_device) {
        journal_location::locate(&info, Some(journal)).await?;
    }
    let blocks = if external { 0 } else { journal_blocks(&superblock) };
    info.write_superblock(&mut |superblock| {
        superblock.state &= !STATE_VALID;
        if external {
            superblock.state |= valid;
        }
        superblock.features.compat.remove(Compat::HAS_JOURNAL | Compat::FAST_COMMIT);
        superblock.features.incompat.remove(Incompat::RECOVER);
        superblock.journal_inum = 0;
        superblock.journal_uuid = [0; 16];
        superblock.journal_dev = 0;
        superblock.jnl_backup_type = 0;
        superblock.jnl_blocks = [0; 17];
        superblock.overhead_blocks = without(superblock.overhead_blocks, blocks);
    })
    .await?;
    if external {
        write_copies(&info).await?;
        return match journal_device {
            Some(journal) => {
                rewrite_users(&*journal, |block, size, available| {
                    detach_user(block, size, available, superblock.uuid)
                })
                .await
            }
            None => Ok(()),
        };
    }
    let transaction = DirectTransaction::new(Arc::clone(&info.cache));
    journal_inode::remove(&info, &transaction).await?;
    info.cache.write_dirty().await?;
    info.device().flush().await?;
    info.write_superblock(&mut |superblock| superblock.state |= valid).await?;
    write_copies(&info).await
}

async fn open(
    device: &Arc<dyn BlockDevice>,
    environment: &Arc<dyn Environment>,
) -> Result<Arc<SuperblockInfo>> {
    if device.geometry().read_only {
        return Err(Error::posix(Errno::EROFS, "the device cannot be written"));
    }
    SuperblockInfo::load(Arc::clone(device), CACHE, Arc::clone(environment), false).await
}

/// Checks that the file system was unmounted cleanly, has no errors and no orphans.
///
/// # Errors
/// `EBUSY`: it was not, or has.
async fn check_quiet(info: &SuperblockInfo, force: bool) -> Result<()> {
    let superblock = info.superblock();
    let busy = |why: &str| Err(Error::posix(Errno::EBUSY, format!("the file system {why}")));
    let in_inode =
        superblock.features.compat.contains(Compat::HAS_JOURNAL) && !has_external_journal(&superblock);
    // A log may be not empty although the superblock lacks `RECOVER`. A log that cannot be read counts as
    // empty.
    let holds_something = in_inode && !force && inode_log_start(info).await.unwrap_or(0) != 0;
    if (superblock.features.incompat.contains(Incompat::RECOVER) || holds_something) && !force {
        return busy("was not unmounted cleanly: its journal has to be recovered (mount it, or e2fsck)");
    }
    if superblock.state & STATE_ERROR != 0 || superblock.state & STATE_VALID == 0 && !force {
        return busy("has errors or was not unmounted cleanly: check it first");
    }
    if !info.bad_groups().is_empty() {
        return busy("is damaged: check it first");
    }
    if !force && !Orphans::load(info).await?.pending().is_empty() {
        return busy("has files whose deletion is not finished: mount it first");
    }
    if superblock.features.incompat.contains(Incompat::MMP) {
        return Err(Error::Unsupported("changing the journal under feature mmp".into()));
    }
    Ok(())
}

/// The first block of the log in the journal's inode (s_start); 0 for an empty log.
async fn inode_log_start(info: &SuperblockInfo) -> Result<u32> {
    let location = journal_location::locate(info, None).await?;
    let available = location.runs.iter().fold(0_u32, |sum, (_, count)| sum.saturating_add(*count));
    let (first, _) = location.runs.first().copied().unwrap_or((BlockNumber(0), 0));
    let at = first.byte(info.block_size()).unwrap_or(u64::MAX);
    let block = info.device().read_at(at, info.block_size().len()).await?;
    Ok(JournalHeader::parse(&block, info.block_size(), available)?.start)
}

/// The place of the new journal, and its blocks, the fast-commit area included.
enum Plan {
    Inode(u32),
    External(u32),
}

/// The blocks of the new journal in inode 8: a valid size that fits, if the blocks of the old one are free.
async fn check_inode(info: &SuperblockInfo, options: &NewJournalOptions) -> Result<u32> {
    let superblock = info.superblock();
    if !superblock.features.incompat.contains(Incompat::EXTENTS) {
        return Err(Error::Unsupported("making a journal in a file system without feature extent".into()));
    }
    let blocks = match options.blocks.unwrap_or_else(|| default_journal_blocks(superblock.blocks_count)) {
        0 => return Err(Error::posix(Errno::EINVAL, "the file system is too small for a journal")),
        blocks => blocks,
    };
    let all = blocks.saturating_add(options.fast_commit_blocks);
    check_journal_blocks(blocks, superblock.blocks_count)?;
    check_journal_blocks(all, superblock.blocks_count)?;
    let old = if has_external_journal(&superblock) { 0 } else { journal_blocks(&superblock) };
    let free = superblock.free_blocks_count + u64::from(old);
    // Nodes of the extent tree: one for some hundred extents, of which each group needs few.
    let needed = u64::from(all) + 2 + u64::from(info.groups_count()) / 64;
    if needed > free {
        let context = format!("a journal of {all} blocks in a file system with {free} free blocks");
        return Err(Error::posix(Errno::ENOSPC, context));
    }
    Ok(all)
}

/// Blocks of the journal's inode, by the superblock's copy (s_jnl_blocks); 0 without a copy.
fn journal_blocks(superblock: &Superblock) -> u32 {
    if superblock.jnl_backup_type != journal_inode::JOURNAL_BACKUP_BLOCKS {
        return 0;
    }
    let [.., high, low] = superblock.jnl_blocks;
    u32::try_from(superblock.block_size.blocks_for(u64::from(high) << 32 | u64::from(low))).unwrap_or(0)
}

/// s_overhead_blocks without the `journal` blocks of a journal; 0 stays "not known".
fn without(overhead: u32, journal: u32) -> u32 {
    overhead.saturating_sub(journal)
}

async fn add_inode(info: &SuperblockInfo, blocks: u32, added: &Added) -> Result<()> {
    let superblock = info.superblock();
    info.write_superblock(&mut |superblock| superblock.state &= !STATE_VALID).await?;
    let new = NewJournal {
        block_size: superblock.block_size,
        blocks,
        fast_commit_blocks: added.fast_commit_blocks,
        uuid: superblock.uuid,
        external: false,
    };
    let transaction = DirectTransaction::new(Arc::clone(&info.cache));
    let copy = journal_inode::create(info, &transaction, blocks, &new.superblock()).await?;
    // The log first: the blocks that follow make it reachable.
    info.device().flush().await?;
    info.cache.write_dirty().await?;
    info.device().flush().await?;
    info.write_superblock(&mut |superblock| {
        superblock.features.compat.insert(Compat::HAS_JOURNAL);
        superblock.features.compat.set(Compat::FAST_COMMIT, added.fast_commits);
        superblock.journal_inum = InodeNumber::JOURNAL.0;
        superblock.jnl_backup_type = journal_inode::JOURNAL_BACKUP_BLOCKS;
        superblock.jnl_blocks = copy;
        if superblock.overhead_blocks != 0 {
            superblock.overhead_blocks = superblock.overhead_blocks.saturating_add(blocks);
        }
        superblock.state |= added.valid;
    })
    .await?;
    write_copies(info).await
}

/// The blocks of an external journal: all of the device.
async fn check_external(
    external: &ExternalJournal,
    block_size: BlockSize,
    options: &NewJournalOptions,
) -> Result<u32> {
    let geometry = external.device.geometry();
    if geometry.read_only {
        return Err(Error::posix(Errno::EROFS, "the journal device cannot be written"));
    }
    if options.blocks.is_some() {
        return Err(Error::posix(Errno::EINVAL, "a journal on its own device has the size of the device"));
    }
    if !options.force && SuperblockInfo::read_superblock(&*external.device).await.is_ok() {
        return Err(Error::posix(Errno::EEXIST, "a file system is on the journal device"));
    }
    if !options.force
        && let Ok(found) = read_journal_device(&*external.device).await
        && let Ok(header) = journal_header(&*external.device, &found).await
        && !header.user_list.is_empty()
    {
        return Err(Error::posix(Errno::EEXIST, "the journal of another file system is on the device"));
    }
    let blocks = u32::try_from(geometry.size >> block_size.bits()).unwrap_or(u32::MAX);
    check_journal_blocks(blocks, u64::MAX)?;
    let log = blocks.saturating_sub(options.fast_commit_blocks);
    check_journal_blocks(log, u64::MAX)?;
    Ok(blocks)
}

async fn add_external(
    info: &SuperblockInfo,
    external: &ExternalJournal,
    blocks: u32,
    added: &Added,
) -> Result<()> {
    let superblock = info.superblock();
    let block_size = superblock.block_size;
    let mut random = [0; 16];
    info.environment.random(&mut random);
    let uuid = uuid::Builder::from_random_bytes(random).into_uuid().into_bytes();
    let device = &*external.device;
    // A crash from here on leaves no journal device, or one that no superblock names.
    device.write_zeroes(0, u64::from(blocks) << block_size.bits()).await?;
    device.flush().await?;
    let fast_commit_blocks = added.fast_commit_blocks;
    let new = NewJournal { block_size, blocks, fast_commit_blocks, uuid, external: true };
    let image = attach_user(&new.superblock(), block_size, blocks, superblock.uuid)?;
    let place = BlockNumber(external_superblock_block(block_size).into());
    write_block(device, place, block_size, &image).await?;
    let found = JournalDevice { uuid, block_size, blocks_count: blocks.into() };
    write_superblock_of(device, &found.to_bytes(info.environment.now().seconds)).await?;
    device.flush().await?;
    info.write_superblock(&mut |superblock| {
        superblock.features.compat.insert(Compat::HAS_JOURNAL);
        superblock.features.compat.set(Compat::FAST_COMMIT, added.fast_commits);
        superblock.journal_inum = 0;
        superblock.journal_uuid = uuid;
        superblock.journal_dev = external.number;
        superblock.jnl_backup_type = 0;
        superblock.jnl_blocks = [0; 17];
        superblock.state |= added.valid;
    })
    .await?;
    write_copies(info).await
}

async fn journal_header(device: &dyn BlockDevice, found: &JournalDevice) -> Result<JournalHeader> {
    let place = BlockNumber(external_superblock_block(found.block_size).into());
    let block = journal_location::read_block(device, place, found).await?;
    let available = u32::try_from(found.blocks_count).unwrap_or(u32::MAX);
    JournalHeader::parse(&block, found.block_size, available)
}

async fn rewrite_users(
    device: &dyn BlockDevice,
    change: impl Fn(&[u8], BlockSize, u32) -> Result<Vec<u8>>,
) -> Result<()> {
    let found = read_journal_device(device).await?;
    let place = BlockNumber(external_superblock_block(found.block_size).into());
    let block = journal_location::read_block(device, place, &found).await?;
    let available = u32::try_from(found.blocks_count).unwrap_or(u32::MAX);
    let changed = change(&block, found.block_size, available)?;
    write_block(device, place, found.block_size, &changed).await?;
    device.flush().await
}

async fn write_block(
    device: &dyn BlockDevice,
    block: BlockNumber,
    block_size: BlockSize,
    content: &[u8],
) -> Result<()> {
    let at = block.byte(block_size).ok_or_else(|| Error::posix(Errno::EINVAL, format!("block {block}")))?;
    device.write_at(at, vec![Segment::Owned(AlignedBuffer::copied(content)?)], BioFlags::META).await
}

/// Writes the superblock of a device: 1,024 bytes at byte 1,024.
async fn write_superblock_of(device: &dyn BlockDevice, bytes: &[u8; SUPERBLOCK_SIZE]) -> Result<()> {
    let unit = u64::from(device.geometry().logical_block_size);
    let first = SUPERBLOCK_OFFSET / unit * unit;
    let end = (SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE as u64).next_multiple_of(unit);
    // At most a block of the device before and behind 1,024 bytes.
    let mut content = device.read_at(first, (end - first) as usize).await?;
    let at = (SUPERBLOCK_OFFSET - first) as usize;
    content[at..at + SUPERBLOCK_SIZE].copy_from_slice(bytes);
    device.write_at(first, vec![Segment::Owned(content)], BioFlags::META).await
}

/// Updates the copies of the superblock: a checker that falls back on one must not look for the former
/// journal.
async fn write_copies(info: &SuperblockInfo) -> Result<()> {
    let superblock = info.superblock();
    let device = info.device();
    for group in (1..info.groups_count()).map(GroupNumber).filter(|group| info.has_super(*group)) {
        let Some(at) = info.group_first_block(group).byte(info.block_size()) else { continue };
        let mut content = device.read_at(at, info.block_size().len()).await?;
        let mut copy = superblock.clone();
        // As mke2fs: the group modulo 2^16; and a copy never says that the file system was unmounted cleanly.
        copy.block_group_nr = (group.0 & 0xffff) as u16;
        copy.state &= !STATE_VALID;
        content[..SUPERBLOCK_SIZE].copy_from_slice(&copy.to_bytes());
        device.write_at(at, vec![Segment::Owned(content)], BioFlags::META).await?;
    }
    device.flush().await
}
