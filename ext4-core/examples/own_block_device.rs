//! A `BlockDevice` of one's own: pages in a hash map, served by a thread. What was never written takes no
//! memory.
//!
//! ```text
//!   submit(plug) ──► channel ──► thread: one bio after the other ──► Bio::complete, once for each
//! ```
//!
//! The example runs the suite that every backend passes, makes a file system on the device, adds a directory
//! to it and reads that back through a second look at the device. Run it with
//! `cargo run -p ext4-core --example own_block_device`.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use ext4_core::device::{Bio, BlockDevice, Geometry, Operation, Plug, conformance};
use ext4_core::environment::SystemEnvironment;
use ext4_core::format::features::Compat;
use ext4_core::format::inode::{FileType, Inode};
use ext4_core::meta::mkfs::{MkfsOptions, default_features, mkfs};
use ext4_core::meta::{
    DirectTransaction, SuperblockInfo, directory, inode_allocator, inode_table, links, transaction,
};
use ext4_core::{Errno, Error, InodeNumber, Result};

/// Bytes of a page, which is also the logical block of the device: every transfer is one of whole pages.
const PAGE: u32 = 4096;

/// The device: a queue to the thread that has the pages.
#[derive(Debug)]
struct SparseDevice {
    geometry: Geometry,
    queue: mpsc::Sender<Bio>,
    /// How many pages have memory.
    pages: Arc<AtomicU64>,
}

impl SparseDevice {
    /// A device of `size` bytes, a multiple of [`PAGE`], which reads as zeros.
    fn new(size: u64, read_only: bool) -> Self {
        let geometry = Geometry {
            size,
            logical_block_size: PAGE,
            physical_block_size: PAGE,
            memory_alignment: 1,
            max_transfer: 16 << 20,
            max_segments: 1024,
            queue_depth: 32,
            // A completed write is as safe as it will ever be, so there is nothing to flush.
            volatile_cache: false,
            fua: true,
            discard: true,
            write_zeroes: true,
            read_only,
        };
        let (queue, bios) = mpsc::channel::<Bio>();
        let pages = Arc::new(AtomicU64::new(0));
        let (limits, count) = (geometry.clone(), Arc::clone(&pages));
        // The thread ends when the device is dropped: every bio that was sent before is received, and
        // completed.
        std::thread::spawn(move || {
            let mut content = HashMap::new();
            for mut bio in bios {
                // What a contract asks of every device: alignment, bounds, read-only.
                let result = bio.check(&limits).and_then(|()| carry_out(&mut content, &mut bio));
                count.store(content.len() as u64, Ordering::Relaxed);
                bio.complete(result);
            }
        });
        Self { geometry, queue, pages }
    }
}

/// Carries out one bio that has passed [`Bio::check`].
fn carry_out(content: &mut HashMap<u64, Box<[u8]>>, bio: &mut Bio) -> Result<()> {
    let page_len = PAGE as usize;
    let mut page = bio.offset / u64::from(PAGE);
    match bio.operation {
        Operation::Flush => {}
        Operation::Discard | Operation::WriteZeroes => {
            for page in page..page + bio.len / u64::from(PAGE) {
                content.remove(&page);
            }
        }
        // Each segment is a multiple of the logical block, so of a page.
        Operation::Write => {
            for segment in &bio.segments {
                segment.read(|bytes| {
                    for piece in bytes.chunks_exact(page_len) {
                        content.insert(page, piece.into());
                        page += 1;
                    }
                });
            }
        }
        Operation::Read => {
            for segment in &mut bio.segments {
                let filled = segment.fill(|bytes| {
                    for piece in bytes.chunks_exact_mut(page_len) {
                        match content.get(&page) {
                            Some(stored) => piece.copy_from_slice(stored),
                            None => piece.fill(0),
                        }
                        page += 1;
                    }
                });
                filled.ok_or_else(|| Error::io("read", "into a frozen image", Errno::EINVAL))?;
            }
        }
    }
    Ok(())
}

impl BlockDevice for SparseDevice {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&self, plug: Plug) {
        for bio in plug {
            if let Err(mpsc::SendError(bio)) = self.queue.send(bio) {
                bio.complete(Err(Error::io("submit", "the thread of the device is gone", Errno::EIO)));
            }
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::result::Result<(), Box<dyn StdError>> {
    conformance::run(|read_only| Arc::new(SparseDevice::new(conformance::MIN_SIZE, read_only))).await;
    println!("the device passes the suite of every backend");

    // A file system without a journal: that is another crate's.
    let device = Arc::new(SparseDevice::new(1 << 30, false));
    let mut features = default_features();
    features.compat.remove(Compat::HAS_JOURNAL);
    let options = MkfsOptions { features: Some(features), ..MkfsOptions::default() };
    mkfs(device.clone(), &options, &SystemEnvironment, &|_, _, _, _| Vec::new()).await?;

    let info = SuperblockInfo::load(device.clone(), 4 << 20, Arc::new(SystemEnvironment), false).await?;
    let number = make_directory(&info, InodeNumber::ROOT, b"a").await?;
    // Free counts into the superblock, and every dirty block to the device.
    info.write_superblock(&mut |_| {}).await?;

    let again = SuperblockInfo::load(device.clone(), 4 << 20, Arc::new(SystemEnvironment), true).await?;
    let root = inode_table::read_inode(&again, InodeNumber::ROOT).await?;
    for entry in directory::read(&again, &root, 0, 100).await? {
        println!("{:>4}  {}", entry.inode, String::from_utf8_lossy(&entry.name));
    }
    let found = directory::lookup(&again, &root, b"a").await?;
    assert_eq!(found, Some((number, Some(FileType::Directory))));
    let kib = device.pages.load(Ordering::Relaxed) * u64::from(PAGE) / 1024;
    println!("a file system of 1 GiB in {kib} KiB of memory");
    Ok(())
}

/// Makes the directory `name` in directory `parent`; its inode.
async fn make_directory(info: &Arc<SuperblockInfo>, parent: InodeNumber, name: &[u8]) -> Result<InodeNumber> {
    let changes: &dyn transaction::Transaction = &DirectTransaction::new(Arc::clone(&info.cache));
    let mut above = inode_table::read_inode(info, parent).await?;
    let number = inode_allocator::allocate_inode(info, changes, parent, true).await?;
    let now = info.environment.now();
    let mut inode: Inode = info.new_inode(number, FileType::Directory.mode_bits() | 0o755, now);
    inode.links_count = 2;
    directory::initialize(info, changes, &mut inode, parent).await?;
    directory::add(info, changes, &mut above, name, number, FileType::Directory).await?;
    links::add_subdirectory(&mut above);
    above.stamp_change(now);
    inode_table::write_inode(info, changes, &inode).await?;
    inode_table::write_inode(info, changes, &above).await?;
    Ok(number)
}
