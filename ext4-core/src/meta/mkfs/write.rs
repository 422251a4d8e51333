//! The steps of mkfs in their order: the old superblock away, tables zeroed, descriptors and bitmaps, the
//! first inodes, copies, and last the new superblock.

use std::sync::Arc;

use super::inodes;
use super::layout::Layout;
use super::maker::Maker;
use super::plan::Plan;
use super::{JournalSuperblock, MkfsOptions};
use crate::device::BlockDevice;
use crate::environment::{Environment, FixedEnvironment};
use crate::error::{Errno, Error, Result};
use crate::format::group_descriptor::GroupFlags;
use crate::format::superblock::Superblock;
use crate::meta::journal_inode::zero;
use crate::meta::superblock_info::context;
use crate::meta::{BlockKind, BufferCache, DirectTransaction, SuperblockInfo};
use crate::types::GroupNumber;

/// Memory for blocks on their way to the device.
const CACHE: usize = 16 << 20;
/// What may hold another system's signature, at both ends of the device, in bytes. Source: mke2fs zeroes 64
/// KiB at the end for the sake of RAID superblocks, and the boot block and superblock at the start.
const SIGNATURES: u64 = 65536;

pub(super) async fn write(
    device: Arc<dyn BlockDevice>,
    options: &MkfsOptions,
    plan: &Plan,
    layout: &Layout,
    environment: &dyn Environment,
    journal_superblock: JournalSuperblock<'_>,
) -> Result<()> {
    let superblock = &plan.superblock;
    erase_signatures(&*device, superblock).await?;
    let zeroed = zero_inode_tables(&*device, superblock, layout).await?;
    // The descriptor table stays in memory to the end: a cache that cannot evict it must have room for it.
    let table = usize::try_from(superblock.descriptor_blocks() << superblock.block_size.bits())
        .map_err(|_| Error::posix(Errno::ENOMEM, "group descriptors"))?;
    let capacity = CACHE + table;
    let cache = BufferCache::new(device, superblock.block_size, capacity);
    let transaction = DirectTransaction::new(Arc::clone(&cache));
    let mut seed = [0; 8];
    environment.random(&mut seed);
    let frozen = Arc::new(FixedEnvironment::new(environment.now(), u64::from_le_bytes(seed)));
    let descriptors: Vec<_> = layout
        .descriptors
        .iter()
        .map(|descriptor| {
            let mut descriptor = *descriptor;
            descriptor.flags.set(GroupFlags::INODE_ZEROED, zeroed && superblock.features.group_checksums());
            Some(descriptor)
        })
        .collect();
    create_descriptor_table(&cache, &transaction, superblock, &descriptors)?;
    // Its place holds no superblock that could be read before the last step, which is the first to change the
    // buffer.
    let superblock_buffer =
        cache.create(&transaction, superblock.superblock_block(), BlockKind::Superblock)?;
    let info = SuperblockInfo::assemble(
        cache,
        frozen,
        superblock.clone(),
        superblock_buffer,
        &descriptors,
        Vec::new(),
        capacity,
        false,
    )?;
    let maker = Maker { info, transaction, options, plan };
    maker.initialise_groups(layout).await?;
    let changes = inodes::create(&maker, journal_superblock).await?;
    maker.info.cache.write_dirty().await?;
    // From here on only the superblock is missing.
    let overhead = overhead(superblock, layout, plan);
    let mut finished = maker.info.superblock();
    changes.apply(&mut finished);
    finished.overhead_blocks = overhead;
    maker.write_copies(&finished).await?;
    maker.info.device().flush().await?;
    maker.info.write_superblock(&mut |superblock| *superblock = finished.clone()).await
}

/// Clusters of fixed metadata and journal, as mke2fs counts them; 0 (not known) if the field is too small.
fn overhead(superblock: &Superblock, layout: &Layout, plan: &Plan) -> u32 {
    let free: u64 = layout.descriptors.iter().map(|descriptor| u64::from(descriptor.free_blocks_count)).sum();
    let bits = superblock.cluster_bits();
    let journal = u64::from(plan.journal_blocks).div_ceil(1 << bits);
    u32::try_from((superblock.blocks_count >> bits).saturating_sub(free) + journal).unwrap_or(0)
}

async fn erase_signatures(device: &dyn BlockDevice, superblock: &Superblock) -> Result<()> {
    let size = superblock.blocks_count << superblock.block_size.bits();
    zero(device, 0, SIGNATURES.min(size)).await?;
    zero(device, size.saturating_sub(SIGNATURES).max(SIGNATURES), size).await?;
    // An old superblock must not come back once new structures are there.
    device.flush().await
}

/// Zeroes what must be zero of the inode tables; true if that is all of them.
async fn zero_inode_tables(
    device: &dyn BlockDevice,
    superblock: &Superblock,
    layout: &Layout,
) -> Result<bool> {
    let all = !superblock.features.group_checksums() || device.geometry().write_zeroes;
    let mut tables = layout.inode_tables(superblock);
    if !all {
        // Slots past these are covered by itable_unused, which grows by one inode at a time.
        let used = superblock.first_ino + 2;
        let groups = used.div_ceil(superblock.inodes_per_group) as usize;
        let blocks = used.min(superblock.inodes_per_group).div_ceil(superblock.inodes_per_block());
        tables = layout
            .descriptors
            .iter()
            .take(groups)
            .map(|descriptor| descriptor.inode_table.0..descriptor.inode_table.0 + u64::from(blocks))
            .collect();
    }
    let bits = superblock.block_size.bits();
    for table in tables {
        zero(device, table.start << bits, table.end << bits).await?;
    }
    Ok(all)
}

fn create_descriptor_table(
    cache: &BufferCache,
    transaction: &DirectTransaction,
    superblock: &Superblock,
    descriptors: &[Option<crate::format::group_descriptor::GroupDescriptor>],
) -> Result<()> {
    let context = context(superblock);
    let per_block = superblock.descriptors_per_block() as usize;
    for (index, chunk) in descriptors.chunks(per_block).enumerate() {
        // There are fewer blocks than groups, whose count fits.
        let kind = BlockKind::GroupDescriptors { first: GroupNumber((index * per_block) as u32) };
        let buffer = cache.create(transaction, superblock.descriptor_block(index as u32), kind)?;
        buffer.modify(transaction, |bytes| {
            for (within, descriptor) in chunk.iter().flatten().enumerate() {
                let offset = within * usize::from(superblock.desc_size);
                let group = GroupNumber((index * per_block + within) as u32);
                descriptor.write(&context, group, &mut bytes[offset..]);
            }
        })?;
    }
    Ok(())
}
