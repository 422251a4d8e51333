//! From the bytes of a slot in the inode table to an [`Inode`] and back; times and block counts.
//!
//! Invariants:
//! - Bytes of a slot that nothing here knows survive [`Inode::serialize`]: a later kernel's fields are not
//!   lost because we changed a time stamp.
//! - Serialising fails before it changes anything: a block count that does not fit never reaches the device
//!   cut short, where it would free the wrong number of blocks from a quota and make `e2fsck` "repair" a good
//!   file.
//! - A slot is taken for an inode only when its checksum covers number and generation, so a misdirected write
//!   of one inode over another is seen.

use alloc::format;
use alloc::vec::Vec;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::checksum::{checksum, store_checksum, stored_checksum};
use super::halves::{join16, split16};
use super::layout::{FieldEnd, copy, holds};
use super::{BASE_SIZE, EXTRA_SIZE, FileType, Inode, InodeFlags, InodeLayout, RawInode, RawInodeExtra};
use crate::error::{Errno, Error, Result};
use crate::format::features::{Incompat, RoCompat};
use crate::types::{BlockNumber, InodeNumber, Timestamp};

/// The earliest time that can be stored: 1901-12-13T20:45:52Z.
pub const TIME_MIN: i64 = i32::MIN as i64;
/// The latest time that can be stored with the extra field: 2446-05-10T22:38:55Z.
pub const TIME_MAX: i64 = (1 << 34) - 1 + TIME_MIN;
/// The latest time that can be stored without the extra field: 2038-01-19T03:14:07Z.
pub const TIME_MAX_BASE: i64 = i32::MAX as i64;

impl Inode {
    /// Reads an inode from the bytes of its slot in the table. A slot of zeros is a free inode.
    ///
    /// # Errors
    /// Corrupt: a wrong checksum, an extra size that does not fit, a size of 2^63 bytes and more.
    pub fn parse(bytes: &[u8], number: InodeNumber, layout: &InodeLayout) -> Result<Self> {
        let corrupt = |problem| Error::corrupt(format!("inode {number}"), problem);
        let bytes = bytes
            .get(..usize::from(layout.inode_size))
            .ok_or_else(|| corrupt(format!("{} bytes for an inode of {}", bytes.len(), layout.inode_size)))?;
        let (raw, rest) =
            RawInode::ref_from_prefix(bytes).map_err(|_| corrupt(format!("{} bytes", bytes.len())))?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(Self { is_new: false, ..Self::free(number, layout) });
        }
        let extra_isize = match rest.first_chunk() {
            Some(size) => u16::from_le_bytes(*size),
            None => 0,
        };
        let room = layout.inode_size.saturating_sub(BASE_SIZE);
        if extra_isize > room || !extra_isize.is_multiple_of(4) {
            return Err(corrupt(format!("extra size {extra_isize} is not a multiple of 4 up to {room}")));
        }
        if layout.checksums() {
            let found = stored_checksum(raw, rest, extra_isize);
            let expected = checksum(bytes, number, raw.i_generation.get(), extra_isize, layout);
            if found != expected {
                return Err(corrupt(format!("checksum {found:#x} is not {expected:#x}")));
            }
        }
        let mut extra = RawInodeExtra::new_zeroed();
        for (to, from) in extra.as_mut_bytes().iter_mut().zip(rest.iter().take(usize::from(extra_isize))) {
            *to = *from;
        }
        // Without extra fields the kernel keeps no attributes in the inode either.
        let xattr_area = match extra_isize {
            0 => Vec::new(),
            size => rest.get(usize::from(size)..).unwrap_or_default().to_vec(),
        };
        let mode = raw.i_mode.get();
        let flags = InodeFlags::from_bits_retain(raw.i_flags.get());
        let large = FileType::from_mode(mode) == Some(FileType::Regular)
            || layout.features.incompat.contains(Incompat::LARGEDIR);
        let size = join(raw.i_size_lo.get(), if large { raw.i_size_high.get() } else { 0 });
        if i64::try_from(size).is_err() {
            return Err(corrupt(format!("size {size:#x} is larger than any file")));
        }
        let time = |seconds: U32, nanoseconds: U32| decode_time(seconds.get(), nanoseconds.get());
        let acl_high = if layout.features.bit64() && !layout.hurd { raw.l_i_file_acl_high.get() } else { 0 };
        let projects = layout.features.ro_compat.contains(RoCompat::PROJECT);
        Ok(Self {
            number,
            mode,
            uid: join16(raw.i_uid, raw.l_i_uid_high),
            gid: join16(raw.i_gid, raw.l_i_gid_high),
            size,
            atime: time(raw.i_atime, extra.i_atime_extra),
            ctime: time(raw.i_ctime, extra.i_ctime_extra),
            mtime: time(raw.i_mtime, extra.i_mtime_extra),
            crtime: holds(extra_isize, FieldEnd::Crtime).then(|| time(extra.i_crtime, extra.i_crtime_extra)),
            dtime: raw.i_dtime.get(),
            links_count: raw.i_links_count.get(),
            sectors: decode_sectors(raw, flags, layout),
            flags,
            version: if layout.hurd { 0 } else { join(raw.i_osd1.get(), extra.i_version_hi.get()) },
            generation: raw.i_generation.get(),
            file_acl: BlockNumber(join(raw.i_file_acl_lo.get(), u32::from(acl_high))),
            project: if projects { extra.i_projid.get() } else { 0 },
            i_block: raw.i_block,
            extra_isize,
            xattr_area,
            is_new: false,
        })
    }

    /// Writes the inode into its slot, checksum and all. Bytes that nothing here knows stay as they are
    /// (unless the inode is new). Times out of range are clamped, as the kernel does.
    ///
    /// # Errors
    /// - `EFBIG` if the block count cannot be stored.
    /// - `EINVAL` for a slot or attributes of the wrong size.
    ///
    /// Nothing was written then.
    pub fn serialize(&self, slot: &mut [u8], layout: &InodeLayout) -> Result<()> {
        let invalid = |what: &str| Error::posix(Errno::EINVAL, format!("inode {}: {what}", self.number));
        let slot = slot.get_mut(..usize::from(layout.inode_size)).ok_or_else(|| invalid("slot too short"))?;
        let room = layout.inode_size.saturating_sub(BASE_SIZE);
        let Some(attributes) = room.checked_sub(self.extra_isize) else {
            return Err(invalid("the extra fields do not fit"));
        };
        if self.xattr_area.len() > usize::from(attributes) {
            return Err(invalid("the attributes do not fit"));
        }
        let (blocks, flags) = self.encode_sectors(layout)?;
        if self.is_new {
            slot.fill(0);
        }
        let (raw, rest) = RawInode::mut_from_prefix(slot).map_err(|_| invalid("slot too short"))?;
        let extended = holds(self.extra_isize, FieldEnd::Times);
        let (atime, atime_extra) = encode_time(self.atime, extended);
        let (ctime, ctime_extra) = encode_time(self.ctime, extended);
        let (mtime, mtime_extra) = encode_time(self.mtime, extended);
        raw.i_mode = self.mode.into();
        (raw.i_uid, raw.l_i_uid_high) = split16(self.uid);
        (raw.i_gid, raw.l_i_gid_high) = split16(self.gid);
        (raw.i_size_lo, raw.i_size_high) = split(self.size);
        raw.i_atime = atime;
        raw.i_ctime = ctime;
        raw.i_mtime = mtime;
        raw.i_dtime = self.dtime.into();
        raw.i_links_count = self.links_count.into();
        raw.i_flags = flags.bits().into();
        raw.i_generation = self.generation.into();
        raw.i_block = self.i_block;
        let (blocks_lo, blocks_high) = split(blocks);
        raw.i_blocks_lo = blocks_lo;
        raw.l_i_blocks_high = low16(blocks_high.get()).into();
        let (acl_lo, acl_high) = split(self.file_acl.0);
        raw.i_file_acl_lo = acl_lo;
        let (version_lo, version_hi) = split(self.version);
        if !layout.hurd {
            raw.l_i_file_acl_high = low16(acl_high.get()).into();
            raw.i_osd1 = version_lo;
        }
        let mut extra = RawInodeExtra::new_zeroed();
        let known = usize::from(self.extra_isize.min(EXTRA_SIZE));
        copy(extra.as_mut_bytes(), rest.get(..known).unwrap_or_default());
        extra.i_extra_isize = self.extra_isize.into();
        extra.i_atime_extra = atime_extra;
        extra.i_ctime_extra = ctime_extra;
        extra.i_mtime_extra = mtime_extra;
        if let Some(crtime) = self.crtime {
            (extra.i_crtime, extra.i_crtime_extra) =
                encode_time(crtime, holds(self.extra_isize, FieldEnd::CrtimeExtra));
        }
        if !layout.hurd {
            extra.i_version_hi = version_hi;
        }
        if layout.features.ro_compat.contains(RoCompat::PROJECT) {
            extra.i_projid = self.project.into();
        }
        copy(rest, extra.as_bytes().get(..known).unwrap_or_default());
        if self.extra_isize > 0
            && let Some(area) = rest.get_mut(usize::from(self.extra_isize)..)
        {
            copy(area, &self.xattr_area);
            area.get_mut(self.xattr_area.len()..).unwrap_or_default().fill(0);
        }
        if layout.checksums() {
            let sum = checksum(slot, self.number, self.generation, self.extra_isize, layout);
            store_checksum(slot, sum, self.extra_isize);
        }
        Ok(())
    }

    /// i_blocks in the unit it is stored in, and the flags with `HUGE_FILE` as that unit asks: sectors if 48
    /// bits (32 without the feature) hold them, else file-system blocks. The kernel's
    /// `ext4_inode_blocks_set`.
    fn encode_sectors(&self, layout: &InodeLayout) -> Result<(u64, InodeFlags)> {
        let huge = layout.features.ro_compat.contains(RoCompat::HUGE_FILE);
        let limit = if huge { (1 << 48) - 1 } else { u64::from(u32::MAX) };
        let plain = self.flags.difference(InodeFlags::HUGE_FILE);
        if self.sectors <= limit {
            return Ok((self.sectors, plain));
        }
        let blocks = self.sectors.checked_div(layout.block_size.sectors()).unwrap_or(u64::MAX);
        if !huge || blocks > limit {
            return Err(Error::posix(
                Errno::EFBIG,
                format!("inode {}: {} sectors cannot be counted", self.number, self.sectors),
            ));
        }
        Ok((blocks, plain.union(InodeFlags::HUGE_FILE)))
    }
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | (u64::from(high) << 32)
}

fn split(value: u64) -> (U32, U32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (U32::from_bytes([a, b, c, d]), U32::from_bytes([e, f, g, h]))
}

fn low16(value: u32) -> u16 {
    let [a, b, ..] = value.to_le_bytes();
    u16::from_le_bytes([a, b])
}

fn decode_sectors(raw: &RawInode, flags: InodeFlags, layout: &InodeLayout) -> u64 {
    let low = raw.i_blocks_lo.get();
    if !layout.features.ro_compat.contains(RoCompat::HUGE_FILE) {
        return u64::from(low);
    }
    let count = join(low, u32::from(raw.l_i_blocks_high.get()));
    if flags.contains(InodeFlags::HUGE_FILE) {
        count.saturating_mul(layout.block_size.sectors())
    } else {
        count
    }
}

/// Seconds are 32 bits with sign; the extra field holds two more above them, which count 2^32 seconds each,
/// and 30 bits of nanoseconds. Source: kernel documentation, "Inode Timestamps".
pub(super) fn decode_time(seconds: u32, extra: u32) -> Timestamp {
    let epoch = i64::from(extra & 3) << 32;
    Timestamp {
        seconds: i64::from(seconds.cast_signed()).saturating_add(epoch),
        nanoseconds: (extra >> 2).min(999_999_999),
    }
}

pub(super) fn encode_time(time: Timestamp, extended: bool) -> (U32, U32) {
    let seconds = time.seconds.clamp(TIME_MIN, if extended { TIME_MAX } else { TIME_MAX_BASE });
    let (low, _) = split(seconds.cast_unsigned());
    let epoch = seconds.wrapping_sub(i64::from(low.get().cast_signed())) >> 32;
    let (epoch, _) = split(epoch.cast_unsigned() & 3);
    (low, ((time.nanoseconds << 2) | epoch.get()).into())
}
