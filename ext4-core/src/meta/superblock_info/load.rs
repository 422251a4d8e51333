//! Opening a file system, as `ext4_fill_super` does: superblock, then every group descriptor, then the system
//! zones they make.

use std::ops::Range;

use super::*;
use crate::device::AlignedBuffer;
use crate::error::Errno;
use crate::format::features::{Compat, Incompat};
use crate::meta::orphan::OrphanLinks;
use crate::meta::{BlockKind, Verifier};

/// The most groups that keep their bitmaps in memory at a time; more are read again when they are needed.
/// Fewer if the cache is small: it cannot evict what is held, so that must stay a small part of it.
const MOST_LOADED: usize = 4096;

/// How much of the descriptor table is read at a time.
const READ_AHEAD: u64 = 1 << 20;

impl SuperblockInfo {
    /// Reads and verifies superblock and group descriptors. Refuses unknown incompat features by name; with
    /// `read_only` false also unknown ro_compat ones. Does not look at the journal.
    ///
    /// A descriptor that is wrong refuses the file system, unless it is opened read-only or its journal has
    /// to be replayed first (which may put it right): then only that group is out of use. After a replay load
    /// it again.
    ///
    /// # Errors
    /// - Unsupported, with the features' names.
    /// - Corrupt if what is read contradicts itself.
    /// - Those of the device.
    pub async fn load(
        device: Arc<dyn BlockDevice>,
        cache_capacity: usize,
        environment: Arc<dyn Environment>,
        read_only: bool,
    ) -> Result<Arc<Self>> {
        let superblock = Self::read_superblock(&*device).await?;
        superblock.features.check_supported(read_only)?;
        let logical = device.geometry().logical_block_size;
        if superblock.block_size.bytes() < logical {
            return Err(Error::Unsupported(format!(
                "blocks of {} bytes on a device with sectors of {logical}",
                superblock.block_size.bytes()
            )));
        }
        let cache = BufferCache::new(device, superblock.block_size, cache_capacity);
        let lenient = read_only
            || superblock.features.incompat.contains(Incompat::RECOVER)
                && superblock.features.compat.contains(Compat::HAS_JOURNAL);
        let table = read_descriptor_table(&cache, &superblock).await?;
        let context = context(&superblock);
        let mut descriptors = Vec::with_capacity(superblock.groups_count() as usize);
        let mut bad = Vec::new();
        for (index, bytes) in table.iter().enumerate() {
            // The count of groups fits in 32 bits.
            let number = GroupNumber(index as u32);
            let checked = GroupDescriptor::parse(&context, number, bytes)
                .and_then(|descriptor| check_places(&superblock, number, &descriptor).map(|()| descriptor));
            match checked {
                Ok(descriptor) => descriptors.push(Some(descriptor)),
                Err(error) if lenient => {
                    tracing::warn!(%error, "the group is out of use");
                    bad.push((number, error));
                    descriptors.push(None);
                }
                Err(error) => return Err(error),
            }
        }
        let superblock_buffer =
            cache.read(superblock.superblock_block(), &SuperblockVerifier(&superblock)).await?;
        let info = Self::assemble(
            cache,
            environment,
            superblock,
            superblock_buffer,
            &descriptors,
            bad,
            cache_capacity,
            lenient,
        )?;
        Ok(Arc::new(info))
    }

    /// Reads the primary superblock of a device, verified.
    ///
    /// # Errors
    /// - Corrupt if it is no ext superblock, its checksum is wrong or its geometry contradicts itself or the
    ///   device.
    /// - Unsupported, with the name of the feature, if the geometry cannot be understood without it.
    /// - Those of the device.
    pub async fn read_superblock(device: &dyn BlockDevice) -> Result<Superblock> {
        let geometry = device.geometry();
        let end = SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE as u64;
        let len = end.next_multiple_of(u64::from(geometry.logical_block_size));
        if len > geometry.size {
            return Err(Error::corrupt("superblock", format!("the device has only {} bytes", geometry.size)));
        }
        let content = device.read_at(0, len as usize).await?;
        let superblock = Superblock::parse(&content[SUPERBLOCK_OFFSET as usize..end as usize])?;
        superblock.check_device_size(geometry.size)?;
        Ok(superblock)
    }

    /// Puts the parts together. `None` among the descriptors: a bad one. `lenient`: structures may overlap.
    ///
    /// # Errors
    /// - Corrupt if two structures of fixed metadata overlap, unless `lenient`.
    /// - `ENOMEM` if the host has no memory.
    #[allow(
        clippy::too_many_arguments,
        reason = "the parts of one value, each named where they are put together"
    )]
    pub(crate) fn assemble(
        cache: Arc<BufferCache>,
        environment: Arc<dyn Environment>,
        superblock: Superblock,
        superblock_buffer: Buffer,
        descriptors: &[Option<GroupDescriptor>],
        bad: Vec<(GroupNumber, Error)>,
        cache_capacity: usize,
        lenient: bool,
    ) -> Result<Self> {
        let mut free_clusters = 0;
        let mut free_inodes = 0;
        let mut directories = 0;
        let per_flex = superblock.groups_per_flex();
        let flex_groups: Arc<[FlexGroup]> =
            (0..superblock.groups_count().div_ceil(per_flex)).map(|_| FlexGroup::default()).collect();
        let mut groups = Vec::with_capacity(descriptors.len());
        for (index, descriptor) in descriptors.iter().enumerate() {
            if let Some(descriptor) = descriptor {
                free_clusters += u64::from(descriptor.free_blocks_count);
                free_inodes += descriptor.free_inodes_count;
                directories += descriptor.used_dirs_count;
                let flex = &flex_groups[index / per_flex as usize];
                flex.free_inodes.fetch_add(descriptor.free_inodes_count, Ordering::Relaxed);
                flex.used_dirs.fetch_add(descriptor.used_dirs_count, Ordering::Relaxed);
            }
            groups.push(Group::new(descriptor.unwrap_or_default(), descriptor.is_none()));
        }
        let (zones, overlap) = SystemZones::new(fixed_metadata(&superblock, descriptors));
        if let Some(block) = overlap {
            let error = Error::corrupt(format!("block {block}"), "two structures of fixed metadata claim it");
            if !lenient {
                return Err(error);
            }
            tracing::warn!(%error, "the file system can only be read");
        }
        let table_blocks = usize::try_from(superblock.descriptor_blocks())
            .map_err(|_| Error::posix(Errno::ENOMEM, "group descriptors"))?;
        Ok(Self {
            cache,
            environment,
            seed: superblock.metadata_seed(),
            context: context(&superblock),
            current: Mutex::new(superblock.clone()),
            superblock_buffer,
            zones,
            groups: groups.into(),
            flex_groups,
            descriptors: std::iter::repeat_with(OnceCell::new).take(table_blocks).collect(),
            space: Arc::new(Space::new(
                superblock.blocks_count >> superblock.cluster_bits(),
                free_clusters,
                superblock.r_blocks_count >> superblock.cluster_bits(),
            )),
            free_inodes: AtomicU32::new(free_inodes),
            directories: AtomicU32::new(directories),
            longest_run: Arc::new(AtomicU64::new(u64::MAX)),
            next_top_level: AtomicU32::new(0),
            orphan_links: OrphanLinks::default(),
            loaded: Mutex::default(),
            most_loaded: (cache_capacity >> superblock.block_size.bits() >> 3).clamp(16, MOST_LOADED),
            bad_groups: Mutex::new(bad),
            freed_blocks: std::sync::OnceLock::new(),
            fixed: superblock,
        })
    }
}

/// The verifier of the block of the primary superblock, which has been read before: it is good, and of the
/// same file system still.
struct SuperblockVerifier<'a>(&'a Superblock);

impl Verifier for SuperblockVerifier<'_> {
    fn kind(&self) -> BlockKind {
        BlockKind::Superblock
    }

    fn verify(&self, block: BlockNumber, bytes: &[u8]) -> Result<()> {
        let offset = superblock_offset(self.0.block_size);
        let found = Superblock::parse(bytes.get(offset..offset + SUPERBLOCK_SIZE).unwrap_or_default())?;
        if found.uuid != self.0.uuid {
            return Err(Error::corrupt(
                format!("block {block}: superblock"),
                "has become another file system's",
            ));
        }
        Ok(())
    }
}

/// What the checksums of groups depend on.
pub(crate) fn context(superblock: &Superblock) -> ChecksumContext {
    ChecksumContext {
        features: superblock.features,
        seed: superblock.metadata_seed(),
        uuid: superblock.uuid,
        desc_size: superblock.desc_size,
    }
}

/// The group descriptor table, read in large pieces.
struct DescriptorTable {
    content: Vec<AlignedBuffer>,
    desc_size: usize,
    /// How many descriptors there are.
    count: usize,
    block_len: usize,
}

impl DescriptorTable {
    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.content
            .iter()
            .flat_map(|piece| piece.chunks_exact(self.block_len))
            .flat_map(|block| block.chunks_exact(self.desc_size))
            .take(self.count)
    }
}

async fn read_descriptor_table(cache: &BufferCache, superblock: &Superblock) -> Result<DescriptorTable> {
    let block_size = superblock.block_size;
    let blocks = superblock.descriptor_blocks();
    let most = (READ_AHEAD >> block_size.bits()).max(1);
    let mut content = Vec::new();
    let mut index = 0;
    while index < blocks {
        // The table has fewer blocks than groups, whose count fits.
        let first = superblock.descriptor_block(index as u32);
        let mut count = 1;
        while count < most
            && index + count < blocks
            && superblock.descriptor_block((index + count) as u32) == first.offset(count)
        {
            count += 1;
        }
        if first.offset(count).0 > superblock.blocks_count {
            return Err(Error::corrupt(
                format!("block {first}: group descriptors"),
                format!("reach past the last of {} blocks", superblock.blocks_count),
            ));
        }
        let offset = first.byte(block_size).ok_or_else(|| {
            Error::corrupt(format!("block {first}: group descriptors"), "past the end of any device")
        })?;
        content.push(cache.device().read_at(offset, (count as usize) << block_size.bits()).await?);
        index += count;
    }
    Ok(DescriptorTable {
        content,
        desc_size: usize::from(superblock.desc_size),
        count: superblock.groups_count() as usize,
        block_len: block_size.len(),
    })
}

/// Checks that what a descriptor points to lies in the file system, and without flex_bg in its group, and
/// that its counts are possible.
fn check_places(superblock: &Superblock, number: GroupNumber, descriptor: &GroupDescriptor) -> Result<()> {
    let flexible = superblock.features.incompat.contains(Incompat::FLEX_BG);
    let first = superblock.group_first_block(number).0;
    let range = if flexible {
        u64::from(superblock.first_data_block)..superblock.blocks_count
    } else {
        first..first + u64::from(superblock.group_blocks(number))
    };
    let fail = |problem: String| Err(Error::corrupt(format!("group {number}: descriptor"), problem));
    for (name, block, count) in [
        ("block bitmap", descriptor.block_bitmap, 1),
        ("inode bitmap", descriptor.inode_bitmap, 1),
        ("inode table", descriptor.inode_table, u64::from(superblock.inode_table_blocks())),
    ] {
        if block.0 < range.start || block.offset(count).0 > range.end {
            return fail(format!("{name} at {block} is not within {}..{}", range.start, range.end));
        }
    }
    let clusters = superblock.group_blocks(number).div_ceil(1 << superblock.cluster_bits());
    if descriptor.free_blocks_count > clusters {
        return fail(format!("{} free blocks are more than {clusters}", descriptor.free_blocks_count));
    }
    let inodes = superblock.inodes_per_group;
    if descriptor.free_inodes_count > inodes || descriptor.itable_unused > inodes {
        return fail(format!(
            "{} free and {} unused inodes are more than {inodes}",
            descriptor.free_inodes_count, descriptor.itable_unused
        ));
    }
    if descriptor.used_dirs_count > inodes {
        return fail(format!("{} directories are more than {inodes} inodes", descriptor.used_dirs_count));
    }
    Ok(())
}

/// Every range of blocks that holds fixed metadata.
fn fixed_metadata(superblock: &Superblock, descriptors: &[Option<GroupDescriptor>]) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    for (index, descriptor) in descriptors.iter().enumerate() {
        let number = GroupNumber(index as u32);
        let first = superblock.group_first_block(number).0;
        let end = first + u64::from(superblock.group_blocks(number));
        ranges.push(first..(first + superblock.base_blocks(number)).min(end));
        if let Some(descriptor) = descriptor {
            for (block, count) in [
                (descriptor.block_bitmap, 1),
                (descriptor.inode_bitmap, 1),
                (descriptor.inode_table, u64::from(superblock.inode_table_blocks())),
            ] {
                ranges.push(block.0..block.offset(count).0);
            }
        }
    }
    ranges
}
