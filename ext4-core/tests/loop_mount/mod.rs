//! The kernel's ext4 as the judge: an image mounted on a loop device.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop mount that ends with the value.
pub struct Mounted {
    directory: tempfile::TempDir,
}

impl Mounted {
    /// `None` if this host cannot mount, except in CI.
    pub fn new(image: &Path) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let output = Command::new("mount")
            .args(["-t", "ext4", "-o", "loop"])
            .arg(image)
            .arg(directory.path())
            .output();
        match output {
            Ok(output) if output.status.success() => Some(Self { directory }),
            other => {
                assert!(std::env::var_os("CI").is_none(), "mount: {other:?}");
                eprintln!("mount: {other:?}, skipped");
                None
            }
        }
    }

    /// A path below it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(self.directory.path()).status();
        if !std::thread::panicking() {
            assert!(status.unwrap().success());
        }
    }
}
