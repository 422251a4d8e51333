//! The kernel's ext4, for comparison: mkfs.ext4, mount(8), and its statistics.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::workload::Traffic;

/// A fresh file system mounted by the kernel; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    directory: tempfile::TempDir,
    device: PathBuf,
    /// The device's name in /sys and /proc.
    name: String,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.directory.path()).status();
    }
}

impl Mounted {
    /// Makes a file system with mkfs.ext4 and the additional `arguments`, of `blocks` blocks or as large as
    /// the device, and mounts it. As with our mkfs, the kernel has nothing to initialize while it is
    /// measured, and the device is not discarded.
    ///
    /// # Errors
    /// Those of mkfs.ext4 and mount(8).
    pub fn new(device: &Path, arguments: &[&str], blocks: Option<u64>) -> anyhow::Result<Self> {
        tool(
            Command::new("mkfs.ext4")
                .args(["-F", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"])
                .args(arguments)
                .arg(device)
                .args(blocks.map(|blocks| blocks.to_string())),
        )?;
        let directory =
            tempfile::Builder::new().prefix("ext4-bench").tempdir().context("a directory to mount on")?;
        tool(Command::new("mount").args(["-t", "ext4"]).arg(device).arg(directory.path()))?;
        Ok(Self { directory, device: device.to_owned(), name: device_name(device)? })
    }

    /// Unmounts the file system and mounts it again, so that nothing is in the page cache.
    ///
    /// # Errors
    /// Those of umount(8) and mount(8).
    pub fn again(self) -> anyhow::Result<Self> {
        let directory = self.path();
        tool(Command::new("umount").arg(directory))?;
        tool(Command::new("mount").args(["-t", "ext4"]).arg(&self.device).arg(directory))?;
        Ok(self)
    }

    /// Calls syncfs(2).
    ///
    /// # Errors
    /// Those of syncfs(2).
    pub fn sync(&self) -> anyhow::Result<()> {
        let directory = std::fs::File::open(self.path()).context("open the directory")?;
        nix::unistd::syncfs(&directory).context("syncfs")
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Bytes written to the journal since the mount, by /proc/fs/jbd2/NAME-8/info, whose averages are rounded
    /// down, and /proc/fs/ext4/NAME/fc_info. `block_size` in bytes.
    ///
    /// # Errors
    /// jbd2's file cannot be read or has no number of transactions.
    pub fn journal_bytes(&self, block_size: f64) -> anyhow::Result<f64> {
        let info = read(&PathBuf::from(format!("/proc/fs/jbd2/{}-8/info", self.name)))?;
        let transactions = number_before(&info, " transactions (").context("transactions in jbd2's info")?;
        // There are no averages before the first commit.
        let logged = number_before(&info, " logged blocks per transaction").unwrap_or(0.0);
        let fast =
            std::fs::read_to_string(format!("/proc/fs/ext4/{}/fc_info", self.name)).unwrap_or_default();
        let fast = number_before(&fast, " numblks").unwrap_or(0.0);
        Ok((transactions * logged + fast) * block_size)
    }
}

/// The number before `words` on their line.
fn number_before(text: &str, words: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.contains(words))?;
    let before = line.split(words).next()?;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The name of a block device in /sys/class/block.
///
/// # Errors
/// There is no such path.
fn device_name(device: &Path) -> anyhow::Result<String> {
    let real = device.canonicalize().with_context(|| format!("find {}", device.display()))?;
    Ok(real.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

/// The number of flushes that a block device has carried out, or `None` if `device` is not a block device.
/// Source: kernel documentation, "Block layer statistics in /sys/block/DEV/stat", the 16th figure.
pub fn flushes(device: &Path) -> Option<f64> {
    let stat =
        std::fs::read_to_string(format!("/sys/class/block/{}/stat", device_name(device).ok()?)).ok()?;
    stat.split_ascii_whitespace().nth(15)?.parse().ok()
}

/// The traffic since `flushes` returned `flushes_before`: `journal_bytes`, and the flushes since then.
pub fn traffic(device: &Path, flushes_before: Option<f64>, journal_bytes: f64) -> Option<Traffic> {
    Some(Traffic { journal_bytes, flushes: flushes(device)? - flushes_before? })
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn tool(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("run {name}"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_jbd2_are_found() {
        let info = "1254 transactions (1250 requested), each up to 8192 blocks\naverage: \n  \
                    0ms waiting for transaction\n  1us average transaction commit time\n  \
                    2 handles per transaction\n  3 blocks per transaction\n  \
                    5 logged blocks per transaction\n";
        assert_eq!(number_before(info, " transactions ("), Some(1254.0));
        assert_eq!(number_before(info, " logged blocks per transaction"), Some(5.0));
        assert_eq!(number_before(info, " numblks"), None);
    }
}
