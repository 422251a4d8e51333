//! The buffer cache: metadata blocks in memory, each image copied on write.
//!
//! ```text
//!   Buffer (block 1234) ── current image ──► [bytes]   ◄── the running transaction changes it
//!                                               ▲
//!   a committing transaction froze it ──────────┘   a change copies first: what was frozen is written
//! ```
//!
//! Invariants:
//! - A block is used only after a [`Verifier`] has passed it: what comes from the device is a [`Fetched`],
//!   and only its verification gives a [`Buffer`]. Were a damaged block used, one flipped bit could send a
//!   write to another file's block. A block is verified once for each [`BlockKind`] it is read as; a block of
//!   zeros that was just allocated ([`BufferCache::create`]) is verified when it is read for the first time.
//! - A buffer knows its kind, and [`Buffer::modify`] seals: when it returns, the block's own checksum is
//!   right, whatever the closure did. So no closure computes a checksum of a block, and none can forget it.
//!   (Records of a table and bitmaps are sealed elsewhere: see [`super::block_kind`].)
//! - Sealing needs nothing but what lies in the buffer (kind, block number, bytes). It may therefore move to
//!   the moment when a transaction freezes the image, once for many changes; until then no verifier looks at
//!   the block, because a change does not make a verified block an unverified one.
//! - One block has at most one [`Buffer`] that is held: a buffer that is held outside the cache is never
//!   evicted. Were it, a second copy read from the device would miss changes that are only in the journal.
//! - A buffer that is dirty without a journal is held by the dirty list until it is on the device.
//! - Memory: at most `capacity` bytes of buffers that are not held, plus those that are held (bounded by the
//!   journal's transaction size).
//!
//! Locks: the image lock of a buffer is innermost; nothing is called under it but the closure of
//! [`Buffer::modify`], which must not touch other buffers, and [`BlockKind::seal`]. Verifiers run without it,
//! so they may take locks.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quick_cache::Lifecycle;
use quick_cache::sync::{Cache, GuardResult};
use rustc_hash::FxHashMap;

use super::Transaction;
use super::block_kind::{BlockKind, Verifier};
use crate::device::{
    AlignedBuffer, Bio, BioFlags, BlockDevice, BlockImage, Completion, EndIo, Operation, Segment,
};
use crate::error::{Error, Result};
use crate::types::{BlockNumber, BlockSize};

struct State {
    image: BlockImage,
    /// What the block holds: the kind that it was verified or created as.
    kind: BlockKind,
    /// True if a verifier of `kind` has passed the block.
    verified: bool,
}

struct Inner {
    block: BlockNumber,
    state: Mutex<State>,
}

/// One metadata block in memory. Cloning shares it; holding one keeps it in the cache.
#[derive(Clone)]
pub struct Buffer(Arc<Inner>);

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({})", self.0.block)
    }
}

impl Buffer {
    fn new(block: BlockNumber, image: BlockImage, kind: BlockKind) -> Self {
        Self(Arc::new(Inner { block, state: Mutex::new(State { image, kind, verified: false }) }))
    }

    /// Which block this is.
    #[must_use]
    pub fn block(&self) -> BlockNumber {
        self.0.block
    }

    /// Returns true if both are one buffer, not two lives of one block.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The content as it is now; it does not change while the caller holds it. Drop it before changing the
    /// buffer, or the change has to copy.
    #[must_use]
    pub fn image(&self) -> BlockImage {
        self.0.state.lock().image.clone()
    }

    /// Calls `f` with the content, under the buffer's lock: for a short look without a reference count.
    pub fn read<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        f(&self.0.state.lock().image)
    }

    /// Changes the content as part of `transaction`: `f` gets the whole block. What `f` leaves is sealed by
    /// the block's kind, also if `f` reports a failure of its own in `R`.
    ///
    /// # Errors
    /// - Those of the transaction (the journal has aborted), `ENOMEM`.
    ///
    /// Nothing was changed then.
    pub fn modify<R>(&self, transaction: &dyn Transaction, f: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        self.change(transaction, None, f)
    }

    /// As [`Buffer::modify`], for a change that makes a block of another kind of it: `kind` seals it from now
    /// on.
    ///
    /// # Errors
    /// As [`Buffer::modify`].
    pub fn modify_as<R>(
        &self,
        transaction: &dyn Transaction,
        kind: BlockKind,
        f: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R> {
        self.change(transaction, Some(kind), f)
    }

    fn change<R>(
        &self,
        transaction: &dyn Transaction,
        becomes: Option<BlockKind>,
        f: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R> {
        transaction.get_write_access(self)?;
        let result = {
            let mut state = self.0.state.lock();
            let State { image, kind, verified } = &mut *state;
            let bytes = image.to_mut()?;
            if let Some(new) = becomes {
                *kind = new;
                *verified = false;
            }
            let result = f(bytes);
            kind.seal(self.0.block, bytes);
            result
        };
        transaction.dirty_metadata(self)?;
        Ok(result)
    }
}

/// A block as it came from the device or lies in the cache, not yet verified for what its reader takes it
/// for.
#[must_use]
#[derive(Debug)]
pub struct Fetched(Buffer);

impl Fetched {
    /// Calls `f` with the content, under the buffer's lock: for finding out which kind of block it is.
    pub fn read<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        self.0.read(f)
    }

    /// The buffer, once `verifier` has passed it. `verifier` runs unless one of its kind has passed the block
    /// before.
    ///
    /// # Errors
    /// The verifier's, each time until it passes.
    pub fn verify(self, verifier: &impl Verifier) -> Result<Buffer> {
        let kind = verifier.kind();
        let image = {
            let state = self.0.0.state.lock();
            (!state.verified || state.kind != kind).then(|| state.image.clone())
        };
        if let Some(image) = image {
            verifier.verify(self.0.block(), &image)?;
            let mut state = self.0.0.state.lock();
            state.kind = kind;
            state.verified = true;
        }
        Ok(self.0)
    }
}

#[derive(Clone)]
struct KeepHeld;

impl Lifecycle<u64, Buffer> for KeepHeld {
    type RequestState = ();

    fn is_pinned(&self, _key: &u64, buffer: &Buffer) -> bool {
        Arc::strong_count(&buffer.0) > 1
    }
}

/// Hashes block numbers. The cache takes a shard from bits in the middle of a hash, and metadata lies at
/// multiples of large powers of two: with a hash that only multiplies, every group's bitmap would be in one
/// shard, whose few places are then looked through for something to evict.
#[derive(Default, Clone, Copy)]
struct BlockHasher(u64);

type BlockHash = std::hash::BuildHasherDefault<BlockHasher>;

impl std::hash::Hasher for BlockHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        // The finalizer of splitmix64: every bit of the value reaches every bit of the hash.
        let mut z = (self.0 ^ value).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = z ^ (z >> 31);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type Blocks = Cache<u64, Buffer, quick_cache::UnitWeighter, BlockHash, KeepHeld>;

/// Metadata blocks of one device, read once and shared.
pub struct BufferCache {
    device: Arc<dyn BlockDevice>,
    block_size: BlockSize,
    blocks: Blocks,
    /// Without a journal: what has to be written, in device order.
    dirty: Mutex<BTreeMap<BlockNumber, Buffer>>,
    /// Blocks on their way into the cache that have not been asked for since.
    prefetched: Mutex<Prefetched>,
}

/// Reads ahead in flight, each with a number of its own. A read, creation or freeing of the block cancels its
/// read ahead: the content that arrives may be older than what has been written since, and been evicted.
#[derive(Default)]
struct Prefetched {
    next: u64,
    blocks: FxHashMap<u64, u64>,
}

impl fmt::Debug for BufferCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferCache({} blocks)", self.blocks.len())
    }
}

impl BufferCache {
    /// A cache of at most `capacity` bytes of blocks that are not held.
    #[must_use]
    pub fn new(device: Arc<dyn BlockDevice>, block_size: BlockSize, capacity: usize) -> Arc<Self> {
        let items = (capacity / block_size.len()).max(64);
        let blocks =
            Cache::with(items, items as u64, quick_cache::UnitWeighter, BlockHash::default(), KeepHeld);
        Arc::new(Self { device, block_size, blocks, dirty: Mutex::default(), prefetched: Mutex::default() })
    }

    /// The size of every block.
    #[must_use]
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The device underneath.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    fn offset(&self, block: BlockNumber) -> Result<u64> {
        block
            .byte(self.block_size)
            .ok_or_else(|| Error::corrupt(format!("block {block}"), "past the end of any device"))
    }

    /// The buffer of `block`, read from the device if it is not cached, and verified.
    ///
    /// # Errors
    /// The device's, and the verifier's: see [`Fetched::verify`].
    pub async fn read(&self, block: BlockNumber, verifier: &(impl Verifier + Sync)) -> Result<Buffer> {
        self.fetch(block).await?.verify(verifier)
    }

    /// As [`BufferCache::read`], with the verification left to the caller: for a kind that only the content
    /// tells, and for a verifier that has to run under a lock which must not be held across the read.
    ///
    /// # Errors
    /// Those of the device.
    pub async fn fetch(&self, block: BlockNumber) -> Result<Fetched> {
        let key = block.0;
        if let Some(buffer) = self.blocks.get(&key) {
            return Ok(Fetched(buffer));
        }
        match self.blocks.get_value_or_guard_async(&key).await {
            Ok(buffer) => Ok(Fetched(buffer)),
            Err(guard) => {
                self.cancel_prefetch(block);
                let content = self.device.read_at(self.offset(block)?, self.block_size.len()).await?;
                let buffer = Buffer::new(block, content.into(), BlockKind::Opaque);
                // The entry may have been replaced by `create` meanwhile; then that one is the truth.
                Ok(Fetched(match guard.insert(buffer.clone()) {
                    Ok(()) => buffer,
                    Err(_) => self.blocks.get(&key).unwrap_or(buffer),
                }))
            }
        }
    }

    /// The buffer of a block that was just allocated as metadata of `kind`: zeros, not read from the device.
    /// The caller fills it with [`Buffer::modify`]. A cached buffer of the block's former life is replaced.
    ///
    /// # Errors
    /// `ENOMEM`, or those of the transaction.
    pub fn create(
        &self,
        transaction: &dyn Transaction,
        block: BlockNumber,
        kind: BlockKind,
    ) -> Result<Buffer> {
        let buffer = Buffer::new(block, AlignedBuffer::zeroed(self.block_size.len())?.into(), kind);
        self.cancel_prefetch(block);
        self.blocks.insert(block.0, buffer.clone());
        transaction.get_create_access(&buffer)?;
        Ok(buffer)
    }

    /// Returns true if `block` is cached.
    #[must_use]
    pub fn contains(&self, block: BlockNumber) -> bool {
        self.blocks.peek(&block.0).is_some()
    }

    /// Frees metadata block `block`: the transaction forgets and revokes it, the cache drops it.
    ///
    /// # Errors
    /// Those of the transaction.
    pub fn forget(&self, transaction: &dyn Transaction, block: BlockNumber) -> Result<()> {
        self.cancel_prefetch(block);
        let buffer = self.blocks.remove(&block.0).map(|(_, buffer)| buffer);
        transaction.forget(block, buffer.as_ref())
    }

    /// Starts reading `count` blocks from `first` on into the cache, without waiting: what a walk over an
    /// inode table or a bitmap will ask for next. Errors are left for the read that needs the block.
    pub fn prefetch(self: &Arc<Self>, first: BlockNumber, count: u32) {
        let mut plug = Vec::new();
        for block in (0..u64::from(count)).map(|i| first.offset(i)) {
            if self.blocks.peek(&block.0).is_some() {
                continue;
            }
            let (Ok(offset), Ok(memory)) = (self.offset(block), AlignedBuffer::zeroed(self.block_size.len()))
            else {
                continue;
            };
            let Some(number) = self.begin_prefetch(block) else { continue };
            let cache = Arc::clone(self);
            let end_io: EndIo =
                Box::new(move |completion: Completion| cache.finish_prefetch(block, number, completion));
            plug.push(Bio::new(
                Operation::Read,
                BioFlags::META,
                offset,
                vec![Segment::Owned(memory)],
                end_io,
            ));
        }
        if !plug.is_empty() {
            self.device.submit(plug);
        }
    }

    /// The number of a new read ahead; `None` if the block is on its way already.
    fn begin_prefetch(&self, block: BlockNumber) -> Option<u64> {
        let mut prefetched = self.prefetched.lock();
        let number = prefetched.next;
        match prefetched.blocks.entry(block.0) {
            Entry::Occupied(_) => return None,
            Entry::Vacant(entry) => entry.insert(number),
        };
        prefetched.next += 1;
        Some(number)
    }

    fn cancel_prefetch(&self, block: BlockNumber) {
        self.prefetched.lock().blocks.remove(&block.0);
    }

    /// A read ahead ended: its content becomes the block's, unless it was cancelled.
    fn finish_prefetch(&self, block: BlockNumber, number: u64, completion: Completion) {
        // Held to the end, so that no cancellation comes between the look and the insertion.
        let mut prefetched = self.prefetched.lock();
        match prefetched.blocks.entry(block.0) {
            Entry::Occupied(entry) if *entry.get() == number => entry.remove(),
            _ => return,
        };
        let (Ok(()), Some(Segment::Owned(content))) =
            (completion.result, completion.segments.into_iter().next())
        else {
            return;
        };
        // A reader of the block must not be waited for in a completion.
        if let GuardResult::Guard(guard) = self.blocks.get_value_or_guard(&block.0, Some(Duration::ZERO)) {
            let _ = guard.insert(Buffer::new(block, content.into(), BlockKind::Opaque));
        }
    }

    /// Without a journal: remembers that `buffer` has to be written.
    pub fn mark_dirty(&self, buffer: &Buffer) {
        self.dirty.lock().insert(buffer.block(), buffer.clone());
    }

    /// Without a journal: `block` need not be written any more.
    pub fn clear_dirty(&self, block: BlockNumber) {
        self.dirty.lock().remove(&block);
    }

    /// Without a journal: how many blocks have to be written.
    #[must_use]
    pub fn dirty_blocks(&self) -> usize {
        self.dirty.lock().len()
    }

    /// Without a journal: takes over everything that has to be written, in device order. The cache keeps the
    /// content; the caller brings it to the device.
    #[must_use]
    pub fn take_dirty(&self) -> Vec<(BlockNumber, BlockImage)> {
        let dirty = std::mem::take(&mut *self.dirty.lock());
        dirty.values().map(|buffer| (buffer.block(), buffer.image())).collect()
    }

    /// Without a journal: writes everything dirty and waits for it. It does not flush the device.
    ///
    /// # Errors
    /// - The first one of the device.
    /// - What was not written stays dirty.
    pub async fn write_dirty(&self) -> Result<()> {
        let dirty = std::mem::take(&mut *self.dirty.lock());
        let images = dirty.values().map(|buffer| (buffer.block(), buffer.image())).collect();
        let result = write_images(&*self.device, self.block_size, images, BioFlags::META).await;
        if result.is_err() {
            let mut left = self.dirty.lock();
            for (block, buffer) in dirty {
                left.entry(block).or_insert(buffer);
            }
        }
        result
    }

    /// Drops every buffer that is not held: after recovery changed the device underneath.
    pub fn clear(&self) {
        self.prefetched.lock().blocks.clear();
        self.blocks.clear();
    }
}

/// Writes block images to their places: in device order, adjacent ones in one transfer, all in one plug;
/// waits for them all.
///
/// # Errors
/// The device's first.
pub async fn write_images(
    device: &dyn BlockDevice,
    block_size: BlockSize,
    mut images: Vec<(BlockNumber, BlockImage)>,
    flags: BioFlags,
) -> Result<()> {
    images.sort_by_key(|(block, _)| *block);
    let limit = device.geometry().max_segments.max(1) as usize;
    let mut runs: Vec<(BlockNumber, Vec<Segment>)> = Vec::new();
    for (block, image) in images {
        match runs.last_mut() {
            Some((first, segments))
                if segments.len() < limit && first.offset(segments.len() as u64) == block =>
            {
                segments.push(Segment::Image(image));
            }
            _ => runs.push((block, vec![Segment::Image(image)])),
        }
    }
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let mut plug = Vec::with_capacity(runs.len());
    for (first, segments) in runs {
        let offset = first
            .byte(block_size)
            .ok_or_else(|| Error::corrupt(format!("block {first}"), "past the end of any device"))?;
        let sender = sender.clone();
        let end_io: EndIo = Box::new(move |completion| drop(sender.send(completion.result)));
        plug.push(Bio::new(Operation::Write, flags, offset, segments, end_io));
    }
    drop(sender);
    device.submit(plug);
    let mut first_error = Ok(());
    while let Some(result) = receiver.recv().await {
        first_error = first_error.and(result);
    }
    first_error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemoryDevice;
    use crate::device::simulated::FaultyDevice;
    use crate::meta::DirectTransaction;

    /// A cache over a device that holds every transfer back until it is told to end one.
    fn held_back() -> (Arc<BufferCache>, Arc<FaultyDevice>) {
        let device = Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::new(1 << 20))));
        device.reorder(1);
        (BufferCache::new(Arc::clone(&device) as _, BlockSize::KIB_1, 1 << 16), device)
    }

    #[test]
    fn a_read_ahead_arrives_once() {
        let (cache, device) = held_back();
        cache.prefetch(BlockNumber(5), 1);
        cache.prefetch(BlockNumber(5), 1);
        assert_eq!(device.held(), 1);
        assert!(device.release_one());
        assert!(cache.contains(BlockNumber(5)));
    }

    #[test]
    fn a_read_ahead_of_a_block_that_was_changed_meanwhile_is_dropped() {
        let (cache, device) = held_back();
        let transaction = DirectTransaction::new(Arc::clone(&cache));
        let block = BlockNumber(5);
        cache.prefetch(block, 1);
        let buffer = cache.create(&transaction, block, BlockKind::Opaque).unwrap();
        buffer.modify(&transaction, |bytes| bytes.fill(7)).unwrap();
        drop(buffer);
        // As when it had been written and evicted.
        cache.forget(&transaction, block).unwrap();
        assert!(device.release_one());
        assert!(!cache.contains(block), "what was read before the change is stale");
    }

    /// Passes blocks whose first byte is not 0; counts what it is asked to look at.
    struct Counting {
        kind: BlockKind,
        asked: std::cell::Cell<u32>,
    }

    impl Verifier for Counting {
        fn kind(&self) -> BlockKind {
            self.kind
        }

        fn verify(&self, block: BlockNumber, bytes: &[u8]) -> Result<()> {
            self.asked.set(self.asked.get() + 1);
            if bytes[0] == 0 { Err(Error::corrupt(format!("block {block}"), "is 0")) } else { Ok(()) }
        }
    }

    #[tokio::test]
    async fn a_block_is_verified_until_it_passes_and_once_for_each_kind() {
        let device = Arc::new(MemoryDevice::new(1 << 20));
        let cache = BufferCache::new(device, BlockSize::KIB_1, 1 << 16);
        let transaction = DirectTransaction::new(Arc::clone(&cache));
        let verifier = |inode| Counting { kind: BlockKind::Indirect(inode), asked: std::cell::Cell::new(0) };
        let (one, other) = (verifier(crate::InodeNumber(11)), verifier(crate::InodeNumber(12)));
        let block = BlockNumber(5);
        let verify = async |verifier: &Counting| cache.fetch(block).await.unwrap().verify(verifier);
        for _ in 0..2 {
            assert!(verify(&one).await.unwrap_err().is_corrupt());
        }
        let buffer = cache.read(block, &crate::meta::Opaque).await.unwrap();
        buffer.modify(&transaction, |bytes| bytes[0] = 1).unwrap();
        for _ in 0..3 {
            verify(&one).await.unwrap();
        }
        // A change leaves a verified block verified; another inode's verdict is its own.
        buffer.modify(&transaction, |bytes| bytes[1] = 1).unwrap();
        verify(&one).await.unwrap();
        assert_eq!((one.asked.get(), other.asked.get()), (3, 0));
        verify(&other).await.unwrap();
        verify(&one).await.unwrap();
        assert_eq!((one.asked.get(), other.asked.get()), (4, 1));
    }

    #[test]
    fn a_change_is_sealed_by_the_kind_of_the_block() {
        use crate::format::directory::index::{IndexKind, Key};
        use crate::format::{orphan_file, xattr};
        let device = Arc::new(MemoryDevice::new(1 << 20));
        let cache = BufferCache::new(device, BlockSize::KIB_1, 1 << 16);
        let transaction = DirectTransaction::new(Arc::clone(&cache));
        let seed = Some(77);
        let (orphans, attributes, directory) = (BlockNumber(5), BlockNumber(6), BlockNumber(7));

        let buffer = cache.create(&transaction, orphans, BlockKind::OrphanFile { seed }).unwrap();
        buffer.modify(&transaction, orphan_file::fill_empty).unwrap();
        buffer.read(|bytes| orphan_file::verify(bytes, orphans, seed)).unwrap();
        buffer.modify(&transaction, |bytes| orphan_file::set_slot(bytes, 3, 12)).unwrap();
        buffer.read(|bytes| orphan_file::verify(bytes, orphans, seed)).unwrap();

        let kind = BlockKind::ExtendedAttributes { seed };
        let buffer = cache.create(&transaction, attributes, kind).unwrap();
        buffer.modify(&transaction, |bytes| xattr::fill_block(bytes, &[], 1)).unwrap().unwrap();
        buffer.read(|bytes| xattr::verify_block(bytes, attributes, seed)).unwrap();
        buffer.modify(&transaction, |bytes| xattr::set_references(bytes, 2)).unwrap();
        buffer.read(|bytes| xattr::verify_block(bytes, attributes, seed)).unwrap();

        // A leaf of a directory that becomes a node of its index.
        let layout = crate::format::directory::Layout {
            block_size: BlockSize::KIB_1,
            filetype: true,
            checksum_seed: seed,
            inodes_count: 100,
            largedir: false,
        };
        let buffer = cache.create(&transaction, directory, BlockKind::DirectoryLeaf(layout)).unwrap();
        buffer.modify(&transaction, |bytes| layout.fill_leaf(bytes, std::iter::empty())).unwrap().unwrap();
        buffer.read(|bytes| layout.verify_leaf(bytes)).unwrap();
        let (node, keys) = (IndexKind::Node, [Key { hash: 0, block: 1 }]);
        let kind = BlockKind::DirectoryIndex(layout, node);
        buffer.modify_as(&transaction, kind, |bytes| layout.make_node(bytes, &keys)).unwrap().unwrap();
        buffer.read(|bytes| layout.verify_index(bytes, node)).unwrap();
        let key = Key { hash: 8, block: 2 };
        buffer.modify(&transaction, |bytes| layout.insert_index_key(bytes, node, 0, key)).unwrap().unwrap();
        buffer.read(|bytes| layout.verify_index(bytes, node)).unwrap();
    }
}
