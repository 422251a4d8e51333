//! Refusing to write over what somebody may still want.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, bail};
use ext4_core::device::host::{HostFile, HostOptions};

/// What a device that is in use carries: its name, where, and which bytes. Source: file(1), libblkid.
const SIGNATURES: &[(&str, usize, &[u8])] = &[
    ("an ext2, ext3 or ext4 file system", 0x438, &[0x53, 0xef]),
    ("an XFS file system", 0, b"XFSB"),
    ("a btrfs file system", 0x10040, b"_BHRfS_M"),
    ("an F2FS file system", 0x400, &[0x10, 0x20, 0xf5, 0xf2]),
    ("an EROFS file system", 0x400, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("a squashfs file system", 0, b"hsqs"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
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

/// How many bytes `device` has, where it may be written over.
///
/// # Errors
/// Where it cannot be opened for writing alone (mounted, in use, absent …), and where it holds something that one of
/// the signatures tells of, unless `force`.
pub fn check(device: &Path, force: bool) -> anyhow::Result<u64> {
    let host = HostFile::open(device, &HostOptions::default())?;
    let mut start = Vec::new();
    let mut file = host.file();
    file.seek(SeekFrom::Start(0))?;
    file.take(128 << 10).read_to_end(&mut start).with_context(|| format!("read {}", device.display()))?;
    if let Some(name) = found(&start)
        && !force
    {
        bail!("{} holds {name}; --force writes over it", device.display());
    }
    Ok(host.geometry().size)
}

/// What the first bytes of a device tell of.
fn found(start: &[u8]) -> Option<&'static str> {
    let holds = |at: usize, bytes: &[u8]| start.get(at..at + bytes.len()).is_some_and(|found| found == bytes);
    SIGNATURES.iter().find(|(_, at, bytes)| holds(*at, bytes)).map(|(name, ..)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_not_written_over_unasked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        assert_eq!(check(&path, false).unwrap(), 1 << 20);
        let mut content = vec![0; 1 << 20];
        content[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        std::fs::write(&path, &content).unwrap();
        let error = check(&path, false).unwrap_err().to_string();
        assert!(error.contains("ext4 file system; --force"), "{error}");
        assert_eq!(check(&path, true).unwrap(), 1 << 20);
        content = vec![0; 1 << 20];
        content[510..512].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(&path, &content).unwrap();
        assert!(check(&path, false).is_err());
        assert!(check(&directory.path().join("absent"), true).is_err());
    }
}
