//! Signatures of file systems, volumes and partition tables, so that a device in use is not overwritten
//! unasked.

/// The first bytes of a device in which [`find`] looks for signatures.
pub const EXAMINED: u64 = 128 << 10;

/// Format, byte offset, bytes. Source: file(1), libblkid. The last entry is the least specific one.
const SIGNATURES: &[(&str, usize, &[u8])] = &[
    ("an ext2, ext3 or ext4 file system", 0x438, &[0x53, 0xef]),
    ("an XFS file system", 0, b"XFSB"),
    ("a btrfs file system", 0x10040, b"_BHRfS_M"),
    ("an F2FS file system", 0x400, &[0x10, 0x20, 0xf5, 0xf2]),
    ("an EROFS file system", 0x400, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("a squashfs file system", 0, b"hsqs"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
    ("a FAT file system", 82, b"FAT32   "),
    ("an ISO 9660 file system", 0x8001, b"CD001"),
    ("a bcachefs file system", 0x1018, &[0xc6, 0x85, 0x73, 0xf6]),
    ("a LUKS volume", 0, b"LUKS\xba\xbe"),
    ("an LVM physical volume", 0x218, b"LVM2 001"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("swap space", 65526, b"SWAPSPACE2"),
    ("a member of a RAID", 0x1000, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("a member of a RAID", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("a GUID partition table", 512, b"EFI PART"),
    ("a GUID partition table", 4096, b"EFI PART"),
    ("a partition table or a FAT file system", 510, &[0x55, 0xaa]),
];

/// The format that a device holds, by its first [`EXAMINED`] bytes; `None` if no signature is found.
#[must_use]
pub fn find(start: &[u8]) -> Option<&'static str> {
    let holds = |at: usize, bytes: &[u8]| start.get(at..at + bytes.len()) == Some(bytes);
    SIGNATURES.iter().find(|(_, at, bytes)| holds(*at, bytes)).map(|(name, ..)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signature_is_found_within_the_bytes_examined() {
        for (name, at, bytes) in SIGNATURES {
            let mut start = vec![0; usize::try_from(EXAMINED).unwrap()];
            assert_eq!(find(&start), None);
            start[*at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(find(&start), Some(*name));
        }
        assert_eq!(find(b"XFS"), None, "shorter than the signature");
    }
}
