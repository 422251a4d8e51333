//! The inodes a new file system has: the reserved ones, the root directory, lost+found, the resize inode, the
//! journal, the orphan file.

use std::ops::Range;

use super::maker::Maker;
use super::plan::Plan;
use super::{JournalSuperblock, MkfsOptions};
use crate::error::{Errno, Error, Result};
use crate::format::features::Compat;
use crate::format::inode::{FileType, Inode};
use crate::format::orphan_file;
use crate::format::superblock::Superblock;
use crate::meta::block_allocator::{AllocationRequest, allocate_blocks};
use crate::meta::inline_data::is_inline;
use crate::meta::inode_allocator::allocate_inode;
use crate::meta::{BlockKind, directory, inode_table, journal_inode};
use crate::types::{BlockNumber, BlockSize, GroupNumber, InodeNumber};

/// Bytes that lost+found is given beforehand. Source: mke2fs, `create_lost_and_found`.
const LOST_AND_FOUND_BYTES: u64 = 16384;
/// The direct pointers of an inode: more blocks than these mke2fs does not give lost+found.
const MOST_LOST_AND_FOUND_BLOCKS: u64 = 12;
/// Where in `i_block` the pointer of the double-indirect block lies.
const DOUBLE_INDIRECT: Range<usize> = 13 * 4..14 * 4;
/// The direct pointers of an inode.
const DIRECT_POINTERS: u64 = 12;

/// Blocks of extent nodes that mapping journal and orphan file may take, generously.
const EXTENT_NODES: u64 = 2;

fn lost_and_found_blocks(block_size: BlockSize) -> u64 {
    (LOST_AND_FOUND_BYTES / u64::from(block_size.bytes())).clamp(2, MOST_LOST_AND_FOUND_BLOCKS)
}

/// How many clusters these inodes take (blocks without bigalloc).
pub(super) fn clusters_needed(plan: &Plan, options: &MkfsOptions) -> u64 {
    let clusters = |blocks: u64| blocks.div_ceil(1 << plan.superblock.cluster_bits());
    let lost_and_found = match options.no_lost_and_found {
        true => 0,
        false => clusters(lost_and_found_blocks(plan.superblock.block_size)),
    };
    let resize = u64::from(plan.superblock.features.compat.contains(Compat::RESIZE_INODE));
    let files = clusters(plan.journal_blocks.into()) + clusters(plan.orphan_file_blocks.into());
    1 + lost_and_found + resize + files + if files > 0 { EXTENT_NODES } else { 0 }
}

/// What the superblock says of the inodes that were made.
#[derive(Debug, Default)]
pub(super) struct Changes {
    journal: Option<(u32, [u32; 17])>,
    orphan_file: u32,
}

impl Changes {
    pub fn apply(&self, superblock: &mut Superblock) {
        if let Some((inode, blocks)) = self.journal {
            superblock.journal_inum = inode;
            superblock.jnl_blocks = blocks;
            superblock.jnl_backup_type = journal_inode::JOURNAL_BACKUP_BLOCKS;
        }
        superblock.orphan_file_inum = self.orphan_file;
    }
}

pub(super) async fn create(maker: &Maker<'_>, journal_superblock: JournalSuperblock<'_>) -> Result<Changes> {
    let mut changes = Changes::default();
    maker.write_reserved_inodes().await?;
    maker.create_root().await?;
    if maker.info.features().compat.contains(Compat::RESIZE_INODE) {
        maker.create_resize_inode().await?;
    }
    if maker.plan.journal_blocks > 0 {
        changes.journal = Some(maker.create_journal(journal_superblock).await?);
    }
    if maker.plan.orphan_file_blocks > 0 {
        changes.orphan_file = maker.create_orphan_file().await?;
    }
    Ok(changes)
}

impl Maker<'_> {
    fn new_inode(&self, number: InodeNumber, file_type: FileType, permissions: u16) -> Inode {
        let mode = file_type.mode_bits() | permissions;
        let want = self.plan.superblock.want_extra_isize;
        Inode::new(number, mode, &self.info.inode_layout(), want, self.info.environment.now())
    }

    async fn write_inode(&self, inode: &Inode) -> Result<()> {
        inode_table::write_inode(&self.info, &self.transaction, inode).await
    }

    /// Free inodes with right checksums: with metadata_csum a slot of zeros has none.
    async fn write_reserved_inodes(&self) -> Result<()> {
        let layout = self.info.inode_layout();
        for number in 1..self.plan.superblock.first_ino {
            self.write_inode(&Inode::free(InodeNumber(number), &layout)).await?;
        }
        Ok(())
    }

    async fn create_root(&self) -> Result<()> {
        let (info, transaction) = (&self.info, &self.transaction);
        self.count_root_directory().await?;
        let mut root = self.new_inode(InodeNumber::ROOT, FileType::Directory, 0o755);
        (root.uid, root.gid) = self.options.root_owner;
        root.links_count = 2;
        directory::initialize_in_block(info, transaction, &mut root, InodeNumber::ROOT).await?;
        if !self.options.no_lost_and_found {
            // The first inode that is not reserved, in group 0.
            let number = allocate_inode(info, transaction, InodeNumber::ROOT, true).await?;
            let mut lost = self.new_inode(number, FileType::Directory, 0o700);
            lost.links_count = 2;
            directory::initialize(info, transaction, &mut lost, InodeNumber::ROOT).await?;
            // As mke2fs has it: to move out of the inode counts as one block more.
            let first = 1 + u64::from(is_inline(&lost));
            for _ in first..lost_and_found_blocks(info.block_size()) {
                directory::preallocate_block(info, transaction, &mut lost).await?;
            }
            self.write_inode(&lost).await?;
            directory::add(info, transaction, &mut root, b"lost+found", number, FileType::Directory).await?;
            root.links_count += 1;
        }
        self.write_inode(&root).await
    }

    /// The resize inode: its double-indirect block points to the reserved blocks (if any) behind the primary
    /// descriptors, each of which points to its copies. Source: e2fsprogs, `ext2fs_create_resize_inode`.
    async fn create_resize_inode(&self) -> Result<()> {
        let (info, transaction) = (&self.info, &self.transaction);
        let superblock = &self.plan.superblock;
        let reserved = u64::from(superblock.reserved_gdt_blocks);
        let request = AllocationRequest {
            goal: None,
            inode: InodeNumber::RESIZE,
            len: 1,
            reserved: false,
            metadata: true,
        };
        let (double, _) = allocate_blocks(info, transaction, &request).await?;
        let pointers = u64::from(info.block_size().bytes() / 4);
        let table = superblock.descriptor_blocks();
        let backups: Vec<GroupNumber> =
            (1..info.groups_count()).map(GroupNumber).filter(|group| info.has_super(*group)).collect();
        // The first block of the whole table; a copy lies as far behind its group's start.
        let first = superblock.superblock_block().0 + 1;
        let pointer = |block: u64| {
            u32::try_from(block)
                .map(u32::to_le_bytes)
                .map_err(|_| Error::posix(Errno::EINVAL, "the resize inode cannot hold 64-bit block numbers"))
        };
        let kind = BlockKind::Indirect(InodeNumber::RESIZE);
        let mut double_content = vec![0; info.block_size().len()];
        for at in table..table + reserved {
            let slot = (at % pointers) as usize * 4;
            double_content[slot..slot + 4].copy_from_slice(&pointer(first + at)?);
            let mut copies = Vec::with_capacity(backups.len() * 4);
            for group in &backups {
                copies.extend(pointer(info.group_first_block(*group).0 + 1 + at)?);
            }
            let buffer = info.cache.create(transaction, BlockNumber(first + at), kind)?;
            buffer.modify(transaction, |bytes| bytes[..copies.len()].copy_from_slice(&copies))?;
        }
        let buffer = info.cache.create(transaction, double, kind)?;
        buffer.modify(transaction, |bytes| bytes.copy_from_slice(&double_content))?;
        let mut inode = self.new_inode(InodeNumber::RESIZE, FileType::Regular, 0o600);
        inode.links_count = 1;
        inode.size = (pointers * pointers + pointers + DIRECT_POINTERS) << info.block_size().bits();
        inode.sectors = (1 + reserved * (1 + backups.len() as u64)) * info.cluster_sectors();
        inode.i_block[DOUBLE_INDIRECT].copy_from_slice(&pointer(double.0)?);
        self.write_inode(&inode).await
    }

    async fn create_journal(&self, journal_superblock: JournalSuperblock<'_>) -> Result<(u32, [u32; 17])> {
        let info = &self.info;
        let blocks = self.plan.journal_blocks;
        let content = journal_superblock(
            info.block_size(),
            blocks,
            self.plan.fast_commit_blocks,
            self.plan.superblock.uuid,
        );
        let copy = journal_inode::create(info, &self.transaction, blocks, &content).await?;
        Ok((InodeNumber::JOURNAL.0, copy))
    }

    async fn create_orphan_file(&self) -> Result<u32> {
        let (info, transaction) = (&self.info, &self.transaction);
        let number = allocate_inode(info, transaction, InodeNumber::ROOT, false).await?;
        let mut inode = self.new_inode(number, FileType::Regular, 0o600);
        let runs =
            journal_inode::fill(info, transaction, &mut inode, self.plan.orphan_file_blocks, None).await?;
        let kind = BlockKind::OrphanFile { seed: info.owner(&inode).checksum_seed() };
        for (first, len) in runs {
            for block in (0..u64::from(len)).map(|at| first.offset(at)) {
                let buffer = info.cache.create(transaction, block, kind)?;
                buffer.modify(transaction, orphan_file::fill_empty)?;
            }
        }
        self.write_inode(&inode).await?;
        Ok(number.0)
    }
}
