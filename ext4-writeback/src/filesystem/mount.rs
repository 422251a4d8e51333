//! Mounting.
//!
//! ```text
//!   superblock, groups ─► journal found ─► recovered ─► read again ─► marked as mounted ─► journal runs ─►
//!   orphans finished ─► flusher runs
//! ```
//!
//! Invariant: nothing of the file system but its superblock, its group descriptors and the journal's inode is looked
//! at before recovery; what the log holds is newer. All of it is read again afterwards.
//!
//! A read-only mount of a device that can be written recovers the journal and finishes the orphans, as the kernel
//! does, and then writes nothing more. On a device that cannot be written a log that holds something is refused.

use std::sync::Arc;

use ext4_core::device::{BlockDevice, MemoryPool};
use ext4_core::environment::Runtime;
use ext4_core::format::features::{Compat, Incompat};
use ext4_core::format::inode::{Inode, InodeFlags, InodeLayout};
use ext4_core::format::superblock::{ERRORS_CONTINUE, STATE_ERROR, STATE_VALID, Superblock};
use ext4_core::meta::extent_tree::MappingState;
use ext4_core::meta::orphan::Orphans;
use ext4_core::meta::{SuperblockInfo, block_map, inode_table};
use ext4_core::{BlockNumber, Errno, Error, InodeNumber, LogicalBlock, Result, Timestamp};
use ext4_journal::{Journal, JournalLocation, JournalOptions};
use tokio::sync::{Mutex, RwLock};

use super::superblock_state::{FormerErrors, mark_mounted, mark_recovered};
use super::{Filesystem, FilesystemInner};
use crate::MountOptions;
use crate::error_policy::ErrorPolicy;
use crate::fast_commit::{Table, Tracker};
use crate::flusher::WritebackControl;
use crate::inode_cache::InodeCache;
use crate::runtime::{RunToEnd, TokioRuntime};

/// Bytes of the cache that stand for one inode in memory: 256 MiB hold 16,384.
const CACHE_PER_INODE: usize = 16 << 10;

impl Filesystem {
    /// Mounts: verifies the superblock, recovers the journal, processes orphans, marks the superblock as mounted.
    ///
    /// # Errors
    /// Corrupt, or unsupported with the names of the features; `EROFS` for a device that cannot be written and is to
    /// be, or whose journal has to be replayed; the device's.
    pub async fn mount(device: Arc<dyn BlockDevice>, options: MountOptions) -> Result<Self> {
        let runtime = options.runtime.clone().unwrap_or_else(|| Arc::new(TokioRuntime::current()));
        let mounting = mount(device, options, Arc::clone(&runtime));
        RunToEnd::new(&runtime, mounting).await
    }
}

async fn mount(
    device: Arc<dyn BlockDevice>,
    options: MountOptions,
    runtime: Arc<dyn Runtime>,
) -> Result<Filesystem> {
    let device_read_only = device.geometry().read_only;
    if device_read_only && !options.read_only {
        return Err(Error::posix(Errno::EROFS, "the device cannot be written; mount it read-only"));
    }
    let opened = open(&device, &options, &runtime).await?;
    if options.read_only {
        let orphans = Orphans::load(&opened.info).await?;
        if device_read_only || orphans.pending().is_empty() {
            return rest(opened, orphans, options, runtime);
        }
        // Orphans take a running journal to finish: it runs for as long as that takes.
        drop((opened, orphans));
        let writable = MountOptions { read_only: false, last_mounted: None, ..options.clone() };
        let opened = open(&device, &writable, &runtime).await?;
        run(opened, writable, Arc::clone(&runtime)).await?.unmount().await?;
        let opened = open(&device, &options, &runtime).await?;
        let orphans = Orphans::load(&opened.info).await?;
        return rest(opened, orphans, options, runtime);
    }
    run(opened, options, runtime).await
}

/// A file system whose journal, if it has one, is empty.
struct Opened {
    info: Arc<SuperblockInfo>,
    journal: Option<Arc<Journal>>,
    former: FormerErrors,
    /// The journal was stopped by an error in its last life.
    journal_error: bool,
}

/// Reads superblock and groups, and replays the journal where it holds something.
async fn open(
    device: &Arc<dyn BlockDevice>,
    options: &MountOptions,
    runtime: &Arc<dyn Runtime>,
) -> Result<Opened> {
    let load = || {
        let (device, environment) = (Arc::clone(device), Arc::clone(&options.environment));
        SuperblockInfo::load(device, options.cache / 4, environment, options.read_only)
    };
    let info = load().await?;
    let superblock = info.superblock();
    let former = FormerErrors::of(&superblock);
    if !superblock.features.compat.contains(Compat::HAS_JOURNAL) {
        return Ok(Opened { info, journal: None, former, journal_error: false });
    }
    if superblock.journal_inum == 0 {
        return Err(Error::Unsupported("journal_dev: the journal is on another device".into()));
    }
    let location = journal_location(&info, &superblock).await?;
    let journal_options =
        JournalOptions { commit_interval: options.commit_interval, barrier: options.barrier };
    let environment = Arc::clone(&options.environment);
    let journal = Journal::open(location, journal_options, environment, Arc::clone(runtime)).await?;
    let journal_error = journal.recorded_errno() != 0;
    // A log that holds something is replayed also where the superblock does not say so, as e2fsck does.
    if !journal.needs_recovery() {
        return Ok(Opened { info, journal: Some(journal), former, journal_error });
    }
    if device.geometry().read_only {
        let context = "the journal has to be replayed, and the device cannot be written";
        return Err(Error::posix(Errno::EROFS, context));
    }
    let report = journal.recover(device).await?;
    tracing::info!(?report, "journal recovered");
    drop(info);
    let info = load().await?;
    if options.read_only {
        mark_recovered(&info, &former, journal_error).await?;
    }
    Ok(Opened { info, journal: Some(journal), former, journal_error })
}

/// Mounts for reading only: nothing runs.
fn rest(
    opened: Opened,
    orphans: Orphans,
    options: MountOptions,
    runtime: Arc<dyn Runtime>,
) -> Result<Filesystem> {
    Ok(Filesystem { inner: Arc::new(assemble(opened.info, None, orphans, options, runtime)) })
}

/// Mounts for writing.
async fn run(opened: Opened, options: MountOptions, runtime: Arc<dyn Runtime>) -> Result<Filesystem> {
    let Opened { info, journal, former, journal_error } = opened;
    let superblock = info.superblock();
    if superblock.state & STATE_VALID == 0 {
        tracing::warn!("not unmounted cleanly and without a journal: a check is recommended");
    }
    if superblock.state & STATE_ERROR != 0 || journal_error {
        tracing::warn!("the file system has errors: a check is recommended");
    }
    mark_mounted(&info, &options, &former, journal_error).await?;
    if let Some(journal) = &journal {
        if journal_error {
            journal.clear_errno().await?;
        }
        let features = info.features();
        if options.fast_commit && features.compat.contains(Compat::FAST_COMMIT) {
            journal.allow_fast_commits();
        }
        journal.start_running(&info.cache, features.metadata_csum(), features.bit64()).await?;
    }
    let orphans = Orphans::load(&info).await?;
    let inner = Arc::new(assemble(info, journal, orphans, options, runtime));
    inner.process_orphans().await;
    crate::flusher::start(&inner);
    Ok(Filesystem { inner })
}

fn assemble(
    info: Arc<SuperblockInfo>,
    journal: Option<Arc<Journal>>,
    orphans: Orphans,
    options: MountOptions,
    runtime: Arc<dyn Runtime>,
) -> FilesystemInner {
    let superblock = info.superblock();
    let table = Table {
        journal: superblock.journal_inum,
        inodes_per_group: superblock.inodes_per_group,
        inodes_per_block: superblock.inodes_per_block(),
    };
    let fast_commits = journal.as_ref().is_some_and(|journal| journal.has_fast_commits());
    let data_capacity = options.cache - options.cache / 4;
    FilesystemInner {
        journal,
        runtime,
        orphans,
        fast_commits: Arc::new(Tracker::new(fast_commits, table)),
        pool: MemoryPool::new(data_capacity),
        writeback: WritebackControl::new(&options, data_capacity),
        inodes: InodeCache::new(options.cache / CACHE_PER_INODE),
        errors: ErrorPolicy::new(!matches!(superblock.errors, 0 | ERRORS_CONTINUE)),
        freeze: RwLock::new(true),
        rename: Mutex::new(()),
        inode_layout: InodeLayout {
            features: superblock.features,
            inode_size: superblock.inode_size,
            block_size: superblock.block_size,
            cluster_sectors: superblock.block_size.sectors() << superblock.cluster_bits(),
            checksum_seed: info.checksum_seed(),
            linux: superblock.creator_os == 0,
            hurd: superblock.creator_os == 1,
        },
        extra_isize: superblock.want_extra_isize.max(superblock.min_extra_isize),
        first_inode: InodeNumber(superblock.first_ino),
        overhead_blocks: super::statfs::overhead(&superblock),
        found_state: superblock.state | STATE_VALID,
        direct: Arc::default(),
        options,
        info,
    }
}

/// Where the journal's blocks lie: by its inode, or where that cannot be read, by the copy of its mapping that the
/// superblock keeps.
async fn journal_location(info: &SuperblockInfo, superblock: &Superblock) -> Result<JournalLocation> {
    let number = InodeNumber(superblock.journal_inum);
    let by_inode = async {
        let inode = inode_table::read_inode(info, number).await?;
        journal_runs(info, &inode).await
    };
    let runs = match by_inode.await {
        Err(error) if error.is_corrupt() => {
            let Some(inode) = journal_backup(superblock, number) else { return Err(error) };
            tracing::warn!(%error, "the journal's inode is damaged; using the superblock's copy of its mapping");
            journal_runs(info, &inode).await?
        }
        runs => runs?,
    };
    Ok(JournalLocation { device: Arc::clone(info.device()), block_size: info.block_size(), runs })
}

/// The blocks of the journal's inode, which must be all there.
async fn journal_runs(info: &SuperblockInfo, inode: &Inode) -> Result<Vec<(BlockNumber, u32)>> {
    let wrong = |problem: String| Error::corrupt(format!("inode {}: journal", inode.number), problem);
    if inode.links_count == 0 || inode.file_type() != Some(ext4_core::format::inode::FileType::Regular) {
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

/// The journal's inode as far as the superblock keeps a copy of it. Source: kernel documentation, "Super Block"
/// (s_jnl_blocks: i_block, then the high and the low half of the size).
fn journal_backup(superblock: &Superblock, number: InodeNumber) -> Option<Inode> {
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
    // An extent header's magic tells which way the copy maps.
    let extents = superblock.features.incompat.contains(Incompat::EXTENTS);
    inode.flags.set(InodeFlags::EXTENTS, extents && inode.i_block[..2] == [0x0a, 0xf3]);
    Some(inode)
}
