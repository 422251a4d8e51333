//! Images that were not made here: opening them and allocating in them may fail, never panic, and what e2fsck
//! calls clean opens.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use ext4_core::device::MemoryDevice;
use ext4_core::environment::FixedEnvironment;
use ext4_core::meta::block_allocator::{AllocationRequest, allocate_blocks};
use ext4_core::meta::inode_allocator::allocate_inode;
use ext4_core::meta::{DirectTransaction, SuperblockInfo};
use ext4_core::{BlockNumber, InodeNumber, Timestamp};
use ext4_test_support::corpus::packed_images;

/// Images beyond this size are left out: they are sparse, and here they would fill memory.
const MAX_SIZE: usize = 64 << 20;

async fn try_everything(content: Vec<u8>, read_only: bool) -> ext4_core::Result<()> {
    let device = Arc::new(MemoryDevice::from_content(content));
    let environment = Arc::new(FixedEnvironment::new(Timestamp::default(), 7));
    let info = SuperblockInfo::load(device, 4 << 20, environment, read_only).await?;
    if read_only {
        return Ok(());
    }
    let transaction = DirectTransaction::new(Arc::clone(&info.cache));
    for (goal, len) in [(None, 1), (None, 40_000), (Some(BlockNumber(info.blocks_count() - 1)), 10)] {
        let inode = InodeNumber(12);
        let request = AllocationRequest { goal, inode, len, reserved: false, metadata: true };
        let _ = allocate_blocks(&info, &transaction, &request).await;
    }
    let _ = allocate_inode(&info, &transaction, InodeNumber::ROOT, true).await;
    let _ = allocate_inode(&info, &transaction, InodeNumber(12), false).await;
    let _ = info.superblock().to_bytes();
    Ok(())
}

#[tokio::test]
async fn no_image_of_the_corpus_makes_the_allocators_panic() {
    let Some(images) = packed_images() else { return };
    let (mut opened, mut refused, mut too_large) = (0, 0, 0);
    for image in &images {
        let content = image.content();
        if content.len() > MAX_SIZE {
            too_large += 1;
            continue;
        }
        for read_only in [false, true] {
            match try_everything(content.clone(), read_only).await {
                Ok(()) => opened += 1,
                Err(error) => {
                    refused += 1;
                    println!("{}: {error}", image.path.display());
                }
            }
        }
    }
    println!("{opened} opened, {refused} refused, {too_large} too large");
    assert_eq!((opened + refused) / 2 + too_large, images.len());
    assert!(opened > 200 && refused > 20, "{opened} opened, {refused} refused");
    assert!(too_large < 30, "{too_large} of {} images are too large", images.len());
}
