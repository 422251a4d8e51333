//! Images that were not made here: opening them and allocating in them may fail, never panic, and what e2fsck
//! calls clean opens.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use ext4_core::device::MemoryDevice;
use ext4_core::environment::FixedEnvironment;
use ext4_core::meta::block_allocator::{AllocationRequest, allocate_blocks};
use ext4_core::meta::inode_allocator::allocate_inode;
use ext4_core::meta::{DirectTransaction, SuperblockInfo};
use ext4_core::{BlockNumber, InodeNumber, Timestamp};

/// The content of a packed image; `None` if its tool is absent or it is larger than 64 MiB.
fn content(path: &Path) -> Option<Vec<u8>> {
    use std::io::Read;
    let tool = match path.extension()?.to_str()? {
        "gz" => "zcat",
        "bz2" => "bzcat",
        "zst" => "zstdcat",
        "xz" => "xzcat",
        _ => return std::fs::read(path).ok(),
    };
    let mut child = Command::new(tool).arg(path).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let mut content = Vec::new();
    let read = child.stdout.take()?.take((64 << 20) + 1).read_to_end(&mut content);
    // What it would write beyond is not wanted: the closed pipe ends it.
    let _ = child.wait();
    (read.is_ok() && content.len() <= 64 << 20).then_some(content)
}

/// The corpus's images; none if the corpus is absent.
fn images(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus").join(folder);
    let mut found = Vec::new();
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(_) => found.push(entry.path()),
                Err(_) => {}
            }
        }
    }
    found.sort();
    found
}

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
    let (mut opened, mut refused) = (0, 0);
    for folder in ["e2fsprogs/images", "syzkaller/seeds/images", "syzkaller/repros/images"] {
        for path in images(folder) {
            let Some(content) = content(&path) else { continue };
            for read_only in [false, true] {
                match try_everything(content.clone(), read_only).await {
                    Ok(()) => opened += 1,
                    Err(error) => {
                        refused += 1;
                        println!("{}: {error}", path.display());
                    }
                }
            }
        }
    }
    println!("{opened} opened, {refused} refused");
}
