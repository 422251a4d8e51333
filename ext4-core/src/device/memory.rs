//! Memory for I/O: block images that are shared and copied on write, owned buffers, and the folio memory
//! pool.
//!
//! - [`AlignedBuffer`]: bytes on a 512-byte boundary, owned.
//! - [`BlockImage`]: a reference-counted [`AlignedBuffer`]; its holder sees it unchanged for as long as it
//!   holds it.
//! - [`MemoryPool`]: page-aligned memory for folios, 4 KiB to 2 MiB each, cut from large regions by a buddy
//!   allocator, bounded in all, and registered with a device region by region.
//!
//! Invariant: the regions of a pool live until the last [`PoolMemory`] cut from them is gone, so an I/O in
//! flight that owns one never sees its memory unmapped.
//!
//! Invariant: every access by the processor goes through the lock of its [`PoolMemory`]. A device that is
//! given the address ([`PoolMemory::as_ptr`]) is kept apart from the processor by the folio's state: under
//! read it is locked, under writeback its blocks are not changed. Were this wrong, a half-copied write could
//! reach the disk.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::views::Views;
use crate::error::{Errno, Error, IoPurpose, Result};

/// The unit of [`AlignedBuffer`]: what direct I/O asks of addresses on the devices we know (`dma_alignment`
/// 511).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(512))]
pub(super) struct Sector([u8; 512]);

/// Owned bytes that start on a 512-byte boundary.
pub struct AlignedBuffer {
    sectors: Box<[Sector]>,
    len: usize,
}

impl AlignedBuffer {
    /// `len` bytes of zeros.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn zeroed(len: usize) -> Result<Self> {
        let sectors = <[Sector]>::new_box_zeroed_with_elems(len.div_ceil(512))
            .map_err(|_| Error::posix(Errno::ENOMEM, format!("{len} bytes for I/O")))?;
        Ok(Self { sectors, len })
    }

    /// No bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self { sectors: Box::default(), len: 0 }
    }

    /// A copy of `bytes`.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn copied(bytes: &[u8]) -> Result<Self> {
        let mut buffer = Self::zeroed(bytes.len())?;
        buffer.copy_from_slice(bytes);
        Ok(buffer)
    }

    pub(super) fn into_sectors(self) -> (Box<[Sector]>, usize) {
        (self.sectors, self.len)
    }

    pub(super) fn from_sectors(sectors: Box<[Sector]>, len: usize) -> Self {
        Self { sectors, len }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.sectors.as_bytes()[..self.len]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.sectors.as_mut_bytes()[..self.len]
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuffer({} bytes)", self.len)
    }
}

/// The content of one block at one moment. Cloning shares it; [`BlockImage::to_mut`] copies it when it is
/// shared.
#[derive(Clone, Debug)]
pub struct BlockImage(Arc<AlignedBuffer>);

impl BlockImage {
    /// Changes the image: in place if it is not shared, in a copy that replaces it otherwise.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn to_mut(&mut self) -> Result<&mut [u8]> {
        if Arc::get_mut(&mut self.0).is_none() {
            self.0 = Arc::new(AlignedBuffer::copied(&self.0)?);
        }
        Ok(Arc::get_mut(&mut self.0).expect("the image was just made unique"))
    }

    /// Returns true if both are the same memory, so that the one cannot have changed since the other was
    /// taken.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl From<AlignedBuffer> for BlockImage {
    fn from(buffer: AlignedBuffer) -> Self {
        Self(Arc::new(buffer))
    }
}

impl Deref for BlockImage {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// The smallest piece of pool memory.
pub const PAGE_SIZE: usize = 4096;
/// The largest piece of pool memory: the largest folio.
pub const MAX_FOLIO_SIZE: usize = 2 << 20;
/// How much the pool takes from the host at a time, below the 1 GiB that io_uring registers as one buffer.
pub const REGION_SIZE: usize = 32 << 20;

const MAX_ORDER: usize = (MAX_FOLIO_SIZE / PAGE_SIZE).trailing_zeros() as usize;
const REGION_PAGES: usize = REGION_SIZE / PAGE_SIZE;
const _: () = assert!(REGION_SIZE.is_multiple_of(MAX_FOLIO_SIZE));

/// One mapping of the host's memory that a pool cuts up.
pub struct Region {
    id: u64,
    base: *mut u8,
    /// Keeps the mapping alive.
    _map: memmap2::MmapMut,
}

// SAFETY: the base address is that of a mapping which the region owns and never remaps; access to the bytes
// behind it goes through the lock of the `PoolMemory` that covers them.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn new() -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Room to start on a 2 MiB boundary, so that the largest folios can be huge pages; what is not
        // touched costs addresses only.
        let mut map = memmap2::MmapMut::map_anon(REGION_SIZE + MAX_FOLIO_SIZE)
            .map_err(|source| Error::host("map", format!("{REGION_SIZE} bytes of memory"), &source))
            .map_err(|error| error.for_purpose(IoPurpose::Other))?;
        // Huge pages halve the cost of the first touch; a host without them does as well, more slowly.
        let _ = map.advise(memmap2::Advice::HugePage);
        let base = map.as_mut_ptr();
        let base = base.wrapping_add(base.align_offset(MAX_FOLIO_SIZE));
        Ok(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), base, _map: map })
    }

    /// A number no other region of this process has.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where the region starts, for registering it with a device.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base
    }

    /// The region's length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        REGION_SIZE
    }

    /// Never true.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// The free pieces of one order: a bit for each place where one can start, over all regions. Lowest first, so
/// that what was touched before is used again, and high regions become whole.
#[derive(Default)]
struct FreeList {
    words: Vec<u64>,
    /// No word before this one has a bit.
    hint: usize,
    count: usize,
}

impl FreeList {
    fn insert(&mut self, index: usize) {
        let word = index / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (index % 64);
        self.hint = self.hint.min(word);
        self.count += 1;
    }

    /// Takes the piece `index` out; false if it is not free.
    fn remove(&mut self, index: usize) -> bool {
        let Some(word) = self.words.get_mut(index / 64) else { return false };
        let bit = 1 << (index % 64);
        let found = *word & bit != 0;
        *word &= !bit;
        self.count -= usize::from(found);
        found
    }

    fn pop_first(&mut self) -> Option<usize> {
        if self.count == 0 {
            return None;
        }
        let word = self.hint + self.words[self.hint..].iter().position(|word| *word != 0)?;
        self.hint = word;
        let bit = self.words[word].trailing_zeros() as usize;
        self.words[word] &= self.words[word] - 1;
        self.count -= 1;
        Some(word * 64 + bit)
    }
}

#[derive(Default)]
struct Buddies {
    regions: Vec<Arc<Region>>,
    /// By order. A piece is named by its first page, counted through all regions, over its pages.
    free: [FreeList; MAX_ORDER + 1],
    used: usize,
}

/// Bounded memory for folios.
pub struct MemoryPool {
    buddies: Mutex<Buddies>,
    capacity: usize,
}

impl fmt::Debug for MemoryPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryPool({} of {} bytes used)", self.used(), self.capacity)
    }
}

impl MemoryPool {
    /// A pool of at most `capacity` bytes in use at a time. It takes memory from the host as it is needed,
    /// and never more than `capacity` in whole regions, however the pieces lie.
    #[must_use]
    pub fn new(capacity: usize) -> Arc<Self> {
        let capacity = capacity.max(MAX_FOLIO_SIZE);
        Arc::new(Self { buddies: Mutex::default(), capacity })
    }

    /// The most bytes that can be in use.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The bytes in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.buddies.lock().used
    }

    /// A piece of `len` bytes: a power of two from 4 KiB to 2 MiB. Its content is whatever was there before.
    /// `None` when the pool is exhausted, or has no piece that long left in one: give something back first,
    /// or ask for less.
    ///
    /// # Errors
    /// The host's refusal to map memory.
    pub fn allocate(self: &Arc<Self>, len: usize) -> Result<Option<PoolMemory>> {
        self.take(len, self.capacity)
    }

    /// As [`MemoryPool::allocate`], past the pool's bound if it has to be: for memory that takes the place of
    /// other, which goes back as soon as its reader has done.
    ///
    /// # Errors
    /// The host's refusal to map memory.
    pub fn allocate_beyond(self: &Arc<Self>, len: usize) -> Result<PoolMemory> {
        self.take(len, usize::MAX)?
            .ok_or_else(|| Error::posix(Errno::ENOMEM, format!("{len} bytes for a folio")))
    }

    fn take(self: &Arc<Self>, len: usize, capacity: usize) -> Result<Option<PoolMemory>> {
        assert!(
            len.is_power_of_two() && (PAGE_SIZE..=MAX_FOLIO_SIZE).contains(&len),
            "a folio has a power of two of bytes from 4 KiB to 2 MiB, not {len}"
        );
        let order = (len / PAGE_SIZE).trailing_zeros() as usize;
        let mut buddies = self.buddies.lock();
        if buddies.used.saturating_add(len) > capacity {
            return Ok(None);
        }
        let found = match buddies.smallest_free(order) {
            Some(found) => found,
            None if buddies.regions.len() >= capacity.div_ceil(REGION_SIZE) => return Ok(None),
            None => {
                buddies.add_region()?;
                MAX_ORDER
            }
        };
        let Some(mut index) = buddies.free[found].pop_first() else { return Ok(None) };
        for split in (order..found).rev() {
            index *= 2;
            buddies.free[split].insert(index + 1);
        }
        buddies.used += len;
        let first = index << order;
        let region = Arc::clone(&buddies.regions[first / REGION_PAGES]);
        drop(buddies);
        Ok(Some(PoolMemory {
            pool: Arc::clone(self),
            region,
            offset: first % REGION_PAGES * PAGE_SIZE,
            index,
            order,
            lock: RwLock::new(()),
            views: Views::default(),
        }))
    }

    fn free(&self, mut index: usize, mut order: usize) {
        let mut buddies = self.buddies.lock();
        buddies.used -= PAGE_SIZE << order;
        while order < MAX_ORDER && buddies.free[order].remove(index ^ 1) {
            index /= 2;
            order += 1;
        }
        buddies.free[order].insert(index);
    }
}

impl Buddies {
    fn smallest_free(&self, least: usize) -> Option<usize> {
        (least..=MAX_ORDER).find(|order| self.free[*order].count > 0)
    }

    fn add_region(&mut self) -> Result<()> {
        let region = Arc::new(Region::new()?);
        let pieces = REGION_PAGES >> MAX_ORDER;
        let first = self.regions.len() * pieces;
        self.regions.push(region);
        for index in first..first + pieces {
            self.free[MAX_ORDER].insert(index);
        }
        Ok(())
    }
}

/// A piece of pool memory; it goes back when dropped.
pub struct PoolMemory {
    pool: Arc<MemoryPool>,
    region: Arc<Region>,
    /// Where it starts in the region, in bytes.
    offset: usize,
    /// Its name among the free pieces of its order.
    index: usize,
    order: usize,
    lock: RwLock<()>,
    views: Views,
}

impl fmt::Debug for PoolMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolMemory({} bytes)", self.len())
    }
}

impl PoolMemory {
    /// The piece's length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        PAGE_SIZE << self.order
    }

    /// Never true.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The region it was cut from, and the byte in it where it starts.
    #[must_use]
    pub fn region(&self) -> (&Arc<Region>, usize) {
        (&self.region, self.offset)
    }

    /// The pool it was cut from.
    #[must_use]
    pub fn pool(&self) -> &Arc<MemoryPool> {
        &self.pool
    }

    /// The piece's address, for a device. The user of the address keeps to the invariant of this module.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.region.base.wrapping_add(self.offset)
    }

    /// Calls `f` with bytes `offset..offset + len`.
    pub fn read<R>(&self, offset: u32, len: u32, f: impl FnOnce(&[u8]) -> R) -> R {
        let range = self.range(offset, len);
        let _guard = self.lock.read();
        // SAFETY: the range lies within this piece, which lies within the mapping that `region` keeps alive;
        // no other piece covers it, and the lock keeps writers of this piece away.
        f(unsafe { std::slice::from_raw_parts(self.as_ptr().add(range.start), range.len()) })
    }

    /// Calls `f` with bytes `offset..offset + len` to change.
    ///
    /// # Panics
    /// If one of them is viewed ([`PoolView`](super::PoolView)).
    pub fn write<R>(&self, offset: u32, len: u32, f: impl FnOnce(&mut [u8]) -> R) -> R {
        self.try_write(offset, len, f).expect("memory that is written is not viewed")
    }

    /// As [`PoolMemory::write`]; `None`, and nothing happened, if one of the bytes is viewed.
    pub fn try_write<R>(&self, offset: u32, len: u32, f: impl FnOnce(&mut [u8]) -> R) -> Option<R> {
        let range = self.range(offset, len);
        let _guard = self.lock.write();
        if self.views.cover(&range) {
            return None;
        }
        // SAFETY: as in `read`; the lock is held for writing, so no other reference exists but views, which
        // cover none of these bytes and cannot be made meanwhile.
        Some(f(unsafe { std::slice::from_raw_parts_mut(self.as_ptr().add(range.start), range.len()) }))
    }

    /// Returns true if one of bytes `offset..offset + len` is viewed.
    #[must_use]
    pub fn is_viewed(&self, offset: u32, len: u32) -> bool {
        self.views.cover(&self.range(offset, len))
    }

    pub(super) fn views(&self) -> &Views {
        &self.views
    }

    pub(super) fn without_writers(&self, f: impl FnOnce()) {
        let _guard = self.lock.read();
        f();
    }

    fn range(&self, offset: u32, len: u32) -> std::ops::Range<usize> {
        let start = offset as usize;
        let end = start + len as usize;
        assert!(end <= self.len(), "bytes {start}..{end} of a piece of {} bytes", self.len());
        start..end
    }
}

impl Drop for PoolMemory {
    fn drop(&mut self) {
        self.pool.free(self.index, self.order);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_copied_only_when_it_is_shared() {
        let mut image = BlockImage::from(AlignedBuffer::zeroed(1024).unwrap());
        let address = image.as_ptr();
        image.to_mut().unwrap()[0] = 1;
        assert_eq!(image.as_ptr(), address);
        let frozen = image.clone();
        image.to_mut().unwrap()[0] = 2;
        assert_eq!((frozen[0], image[0]), (1, 2));
        assert_eq!(frozen.as_ptr().align_offset(512), 0);
    }

    #[test]
    fn the_pool_is_bounded_and_coalesces() {
        let pool = MemoryPool::new(2 * MAX_FOLIO_SIZE);
        let small: Vec<_> = (0..1024).map(|_| pool.allocate(PAGE_SIZE).unwrap().unwrap()).collect();
        assert!(pool.allocate(PAGE_SIZE).unwrap().is_none());
        drop(small);
        let large: Vec<_> = (0..2).map(|_| pool.allocate(MAX_FOLIO_SIZE).unwrap().unwrap()).collect();
        assert_eq!(pool.used(), 2 * MAX_FOLIO_SIZE);
        assert_eq!(pool.buddies.lock().regions.len(), 1);
        drop(large);
        assert_eq!(pool.used(), 0);
        assert_eq!(pool.buddies.lock().free[MAX_ORDER].count, REGION_SIZE / MAX_FOLIO_SIZE);
    }

    #[test]
    fn scattered_pieces_do_not_make_the_pool_grow() {
        let pool = MemoryPool::new(REGION_SIZE);
        let mut small: Vec<_> =
            (0..REGION_PAGES).map(|_| pool.allocate(PAGE_SIZE).unwrap().unwrap()).collect();
        // One page in every 2 MiB stays.
        let mut number = 0;
        small.retain(|_| {
            number += 1;
            number % (1 << MAX_ORDER) == 0
        });
        assert!(pool.allocate(MAX_FOLIO_SIZE).unwrap().is_none());
        assert!(pool.allocate(MAX_FOLIO_SIZE / 2).unwrap().is_some());
        assert_eq!(pool.buddies.lock().regions.len(), 1);
        drop(small);
        assert!(pool.allocate(MAX_FOLIO_SIZE).unwrap().is_some());
    }

    #[test]
    fn random_pieces_come_and_go_and_nothing_is_lost() {
        let pool = MemoryPool::new(2 * REGION_SIZE);
        let mut held: Vec<PoolMemory> = Vec::new();
        fastrand::seed(11);
        for _ in 0..20_000 {
            if held.is_empty() || fastrand::u8(..) < 140 {
                if let Some(piece) = pool.allocate(PAGE_SIZE << fastrand::usize(0..=MAX_ORDER)).unwrap() {
                    let start = piece.as_ptr().addr();
                    assert!(start.is_multiple_of(piece.len()), "a folio lies on a multiple of its size");
                    held.push(piece);
                }
            } else {
                held.swap_remove(fastrand::usize(..held.len()));
            }
        }
        let mut ranges: Vec<_> = held.iter().map(|piece| (piece.as_ptr().addr(), piece.len())).collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        assert_eq!(pool.used(), held.iter().map(PoolMemory::len).sum::<usize>());
        held.clear();
        let buddies = pool.buddies.lock();
        assert_eq!(buddies.free[MAX_ORDER].count, buddies.regions.len() * (REGION_PAGES >> MAX_ORDER));
    }

    #[test]
    fn pieces_do_not_overlap() {
        let pool = MemoryPool::new(MAX_FOLIO_SIZE);
        let pieces: Vec<_> = (0..64_u8)
            .map(|value| {
                let piece = pool.allocate(PAGE_SIZE << (value % 3)).unwrap().unwrap();
                let len = u32::try_from(piece.len()).unwrap();
                piece.write(0, len, |bytes| bytes.fill(value));
                piece
            })
            .collect();
        for (value, piece) in (0..64_u8).zip(&pieces) {
            let len = u32::try_from(piece.len()).unwrap();
            assert!(piece.read(0, len, |bytes| bytes.iter().all(|byte| *byte == value)));
        }
    }
}
