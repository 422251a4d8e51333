//! Units are types. A number that names a place on the device, a place in a file, a group or an inode is
//! never a bare integer, so that the compiler refuses to mix them; byte offsets and lengths are plain `u64`
//! bytes.

use core::fmt;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl From<$name> for u64 {
            fn from(value: $name) -> u64 {
                u64::from(value.0)
            }
        }
    };
}

unit! {
    /// A file-system block on the device: a physical block, counted from the start of the file system.
    BlockNumber(u64)
}
unit! {
    /// A block of a file: a logical block, counted from the file's first byte.
    LogicalBlock(u32)
}
unit! {
    /// A block group.
    GroupNumber(u32)
}
unit! {
    /// An inode number; the first is 1.
    InodeNumber(u32)
}
unit! {
    /// A jbd2 transaction id. Ids wrap around: compare with [`TransactionId::is_after`], never with `<`.
    TransactionId(u32)
}

impl BlockNumber {
    /// The block `count` blocks further on; saturates, so that bounds checks still see a number out of range.
    #[must_use]
    pub fn offset(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }

    /// The byte at which this block starts, or `None` if that is past 2^64.
    #[must_use]
    pub fn byte(self, block_size: BlockSize) -> Option<u64> {
        self.0.checked_mul(u64::from(block_size.bytes()))
    }
}

impl LogicalBlock {
    /// The largest logical block a file can have (kernel: `EXT_MAX_BLOCKS - 1`).
    pub const MAX: Self = Self(u32::MAX - 1);

    /// The block behind the last one of a range without an end: no file has it (kernel: `EXT_MAX_BLOCKS`).
    pub const END: Self = Self(u32::MAX);

    /// The block `count` blocks further on; saturates.
    #[must_use]
    pub fn offset(self, count: u32) -> Self {
        Self(self.0.saturating_add(count))
    }

    /// The block that holds byte `position` of the file; saturates at [`LogicalBlock::END`].
    #[must_use]
    pub fn containing(position: u64, block_size: BlockSize) -> Self {
        Self(u32::try_from(position >> block_size.bits()).unwrap_or(u32::MAX))
    }

    /// The first block that starts at byte `position` of the file or behind it; saturates at
    /// [`LogicalBlock::END`].
    #[must_use]
    pub fn at_or_behind(position: u64, block_size: BlockSize) -> Self {
        Self(u32::try_from(block_size.blocks_for(position)).unwrap_or(u32::MAX))
    }

    /// How many blocks lie from `start` to this block; 0 if this block lies before `start`.
    #[must_use]
    pub fn distance(self, start: Self) -> u32 {
        self.0.saturating_sub(start.0)
    }

    /// The byte of the file at which this block starts.
    #[must_use]
    pub fn byte(self, block_size: BlockSize) -> u64 {
        u64::from(self.0) << block_size.bits()
    }
}

/// The block `count` blocks further on. As for integers an overflow panics in debug builds: for numbers that
/// were checked. [`LogicalBlock::offset`] is for others.
impl core::ops::Add<u32> for LogicalBlock {
    type Output = Self;

    #[inline]
    fn add(self, count: u32) -> Self {
        Self(self.0 + count)
    }
}

impl core::ops::AddAssign<u32> for LogicalBlock {
    #[inline]
    fn add_assign(&mut self, count: u32) {
        *self = *self + count;
    }
}

/// How many blocks lie from `start` to this block. As for integers an underflow panics in debug builds: for a
/// block that does not lie before `start`. [`LogicalBlock::distance`] is for others.
impl core::ops::Sub for LogicalBlock {
    type Output = u32;

    #[inline]
    fn sub(self, start: Self) -> u32 {
        self.0 - start.0
    }
}

impl InodeNumber {
    /// The root directory.
    pub const ROOT: Self = Self(2);
    /// The inode that holds blocks reserved for growing the group descriptor table.
    pub const RESIZE: Self = Self(7);
    /// The journal.
    pub const JOURNAL: Self = Self(8);
}

impl TransactionId {
    /// Returns true if `self` came after `other`, across wrap-around (jbd2: `tid_gt`).
    #[must_use]
    pub fn is_after(self, other: Self) -> bool {
        let distance = self.0.wrapping_sub(other.0);
        distance != 0 && distance < 1 << 31
    }

    /// Returns true if `self` is `other` or came after it (jbd2: `tid_geq`).
    #[must_use]
    pub fn is_at_or_after(self, other: Self) -> bool {
        self == other || self.is_after(other)
    }

    /// The next id.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// The id before.
    #[must_use]
    pub fn previous(self) -> Self {
        Self(self.0.wrapping_sub(1))
    }
}

/// A file-system block size: a power of two from 1 KiB to 64 KiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockSize(u8);

impl BlockSize {
    /// 1,024 bytes.
    pub const KIB_1: Self = Self(10);
    /// 2,048 bytes.
    pub const KIB_2: Self = Self(11);
    /// 4,096 bytes.
    pub const KIB_4: Self = Self(12);
    /// 65,536 bytes, the largest.
    pub const KIB_64: Self = Self(16);

    /// From a size in bytes; `None` if it is no power of two from 1,024 to 65,536.
    #[must_use]
    pub fn new(bytes: u32) -> Option<Self> {
        if !bytes.is_power_of_two() {
            return None;
        }
        Self::from_bits(bytes.trailing_zeros())
    }

    /// From the logarithm; `None` outside 10 to 16.
    #[must_use]
    pub fn from_bits(bits: u32) -> Option<Self> {
        u8::try_from(bits).ok().filter(|bits| (10..=16).contains(bits)).map(Self)
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u32 {
        1 << self.0
    }

    /// The size in bytes, to index memory with.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "no block size is zero")]
    pub fn len(self) -> usize {
        1 << self.0
    }

    /// The base-two logarithm of the size.
    #[must_use]
    pub fn bits(self) -> u32 {
        u32::from(self.0)
    }

    /// How many blocks hold `bytes`, the last one perhaps partly.
    #[must_use]
    pub fn blocks_for(self, bytes: u64) -> u64 {
        bytes.div_ceil(u64::from(self.bytes()))
    }

    /// The 512-byte sectors in one block.
    #[must_use]
    pub fn sectors(self) -> u64 {
        u64::from(self.bytes() >> 9)
    }
}

impl fmt::Debug for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockSize({})", self.bytes())
    }
}

/// A point in time: whole seconds since 1970 (may be negative) and nanoseconds below 10^9 after it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// Nanoseconds after `seconds`, 0 to 999,999,999.
    pub nanoseconds: u32,
}
