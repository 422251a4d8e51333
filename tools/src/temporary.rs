//! A temporary file that gets its final name only when it is complete.
//!
//! Invariant: the final name refers either to the file that had it before or to the complete new file. The
//! file is written under a temporary name in the same directory and renamed at the end. A command that fails
//! or is interrupted drops the value, which removes the file.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use ext4_core::{Error, Result};

/// The path of a file that is being written. Dropping it removes the file.
#[derive(Debug)]
pub struct TemporaryFile {
    path: PathBuf,
    target: PathBuf,
    keep: bool,
}

impl TemporaryFile {
    /// A temporary name in the directory of `target`. If `target` is a symlink, in the directory of the file
    /// that it points to.
    ///
    /// # Errors
    /// - `EISDIR`: `target` has no file name.
    /// - `ENOENT`: there is no such directory.
    /// - The host's other errors for stat(2).
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
        // A file of this name was left by a killed process with the same process id.
        let _ = std::fs::remove_file(&path);
        Ok(Self { path, target, keep: false })
    }

    /// The temporary path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the file to its final name and syncs the directory.
    ///
    /// # Errors
    /// The host's errors for rename(2) and fsync(2).
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
