//! A file that takes its final name only when it is complete.
//!
//! Invariant: under the final name stands either what stood there before or the complete new file. The file is written
//! under a name of its own in the same directory and renamed at the end; whoever gives up half way, on an error or
//! an interrupt, drops the value, and the file goes.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use ext4_core::{Error, Result};

/// The path of a file that is being made. Dropping it removes the file.
#[derive(Debug)]
pub struct TemporaryFile {
    path: PathBuf,
    target: PathBuf,
    keep: bool,
}

impl TemporaryFile {
    /// A name beside `target` that no file has. Where `target` is a symlink, beside what it points to.
    ///
    /// # Errors
    /// `ENOENT` where there is no such directory.
    pub fn beside(target: &Path) -> Result<Self> {
        let target = match target.canonicalize() {
            Ok(target) => target,
            Err(_) => target.to_path_buf(),
        };
        let failed = |errno| Error::io("create", target.display().to_string(), errno);
        let name = target.file_name().ok_or_else(|| failed(ext4_core::Errno::EISDIR))?;
        let directory = parent(&target);
        std::fs::metadata(&directory)
            .map_err(|source| Error::host("create", target.display().to_string(), &source))?;
        let mut unique = OsString::from(".");
        unique.push(name);
        unique.push(format!(".{}.tmp", std::process::id()));
        let path = directory.join(unique);
        // A file of this name was left by a process of the same number that was killed.
        let _ = std::fs::remove_file(&path);
        Ok(Self { path, target, keep: false })
    }

    /// Where to write.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its final name, durably.
    ///
    /// # Errors
    /// The host's.
    pub fn persist(mut self) -> Result<()> {
        let failed =
            |source: &std::io::Error| Error::host("rename", self.target.display().to_string(), source);
        std::fs::rename(&self.path, &self.target).map_err(|source| failed(&source))?;
        self.keep = true;
        File::open(parent(&self.target))
            .and_then(|directory| directory.sync_all())
            .map_err(|source| failed(&source))
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_final_name_changes_only_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("disk.img");
        std::fs::write(&target, "old").unwrap();

        let given_up = TemporaryFile::beside(&target).unwrap();
        std::fs::write(given_up.path(), "half").unwrap();
        drop(given_up);
        assert_eq!(std::fs::read(&target).unwrap(), b"old");

        let finished = TemporaryFile::beside(&target).unwrap();
        std::fs::write(finished.path(), "new").unwrap();
        finished.persist().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
