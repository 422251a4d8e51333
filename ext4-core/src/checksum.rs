//! The checksums of ext4 and jbd2, all in one place, so that the library underneath can be changed in one
//! place.
//!
//! Source: kernel documentation, "Checksums" (Documentation/filesystems/ext4/checksums.rst): metadata_csum is
//! crc32c (Castagnoli) without the final inversion; uninit_bg is crc16 (polynomial 0x8005, reflected).

/// crc32c over `data`, continuing from `seed`, with neither the first nor the last inversion: the kernel's
/// `ext4_chksum(seed, data)` and `jbd2_chksum`. A chain starts with `!0`.
#[must_use]
pub fn crc32c(seed: u32, data: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, data)
}

/// crc16 (CRC-16/ARC, reflected 0x8005), continuing from `seed`: the group descriptor checksum of
/// `uninit_bg`.
#[must_use]
pub fn crc16(seed: u16, data: &[u8]) -> u16 {
    data.iter().fold(seed, |crc, byte| {
        let mut crc = crc ^ u16::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xa001 } else { crc >> 1 };
        }
        crc
    })
}

/// crc32 (big-endian bit order, polynomial 0x04c11db7, no inversion), continuing from `seed`: the commit
/// block checksum of jbd2's `COMPAT_CHECKSUM`, the kernel's `crc32_be`.
#[must_use]
pub fn crc32_be(seed: u32, data: &[u8]) -> u32 {
    data.iter().fold(seed, |crc, byte| {
        let index = (crc >> 24) as u8 ^ byte;
        (crc << 8) ^ CRC32_BE[usize::from(index)]
    })
}

/// What each value of the top byte adds, so that a whole log can be summed at the speed of the device.
const CRC32_BE: [u32; 256] = {
    let mut table = [0; 256];
    let mut value = 0;
    while value < 256 {
        let mut crc = (value as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000_0000 == 0 { crc << 1 } else { (crc << 1) ^ 0x04c1_1db7 };
            bit += 1;
        }
        table[value] = crc;
        value += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_values_of_the_catalogue_hold() {
        let check = b"123456789";
        assert_eq!(!crc32c(!0, check), 0xe306_9283);
        assert_eq!(crc16(0, check), 0xbb3d);
        assert_eq!(!crc32_be(!0, check), 0xfc89_1918);
    }

    #[test]
    fn a_checksum_continues_where_it_stopped() {
        let (a, b) = (b"inode ".as_slice(), b"generation".as_slice());
        let whole = [a, b].concat();
        assert_eq!(crc32c(crc32c(!0, a), b), crc32c(!0, &whole));
        assert_eq!(crc16(crc16(!0, a), b), crc16(!0, &whole));
        assert_eq!(crc32_be(crc32_be(!0, a), b), crc32_be(!0, &whole));
    }
}
