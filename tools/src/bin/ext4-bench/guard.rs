//! The check that a device may be overwritten.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, bail};
use ext4_core::device::host::{HostFile, HostOptions};
use ext4_tools::signature;

/// Checks that `device` may be overwritten; returns its size in bytes.
///
/// # Errors
/// - The device cannot be opened exclusively for writing (mounted, in use, absent …).
/// - The device holds a known format, and `force` is false.
pub fn check(device: &Path, force: bool) -> anyhow::Result<u64> {
    let host = HostFile::open(device, &HostOptions::default())?;
    let mut start = Vec::new();
    let mut file = host.file();
    file.seek(SeekFrom::Start(0))?;
    file.take(signature::EXAMINED)
        .read_to_end(&mut start)
        .with_context(|| format!("read {}", device.display()))?;
    if let Some(name) = signature::find(&start)
        && !force
    {
        bail!("{} holds {name}; --force overwrites it", device.display());
    }
    Ok(host.geometry().size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_overwritten_only_with_force() {
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
