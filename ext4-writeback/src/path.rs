//! Paths: names separated by slashes, followed from the root, and what can be done with a path in one call.
//!
//! Invariant: at most [`MAX_SYMLINKS`] symlinks are followed, so a loop of them ends (`ELOOP`).
//!
//! Nothing is locked from one component to the next: whoever renames directories meanwhile decides what is found, as
//! in any kernel.

use crate::namespace::symlink;
use ext4_core::format::inode::FileType;
use ext4_core::{Errno, Error, InodeNumber, Result};

use crate::file::File;
use crate::filesystem::Filesystem;
use crate::namespace::attributes::Attributes;
use crate::namespace::new_inode::Credentials;

/// How many symlinks one path may lead through.
pub const MAX_SYMLINKS: u32 = 40;

fn shown(path: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(path))
}

/// Pushes the components of `path` in front of those that are still to be followed (the next one is last). A slash at
/// the end counts as `.` after it: what is before must be a directory.
fn push_components(path: &[u8], pending: &mut Vec<Vec<u8>>) {
    if path.ends_with(b"/") {
        pending.push(b".".to_vec());
    }
    let components = path.split(|byte| *byte == b'/').rev().filter(|component| !component.is_empty());
    pending.extend(components.map(<[u8]>::to_vec));
}

impl Filesystem {
    /// Follows `path` from the root (with or without a slash in front); symlinks on the way are followed, the last one
    /// where `follow` or where a slash stands behind it.
    ///
    /// # Errors
    /// `ENOENT` (also for the empty path), `ENOTDIR`, `ELOOP` after 40 symlinks, `ENAMETOOLONG`.
    pub async fn resolve(&self, path: &[u8], follow: bool) -> Result<InodeNumber> {
        if path.is_empty() {
            return Err(Error::posix(Errno::ENOENT, "the empty path"));
        }
        let mut pending = Vec::new();
        push_components(path, &mut pending);
        let mut current = InodeNumber::ROOT;
        let mut symlinks = 0;
        while let Some(name) = pending.pop() {
            let found = self.lookup(current, &name).await.map_err(|error| match error {
                Error::Posix { errno, .. } => Error::posix(errno, shown(path)),
                error => error,
            })?;
            if (!pending.is_empty() || follow)
                && let Some(target) = self.target_if_symlink(found).await?
            {
                symlinks += 1;
                if symlinks > MAX_SYMLINKS {
                    return Err(Error::posix(Errno::ELOOP, shown(path)));
                }
                if target.starts_with(b"/") {
                    current = InodeNumber::ROOT;
                }
                push_components(&target, &mut pending);
                continue;
            }
            current = found;
        }
        Ok(current)
    }

    async fn target_if_symlink(&self, inode: InodeNumber) -> Result<Option<Vec<u8>>> {
        self.observe("follow", inode, async {
            let info = self.inner.inode(inode).await?;
            let raw = info.inode.read().await;
            if raw.file_type() != Some(FileType::Symlink) {
                return Ok(None);
            }
            info.check_alive()?;
            symlink::target(&self.inner.volume.info, &self.inner.volume.inode_layout, &raw).await.map(Some)
        })
        .await
    }

    /// The directory that holds the last component of `path`, and that component, which need not be there. Slashes at
    /// the end are ignored.
    ///
    /// # Errors
    /// As [`Filesystem::resolve`]; `EBUSY` for the root, which has no name.
    pub async fn resolve_parent<'p>(&self, path: &'p [u8]) -> Result<(InodeNumber, &'p [u8])> {
        if path.is_empty() {
            return Err(Error::posix(Errno::ENOENT, "the empty path"));
        }
        let end = path.iter().rposition(|byte| *byte != b'/').map(|last| last + 1);
        let Some(end) = end else {
            return Err(Error::posix(Errno::EBUSY, "the root directory has no name"));
        };
        let trimmed = &path[..end];
        let Some(slash) = trimmed.iter().rposition(|byte| *byte == b'/') else {
            return Ok((InodeNumber::ROOT, trimmed));
        };
        let (parent, name) = (&trimmed[..=slash], &trimmed[slash + 1..]);
        Ok((self.resolve(parent, true).await?, name))
    }

    /// What stat tells of what is at `path`, symlinks followed.
    ///
    /// # Errors
    /// As [`Filesystem::resolve`].
    pub async fn metadata(&self, path: impl AsRef<[u8]>) -> Result<Attributes> {
        let inode = self.resolve(path.as_ref(), true).await?;
        self.attributes(inode).await
    }

    /// Opens the regular file at `path`, symlinks followed.
    ///
    /// # Errors
    /// As [`Filesystem::resolve`] and [`Filesystem::open`].
    pub async fn open_path(&self, path: impl AsRef<[u8]>) -> Result<File> {
        let inode = self.resolve(path.as_ref(), true).await?;
        self.open(inode).await
    }

    /// The whole content of the regular file at `path`.
    ///
    /// # Errors
    /// As [`Filesystem::open_path`]; `ENOMEM` where it does not fit into memory.
    pub async fn read(&self, path: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        let file = self.open_path(path.as_ref()).await?;
        let too_large = || Error::posix(Errno::ENOMEM, shown(path.as_ref()));
        let len = usize::try_from(file.len()).map_err(|_| too_large())?;
        let mut content = Vec::new();
        content.try_reserve_exact(len).map_err(|_| too_large())?;
        content.resize(len, 0);
        let mut filled = 0;
        while filled < len {
            match file.read_at(filled as u64, &mut content[filled..]).await? {
                0 => break,
                count => filled += count,
            }
        }
        content.truncate(filled);
        Ok(content)
    }

    /// Makes the regular file at `path` hold `content` and nothing else; it is made (owner 0, mode 0644) where it is
    /// not there. As for any write, it is durable after [`File::sync_all`], [`Filesystem::sync`] or unmounting.
    ///
    /// # Errors
    /// As [`Filesystem::open_path`] and [`File::write_at`].
    pub async fn write(&self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Result<()> {
        let (path, content) = (path.as_ref(), content.as_ref());
        let inode = match self.resolve(path, true).await {
            Err(error) if error.errno() == Errno::ENOENT && !path.ends_with(b"/") => {
                let (parent, name) = self.resolve_parent(path).await?;
                self.create(parent, name, Credentials { mode: 0o644, ..Credentials::default() }).await?
            }
            found => found?,
        };
        let file = self.open(inode).await?;
        file.set_len(0).await?;
        let mut written = 0;
        while written < content.len() {
            written += file.write_at(written as u64, &content[written..]).await?;
        }
        Ok(())
    }

    /// Makes the directory at `path` and those above it that are not there (owner 0, mode 0755). Returns its inode.
    ///
    /// # Errors
    /// `ENOTDIR` where something else is in the way; as [`Filesystem::mkdir`].
    pub async fn create_dir_all(&self, path: impl AsRef<[u8]>) -> Result<InodeNumber> {
        let path = path.as_ref();
        let mut current = InodeNumber::ROOT;
        let mut end = 0;
        for component in path.split(|byte| *byte == b'/') {
            end += component.len();
            let so_far = &path[..end.min(path.len())];
            end += 1;
            if component.is_empty() {
                continue;
            }
            let owner = Credentials { mode: 0o755, ..Credentials::default() };
            current = match self.resolve(so_far, true).await {
                Err(error) if error.errno() == Errno::ENOENT => {
                    match self.mkdir(current, component, owner).await {
                        // Somebody else made it, or a symlink that leads nowhere is in the way.
                        Err(error) if error.errno() == Errno::EEXIST => self.resolve(so_far, true).await?,
                        made => made?,
                    }
                }
                found => found?,
            };
        }
        if self.attributes(current).await?.file_type != FileType::Directory {
            return Err(Error::posix(Errno::ENOTDIR, shown(path)));
        }
        Ok(current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_at_the_end_asks_for_a_directory() {
        let components = |path: &[u8]| {
            let mut pending = Vec::new();
            push_components(path, &mut pending);
            pending.reverse();
            pending
        };
        assert_eq!(components(b"/a//b"), [b"a".to_vec(), b"b".to_vec()]);
        assert_eq!(components(b"a/b/"), [b"a".to_vec(), b"b".to_vec(), b".".to_vec()]);
        assert_eq!(components(b"/"), [b".".to_vec()]);
    }
}
