//! A benchmark session: the target, the number of rounds and the choice of workloads, for all suites.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use ext4_tools::mount_options::MountOptionList;
use tokio::runtime::Runtime;

/// The device under test, which is overwritten.
#[derive(Clone, Debug)]
pub struct Target {
    /// The block device or image file.
    pub device: PathBuf,
    /// Bytes that each workload covers.
    pub size: u64,
    /// Size of the device in bytes.
    pub available: u64,
    /// Mount options for our file system.
    pub mount_options: MountOptionList,
}

/// What a suite is run with.
#[derive(Debug)]
pub struct Session {
    /// The runtime of our file system and of our backends.
    pub runtime: Runtime,
    /// The device under test.
    pub target: Target,
    /// How often each workload is measured on each subject.
    pub rounds: u32,
    /// If set, only workloads whose name contains this text are measured.
    pub only: Option<String>,
}

impl Session {
    /// Returns true if the workload of this name is to be measured.
    pub fn includes(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|text| name.contains(text.as_str()))
    }

    /// Overwrites the first `needed` bytes of the target, so that the first touch of the device's memory is
    /// not measured. Returns true if the kernel's ext4 can be measured, which needs root; otherwise prints
    /// that it is left out.
    ///
    /// # Errors
    /// - The target has fewer than `needed` bytes.
    /// - Those of the device.
    pub fn prepare(&self, needed: u64) -> anyhow::Result<bool> {
        let Target { device, available, .. } = &self.target;
        ensure!(*available >= needed, "{} has {available} bytes; the suite needs {needed}", device.display());
        let root = nix::unistd::geteuid().is_root();
        if !root {
            eprintln!("ext4-bench: the kernel's ext4 is left out: only root can mount it");
        }
        let file = std::fs::OpenOptions::new().write(true).open(device).context("open the device")?;
        let zeros = vec![0_u8; 1 << 20];
        for at in (0..needed).step_by(zeros.len()) {
            file.write_all_at(&zeros, at).context("overwrite the device")?;
        }
        file.sync_all().context("overwrite the device")?;
        Ok(root)
    }
}
